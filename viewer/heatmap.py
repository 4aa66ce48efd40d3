"""Features × metrics: the cells of the correlation heatmap as plain columns.

A cell that is not significant is dimmer and smaller (nothing is said by colour alone); an undefined one is not drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from interlatent_live.analyzer.records import Snapshot
from interlatent_live.viewer.choice import SIGNIFICANT
from interlatent_live.viewer.text import number, plain

__all__ = ["COLUMNS", "cells"]

COLUMNS = ("x", "y", "r", "size", "alpha", "feature", "metric", "value", "interval", "support", "verdict")


def cells(
    snapshot: Snapshot | None, rows: Sequence[int], metrics: Sequence[str], height: int, names: Mapping[int, str]
) -> dict[str, list[Any]]:
    """One entry for each defined cell. `x`: column + ½; `y`: row + ½ counted down from `height`; `names`: of the features."""
    out: dict[str, list[Any]] = {name: [] for name in COLUMNS}
    if snapshot is None:
        return out
    place = {int(feature): i for i, feature in enumerate(snapshot.features)}
    column = {name: j for j, name in enumerate(snapshot.metrics)}
    for y, feature in enumerate(rows):
        i = place.get(feature)
        if i is None:
            continue
        for x, metric in enumerate(metrics):
            j = column[metric]
            r = float(snapshot.r[i, j])
            if not np.isfinite(r):
                continue
            q, n, n_eff = (float(m[i, j]) for m in (snapshot.q, snapshot.n, snapshot.n_eff))
            significant = np.isfinite(q) and q < SIGNIFICANT
            low, high = float(snapshot.low[i, j]), float(snapshot.high[i, j])
            known = np.isfinite(low) and np.isfinite(high)
            row = (
                x + 0.5, height - y - 0.5, r, 0.92 if significant else 0.42, 1.0 if significant else 0.55,
                names.get(feature, f"f{feature}"), plain(metric), f"{r:+.2f}".replace("-", "−"),
                f"{low:+.2f} … {high:+.2f}".replace("-", "−") if known else "not defined",
                f"{number(n)} frames, {number(n_eff)} effective",
                f"significant, q = {q:.2g}" if significant else f"not significant, q = {q:.2g}" if np.isfinite(q) else "not tested",
            )  # fmt: skip
            for name, value in zip(COLUMNS, row, strict=True):
                out[name].append(value)
    return out
