"""CartPole-v1 for many episodes at once: gymnasium's arithmetic, a row an episode, each from a seed of its own.

gymnasium's own vector environment draws all starts from one generator and starts an episode again in its row; here row i
starts exactly where `gymnasium.make("CartPole-v1").reset(seed=seeds[i])` does and stays where it ended, so that two
policies can be compared episode by episode. The state is float64 and the operations are gymnasium's in their order: tests
hold both to the same bits. 500 rows: 60 µs a step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from gymnasium.utils.seeding import np_random

__all__ = ["LIMIT", "CartPoleBatch"]

LIMIT: Final = 500
"""Steps after which an episode is truncated."""

_GRAVITY, _MASS_POLE, _TOTAL_MASS, _LENGTH, _FORCE, _TAU = 9.8, 0.1, 0.1 + 1.0, 0.5, 10.0, 0.02
_MASS_LENGTH: Final = _MASS_POLE * _LENGTH
_ANGLE, _TRACK = 12 * 2 * math.pi / 360, 2.4


class CartPoleBatch:
    """Episodes side by side. `running` is (n,) bool; a row that is over keeps its state and earns nothing."""

    def __init__(self, seeds: Sequence[int], options: Mapping[str, Any] | None = None) -> None:
        """`options`: 'low' and 'high' of the uniform start, as gymnasium's `reset` takes them; ±0.05 where None."""
        low, high = (-0.05, 0.05) if options is None else (options["low"], options["high"])
        starts = [np_random(seed)[0].uniform(low=low, high=high, size=(4,)) for seed in seeds]
        self._state = np.array(starts, np.float64).reshape(-1, 4).T.copy()
        self.running = np.ones(len(seeds), np.bool_)
        self.terminated = np.zeros(len(seeds), np.bool_)
        """(n,) whether the pole fell or the cart left, not the time limit."""
        self.steps = np.zeros(len(seeds), np.int64)
        """(n,) steps taken, which are also the return so far."""

    @property
    def observation(self) -> npt.NDArray[np.float32]:
        """(n, 4) float32."""
        return self._state.T.astype(np.float32)

    def step(self, actions: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.float64]:
        """(n,) actions, 0 left or 1 right -> (n,) rewards: 1 for a row that was running, else 0."""
        x, x_dot, theta, theta_dot = self._state
        force = np.where(actions == 1, _FORCE, -_FORCE)
        cosine, sine = np.cos(theta), np.sin(theta)
        temp = (force + _MASS_LENGTH * np.square(theta_dot) * sine) / _TOTAL_MASS
        theta_acc = (_GRAVITY * sine - cosine * temp) / (_LENGTH * (4.0 / 3.0 - _MASS_POLE * np.square(cosine) / _TOTAL_MASS))
        x_acc = temp - _MASS_LENGTH * theta_acc * cosine / _TOTAL_MASS
        moved = np.stack((x + _TAU * x_dot, x_dot + _TAU * x_acc, theta + _TAU * theta_dot, theta_dot + _TAU * theta_acc))
        self._state = np.where(self.running, moved, self._state)
        x, theta = self._state[0], self._state[2]
        reward = self.running.astype(np.float64)
        self.steps += self.running
        fell = self.running & ((x < -_TRACK) | (x > _TRACK) | (theta < -_ANGLE) | (theta > _ANGLE))
        self.terminated |= fell
        self.running = self.running & ~fell & (self.steps < LIMIT)
        return reward
