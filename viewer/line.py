"""One browser's line: what the page draws by itself goes out as one binary message a step, beside Bokeh's own connection.

Bokeh tells its browser of every change of a model by itself: names it against all models of the document, in five parts, each
written to the socket. At twenty steps a second that was half of what a page cost its server. Bokeh still carries the document,
its figures and the browser's commands.

    message = length of the head (uint32, little-endian) | head | 0 … 7 bytes, so that what follows begins at a multiple of 8 | parts

The head is JSON: [name, column, kind, bytes] for each part, kind "t" for text in UTF-8 and "b" for bytes; every part begins at a
multiple of 8. `line.js` takes it apart. A browser that is slow to read is sent nothing meanwhile; what is new waits where it is.
"""

from __future__ import annotations

import json
import logging
from asyncio import Future
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from tornado.ioloop import IOLoop
from tornado.web import HTTPError
from tornado.websocket import WebSocketClosedError, WebSocketHandler

from interlatent_live.viewer.access import Access

if TYPE_CHECKING:
    from interlatent_live.viewer.hub import Hub
    from interlatent_live.viewer.page import Page

__all__ = ["HIDDEN_S", "PERIOD_S", "Line", "packed"]

log = logging.getLogger(__name__)
PERIOD_S: Final = 0.05
"""Between two steps of a page."""
HIDDEN_S: Final = 1.0
"""The same for a tab that nobody sees: its title and its state go on."""
Parts = Mapping[str, Mapping[str, str | bytes]]


def packed(parts: Parts) -> bytes:
    """A message: `parts` by name and column."""
    head: list[tuple[str, str, str, int]] = []
    body: list[bytes] = []
    for name, columns in parts.items():
        for column, value in columns.items():
            part = value.encode() if isinstance(value, str) else value
            head.append((name, column, "t" if isinstance(value, str) else "b", len(part)))
            body += part, bytes(-len(part) % 8)
    text = json.dumps(head, separators=(",", ":")).encode()
    return b"".join((len(text).to_bytes(4, "little"), text, bytes(-(4 + len(text)) % 8), *body))


class Line(WebSocketHandler):
    """`/line?page=…`: opened by a page's script with the name that its own document told it, which nobody can guess."""

    def initialize(self, hub: Hub, access: Access) -> None:
        """Tornado's constructor."""
        self.hub, self.access = hub, access
        self.page: Page | None = None
        self._period_s, self._due = PERIOD_S, 0.0
        self._sent: Future[None] | None = None

    def prepare(self) -> None:
        """Nobody who may not see the page."""
        if not self.access.admits(self):
            raise HTTPError(403)

    def check_origin(self, origin: str) -> bool:
        """From the page's own host, or a host that was named."""
        return super().check_origin(origin) or urlsplit(origin).netloc in self.access.origins

    def open(self, *_: str, **__: str) -> None:
        """Find the page, tell it, and begin its steps."""
        self.page = self.hub.pages.get(self.get_query_argument("page", ""))
        if self.page is None:
            self.close(4404, "no such page")
            return
        self.set_nodelay(True)
        self.page.opened(self)
        self._loop = IOLoop.current()
        self._due = self._loop.time()
        self._next()

    def _next(self) -> None:
        now = self._loop.time()
        self._due = max(self._due + self._period_s, now)  # what a stall swallowed is not made up for
        self._timeout = self._loop.call_at(self._due, self._step)

    def _step(self) -> None:
        if self.page is not None:
            self._next()
            self.page.tick()

    def on_message(self, message: str | bytes) -> None:
        """The browser says one thing only: whether its tab is seen."""
        if self.page is None or message not in ("seen", "hidden"):
            return
        self._period_s = PERIOD_S if message == "seen" else HIDDEN_S
        self._loop.remove_timeout(self._timeout)
        self._due = self._loop.time() - self._period_s
        self._next()

    def leave(self) -> None:
        """The page is no more."""
        self.on_close()
        self.close()

    def on_close(self) -> None:
        """The browser went away."""
        if self.page is not None:
            self._loop.remove_timeout(self._timeout)
            page, self.page = self.page, None
            page.closed(self)

    @property
    def busy(self) -> bool:
        """Whether what was sent has still to be read."""
        return self._sent is not None and not self._sent.done()

    def send(self, parts: Parts) -> None:
        """One message; of one that is closing nothing is said."""
        try:
            self._sent = self.write_message(packed(parts), binary=True)
            self._sent.add_done_callback(_taken)
        except WebSocketClosedError:
            log.debug("a tab was closed while it was told something")


def _taken(sent: Future[None]) -> None:
    """A tab that was closed before it had read all is no error."""
    if not sent.cancelled():
        sent.exception()
