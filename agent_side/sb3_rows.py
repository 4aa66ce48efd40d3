"""The watched environments of a Stable-Baselines3 vector, step by step: raw observations paired with what they led to.

A `VecEnv` resets inside its step: the observation that it returns at the end of an episode is the next one's first,
and the last one stands in `infos[i]["terminal_observation"]`. `VecNormalize` returns scaled values, and
`get_original_obs()` gives the *next* observation by the time a callback is asked. So what is acted on is remembered
here from the step before, as the environment gave it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm

__all__ = ["WatchedRows", "WatchedStep"]


WatchedStep: TypeAlias = tuple[Any, Any, Any, Any, Any, Any]
"""One step of the watched environments; of one, plain values, of several, with a leading dimension:

observation   what was acted on, before any normalisation; of a mapping, its vectors one after the other
reward        before any normalisation
terminated
truncated
next          what it led to, the true last observation of an episode; None if nobody looks. Behind `VecNormalize` the
              last one is computed back from the scaled one, so it is clipped
info          likewise only if somebody looks
"""


class WatchedRows:
    """Remembers what is acted on. Copies: an environment may write into the array that it gave."""

    def __init__(self, model: BaseAlgorithm, envs: Sequence[int]) -> None:
        """Read what is acted on first; the environments have been reset."""
        vector = model.get_env()
        assert vector is not None
        self.envs = list(envs)
        self.total = vector.num_envs
        """Environments of the whole vector."""
        self.bootstraps = False
        """Whether the last step cut an episode off, whose value is then asked for."""
        self._only = self.envs[0] if len(self.envs) == 1 else None
        self._all = self.envs == list(range(self.total))
        self._index = np.array(self.envs)
        self._normalizer = model.get_vec_normalize_env()
        self.names: tuple[str, ...] = ()
        """Of a mapping's elements; else none."""
        first = model._last_obs if self._normalizer is None else self._normalizer.get_original_obs()
        self._keys = _vectors(first)
        self._plain = self._only if self._normalizer is None and isinstance(first, np.ndarray) else None
        self._observation = self._pick(first)
        if isinstance(first, dict):
            shapes = {key: int(np.prod(first[key].shape[1:])) for key in self._keys}
            self.names = tuple(key if n == 1 else f"{key}[{i}]" for key, n in shapes.items() for i in range(n))
        self.size = 0 if self._observation is None else int(self._observation.size) // len(self.envs)
        """Elements of one environment's observation."""

    def of(self, values: Any) -> Any:
        """The watched environments' part of something with a leading dimension of all."""
        if self._only is not None:
            return values[self._only]
        return values if self._all else values[self._index]

    def take(self, new_obs: Any, rewards: Any, dones: Any, infos: Sequence[Mapping[str, Any]], ahead: bool) -> WatchedStep:
        """The step that led to these; `ahead`: also tell what came after."""
        terminated: Any
        truncated: Any
        if self._plain is not None and not ahead:  # as below, for the usual case
            acted_on, self._observation = self._observation, None
            only = self._plain
            self._observation = new_obs[only].copy()
            if not dones[only]:
                self.bootstraps = False
                return acted_on, rewards[only], False, False, None, None
            self.bootstraps = truncated = bool(infos[only].get("TimeLimit.truncated", False))
            return acted_on, rewards[only], not truncated, truncated, None, None
        acted_on, self._observation = self._observation, None  # where this fails, the next row has none, not a wrong one
        normalizer = self._normalizer
        if normalizer is not None:
            new_obs, rewards = normalizer.get_original_obs(), normalizer.get_original_reward()
        self._observation = following = self._pick(new_obs)
        if self._only is not None:
            done = bool(dones[self._only])
            truncated = done and bool(infos[self._only].get("TimeLimit.truncated", False))
            terminated = done and not truncated
            self.bootstraps = truncated
        else:
            ended = self.of(dones)
            truncated = np.array([bool(infos[env].get("TimeLimit.truncated", False)) for env in self.envs]) & ended
            terminated = ended & ~truncated
        info: Any = None
        if ahead:
            following = self._last_ones(following, dones, infos)
            info = infos[self._only] if self._only is not None else [infos[env] for env in self.envs]
        return acted_on, self.of(rewards), terminated, truncated, following if ahead else None, info

    def _pick(self, observations: Any) -> Any:
        if isinstance(observations, dict):
            if not self._keys:
                return None
            parts = [self.of(observations[key]) for key in self._keys]
            if self._only is not None:
                return np.concatenate([np.reshape(part, -1) for part in parts])
            return np.concatenate([np.reshape(part, (len(self.envs), -1)) for part in parts], axis=1)
        picked = self.of(observations)
        return picked.copy() if self._all or self._only is not None else picked

    def _last_ones(self, following: Any, dones: Any, infos: Sequence[Mapping[str, Any]]) -> Any:
        """`following` with the last observation of each episode that ended in place of the next one's first."""
        if following is None or not any(dones[env] for env in self.envs):
            return following
        led_to = following.copy()
        for row, env in enumerate(self.envs):
            last = infos[env].get("terminal_observation") if dones[env] else None
            if last is None:
                continue
            if self._normalizer is not None:
                last = self._normalizer.unnormalize_obs(last)
            if isinstance(last, dict):
                last = np.concatenate([np.reshape(last[key], -1) for key in self._keys])
            if self._only is not None:
                return last
            led_to[row] = last
        return led_to


def _vectors(observations: Any) -> list[str]:
    """Of a mapping, the entries that are numbers or vectors: no pictures."""
    if not isinstance(observations, dict):
        return []
    return [key for key, values in observations.items() if values.ndim <= 2]
