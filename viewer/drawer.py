"""One tab's drawer "Reach in": takes what the browser asks, and keeps the browser up to date.

What steers comes over the tab's own websocket, whose origin the server has checked, and from a tab that was let in: an address
can fill in the form, and nothing more.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from typing import Any

from bokeh.models import ColumnDataSource

from interlatent_live.stream.errors import InterlatentError, StoreError
from interlatent_live.stream.manifest import ControlSpec
from interlatent_live.viewer.feed import Feed
from interlatent_live.viewer.hand import Asked, Hand, Reach
from interlatent_live.viewer.reach import blocked, drawer, earlier, form, in_force, stoppable

__all__ = ["Drawer"]

log = logging.getLogger(__name__)


class Drawer:
    """Of one document. `asks` is written by the browser; `tell` is `Page.tell`: the browser draws `reach` and `reached`."""

    def __init__(self, asks: ColumnDataSource, tell: Callable[..., None], reach: Reach | None, allowed: bool) -> None:
        self._tell, self._reach = tell, reach
        self.hand = Hand(reach) if reach is not None and allowed else None
        self._feed: Feed | None = None
        self._open = False
        self._form: Mapping[str, Any] | None = None
        """What the form holds, as the browser told it last."""
        self._seen: tuple[Any, ...] = ()
        self._sent = self._sent_past = ""
        self._done = 0
        asks.on_change("data", self._obey)

    def close(self) -> None:
        """The session ended."""
        if self.hand is not None:
            self.hand.close()

    def show(self, feed: Feed, at: int | None) -> None:
        """Send what changed. `at`: frame at the cursor, None while live."""
        self._feed = feed
        told = None if self.hand is None else self.hand.told
        seen = feed.slow, feed.boot and feed.boot.boot, feed.source_key, feed.steered.version, told and told.version, at
        if seen == self._seen:
            return
        self._seen = seen
        if self.hand is not None:
            self.hand.aim(*_target(feed))
        why = blocked(feed, reached=self._reach is not None, allowed=self.hand is not None, told=told)
        acting, measuring = in_force(feed, told)
        data: dict[str, Any] = {
            "may": self.hand is not None, "usable": why is None, "acting": acting, "measuring": measuring,
            "stop": self.hand is not None and stoppable(feed),
        }  # fmt: skip
        data |= drawer(feed, told, at, why, whole=self._open)
        if self._open and self._form is not None:
            data["form"] = form(feed, told, self._form)
        text = json.dumps({name: value for name, value in data.items() if name != "now"})
        if text != self._sent:
            self._sent = text
            self._tell("reach", json=json.dumps(data))
        if self._open:
            past = json.dumps(earlier(feed, told))
            if past != self._sent_past:
                self._sent_past = past
                self._tell("reached", json=past)

    def again(self) -> None:
        """Somebody listens anew: tell the whole."""
        self._seen, self._sent, self._sent_past = (), "", ""

    # what the browser asks

    def _obey(self, _attr: str, _old: Any, new: Mapping[str, Any]) -> None:
        try:
            commands = json.loads(new["json"][0] or "[]")
            for command in commands if isinstance(commands, list) else []:
                self._do(command)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError) as error:
            log.debug("asked for something that makes no sense: %s", error)
        if self._feed is not None:
            self._seen = ()

    def _do(self, command: Mapping[str, Any]) -> None:
        op, n, hand = command["op"], int(command.get("n", 0)), self.hand
        if op == "open":
            self._open = bool(command["on"])
            if hand is not None:
                hand.look(self._open)
        elif op == "form":
            self._form = command
        elif hand is None:
            log.debug("%s was asked for by a page that may not", op)
        elif op == "beat":
            hand.beat()
        elif n <= self._done:
            log.debug("asked for twice: %s", op)  # a message that came again begins nothing again
        else:
            self._done = n
            self._act(hand, op, n, command)

    def _act(self, hand: Hand, op: str, n: int, command: Mapping[str, Any]) -> None:
        if op == "all":
            hand.release_all(n)
        elif op == "release":
            hand.release(str(command["id"]), n)
        elif op in ("try", "apply"):
            feed = self._feed
            if feed is None or feed.dictionary is None:
                hand.answer(n, "form", False, "There is no dictionary whose feature could be steered.")
                return
            try:
                asked = Asked.of(command, feed.dictionary.hash)
            except InterlatentError as error:
                hand.answer(n, "form", False, str(error))
                return
            except (KeyError, TypeError, ValueError, OverflowError):
                hand.answer(n, "form", False, "A feature, a strength and a time are needed, as numbers.")
                return
            if op == "apply" and asked.key not in hand.told.trials and command.get("unmeasured") is not True:
                hand.answer(n, "form", False, "What this does was not measured yet: try it in shadow first.")
                return
            hand.steer(asked, op == "try", n)


def _target(feed: Feed) -> tuple[str, ControlSpec | None]:
    """The agent's newest start, whichever is looked at, and where it takes requests."""
    if not feed.boots or feed.boot is None or feed.origin.get("recording"):
        return "", None
    manifest = feed.manifest
    if not feed.newest:
        try:
            hash = feed.boots[-1].manifest_hash
            manifest = feed.reader.manifest(hash) if hash else None
        except StoreError:
            manifest = None
    return feed.boots[-1].boot, manifest.control if manifest is not None else None
