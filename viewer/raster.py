"""The raster: features in rows, frame time in columns, each cell the strongest activity in its column.

Two tiles of `columns` columns each lie side by side and are used in turn, so a page is sent the columns that are new and
never the picture again. Levels: 0 no data, 1 inactive, 2…255 up to the feature's maximum.
A frame's activity is held until the next frame, at most for `hold_s`; beyond that the column stays empty.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Raster", "levels"]


def levels(values: npt.NDArray[Any], maxima: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Levels of (n, features) activations against (features,) maxima; NaN gives 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.clip(np.abs(values) / maxima, 0, 1)
        level = 1 + np.ceil(254 * np.nan_to_num(share))
    return np.where(np.isnan(values), 0, level).astype(np.uint8)


class Raster:
    """Levels of chosen features over the last two tiles of frame time."""

    def __init__(self, rows: int, span_s: float, column_s: float, hold_s: float) -> None:
        self.rows, self.column_s = rows, column_s
        self.columns = round(span_s / column_s)
        self.hold = max(1, round(hold_s / column_s))
        self.tiles = np.zeros((2, rows, self.columns), np.uint8)
        """Row 0 is the lowest on the page: the last feature."""
        self.bases = [-1, -1]
        """Number of the column with which each tile begins; -1 for an unused tile."""
        self.head = -1
        """The newest column."""
        self._last: npt.NDArray[np.uint8] | None = None
        self._last_column = -1

    def push(self, t: npt.NDArray[np.float64], level: npt.NDArray[np.uint8]) -> None:
        """Add frames at times `t` (n,) with levels (n, ≤ rows), in order."""
        if not len(t):
            return
        full = np.zeros((len(t), self.rows), np.uint8)
        full[:, : level.shape[1]] = level
        full = full[:, ::-1]
        column = np.floor(t / self.column_s + 1e-9).astype(np.int64)
        column = np.maximum.accumulate(np.maximum(column, self._last_column))
        starts = np.flatnonzero(np.diff(column, prepend=column[0] - 1))
        groups, strongest = column[starts], np.maximum.reduceat(full, starts, axis=0)
        if self._last is not None:
            if groups[0] == self._last_column:
                strongest[0] = np.maximum(strongest[0], self._last)
            else:
                groups = np.concatenate(([self._last_column], groups))
                strongest = np.concatenate((self._last[None], strongest))
        first = max(int(groups[0]), int(groups[-1]) - self.columns + 1)
        cells = np.arange(first, int(groups[-1]) + 1)
        source = np.searchsorted(groups, cells, side="right") - 1
        block = strongest[source]
        block[cells - groups[source] >= self.hold] = 0
        self._write(first, block.T)
        self._last, self._last_column = strongest[-1], int(groups[-1])

    def _write(self, first: int, block: npt.NDArray[np.uint8]) -> None:
        done = 0
        while done < block.shape[1]:
            number, offset = divmod(first + done, self.columns)
            tile = number % 2
            if self.bases[tile] != number * self.columns:
                self.bases[tile] = number * self.columns
                self.tiles[tile] = 0
            width = min(block.shape[1] - done, self.columns - offset)
            self.tiles[tile, :, offset : offset + width] = block[:, done : done + width]
            done += width
        self.head = first + block.shape[1] - 1

    def since(self, head: int) -> tuple[int, npt.NDArray[np.uint8]]:
        """What a page must be sent that last saw column `head` (-1: nothing): the first column's number and (rows, n) levels.

        The head's own column comes again, for it may have grown.
        """
        if self.head < 0:
            return 0, np.zeros((self.rows, 0), np.uint8)
        first = max(head, 0, self.head - self.columns + 1)
        numbers = np.arange(first, self.head + 1)
        return first, self.tiles[numbers // self.columns % 2, :, numbers % self.columns].T
