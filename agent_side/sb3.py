"""Stable-Baselines3: a callback that taps the policy while it learns, so that `model.learn` stays as it is.

    model.learn(200_000, callback=TapCallback(points="mlp_extractor.policy_net.*", envs=[0], record="ppo.mcap"))

One step of Stable-Baselines3, and what happens here:

1. The policy chooses actions; the hooks keep its activations. A random action (ε, warm-up) runs no forward pass.
2. The environments step, and reset themselves where an episode ended.
3. All callbacks are shown the local variables (`update_locals`), before any `on_step`: here the row is sealed, with the
   observation acted on, which was remembered in the step before. The hooks rest from now on.
4. The callbacks' `on_step` run; an `EvalCallback` runs the very same modules.
5. After the last of them the hooks wake, for the next choice. At the end of a rollout they rest until the next one
   begins, so gradient updates are not taken for acting.

Nothing draws random numbers or touches a tensor, so training is bit-equal to the same seed without the callback. Costs
about 20 µs a step with four tap points (bench/sb3.py); the alternative is fewer points.
"""

from __future__ import annotations

import logging
import re
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from time import monotonic_ns
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.logger import KVWriter
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv

from interlatent_live.agent_side.metrics import Metric, Metrics, as_metrics, elements, terms
from interlatent_live.agent_side.sb3_rows import WatchedRows
from interlatent_live.agent_side.tap import Tap
from interlatent_live.stream.errors import TapError
from interlatent_live.stream.wire import MAX_OBSERVATION

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable
    from types import FrameType

    from stable_baselines3.common.vec_env import VecEnv

    from interlatent_live.agent_side.attribution import Why

__all__ = ["TapCallback"]

_LOG = logging.getLogger(__name__)
_LOOK_S: Final = 0.25
"""How often it is looked whether `learn` still runs."""
_SEND_PERIOD_S: Final = 0.100
"""A training keeps one core busy, and what the sender's thread computes is taken from it."""
_VALUE: Final = Metric("value", unit="return", description="The critic's estimate for the observation acted on.")
_LOG_PROB: Final = Metric("log_prob", unit="nat", description="Log-probability, or log-density, of the action taken.")


class TapCallback(BaseCallback):
    """Publishes and records what happens in a Stable-Baselines3 policy while it learns.

    Alone, or in a list of callbacks. The tap opens when training starts and closes when it ends, also after an error or
    Ctrl-C (then within a second); with `with TapCallback(…) as tapped:` around several calls of `learn`, at the end of
    the block. Wrong points, a recording that exists or an endpoint in use raise before the first step; after that
    nothing here ends the training.
    """

    tap: Tap | None
    """The tap while training, and the last one afterwards."""

    def __init__(
        self,
        points: str | Iterable[str] | None = None,
        *,
        envs: Sequence[int] | None = None,
        run: str | None = None,
        record: str | os.PathLike[str] | None = None,
        endpoint: str | None = None,
        metrics: Metrics | None = None,
        view: bool = False,
        pictures: bool | None = None,
        agent: str = "",
        environment: str = "",
        observation_names: Sequence[str] = (),
        action_names: Sequence[str] = (),
        queue_bytes: int = 64 << 20,
        why: Why | None = None,
        verbose: int = 0,
    ) -> None:
        """`points`: modules of `model.policy`, as `il.points(model.policy)` lists them. `envs`: which environments of
        the vector become frames, numbered from 0 in this order; None: all. `pictures`: render them; None: while
        somebody watches, and only if the environments live in this process. The rest is `il.Tap`'s.
        """
        super().__init__(verbose)
        if envs is not None and (not len(envs) or len(set(envs)) != len(envs)):
            raise TapError(f"envs is {list(envs)}; name at least one environment, each once, or leave it out for all")
        self.tap = None
        self._points = points if points is None or isinstance(points, str) else tuple(points)
        self._envs = None if envs is None else [int(env) for env in envs]
        self._metrics = None if metrics is None else as_metrics(metrics)
        self._pictures = pictures
        self._environment = environment
        self._observation_names = tuple(observation_names)
        self._options: dict[str, Any] = {
            "run": run,
            "record": record,
            "endpoint": endpoint,
            "view": view,
            "agent": agent,
            "action_names": tuple(action_names),
            "queue_bytes": queue_bytes,
            "why": why,
        }
        self._keep = False
        self._open = False
        self._closing = threading.Lock()
        self._said: set[str] = set()
        self._ended = threading.Event()
        self._last = _Last(self)
        self._writer = _Writer(self)
        self._root: CallbackList | None = None
        self._sealed = -1
        self._rows: WatchedRows | None = None
        self._on_policy = self._host = self._functions = False
        self._renders = False
        self._image: Any = None

    def __enter__(self) -> TapCallback:
        self._keep = True
        return self

    def __exit__(self, *error: object) -> None:
        self._keep = False
        self.close()

    @property
    def is_open(self) -> bool:
        """Whether the tap is open."""
        return self._open

    def close(self) -> None:
        """Close the tap: the hooks come off, the recording is finished. Twice is once."""
        with self._closing:  # whoever comes second waits until the recording is finished
            self._release()
            if self._open and self.tap is not None:
                self.tap.close()
            self._open = False

    # what Stable-Baselines3 calls

    def _on_training_start(self) -> None:
        env = self.training_env
        self._ended = threading.Event()
        self._rows = WatchedRows(self.model, self._chosen(env))
        if self._open and self.tap is not None:
            if self.tap.model is not self.model.policy:
                raise TapError("this TapCallback is open for another model; give each model its own")
            if self.model.num_timesteps == 0:
                self.tap.new_episode()
        else:
            self._open_tap(env)
        tap = self.tap
        assert tap is not None
        self._sealed = self.model.num_timesteps
        self._on_policy = isinstance(self.model, OnPolicyAlgorithm)
        self._host = self.model.device.type == "cpu"
        inside = isinstance(env.unwrapped, DummyVecEnv)
        self._renders = env.render_mode == "rgb_array" and (inside if self._pictures is None else self._pictures)
        self._image = None
        tap.policy_version = self._updates
        root = self.locals.get("callback")
        self._root = root if isinstance(root, CallbackList) else None
        if self._root is not None:  # after all others; taken out again at the end
            self._last.init_callback(self.model)
            self._root.callbacks.append(self._last)
        self.logger.output_formats.append(self._writer)
        self._watch_learn()

    def _on_rollout_start(self) -> None:
        if self._open and self.tap is not None:
            self._guard(self._follow)
            self.tap.wake()

    def update_locals(self, locals_: dict[str, Any]) -> None:
        """Called after each step of the environments, before any callback's `on_step`; once more after a rollout."""
        super().update_locals(locals_)
        taken = self.model.num_timesteps
        if self._open and taken != self._sealed:
            self._sealed = taken
            try:
                self._seal(locals_)
            except Exception as error:  # noqa: BLE001 - the training goes on, whatever happens here
                self._complain(error)
                if self.tap is not None:
                    self.tap.skip()

    def _on_step(self) -> bool:
        if self._root is None and self._rows is not None and self._rows.bootstraps:
            self._wake()
        return True

    def _on_rollout_end(self) -> None:
        if self.tap is not None:
            self.tap.rest()

    def _on_training_end(self) -> None:
        self._guard(self._follow)
        if self._keep:
            with self._closing:
                self._release()
        else:
            self.close()

    # a step

    def _seal(self, locals_: Mapping[str, Any]) -> None:
        tap, rows = self.tap, self._rows
        image, self._image = self._image, None
        assert tap is not None
        assert rows is not None
        if self.model._n_updates != tap.policy_version:
            self._follow()
        observation, reward, terminated, truncated, following, info = rows.take(
            locals_["new_obs"], locals_["rewards"], locals_["dones"], locals_["infos"], self._functions
        )
        actions = locals_.get("clipped_actions", locals_["actions"])
        tap.step(
            observation=observation,
            action=rows.of(actions),
            reward=reward,
            terminated=terminated,
            truncated=truncated,
            metrics=self._estimates(locals_) if self._on_policy else None,
            next_observation=following,
            info=info,
            image=image,
        )
        if self._root is not None or rows.bootstraps:  # else nothing runs before the next choice
            tap.rest()
        if self._renders and (self._pictures or tap.subscribers):
            self._guard(self._render, rows, tap)

    def _estimates(self, locals_: Mapping[str, Any]) -> dict[str, Any]:
        rows = self._rows
        assert rows is not None
        if rows.total == 1 and self._host:
            return {"value": locals_["values"].item(), "log_prob": locals_["log_probs"].item()}
        found = {}
        for name, local in (("value", "values"), ("log_prob", "log_probs")):
            tensor = locals_.get(local)
            if tensor is not None:
                values = tensor.numpy() if self._host else tensor
                found[name] = rows.of(values if values.ndim == 1 else values[:, 0])
        return found

    def _render(self, rows: WatchedRows, tap: Tap) -> None:
        """Keep the picture of what is acted on next, where one is due."""
        began = monotonic_ns()
        if not tap.pictures.due(began):
            return
        try:
            (image,) = self.training_env.env_method("render", indices=[rows.envs[0]])
        except Exception:
            self._renders = False
            raise
        tap.pictures.rendered(began, monotonic_ns() - began)
        self._image = image

    def _wake(self) -> None:
        """The next forward pass acts, as far as callbacks go."""
        tap, rows = self.tap, self._rows
        if not self._open or tap is None or rows is None:
            return
        if self._on_policy and rows.total == 1 and rows.bootstraps:
            # the critic is asked for the value of the cut off episode first: the hooks wake when the policy is called
            hook = _BeforeActing(tap)
            hook.handle = self.model.policy.register_forward_pre_hook(hook)
        else:
            tap.wake()

    # weights and scalars

    @property
    def _updates(self) -> int:
        return int(self.model._n_updates)

    def _follow(self) -> None:
        """Note that the weights have changed, and what the update logged."""
        tap = self.tap
        if tap is None or self._updates == tap.policy_version:
            return
        tap.policy_version = self._updates
        logged = self.logger.name_to_value
        tap.log({name: value for name, value in logged.items() if name.startswith("train/")})

    # beginning and end

    def _chosen(self, env: VecEnv) -> list[int]:
        if self._envs is None:
            return list(range(env.num_envs))
        if unknown := [e for e in self._envs if not 0 <= e < env.num_envs]:
            raise TapError(f"envs has {unknown}; the vector has environments 0 to {env.num_envs - 1}")
        return self._envs

    def _open_tap(self, env: VecEnv) -> None:
        rows = self._rows
        assert rows is not None
        if self.tap is not None and self._options["record"] is not None:
            raise TapError(
                f"the recording {self._options['record']} ended with the last learn(); use `with TapCallback(…) as tapped:` around "
                "several calls, or make another TapCallback"
            )
        environment = self._environment or _name(env)
        names = self._observation_names or rows.names
        declared = self._metrics
        if declared is None:
            vector = 0 < rows.size <= MAX_OBSERVATION
            declared = terms(environment) or (elements(rows.size, names) if vector else ())
        self._functions = any(callable(metric.source) for metric in declared)
        if isinstance(self.model, OnPolicyAlgorithm):
            given = {metric.name for metric in declared}
            declared = (*declared, *(metric for metric in (_VALUE, _LOG_PROB) if metric.name not in given))
        options = self._options | {"agent": self._options["agent"] or type(self.model).__name__}
        tap = Tap(
            self.model.policy,
            self._points,
            metrics=declared,
            num_envs=len(rows.envs),
            weights="changing",
            send_period_s=_SEND_PERIOD_S,
            environment=environment,
            observation_names=names,
            **options,
        )
        tap.choose(rows.envs, rows.total)
        tap.open()
        self.tap, self._open = tap, True
        tap.rest()

    def _release(self) -> None:
        """Take out of Stable-Baselines3 what was put in."""
        self._ended.set()
        if self.tap is not None:
            self.tap.rest()
        if self._root is not None and self._last in self._root.callbacks:
            self._root.callbacks.remove(self._last)
        self._root = None
        model = getattr(self, "model", None)
        if model is not None and getattr(model, "_logger", None) is not None and self._writer in self.logger.output_formats:
            self.logger.output_formats.remove(self._writer)

    def _watch_learn(self) -> None:
        """Close the tap where `learn` ends without saying so: by an error or Ctrl-C, no callback is told."""
        frame: FrameType | None = sys._getframe()
        while frame is not None and frame.f_code.co_name != "learn":
            frame = frame.f_back
        if frame is not None:
            arguments = (frame, threading.get_ident(), self._ended)
            threading.Thread(target=self._look, args=arguments, name="interlatent-sb3", daemon=True).start()

    def _look(self, learn: FrameType, thread: int, ended: threading.Event) -> None:
        missed = 0
        while not ended.wait(_LOOK_S if not missed else _LOOK_S / 10):
            frame = sys._current_frames().get(thread)
            while frame is not None and frame is not learn:
                frame = frame.f_back
            missed = missed + 1 if frame is None else 0
            if missed == 3:
                if self._keep:
                    with self._closing:
                        self._release()
                else:
                    self.close()
                return

    def _guard(self, part: Any, *arguments: Any) -> None:
        try:
            part(*arguments)
        except Exception as error:  # noqa: BLE001 - the training goes on, whatever happens here
            self._complain(error)

    def _complain(self, error: Exception) -> None:
        """Say each kind once."""
        kind = f"{type(error).__name__}: {error}"
        if kind not in self._said and len(self._said) < 100:
            self._said.add(kind)
            _LOG.warning("the tap goes on after %s", kind, exc_info=error)


class _Last(BaseCallback):
    """Stands behind all other callbacks: what they ran is over, the next forward pass acts."""

    def __init__(self, owner: TapCallback) -> None:
        super().__init__()
        self._owner = owner

    def _on_step(self) -> bool:
        self._owner._wake()
        return True


class _Writer(KVWriter):
    """What Stable-Baselines3 logs beside its updates (returns, evaluations, speed), when it writes its log."""

    def __init__(self, owner: TapCallback) -> None:
        self._owner = owner

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Log what did not come with an update."""
        values = {k: v for k, v in key_values.items() if not k.startswith("train/") and isinstance(v, (int, float, np.number))}
        if values and self._owner.tap is not None:
            self._owner.tap.log(values)

    def close(self) -> None:
        """Nothing is held."""


class _BeforeActing:
    """Wakes the hooks once, when the policy itself is called."""

    def __init__(self, tap: Tap) -> None:
        self._tap = tap
        self.handle: Any = None

    def __call__(self, module: Any, args: Any) -> None:
        self.handle.remove()
        self._tap.wake()

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (nullcontext(), "__exit__")  # a saved policy carries one that does nothing


def _name(env: VecEnv) -> str:
    """The environment's id, or its class. Asked for as text: a spec that cannot be pickled would end a worker."""
    try:
        (said,) = env.env_method("__str__", indices=[0])
    except Exception as error:  # noqa: BLE001 - any VecEnv of a user's
        _LOG.debug("the environment does not say its name: %r", error)
        return ""
    inner = re.findall(r"[^<>]+", str(said))
    return inner[-1].removesuffix(" instance") if inner else ""
