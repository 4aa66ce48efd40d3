"""Small messages and streams for the stream's tests."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from interlatent_live.stream.frames import FrameBatch
from interlatent_live.stream.ledger import SubscriberLedger
from interlatent_live.stream.manifest import ActionSpec, Manifest, MetricSpec, TapPointSpec
from interlatent_live.stream.publisher import Publisher
from interlatent_live.stream.recording import Recorder
from interlatent_live.stream.sender import Sender
from interlatent_live.stream.subscriber import Subscriber
from interlatent_live.stream.wire import Attribution, Bye, Heartbeat, Message, Picture, Scalars, Signals

ANY_PORT = "tcp://127.0.0.1:*"
SECOND = 1_000_000_000


def manifest(boot: str = "b0", **changes: Any) -> Manifest:
    values: dict[str, Any] = {
        "run": "agent",
        "boot": boot,
        "started_wall_ns": 1_764_000_000 * SECOND,
        "started_monotonic_ns": 5 * SECOND,
        "host": "robot",
        "host_boot": "h0",
        "pid": 42,
        "agent": "cartpole",
        "environment": "CartPole-v1",
        "step_period_s": 0.02,
        "tap_points": (TapPointSpec("1:out", "float32", (3,), "Tanh"), TapPointSpec("3:out", "bfloat16", (2,), "Tanh")),
        "metrics": (MetricSpec("pole_angle", "rad"), MetricSpec("reward_rate", "1/s", "transition", "smoothed")),
        "observation_shape": (4,),
        "observation_names": ("x", "v", "angle", "omega"),
        "action": ActionSpec("discrete", (), ("left", "right")),
        "weights_hash": "ab" * 32,
        "software": {"torch": "2.4"},
    }
    return Manifest(**(values | changes))


def batch(first_seq: int = 0, rows: int = 2, *, boot: str = "b0", queue_dropped: int = 0, hz: float = 50.0) -> FrameBatch:
    """Frames `first_seq`… of a one-environment stream at `hz`; the second tap point has no activation in row 0."""
    seq = np.arange(first_seq, first_seq + rows)
    clock = (seq / hz * 1e9).astype("<i8")
    columns = {
        "step": seq.astype("<i8"),
        "env": np.zeros(rows, "<i4"),
        "episode": (seq // 100).astype("<i4"),
        "episode_step": (seq % 100).astype("<i4"),
        "monotonic_ns": clock + 5 * SECOND,
        "wall_ns": clock + 1_764_000_000 * SECOND,
        "policy_version": np.zeros(rows, "<i4"),
        "forward_age": np.zeros(rows, "<i4"),
        "observation": np.sin(seq[:, None] + np.arange(4)).astype("<f4"),
        "metrics": np.stack([np.sin(seq * 0.1), np.full(rows, np.nan)], axis=1),
        "action": (seq % 2).astype("<i8"),
        "reward": np.ones(rows),
        "terminated": seq % 100 == 99,
        "truncated": np.zeros(rows, "|b1"),
    }
    present = np.arange(1, rows, dtype="<i4")
    activations = {
        "1:out": np.tanh(seq[:, None] * np.arange(1, 4) * 0.1).astype("<f4"),
        "3:out": (seq[present, None] + np.arange(2)).astype("<u2"),
    }
    return FrameBatch("agent", boot, manifest(boot).hash, first_seq, queue_dropped, columns, activations, {"3:out": present})


def heartbeat(produced: int = 2, kind: type[Heartbeat] = Heartbeat, **changes: Any) -> Heartbeat:
    values: dict[str, Any] = {
        "run": "agent",
        "boot": "b0",
        "monotonic_ns": 6 * SECOND,
        "wall_ns": 1_764_000_001 * SECOND,
        "produced": produced,
        "queue_dropped": 0,
        "status": {"overhead_us_median": 6.5},
    }
    return kind(**(values | changes))


def picture(seq: int = 1) -> Picture:
    clock = seq * SECOND // 50
    return Picture(
        "agent", "b0", seq, seq, 0, clock + 5 * SECOND, clock + 1_764_000_000 * SECOND, 2, 1, b"\xff\xd8\xff\xe0jpeg"
    )


def signals() -> Signals:
    return Signals("agent", 1_764_000_000 * SECOND + 123_456_789, {"pole_angle": 0.25, "reward": 1.0})


def scalars(seq: int = 0) -> Scalars:
    clocks = (5 * SECOND, 6 * SECOND)
    wall = (1_764_000_000 * SECOND, 1_764_000_001 * SECOND)
    return Scalars("agent", "b0", seq, ("losses/value", "lr"), (10, 20), clocks, wall, (1, 2), ((0.5, 1e-3), (float("inf"), 5e-4)))


def attribution(seq: int = 1, **changes: Any) -> Attribution:
    """Two actions, three active features; the parts sum to the totals exactly."""
    clock = seq * SECOND // 50
    values: dict[str, Any] = {
        "run": "agent", "boot": "b0", "seq": seq, "step": seq, "env": 0, "monotonic_ns": clock + 5 * SECOND,
        "wall_ns": clock + 1_764_000_000 * SECOND, "dictionary": "cd" * 32, "kind": "logits", "chosen": 1, "action_count": 2,
        "names": ("left", "right"), "actions": np.arange(2, dtype="<i4"), "total": np.array([-1.0, 2.5], "<f4"),
        "bias": np.array([0.25, -0.25], "<f4"), "error": np.array([0.0, 0.125], "<f4"), "rest": np.array([-0.25, 0.125], "<f4"),
        "features": np.array([4, 17, 30], "<i4"), "values": np.array([0.5, 2.0, 1.0], "<f4"),
        "contributions": np.array([[-0.5, 1.0], [-1.0, 2.0], [0.5, -0.5]], "<f4"),
    }  # fmt: skip
    return Attribution(**(values | changes))


def every_kind() -> dict[str, Message]:
    return {
        "manifest": manifest(),
        "frames": batch(),
        "heartbeat": heartbeat(),
        "bye": heartbeat(kind=Bye),
        "picture": picture(),
        "scalars": scalars(),
        "signals": signals(),
        "attribution": attribution(),
    }


class Agent:
    """The agent's side of a stream without a model: `produce` seals frames, a real sender records and sends them."""

    def __init__(
        self,
        *,
        endpoint: str | None = ANY_PORT,
        record: Path | None = None,
        boot: str = "b0",
        hwm: int = 1000,
        drain: Callable[[], Iterable[FrameBatch]] | None = None,
    ) -> None:
        self.boot, self.next_seq, self.queue_dropped = boot, 0, 0
        self.queue: deque[FrameBatch] = deque()
        self.publisher = None if endpoint is None else Publisher(endpoint, hwm=hwm)
        self.manifest = manifest(boot)
        self.sender = Sender(
            drain=drain or self._drain,
            manifest=lambda: self.manifest,
            status=lambda: {"overhead_us_median": 6.5},
            accounts=self._accounts,
            run="agent",
            boot=boot,
            publisher=self.publisher,
            recorder=None if record is None else Recorder(record),
            period_s=0.002,
        )

    @property
    def endpoint(self) -> str:
        assert self.publisher is not None
        return self.publisher.endpoint

    def produce(self, rows: int = 1, activations: Mapping[str, np.ndarray[Any, Any]] | None = None) -> FrameBatch:
        made = batch(self.next_seq, rows, boot=self.boot, queue_dropped=self.queue_dropped)
        if activations is not None:
            made = dataclasses.replace(made, activations=activations, present={})
        self.queue.append(made)
        self.next_seq += rows
        return made

    def lose(self, rows: int) -> None:
        """Let the queue drop the next `rows` frames."""
        self.next_seq += rows
        self.queue_dropped += rows

    def settle(self) -> None:
        """Wait until all that was produced has been taken by the sender."""
        deadline = time.monotonic() + 10
        while self.queue and time.monotonic() < deadline:
            time.sleep(0.002)

    def _accounts(self) -> tuple[int, int]:
        """What is drained, and never more: a heartbeat ahead of its frames would count them as lost."""
        due, dropped = self.next_seq, self.queue_dropped
        return (self.queue[0].first_seq if self.queue else due), dropped

    def _drain(self) -> list[FrameBatch]:
        out = []
        while self.queue:
            out.append(self.queue.popleft())
        return out

    def __enter__(self) -> Agent:
        self.sender.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.sender.close()


class Listener:
    """A subscriber on a thread of its own, which keeps the accounts until the farewell or `until` holds."""

    def __init__(self, endpoint: str, *, until: Callable[[Message], bool] = lambda m: isinstance(m, Bye)) -> None:
        self.messages: list[Message] = []
        self.ledger = SubscriberLedger()
        self._endpoint, self._until = endpoint, until
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def _listen(self) -> None:
        with Subscriber(self._endpoint, run="agent") as subscriber:
            while (message := subscriber.receive(10)) is not None:
                self.messages.append(message)
                account(self.ledger, message)
                if self._until(message):
                    return

    def wait(self) -> Listener:
        self._thread.join(30)
        assert not self._thread.is_alive()
        return self

    @property
    def batches(self) -> list[FrameBatch]:
        return [m for m in self.messages if isinstance(m, FrameBatch)]


def account(ledger: SubscriberLedger, message: Message) -> None:
    if isinstance(message, FrameBatch):
        ledger.batch(message)
    elif isinstance(message, Heartbeat):
        ledger.bound(message)
