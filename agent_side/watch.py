"""Watching an environment: a gymnasium wrapper that seals a row per step, so that the user's loop stays as it is.

Before the environment moves, the observation acted on is copied and, when one is due, the picture is rendered: both
describe what was acted on, never what came after. Costs one copy of the observation on top of `Tap.step`; the
alternative is to call `Tap.step` yourself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper

from interlatent_live.stream.errors import TapError
from interlatent_live.stream.manifest import ActionSpec

if TYPE_CHECKING:
    import numpy.typing as npt

    from interlatent_live.agent_side.tap import Tap

    _VectorWrapper: TypeAlias = VectorWrapper[Any, Any, Any, Any, Any]
else:
    _VectorWrapper = VectorWrapper  # generic only since gymnasium 1.3, and ray asks for an older one

__all__ = ["Read", "WatchedEnv", "WatchedVectorEnv", "watch"]

Read: TypeAlias = Callable[[Any], Mapping[str, Any]]
"""What an environment shows beside its observation, such as a game's memory: from the environment, before it moves, to
a number (of vector environments: a new array of (num_envs,) numbers) per name."""


def watch(env: Any, tap: Tap, read: Read | None = None, activations: Mapping[str, Any] | None = None) -> Any:
    """`env` with a tap that is told of every step: a `gymnasium.Wrapper`, or a `VectorWrapper` for vector
    environments.

    `read` is called with `env` before every step, on this thread, and gives the metrics that the tap was given without
    a source: `Tap(…, metrics=[Metric("fuel", unit="kg")])`, `watch(env, tap, read=lambda env: {"fuel": env.fuel})`.
    They describe what was acted on. A reader that fails is counted, and the step is kept without.

    `activations`, for a policy that is no torch module: a mapping of tap point to array that the policy refreshes with
    every action; what it holds as the environment is stepped goes to `tap.step`.
    """
    if isinstance(env, VectorEnv):
        return WatchedVectorEnv(env, tap, read, activations)
    if isinstance(env, gymnasium.Env):
        return WatchedEnv(env, tap, read, activations)
    raise TapError(
        f"{type(env).__name__} is neither a gymnasium.Env nor a gymnasium.vector.VectorEnv; call tap.step(…) in your own loop"
    )


class WatchedEnv(gymnasium.Wrapper[Any, Any, Any, Any]):
    """One environment, watched."""

    def __init__(
        self, env: gymnasium.Env[Any, Any], tap: Tap, read: Read | None = None, activations: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(env)
        self._tap, self._read, self._activations = tap, read, activations
        self._observation: Any = None
        self._renders = env.render_mode == "rgb_array"
        tap.describe(
            num_envs=1,
            environment=_name(env),
            action=_action(env.action_space),
            step_period_s=_period(env),
        )

    def __getattr__(self, name: str) -> Any:
        return _inside(self, name)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset; what it returns is acted on next."""
        observation, info = self.env.reset(seed=seed, options=options)
        self._tap.new_episode()
        self._observation = _frozen(observation)
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step; the row describes the observation that `action` answers."""
        image = _render(self.env, self._tap) if self._renders else None
        shown = None if self._read is None else self._tap.read(self._read, self.env)
        following, reward, terminated, truncated, info = self.env.step(action)
        self._tap.step(
            observation=self._observation,
            action=action,
            reward=reward,
            terminated=terminated,
            truncated=truncated,
            metrics=shown,
            next_observation=following,
            info=info,
            image=image,
            activations=self._activations,
        )
        # a copy: environments may write the next observation into the same array
        self._observation = following.copy() if type(following) is np.ndarray else _frozen(following)
        return following, reward, terminated, truncated, info


class WatchedVectorEnv(_VectorWrapper):
    """Several environments stepped together, watched, in any of gymnasium's three ways to reset them.

    NEXT_STEP (the default): the step after an end ignores its action and gives the first observation; such a row is no
    frame. SAME_STEP: the end and the reset share a step; `next_observation` is the true last one, from
    `info["final_obs"]`. DISABLED: the user resets with `options={"reset_mask": …}`.
    """

    def __init__(
        self, env: VectorEnv[Any, Any, Any], tap: Tap, read: Read | None = None, activations: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(env)
        self._tap, self._read, self._activations = tap, read, activations
        self._observation: Any = None
        self._renders = env.render_mode == "rgb_array"
        self._resets = env.metadata.get("autoreset_mode", AutoresetMode.NEXT_STEP)
        self._ended: npt.NDArray[np.bool_] = np.zeros(env.num_envs, bool)
        tap.describe(
            num_envs=env.num_envs,
            batched=True,
            environment=_name(env),
            action=_action(env.single_action_space),
            step_period_s=_period(env),
        )

    def __getattr__(self, name: str) -> Any:
        return _inside(self, name)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset all, or those of `options["reset_mask"]`."""
        mask = None if options is None else options.get("reset_mask")
        mask = None if mask is None else np.array(mask, bool)  # some environments take it out of the options
        observation, info = self.env.reset(seed=seed, options=options)
        self._tap.new_episode(mask)
        self._observation = _frozen(observation)
        self._ended = np.zeros_like(self._ended) if mask is None else self._ended & ~mask
        return observation, info

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step all; rows describe the observations that `actions` answer."""
        image = _render(self.env, self._tap) if self._renders else None
        shown = None if self._read is None else self._tap.read(self._read, self.env)
        following, reward, terminated, truncated, info = self.env.step(actions)
        led_to = following
        if self._resets is AutoresetMode.SAME_STEP:
            led_to = _with_final(following, info)
        self._tap.step(
            observation=self._observation,
            action=actions,
            reward=reward,
            terminated=terminated,
            truncated=truncated,
            metrics=shown,
            next_observation=led_to,
            info=info,
            image=image,
            activations=self._activations,
            valid=~self._ended if self._resets is AutoresetMode.NEXT_STEP else None,
        )
        self._ended = np.asarray(terminated, bool) | np.asarray(truncated, bool)
        self._observation = _frozen(following)
        return following, reward, terminated, truncated, info


def _render(env: Any, tap: Tap) -> Any:
    def first() -> Any:
        inner = getattr(env.unwrapped, "envs", None)  # of several environments in this process, only the first is rendered
        return inner[0].render() if inner else env.render()

    return tap.pictures.take(first)


def _inside(wrapper: Any, name: str) -> Any:
    """An attribute of what is watched (`env.call`, `env.envs`, a method of the user's): gymnasium's wrappers hide them,
    and the user's loop is to stay as it is."""
    if name.startswith("_") or name == "env":  # before `env` is set, there is nothing to look in
        raise AttributeError(f"{type(wrapper).__name__!r} object has no attribute {name!r}")
    return getattr(wrapper.env, name)


def _frozen(observation: Any) -> Any:
    """A copy that the environment cannot overwrite."""
    if isinstance(observation, np.ndarray):
        return observation.copy()
    if isinstance(observation, dict):
        return {key: _frozen(value) for key, value in observation.items()}
    if isinstance(observation, (tuple, list)):
        return tuple(_frozen(value) for value in observation)
    return observation.detach().clone() if hasattr(observation, "detach") else observation


def _with_final(following: Any, info: dict[str, Any]) -> Any:
    final = info.get("final_obs")
    if final is None or not isinstance(following, np.ndarray):
        return following
    led_to = following.copy()
    for env, observation in enumerate(final):
        if observation is not None:
            led_to[env] = observation
    return led_to


def _action(space: gymnasium.Space[Any]) -> ActionSpec | None:
    if isinstance(space, gymnasium.spaces.Discrete):
        return ActionSpec("discrete")
    if isinstance(space, (gymnasium.spaces.MultiDiscrete, gymnasium.spaces.MultiBinary)):
        return ActionSpec("discrete", tuple(space.shape))
    if isinstance(space, gymnasium.spaces.Box):
        return ActionSpec("continuous", tuple(space.shape))
    return None


def _name(env: Any) -> str:
    """The environment's id; where environments were put together by hand, that of the first of them."""
    inner = getattr(env.unwrapped, "envs", None)
    spec = env.spec or (inner[0].spec if inner else None)
    return str(spec.id) if spec is not None else type(env.unwrapped).__name__


def _period(env: Any) -> float | None:
    """Time that one step stands for, in s, where the environment says so; the frame rate of its pictures is another thing."""
    inner = env.unwrapped
    found = getattr(inner, "dt", getattr(inner, "tau", None))  # MuJoCo's; classic control's
    return float(found) if isinstance(found, (int, float)) and found > 0 else None
