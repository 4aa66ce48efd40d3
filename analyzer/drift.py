"""Has the stream left what the dictionary was judged on?

Two judges look at each one-second window of `analyzer.quality`:

1. The gate, absolute: FVU above the card's q999, or L0 outside its q001..q999, in three windows running. A single
   second is no alarm: one in a thousand is beyond by definition. Less error than the card's is none either. While the
   gate is open, features are `outside`: their narration is withheld. It shuts after three windows inside.
2. ADWIN (Bifet & Gavalda 2007, through river), relative: the mean of FVU or L0 changed since the stream began, though
   both may be inside the card's range. ADWIN's bound supposes values in [0, 1]: each is scaled by the card's q01..q99
   with half that width on either side, and cut. Without a card there is no scale for FVU; L0 is taken as a share of the
   features. It sees means of a second, never frames: those are autocorrelated and raise false alarms by the hundred.

Costs some 10 us a second.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from river.drift import ADWIN

from interlatent_live.analyzer.quality import Quality

__all__ = ["Alarm", "DriftMonitor"]

Measure = Literal["fvu", "l0"]
_ADWIN: Any = ADWIN  # river annotates half of it
WINDOWS: Final = 3
"""Windows running that open or shut the gate."""
ADWIN_DELTA: Final = 0.002
ADWIN_CLOCK: Final = 8
"""Seconds between ADWIN's comparisons."""


@dataclass(frozen=True, slots=True)
class Alarm:
    """One row of the table `drift`."""

    kind: Literal["gate", "adwin"]
    measure: Measure
    first_seq: int
    last_seq: int
    value: float
    """Mean over the span: the gate's windows, or ADWIN's window after the change."""
    low: float | None
    """The card's bounds; for ADWIN the mean before the change (as both)."""
    high: float | None


class DriftMonitor:
    """Watches one section. `features` is the number of features, `card` the dictionary's, if it has one."""

    def __init__(self, features: int, card: Mapping[str, Any] | None = None) -> None:
        self._measures = [
            _Watch("fvu", _quantiles(card, "fvu"), None, upper_only=True),
            _Watch("l0", _quantiles(card, "l0"), (0.0, float(features)), upper_only=False),
        ]

    @property
    def outside(self) -> tuple[Measure, ...]:
        """Measures whose gate is open."""
        return tuple(watch.measure for watch in self._measures if watch.open)

    def update(self, window: Quality) -> list[Alarm]:
        """Judge a closed window."""
        alarms: list[Alarm] = []
        for watch, value in zip(self._measures, (window.fvu, window.l0), strict=True):
            if value is not None and math.isfinite(value):
                alarms += watch.update(window, value)
        return alarms


class _Watch:
    """Gate and ADWIN of one measure."""

    def __init__(
        self, measure: Measure, card: Mapping[str, float] | None, bare: tuple[float, float] | None, *, upper_only: bool
    ) -> None:
        self.measure = measure
        self.open = False
        self._against = 0  # windows running that contradict the gate's state
        self._first_seq = 0
        self._sum = 0.0
        self._low = None if card is None or upper_only else card["q001"]
        self._high = None if card is None else card["q999"]
        if card is None:
            self._scale = bare
        else:
            width = card["q99"] - card["q01"]
            # A measure that never varied on the card (TopK's L0) has no scale of its own: take its size.
            half = 0.5 * (width if width > 1e-9 * abs(card["q99"]) else abs(card["q99"]) or 1.0)
            self._scale = (card["q01"] - half, card["q99"] + half)
        self._adwin = _ADWIN(delta=ADWIN_DELTA, clock=ADWIN_CLOCK)
        self._starts: list[int] = []  # first_seq of the windows that ADWIN still holds

    def update(self, window: Quality, value: float) -> list[Alarm]:
        alarms = []
        if self._high is not None:
            gate = self._gate(window, value)
            if gate is not None:
                alarms.append(gate)
        if self._scale is not None:
            change = self._change(window, value, *self._scale)
            if change is not None:
                alarms.append(change)
        return alarms

    def _gate(self, window: Quality, value: float) -> Alarm | None:
        margin = 1e-9 * max(abs(self._high or 0.0), abs(self._low or 0.0))
        beyond = value > (self._high or 0.0) + margin or (self._low is not None and value < self._low - margin)
        if beyond == self.open:
            self._against = 0
            return None
        if self._against == 0:
            self._first_seq, self._sum = window.first_seq, 0.0
        self._against += 1
        self._sum += value
        if self._against < WINDOWS:
            return None
        self._against, self.open = 0, beyond
        if not beyond:
            return None
        mean = self._sum / WINDOWS
        return Alarm("gate", self.measure, self._first_seq, window.next_seq - 1, mean, self._low, self._high)

    def _change(self, window: Quality, value: float, low: float, high: float) -> Alarm | None:
        before = self._adwin.estimation
        self._starts.append(window.first_seq)
        self._adwin.update(min(1.0, max(0.0, (value - low) / (high - low))))
        kept = int(self._adwin.width)
        changed = bool(self._adwin.drift_detected)
        del self._starts[: max(0, len(self._starts) - kept)]
        if len(self._starts) > 1 << 16:  # 18 hours of seconds; only the beginning of a span would be less exact
            del self._starts[1 : 1 << 15]
        if not changed:
            return None
        was = low + (high - low) * before
        now = low + (high - low) * self._adwin.estimation
        return Alarm("adwin", self.measure, self._starts[0], window.next_seq - 1, now, was, was)


def _quantiles(card: Mapping[str, Any] | None, measure: str) -> Mapping[str, float] | None:
    """The card's quantiles of a measure, where they are all there."""
    found = ((card or {}).get("quantiles") or {}).get(measure) or {}
    wanted = ("q001", "q01", "q99", "q999")
    values = {name: found.get(name) for name in wanted}
    if not all(isinstance(v, (int, float)) and math.isfinite(v) for v in values.values()):
        return None
    return {name: float(v) for name, v in values.items() if v is not None}
