"""The tap: hooks a model, seals one row per step, and leaves everything else to the sender's thread.

    hooks ──▶ slots ──step()──▶ deque (drop-oldest, bounded) ──10 ms timer──▶ sender: stack, record, send

Cost on the agent's thread, MLP with two points: about 7 µs a step with torch's hook dispatch (bench/tap.py). No lock is
taken and no thread is woken: appending to a deque is atomic, and the sender looks by itself. Cheaper alternatives:
fewer points, or no functions among the metrics.
"""

from __future__ import annotations

import logging
import math
import os
import secrets
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from time import monotonic_ns
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal

import numpy as np

from interlatent_live.agent_side.attribution import Attributor, Why
from interlatent_live.agent_side.capture import Capture, Chosen
from interlatent_live.agent_side.hooks import dispatch_ns
from interlatent_live.agent_side.introduction import introduce
from interlatent_live.agent_side.metrics import Metrics, as_metrics
from interlatent_live.agent_side.pictures import Pictures, job
from interlatent_live.agent_side.points import Point, default_point, resolve
from interlatent_live.agent_side.rows import Stacker
from interlatent_live.agent_side.scalars import ScalarLog
from interlatent_live.agent_side.sealing import Sealer
from interlatent_live.agent_side.silence import compiled, silence
from interlatent_live.stream.endpoint import DEFAULT_ENDPOINT
from interlatent_live.stream.errors import InterlatentError, SteeringError, TapError
from interlatent_live.stream.frames import FrameBatch
from interlatent_live.stream.manifest import ActionSpec, Manifest, check_run
from interlatent_live.stream.publisher import Publisher
from interlatent_live.stream.recording import Recorder
from interlatent_live.stream.sender import Sender
from interlatent_live.stream.wire import Message

if TYPE_CHECKING:
    from torch import nn

    from interlatent_live.agent_side.asking import Asking, Generation
    from interlatent_live.agent_side.control import Control
    from interlatent_live.agent_side.intervention import Steered
    from interlatent_live.agent_side.lm import Written
    from interlatent_live.agent_side.policy import SteeringPolicy
    from interlatent_live.agent_side.steering import Steering
    from interlatent_live.analyzer.dictionary import Dictionary
    from interlatent_live.stream.condition import Condition

__all__ = ["Tap"]

_LOG = logging.getLogger(__name__)
_SILENT_STEPS: Final = 100
"""Steps after which a point that never fired is reported."""
_OPEN: weakref.WeakSet[Tap] = weakref.WeakSet()


class Tap(Sealer):
    """Publishes and records what happens in a model, one row per step.

    `with Tap(model, ["3:out"]) as tap:` and `tap.step(…)` once a step, or `interlatent_live.watch(env, tap)`, which
    calls it. Forward passes and `step` belong on one thread.
    """

    viewer: ClassVar[Callable[[Tap], Callable[[], object]] | None] = None
    """What `view=True` calls once the tap is open: starts analyzer and page, returns what ends them. Set by
    `interlatent_live`."""
    find_dictionaries: ClassVar[Callable[[str | None], Sequence[Dictionary]] | None] = None
    """Installed dictionaries: that of a name, or all. Set likewise."""
    parse_condition: ClassVar[Callable[[str], Condition] | None] = None
    """From the text of a predicate to a condition. Set likewise."""

    def __new__(cls, *given: Any, tokenizer: Any = None, **named: Any) -> Tap:
        """A tap; with a tokenizer that of a language model, whose steps are tokens."""
        if tokenizer is None or cls is not Tap:
            return super().__new__(cls)
        from interlatent_live.agent_side.lm import LanguageTap

        return super().__new__(LanguageTap)

    def __init__(
        self,
        model: nn.Module | None,
        points: str | Iterable[str] | None = None,
        *,
        run: str | None = None,
        record: str | os.PathLike[str] | None = None,
        endpoint: str | None = None,
        metrics: Metrics | None = None,
        view: bool = False,
        num_envs: int = 1,
        weights: Literal["frozen", "changing"] = "frozen",
        queue_bytes: int = 64 << 20,
        rotate_bytes: int | None = None,
        rotate_s: float | None = None,
        keep_free_bytes: int | None = None,
        agent: str = "",
        environment: str = "",
        observation_names: Sequence[str] = (),
        action_names: Sequence[str] = (),
        step_period_s: float | None = None,
        send_period_s: float = 0.010,
        why: Why | None = None,
        tokenizer: Any = None,
        prompt_logprobs: bool = True,
        steering: SteeringPolicy | None = None,
        action_distribution: Callable[[Any], Any] | None = None,
    ) -> None:
        """Nothing is opened yet: that is `with`, or `open()`.

        `points`: names or patterns, see `il.points`; None takes the last hidden layer. `record`: a file, which must not
        exist. `rotate_bytes`, `rotate_s`: go on in another file, `run.1.mcap`, after so many bytes or seconds;
        `keep_free_bytes`: room that recording leaves on the disk, None: 1 GiB or 5 %.
        `endpoint`: where to publish; None is the default endpoint, '' publishes nothing. `metrics`: None takes
        the environment's named terms, or the elements of the observation. `queue_bytes`: memory that waits for the
        sender at most; beyond it the oldest rows go. `weights`: 'changing' while training. `send_period_s`: how often
        the sender's thread looks; longer costs a busy agent less, and adds to the latency. `tokenizer`: of a decoder-only
        language model of transformers, whose steps are tokens; `prompt_logprobs`: see `lm.LanguageTap`. `steering`: what may be changed,
        and by whom; None: nothing, and no socket takes requests. `action_distribution`: from what the model returns to a
        `torch.distributions.Distribution`, or to logits, by which the effect of steering is measured.
        """
        if num_envs < 1:
            raise TapError(f"num_envs is {num_envs}; at least 1 is needed")
        if queue_bytes < 1:
            raise TapError(f"queue_bytes is {queue_bytes}; at least 1 is needed")
        declared = None if metrics is None else as_metrics(metrics)
        name = check_run(run if run is not None else time.strftime("run-%Y%m%d-%H%M%S"))
        super().__init__(name, self._make_capture(model, points, num_envs), declared or (), queue_bytes)
        self.boot = secrets.token_hex(8)
        """Identity of this tap; a restarted agent has another one."""
        self.endpoint = DEFAULT_ENDPOINT if endpoint is None else endpoint
        """Where to publish; once open, the real address."""
        self._scalars = ScalarLog(name, self.boot, self._say)
        self.pictures = Pictures()
        """When to render; `watch` asks."""
        self._model = model
        self._metrics = declared
        self._record = record
        self._limits: dict[str, Any] = {
            "rotate_bytes": rotate_bytes, "rotate_s": rotate_s, "keep_free_bytes": keep_free_bytes,
        }  # fmt: skip
        self._view = view
        self._send_period_s = send_period_s
        self._weights: Literal["frozen", "changing", "none"] = "none" if model is None else weights
        self._about: dict[str, Any] = {
            "agent": agent,
            "environment": environment,
            "observation_names": tuple(observation_names),
            "step_period_s": step_period_s,
            "action": ActionSpec(names=tuple(action_names)),
        }
        self._pid = os.getpid()
        self._first: Manifest | None = None
        self._sender: Sender | None = None
        self._stacker: Stacker | None = None
        self._end_view: Callable[[], object] | None = None
        self._closing = False
        self._pauses = 0
        self._dispatch_ns = 0
        self._speed = (0, 0)
        if why is not None and model is None:
            raise TapError("why=… explains a torch policy, and this tap has no model")
        if steering is not None and model is None:
            raise TapError("steering=… changes what a torch policy computes, and this tap has no model")
        self._policy, self._distribution = steering, action_distribution
        self._control: Control | None = None
        self._explains = None if why is None else Attributor(why, name, self.boot, self._capture, self._say)

    def __enter__(self) -> Tap:
        self.open()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def open(self) -> None:
        """Put the hooks on, open socket and recording, start the sender. Raises EndpointError, RecordingError or
        TapError."""
        if self._sender is not None:
            raise TapError(f"the tap of run {self.run!r} was opened before; a tap is opened once: make another")
        if self._view and Tap.viewer is None:
            raise TapError("view=True needs the whole package: take Tap from interlatent_live")
        if self._view and not self.endpoint:
            raise TapError("view=True needs an endpoint, and endpoint is ''; leave it out for the default")
        first = introduce(self.run, self.boot, self._model, self._weights)
        if self._explains is not None and self._model is not None:  # what does not fit is said before anything is opened
            self._explains.begin(self._model, self._weights, first.weights_hash, self._stacked)
        if self._policy is not None:
            self._open_steering(self._policy, first)
        try:
            publisher = Publisher(self.endpoint) if self.endpoint else None
        except InterlatentError:
            self._close_steering()
            raise
        try:
            recorder = None if self._record is None else Recorder(self._record, **self._limits)
        except InterlatentError:
            self._close_steering()
            if publisher is not None:
                publisher.close()
            raise
        if publisher is not None:
            self.endpoint = publisher.endpoint
        if self._model is not None:
            self._dispatch_ns = dispatch_ns()
            self._capture.untraced = compiled(self._model)
        self._first = replace(
            first, num_envs=self.num_envs, control=None if self._control is None else self._control.spec, **self._about
        )
        self._stacker = self._make_stacker(self._first)
        self._sender = Sender(
            drain=self._drain,
            manifest=self._announced,
            status=self.status,
            accounts=self._accounts,
            run=self.run,
            boot=self.boot,
            publisher=publisher,
            recorder=recorder,
            scalars=self._logged,
            period_s=self._send_period_s,
        )
        try:
            self._capture.attach()
        except TapError:
            self._close_steering()
            self._sender.close()
            raise
        self._why = self._explains
        self._sealing = True
        if self._control is not None:
            self._control.start()
        self._sender.start()
        _OPEN.add(self)
        if self._view and Tap.viewer is not None:
            self._end_view = Tap.viewer(self)

    def close(self) -> None:
        """Take the hooks off, hand out what is left with a farewell, close socket and recording. Twice is once."""
        self._sealing = False
        self._closing = True
        self._capture.detach()
        if self._explains is not None:
            self._explains.end()
        _OPEN.discard(self)
        if self._sender is None or os.getpid() != self._pid:
            return
        self._close_steering()
        self._sender.close()
        end, self._end_view = self._end_view, None
        if end is not None:
            end()

    def steer(
        self,
        feature: int | None = None,
        *,
        scale: float | None = None,
        clamp: float | None = None,
        add: float | None = None,
        ablate: bool = False,
        direction: Sequence[float] | None = None,
        point: str | None = None,
        dictionary: str | Dictionary | None = None,
        unit: Literal["activation", "typical"] = "activation",
        typical: float | None = None,
        ttl_s: float | None = None,
        when: str | None = None,
        env: int | None = None,
        shadow: bool = False,
        max_effect: float | None = None,
        reason: str = "",
        author: str = "in process",
    ) -> Steered:
        """Steer from within the agent: `with tap.steer(4, scale=0): …`, or keep what it returns and `.release()` it.

        Exactly one of `scale`, `clamp`, `add` and `ablate`, of a feature; or `add` along a `direction` at a tap `point`.
        To be called between two steps, on the agent's thread: the next forward pass is steered. It ends by itself after
        `ttl_s` seconds, at the latest after the policy's `max_ttl_s`. Raises SteeringError or DictionaryError.
        """
        if self._steering is None:
            raise SteeringError("not allowed: give the tap steering=il.SteeringPolicy(…), and open it", reason="not_allowed")
        strengths = {"scale": scale, "clamp": clamp, "add": add, "ablate": 0.0 if ablate else None}
        given = {name: value for name, value in strengths.items() if value is not None}
        if len(given) != 1 or (feature is None) == (direction is None):
            raise SteeringError("steer a feature, or a direction, by exactly one of scale, clamp, add and ablate", reason="bad_request")
        ((operation, strength),) = given.items()
        condition = None
        if when is not None:
            if Tap.parse_condition is None:
                raise SteeringError("when=… needs the whole package: take Tap from interlatent_live")
            condition = Tap.parse_condition(when)
        act = self._steering.start(
            operation=operation,
            strength=strength,
            feature=feature,
            direction=direction,
            point=point,
            dictionary=dictionary,
            unit=unit,
            typical=typical,
            ttl_s=ttl_s,
            condition=condition,
            env=env,
            shadow=shadow,
            max_effect=max_effect,
            reason=reason,
            author=author,
        )
        self._steering.adopt()
        from interlatent_live.agent_side.intervention import Steered

        return Steered(act, self._steering.end)

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Keep nothing and ignore `step` inside, as in a training phase that runs the same modules."""
        self._pauses += 1
        self._sealing = False
        self._capture.rest()
        try:
            yield
        finally:
            self._pauses -= 1
            if not self._pauses and self in _OPEN:
                self._capture.wake()
                self._sealing = True

    def prompt(
        self, text: str | Sequence[str] | None = None, labels: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None
    ) -> AbstractContextManager[None]:
        """Of a language model: the texts that begin inside, with labels. See `lm.LanguageTap`."""
        raise TapError("prompts are of language models: give the tap their tokenizer=…")

    def asked(self, timeout_s: float | None = None) -> Iterator[Generation]:
        """Of a language model: the prompts that other processes ask for. See `lm.LanguageTap`."""
        raise TapError("prompts are asked of language models: give the tap their tokenizer=…")

    @property
    def waiting(self) -> int:
        """Prompts of other processes that wait for `asked`; none of an agent."""
        return 0

    @property
    def last(self) -> Written:
        """Of a language model: the newest text with its activations. See `lm.LanguageTap`."""
        raise TapError("last is the newest text of a language model: give the tap its tokenizer=…")

    def skip(self) -> None:
        """Count a step that an adapter could not read: it has a number, but no frame, and its activations go."""
        if self._sealing:
            self._steps += 1
            self._step_failures += 1
            self._slots[:] = self._nothing

    def rest(self) -> None:
        """Keep no activations until `wake`, though steps are sealed: what runs now is not what acts."""
        self._capture.rest()

    def wake(self) -> None:
        """Keep activations again. Nothing happens while the tap is paused or closed."""
        if self._sealing:
            self._capture.wake()

    def log(self, values: Mapping[str, Any]) -> None:
        """Send, record and store numbers of the training loop, `tap.log({"losses/value": loss})`, under the number of
        the step that comes next, the clock and `policy_version`. Also while paused. Never waits and never raises.

        A value is anything that holds one number; a tensor is brought home by the sender's thread. NaN and infinity are
        kept.
        """
        if self not in _OPEN:
            return
        try:
            self._scalars.add(self._steps, self.policy_version, values, self._ahead_ns)
        except Exception as error:  # noqa: BLE001 - the agent goes on, whatever it was given
            self._step_failures += 1
            self._say(f"scalars were not kept: {type(error).__name__}: {error}")

    def wait_subscribed(self, timeout_s: float) -> bool:
        """Wait until somebody receives this run's frames; whether that was so within `timeout_s` seconds."""
        return self._sender is not None and self._sender.wait_subscribed(timeout_s)

    def describe(
        self,
        *,
        num_envs: int | None = None,
        batched: bool | None = None,
        environment: str = "",
        action: ActionSpec | None = None,
        step_period_s: float | None = None,
    ) -> None:
        """Tell what `watch` sees of the environment; what the user gave stays. `batched`: observations have a leading
        dimension of num_envs.

        Raises TapError where another number of environments comes too late.
        """
        capture = self._capture
        if num_envs is not None and num_envs != capture.num_envs:
            if self._frames or any(capture.layouts):
                raise TapError(f"the tap reads {capture.num_envs} environment(s); call watch before the first step")
            self._resize(num_envs, num_envs > 1)
        if batched is not None:
            self._batched = batched
        about = self._about
        about["environment"] = about["environment"] or environment
        about["step_period_s"] = about["step_period_s"] or step_period_s
        if action is not None and about["action"].kind == "unknown":
            about["action"] = ActionSpec(action.kind, action.shape, about["action"].names or action.names)
        if self._first is not None and not self._frames:
            self._first = replace(self._first, num_envs=capture.num_envs, **about)
            self._stacker = Stacker(capture, self._first, self._metrics, self._say)

    def choose(self, rows: Sequence[int], batch: int) -> None:
        """Of the `batch` rows of every forward pass, keep those of `rows`, one for each of the tap's num_envs
        environments, which count from 0 in this order. For adapters; `step` is then given those environments only.

        Raises TapError for rows that do not fit, or once the tap is open.
        """
        if self._sender is not None:
            raise TapError("which rows are kept is fixed once the tap is open")
        if len(rows) != self.num_envs or not all(0 <= row < batch for row in rows):
            raise TapError(f"rows {list(rows)} of a batch of {batch} do not make {self.num_envs} environment(s)")
        first, count = rows[0], len(rows)
        together = list(rows) == list(range(first, first + count))
        if count < batch or not together:
            self._capture.chosen = Chosen(batch, slice(first, first + count) if together else list(rows))

    def expect_fewer(self) -> None:
        """Keep forward passes of fewer rows than there are environments, too. For adapters of libraries that act for
        those environments only that are ready: it calls `wake` before the first, and `place` before every `step`."""
        self._capture.fewer = True

    def place(self, rows: Sequence[int]) -> None:
        """Tell that the last forward pass had one row for each environment of `rows`, in that order. For adapters;
        `step` follows, with `valid` true for these environments alone."""
        if self._sealing:
            self._capture.place(rows)

    @property
    def model(self) -> nn.Module:
        """The tapped model."""
        if self._model is None:
            raise TapError("this tap was made without a model")
        return self._model

    @property
    def num_envs(self) -> int:
        """Environments that one step comprises."""
        return self._capture.num_envs

    @property
    def points(self) -> tuple[str, ...]:
        """Names of the tap points."""
        return tuple(point.name for point in self._capture.points)

    @property
    def frames(self) -> int:
        """Frames sealed so far = the next sequence number."""
        return self._frames

    @property
    def manifest(self) -> Manifest | None:
        """What the stream contains as far as it is known; None before the tap is open. Changes until the first step has
        been drained."""
        return self._first if self._stacker is None else self._stacker.stacked or self._first

    @property
    def subscribers(self) -> int:
        """Subscriptions that receive this run's frames."""
        return 0 if self._sender is None else self._sender.subscribers

    def overhead(self) -> dict[str, float]:
        """`median` and `p99` in µs that a step costs the agent: hooks, torch's dispatch of them, and `step`. One step
        in 16 is timed; NaN before.

        The dispatch was measured on an empty module when the tap was opened. Functions among the metrics are part of
        it, pictures are not.
        """
        costs = np.array(self._overheads, np.float64)
        if not len(costs):
            return {"median": math.nan, "p99": math.nan}
        costs += self._dispatch_ns * sum(point.module is not None for point in self._capture.points)
        median, p99 = np.percentile(costs, (50, 99)) / 1e3
        return {"median": float(median), "p99": float(p99)}

    def status(self) -> dict[str, float]:
        """Numbers for the heartbeat."""
        overhead = self.overhead()
        now, steps = monotonic_ns(), self._steps
        then, before = self._speed
        self._speed = (now, steps)
        numbers = {
            "overhead_us_median": overhead["median"],
            "overhead_us_p99": overhead["p99"],
            "steps_per_s": (steps - before) * 1e9 / (now - then) if then and now > then else math.nan,
            "autoreset_rows": self._autoreset_rows,
            "hook_failures": self._capture.failures,
            "metric_failures": self._metric_failures,
            "step_failures": self._step_failures,
            "stamp_failures": self._stamp_failures,
            "stamps_back": self._stamps_back,
            "extra_forwards": self._capture.extra_forwards,
            "other_forwards": self._capture.other_forwards,
            "silent_points": len(self._capture.silent),
            "picture_us_median": self.pictures.median_us,
            "scalars_dropped": self._scalars.dropped,
            "pictures_dropped": 0 if self._sender is None else self._sender.pictures_dropped,
            **({} if self._explains is None else self._explains.status()),
            **({} if self._steering is None else self._steering.status()),
            **({} if self._control is None else self._control.status()),
        }
        return {name: float(value) for name, value in numbers.items() if value == value}  # unknown is left out, not 0

    # on the agent's thread

    def _unsealed(self) -> None:
        if not self._pauses and os.getpid() == self._pid and self._sender is None:
            self._say("step was called before the tap was opened, and does nothing: use `with tap:`", now=True)

    def _make_capture(self, model: nn.Module | None, points: str | Iterable[str] | None, num_envs: int) -> Capture:
        return Capture(_chosen(model, points), num_envs)

    def _make_stacker(self, manifest: Manifest) -> Stacker:
        return Stacker(self._capture, manifest, self._metrics, self._say)

    def _picture(self, image: Any, seq: int, step: int) -> None:
        now = monotonic_ns()
        if self._sender is None:
            return
        header = {"run": self.run, "boot": self.boot, "seq": seq, "step": step, "env": 0, "monotonic_ns": max(0, now + self._ahead_ns)}
        self._sender.offer_picture(job(image, lambda: header | {"wall_ns": time.time_ns() - (monotonic_ns() - now)}))

    # on the sender's thread

    def _drain(self) -> Iterator[FrameBatch]:
        queue, rows = self._queue, []
        for _ in range(len(queue)):
            try:
                rows.append(queue.popleft())
            except IndexError:  # the agent dropped the oldest meanwhile
                break
        if rows and self._stacker is not None:
            for batch in self._stacker.batches(rows):
                yield batch
                if self._steering is not None:
                    self._steering.learn(batch)
        self._tell()

    def _logged(self) -> Iterator[Message]:
        yield from self._scalars.drain()
        if self._explains is not None:
            yield from self._explains.drain()
        if self._steering is not None:
            yield from self._steering.drain()

    def _stacked(self) -> Manifest | None:
        return None if self._stacker is None else self._stacker.stacked

    def _announced(self) -> Manifest | None:
        """Not before the first row: only then are shapes known, and readers take the first manifest for the stream's."""
        stacked = None if self._stacker is None else self._stacker.stacked
        return self._first if stacked is None and self._closing else stacked

    def _open_steering(self, policy: SteeringPolicy, first: Manifest) -> None:
        """Before anything else is opened: what does not fit is said at once. Raises SteeringError, DictionaryError or
        EndpointError."""
        from interlatent_live.agent_side.control import Control

        steering = self._make_steering(policy)
        steering.open(
            self._model,
            self._weights,
            first.weights_hash,
            Tap.find_dictionaries,
            lambda: (self._frames, self._steps),
            lambda: {} if self._stacker is None else self._stacker.sources,
            self._distribution,
        )
        if policy.control:
            self._control = Control(steering, self.run, self.boot, self._make_asking(policy, steering))
        self._steering = self._capture.steering = steering

    def _make_steering(self, policy: SteeringPolicy) -> Steering:
        from interlatent_live.agent_side.steering import Steering

        return Steering(policy, self._capture, self.run, self.boot, self._say)

    def _make_asking(self, policy: SteeringPolicy, steering: Steering) -> Asking | None:
        if policy.prompts:
            raise SteeringError("prompts are for language models, and this tap has no tokenizer=…: leave prompts out")
        return None

    def _close_steering(self) -> None:
        if self._control is not None:
            self._control.close()
        if self._steering is not None:
            self._steering.close()

    def _accounts(self) -> tuple[int, int]:
        return (0, 0) if self._stacker is None else (self._stacker.next_seq, self._stacker.queue_dropped)

    def _tell(self) -> None:
        """Log what the agent's thread noticed; it does not do so itself, since a handler may write to a slow disk."""
        capture = self._capture
        if self._steps >= _SILENT_STEPS and capture.silent:
            silent = [point for point in capture.points if point.name in capture.silent and point.module is not None]
            if silent:
                self._say(silence(silent, self._steps, capture, self._model), now=True)
        if capture.extra_forwards:
            self._say(
                "a module ran several times within one step; the last run counts. Seal a step after each (tap.step), or "
                "pause what is no acting (tap.pause)",
                now=True,
            )
        while capture.reports:
            _LOG.warning("run %s: %s", self.run, capture.reports.popleft())

    def _orphan(self) -> None:
        """In the child of a fork: no thread, no socket, no hooks; `step` does nothing."""
        self._sealing = False
        self._end_view = None
        self._why = None
        if self._steering is not None:
            self._steering.let_go()
        self._steering = self._capture.steering = None
        self._queue.clear()
        self._capture.detach()
        if self._explains is not None:
            self._explains.end()


def _orphan_all() -> None:
    for tap in list(_OPEN):
        tap._orphan()
    _OPEN.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_orphan_all)


def _chosen(model: nn.Module | None, points: str | Iterable[str] | None) -> tuple[Point, ...]:
    if model is None:
        if points is not None:
            raise TapError("points are given, but no model; give the model that has them")
        return ()
    if points is not None:
        return resolve(model, points)
    point = default_point(model)
    if point is None:
        raise TapError(f"no hidden layer is recognised in {type(model).__name__}; name one: il.points(model) lists them")
    kind = type(point.module).__name__
    _LOG.warning("no tap points given: %s (%s) is read, the last hidden layer; il.points lists all", point.name, kind)
    return (point,)
