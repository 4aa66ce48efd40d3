"""Lines over frame time that share one x: the activations and metrics of the pairs in the strips.

Frames are drawn by the mean, minimum and maximum of each `bin_s`, so that what flips every step is a line within a band and
not a solid block; slower than that, every frame is drawn. A row of NaN breaks the lines where frames are missing or an
episode ended: a gap is drawn as a gap.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Series", "bins", "breaks"]

Table = npt.NDArray[np.float64]


def bins(table: Table, starts: npt.NDArray[Any]) -> Table:
    """One row for each group of rows: (n, 1 + k) with time ahead to (groups, 1 + 3 k): mean time, then mean, minimum and maximum of
    each column over what is known; NaN where nothing is."""
    known = ~np.isnan(table)
    count = np.add.reduceat(known, starts, axis=0, dtype=np.int64)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.add.reduceat(np.where(known, table, 0), starts, axis=0) / count
    low, high = np.fmin.reduceat(table, starts, axis=0), np.fmax.reduceat(table, starts, axis=0)
    mean[:, 1:] = np.clip(mean[:, 1:], low[:, 1:], high[:, 1:])  # a mean of three equal numbers may miss them by a bit
    wide = np.stack((mean[:, 1:], low[:, 1:], high[:, 1:]), axis=2).reshape(len(starts), -1)
    return np.column_stack((mean[:, 0], wide))


def breaks(table: Table, new_line: npt.NDArray[np.bool_], at_s: Table) -> Table:
    """Insert a row of NaN at the times `at_s` (one for each True) ahead of each row that begins a new line."""
    at = np.flatnonzero(new_line)
    if not len(at):
        return table
    gap = np.full((len(at), table.shape[1]), np.nan)
    gap[:, 0] = at_s
    return np.insert(table, at, gap, axis=0)


class Series:
    """The last rows of a table whose rows are counted from its beginning, so that a page can ask for what is new."""

    def __init__(self, columns: int, span_s: float, bin_s: float, hold_s: float) -> None:
        self.bin_s, self.hold_s = bin_s, hold_s
        self.limit = round(span_s / bin_s * 1.2) + 200
        self.count = 0
        """Rows ever made."""
        self._table: Table = np.zeros((0, 1 + 3 * columns))
        self._pending: Table = np.zeros((0, 1 + columns))
        self._lines: npt.NDArray[np.int64] = np.zeros(0, np.int64)
        """Of the pending frames: the line that each belongs to."""
        self._last: tuple[float, int, int, int] | None = None
        self._before = 0, 0.0
        """Line and end of the newest row."""

    def push(self, t: Table, step: npt.NDArray[Any], episode: npt.NDArray[Any], values: Table) -> None:
        """Add frames: times (n,), steps and episodes (n,), values (n, columns). The newest bin waits until it is whole."""
        if not len(t):
            return
        before = self._last or (float(t[0]), int(step[0]) - 1, int(episode[0]), 0)
        earlier = np.concatenate(([before[0]], t[:-1]))
        new_line = (
            (np.diff(step, prepend=before[1]) > 1)
            | (np.diff(episode, prepend=before[2]) != 0)
            | (t - earlier > self.hold_s)
        )
        line = before[3] + np.cumsum(new_line)
        self._last = float(t[-1]), int(step[-1]), int(episode[-1]), int(line[-1])
        self._pending = np.concatenate((self._pending, np.column_stack((t, values)).astype(np.float64)))
        self._lines = np.concatenate((self._lines, line))
        self._bin(whole_only=True)

    def flush(self) -> None:
        """Draw the newest bin as it is: no more frames will come."""
        if len(self._pending):
            self._bin(whole_only=False)

    def _bin(self, *, whole_only: bool) -> None:
        number = np.floor(self._pending[:, 0] / self.bin_s + 1e-9)
        starts = np.flatnonzero((np.diff(number, prepend=number[0] - 1) != 0) | (np.diff(self._lines, prepend=self._lines[0]) != 0))
        whole = int(starts[-1]) if whole_only else len(self._pending)
        if not whole:
            return
        kept = starts[starts < whole]
        made, lines = bins(self._pending[:whole], kept), self._lines[kept]
        ends = self._pending[np.append(kept[1:], whole) - 1, 0]
        before = self._before if self.count else (int(lines[0]), float(ends[0]))
        new_line = np.diff(lines, prepend=before[0]) != 0
        earlier = np.concatenate(([before[1]], ends[:-1]))
        first = self._pending[kept, 0]
        made = breaks(made, new_line, np.minimum(earlier + self.hold_s, first)[new_line])
        self._before = int(lines[-1]), float(ends[-1])
        self._pending, self._lines = self._pending[whole:], self._lines[whole:]
        self.count += len(made)
        self._table = np.concatenate((self._table, made))[-self.limit :]

    def since(self, count: int) -> Table:
        """The rows made after the first `count`, as far as they are kept."""
        new = self.count - count
        return self._table[len(self._table) - min(new, len(self._table)) :]

    @property
    def table(self) -> Table:
        """All rows kept."""
        return self._table
