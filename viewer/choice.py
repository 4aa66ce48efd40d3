"""What is shown, and where it stays: features in rows, feature–metric pairs in strips, metrics in columns.

Rows never jump: what is shown keeps its place until it has fallen silent (a feature) or lost its meaning (a pair).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from interlatent_live.analyzer.records import Snapshot

__all__ = ["SIGNIFICANT", "Pair", "choose_metrics", "choose_pairs", "choose_rows"]

SIGNIFICANT = 0.05
"""q below which a correlation counts (Benjamini–Hochberg within a snapshot)."""


class Pair(NamedTuple):
    """A feature and the metric beside it; None for the one that is not shown, or not known yet."""

    feature: int | None
    metric: str | None


def choose_rows(
    active: npt.NDArray[Any], frames: int, limit: int, current: Sequence[int] = (), silent: Collection[int] = (), changes: int | None = None
) -> tuple[int, ...]:
    """Features for the rows, by how informative their activity is: p(1 − p) for a share p of frames.

    `active`: (features,) counts in `frames` frames. The first choice is in order of number; later ones keep `current` in
    place, fill free rows, and give the rows of features in `silent` to better ones: at most `changes` of them, so that rows do
    not change faster than they can be read.
    """
    share = active.astype(np.float64) / max(frames, 1)
    score = np.where(active > 0, share * (1 - share) + 1e-9, 0)
    best = [int(f) for f in np.argsort(-score, kind="stable")[: 2 * limit] if score[f] > 0]
    if not current:
        return tuple(sorted(best[:limit]))
    rows = list(current)
    waiting = iter([f for f in best if f not in rows and f not in silent])
    changes = len(rows) if changes is None else changes
    for i, feature in enumerate(rows):
        if feature in silent and changes:
            rows[i] = next(waiting, feature)
            changes -= rows[i] != feature
    rows.extend(f for f in waiting if len(rows) < limit)
    return tuple(rows[:limit])


def choose_metrics(snapshot: Snapshot, limit: int, current: Sequence[str] = ()) -> tuple[str, ...]:
    """Metrics for the columns: all in their own order, or, of too many, those most strongly gone with; kept while they exist."""
    if len(snapshot.metrics) <= limit:
        return snapshot.metrics
    if current and set(current) <= set(snapshot.metrics):
        return tuple(current)
    with np.errstate(invalid="ignore"):
        strength = np.nan_to_num(np.abs(snapshot.r), nan=-1.0).max(axis=0, initial=-1.0)
    kept = sorted(np.argsort(-strength, kind="stable")[:limit])
    return tuple(snapshot.metrics[i] for i in kept)


def choose_pairs(
    snapshot: Snapshot | None, rows: Sequence[int], limit: int, current: Sequence[Pair] = ()
) -> tuple[Pair, ...]:
    """The strongest significant pairs among the features in rows, each feature once and each metric once where possible.

    A pair keeps its place while it is significant with |r| ≥ 0.2; strips without a correlation show the first rows alone.
    """
    candidates = [] if snapshot is None else _ranked(snapshot, rows)
    strength = dict(candidates)
    slots: list[Pair | None] = [p if strength.get(p, 0) >= 0.2 else None for p in current[:limit]]
    slots += [None] * (limit - len(slots))
    features: set[int | None] = {p.feature for p in slots if p}
    metrics = {p.metric for p in slots if p}
    for distinct in (True, False):
        for pair, _ in candidates:
            if None not in slots:
                break
            if pair.feature not in features and not (distinct and pair.metric in metrics):
                slots[slots.index(None)] = pair
                features.add(pair.feature)
                metrics.add(pair.metric)
    alone = [p for p in current if p.metric is None and p.feature in rows] + [Pair(f, None) for f in rows]
    for pair in alone:
        if None in slots and pair.feature not in features:
            slots[slots.index(None)] = pair
            features.add(pair.feature)
    return tuple(p for p in slots if p)


def _ranked(snapshot: Snapshot, rows: Sequence[int]) -> list[tuple[Pair, float]]:
    index = np.flatnonzero(np.isin(snapshot.features, rows))
    with np.errstate(invalid="ignore"):
        r = np.where(snapshot.q[index] < SIGNIFICANT, np.abs(snapshot.r[index]), np.nan)
    order = np.argsort(-np.nan_to_num(r, nan=-1.0), axis=None, kind="stable")[: int(np.isfinite(r).sum())]
    found = []
    for i, j in zip(*np.unravel_index(order, r.shape), strict=True):
        found.append((Pair(int(snapshot.features[index[i]]), snapshot.metrics[j]), float(r[i, j])))
    return found
