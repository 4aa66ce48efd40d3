"""What an alarm says on the timeline: its span, what was measured, what the card or the time before had, and what was saved."""

from __future__ import annotations

from interlatent_live.analyzer.records import Drift
from interlatent_live.viewer.text import number, plain

__all__ = ["alarm_text"]


def alarm_text(alarm: Drift, clip: str | None = None) -> str:
    """One line; `clip`: the recording of the half minute before it."""
    value = "unknown" if alarm.value is None else number(alarm.value)
    if alarm.kind == "gate":
        low = "" if alarm.low is None else f"from {number(alarm.low)} "
        against = f"outside the card's range ({low}to {number(alarm.high)})"
    else:
        against = f"another mean than before ({number(alarm.high)})"
    saved = "" if clip is None else f"; the 30 s before it: {clip}"
    return plain(f"drift, frames {alarm.first_seq} to {alarm.last_seq}: {alarm.measure.upper()} {value}, {against}{saved}", 240)
