"""Send a recording again, through the same door as a live agent: the same messages, numbers and clocks.

Paced by frame time, or as fast as the slowest subscriber takes it: a replay may wait where an agent may not, so it
offers each message until every
subscriber has room. One that takes nothing for PATIENCE_S is passed over, said once, and finds its loss in the sequence
numbers.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from interlatent_live.stream.clock import FrameClock
from interlatent_live.stream.errors import RecordingError
from interlatent_live.stream.frames import FrameBatch
from interlatent_live.stream.manifest import Manifest
from interlatent_live.stream.publisher import Publisher
from interlatent_live.stream.reading import Recording
from interlatent_live.stream.wire import Bye, Message, topic

__all__ = ["PATIENCE_S", "ReplayReport", "replay"]

_LOG = logging.getLogger(__name__)
PATIENCE_S: Final = 30.0
"""How long a subscriber may take nothing before a replay goes on without it."""
_MANIFEST_S: Final = 1.0
_LOOK_S: Final = 0.02
"""Between two looks at new subscriptions and at `stop`, while waiting."""


@dataclass(frozen=True, slots=True)
class ReplayReport:
    """What a replay did."""

    messages: int
    frames: int
    seconds: float
    """Wall time, without waiting for the first subscriber."""
    waited_s: float
    """Of these, spent waiting for a subscriber to make room."""
    passed_over: int
    """Messages sent although a subscriber had no room."""
    finished: bool
    """Whether all that was asked for was sent; False when stopped."""


def replay(
    recording: Recording,
    publisher: Publisher,
    *,
    speed: float = 1.0,
    from_s: float | None = None,
    to_s: float | None = None,
    wait_subscriber_s: float = 0.0,
    stop: Callable[[], bool] = lambda: False,
) -> ReplayReport:
    """Send what [from_s, to_s) (seconds of frame time) of `recording` holds, `speed` times as fast as it was lived;
    math.inf: unpaced.

    Waits up to `wait_subscriber_s` for a subscriber before it begins. It ends with a farewell always, made up where the
    recorded one is not reached,
    so that subscribers commit and leave. The publisher stays open: close it with a linger that lets slow subscribers
    fetch the rest.
    """
    if not speed > 0:
        raise RecordingError(f"replay speed {speed} is not above 0; 1 is real time, inf as fast as possible")
    return _Replay(recording, publisher, speed, stop).run(from_s, to_s, wait_subscriber_s)


class _Replay:
    def __init__(self, recording: Recording, publisher: Publisher, speed: float, stop: Callable[[], bool]) -> None:
        self._recording, self._publisher, self._speed, self._stop = recording, publisher, speed, stop
        self._manifest = recording.manifest
        self._manifest_due = 0.0
        self._patience_s = PATIENCE_S
        self._messages = self._frames = self._passed_over = 0
        self._waited_s = 0.0

    def run(self, from_s: float | None, to_s: float | None, wait_subscriber_s: float) -> ReplayReport:
        self._wait_subscriber(wait_subscriber_s)
        clock, now, begin_s = FrameClock(), 0.0, None
        begin = time.monotonic()
        last: FrameBatch | None = None
        farewell = stopped = False
        for message in self._recording.messages(from_s, to_s):
            now = clock.seconds(message, now)
            if isinstance(message, Manifest):
                self._manifest = message
            if begin_s is None and isinstance(message, FrameBatch):
                begin, begin_s = time.monotonic(), now
            due = begin if begin_s is None else begin + (now - begin_s) / self._speed
            if not (self._pace(due) and self._send(message)):
                stopped = True
                break
            if isinstance(message, FrameBatch):
                last, farewell = message, False
                self._frames += message.rows
            farewell = farewell or isinstance(message, Bye)
        if not farewell and last is not None:
            self._send(_farewell(last))
        return ReplayReport(
            self._messages, self._frames, time.monotonic() - begin, self._waited_s, self._passed_over, not stopped
        )

    def _wait_subscriber(self, wait_s: float) -> None:
        deadline = time.monotonic() + wait_s
        self._attend()
        while time.monotonic() < deadline and not self._stop():
            if self._publisher.subscribed(topic(self._recording.manifest.run, "frames")):
                return
            time.sleep(_LOOK_S)
            self._attend()

    def _attend(self) -> None:
        """Answer new subscriptions with the manifest, and repeat it once a second, as an agent does."""
        now = time.monotonic()
        if self._publisher.poll() or now >= self._manifest_due:
            self._manifest_due = now + _MANIFEST_S
            self._publisher.offer(self._manifest)  # where that fails, subscribers are busy with what they have

    def _pace(self, due: float) -> bool:
        """Wait until `due`; False when stopped."""
        self._attend()
        while not self._stop():
            rest = 0.0 if math.isinf(self._speed) else due - time.monotonic()
            if rest <= 0:
                return True
            time.sleep(min(rest, _LOOK_S))
            self._attend()
        return False

    def _send(self, message: Message) -> bool:
        """Offer `message` until it is taken, or patience ends; False when stopped."""
        begin = time.monotonic()
        while not self._publisher.offer(message):
            waited = time.monotonic() - begin
            if self._stop():
                self._waited_s += waited
                if isinstance(message, Bye):
                    self._publisher.send(message)
                return False
            if waited > self._patience_s:
                self._pass_over(message)
                break
            time.sleep(0.001)
            self._publisher.poll()  # a subscriber that left makes room
        else:
            self._patience_s = PATIENCE_S
        self._waited_s += time.monotonic() - begin
        self._messages += 1
        return True

    def _pass_over(self, message: Message) -> None:
        if not self._passed_over:
            _LOG.warning(
                "replay goes on without a subscriber that took nothing for %g s; it will find frames missing",
                PATIENCE_S,
            )
        self._passed_over += 1
        self._patience_s = 0.0  # do not wait again for each message, until all have room once more
        self._publisher.send(message)


def _farewell(last: FrameBatch) -> Bye:
    """The accounts as far as the replayed frames tell."""
    return Bye(
        run=last.run,
        boot=last.boot,
        monotonic_ns=int(last.columns["monotonic_ns"][-1]),
        wall_ns=int(last.columns["wall_ns"][-1]),
        produced=last.next_seq,
        queue_dropped=last.queue_dropped,
        recorded=last.next_seq - last.queue_dropped,
    )
