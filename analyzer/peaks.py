"""Peaks: the strongest moments of every feature, with the frames around them.

Of the events that closed, each feature keeps the `most` with the largest magnitude, and for each a window of `reach`
frames of its environment on either side. Where several environments interleave, that is `reach` times their number in
sequence numbers. The window is evidence: retention leaves its frames alone. It may reach beyond frames that exist.

Between equal values the one that closed first stays. Most events are refused by one vectorised comparison with the
weakest that their feature keeps; the rest, about 16/n of the n-th event of a feature, go one by one.
"""

from __future__ import annotations

from array import array
from typing import NamedTuple

import numpy as np

from interlatent_live.analyzer.events import Spans

__all__ = ["Peak", "PeakKeeper"]


class Peak(NamedTuple):
    """A row of the table `peaks`, without its section."""

    feature: int
    seq: int
    env: int
    episode: int
    step: int
    value: float
    """The activation, with its sign."""
    window_first_seq: int
    window_next_seq: int
    """Follows the last sequence number of the window."""


class PeakKeeper:
    """Keeps the strongest peaks of the features of one section."""

    def __init__(
        self, features: int, *, num_envs: int = 1, first_seq: int = 0, most: int = 16, reach: int = 32
    ) -> None:
        """`num_envs`: environments whose frames interleave; `first_seq`: the section's, no window begins before it."""
        self._first_seq, self._reach, self._most = first_seq, reach * num_envs, most
        # Magnitudes and sequence numbers of a feature's peaks: one at a time, arrays of Python are faster than numpy's.
        self._held: dict[int, tuple[array[float], array[int]]] = {}
        self._weakest = np.full(features, -np.inf)  # of those that a full feature keeps

    def update(self, spans: Spans) -> tuple[list[Peak], list[tuple[int, int]]]:
        """Look at closed spans (`EventTracker.closed`); return peaks to insert and those to delete, (feature, seq)."""
        inserted: dict[tuple[int, int], Peak] = {}
        evicted: list[tuple[int, int]] = []
        if len(spans) == 0:
            return [], evicted
        chosen = np.flatnonzero(np.abs(spans.peak) > self._weakest[spans.feature])
        if len(chosen) == 0:
            return [], evicted
        kept = spans.at(chosen)
        for feature, seq, env, episode, step, value in zip(
            kept.feature.tolist(), kept.peak_seq.tolist(), kept.env.tolist(), kept.episode.tolist(),
            kept.peak_step.tolist(), kept.peak.tolist(), strict=True,
        ):  # fmt: skip
            magnitude = abs(value)
            held = self._held.get(feature)
            if held is None:
                held = self._held[feature] = (array("d"), array("q"))
            magnitudes, seqs = held
            if len(seqs) < self._most:
                magnitudes.append(magnitude)
                seqs.append(seq)
            else:
                weakest = min(magnitudes)
                if magnitude <= weakest:
                    continue  # events of the same call were stronger
                place = magnitudes.index(weakest)
                gone = (feature, seqs[place])
                if inserted.pop(gone, None) is None:
                    evicted.append(gone)
                magnitudes[place], seqs[place] = magnitude, seq
            if len(seqs) == self._most:
                self._weakest[feature] = min(magnitudes)
            first = max(self._first_seq, seq - self._reach)
            inserted[feature, seq] = Peak(feature, seq, env, episode, step, value, first, seq + self._reach + 1)
        return list(inserted.values()), evicted
