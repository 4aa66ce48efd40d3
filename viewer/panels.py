"""Bokeh's figures: correlations, the dictionary's error, returns; and the sources of what the browser draws by itself.

One source a clock: `Sources.frames` moves with frames and the cursor (draw.js paints it, for a whole repaint of a Bokeh figure
at each message is most of what a page costs), `cells` with correlation snapshots, `quality` and `episodes` with seconds and
episodes. y ranges only ever widen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from bokeh.models import (
    ColumnDataSource,
    CustomJSTickFormatter,
    FixedTicker,
    HoverTool,
    LinearColorMapper,
    NumeralTickFormatter,
    Range1d,
)
from bokeh.models.annotations import Span
from bokeh.plotting import figure

from interlatent_live.analyzer.records import Episode, Quality
from interlatent_live.viewer.heatmap import COLUMNS
from interlatent_live.viewer.theme import GLYPHS

__all__ = ["Panels", "Sources", "build"]

HEAT_LABELS = 100
"""Pixels below the heatmap for its slanted labels; fixed, so that its rows stay level with the raster's."""
_AGO = CustomJSTickFormatter(code="return tick == 0 ? 'now' : '−' + Math.round(-tick / 60) + ' min'")
_FIVE_MINUTES = (-300, -180, -60, 0)


def _source(**data: Any) -> ColumnDataSource:
    return ColumnDataSource(data=data)


@dataclass
class Sources:
    """What a session shows."""

    frames: ColumnDataSource = field(default_factory=lambda: _source(bytes=[None], json=[""]))
    """What draw.js paints, as increments, and where the cursor is."""
    cells: ColumnDataSource = field(default_factory=lambda: _source(**{name: [] for name in COLUMNS}))
    quality: ColumnDataSource = field(default_factory=lambda: _source(t=[], fvu=[]))
    episodes: ColumnDataSource = field(default_factory=lambda: _source(episode=[], total=[], steps=[], how=[]))
    state: ColumnDataSource = field(default_factory=lambda: _source(json=[""]))
    features: ColumnDataSource = field(default_factory=lambda: _source(json=[""]))
    picture: ColumnDataSource = field(default_factory=lambda: _source(jpeg=[None]))
    why: ColumnDataSource = field(default_factory=lambda: _source(json=[""]))
    tokens: ColumnDataSource = field(default_factory=lambda: _source(json=[""]))
    """A language model's text, as increments; nothing of an agent."""
    prompts: ColumnDataSource = field(default_factory=lambda: _source(json=[""]))
    pair: ColumnDataSource = field(default_factory=lambda: _source(json=[""]))
    """Two texts of one prompt, side by side."""
    asked: ColumnDataSource = field(default_factory=lambda: _source(json=[""]))
    """Whether a prompt can be tried, and how far it is."""
    timeline: ColumnDataSource = field(default_factory=lambda: _source(json=[""]))
    file: ColumnDataSource = field(default_factory=lambda: _source(name=[], text=[]))
    """What the browser shall save."""
    control: ColumnDataSource = field(default_factory=lambda: _source(json=[""]))
    """Written by the browser: commands."""
    asks: ColumnDataSource = field(default_factory=lambda: _source(json=[""]))
    """The same of the drawer "Reach in", which waits for nothing else."""
    reach: ColumnDataSource = field(default_factory=lambda: _source(json=[""]))
    reached: ColumnDataSource = field(default_factory=lambda: _source(json=[""]))
    """What was done to the agent before."""

    def own(self) -> dict[str, ColumnDataSource]:
        """What the page's scripts draw, by the name of the function in page.js that does."""
        names: tuple[str, ...] = ("frames", "state", "features", "picture", "why", "tokens", "prompts", "timeline", "file")
        names += ("pair", "asked", "reach", "reached")
        return {name: getattr(self, name) for name in names}


def _nice(value: float) -> float:
    """The next round number at or above a positive value: ranges then widen in few steps."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(m * power for m in (1, 1.5, 2, 3, 4, 5, 6, 8, 10) if m * power >= value * (1 - 1e-9))


@dataclass
class Panels:
    """The figures and what is changed about them afterwards."""

    heatmap: Any
    quality: Any
    episodes: Any
    card: Span
    rows: int
    metrics: int
    roles: list[tuple[Any, str, str]]
    """(model, attribute, colour role of theme.GLYPHS)"""
    _versions: bool = False

    @property
    def roots(self) -> list[Any]:
        """All figures, named as the template places them."""
        return [self.heatmap, self.quality, self.episodes]

    def fit(self, used: int, rows: Sequence[str], metrics: Sequence[str]) -> None:
        """Label the heatmap; no room for rows that no feature needs."""
        named: dict[Any, Any] = {self.rows - i - 0.5: (rows[i] if i < len(rows) else "") for i in range(self.rows)}
        if self.heatmap.yaxis[0].major_label_overrides != named:
            self.heatmap.yaxis[0].major_label_overrides = named
        self.heatmap.y_range.start = self.rows - max(used, 8)
        if metrics:
            self.heatmap.x_range.end = max(len(metrics), 4)
            columns: dict[Any, Any] = {i + 0.5: (metrics[i] if i < len(metrics) else "") for i in range(self.metrics)}
            if self.heatmap.xaxis[0].major_label_overrides != columns:
                self.heatmap.xaxis[0].major_label_overrides = columns

    def draw_quality(self, sources: Sources, rows: Sequence[Quality], versions: Sequence[tuple[int, float]], card: float) -> None:
        """FVU of the last seconds or, where the weights changed, of each policy version."""
        if len(versions) > 1:
            fvu = [v for _, v in versions]
            sources.quality.data = {"t": [version for version, _ in versions], "fvu": fvu}
            self.quality.x_range.update(start=versions[0][0], end=versions[-1][0])
            if not self._versions:
                self._versions = True
                self.quality.xaxis.formatter = NumeralTickFormatter(format="0")
                self.quality.xaxis.ticker = FixedTicker(ticks=[])
            low, high = versions[0][0], versions[-1][0]
            step = max(1, round(_nice(max(1.0, (high - low) / 5))))
            self.quality.xaxis.ticker.ticks = list(range(-(-low // step) * step, high + 1, step))
        else:
            fvu = [math.nan if q.fvu is None else q.fvu for q in rows]
            sources.quality.data = {"t": list(range(1 - len(rows), 1)), "fvu": fvu}
            if self._versions:
                self._versions = False
                self.quality.xaxis.formatter, self.quality.xaxis.ticker = _AGO.clone(), FixedTicker(ticks=list(_FIVE_MINUTES))
                self.quality.x_range.update(start=-300, end=0)
        if math.isfinite(card):
            self.card.location = card
        highest = max([v for v in (*fvu, card) if math.isfinite(v)], default=0.0)
        shown = self.quality.y_range
        if highest > shown.end or highest < shown.end / 5:
            shown.end = _nice(max(highest * 1.1, 1e-3))

    def draw_episodes(self, sources: Sources, rows: Sequence[Episode]) -> None:
        """Returns of the last episodes."""
        totals = [math.nan if e.return_ is None else e.return_ for e in rows]
        how = ["ended by itself" if e.terminated else "cut off" if e.truncated else "" for e in rows]
        sources.episodes.data = {"episode": [e.episode for e in rows], "total": totals, "steps": [e.steps for e in rows], "how": how}
        if not rows:
            return
        last = rows[-1].episode
        self.episodes.x_range.update(start=max(0, last - 39) - 0.5, end=max(9, last) + 0.5)
        finite = [v for v in totals if math.isfinite(v)] or [1.0]
        self.episodes.y_range.update(start=min(0.0, *finite), end=_nice(max(*finite, 1e-6, 0.0)))


def build(sources: Sources, rows: int, metrics: int) -> Panels:
    """All figures. `rows` and `metrics`: places in the heatmap."""
    roles: list[tuple[Any, str, str]] = []
    quality, card = _quality(sources, roles)
    return Panels(_heatmap(sources, rows, metrics, roles), quality, _episodes(sources, roles), card, rows, metrics, roles)


def _figure(name: str, **options: Any) -> Any:
    made = figure(name=name, sizing_mode="stretch_both", toolbar_location=None, tools="", **options)
    made.toolbar.active_drag = None
    made.toolbar.active_scroll = None
    made.min_border_left, made.min_border_top, made.min_border_bottom = 40, 4, 24
    made.xgrid.grid_line_color = None
    return made


def _heatmap(sources: Sources, rows: int, metrics: int, roles: list[tuple[Any, str, str]]) -> Any:
    made = _figure("heatmap", x_range=Range1d(start=0, end=metrics), y_range=Range1d(start=0, end=rows), height=400)
    mapper = LinearColorMapper(palette=GLYPHS["light"]["diverging"], low=-1, high=1)
    roles.append((mapper, "palette", "diverging"))
    made.rect(
        x="x", y="y", width="size", height="size", fill_alpha="alpha", line_color=None, source=sources.cells,
        fill_color={"field": "r", "transform": mapper},
    )  # fmt: skip
    made.yaxis.ticker = FixedTicker(ticks=[rows - i - 0.5 for i in range(rows)])
    made.yaxis.major_label_text_font_size = "10px"
    made.xaxis.ticker = FixedTicker(ticks=[i + 0.5 for i in range(metrics)])
    made.xaxis.major_label_orientation = np.pi / 3.2
    made.xaxis.major_label_text_font_size = "10px"
    made.ygrid.visible = False
    made.min_border_left, made.min_border_right, made.min_border_bottom = 54, 8, HEAT_LABELS
    made.add_tools(HoverTool(
        tooltips=[
            ("feature", "@feature"), ("metric", "@metric"), ("r", "@value"), ("95 % interval", "@interval"),
            ("from", "@support"), ("", "@verdict"),
        ],
        attachment="horizontal",
    ))  # fmt: skip
    return made


def _quality(sources: Sources, roles: list[tuple[Any, str, str]]) -> tuple[Any, Span]:
    made = _figure("quality", x_range=Range1d(start=-300, end=0), y_range=Range1d(start=0, end=0.1), height=110)
    line = made.line(x="t", y="fvu", source=sources.quality, line_width=1.5)
    roles.append((line.glyph, "line_color", "feature"))
    card = Span(dimension="width", location=float("nan"), line_dash=[6, 3], line_width=1.5)
    roles.append((card, "line_color", "metric"))
    made.add_layout(card)
    made.yaxis.ticker.desired_num_ticks = 3
    made.yaxis.formatter = NumeralTickFormatter(format="0.[000]")
    made.xaxis.formatter = _AGO.clone()
    made.xaxis.ticker = FixedTicker(ticks=list(_FIVE_MINUTES))
    made.min_border_right = 18
    return made, card


def _episodes(sources: Sources, roles: list[tuple[Any, str, str]]) -> Any:
    made = _figure("episodes", x_range=Range1d(start=-0.5, end=39.5), y_range=Range1d(start=0, end=1), height=110)
    bars = made.vbar(x="episode", top="total", width=0.6, source=sources.episodes, line_color=None, fill_alpha=0.6)
    roles.append((bars.glyph, "fill_color", "feature"))
    made.yaxis.ticker.desired_num_ticks = 3
    made.yaxis.formatter = NumeralTickFormatter(format="0.[0]a")
    made.xaxis.formatter = NumeralTickFormatter(format="0")
    made.xaxis.ticker.desired_num_ticks = 5
    made.xaxis.ticker.min_interval = 1
    made.min_border_right = 8
    made.add_tools(HoverTool(tooltips=[("episode", "@episode"), ("return", "@total"), ("steps", "@steps"), ("", "@how")]))
    return made
