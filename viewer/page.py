"""One session: one browser tab, kept in step with a shared feed and its own cursor every 50 ms, once its line is open."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

import numpy as np
from bokeh.document import Document
from bokeh.models import CustomJS

from interlatent_live.analyzer.records import Snapshot
from interlatent_live.stream.errors import StoreError
from interlatent_live.viewer import panels
from interlatent_live.viewer.access import let_in
from interlatent_live.viewer.assets import template
from interlatent_live.viewer.cursor import Cursor
from interlatent_live.viewer.drawer import Drawer
from interlatent_live.viewer.drawing import ROWS, SPAN_S, Drawing
from interlatent_live.viewer.feed import METRICS, Feed
from interlatent_live.viewer.heatmap import cells
from interlatent_live.viewer.hub import Hub
from interlatent_live.viewer.increments import Increments
from interlatent_live.viewer.line import Line
from interlatent_live.viewer.offer import offer, told
from interlatent_live.viewer.pair import PairView
from interlatent_live.viewer.prompt_box import PromptBox
from interlatent_live.viewer.sheet import sheet
from interlatent_live.viewer.state import features, state
from interlatent_live.viewer.text import plain
from interlatent_live.viewer.text_panel import Texts
from interlatent_live.viewer.theme import GLYPHS, bokeh_theme
from interlatent_live.viewer.view import MAX_PINS, TABS, View, pair_of, pin_of, reach_of
from interlatent_live.viewer.watched import watch_mark
from interlatent_live.viewer.why import STALE_S, why

__all__ = ["Page", "application"]

log = logging.getLogger(__name__)
_HELD_S: Final = 60.0
"""How long pointing at rows keeps them; a pointer that was left there does not stop them for ever."""
_TEMPLATE: Final = template()
_THEME: Final = bokeh_theme()


class Page:
    """The models of one document and what they last saw of the feed."""

    def __init__(self, document: Document, hub: Hub, view: View, steers: bool = False) -> None:
        """`steers`: whether this browser may steer, where the page's server can."""
        self.hub = hub
        self.pins, self.tab, self.note = view.pins, view.tab, ""
        self.wanted: View | None = view
        """The view of the address, until there are frames to open it on."""
        self.shade = view.shade
        """Feature that shades a language model's text."""
        self.pair = view.pair
        """Two texts that are looked at side by side, see `View.pair`."""
        self.reach = view.reach
        """What the drawer's form holds; None: it is closed."""
        self.held_until = 0.0
        self.greeted = False
        """Whether the browser has taken the whole and now needs what is new alone."""
        self.name = secrets.token_urlsafe(16)
        """Shown to this document alone: who knows it may open its line."""
        self.line: Line | None = None
        """Where what is new goes; None while the browser is loading, when it goes into the document."""
        self._parts: dict[str, dict[str, str | bytes]] = {}
        """What the next message tells."""
        self._figures: list[Callable[[], None]] = []
        """Changes of Bokeh's figures that wait for their document."""
        self._document = document
        self.answered = -1
        self.sources = panels.Sources()
        self.panels = panels.build(self.sources, ROWS, METRICS)
        self.drawer = Drawer(self.sources.asks, self.tell, hub.reach, steers)
        self.box = PromptBox(self.tell, hub.reach, steers)
        self._look_at(hub.take(view.env, view.source, view.boot), view.speed)
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
        hub.pages[self.name] = self

    def _look_at(self, feed: Feed, speed: float) -> None:
        self.feed, self.cursor = feed, Cursor(feed, speed)
        self.slow = -1
        self.live: Drawing = feed.drawing
        """What is drawn while live."""
        self.increments = Increments()
        self.texts = Texts(feed)
        self.pairs = PairView(feed)
        self.picture: tuple[str, int] = ("", -1)
        self.snapshot: Snapshot | None = None
        self.sent: dict[str, Any] = {}

    def _wire(self) -> CustomJS:
        """Hand the browser what it draws by itself: texts, the picture, raster and strips, the timeline, and the colours."""
        own, written = self.sources.own(), {"control": self.sources.control, "asks": self.sources.asks}
        self.panels.heatmap.tags = [*own.values(), *written.values()]  # no figure draws them; only what a root refers to is kept in step
        models: dict[str, Any] = {**own, **written, "cells": self.sources.cells, "span": SPAN_S, "height": ROWS, "glyphs": GLYPHS}
        models["line"] = self.name
        roles = {"models": [m for m, _, _ in self.panels.roles], "roles": [[attr, role] for _, attr, role in self.panels.roles]}
        for name, source in own.items():
            source.js_on_change("data", CustomJS(code=f"window.ilive.{name}(cb_obj)"))
        names = ", ".join([*models, *roles])
        return CustomJS(args={**models, **roles}, code=f"window.ilive.ready({{{names}}})")

    def close(self) -> None:
        """The session ended."""
        self.drawer.close()
        self.box.close()
        self.hub.pages.pop(self.name, None)
        if self.line is not None:
            self.line.leave()
        self.hub.drop(self.feed)

    # its line

    def opened(self, line: Line) -> None:
        """The browser listens: tell it the whole, then what is new alone."""
        self.line, self.greeted = line, False
        self.slow, self.picture, self.sent = -1, ("", -1), {}
        self.drawer.again()
        self.box.again()
        self.tick()
        self.greeted = True

    def closed(self, line: Line) -> None:
        """It listens no more."""
        if self.line is line:
            self.line = None

    def tell(self, what: str, /, **columns: str | bytes) -> None:
        """What page.js draws under this name; it goes out at the end of the step."""
        if self.line is not None:
            self._parts[what] = dict(columns)
            return
        source = getattr(self.sources, what)
        source.data = {c: [np.frombuffer(v, np.uint8) if isinstance(v, bytes) else v] for c, v in columns.items()}

    def _figure(self, change: Callable[[], None]) -> None:
        """Change a figure of Bokeh's, which may only be done while its document is held."""
        if self.line is None:
            change()
            return
        if not self._figures:
            self._document.add_next_tick_callback(self._change_figures)
        self._figures.append(change)

    def _change_figures(self) -> None:
        changes, self._figures = self._figures, []
        for change in changes:
            change()

    # commands

    def _obey(self, _attr: str, _old: Any, new: Mapping[str, Any]) -> None:
        """What the browser's controls ask; several may come at once."""
        try:
            for command in json.loads(new["json"][0] or "[]"):
                self._do(command)
                self.answered = int(command.get("n", self.answered))
        except StoreError as error:  # a locked moment: the browser shows that nothing came, and asks again
            log.debug("not obeyed: %s", error)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError) as error:
            log.debug("a command that makes no sense: %s", error)
        self._show(hurried=not self.cursor.live)

    def _do(self, command: Mapping[str, Any]) -> None:
        op = command["op"]
        if op == "look":
            self._change(command)
        elif op == "hold":
            self.held_until = time.monotonic() + _HELD_S if command["on"] else 0.0
        elif op == "tab" and command["to"] in TABS:
            self.tab = command["to"]
        elif op == "pin":
            self._pin(str(command["what"]))
        elif op == "shade":
            self._shade(command["feature"])
        elif op == "ask":
            feature = self.box.obey(command, self.feed)
            self.shade = self.shade if feature is None else feature
        elif op == "pair":
            self.pair = pair_of(command["to"])
        elif op == "reach":
            self.reach = reach_of(command["to"])
        elif op == "prompt":
            self._go_to_prompt(int(command["to"]))
        elif op == "csv":
            self._csv()
        elif op == "learn":
            self._learn()
        elif op == "live" and not self.feed.newest:
            self._change({"boot": None, "at": None})
        else:
            self.cursor.obey(command, self.live)

    def _shade(self, feature: Any) -> None:
        """Shade the text by a feature; None: each token by its strongest."""
        most = self.feed.dictionary.features if self.feed.dictionary is not None else 0
        self.shade = feature if isinstance(feature, int) and 0 <= feature < most else None

    def _go_to_prompt(self, prompt: int) -> None:
        """Go to a prompt's first token, in another row of the batch if it is there."""
        place = self.texts.first_seq(prompt)
        if place is not None and place[0] != self.feed.env:
            self._change({"env": place[0], "at": place[1]})
        elif place is not None:
            self.cursor.obey({"op": "seek", "to": place[1]}, self.live)

    def _learn(self) -> None:
        """Start what is offered; the browser says only that it is wanted."""
        made = offer(self.feed.manifest, self.feed.origin, self.feed.path)
        shown = told(self.feed, self.hub.starter)
        if made is not None and shown is not None and shown["start"] and self.hub.starter is not None:
            self.hub.starter(made.words)
        self.slow = -1

    def _pin(self, what: str) -> None:
        """Pin or unpin; the slow panels follow."""
        pin = pin_of(what)
        if pin in self.pins:
            self.pins = tuple(p for p in self.pins if p != pin)
        elif pin is not None and len(self.pins) < MAX_PINS:
            self.pins = (*self.pins, pin)
        elif pin is not None:
            self.note = f"{MAX_PINS} strips are pinned; unpin one first"
        self.held_until, self.slow = 0.0, -1

    def _change(self, command: Mapping[str, Any]) -> None:
        """Look at another start, environment or source of features; the cursor stays at its frame if there is one."""
        feed = self.feed
        source, boot = command.get("source") or feed.source, command.get("boot", feed.wanted)
        env, most = int(command.get("env", feed.env)), feed.manifest.num_envs if feed.manifest else 1
        known = {b.boot for b in feed.boots[:-1]}
        if not 0 <= env < most or (source is not None and source not in feed.sources):
            return
        clip = self.cursor.clip if boot == feed.wanted else None
        at = command.get("at", None if clip is None else clip.seq - feed.env + env)  # the same step of another environment
        before, speed = feed, self.cursor.speed
        taken = self.hub.take(env, source, boot if boot in known else None)
        self._look_at(taken, speed)
        self.hub.drop(before)
        self.feed.pull()
        if source != before.source:
            self.shade = None  # features of another dictionary
        self.wanted = View(at=at, speed=speed, pins=self.pins, tab=self.tab, shade=self.shade, pair=self.pair, reach=self.reach)
        self._open()

    def _open(self) -> None:
        """Go where the address points, as soon as there are frames."""
        if self.wanted is None or not self.feed.window:
            return
        view = self.wanted
        boot = self.feed.boot.boot if self.feed.boot else ""
        if view.boot is not None and view.boot != boot:
            self.note = "this database does not hold the start of the agent that the address names; the newest is shown"
        elif view.at is not None:
            self.cursor.obey({"op": "seek", "to": view.at}, self.live)
            if view.playing:
                self.cursor.obey({"op": "play"}, self.live)
            if view.loop is not None:
                self.cursor.loop = view.loop
        self.wanted = None  # not before: a database that is locked for a moment is asked again with the next step

    @property
    def view(self) -> View:
        """What is looked at now."""
        if self.wanted is not None:
            return dataclasses.replace(self.wanted, pins=self.pins, tab=self.tab, shade=self.shade, pair=self.pair, reach=self.reach)
        clip, feed = self.cursor.clip, self.feed
        boot = feed.boot.boot if feed.boot and (clip is not None or not feed.newest) else None
        return View(
            boot=boot, env=feed.env, source=feed.source, at=None if clip is None else clip.seq, playing=self.cursor.playing,
            speed=self.cursor.speed, loop=self.cursor.loop, pins=self.pins, tab=self.tab,
            shade=self.shade, pair=self.pair, reach=self.reach,
        )  # fmt: skip

    def _csv(self) -> None:
        """Send the frames in sight as a table."""
        clip, feed = self.cursor.clip, self.feed
        frames = feed.frames() if clip is None else clip.frames
        if frames is None or feed.manifest is None:
            return
        drawing = self.cursor.drawing(self.live)
        end = (feed.newest_t or 0.0) if clip is None else clip.end
        text = sheet(frames, end - SPAN_S, end, drawing, feed.manifest, {f: feed.label(f) for f in drawing.shown})
        self.tell("file", name=f"{feed.manifest.run}-{int(frames.seq[-1])}.csv", text=text)

    # one step

    def tick(self) -> None:
        """Bring the page up to the feed and its cursor."""
        if self.line is not None and self.line.busy:
            return  # what is new waits where it is
        self.feed.pull()
        try:
            if self.cursor.lost and self.cursor.clip is not None:  # the agent was started again: stay with what is looked at
                self._change({"boot": self.cursor.boot, "at": self.cursor.clip.seq})
            self._open()
            self.cursor.tick()
        except StoreError as error:
            log.debug("the past could not be read: %s", error)
        self._show()

    def _show(self, *, hurried: bool = False) -> None:
        """Send what changed. `hurried`: what follows the cursor closely now, the rest with the next step."""
        feed, cursor = self.feed, self.cursor
        staying = not cursor.live or time.monotonic() < self.held_until
        if not (staying and feed.grows(self.live) and self.live.pairs == feed.strips(self.pins, self.live.pairs)):
            self.live = feed.drawn(self.pins, self.live if staying else None)
        drawing = cursor.drawing(self.live)
        at = None if cursor.clip is None else cursor.clip.seq
        moved = self._differs("at", (at, feed.env, feed.source, feed.boot.boot if feed.boot else ""))
        if moved or cursor.live:
            self._picture(at)
            self._why(at)
        self._text()
        if moved or self.slow != feed.slow or self.sent.get("freshness") != feed.freshness().state:
            if hurried or (moved and cursor.playing and self.slow == feed.slow and not self._due()):
                self.slow = self.slow if cursor.playing else -1
            else:
                self.slow = feed.slow
                self._slow(at, drawing)
            self._state(drawing)
        self._frames(drawing)
        self.drawer.show(feed, at)
        if self.line is not None and self._parts:
            self.line.send(self._parts)
            self._parts = {}

    def _due(self) -> bool:
        """Twice a second: texts and figures that follow the cursor while it plays."""
        now = time.monotonic()
        if now - float(self.sent.get("due", 0.0)) < 0.5:
            return False
        self.sent["due"] = now
        return True

    def _differs(self, name: str, value: Any) -> bool:
        """Whether it is another value than the one sent last."""
        if name in self.sent and self.sent[name] == value:
            return False
        self.sent[name] = value
        return True

    def _frames(self, drawing: Drawing) -> None:
        """New lines and columns, and where the cursor is: one message."""
        cursor, feed = self.cursor, self.feed
        clip = cursor.clip
        place: dict[str, Any] = {
            "live": clip is None, "n": self.answered, "behind": cursor.behind, "boundaries": drawing.boundaries, "loop": cursor.loop,
            "newest": int(feed.window.last.seq[-1]) if feed.window else 0, "t": feed.newest_t, "wall": (feed.newest_wall_ns or 0) / 1e6,
            "playing": cursor.playing, "speed": cursor.speed, "view": self.view.query(), "tab": self.tab, "last": feed.newest,
        }  # fmt: skip
        if clip is not None:
            place |= {"seq": clip.seq, "t": clip.t, "start": clip.start, "end": clip.end, "whole": clip.whole}
        made = self.increments.take(drawing, whole=not self.greeted)
        if self._differs("place", place) or made.new:
            place |= {"now": time.time() * 1e3, **made.about}
            self.tell("frames", bytes=made.body, json=json.dumps(place))

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
            self.tell("picture", jpeg=b"" if picture is None else picture.data)

    def _why(self, at: int | None) -> None:
        """Why the action at the cursor was taken, by the last explained frame up to it."""
        feed, moment = self.feed, self.cursor.moment()
        if feed.boot is None or feed.manifest is None or moment is None:
            return
        try:
            row = feed.reader.attribution(feed.boot.boot, feed.env, at)
        except StoreError as error:
            log.debug("no attribution: %s", error)
            return
        age_s = None
        if row is not None:
            piece, frame = moment
            age_s = float(piece.t[frame]) - (row.monotonic_ns - feed.manifest.started_monotonic_ns) / 1e9
        if age_s is not None and age_s <= STALE_S and self.cursor.live:
            age_s = 0.0  # it is always a moment old: a number that flickers cannot be read
        shown = None if age_s is None else round(age_s, 2) if age_s <= STALE_S else round(age_s)  # a stale one grows old by seconds
        if not self._differs("why", (row and row.seq, shown, len(feed.explanations), feed.source_key)):
            return
        dictionary = feed.dictionary
        ours = dictionary is not None and (row is None or row.dictionary == dictionary.hash)
        labels = {f: e.label or "" for f, e in feed.explanations.items()} if ours else {}
        fits = dictionary is not None and dictionary.kind != "neurons"
        data = why(row, age_s, {}, labels, fits=fits, name=dictionary.name if dictionary else "")
        self.tell("why", json=json.dumps(data))

    def _text(self) -> None:
        """A language model's tokens about the cursor, and its prompts."""
        feed, dictionary = self.feed, self.feed.dictionary
        shade = self.shade if dictionary is not None and self.shade is not None and self.shade < dictionary.features else None
        try:
            made = self.texts.message(self.cursor.moment(), shade, whole=not self.greeted)
            listed = self.texts.prompts() if self._differs("prompts", (feed.slow, feed.boot and feed.boot.boot)) else []
        except StoreError as error:
            log.debug("no text: %s", error)
            return
        if made is not None:
            self.tell("tokens", json=json.dumps(made))
        self._beside(shade)
        if listed and self._differs("listed", listed):
            self.tell("prompts", json=json.dumps(listed))

    def _beside(self, shade: int | None) -> None:
        """Two texts side by side, and the box that asks for them."""
        began = self.box.show(self.feed)
        self.pair = self.pair if began is None else began
        try:
            beside = self.pairs.message(self.pair, shade, whole=not self.greeted)
        except StoreError as error:
            log.debug("no pair: %s", error)
            return
        if beside is not None:
            self.tell("pair", json=json.dumps(beside))

    def _slow(self, at: int | None, drawing: Drawing) -> None:
        """What changes with seconds, and with the cursor."""
        feed = self.feed
        snapshot = self._snapshot(at)
        if self._differs("snapshot", (snapshot.id if snapshot else None, drawing.rows, feed.metrics)):
            self.snapshot = snapshot
            names = {f: feed.label(f) for f in drawing.rows}
            self._figure(partial(self._heatmap, snapshot, drawing.rows, self._metrics(), names))
        if self._differs("quality", (feed.quality[-1] if feed.quality else None, len(feed.learning.points))):
            found = feed.quality, list(feed.learning.points), _quoted(feed)
            self._figure(partial(self.panels.draw_quality, self.sources, *found))
        done = [e for e in feed.episodes if e.complete]
        if self._differs("episodes", done):
            self._figure(partial(self.panels.draw_episodes, self.sources, done))
        if self._differs("timeline", (feed.timeline.version, len(feed.lines), feed.boot, len(feed.watched))):
            marks = [[line.seq, line.kind, plain(line.text, 120), line.time_s] for line in feed.lines if line.kind != "steady"]
            marks += [watch_mark(w) for w in feed.watched]
            self.tell("timeline", json=json.dumps({**feed.timeline.data, "marks": marks}))
        if self.tab == "features":
            text = json.dumps(features(feed, self.pins))
            if self._differs("features", text):
                self.tell("features", json=text)

    def _heatmap(self, snapshot: Snapshot | None, rows: Sequence[int], metrics: Sequence[str], names: Mapping[int, str]) -> None:
        self.sources.cells.data = cells(snapshot, rows, metrics, ROWS, names)
        self.panels.fit(len(rows), [names[f] for f in rows], [plain(m, 21) for m in metrics])

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

    def _state(self, drawing: Drawing) -> None:
        """Texts, twice a second and whenever the state or the cursor changes: numbers that flicker cannot be read."""
        self.sent["freshness"] = self.feed.freshness().state
        learn = told(self.feed, self.hub.starter)
        text = json.dumps(state(self.feed, self.cursor, drawing, self.snapshot, self.pins, self.note, learn))
        if self._differs("state", text):
            self.tell("state", json=text)


def _quoted(feed: Feed) -> float:
    """FVU by the dictionary's card, NaN without one."""
    card = feed.dictionary.card if feed.dictionary else None
    quoted = card.get("fvu") if card else None
    return float(quoted) if isinstance(quoted, (int, float)) else math.nan


def application(hub: Hub) -> Callable[[Document], None]:
    """What Bokeh runs for each new session."""

    def open_page(document: Document) -> None:
        context = document.session_context
        request: Any = getattr(context, "request", None)  # set by the server, unknown to its types
        arguments = request.arguments if request is not None else {}
        page = Page(document, hub, View.read(arguments), let_in(context))
        document.on_session_destroyed(lambda _: page.close())

    return open_page
