"""A window of frames as it is drawn: the raster's levels, the strips' lines and where episodes began.

Live it grows with every frame; at a cursor in the past it is made once, from frames of the database. Nothing here knows a page.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from interlatent_live.viewer.choice import Pair
from interlatent_live.viewer.raster import Raster, levels
from interlatent_live.viewer.series import Series
from interlatent_live.viewer.window import Piece

__all__ = ["COLUMN_S", "PAIRS", "ROWS", "SPAN_S", "Drawing"]

SPAN_S: Final = 30.0
"""Seconds of frame time in sight."""
ROWS: Final = 24
PAIRS: Final = 4
"""Strips, unless more are pinned."""
COLUMN_S: Final = 0.05


class Drawing:
    """Frames drawn under one choice of rows and pairs; another choice is another drawing."""

    def __init__(
        self, rows: Sequence[int], pairs: Sequence[Pair], maxima: npt.NDArray[np.float32], features: int, metrics: Sequence[str],
        period_s: float,
    ) -> None:  # fmt: skip
        self.rows, self.pairs, self.maxima, self.metrics = tuple(rows), tuple(pairs), maxima, tuple(metrics)
        self.features, self.period_s = features, period_s
        column_s = max(COLUMN_S, min(period_s, 1.0))
        hold_s = min(max(0.25, 4 * period_s), 5.0)
        self.raster = Raster(ROWS, SPAN_S, column_s, hold_s)
        self.series = Series(2 * len(self.pairs), SPAN_S, column_s, hold_s)
        self.boundaries: list[float] = []
        """Frame times at which episodes began."""
        beside = dict.fromkeys(p.feature for p in self.pairs if p.feature is not None and p.feature not in self.rows)
        self._shown = [*self.rows, *beside]
        self._slots = np.full(features, -1, np.int64)
        self._slots[self._shown] = np.arange(len(self._shown))

    def again(self) -> Drawing:
        """An empty drawing of the same choice."""
        return Drawing(self.rows, self.pairs, self.maxima, self.features, self.metrics, self.period_s)

    @property
    def shown(self) -> tuple[int, ...]:
        """Features in rows, then those in strips alone."""
        return tuple(self._shown)

    def values(self, part: Piece) -> npt.NDArray[np.float32]:
        """(n, shown) activations of what is shown; NaN where not encoded."""
        return part.values(self._slots, len(self._shown))

    def push(self, part: Piece) -> None:
        """Draw frames, in order."""
        begun = part.t[part.episode_step == 0].tolist()
        if begun:
            self.boundaries = [*self.boundaries, *begun][-60:]
        if not self._shown and not self.pairs:
            return
        values = self.values(part)
        self.raster.push(part.t, levels(values[:, : len(self.rows)], self.maxima))
        strips: npt.NDArray[Any] = np.full((len(part), 2 * len(self.pairs)), np.nan)
        for i, pair in enumerate(self.pairs):
            if pair.feature is not None:
                strips[:, 2 * i] = values[:, self._shown.index(pair.feature)]
            if pair.metric in self.metrics:
                strips[:, 2 * i + 1] = part.metrics[:, self.metrics.index(pair.metric)]
        self.series.push(part.t, part.step, part.episode, strips)
