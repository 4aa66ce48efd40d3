"""TorchRL: an environment's last transform seals a row per step, for a policy in this process.

    env = watch(ParallelEnv(8, make_env), tap)      # a TransformedEnv, for rollouts and collectors alike

A transform sees the root of a step (what was acted on, the action, what else the policy wrote) beside its `next`. It
costs one copy of the observation and, where the environments live on a device, waiting for their few numbers: rewards
and ends are read on the host.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from torchrl.data import Categorical, OneHot
from torchrl.envs import EnvBase, GymWrapper, TransformedEnv
from torchrl.envs.transforms import Transform

from interlatent_live.stream.errors import TapError
from interlatent_live.stream.manifest import ActionSpec

if TYPE_CHECKING:
    from tensordict import NestedKey, TensorDictBase
    from torch import Tensor

    from interlatent_live.agent_side.tap import Tap

__all__ = ["TapTransform", "watch"]

_WRITTEN = {"value": ("state_value",), "log_prob": ("action_log_prob", "sample_log_prob")}
"""Metric → keys that TorchRL's actors write beside the action."""


def watch(env: EnvBase, tap: Tap, observation: NestedKey = "observation") -> TransformedEnv:
    """`env` with a tap that is told of every step; append no transform behind it.

    `observation`: the key that the policy reads, after all transforms. Raises TapError for an environment whose batch
    has more than one dimension, or without that key.
    """
    return TransformedEnv(env, TapTransform(tap, env, observation))


class TapTransform(Transform):  # type: ignore[misc] # TorchRL is not installed where types are checked
    """Changes nothing; tells `tap` of every step of `env`."""

    def __init__(self, tap: Tap, env: EnvBase, observation: NestedKey = "observation") -> None:
        super().__init__(in_keys=[], out_keys=[])
        if len(env.batch_size) > 1:
            raise TapError(f"the environment's batch is {tuple(env.batch_size)}; a tap reads batches of one dimension")
        if observation not in env.observation_spec.keys(True, True):
            named = ", ".join(str(key) for key in env.observation_spec.keys(True, True))
            raise TapError(f"the environment has no {observation!r}; watch(…, observation=…) takes one of {named}")
        self._tap = tap
        self._keys = (observation, env.action_key, env.reward_key)
        self._batched = len(env.batch_size) == 1
        self._envs = env.batch_size[0] if self._batched else 1
        spec = env.action_spec
        self._one_hot = isinstance(spec, OneHot)
        inner: Any = env
        while isinstance(inner, TransformedEnv):
            inner = inner.base_env
        gym = inner._env if isinstance(inner, GymWrapper) else None
        self._render: Callable[[], Any] | None = None
        if gym is not None and gym.render_mode == "rgb_array":
            self._render = gym.render
        self._image: Any = None
        tap.describe(num_envs=self._envs, batched=self._batched, environment=_name(inner, gym), action=_action(env, spec))

    def _inv_call(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Called before the environment moves: the picture shows what is acted on."""
        self._image = None if self._render is None else self._tap.pictures.take(self._render)
        return tensordict

    def _step(self, tensordict: TensorDictBase, next_tensordict: TensorDictBase) -> TensorDictBase:
        """Called with what was acted on and what came of it."""
        if tuple(tensordict.batch_size) != ((self._envs,) if self._batched else ()):
            self._tap.skip()  # some environments only, and TorchRL does not say which
            return next_tensordict
        observation, action, reward = self._keys
        moved = tensordict.get("_step", None)
        acted = tensordict.get(action)
        if self._one_hot:
            acted = acted.argmax(-1)
        written = {name: found for name, keys in _WRITTEN.items() if (found := _first(tensordict, keys)) is not None}
        self._tap.step(
            observation=self._of(tensordict.get(observation)),
            action=self._of(acted),
            reward=self._number(next_tensordict.get(reward)),
            terminated=self._number(next_tensordict.get("terminated", None)),
            truncated=self._number(next_tensordict.get("truncated", None)),
            metrics={name: self._number(value) for name, value in written.items()},
            next_observation=self._of(next_tensordict.get(observation)),
            image=self._image,
            valid=None if moved is None else _host(moved).reshape(self._envs).astype(bool),
        )
        return next_tensordict

    def _reset(self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase) -> TensorDictBase:
        """Called at resets, of all environments or those of `_reset`."""
        chosen = None if tensordict is None else tensordict.get("_reset", None)
        self._tap.new_episode(None if chosen is None else _host(chosen).reshape(self._envs).astype(bool))
        return tensordict_reset

    def _of(self, value: Tensor) -> npt.NDArray[Any] | None:
        """(num_envs, …), or of one environment without a batch what it gives."""
        found = _host(value)
        return found.reshape(self._envs, -1) if self._batched and found.ndim > 1 else found

    def _number(self, value: Tensor | None) -> Any:
        """One number, or one per environment of a batch."""
        if value is None:
            return None
        found = _host(value)
        if found.size != self._envs:
            return None
        return found.reshape(self._envs) if self._batched else found.item()


def _host(value: Tensor) -> npt.NDArray[Any]:
    array: npt.NDArray[Any] = value.detach().cpu().numpy()
    return array


def _first(tensordict: TensorDictBase, keys: tuple[str, ...]) -> Tensor | None:
    for key in keys:
        found: Tensor | None = tensordict.get(key, None)
        if found is not None:
            return found
    return None


def _name(env: Any, gym: Any) -> str:
    spec = getattr(gym, "spec", None)
    return str(getattr(spec, "id", "")) or type(env).__name__


def _action(env: EnvBase, spec: Any) -> ActionSpec | None:
    shape = tuple(int(size) for size in spec.shape[len(env.batch_size) :])
    if isinstance(spec, OneHot):
        return ActionSpec("discrete")
    if isinstance(spec, Categorical):
        return ActionSpec("discrete", shape)
    return ActionSpec("continuous", shape) if np.issubdtype(_dtype(spec), np.floating) else None


def _dtype(spec: Any) -> np.dtype[Any]:
    return np.dtype(str(spec.dtype).removeprefix("torch.").replace("bfloat16", "float32"))
