"""One frame as a small page: the picture, metrics, action, reward and what was most active. Self-contained HTML, no
script; every text in it is escaped.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["Moment", "definitions", "page"]

_BOX = "font:13px/1.4 system-ui,sans-serif;display:flex;gap:20px;flex-wrap:wrap;align-items:flex-start"
_CELL = "padding:1px 10px 1px 0;text-align:left;border:none;background:none"
_BAR = "display:inline-block;height:9px;border-radius:2px;background:%s"
_RISING, _FALLING = "#c98b4b", "#4b7fc9"


@dataclass(frozen=True, slots=True)
class Moment:
    """What `run.show` gives: a notebook draws it, `.html` is the text."""

    run: str
    boot: str
    seq: int
    step: int
    env: int
    episode: int
    episode_step: int
    picture: bytes | None
    """JPEG of what was acted on, or None."""
    picture_seq: int | None
    """Frame that the picture shows; pictures are fewer than frames."""
    metrics: tuple[tuple[str, float, str], ...]
    """Name, value (NaN where unknown), unit."""
    action: str
    reward: float
    active: tuple[tuple[str, tuple[tuple[str, float], ...]], ...]
    """By point or dictionary: name and value of what was most active, the strongest first."""

    @property
    def title(self) -> str:
        """Where this is."""
        return f"{self.run}: episode {self.episode}, step {self.episode_step} (frame {self.seq}, environment {self.env})"

    @property
    def html(self) -> str:
        """Self-contained."""
        parts = [_picture(self)]
        rows = [(name, _number(value), unit) for name, value, unit in self.metrics]
        rows += [("action", self.action, ""), ("reward", _number(self.reward), "")]
        parts.append(definitions("what it saw and did", rows))
        parts += [_bars(name, values) for name, values in self.active]
        return page(self.title, parts)

    def _repr_html_(self) -> str:
        return self.html

    def __str__(self) -> str:
        lines = [self.title, *(f"  {name} {_number(value)} {unit}".rstrip() for name, value, unit in self.metrics)]
        lines += [f"  action {self.action}, reward {_number(self.reward)}"]
        lines += [f"  {name}: " + ", ".join(f"{n} {_number(v)}" for n, v in values) for name, values in self.active]
        return "\n".join(lines)


def page(title: str, parts: Sequence[str]) -> str:
    """Parts beside each other, below a title."""
    head = f'<div style="font:600 14px system-ui,sans-serif;margin:4px 0 8px">{escape(title)}</div>'
    return f'<div>{head}<div style="{_BOX}">{"".join(parts)}</div></div>'


def definitions(title: str, rows: Sequence[tuple[str, str, str]]) -> str:
    """A table of name, value and unit."""
    cells = "".join(
        f'<tr><td style="{_CELL}">{escape(name)}</td><td style="{_CELL};text-align:right">{escape(value)}</td>'
        f'<td style="{_CELL};opacity:.6">{escape(unit)}</td></tr>'
        for name, value, unit in rows
    )
    return f'<div><div style="opacity:.6">{escape(title)}</div><table style="border-collapse:collapse;margin:0">{cells}</table></div>'


def _picture(moment: Moment) -> str:
    if moment.picture is None:
        return '<div style="opacity:.6">no picture was recorded</div>'
    data = base64.b64encode(moment.picture).decode("ascii")
    late = moment.seq - (moment.picture_seq or 0)
    caption = "" if not late else f'<div style="opacity:.6">{late} frame{"s" * (late > 1)} earlier</div>'
    return f'<div><img alt="the environment" style="max-width:320px;border-radius:4px" src="data:image/jpeg;base64,{data}">{caption}</div>'


def _bars(title: str, values: Sequence[tuple[str, float]]) -> str:
    largest = max((abs(v) for _, v in values if math.isfinite(v)), default=0.0)
    rows = []
    for name, value in values:
        width = 0 if not largest or not math.isfinite(value) else round(120 * abs(value) / largest)
        bar = f'<span style="{_BAR % (_RISING if value >= 0 else _FALLING)};width:{width}px"></span>'
        cells = "".join(f'<td style="{_CELL}">{cell}</td>' for cell in (escape(name), bar, _number(value)))
        rows.append(f"<tr>{cells}</tr>")
    body = "".join(rows) or f'<tr><td style="{_CELL};opacity:.6">nothing was active</td></tr>'
    return f'<div><div style="opacity:.6">{escape(title)}</div><table style="border-collapse:collapse;margin:0">{body}</table></div>'


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.4g}"
