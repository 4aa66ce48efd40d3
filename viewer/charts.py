"""Single pages of one chart each, for `search --html` and `plot --html`: Bokeh with its scripts inside, to be opened anywhere.

Every text that comes from a run is data of a column or escaped.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
from bokeh.embed import file_html
from bokeh.layouts import column
from bokeh.models import ColumnDataSource, HoverTool
from bokeh.models.widgets import DataTable, Div, TableColumn
from bokeh.plotting import figure
from bokeh.resources import INLINE

from interlatent_live.analyzer.shading import Shaded

__all__ = ["found_page", "strengths_page", "text_page"]

_BLUE = "#3f86cb"
_WIDTH = 1000
_TOOLS = "pan,xwheel_zoom,reset"


def text_page(text: Shaded) -> str:
    """A text, shaded, and its feature over positions."""
    positions = np.arange(len(text.values))
    source = ColumnDataSource({"position": positions, "value": text.values, "text": [t.replace("\n", "↵") for t in text.texts]})
    plot = figure(width=_WIDTH, height=260, x_axis_label="position", y_axis_label="activation", title=text.title, tools=_TOOLS)
    plot.line("position", "value", source=source, color=_BLUE)
    plot.scatter("position", "value", source=source, color=_BLUE, size=5)
    plot.add_tools(HoverTool(tooltips=[("token", "@text"), ("position", "@position"), ("value", "@value")], mode="vline"))
    return _page(text.title, Div(text=text.html, width=_WIDTH), plot)


def strengths_page(title: str, rows: Sequence[dict[str, Any]]) -> str:
    """A feature in every prompt: its largest and its mean."""
    data: dict[str, Any] = {name: [row[name] for row in rows] for name in ("prompt", "frames", "active", "mean", "largest", "at", "token")}
    data["text"] = [str(row["text"]) for row in rows]
    data["labels"] = [", ".join(f"{k} {v}" for k, v in row["labels"].items()) for row in rows]
    source = ColumnDataSource(data)
    plot = figure(width=_WIDTH, height=320, x_axis_label="prompt", y_axis_label="activation", title=title, tools=_TOOLS)
    plot.vbar("prompt", top="mean", width=0.8, source=source, color=_BLUE, alpha=0.4, legend_label="mean")
    plot.scatter("prompt", "largest", source=source, color=_BLUE, size=7, legend_label="largest")
    shown = [("prompt", "@prompt"), ("labels", "@labels"), ("largest", "@largest at @at"), ("token", "@token"), ("text", "@text")]
    plot.add_tools(HoverTool(tooltips=shown))
    return _page(title, plot, _table(source, ("prompt", "labels", "frames", "active", "mean", "largest", "at", "token", "text")))


def found_page(title: str, rows: Sequence[dict[str, Any]]) -> str:
    """Features by how well they tell some frames from the rest."""
    names = ("name", "point", "label", "active", "elsewhere", "difference", "mean", "largest")
    source = ColumnDataSource({name: [row[name] if row[name] is not None else "–" for row in rows] for name in names})
    return _page(title, Div(text=f"<h3>{escape(title)}</h3>"), _table(source, names))


def _table(source: ColumnDataSource, names: Sequence[str]) -> DataTable:
    return DataTable(source=source, columns=[TableColumn(field=name, title=name) for name in names], width=_WIDTH, height=420)


def _page(title: str, *parts: Any) -> str:
    return file_html(column(*parts), INLINE, title=title)
