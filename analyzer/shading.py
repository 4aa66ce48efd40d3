"""Text shaded by a number for each token: HTML for a notebook or a page, and characters for a terminal.

Self-contained HTML, no script; every text in it is escaped. Blue is above 0, orange below; the strongest is the darkest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

import numpy as np
import numpy.typing as npt

__all__ = ["Shaded"]

_RISING: Final = (63, 134, 203)
_FALLING: Final = (217, 131, 36)
_BOX: Final = "font:14px/1.9 system-ui,sans-serif;white-space:pre-wrap;overflow-wrap:anywhere"
_STEPS: Final = " ░▒▓█"


@dataclass(frozen=True, eq=False)
class Shaded:
    """Tokens with a value each; a notebook draws it, `.html` is the text, `print` shows a terminal's form."""

    title: str
    texts: Sequence[str]
    values: npt.NDArray[np.float64]
    """(n,) NaN: not known, not shaded."""
    notes: Sequence[str] = ()
    """(n,) what a pointer over a token tells besides its value."""
    faint: npt.NDArray[np.bool_] | None = None
    """(n,) tokens that are no text."""
    scale: float | None = None
    """Value of the darkest; None: the largest here."""

    def __post_init__(self) -> None:
        if len(self.texts) != len(self.values):
            raise ValueError(f"{len(self.texts)} tokens and {len(self.values)} values; there must be one for each")

    @property
    def largest(self) -> float:
        """Value of the darkest shade."""
        known = np.abs(self.values[np.isfinite(self.values)])
        return self.scale or (float(known.max()) if len(known) and known.max() > 0 else 1.0)

    @property
    def html(self) -> str:
        """A div."""
        parts = [f'<div style="{_BOX}"><div style="opacity:.7;font-size:12px">{escape(self.title)}</div>']
        largest = self.largest
        for i, (text, value) in enumerate(zip(self.texts, self.values.tolist(), strict=True)):
            note = self.notes[i] if i < len(self.notes) else ""
            told = escape("; ".join(t for t in (f"{value:.3g}" if np.isfinite(value) else "not known", note) if t), quote=True)
            style = ""
            if np.isfinite(value) and value != 0:
                red, green, blue = _RISING if value > 0 else _FALLING
                style = f"background:rgba({red},{green},{blue},{min(1.0, abs(value) / largest) * 0.75:.2f});border-radius:3px"
            if self.faint is not None and self.faint[i]:
                style += ";opacity:.5"
            shown = escape(text).replace("\n", "↵\n") or "·"
            parts.append(f'<span title="{told}" style="{style}">{shown}</span>')
        parts.append("</div>")
        return "".join(parts)

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        """A line of text, and below each character how strong its token is."""
        largest = self.largest
        lines, above, below = [self.title], "", ""
        for text, value in zip(self.texts, self.values.tolist(), strict=True):
            shown = "".join(c if c.isprintable() else "↵" if c == "\n" else "·" for c in text)
            mark = _STEPS[min(4, int(np.ceil(abs(value) / largest * 4)))] if np.isfinite(value) else "·"
            above, below = above + shown, below + mark * len(shown)
            if len(above) > 90:
                lines += [above, below]
                above = below = ""
        if above:
            lines += [above, below]
        return "\n".join(lines)
