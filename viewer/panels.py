"""The figures: pure functions from sources and ranges to Bokeh models. They hold no data and read nothing.

One source a clock: `Sources.tiles` and `Sources.strips` move with frames, `Sources.cells` with correlation snapshots,
`Sources.quality` and `Sources.episodes` with seconds and episodes. All figures over time share one x range, which the
browser moves (page.js); y ranges only ever widen.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from bokeh.models import (
    ColumnDataSource,
    CustomJSHover,
    CustomJSTickFormatter,
    FixedTicker,
    Grid,
    HoverTool,
    LinearAxis,
    LinearColorMapper,
    NumeralTickFormatter,
    Range1d,
)
from bokeh.models.annotations import Span
from bokeh.plotting import figure

from interlatent_live.viewer.heatmap import COLUMNS
from interlatent_live.viewer.theme import GLYPHS

__all__ = ["Panels", "Sources", "build"]

LEFT, RIGHT = 54, 58
BAND = 0.05, 0.68
"""Part of a strip's place that its lines fill, from below; its title stands above them."""
HEAT_LABELS = 100
"""Pixels below the heatmap for its slanted labels; fixed, so that its rows stay level with the raster's."""
_MINUTES = "const s = Math.max(0, Math.round(tick)); return Math.floor(s / 60) + ':' + String(s % 60).padStart(2, '0')"


def _source(**data: Any) -> ColumnDataSource:
    return ColumnDataSource(data=data)


@dataclass
class Sources:
    """What a session's figures draw."""

    tiles: ColumnDataSource
    strips: ColumnDataSource
    boundaries: ColumnDataSource = field(default_factory=lambda: _source(x=[]))
    cells: ColumnDataSource = field(default_factory=lambda: _source(**{name: [] for name in COLUMNS}))
    quality: ColumnDataSource = field(default_factory=lambda: _source(t=[], fvu=[]))
    episodes: ColumnDataSource = field(default_factory=lambda: _source(episode=[], total=[], steps=[], how=[]))
    state: ColumnDataSource = field(default_factory=lambda: _source(json=[""]))
    picture: ColumnDataSource = field(default_factory=lambda: _source(uri=[""]))
    labels: ColumnDataSource = field(default_factory=lambda: _source(row=[], metric=[]))


@dataclass
class Panels:
    """The figures and what is changed about them afterwards."""

    raster: Any
    strips: Any
    heatmap: Any
    quality: Any
    episodes: Any
    x: Range1d
    duty: LinearAxis
    rows: Grid
    """Lines between the rows; those beyond the y range would be drawn as well."""
    bands: list[tuple[Range1d, Range1d]]
    """For each pair the ranges of its feature and its metric."""
    metric_axis: LinearAxis
    card: Span
    roles: list[tuple[Any, str, str]]
    """(model, attribute, colour role of theme.GLYPHS)"""

    @property
    def roots(self) -> list[Any]:
        """All figures, named as the template places them."""
        return [self.raster, self.strips, self.heatmap, self.quality, self.episodes]


def build(sources: Sources, rows: int, metrics: int, strips: int) -> Panels:
    """All figures. `rows` and `metrics`: places in the raster and the heatmap; `strips`: pairs of lines."""
    roles: list[tuple[Any, str, str]] = []
    x = Range1d(start=0, end=30)
    raster, duty, grid = _raster(sources, x, rows, roles)
    lines, bands, right = _strips(sources, x, strips, roles)
    quality, card = _quality(sources, roles)
    return Panels(
        raster, lines, _heatmap(sources, rows, metrics, roles), quality, _episodes(sources, roles), x, duty, grid, bands, right,
        card, roles,
    )  # fmt: skip


def _figure(name: str, **options: Any) -> Any:
    made = figure(name=name, sizing_mode="stretch_both", toolbar_location=None, tools="", **options)
    made.toolbar.active_drag = None
    made.toolbar.active_scroll = None
    made.min_border_left, made.min_border_right, made.min_border_top, made.min_border_bottom = LEFT, RIGHT, 4, 6
    made.xgrid.grid_line_color = None
    return made


def _time_axis(made: Any) -> None:
    made.xaxis.formatter = CustomJSTickFormatter(code=_MINUTES)
    made.xaxis.ticker.desired_num_ticks = 7
    made.min_border_bottom = 24


def _boundaries(made: Any, sources: Sources, roles: list[tuple[Any, str, str]]) -> None:
    glyph = made.vspan(x="x", source=sources.boundaries, line_width=1, line_dash=[3, 3], line_color="#808890").glyph
    roles.append((glyph, "line_color", "boundary"))


def _raster(sources: Sources, x: Range1d, rows: int, roles: list[tuple[Any, str, str]]) -> tuple[Any, LinearAxis, Grid]:
    made = _figure("raster", x_range=x, y_range=Range1d(start=0, end=rows), height=400)
    mapper = LinearColorMapper(palette=GLYPHS["light"]["ramp"], low=0, high=255)
    roles.append((mapper, "palette", "ramp"))
    made.image(image="image", x="x", y=0, dw="dw", dh=rows, source=sources.tiles, color_mapper=mapper)
    centres = [rows - i - 0.5 for i in range(rows)]
    made.yaxis.ticker = FixedTicker(ticks=centres)
    made.yaxis.major_label_overrides = {c: "" for c in centres}
    made.yaxis.major_label_text_font_size = "10px"
    made.ygrid.visible = False
    lines = Grid(dimension=1, ticker=FixedTicker(ticks=list(range(rows + 1))), level="overlay", grid_line_color="#ffffff")
    lines.grid_line_width, lines.name = 1, "rows"
    roles.append((lines, "grid_line_color", "panel"))
    made.add_layout(lines)
    duty = LinearAxis(major_label_overrides={c: "" for c in centres})
    duty.update(ticker=FixedTicker(ticks=centres))
    duty.major_label_text_font_size = "10px"
    made.add_layout(duty, "right")
    _time_axis(made)
    _boundaries(made, sources, roles)
    name = CustomJSHover(
        args={"labels": sources.labels, "rows": rows},
        code="return labels.data.row[rows - 1 - Math.floor(special_vars.y)] ?? 'free row'",
    )
    when = CustomJSHover(code="const s = special_vars.x; return Math.floor(s / 60) + ':' + (s % 60).toFixed(1).padStart(4, '0')")
    level = CustomJSHover(
        code="return value == 0 ? 'no data' : value == 1 ? 'inactive' : Math.round((value - 1) / 2.54) + ' % of its maximum'"
    )
    made.add_tools(HoverTool(
        tooltips=[("feature", "$y{custom}"), ("frame time", "$x{custom}"), ("activity", "@image{custom}")],
        formatters={"$y": name, "$x": when, "@image": level}, attachment="horizontal",
    ))  # fmt: skip
    return made, duty, lines


def _strips(
    sources: Sources, x: Range1d, count: int, roles: list[tuple[Any, str, str]]
) -> tuple[Any, list[tuple[Range1d, Range1d]], LinearAxis]:
    """Pairs one above the other in one figure: a canvas for each would cost the browser four times the painting."""
    made = _figure("strips", x_range=x, y_range=Range1d(start=0, end=count), height=250)
    bands = []
    for i in range(count):
        bottom = count - 1 - i
        value, metric = Range1d(start=0, end=1), Range1d(start=-1, end=1)
        bands.append((value, metric))
        place = Range1d(start=bottom + BAND[0], end=bottom + BAND[1])
        left = made.subplot(x_source=x, x_target=x, y_source=value, y_target=place)
        right = made.subplot(x_source=x, x_target=x, y_source=metric, y_target=place)
        area = left.varea_step(x="t", y1=0, y2=f"v{i}", source=sources.strips, step_mode="after", fill_alpha=0.45)
        line = right.line(x="t", y=f"m{i}", source=sources.strips, line_width=1, line_alpha=0.8)
        roles += [(area.glyph, "fill_color", "feature"), (line.glyph, "line_color", "metric")]
    right_axis = LinearAxis()
    made.add_layout(right_axis, "right")
    for axis in (made.yaxis[0], right_axis):
        axis.update(ticker=FixedTicker(ticks=[]), major_label_text_font_size="10px")
    made.ygrid.visible = False
    _time_axis(made)
    _boundaries(made, sources, roles)
    return made, bands, right_axis


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
    made.min_border_right, made.min_border_bottom = 8, HEAT_LABELS
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
    made.xaxis.formatter = CustomJSTickFormatter(code="return tick == 0 ? 'now' : '−' + Math.round(-tick / 60) + ' min'")
    made.xaxis.ticker = FixedTicker(ticks=[-300, -240, -180, -120, -60, 0])
    made.min_border_right, made.min_border_bottom = 18, 24
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
    made.min_border_right, made.min_border_bottom, made.min_border_left = 8, 24, 40
    made.add_tools(HoverTool(tooltips=[("episode", "@episode"), ("return", "@total"), ("steps", "@steps"), ("", "@how")]))
    return made
