"""One session: the figures of one browser tab, kept in step with the shared feed by a callback every 100 ms."""

from __future__ import annotations

import base64
import json
import logging
import math
from collections.abc import Callable
from importlib.resources import files
from typing import Any, Final

import numpy as np
from bokeh.document import Document
from bokeh.models import ColumnDataSource, CustomJS, FixedTicker
from jinja2 import Environment

from interlatent_live.viewer import panels
from interlatent_live.viewer.feed import METRICS, PAIRS, ROWS, SPAN_S, Feed
from interlatent_live.viewer.heatmap import cells
from interlatent_live.viewer.summary import flow, header, moment, vitals
from interlatent_live.viewer.text import number, plain
from interlatent_live.viewer.theme import GLYPHS, bokeh_theme

__all__ = ["PERIOD_MS", "Page"]

log = logging.getLogger(__name__)
PERIOD_MS: Final = 100
_HERE = files(__package__)


def _template() -> Any:
    environment = Environment(autoescape=False)  # Bokeh hands in markup of its own; nothing of a run's is put in here
    source = _HERE.joinpath("template.html").read_text(encoding="utf-8")
    for name in ("page.css", "page.js"):
        source = source.replace(f"/* {name} */", _HERE.joinpath(name).read_text(encoding="utf-8"))
    return environment.from_string(source)


_TEMPLATE: Final = _template()
_THEME: Final = bokeh_theme()


def _nice(value: float) -> float:
    """The next round number at or above a positive value: ranges then widen in few steps."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(m * power for m in (1, 1.5, 2, 3, 4, 5, 6, 8, 10) if m * power >= value * (1 - 1e-9))


def _percent(share: float) -> str:
    return "<\u202f1\u202f%" if 0 < share < 0.005 else f"{100 * share:.0f}\u202f%"


class Page:
    """The models of one document and what they last saw of the feed."""

    def __init__(self, document: Document, feed: Feed) -> None:
        self.feed = feed
        self.epoch = self.slow = -1
        self.count, self.head, self.bases = 0, -1, [-1, -1]
        self.picture: tuple[str, int] = ("", -1)
        self.snapshot: tuple[Any, ...] | None = None
        self.boundaries: list[float] = []
        self.sent: dict[str, Any] = {}
        self.sources = panels.Sources(tiles=ColumnDataSource(self._tiles()), strips=ColumnDataSource(self._strips()))
        self.panels = panels.build(self.sources, ROWS, METRICS, PAIRS)
        document.js_on_event("document_ready", self._wire())
        document.js_on_event("connection_lost", CustomJS(code="window.ilive.lost()"))
        document.config.update(reconnect_session=False, notify_connection_status=False)  # page.js does both
        document.template = _TEMPLATE
        document.title = "Interlatent Live"
        document.theme = _THEME
        for root in self.panels.roots:
            document.add_root(root)
        self.tick()
        document.add_periodic_callback(self.tick, PERIOD_MS)

    def _wire(self) -> CustomJS:
        """Hand the browser what it draws by itself: texts, the picture, the moving window and the colours."""
        s, p = self.sources, self.panels
        models = {"x": p.x, "strips": s.strips, "state": s.state, "picture": s.picture, "span": SPAN_S, "glyphs": GLYPHS}
        roles = {"models": [m for m, _, _ in p.roles], "roles": [[attr, role] for _, attr, role in p.roles]}
        p.raster.tags = [s.state, s.picture]  # no figure draws them, and only what a root refers to is kept in step
        s.state.js_on_change("data", CustomJS(code="window.ilive.state(cb_obj)"))
        s.picture.js_on_change("data", CustomJS(code="window.ilive.picture(cb_obj)"))
        s.strips.js_on_change("streaming", CustomJS(code="window.ilive.frames(cb_obj)"))
        s.strips.js_on_change("data", CustomJS(code="window.ilive.frames(cb_obj)"))
        names = ", ".join([*models, *roles])
        return CustomJS(args={**models, **roles}, code=f"window.ilive.ready({{{names}}})")

    # one step

    def tick(self) -> None:
        """Bring the page up to the feed."""
        feed = self.feed
        feed.pull()
        if self.epoch != feed.epoch:
            self.epoch = feed.epoch
            self._restart()
        else:
            self._frames()
        self._picture()
        if self.slow != feed.slow or self.sent.get("freshness") != feed.freshness().state:
            self.slow = feed.slow
            self._slow()
        self._state()

    def _restart(self) -> None:
        """Forget what was shown: another boot, other features, or other rows."""
        self.sources.tiles.data = self._tiles()
        self.sources.strips.data = self._strips()
        self._labels()
        self._ranges(reset=True)
        self.snapshot = None

    def _tiles(self) -> dict[str, list[Any]]:
        raster = self.feed.raster
        self.bases, self.head = list(raster.bases), raster.head
        span = raster.columns * raster.column_s
        return {
            "image": [tile.copy() for tile in raster.tiles],
            "x": [base * raster.column_s if base >= 0 else -2 * span for base in raster.bases],
            "dw": [span, span],
        }

    def _columns(self, table: np.ndarray[Any, Any]) -> dict[str, Any]:
        columns: dict[str, Any] = {"t": table[:, 0]}
        for i in range(PAIRS):
            columns[f"v{i}"] = np.nan_to_num(table[:, 1 + 2 * i]).astype(np.float32)
            columns[f"m{i}"] = table[:, 2 + 2 * i].astype(np.float32)
        return columns

    def _strips(self) -> dict[str, Any]:
        self.count = self.feed.series.count
        table = self.feed.series.table
        if not len(table):  # BokehJS 3.9 never returns from painting an area of steps that has no points
            table = np.full((1, table.shape[1]), np.nan)
            table[:, 0] = 0
        return self._columns(table)

    def _frames(self) -> None:
        series, raster, sources = self.feed.series, self.feed.raster, self.sources
        if series.count > self.count:
            new = series.since(self.count)
            self.count = series.count
            sources.strips.stream(self._columns(new), rollover=series.limit)
            self._ranges(new)
        patches = raster.patches(self.bases, self.head)
        if patches and raster.head != self.head:
            images = [
                ((p.tile, slice(0, ROWS), slice(p.first, p.last)), raster.tiles[p.tile][:, p.first : p.last].ravel())
                for p in patches
            ]
            changes: dict[str, list[Any]] = {"image": images}
            moved = [(i, b * raster.column_s) for i, b in enumerate(raster.bases) if b != self.bases[i]]
            if moved:
                changes["x"] = moved
            sources.tiles.patch(changes)
            self.bases, self.head = list(raster.bases), raster.head
        if self.boundaries != self.feed.boundaries:
            self.boundaries = self.feed.boundaries
            sources.boundaries.data = {"x": self.boundaries}

    def _picture(self) -> None:
        picture = self.feed.picture
        seen = ("", -1) if picture is None else (self.feed.boot.boot if self.feed.boot else "", picture.seq)
        if seen != self.picture:
            self.picture = seen
            uri = "" if picture is None else "data:image/jpeg;base64," + base64.b64encode(picture.data).decode("ascii")
            self.sources.picture.data = {"uri": [uri]}

    def _ranges(self, new: np.ndarray[Any, Any] | None = None, *, reset: bool = False) -> None:
        """Widen the y ranges of the strips to what was drawn; they never narrow but for another pair."""
        table = self.feed.series.table if new is None else new
        widened = False
        for i, (value, metric) in enumerate(self.panels.bands):
            widened |= self._widen(value, table[:, 1 + 2 * i], reset, floor=True)
            widened |= self._widen(metric, table[:, 2 + 2 * i], reset, floor=False)
        if widened:
            self._ticks(self.panels.strips.yaxis[0], [value for value, _ in self.panels.bands])
            self._ticks(self.panels.metric_axis, [metric for _, metric in self.panels.bands])

    def _ticks(self, axis: Any, ranges: list[Any]) -> None:
        """Label the ends of every band, and its zero where that lies between them."""
        labels: dict[Any, str] = {}
        for i, shown in enumerate(ranges[: len(self.feed.pairs)]):
            low, high = shown.start, shown.end
            for value in (low, 0.0, high) if low < 0 < high else (low, high):
                share = (value - low) / (high - low)
                labels[PAIRS - 1 - i + panels.BAND[0] + share * (panels.BAND[1] - panels.BAND[0])] = number(value, 2)
        axis.update(major_label_overrides=labels)
        axis.ticker.ticks = list(labels)

    def _widen(self, shown: Any, values: np.ndarray[Any, Any], reset: bool, *, floor: bool) -> bool:
        values = values[np.isfinite(values)]
        if not len(values):
            return reset
        low, high = float(values.min()), float(values.max())
        low = min(0.0, low) if floor else low
        if not reset and shown.start <= low and high <= shown.end:
            return False
        if floor:
            top = _nice(max(high, 1e-6))
            bottom = -_nice(-low) if low < 0 else 0.0
        else:
            reach = max(abs(low), abs(high), 1e-6)
            top = _nice(reach * 1.02)
            bottom = -top if low < 0 else 0.0
        if not reset:
            bottom, top = min(bottom, shown.start), max(top, shown.end)
        shown.update(start=bottom, end=top)
        return True

    def _labels(self) -> None:
        feed = self.feed
        rows = [feed.label(f) for f in feed.rows]
        centres = [ROWS - i - 0.5 for i in range(ROWS)]
        named: dict[Any, Any] = {c: (rows[i] if i < len(rows) else "") for i, c in enumerate(centres)}
        for axis in (self.panels.raster.yaxis[0], self.panels.heatmap.yaxis[0]):
            if axis.major_label_overrides != named:
                axis.major_label_overrides = named
        for figure in (self.panels.raster, self.panels.heatmap):  # no room for rows that no feature needs
            figure.y_range.start = ROWS - max(len(rows), 8)
        self.panels.rows.update(ticker=FixedTicker(ticks=list(range(ROWS - max(len(rows), 8), ROWS + 1))))
        self.sources.labels.data = {"row": rows, "metric": rows}

    def _slow(self) -> None:
        feed, p = self.feed, self.panels
        shares = [_percent(feed.duty.get(f, 0)) for f in feed.rows]
        duty: dict[Any, Any] = {ROWS - i - 0.5: (shares[i] if i < len(shares) else "") for i in range(ROWS)}
        if p.duty.major_label_overrides != duty:
            p.duty.major_label_overrides = duty
        snapshot = (feed.snapshot.id if feed.snapshot else None, feed.rows, feed.metrics)
        if snapshot != self.snapshot:
            self.snapshot = snapshot
            names = {f: feed.label(f) for f in feed.rows}
            self.sources.cells.data = cells(feed.snapshot, feed.rows, feed.metrics, ROWS, names)
            if feed.metrics:
                p.heatmap.x_range.end = max(len(feed.metrics), 4)
                p.heatmap.xaxis[0].major_label_overrides = {
                    i + 0.5: plain(feed.metrics[i], 21) if i < len(feed.metrics) else "" for i in range(METRICS)
                }
        self._quality()
        self._episodes()

    def _quality(self) -> None:
        rows = self.feed.quality
        if self.sent.get("quality") == (rows[-1] if rows else None):
            return
        self.sent["quality"] = rows[-1] if rows else None
        fvu = [math.nan if q.fvu is None else q.fvu for q in rows]
        self.sources.quality.data = {"t": list(range(1 - len(rows), 1)), "fvu": fvu}
        card = self.feed.dictionary.card if self.feed.dictionary else None
        quoted = card.get("fvu") if card else None
        line = float(quoted) if isinstance(quoted, (int, float)) else math.nan
        if math.isfinite(line):
            self.panels.card.location = line
        highest = max([v for v in (*fvu, line) if math.isfinite(v)], default=0.0)
        shown = self.panels.quality.y_range
        if highest > shown.end or highest < shown.end / 5:
            shown.end = _nice(max(highest * 1.1, 1e-3))

    def _episodes(self) -> None:
        rows = [e for e in self.feed.episodes if e.complete]
        if self.sent.get("episodes") == rows:
            return
        self.sent["episodes"] = rows
        totals = [math.nan if e.return_ is None else e.return_ for e in rows]
        how = ["ended by itself" if e.terminated else "cut off" if e.truncated else "" for e in rows]
        self.sources.episodes.data = {
            "episode": [e.episode for e in rows], "total": totals, "steps": [e.steps for e in rows], "how": how,
        }  # fmt: skip
        if rows:
            last = rows[-1].episode
            p = self.panels.episodes
            p.x_range.update(start=max(0, last - 39) - 0.5, end=max(9, last) + 0.5)
            finite = [v for v in totals if math.isfinite(v)] or [1.0]
            p.y_range.update(start=min(0.0, *finite), end=_nice(max(*finite, 1e-6, 0.0)))

    def _state(self) -> None:
        """Texts, twice a second and whenever the state changes: numbers that flicker cannot be read."""
        feed = self.feed
        fresh = feed.freshness()
        key = (feed.slow, fresh.state, feed.epoch, feed.problem)
        if self.sent.get("key") == key:
            return
        self.sent["key"], self.sent["freshness"] = key, fresh.state
        dictionary = feed.dictionary
        newest = feed.window.last if feed.window else None
        quality = feed.quality[-1] if feed.quality else None
        speed = feed.window.steps_per_s if fresh.state == "LIVE" else None
        age = None if fresh.state == "ENDED" else feed.age_ms()
        state = {
            "view": self._view(),
            "state": fresh.state,
            "note": feed.problem or fresh.note,
            "db": str(feed.path),
            "text": {
                **header(feed.manifest, dictionary, feed.ledger, quality, speed, age),
                **moment(feed.manifest, newest, feed.returned),
            },
            "flow": flow(feed.ledger),
            "vitals": vitals(feed.ledger),
            "pairs": [self._pair(i) for i in range(PAIRS)],
            "neurons": dictionary is not None and dictionary.kind == "neurons",
            "has": {
                "features": bool(feed.rows),
                "correlations": feed.snapshot is not None,
                "metrics": bool(feed.manifest and feed.manifest.metrics),
                "picture": feed.picture is not None,
                "quality": any(q.fvu is not None for q in feed.quality),
                "episodes": any(e.complete for e in feed.episodes),
            },
        }
        self.sources.state.data = {"json": [json.dumps(state)]}

    def _view(self) -> str:
        """Which of the page's faces to show."""
        feed = self.feed
        if feed.window:
            return "running"
        return "problem" if feed.problem else "empty" if feed.boot is None else "waiting"

    def _pair(self, i: int) -> dict[str, str] | None:
        feed = self.feed
        if i >= len(feed.pairs):
            return None
        pair, snapshot = feed.pairs[i], feed.snapshot
        metric = feed.metric(pair.metric)
        found = {"feature": feed.label(pair.feature), "metric": metric["name"], "unit": metric["unit"], "r": "", "interval": ""}
        if snapshot is not None and pair.metric in snapshot.metrics:
            row = np.flatnonzero(snapshot.features == pair.feature)
            j = snapshot.metrics.index(pair.metric)
            if len(row) and np.isfinite(snapshot.r[row[0], j]):
                k = row[0]
                found["r"] = f"r {snapshot.r[k, j]:+.2f}".replace("-", "−")
                low, high, n = snapshot.low[k, j], snapshot.high[k, j], snapshot.n_eff[k, j]
                if np.isfinite(low) and np.isfinite(high):
                    found["interval"] = f"95 % {low:+.2f} … {high:+.2f}, n eff {n:.0f}".replace("-", "−")
        return found


def application(feed: Feed) -> Callable[[Document], None]:
    """What Bokeh runs for each new session."""

    def open_page(document: Document) -> None:
        page = Page(document, feed)
        document.on_session_destroyed(lambda _: log.debug("session closed at count %d", page.count))

    return open_page
