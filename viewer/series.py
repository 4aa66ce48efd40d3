"""Lines over frame time that share one x: the activations and metrics of the pairs in the strips.

Up to `RAW_PER_S` frames a second every frame is drawn; beyond, the minimum and maximum of each `bin_s`. A row of NaN breaks
the lines where frames are missing or an episode ended: a gap is drawn as a gap.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

__all__ = ["RAW_PER_S", "Series", "breaks", "extremes"]

RAW_PER_S: Final = 66.0
Table = npt.NDArray[np.float64]


def extremes(table: Table, bin_s: float) -> Table:
    """Two rows for each bin of column 0: its minima at its first time, its maxima at the middle of the bin; (n, k) to (≤ 2 bins, k)."""
    if not len(table):
        return table
    bins = np.floor(table[:, 0] / bin_s)
    starts = np.flatnonzero(np.diff(bins, prepend=bins[0] - 1))
    low = np.fmin.reduceat(table, starts, axis=0)
    high = np.fmax.reduceat(table, starts, axis=0)
    low[:, 0] = bins[starts] * bin_s
    high[:, 0] = (bins[starts] + 0.5) * bin_s
    return np.stack((low, high), axis=1).reshape(-1, table.shape[1])


def breaks(table: Table, new_line: npt.NDArray[np.bool_], at_s: Table) -> Table:
    """Insert a row of NaN at the times `at_s` (one for each True) ahead of each row that begins a new line."""
    at = np.flatnonzero(new_line)
    if not len(at):
        return table
    gap = np.full((len(at), table.shape[1]), np.nan)
    gap[:, 0] = at_s
    return np.insert(table, at, gap, axis=0)


class Series:
    """The last `limit` rows of a table whose rows are counted from its beginning, so that a page can ask for what is new."""

    def __init__(self, columns: int, span_s: float, bin_s: float | None, hold_s: float) -> None:
        self.bin_s = bin_s
        """None: every frame."""
        self.hold_s = hold_s
        self.limit = round(span_s * (2 / bin_s if bin_s else RAW_PER_S * 1.2)) + 200
        self.count = 0
        """Rows ever made."""
        self._table: Table = np.zeros((0, columns))
        self._pending: Table = np.zeros((0, columns))
        self._last: tuple[float, int, int] | None = None

    def push(self, t: Table, step: npt.NDArray[Any], episode: npt.NDArray[Any], values: Table) -> None:
        """Add frames: times (n,), steps and episodes (n,), values (n, columns − 1)."""
        if not len(t):
            return
        before = self._last or (float(t[0]), int(step[0]) - 1, int(episode[0]))
        earlier = np.concatenate(([before[0]], t[:-1]))
        new_line = (
            (np.diff(step, prepend=before[1]) > 1)
            | (np.diff(episode, prepend=before[2]) != 0)
            | (t - earlier > self.hold_s)
        )
        self._last = float(t[-1]), int(step[-1]), int(episode[-1])
        table = np.column_stack((t, values)).astype(np.float64)
        if self.bin_s is None:
            self._add(breaks(table, new_line, np.minimum(earlier + self.hold_s, t)[new_line]))
            return
        table = np.concatenate((self._pending, table))
        whole = int(np.searchsorted(np.floor(table[:, 0] / self.bin_s), np.floor(table[-1, 0] / self.bin_s)))
        self._pending = table[whole:]
        binned = extremes(table[:whole], self.bin_s)
        earlier = np.concatenate((self._table[-1:, 0], binned[:, 0]))[: len(binned)]
        gap = binned[:, 0] - np.resize(earlier, len(binned)) > max(self.hold_s, 2 * self.bin_s)
        self._add(breaks(binned, gap, np.resize(earlier, len(binned))[gap] + self.bin_s))

    def _add(self, table: Table) -> None:
        self.count += len(table)
        self._table = np.concatenate((self._table, table))[-self.limit :]

    def since(self, count: int) -> Table:
        """The rows made after the first `count`, as far as they are kept."""
        new = self.count - count
        return self._table[len(self._table) - min(new, len(self._table)) :]

    @property
    def table(self) -> Table:
        """All rows kept."""
        return self._table
