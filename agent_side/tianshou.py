"""Tianshou: its own vector environments step those environments only that are ready, and its trainer owns the loop.

    collector = watch(Collector(algorithm, venv, buffer), tap)

The collector's environments tell the tap of every step, of as many environments as took part; hooks listen while the
collector collects, so that the passes of an update are not taken for acting. Costs one copy of the observations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from tianshou.env.venv_wrappers import VectorEnvWrapper

from interlatent_live.stream.errors import TapError
from interlatent_live.stream.manifest import ActionSpec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tianshou.data import Collector
    from tianshou.env import BaseVectorEnv

    from interlatent_live.agent_side.tap import Tap

__all__ = ["WatchedVectorEnv", "watch"]

_C = TypeVar("_C", bound="Collector[Any]")


def watch(collector: _C, tap: Tap) -> _C:
    """`collector`, whose steps are told to `tap`. Raises TapError for asynchronous environments.

    `policy_version` counts the calls of `collect` before which the weights had changed.
    """
    if collector.env.is_async:
        raise TapError("asynchronous environments answer out of order, and a tap cannot pair them: leave out wait_num and timeout")
    env = WatchedVectorEnv(collector.env, tap)
    env.begin(getattr(collector, "_pre_collect_obs_RO", None))
    collector.env = env
    collector.collect = _Collect(collector.collect, collector.policy, tap)
    return collector


class _Collect:
    """`Collector.collect`, with the hooks listening."""

    def __init__(self, collect: Callable[..., Any], policy: Any, tap: Tap) -> None:
        self._collect, self._policy, self._tap = collect, policy, tap
        self._written = self._writes()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        tap, written = self._tap, self._writes()
        tap.policy_version += written != self._written
        self._written = written
        tap.wake()
        try:
            return self._collect(*args, **kwargs)
        finally:
            tap.rest()

    def _writes(self) -> int:
        """How often weights were written to: torch counts it for every tensor."""
        return sum(int(parameter._version) for parameter in self._policy.parameters())


class WatchedVectorEnv(VectorEnvWrapper):  # type: ignore[misc] # Tianshou is not installed where types are checked
    """Vector environments of Tianshou's, watched. Pictures are of the first environment in this process."""

    def __init__(self, venv: BaseVectorEnv, tap: Tap) -> None:
        super().__init__(venv)
        self._tap, self._envs = tap, len(venv)
        self._observations: npt.NDArray[Any] | None = None
        inner: Any = venv
        while isinstance(inner, VectorEnvWrapper):
            inner = inner.venv
        first: Any = getattr(inner.workers[0], "env", None)  # in this process, unless in a subprocess
        self._render: Callable[[], Any] | None = None
        if getattr(first, "render_mode", None) == "rgb_array":
            self._render = first.render
        (spec,) = venv.get_env_attr("spec", [0])
        (space,) = venv.get_env_attr("action_space", [0])
        tap.expect_fewer()
        tap.describe(num_envs=self._envs, batched=True, environment=str(getattr(spec, "id", "")), action=_action(space))

    def begin(self, observations: npt.NDArray[Any] | None) -> None:
        """Take what is acted on first, where the environments were reset before they were watched."""
        self._observations = None if observations is None else np.array(observations)

    def reset(self, env_id: Any = None, **kwargs: Any) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Reset all, or those of `env_id`."""
        observations, infos = self.venv.reset(env_id, **kwargs)
        rows = self._rows(env_id)
        self._tap.new_episode(self._mask(rows))
        self._keep(rows, observations)
        return observations, infos

    def step(self, action: Any, id: Any = None) -> Any:
        """Step all, or those of `id`; rows describe the observations that the actions answer."""
        rows, tap = self._rows(id), self._tap
        image = None if self._render is None else tap.pictures.take(self._render)
        result = self.venv.step(action, id)
        following, reward, terminated, truncated, infos = result
        every = len(rows) == self._envs
        seen = self._observations
        led_to = self._wide(rows, following)
        tap.place(rows)
        tap.step(
            observation=seen,
            action=self._wide(rows, np.asarray(action)),
            reward=self._wide(rows, reward),
            terminated=self._wide(rows, terminated),
            truncated=self._wide(rows, truncated),
            next_observation=led_to,
            info=_by_environment(rows, infos, self._envs),
            image=image,
            valid=None if every else self._mask(rows),
        )
        self._keep(rows, following)
        return result

    def _rows(self, ids: Any) -> list[int]:
        return list(range(self._envs)) if ids is None else [int(row) for row in np.atleast_1d(ids)]

    def _mask(self, rows: list[int]) -> npt.NDArray[np.bool_]:
        mask = np.zeros(self._envs, bool)
        mask[rows] = True
        return mask

    def _wide(self, rows: list[int], values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """One row per environment; those of environments that took no part mean nothing."""
        wide = np.zeros((self._envs, *values.shape[1:]), values.dtype)
        wide[rows] = values
        return wide

    def _keep(self, rows: list[int], observations: npt.NDArray[Any]) -> None:
        if self._observations is None or self._observations.shape[1:] != observations.shape[1:]:
            self._observations = self._wide(rows, observations)
        else:
            self._observations = self._observations.copy()  # rows that wait may refer to the old ones
            self._observations[rows] = observations


def _by_environment(rows: list[int], infos: Any, envs: int) -> Mapping[str, Any]:
    """Name → one value per environment, as vector environments of gymnasium's give it."""
    found: dict[str, list[Any]] = {}
    for row, info in zip(rows, infos, strict=True):
        for name, value in info.items():
            found.setdefault(name, [None] * envs)[row] = value
    return found


def _action(space: Any) -> ActionSpec | None:
    if isinstance(space, spaces.Discrete):
        return ActionSpec("discrete")
    if isinstance(space, (spaces.MultiDiscrete, spaces.MultiBinary)):
        return ActionSpec("discrete", tuple(space.shape))
    return ActionSpec("continuous", tuple(space.shape)) if isinstance(space, spaces.Box) else None
