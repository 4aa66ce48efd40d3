"""Frames of the past at a cursor: a window of the database that fills from the cursor outwards.

Frames are read in blocks of `BLOCK` batches, kept decoded up to `KEPT_FRAMES`; a step to a frame near by reads nothing. A
far jump reads the cursor's block at once and the rest as far as the time given allows, so the page answers before the
whole window is there.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import Final

import numpy as np

from interlatent_live.analyzer.queries import Reader
from interlatent_live.viewer.drawing import SPAN_S, Drawing
from interlatent_live.viewer.stretch import stretch
from interlatent_live.viewer.window import Piece, merge

__all__ = ["BLOCK", "Blocks", "Clip"]

BLOCK: Final = 128
KEPT_FRAMES: Final = 60_000
_AHEAD_S: Final = 10.0
"""Of a window around a cursor, what comes after it."""


class Blocks:
    """Decoded blocks of one boot, one environment and the sections of one source of features."""

    def __init__(self, reader: Reader, boot: str, sections: tuple[int, ...], start_ns: int, env: int, metrics: int) -> None:
        self.reader, self.boot, self.sections = reader, boot, sections
        self._start_ns, self._env, self._metrics = start_ns, env, metrics
        self._kept: OrderedDict[int, Piece | None] = OrderedDict()
        self._frames = 0
        """In `_kept`."""

    def read(self, number: int, last_id: int) -> Piece | None:
        """Frames of the batches with ids in [number · BLOCK, (number + 1) · BLOCK); None where none are of the environment."""
        if number in self._kept:
            self._kept.move_to_end(number)
            return self._kept[number]
        first, last = number * BLOCK, (number + 1) * BLOCK - 1
        found = stretch(self.reader, self.boot, self.sections, first, last, self._start_ns, self._env, self._metrics)
        if last < last_id:  # else more may come
            self._kept[number] = found
            self._frames += 0 if found is None else len(found)
            while self._frames > KEPT_FRAMES and len(self._kept) > 2:
                _, gone = self._kept.popitem(last=False)
                self._frames -= 0 if gone is None else len(gone)
        return found


class Clip:
    """A window of `SPAN_S` seconds and a cursor in it."""

    def __init__(self, blocks: Blocks, drawing: Drawing) -> None:
        self.blocks, self._empty = blocks, drawing
        self.drawing = drawing.again()
        self.frames: Piece | None = None
        """What is loaded, in order."""
        self.row = 0
        """Of the cursor's frame in `frames`."""
        self.start = self.end = 0.0
        """Frame time of the window's edges, s."""
        self.whole = False
        self.newest_t: float | None = None
        """Frame time of the newest frame, s: no window ends later."""
        self._pieces: dict[int, Piece | None] = {}
        self._first_id = self._last_id = 0
        self._drawn = -1
        """The newest frame in the drawing."""

    @property
    def seq(self) -> int:
        """The cursor's frame."""
        return 0 if self.frames is None else int(self.frames.seq[self.row])

    @property
    def t(self) -> float:
        """Frame time of the cursor, s."""
        return 0.0 if self.frames is None else float(self.frames.t[self.row])

    def seek(self, seq: int, budget_s: float, *, end: float | None = None) -> bool:
        """Put the cursor on frame `seq`, or the last before it. `end`: where the window shall end. False: nothing is kept."""
        extent = self.blocks.reader.extent(self.blocks.boot)
        batch = self.blocks.reader.batch_id_at(self.blocks.boot, seq)
        if extent is None or batch is None:
            return False
        self._first_id, self._last_id, _, _ = extent
        number = batch // BLOCK
        near = self._pieces.get(number) if number in self._pieces else self.blocks.read(number, self._last_id)
        for other in (number - 1, number + 1):  # a block may hold frames of other environments only
            if near is None or (other < number and near.seq[0] > seq):
                near = self._pieces.get(other) or self.blocks.read(other, self._last_id) or near
        if near is None:
            return False
        t = float(near.t[max(0, int(np.searchsorted(near.seq, seq, side="right")) - 1)])
        if end is not None or not self.start <= t <= self.end or number not in self._pieces:
            self._open(t, number, near, end)
        self._place(seq)
        self.fill(budget_s)
        return True

    def _open(self, t: float, number: int, near: Piece, end: float | None) -> None:
        newest = max(t, self.newest_t) if self.newest_t is not None else t + _AHEAD_S
        self.end = end if end is not None else max(min(t + _AHEAD_S, newest), min(SPAN_S, newest))
        self.start = max(0.0, self.end - SPAN_S)
        self._pieces = {number: self.blocks.read(number, self._last_id)}
        if self._pieces[number] is None:
            self._pieces[number] = near
        self.frames, self.whole = None, False
        self._draw()

    def move(self, frames: int, budget_s: float) -> None:
        """Step by frames of the environment, past the window's edges too."""
        if self.frames is None:
            return
        target = self.row + frames
        if 0 <= target < len(self.frames):
            self.row = target
            if not self.start <= self.t <= self.end:
                self.seek(self.seq, budget_s)
            return
        edge = int(self.frames.seq[0] - 1 if target < 0 else self.frames.seq[-1] + 1)
        extent = self.blocks.reader.extent(self.blocks.boot)
        if extent is not None and extent[2] <= edge < extent[3]:
            self.seek(edge, budget_s)

    def play(self, t: float, budget_s: float) -> float:
        """Go on to frame time `t`, or as far as frames could be read in `budget_s`; the time reached. The window glides along."""
        if self.frames is None:
            return t
        newest = self.newest_t if self.newest_t is not None else t + _AHEAD_S
        wanted = min(t + _AHEAD_S, newest)
        if wanted > self.end:
            extent = self.blocks.reader.extent(self.blocks.boot)
            if extent is not None and extent[1] != self._last_id:
                self._pieces.pop(self._last_id // BLOCK, None)  # it was not whole when it was read
                self._first_id, self._last_id = extent[:2]
            self.end, self.start = wanted, max(0.0, wanted - SPAN_S)
            for number in sorted(self._pieces)[:-1]:
                gone = self._pieces[number]
                if gone is None or gone.t[-1] < self.start - 1:
                    del self._pieces[number]
            self.whole = False
            self._forward(budget_s)
        reached = min(t, newest)
        if self.frames is None:
            return t
        if not self.whole:
            reached = min(reached, max(float(self.frames.t[-1]), self.t))
        self.row = max(0, int(np.searchsorted(self.frames.t, reached, side="right")) - 1)
        return reached

    def _forward(self, budget_s: float) -> None:
        """Load what comes after, and draw it behind what is drawn."""
        began, high = time.monotonic(), max(self._pieces, default=self._last_id // BLOCK - 1)
        while time.monotonic() - began < budget_s:
            last = self._pieces.get(high)
            if (last is not None and last.t[-1] >= self.end) or (high + 1) * BLOCK > self._last_id:
                self.whole = True
                break
            high += 1
            self._pieces[high] = self.blocks.read(high, self._last_id)
        self._join()
        if self.frames is not None:
            first = int(np.searchsorted(self.frames.seq, self._drawn, side="right"))
            last_row = int(np.searchsorted(self.frames.t, self.end, side="right"))
            self._push(first, last_row)

    def draw_like(self, drawing: Drawing) -> None:
        """Draw with another choice of rows and pairs from now on; nothing happens where it is the same."""
        if drawing is not self._empty:
            alike = drawing.rows == self._empty.rows and drawing.pairs == self._empty.pairs
            self._empty = drawing
            if not alike:
                self._draw()

    def at(self, t: float) -> int | None:
        """The loaded frame nearest to a frame time."""
        if self.frames is None:
            return None
        return int(self.frames.seq[int(np.argmin(np.abs(self.frames.t - t)))])

    def fill(self, budget_s: float) -> bool:
        """Load what the window still lacks, nearest first, for about `budget_s`. True: there is something new."""
        began, changed = time.monotonic(), False
        while not self.whole and time.monotonic() - began < budget_s:
            low, high = min(self._pieces), max(self._pieces)
            known = [p for _, p in sorted(self._pieces.items()) if p is not None]
            before = low * BLOCK > self._first_id and (not known or known[0].t[0] > self.start)
            after = (high + 1) * BLOCK <= self._last_id and (not known or known[-1].t[-1] < self.end)
            if before:
                self._pieces[low - 1] = self.blocks.read(low - 1, self._last_id)
            if after:
                self._pieces[high + 1] = self.blocks.read(high + 1, self._last_id)
            self.whole = not before and not after
            changed |= before or after
        if changed:
            self._join()
            self._draw()
        return changed

    def _join(self) -> None:
        seq = self.seq
        self.frames = merge([p for _, p in sorted(self._pieces.items()) if p is not None])
        self._place(seq)

    def _place(self, seq: int) -> None:
        if self.frames is not None:
            self.row = max(0, int(np.searchsorted(self.frames.seq, seq, side="right")) - 1)

    def _draw(self) -> None:
        if self.frames is None:
            self._join()
        self.drawing = self._empty.again()
        if self.frames is not None:
            first, last = np.searchsorted(self.frames.t, (self.start - 1, self.end))
            self._push(int(first), int(last) + 1)
            self.drawing.series.flush()

    def _push(self, first: int, last: int) -> None:
        if self.frames is not None and first < min(last, len(self.frames)):
            part = self.frames.cut(first, last)
            self.drawing.push(part)
            self._drawn = int(part.seq[-1])

    def returned(self) -> float | None:
        """Sum of the rewards of the cursor's episode up to the cursor; None where its beginning is not loaded or frames are missing."""
        if self.frames is None:
            return None
        mine = np.flatnonzero(self.frames.episode[: self.row + 1] == self.frames.episode[self.row])
        steps = self.frames.episode_step[mine]
        if steps[0] != 0 or (np.diff(steps) != 1).any():
            return None
        return float(np.sum(self.frames.reward[mine]))
