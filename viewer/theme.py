"""The look: colours by role for light and dark, and what canvases need of them.

Axes, grids and labels take their colours from CSS variables (page.css), so they follow the system by themselves. Colours
inside glyphs are data to a canvas; `page.js` sets them from `GLYPHS` in the browser when the scheme is known or changes.
Blue and orange differ for every common colour vision; text and lines reach WCAG AA on their panel.
"""

from __future__ import annotations

from typing import Any, Final

from bokeh.themes import Theme

__all__ = ["FONT", "GLYPHS", "bokeh_theme", "diverging", "ramp"]

FONT: Final = "Inter, 'SF Pro Text', 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"

_RAMP: Final = {  # inactive to its maximum; perceived lightness moves one way only
    "light": ("#eef3f9", "#c3d9f0", "#86b6e3", "#3f86cb", "#1c5ca3", "#0b3469"),
    "dark": ("#182230", "#1f3f66", "#2a649f", "#4a90d6", "#8ec2f2", "#e6f3ff"),
}
_DIVERGING: Final = {  # −1, 0, +1
    "light": ("#8a4400", "#d98324", "#f3f4f6", "#4a90d6", "#0f4c94"),
    "dark": ("#ffb65c", "#b9731e", "#1c232d", "#3a7fc6", "#8cc5ff"),
}


def _mix(stops: tuple[str, ...], count: int) -> list[str]:
    channels = [[int(s[i : i + 2], 16) for i in (1, 3, 5)] for s in stops]
    out = []
    for k in range(count):
        position = k / (count - 1) * (len(stops) - 1)
        i = min(int(position), len(stops) - 2)
        f = position - i
        mixed = (round(a + (b - a) * f) for a, b in zip(channels[i], channels[i + 1], strict=True))
        out.append("#" + "".join(f"{c:02x}" for c in mixed))
    return out


def ramp(scheme: str) -> list[str]:
    """256 colours of the raster's levels: 0 is transparent (no data), 1 inactive, 255 the maximum."""
    return ["#00000000", *_mix(_RAMP[scheme], 255)]


def diverging(scheme: str) -> list[str]:
    """Colours from −1 to +1."""
    return _mix(_DIVERGING[scheme], 101)


GLYPHS: Final[dict[str, dict[str, Any]]] = {
    scheme: {
        "ramp": ramp(scheme),
        "diverging": diverging(scheme),
        "feature": {"light": "#1f6fc9", "dark": "#5aa9ff"}[scheme],
        "metric": {"light": "#a45200", "dark": "#f2a33a"}[scheme],
        "boundary": {"light": "#7b8494", "dark": "#7f8b9b"}[scheme],
        "panel": {"light": "#ffffff", "dark": "#151a21"}[scheme],
    }
    for scheme in ("light", "dark")
}
"""Colour roles of glyphs by scheme; `page.js` knows them by these names."""


def bokeh_theme() -> Theme:
    """Type, weights and alphas of every figure; colours come from page.css."""
    text = {"text_font": FONT, "text_font_size": "11px"}
    return Theme(json={
        "attrs": {
            "Plot": {
                "background_fill_alpha": 0,
                "border_fill_alpha": 0,
                "outline_line_alpha": 0,
                "toolbar_location": None,
                "min_border": 0,
            },
            "Axis": {
                "axis_line_alpha": 0,
                "major_tick_line_alpha": 0,
                "minor_tick_line_alpha": 0,
                "major_tick_out": 0,
                "major_tick_in": 0,
                "minor_tick_out": 0,
                "major_label_standoff": 6,
                **{f"major_label_{k}": v for k, v in text.items()},
            },
            "Grid": {"grid_line_alpha": 1, "grid_line_width": 1},
        }
    })  # fmt: skip
