"""Episodes as frames show them: first and last frame, steps, return, how they ended.

The return is the plain sum of rewards (float64, in frame order), unknown where a reward or a frame of the episode is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from interlatent_live.stream.frames import FrameBatch

__all__ = ["Episode", "Episodes"]


@dataclass(slots=True)
class Episode:
    """One episode of one environment, so far."""

    env: int
    episode: int
    first_seq: int
    last_seq: int
    steps: int
    """Steps that the agent took in it, lost frames included."""
    total: float | None
    """Sum of rewards; None where one is unknown."""
    terminated: bool = False
    truncated: bool = False

    @property
    def complete(self) -> bool:
        """Whether its end was seen."""
        return self.terminated or self.truncated


class Episodes:
    """Follows the episodes of all environments of one boot; memory grows with the number of environments only."""

    def __init__(self) -> None:
        self._open: dict[int, Episode] = {}

    def update(self, batch: FrameBatch) -> list[Episode]:
        """Account for a batch; the episodes that ended in it, or gave way to a next one, in order of environment."""
        ended: list[Episode] = []
        columns = batch.columns
        step, reward = columns["episode_step"], columns.get("reward")
        terminated, truncated = columns.get("terminated"), columns.get("truncated")
        for env, number, rows, first, last, count in _groups(columns["env"], columns["episode"]):
            whole = int(step[last]) - int(step[first]) == count - 1
            found = self._open.pop(env, None)
            if found is not None and found.episode != number:
                found.total = None  # its last frames were lost
                ended.append(found)
                found = None
            if found is None:
                found = Episode(env, number, batch.first_seq + first, 0, 0, 0.0)
            whole = whole and int(step[first]) == found.steps
            if reward is None or not whole or found.total is None:
                found.total = None
            else:
                found.total += float(reward[rows].sum())
                found.total = None if np.isnan(found.total) else found.total
            found.last_seq, found.steps = batch.first_seq + last, int(step[last]) + 1
            found.terminated = terminated is not None and bool(terminated[rows].any())
            found.truncated = truncated is not None and bool(truncated[rows].any())
            if found.complete:
                ended.append(found)
            else:
                self._open[env] = found
        return ended

    def open(self) -> list[Episode]:
        """Episodes under way, in order of environment."""
        return [self._open[env] for env in sorted(self._open)]


def _groups(
    env: npt.NDArray[np.int32], episode: npt.NDArray[np.int32]
) -> Iterator[tuple[int, int, npt.NDArray[np.int64] | slice, int, int, int]]:
    """(environment, episode, its rows, the first, the last, their number), by environment and then episode."""
    if (env == env[0]).all() and (episode == episode[0]).all():
        yield int(env[0]), int(episode[0]), slice(None), 0, len(env) - 1, len(env)
        return
    order = np.lexsort((episode, env))
    env, episode = env[order], episode[order]
    cuts = np.flatnonzero((np.diff(env) != 0) | (np.diff(episode) != 0)) + 1
    for rows, begin in zip(np.split(order, cuts), (0, *cuts.tolist()), strict=True):
        yield int(env[begin]), int(episode[begin]), rows, int(rows[0]), int(rows[-1]), len(rows)
