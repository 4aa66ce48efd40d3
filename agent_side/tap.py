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
import socket
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from time import monotonic_ns, perf_counter_ns
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal

import numpy as np

from interlatent_live.agent_side.capture import Capture
from interlatent_live.agent_side.metrics import Metrics, Transition, as_metrics
from interlatent_live.agent_side.pictures import Pictures, job
from interlatent_live.agent_side.points import Point, default_point, resolve
from interlatent_live.agent_side.rows import Row, Stacker, hand_over
from interlatent_live.agent_side.weights import weights_hash
from interlatent_live.stream.endpoint import DEFAULT_ENDPOINT
from interlatent_live.stream.errors import InterlatentError, TapError
from interlatent_live.stream.frames import FrameBatch
from interlatent_live.stream.manifest import ActionSpec, Manifest, check_run
from interlatent_live.stream.publisher import Publisher
from interlatent_live.stream.recording import Recorder
from interlatent_live.stream.sender import Sender
from interlatent_live.stream.wire import MAX_OBSERVATION

if TYPE_CHECKING:
    import numpy.typing as npt
    from torch import nn

__all__ = ["Tap"]

_LOG = logging.getLogger(__name__)
_SAMPLE: Final = 16
"""One step of so many is timed."""
_SILENT_STEPS: Final = 100
"""Steps after which a point that never fired is reported."""
_ROW_BYTES: Final = 512
"""What a row costs beside its arrays, in bytes of memory."""
_SCALARS: Final = frozenset({type(None), bool, int, float, np.bool_, np.int64, np.int32, np.float64, np.float32})
"""Types that nobody can overwrite, so they wait in the queue as they are."""
_OPEN: weakref.WeakSet[Tap] = weakref.WeakSet()


class Tap:
    """Publishes and records what happens in a model, one row per step.

    `with Tap(model, ["3:out"]) as tap:` and `tap.step(…)` once a step, or `interlatent_live.watch(env, tap)`, which
    calls it. Forward passes and `step` belong on one thread.
    """

    viewer: ClassVar[Callable[[Tap], Callable[[], object]] | None] = None
    """What `view=True` calls once the tap is open: starts analyzer and page, returns what ends them. Set by
    `interlatent_live`."""

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
        agent: str = "",
        environment: str = "",
        observation_names: Sequence[str] = (),
        action_names: Sequence[str] = (),
        step_period_s: float | None = None,
    ) -> None:
        """Nothing is opened yet: that is `with`, or `open()`.

        `points`: names or patterns, see `il.points`; None takes the last hidden layer. `record`: a file, which must not
        exist. `endpoint`: where to publish; None is the default endpoint, '' publishes nothing. `metrics`: None takes
        the environment's named terms, or the elements of the observation. `queue_bytes`: memory that waits for the
        sender at most; beyond it the oldest rows go. `weights`: 'changing' while training.
        """
        if num_envs < 1:
            raise TapError(f"num_envs is {num_envs}; at least 1 is needed")
        if queue_bytes < 1:
            raise TapError(f"queue_bytes is {queue_bytes}; at least 1 is needed")
        self.run = check_run(run if run is not None else time.strftime("run-%Y%m%d-%H%M%S"))
        self.boot = secrets.token_hex(8)
        self.endpoint = DEFAULT_ENDPOINT if endpoint is None else endpoint
        """Where to publish; once open, the real address."""
        self.policy_version = 0
        """Stands on every frame; count it up when the weights change."""
        self.pictures = Pictures()
        self._model = model
        self._capture = Capture(_chosen(model, points), num_envs)
        self._capture.on_layout = self._bound_queue
        self._metrics = None if metrics is None else as_metrics(metrics)
        self._record = record
        self._view = view
        self._weights: Literal["frozen", "changing", "none"] = "none" if model is None else weights
        self._queue_bytes = queue_bytes
        self._about: dict[str, Any] = {
            "agent": agent,
            "environment": environment,
            "observation_names": tuple(observation_names),
            "step_period_s": step_period_s,
            "action": ActionSpec(names=tuple(action_names)),
        }
        self._batched = num_envs > 1
        self._functions = tuple(m for m in self._metrics or () if callable(m.source))
        self._pid = os.getpid()
        self._sender: Sender | None = None
        self._stacker: Stacker | None = None
        self._end_view: Callable[[], object] | None = None
        self._pauses = 0
        self._sealing = False
        self._slots, self._gate = self._capture.slots, self._capture.gate
        self._nothing = tuple(self._slots)
        self._queue: deque[Row] = deque()
        self._limit = 1
        self._row_bytes = _ROW_BYTES
        self._observation_dtype: Any = None
        self._steps = self._frames = self._episode = self._begin = 0
        self._episodes: npt.NDArray[np.int32] = np.zeros(num_envs, np.int32)
        self._begins: npt.NDArray[np.int64] = np.zeros(num_envs, np.int64)
        self._fired = -1
        self._overheads: deque[int] = deque(maxlen=1024)
        self._hook_dispatch_ns = 0
        self._autoreset_rows = self._metric_failures = self._step_failures = 0
        self._said: set[str] = set()
        self._speed = (0, 0)
        self._bound_queue()

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
        publisher = Publisher(self.endpoint) if self.endpoint else None
        try:
            recorder = None if self._record is None else Recorder(self._record)
        except InterlatentError:
            if publisher is not None:
                publisher.close()
            raise
        if publisher is not None:
            self.endpoint = publisher.endpoint
        self._hook_dispatch_ns = _hook_dispatch_ns() if self._model is not None else 0
        self._stacker = Stacker(self._capture, self._first_manifest(), self._metrics, self._say)
        self._sender = Sender(
            drain=self._drain,
            manifest=lambda: self._stacker.stacked if self._stacker is not None else None,
            status=self.status,
            accounts=self._accounts,
            run=self.run,
            boot=self.boot,
            publisher=publisher,
            recorder=recorder,
        )
        try:
            self._capture.attach()
        except TapError:
            self._sender.close()
            raise
        self._sealing = True
        self._sender.start()
        _OPEN.add(self)
        if self._view and Tap.viewer is not None:
            self._end_view = Tap.viewer(self)

    def close(self) -> None:
        """Take the hooks off, hand out what is left with a farewell, close socket and recording. Twice is once."""
        self._sealing = False
        self._capture.detach()
        _OPEN.discard(self)
        if self._sender is None or os.getpid() != self._pid:
            return
        self._sender.close()
        end, self._end_view = self._end_view, None
        if end is not None:
            end()

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
                raise TapError(f"the tap reads {capture.num_envs} environment(s) already; call watch before the first step")
            capture.num_envs = num_envs
            self._episodes, self._begins = np.zeros(num_envs, np.int32), np.zeros(num_envs, np.int64)
        self._batched = capture.num_envs > 1 if batched is None else batched
        about = self._about
        about["environment"] = about["environment"] or environment
        about["step_period_s"] = about["step_period_s"] or step_period_s
        if action is not None and about["action"].kind == "unknown":
            about["action"] = ActionSpec(action.kind, action.shape, about["action"].names or action.names)
        if self._stacker is not None and not self._frames:
            self._stacker = Stacker(capture, self._first_manifest(), self._metrics, self._say)

    def step(
        self,
        *,
        observation: Any = None,
        action: Any = None,
        reward: Any = None,
        terminated: Any = None,
        truncated: Any = None,
        metrics: Mapping[str, Any] | None = None,
        next_observation: Any = None,
        info: Mapping[str, Any] | None = None,
        image: Any = None,
        valid: npt.NDArray[np.bool_] | None = None,
    ) -> None:
        """Seal one row: what the hooks kept since the last call, with what is given. Never blocks and never raises.

        `observation` is what was acted on, `next_observation` what came of it. With several environments everything has
        a leading dimension of num_envs, and `valid` (num_envs,) is False for autoreset rows, which are no frames.
        `metrics`: a number per name. `image`: (h, w, 3) uint8.
        """
        if not self._sealing:
            self._unsealed()
            return
        gate = self._gate
        began = perf_counter_ns() if gate else 0
        step = self._steps
        self._steps = step + 1
        try:
            slots = self._slots
            kept = tuple(slots)
            if kept != self._nothing:
                slots[:] = self._nothing
                self._fired = step
                age = 0
            else:
                age = step - self._fired if self._fired >= 0 else -1
            if valid is not None or self._capture.num_envs > 1:
                reward, terminated, truncated = (_copy_of(v) for v in (reward, terminated, truncated))
                counted, frames, done = self._mask(valid, terminated, truncated)
            else:
                counted, frames, done = None, 1, bool(terminated or truncated)
                if type(reward) not in _SCALARS:
                    reward = _copy_of(reward)
            if frames:
                if type(observation) is np.ndarray and observation.dtype is self._observation_dtype:
                    observed, observed_dtype = observation.tobytes(), observation.dtype
                else:
                    observed, observed_dtype = self._observed(observation)
                if type(action) in _SCALARS:
                    acted, acted_dtype = action, None
                else:
                    acted, acted_dtype = hand_over(action)
                evaluated = None
                if self._functions:
                    outcome = (reward, terminated, truncated, next_observation, info)
                    evaluated = self._evaluate(step, observation, action, outcome, counted)
                several = self._capture.num_envs > 1
                queue = self._queue
                seq = self._frames
                queue.append(
                    (
                        seq,
                        step,
                        monotonic_ns(),
                        kept,
                        observed,
                        observed_dtype,
                        acted,
                        acted_dtype,
                        reward,
                        terminated,
                        truncated,
                        evaluated,
                        dict(metrics) if metrics else None,
                        self._episodes if several else self._episode,
                        self._begins if several else self._begin,
                        age,
                        self.policy_version,
                        counted,
                    )
                )
                self._frames = seq + frames
                if len(queue) > self._limit:
                    self._drop()
                if image is not None and (counted is None or counted[0]):
                    self._picture(image, seq, step)
            if done:
                self._next_episode(step, valid, terminated, truncated)
        except Exception as error:  # noqa: BLE001 - the agent goes on, whatever it was given
            self._step_failures += 1
            self._say(f"a step was not kept: {type(error).__name__}: {error}")
        if began:
            self._overheads.append(perf_counter_ns() - began + self._capture.hook_ns)
            self._capture.hook_ns = 0
            gate.clear()
        elif not step % _SAMPLE:
            gate.append(1)

    def new_episode(self, mask: npt.NDArray[np.bool_] | None = None) -> None:
        """An episode begins though none was reported as ended: a reset in mid-episode. `mask`: (num_envs,) which
        environments."""
        if self._capture.num_envs == 1:
            if self._steps > self._begin and (mask is None or bool(mask[0])):
                self._episode += 1
                self._begin = self._steps
            return
        fresh = self._steps > self._begins
        if mask is not None:
            fresh &= mask
        self._episodes = self._episodes + fresh.astype(np.int32)
        self._begins = np.where(fresh, self._steps, self._begins)

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
        return None if self._stacker is None else self._stacker.stacked or self._first_manifest()

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
        costs += self._hook_dispatch_ns * len(self._capture.points)
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
            "extra_forwards": self._capture.extra_forwards,
            "other_forwards": self._capture.other_forwards,
            "silent_points": len(self._capture.silent),
            "picture_us_median": self.pictures.median_us,
            "pictures_dropped": 0 if self._sender is None else self._sender.pictures_dropped,
        }
        return {name: float(value) for name, value in numbers.items() if value == value}  # unknown is left out, not 0

    # on the agent's thread

    def _unsealed(self) -> None:
        if not self._pauses and os.getpid() == self._pid and self._sender is None:
            self._say("step was called before the tap was opened, and does nothing: use `with tap:`", now=True)

    def _mask(
        self, valid: npt.NDArray[np.bool_] | None, terminated: Any, truncated: Any
    ) -> tuple[npt.NDArray[np.bool_] | None, int, bool]:
        """Which environments have a frame (None: all), how many, and whether an episode ends or a row is none."""
        envs = self._capture.num_envs
        done = bool(np.any(terminated)) or bool(np.any(truncated))
        if valid is None or valid.all():
            return None, envs, done
        frames = int(valid.sum())
        self._autoreset_rows += envs - frames
        return valid.copy(), frames, True

    def _next_episode(self, step: int, valid: npt.NDArray[np.bool_] | None, terminated: Any, truncated: Any) -> None:
        done = np.zeros(self._capture.num_envs, bool)
        for ended in (terminated, truncated):
            if ended is not None:
                done |= np.asarray(ended, bool)
        begins = done
        if valid is not None:
            done = done & valid
            begins = done | ~valid
        if self._capture.num_envs == 1:
            self._episode += int(done[0])
            self._begin = step + 1
        else:  # new arrays: rows that wait refer to the old ones
            self._episodes = self._episodes + done.astype(np.int32)
            self._begins = np.where(begins, step + 1, self._begins)

    def _observed(self, observation: Any) -> tuple[Any, np.dtype[Any] | None]:
        if observation is None:
            return None, None
        size = observation.size if isinstance(observation, np.ndarray) else 0
        if size > MAX_OBSERVATION * self._capture.num_envs:
            shape = observation.shape
            self._say(f"observations of shape {shape} are not kept; vectors of up to {MAX_OBSERVATION} elements are: give metrics")
            return None, None
        observed, dtype = hand_over(observation)
        if observed is None:
            kind = type(observation).__name__
            self._say(f"observations of type {kind} are not kept; arrays of numbers are: give metrics")
        self._observation_dtype = dtype
        return observed, dtype

    def _evaluate(
        self, step: int, observation: Any, action: Any, outcome: tuple[Any, ...], counted: npt.NDArray[np.bool_] | None
    ) -> npt.NDArray[np.float64]:
        """(num_envs, functions) values of the metrics that are functions."""
        envs = self._capture.num_envs
        values = np.full((envs, len(self._functions)), np.nan)
        for env in range(envs):
            if counted is not None and not counted[env]:
                continue
            if self._batched:
                seen = Transition(_of(observation, env), _of(action, env), env=env, step=step)
                reward, terminated, truncated, following, info = (_of(item, env) for item in outcome)
            else:
                seen = Transition(observation, action, env=env, step=step)
                reward, terminated, truncated, following, info = outcome
            after = seen._replace(
                reward=math.nan if reward is None else reward,
                terminated=bool(terminated),
                truncated=bool(truncated),
                next_observation=following,
                info={} if info is None else info,
            )
            for i, metric in enumerate(self._functions):
                try:
                    values[env, i] = metric.source(seen if metric.scope == "observation" else after)  # type: ignore[misc,operator]
                except Exception as error:  # noqa: BLE001 - the user's function; the agent goes on
                    self._metric_failures += 1
                    self._say(f"metric {metric.name!r} failed: {type(error).__name__}: {error}")
        return values

    def _picture(self, image: Any, seq: int, step: int) -> None:
        now = monotonic_ns()
        if self._sender is None:
            return
        header = {"run": self.run, "boot": self.boot, "seq": seq, "step": step, "env": 0, "monotonic_ns": now}
        self._sender.offer_picture(job(image, lambda: header | {"wall_ns": time.time_ns() - (monotonic_ns() - now)}))

    def _drop(self) -> None:
        """Drop the oldest rows beyond the limit; the sender finds them missing from the sequence numbers, and counts
        them."""
        queue = self._queue
        while len(queue) > self._limit:
            try:
                queue.popleft()
            except IndexError:  # the sender was faster
                return

    def _bound_queue(self) -> None:
        self._row_bytes = _ROW_BYTES + self._capture.row_bytes()
        self._limit = max(1, self._queue_bytes // self._row_bytes)

    def _say(self, message: str, *, now: bool = False) -> None:
        """Log once per beginning of the message; on the sender's thread, unless `now`."""
        key = message[:40]
        if key in self._said or len(self._said) >= 100:
            return
        self._said.add(key)
        if now:
            _LOG.warning("run %s: %s", self.run, message)
        else:
            self._capture.reports.append(message)

    # on the sender's thread

    def _drain(self) -> Iterator[FrameBatch]:
        queue, rows = self._queue, []
        for _ in range(len(queue)):
            try:
                rows.append(queue.popleft())
            except IndexError:  # the agent dropped the oldest meanwhile
                break
        if rows and self._stacker is not None:
            yield from self._stacker.batches(rows)
        self._tell()

    def _accounts(self) -> tuple[int, int]:
        return (0, 0) if self._stacker is None else (self._stacker.next_seq, self._stacker.queue_dropped)

    def _tell(self) -> None:
        """Log what the agent's thread noticed; it does not do so itself, since a handler may write to a slow disk."""
        capture = self._capture
        if self._steps >= _SILENT_STEPS and (silent := capture.silent):
            self._say(_silence(silent, self._steps, capture), now=True)
        if capture.extra_forwards:
            self._say(
                "a module ran several times within one step; the last run counts. Seal a step after each (tap.step), or pause what is no "
                "acting (tap.pause)",
                now=True,
            )
        while capture.reports:
            _LOG.warning("run %s: %s", self.run, capture.reports.popleft())

    def _first_manifest(self) -> Manifest:
        return Manifest(
            run=self.run,
            boot=self.boot,
            started_wall_ns=time.time_ns(),
            started_monotonic_ns=monotonic_ns(),
            host=socket.gethostname(),
            host_boot=_host_boot(),
            pid=os.getpid(),
            num_envs=self._capture.num_envs,
            weights=self._weights,
            weights_hash="" if self._model is None else weights_hash(self._model),
            software=_software(),
            **self._about,
        )

    def _orphan(self) -> None:
        """In the child of a fork: no thread, no socket, no hooks; `step` does nothing."""
        self._sealing = False
        self._end_view = None
        self._queue.clear()
        self._capture.detach()


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
    _LOG.warning(
        "no tap points given: %s (%s) is read, the last hidden layer; il.points(model) lists all", point.name, type(point.module).__name__
    )
    return (point,)


def _copy_of(value: Any) -> Any:
    """A copy of what the caller may overwrite."""
    if isinstance(value, np.ndarray):
        return value.copy()
    return value.detach().clone() if hasattr(value, "detach") else value


def _of(values: Any, env: int) -> Any:
    """One environment's part of what a vector environment gives; of a mapping, that of every entry."""
    if isinstance(values, Mapping):
        return {k: _of(v, env) for k, v in values.items() if not str(k).startswith("_")}
    if isinstance(values, tuple):
        return tuple(_of(v, env) for v in values)
    return values[env] if hasattr(values, "__getitem__") and not isinstance(values, str) else values


def _silence(silent: Sequence[str], steps: int, capture: Capture) -> str:
    said = f"{', '.join(silent)}: nothing was kept in {steps} steps. "
    if capture.other_forwards:
        return said + (
            f"Its last forward of {capture.other_forwards} had shape {capture.other_shape}, but the leading dimension must be num_envs = "
            f"{capture.num_envs}: give Tap(num_envs=…), or watch the vector environment"
        )
    return said + (
        "Likely causes: the policy is called through a method other than forward (stable-baselines3 predict(), CleanRL "
        "get_action_and_value()), so tap a module inside it; the model was compiled, traced or scripted before the tap was opened, and "
        "hooks fire no more, so tap first; actions come from elsewhere (random warm-up, a queue of actions); or the modules acting are "
        "a copy of those tapped. il.points(model) lists all points"
    )


def _hook_dispatch_ns() -> int:
    """What torch itself spends on calling one empty forward hook here, in ns: median of 9 rounds of 50 calls."""
    import torch

    bare, hooked = torch.nn.Identity(), torch.nn.Identity()
    hooked.register_forward_hook(lambda module, args, output: None)
    value = torch.zeros(1)
    costs = []
    for _ in range(9):
        spans = []
        for module in (bare, hooked):
            began = perf_counter_ns()
            for _ in range(50):
                module(value)
            spans.append(perf_counter_ns() - began)
        costs.append((spans[1] - spans[0]) // 50)
    return max(0, sorted(costs)[4])


def _host_boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:  # not Linux: clocks of two processes are then not compared
        return ""


def _software() -> dict[str, str]:
    found = {}
    for name in ("interlatent-live", "torch", "numpy", "gymnasium"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
