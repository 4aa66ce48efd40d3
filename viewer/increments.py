"""What a browser has not seen yet of a drawing: new rows of the strips, new columns of the raster, or the whole of another drawing."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from interlatent_live.viewer.drawing import Drawing

__all__ = ["Increment", "Increments"]


class Increment(NamedTuple):
    """What is new, and what it means: see `draw.js`."""

    body: bytes
    """Little-endian, one behind the other, for every array is two messages more: (n,) float64 frame times of new rows of the strips,
    s; (n, series × 3) float32 mean, least, most of each series; (raster's rows, m) uint8 levels of its columns."""
    about: dict[str, Any]
    """n, m (as `count`), the first column's number and the sizes."""
    new: bool


class Increments:
    """One browser's knowledge."""

    def __init__(self) -> None:
        self._drawing: Drawing | None = None
        self._count, self._head = 0, -1

    def take(self, drawing: Drawing, *, whole: bool = False) -> Increment:
        """What is new since the last time. `whole`: all of it, for a browser that may have missed something."""
        fresh = whole or drawing is not self._drawing
        if fresh:
            self._count, self._head, self._drawing = 0, -1, drawing
        series, raster = drawing.series, drawing.raster
        table = series.since(self._count) if series.count > self._count else series.table[:0]
        first, tile = raster.since(self._head) if raster.head != self._head else (0, np.zeros((raster.rows, 0), np.uint8))
        new = fresh or len(table) > 0 or tile.shape[1] > 0
        self._count, self._head = series.count, raster.head
        about = {
            "fresh": fresh, "first": first, "columns": raster.columns, "column_s": raster.column_s, "limit": series.limit,
            "series": 2 * len(drawing.pairs), "lines": len(table), "count": tile.shape[1],
        }  # fmt: skip
        parts = table[:, 0].astype("<f8").tobytes(), table[:, 1:].astype("<f4").tobytes(), tile.tobytes()
        return Increment(b"".join(parts), about, new)
