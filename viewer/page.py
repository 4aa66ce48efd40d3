"""One session: one browser tab, kept in step with a shared feed and its own cursor by a callback every 100 ms."""

from __future__ import annotations

import base64
import json
import logging
import math
from collections.abc import Callable, Mapping
from importlib.resources import files
from typing import Any, Final

import numpy as np
from bokeh.document import Document
from bokeh.models import ColumnDataSource, CustomJS
from jinja2 import Environment

from interlatent_live.analyzer.records import Snapshot
from interlatent_live.stream.errors import StoreError
from interlatent_live.viewer import panels
from interlatent_live.viewer.cursor import Cursor
from interlatent_live.viewer.drawing import PAIRS, ROWS, SPAN_S, Drawing
from interlatent_live.viewer.feed import METRICS, Feed
from interlatent_live.viewer.heatmap import cells
from interlatent_live.viewer.hub import Hub
from interlatent_live.viewer.learning import stale_reason
from interlatent_live.viewer.says import labels, sentences
from interlatent_live.viewer.summary import flow, header, moment, pairs, scalars, vitals
from interlatent_live.viewer.text import plain
from interlatent_live.viewer.theme import GLYPHS, bokeh_theme

__all__ = ["PERIOD_MS", "Page", "application"]

log = logging.getLogger(__name__)
PERIOD_MS: Final = 100
_HERE = files(__package__)


def _template() -> Any:
    environment = Environment(autoescape=False)  # Bokeh hands in markup of its own; nothing of a run's is put in here
    source = _HERE.joinpath("template.html").read_text(encoding="utf-8")
    for name in ("page.css", "draw.js", "time.js", "page.js"):
        source = source.replace(f"/* {name} */", _HERE.joinpath(name).read_text(encoding="utf-8"))
    return environment.from_string(source)


_TEMPLATE: Final = _template()
_THEME: Final = bokeh_theme()


def _percent(share: float) -> str:
    return "<\u202f1\u202f%" if 0 < share < 0.005 else f"{100 * share:.0f}\u202f%"


class Page:
    """The models of one document and what they last saw of the feed."""

    def __init__(self, document: Document, hub: Hub) -> None:
        self.hub, self.feed = hub, hub.take()
        self.cursor = Cursor(self.feed)
        self.slow = self.answered = -1
        self.count, self.head, self.bases = 0, -1, [-1, -1]
        self.drawing: Drawing = self.cursor.drawing
        self.picture: tuple[str, int] = ("", -1)
        self.snapshot: Snapshot | None = None
        self.sent: dict[str, Any] = {}
        self.sources = panels.Sources(tiles=ColumnDataSource(self._tiles()), strips=ColumnDataSource(self._strips()))
        self.panels = panels.build(self.sources, ROWS, METRICS)
        document.js_on_event("document_ready", self._wire())
        document.js_on_event("connection_lost", CustomJS(code="window.ilive.lost()"))
        document.config.update(reconnect_session=False, notify_connection_status=False)  # page.js does both
        document.template = _TEMPLATE
        document.title = "Interlatent Live"
        document.theme = _THEME
        for root in self.panels.roots:
            document.add_root(root)
        self.sources.control.on_change("data", self._obey)
        self.tick()
        document.add_periodic_callback(self.tick, PERIOD_MS)

    def _wire(self) -> CustomJS:
        """Hand the browser what it draws by itself: texts, the picture, raster and strips, the timeline, and the colours."""
        s, p = self.sources, self.panels
        own = {"tiles": s.tiles, "strips": s.strips, "state": s.state, "picture": s.picture, "place": s.place, "timeline": s.timeline}
        p.heatmap.tags = [*own.values(), s.control]  # no figure draws them, and only what a root refers to is kept in step
        models = {**own, "control": s.control, "span": SPAN_S, "height": ROWS, "glyphs": GLYPHS}
        roles = {"models": [m for m, _, _ in p.roles], "roles": [[attr, role] for _, attr, role in p.roles]}
        for name in ("state", "picture", "place", "timeline"):
            own[name].js_on_change("data", CustomJS(code=f"window.ilive.{name}(cb_obj)"))
        for name in ("tiles", "strips"):
            for change in ("data", "streaming", "patching"):
                own[name].js_on_change(change, CustomJS(code="window.ilive.frames()"))
        names = ", ".join([*models, *roles])
        return CustomJS(args={**models, **roles}, code=f"window.ilive.ready({{{names}}})")

    def close(self) -> None:
        """The session ended."""
        self.hub.drop(self.feed)

    # commands

    def _obey(self, _attr: str, _old: Any, new: Mapping[str, Any]) -> None:
        """What the browser's controls ask; several may come at once."""
        try:
            commands = json.loads(new["json"][0] or "[]")
            for command in commands:
                self._change(command) if command.get("op") == "look" else self.cursor.obey(command)
                self.answered = int(command.get("n", self.answered))
        except StoreError as error:  # a locked moment: the browser shows that nothing came, and asks again
            log.debug("not obeyed: %s", error)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            log.debug("a command that makes no sense: %s", error)
        self._show(hurried=not self.cursor.live)

    def _change(self, command: Mapping[str, Any]) -> None:
        """Look at another environment or another source of features."""
        source = command.get("source") or self.feed.source
        env, most = int(command.get("env", self.feed.env)), self.feed.manifest.num_envs if self.feed.manifest else 1
        if not 0 <= env < most or (source is not None and source not in self.feed.sources):
            return
        before, self.feed = self.feed, self.hub.take(env, source)
        self.hub.drop(before)
        self.feed.pull()
        self.cursor, self.sent, self.slow, self.picture = Cursor(self.feed), {}, -1, ("", -1)

    # one step

    def tick(self) -> None:
        """Bring the page up to the feed and its cursor."""
        feed = self.feed
        feed.pull()
        try:
            self.cursor.tick()
        except StoreError as error:
            log.debug("the past could not be read: %s", error)
        self._show()

    def _show(self, *, hurried: bool = False) -> None:
        """Send what changed. `hurried`: what follows the cursor closely now, the rest with the next step."""
        feed = self.feed
        if self.drawing is not self.cursor.drawing:
            self.drawing = self.cursor.drawing
            self.sources.tiles.data, self.sources.strips.data = self._tiles(), self._strips()
        else:
            self._frames()
        at = None if self.cursor.clip is None else self.cursor.clip.seq
        moved = self._differs("at", (at, feed.env, feed.source, feed.boot.boot if feed.boot else ""))
        if moved or self.cursor.live:
            self._picture(at)
        if moved or self.slow != feed.slow or self.sent.get("freshness") != feed.freshness().state:
            if hurried:
                self.slow = -1
            else:
                self.slow = feed.slow
                self._slow(at)
            self._state(at)
        self._place()

    def _differs(self, name: str, value: Any) -> bool:
        """Whether it is another value than the one sent last."""
        if name in self.sent and self.sent[name] == value:
            return False
        self.sent[name] = value
        return True

    def _tiles(self) -> dict[str, list[Any]]:
        raster = self.drawing.raster
        self.bases, self.head = list(raster.bases), raster.head
        return {"image": [tile.copy() for tile in raster.tiles], "base": list(raster.bases), "column_s": [raster.column_s] * 2}

    def _columns(self, table: np.ndarray[Any, Any]) -> dict[str, Any]:
        columns: dict[str, Any] = {"t": table[:, 0]}
        for i in range(2 * PAIRS):
            for k, name in enumerate("mlh"):
                columns[f"{name}{i}"] = table[:, 1 + 3 * i + k].astype(np.float32)
        return columns

    def _strips(self) -> dict[str, Any]:
        self.count = self.drawing.series.count
        return self._columns(self.drawing.series.table)

    def _frames(self) -> None:
        series, raster, sources = self.drawing.series, self.drawing.raster, self.sources
        if series.count > self.count:
            new = series.since(self.count)
            self.count = series.count
            sources.strips.stream(self._columns(new), rollover=series.limit)
        patches = raster.patches(self.bases, self.head)
        if patches and raster.head != self.head:
            images = [
                ((p.tile, slice(0, ROWS), slice(p.first, p.last)), raster.tiles[p.tile][:, p.first : p.last].ravel())
                for p in patches
            ]
            changes: dict[str, list[Any]] = {"image": images}
            moved = [(i, base) for i, base in enumerate(raster.bases) if base != self.bases[i]]
            if moved:
                changes["base"] = moved
            sources.tiles.patch(changes)
            self.bases, self.head = list(raster.bases), raster.head

    def _picture(self, at: int | None) -> None:
        feed = self.feed
        picture = feed.picture
        if at is not None and feed.boot is not None:
            try:
                picture = feed.reader.picture(feed.boot.boot, feed.env, at)
            except StoreError as error:
                log.debug("no picture: %s", error)
        seen = ("", -1) if picture is None else (feed.boot.boot if feed.boot else "", picture.seq)
        if seen != self.picture:
            self.picture = seen
            uri = "" if picture is None else "data:image/jpeg;base64," + base64.b64encode(picture.data).decode("ascii")
            self.sources.picture.data = {"uri": [uri]}

    def _place(self) -> None:
        """Where the cursor is, for controls, timeline and canvases."""
        cursor, feed = self.cursor, self.feed
        clip = cursor.clip
        place: dict[str, Any] = {
            "live": clip is None, "n": self.answered, "behind": cursor.behind, "boundaries": self.drawing.boundaries,
            "newest": int(feed.window.last.seq[-1]) if feed.window else 0, "t": feed.newest_t, "boot": feed.boot.boot if feed.boot else "",
        }  # fmt: skip
        if clip is not None:
            place |= {"seq": clip.seq, "t": clip.t, "start": clip.start, "end": clip.end, "whole": clip.whole}
        if self._differs("place", place):
            self.sources.place.data = {"json": [json.dumps(place)]}

    def _slow(self, at: int | None) -> None:
        """What changes with seconds, and with the cursor."""
        feed = self.feed
        snapshot = self._snapshot(at)
        if self._differs("snapshot", (snapshot.id if snapshot else None, feed.rows, feed.metrics)):
            self.snapshot = snapshot
            names = {f: feed.label(f) for f in feed.rows}
            self.sources.cells.data = cells(snapshot, self.drawing.rows, self._metrics(), ROWS, names)
            self.panels.fit(len(self.drawing.rows), [feed.label(f) for f in self.drawing.rows], [plain(m, 21) for m in self._metrics()])
        if self._differs("quality", (feed.quality[-1] if feed.quality else None, len(feed.learning.points))):
            self.panels.draw_quality(self.sources, feed.quality, feed.learning.points, _quoted(feed))
        done = [e for e in feed.episodes if e.complete]
        if self._differs("episodes", done):
            self.panels.draw_episodes(self.sources, done)
        if self._differs("timeline", (feed.timeline.version, len(feed.lines), feed.boot)):
            marks = [[line.seq, line.kind, plain(line.text, 120)] for line in feed.lines if line.kind != "steady"]
            self.sources.timeline.data = {"json": [json.dumps({**feed.timeline.data, "marks": marks})]}

    def _metrics(self) -> tuple[str, ...]:
        """The heatmap's columns, as far as its snapshot knows them."""
        known = set(self.snapshot.metrics) if self.snapshot is not None else set()
        return tuple(m for m in self.feed.metrics if m in known)

    def _snapshot(self, at: int | None) -> Snapshot | None:
        """The correlations as they were known at the cursor."""
        feed = self.feed
        if at is None or feed.section is None:
            return feed.snapshot
        try:
            newest = feed.reader.snapshot_id(feed.section.id, until_seq=at + 1)
            if newest is None or (self.snapshot is not None and newest == self.snapshot.id):
                return None if newest is None else self.snapshot
            return feed.reader.snapshot(newest)
        except StoreError as error:
            log.debug("no correlations: %s", error)
            return self.snapshot

    def _state(self, at: int | None) -> None:
        """Texts, twice a second and whenever the state or the cursor changes: numbers that flicker cannot be read."""
        feed, drawing = self.feed, self.drawing
        fresh = feed.freshness()
        self.sent["freshness"] = fresh.state
        dictionary, manifest = feed.dictionary, feed.manifest
        quality = next((q for q in reversed(feed.quality) if at is None or q.first_seq <= at), None)
        speed = feed.window.steps_per_s if fresh.state == "LIVE" else None
        age = None if fresh.state == "ENDED" else feed.age_ms()
        names = {f: feed.label(f) for f in range(dictionary.features)} if dictionary else {}
        state = {
            "view": "running" if feed.window else "problem" if feed.problem else "empty" if feed.boot is None else "waiting",
            "state": fresh.state,
            "note": feed.problem or fresh.note,
            "db": str(feed.path),
            "text": {
                **header(manifest, dictionary, feed.ledger, quality, speed, age, feed.window.last if feed.window else None),
                **moment(manifest, self.cursor.moment(), self.cursor.returned()),
            },
            "stale": stale_reason(manifest, feed.section, dictionary),
            "flow": flow(feed.ledger),
            "vitals": vitals(feed.ledger, feed.non_finite),
            "rows": [
                {"name": names.get(f, ""), "duty": _percent(feed.duty.get(f, 0)), "said": said}
                for f, said in zip(drawing.rows, labels(drawing.rows, feed.explanations), strict=True)
            ],
            "pairs": pairs(drawing.pairs, PAIRS, self.snapshot, manifest, names),
            "neurons": dictionary is not None and dictionary.kind == "neurons",
            "envs": manifest.num_envs if manifest else 1, "env": feed.env,
            "sources": feed.sources, "source": feed.source_key,
            "lines": sentences(feed.lines, at, names),
            "scalars": scalars(feed.scalars),
            "has": {
                "features": bool(drawing.rows),
                "correlations": self.snapshot is not None,
                "metrics": bool(manifest and manifest.metrics),
                "picture": feed.picture is not None,
                "quality": any(q.fvu is not None for q in feed.quality),
                "episodes": any(e.complete for e in feed.episodes),
                "versions": len(feed.learning.points) > 1,
                "explainer": feed.explained,
                "lines": bool(feed.lines),
            },
        }  # fmt: skip
        text = json.dumps(state)
        if self._differs("state", text):
            self.sources.state.data = {"json": [text]}


def _quoted(feed: Feed) -> float:
    """FVU by the dictionary's card, NaN without one."""
    card = feed.dictionary.card if feed.dictionary else None
    quoted = card.get("fvu") if card else None
    return float(quoted) if isinstance(quoted, (int, float)) else math.nan


def application(hub: Hub) -> Callable[[Document], None]:
    """What Bokeh runs for each new session."""

    def open_page(document: Document) -> None:
        page = Page(document, hub)
        document.on_session_destroyed(lambda _: page.close())

    return open_page
