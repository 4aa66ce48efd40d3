"""How well features reconstruct the live stream: FVU and L0 over one second of frame time.

    FVU = sum |y - y^|^2 / sum |y - mean|^2      over frames and components of a window, `mean` of the training frames

Sums are pooled in float64 (no mean of ratios), so batches of one row count as they should. A window is whole batches:
it closes at the first batch that begins a second or more after it did, by the agent's monotonic clock, and so the same
batches give the same windows. Costs a few additions a batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from interlatent_live.analyzer.features import Encoded
from interlatent_live.stream.frames import FrameBatch

__all__ = ["WINDOW_NS", "Quality", "QualityWindow", "fvu"]

WINDOW_NS: Final = 1_000_000_000


def fvu(sse: float | None, sst: float | None) -> float | None:
    """Fraction of variance unexplained; None where it is not defined."""
    return None if sse is None or sst is None or sst <= 0 else sse / sst


@dataclass(frozen=True, slots=True)
class Quality:
    """One window: frames [first_seq, next_seq), of which `frames` were encoded."""

    first_seq: int
    next_seq: int
    frames: int
    fvu: float | None
    """None for neurons, without the output, or where the output stood still at the mean."""
    l0: float | None
    """Mean number of active features a frame; None where no frame was encoded."""


class QualityWindow:
    """Windows of one section; a new section begins a new one."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._began_ns: int | None = None
        self._first_seq = self._next_seq = self._frames = self._active = 0
        self._sse = self._sst = 0.0
        self._judged = True

    def update(self, encoded: Encoded | None, batch: FrameBatch) -> Quality | None:
        """Add a batch; return the window that it closed, if it did."""
        now_ns = int(batch.columns["monotonic_ns"][0])
        # A clock that went back cannot be the same boot's; closing is better than a window that never ends.
        due = self._began_ns is not None and not self._began_ns <= now_ns < self._began_ns + WINDOW_NS
        closed = self.close() if due else None
        if self._began_ns is None:
            self._began_ns, self._first_seq = now_ns, batch.first_seq
        self._next_seq = batch.next_seq
        if encoded is not None and len(encoded.rows):
            self._frames += len(encoded.rows)
            self._active += encoded.codes.active
            self._judged = self._judged and encoded.sse is not None and encoded.sst is not None
            self._sse += encoded.sse or 0.0
            self._sst += encoded.sst or 0.0
        return closed

    def close(self) -> Quality | None:
        """Return the open window, whatever its length, and begin none; None where nothing was added."""
        if self._began_ns is None:
            return None
        value = fvu(self._sse, self._sst) if self._judged else None
        l0 = self._active / self._frames if self._frames else None
        window = Quality(self._first_seq, self._next_seq, self._frames, value, l0)
        self._reset()
        return window
