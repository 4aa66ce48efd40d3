"""How long frames take: quantiles of latencies in bounded memory.

A histogram with bins 2 % wide from 0.01 ms to 100 s; a quantile is the geometric middle of its bin, so within 1 %.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

__all__ = ["Latency"]

_LOWEST_MS: Final = 0.01
_STEP: Final = float(np.log(1.02))
_BINS: Final = 815


class Latency:
    """Latencies of frames, in ms."""

    def __init__(self) -> None:
        self._counts = np.zeros(_BINS, np.int64)
        self.frames = 0

    def add(self, ms: npt.NDArray[Any]) -> None:
        """Count (rows,) latencies; those beyond the range count at its ends."""
        bins = np.log(np.maximum(ms, _LOWEST_MS) / _LOWEST_MS) / _STEP
        self._counts += np.bincount(np.minimum(bins.astype(np.int64), _BINS - 1), minlength=_BINS)
        self.frames += len(ms)

    def quantile(self, q: float) -> float | None:
        """The latency in ms that a fraction `q` of the frames stayed within; None before the first frame."""
        if not self.frames:
            return None
        which = int(np.searchsorted(np.cumsum(self._counts), q * self.frames))
        return float(_LOWEST_MS * np.exp((min(which, _BINS - 1) + 0.5) * _STEP))
