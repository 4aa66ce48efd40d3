"""Numbers and names as the page writes them. What a run names is shown as plain text, never as markup."""

from __future__ import annotations

import math

__all__ = ["clock", "duration", "number", "plain", "quantity"]

DASH = "–"


def plain(text: str, limit: int = 60) -> str:
    """A name from a run, on one line; `$$` would be read as mathematics by an axis."""
    line = " ".join(str(text).split()).replace("$$", "$ $")
    return line if len(line) <= limit else line[: limit - 1] + "…"


def number(value: float | int | None, digits: int = 3) -> str:
    """About `digits` significant digits, whole numbers in full with thin spaces; '–' for what is not known."""
    if value is None or not math.isfinite(value):
        return DASH
    if float(value).is_integer() or abs(value) >= 10 ** (digits - 1):
        return f"{round(value):,}".replace(",", "\u2009").replace("-", "−")
    if abs(value) < 1e-5:
        return f"{value:.1e}".replace("-", "−")
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:.{decimals}f}".replace("-", "−")


def quantity(value: float | int | None, unit: str, digits: int = 3) -> str:
    """A number with its unit; '–' alone where it is not known."""
    shown = number(value, digits)
    return shown if shown == DASH or not unit else f"{shown}\u202f{unit}"


def duration(seconds: float) -> str:
    """A span of time in the two largest units that matter."""
    if seconds < 60:
        return f"{seconds:.1f}\u202fs" if seconds < 10 else f"{seconds:.0f}\u202fs"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}\u202fmin {rest}\u202fs"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}\u202fh {minutes}\u202fmin" if hours < 48 else f"{hours // 24}\u202fdays"


def clock(seconds: float) -> str:
    """Frame time as minutes and seconds."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02d}"
