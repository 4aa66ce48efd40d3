"""Serving the page: Bokeh's server in code, at `/`, with all of its scripts from this machine; on loopback unless there is a token."""

from __future__ import annotations

import errno
import logging
import socket
import webbrowser
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from bokeh.application import Application
from bokeh.application.handlers.function import FunctionHandler
from bokeh.document import Document
from bokeh.server.server import Server
from bokeh.settings import settings
from tornado.httputil import HTTPServerRequest
from tornado.ioloop import IOLoop, PeriodicCallback

from interlatent_live.stream.errors import EndpointError, EndpointInUse
from interlatent_live.viewer.access import Access
from interlatent_live.viewer.answers import routes
from interlatent_live.viewer.finding import Finder
from interlatent_live.viewer.hand import Reach
from interlatent_live.viewer.hub import Hub
from interlatent_live.viewer.line import Line
from interlatent_live.viewer.offer import Starter
from interlatent_live.viewer.page import application
from interlatent_live.viewer.writing import Writing

__all__ = ["DEFAULT_PORT", "serve"]

log = logging.getLogger(__name__)
DEFAULT_PORT: Final = 5580
_STOP_MS: Final = 100


class _Door(FunctionHandler):
    """Makes the page, and notes in each new session what who asked for it may do."""

    def __init__(self, func: Callable[[Document], None], access: Access) -> None:
        super().__init__(func)
        self._access = access

    def process_request(self, request: HTTPServerRequest) -> dict[str, Any]:
        """For the session's signed payload."""
        return self._access.payload(request)


def _closed_tab(record: logging.LogRecord) -> bool:
    """A message that was on its way when a tab was closed is no reason for a warning."""
    return "connection was closed" not in record.getMessage()


def serve(
    db: Path,
    *,
    port: int = DEFAULT_PORT,
    address: str = "127.0.0.1",
    token_file: Path | None = None,
    origins: Sequence[str] = (),
    open_browser: bool = False,
    stop: Callable[[], bool] = lambda: False,
    on_ready: Callable[[str], None] = lambda url: None,
    starter: Starter | None = None,
    reach: Reach | None = None,
    looking_file: Path | None = None,
    read_only: bool = False,
) -> None:
    """Serve the page of a database, which may appear later, until `stop()`. `port` 0 takes a free one; `on_ready` gets the URL.
    `starter`: what the page's button to learn a dictionary calls; without it there is no button. `read_only`: take no names or notes.

    `token_file`, `origins`, `looking_file`: what an address beyond this machine needs, and a token for looking alone: see `Access`.
    `reach`: what the page may steer the agent with; None: it only looks.

    Raises EndpointInUse where the port is taken, and EndpointError for an address beyond this machine without a token, saying
    what would be safe.
    """
    access = Access.decide(address, port, token_file, origins, looking_file)
    settings.resources = "server"
    logging.getLogger("bokeh.server.views.ws").addFilter(_closed_tab)
    try:
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:  # Bokeh leaks its own on failure
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((address, port))
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise EndpointInUse(f"port {port} of {address} is taken; name another with --port, or 0 for a free one") from error
        raise EndpointError(f"the page cannot be served at {address}:{port}: {error.strerror}") from error
    hub, finder, writing = Hub(db, starter, reach), Finder(db), Writing(db, read_only)
    handler = _Door(application(hub), access)
    loop = IOLoop()
    try:
        server = Server(
            {"/": Application(handler)}, io_loop=loop, port=port, address=address, num_procs=1,
            check_unused_sessions_milliseconds=2_000, unused_session_lifetime_milliseconds=15_000,
            keep_alive_milliseconds=10_000, **access.options(reach is not None),
            extra_patterns=[*routes(finder, access, writing), ("/line", Line, {"hub": hub, "access": access})],
        )  # fmt: skip
    except OSError as error:
        loop.close()
        finder.close()
        writing.close()
        raise EndpointError(f"the page cannot be served at {address}:{port}: {error.strerror}") from error
    url = f"http://{f'[{address}]' if ':' in address else address}:{server.port}/"

    def check() -> None:
        if stop():
            loop.stop()

    server.start()
    on_ready(url)
    if open_browser:
        loop.add_callback(webbrowser.open, url)
    watcher = PeriodicCallback(check, _STOP_MS)
    watcher.start()
    try:
        loop.start()
    finally:
        watcher.stop()
        server.stop()
        server.unlisten()
        hub.close()
        finder.close()
        writing.close()
        loop.close(all_fds=True)
