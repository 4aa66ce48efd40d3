"""Sealing: the agent's half of the tap, what `step` does. Nothing here blocks, wakes a thread or raises.

A step turns what the hooks kept, and what it is given, into one tuple and appends it to a deque: about 2 µs, with two
tap points (bench/tap.py). In a loop paced by sleeping, caches are cold and the same code takes several times as long,
so the state that it touches lies close together, in slots. Episodes are counted here and not by the sender, since rows
that the queue drops may hold the end of one.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from time import monotonic_ns, perf_counter_ns
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from interlatent_live.agent_side.capture import Capture
from interlatent_live.agent_side.metrics import Metric, Transition
from interlatent_live.agent_side.rows import Row, hand_over
from interlatent_live.stream.wire import MAX_OBSERVATION

if TYPE_CHECKING:
    import numpy.typing as npt

    from interlatent_live.agent_side.attribution import Attributor
    from interlatent_live.agent_side.steering import Steering

__all__ = ["Sealer"]

_LOG = logging.getLogger(__name__)
_SAMPLE: Final = 16
"""One step of so many is timed."""
_ROW_BYTES: Final = 512
"""What a row costs beside its arrays, in bytes of memory."""
_MAX_SAID: Final = 100
_MAX_STAMP: Final = 1 << 62
_SCALARS: Final = frozenset({type(None), bool, int, float, np.bool_, np.int64, np.int32, np.float64, np.float32})
"""Types that nobody can overwrite, so they wait in the queue as they are."""


class Sealer:
    """Seals rows into a bounded queue that drops its oldest. For the agent's thread; the sender's pops from the
    left."""

    __slots__ = (  # those that every step touches come first
        "_ahead_ns",
        "_autoreset_rows",
        "_batched",
        "_begin",
        "_begins",
        "_capture",
        "_episode",
        "_episodes",
        "_fired",
        "_frames",
        "_functions",
        "_gate",
        "_limit",
        "_metric_failures",
        "_named",
        "_nothing",
        "_observation_dtype",
        "_overheads",
        "_queue",
        "_queue_bytes",
        "_said",
        "_sealing",
        "_several",
        "_slots",
        "_stamp_failures",
        "_stamp_ns",
        "_stamps_back",
        "_steering",
        "_step_failures",
        "_steps",
        "_why",
        "policy_version",
        "run",
    )  # fmt: skip

    def __init__(self, run: str, capture: Capture, metrics: Sequence[Metric], queue_bytes: int) -> None:
        self.run = run
        """Name of the run, part of its topics."""
        self.policy_version = 0
        """Stands on every frame; count it up when the weights change."""
        self._capture = capture
        self._slots, self._gate = capture.slots, capture.gate
        self._nothing = tuple(capture.slots)
        self._functions = tuple(metric for metric in metrics if callable(metric.source))
        self._named = bool(metrics)
        self._queue: deque[Row] = deque()
        self._queue_bytes = queue_bytes
        self._why: Attributor | None = None
        """Explains some of the actions."""
        self._steering: Steering | None = None
        """Interventions, where they are allowed."""
        self._sealing = False
        self._observation_dtype: Any = None
        self._steps = self._frames = self._episode = self._begin = 0
        self._fired = -1
        self._overheads: deque[int] = deque(maxlen=1024)
        self._autoreset_rows = self._metric_failures = self._step_failures = 0
        self._stamp_failures = self._stamps_back = 0
        self._stamp_ns = -1
        """The last stamp; -1: the caller has no clock of its own."""
        self._ahead_ns = 0
        """What the caller's clock is ahead of this host's CLOCK_MONOTONIC, by the last stamp."""
        self._said: set[str] = set()
        self._resize(capture.num_envs, capture.num_envs > 1)
        capture.on_layout = self._bound_queue

    def _resize(self, num_envs: int, batched: bool) -> None:
        """Begin with `num_envs` environments; `batched`: what `step` is given has a leading dimension of num_envs."""
        self._capture.num_envs = num_envs
        self._several, self._batched = num_envs > 1, batched
        self._episodes: npt.NDArray[np.int32] = np.zeros(num_envs, np.int32)
        self._begins: npt.NDArray[np.int64] = np.zeros(num_envs, np.int64)
        self._bound_queue()

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
        activations: Mapping[str, Any] | None = None,
        stamp_ns: int | np.integer[Any] | None = None,
    ) -> None:
        """Seal one row: what the hooks kept since the last call, with what is given. Never blocks and never raises.

        `observation` is what was acted on, `next_observation` what came of it. With several environments everything has
        a leading dimension of num_envs, and `valid` (num_envs,) is False for autoreset rows, which are no frames.
        `metrics`: a number per name. `image`: (h, w, 3) uint8.

        `activations`: an array per tap point, for what no hook reads (an ONNX session, JAX, a C++ controller): float32,
        float16 or bfloat16 as given, other numbers as float32; a dimension of 1 in front is one environment's.
        `stamp_ns`: when this step was taken, whole ns of the robot's own monotonic clock (its CLOCK_MONOTONIC, ROS
        steady time, a controller's counter: one that is never set, so not the wall clock); it becomes the frame's time.
        One that lies before the last is kept, and counted.
        """
        if not self._sealing:
            self._unsealed()
            return
        gate = self._gate
        began = perf_counter_ns() if gate else 0
        step = self._steps
        self._steps = step + 1
        asked = None
        try:
            if activations is not None:
                self._take(activations)
            slots = self._slots
            kept = tuple(slots)
            if kept != self._nothing:
                slots[:] = self._nothing
                self._fired = step
                age = 0
            else:
                age = step - self._fired if self._fired >= 0 else -1
            several = self._several
            if several or valid is not None:
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
                clock = monotonic_ns()
                stamp = None
                if stamp_ns is not None or self._stamp_ns >= 0:
                    stamp = self._stamped(stamp_ns, clock)
                queue = self._queue
                seq = self._frames
                steering = self._steering
                queue.append(
                    (
                        seq,
                        step,
                        clock,
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
                        stamp,
                        None if steering is None or (steering.wanted is None and steering.force is None) else steering.take(seq + frames),
                        counted,
                    )
                )
                self._frames = seq + frames
                if steering is not None and steering.active:
                    self._steer(steering, (observation, action, reward, terminated, truncated, evaluated, metrics))
                why = self._why
                if why is not None and clock >= why.due_ns:
                    asked = seq, step, clock, clock if stamp is None else stamp, kept, action, counted
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
        if asked is not None and self._why is not None:
            self._why.consider(*asked)  # budgeted, and measured apart

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

    def read(self, reader: Callable[[Any], Mapping[str, Any]], env: Any) -> Mapping[str, Any] | None:
        """What `reader` finds in `env`: metrics to be handed to `step`. Never raises: a failure is counted and gives
        None. Its time is not part of the overhead, as that of pictures is not."""
        if not self._sealing:
            return None
        try:
            return reader(env)
        except Exception as error:  # noqa: BLE001 - the user's function; the agent goes on
            self._metric_failures += 1
            self._say(f"the reader of the environment failed: {type(error).__name__}: {error}")
            return None

    def _take(self, activations: Mapping[str, Any]) -> None:
        try:
            self._capture.take(activations)
        except Exception as error:  # noqa: BLE001 - the agent goes on, whatever it was given
            self._capture.failures += 1
            self._say(f"activations were not kept, a mapping of name to array is: {type(error).__name__}: {error}")
        if len(self._nothing) != len(self._slots):
            self._nothing = (None,) * len(self._slots)

    def _stamped(self, stamp_ns: Any, clock: int) -> int | None:
        """The frame's time by the caller's clock; where this step has no stamp that can be used, what that clock should
        show. None if it never showed anything."""
        if stamp_ns is not None:
            stamp = int(stamp_ns) if isinstance(stamp_ns, (int, np.integer)) and not isinstance(stamp_ns, bool) else -1
            if 0 <= stamp < _MAX_STAMP:
                if stamp < self._stamp_ns:
                    self._stamps_back += 1
                    self._say(f"stamp_ns went back by {self._stamp_ns - stamp} ns; kept, and counted: give a monotonic clock")
                self._stamp_ns, self._ahead_ns = stamp, stamp - clock
                return stamp
            self._stamp_failures += 1
            self._say(
                f"stamp_ns is {str(stamp_ns)[:40]}, of type {type(stamp_ns).__name__}; whole nanoseconds from 0 to 2^62 are needed, such "
                "as int(seconds * 1e9); the time since the last stamp is counted by this host's clock"
            )
        return clock + self._ahead_ns if self._stamp_ns >= 0 else None

    def _steer(self, steering: Steering, given: tuple[Any, ...]) -> None:
        """Tell steering of the frame that was just sealed."""
        names = ("observation", "action", "reward", "terminated", "truncated", "evaluated", "metrics")
        several = self._several
        episode, begin = (self._episodes, self._begins) if several else (self._episode, self._begin)
        shared = {"episode": episode, "episode_step": self._steps - 1 - begin, "several": several, "batched": self._batched}
        steering.seal(dict(zip(names, given, strict=True)) | shared)

    def _unsealed(self) -> None:
        """Called for a step that is not sealed."""

    def _picture(self, image: Any, seq: int, step: int) -> None:
        """Called for a frame with a picture."""

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
            if not self._named:  # who gives metrics knows what to look at
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
        self._limit = max(1, self._queue_bytes // (_ROW_BYTES + self._capture.row_bytes()))

    def _say(self, message: str, *, now: bool = False) -> None:
        """Log once per beginning of the message; on the sender's thread, unless `now`."""
        key = message[:40]
        if key in self._said or len(self._said) >= _MAX_SAID:
            return
        self._said.add(key)
        if now:
            _LOG.warning("run %s: %s", self.run, message)
        else:
            self._capture.reports.append(message)


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
