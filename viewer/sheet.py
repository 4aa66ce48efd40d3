"""What is in sight as a table: one row a frame, one column a feature shown or a metric, as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from typing import Final

import numpy as np

from interlatent_live.stream.manifest import Manifest
from interlatent_live.viewer.drawing import Drawing
from interlatent_live.viewer.window import Piece

__all__ = ["MAX_ROWS", "sheet"]

MAX_ROWS: Final = 20_000


def sheet(frames: Piece, start_s: float, end_s: float, drawing: Drawing, manifest: Manifest, names: Mapping[int, str]) -> str:
    """CSV of the frames with times in [start_s, end_s]; of more than `MAX_ROWS` every n-th, which the header's `frame` shows.

    Empty cells are unknown values: never 0.
    """
    rows = np.flatnonzero((frames.t >= start_s) & (frames.t <= end_s))
    rows = rows[:: max(1, -(-len(rows) // MAX_ROWS))]
    values = drawing.values(frames)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    specs = [f"{m.name} [{m.unit}]" if m.unit else m.name for m in manifest.metrics]
    writer.writerow(["frame", "time [s]", "episode", "step", "reward", *specs, *(names.get(f, f"f{f}") for f in drawing.shown)])

    def cell(value: float) -> str:
        return f"{value:.6g}" if np.isfinite(value) else ""

    for i in rows.tolist():
        writer.writerow([
            int(frames.seq[i]), f"{frames.t[i]:.4f}", int(frames.episode[i]), int(frames.episode_step[i]), cell(frames.reward[i]),
            *map(cell, frames.metrics[i].tolist()), *map(cell, values[i].tolist()),
        ])  # fmt: skip
    return out.getvalue()
