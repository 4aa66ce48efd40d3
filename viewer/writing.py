"""The page's only way to write: what people call features, and notes about them. Never by GET, never for another site.

1. A request is POST with JSON, which no form of another site can send, from the origin of the page itself. Where there is a token, its
   cookie comes along; else the page answers under the names of this machine alone.
2. A browser is known by a random cookie that it gets with its first note; the database keeps its hash. Its notes are its own to change.
3. One thread writes, one row at a time, so a database that is held by another keeps nobody else waiting; it says what holds it.
"""

from __future__ import annotations

import asyncio
import getpass
import hashlib
import json
import secrets
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from tornado.web import RequestHandler

from interlatent_live.explainer.notes import MAX_AUTHOR, MAX_TEXT, Notes, unwritable
from interlatent_live.stream.errors import NoteError
from interlatent_live.viewer.access import Access

__all__ = ["MAX_BODY", "PEN", "Writing", "foreign", "owner_of", "read_body"]

PEN: Final = "interlatent-live-pen"
"""The cookie by which a browser's own notes are known."""
PEN_DAYS: Final = 400
MAX_BODY: Final = 64 << 10


class Writing:
    """What may be written to one database, and by whom it is done."""

    def __init__(self, path: Path, read_only: bool = False) -> None:
        self.path, self.read_only = Path(path), read_only
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="writing")

    def close(self) -> None:
        """Finish what is being written."""
        self._pool.shutdown(wait=True)

    def why_not(self) -> str | None:
        """Why nothing can be written, in a sentence; None where it can."""
        if self.read_only:
            return "This page was opened with --read-only: it writes no names and no notes."
        return unwritable(self.path)

    def about(self, access: Access) -> dict[str, Any]:
        """What the browser is told of it: why not, how long texts may be, and a name to sign with on this machine alone."""
        author = ""
        if access.token is None:
            try:
                author = getpass.getuser()
            except (OSError, KeyError):  # a user without a name
                author = ""
        return {"why": self.why_not(), "author": author[:MAX_AUTHOR], "text": MAX_TEXT}

    async def write(self, dictionary_hash: str, feature: int, command: Mapping[str, Any], owner: str) -> None:
        """Do what was asked. Raises NoteError for what cannot be kept, StoreError where the file cannot be written just now."""
        await asyncio.wrap_future(self._pool.submit(self._write, dictionary_hash, feature, command, owner))

    def _write(self, dictionary_hash: str, feature: int, command: Mapping[str, Any], owner: str) -> None:
        do, author = command.get("do"), _text(command, "author")
        with Notes(self.path) as notes:
            if do == "name":
                label = command.get("label")
                notes.name(dictionary_hash, feature, None if label is None else _text(command, "label"), author=author)
            elif do == "undo":
                notes.undo(dictionary_hash, feature, author=author)
            elif do == "add":
                notes.add(dictionary_hash, feature, _text(command, "text"), author=author, owner=owner)
            elif do == "edit":
                notes.edit(_number(command), _text(command, "text"), owner=owner)
            elif do == "delete":
                notes.delete(_number(command), owner=owner)
            else:
                raise NoteError(f"{str(do)[:40]!r} cannot be done; there is name, undo, add, edit and delete")


def foreign(handler: RequestHandler, access: Access) -> str | None:
    """Why a request to write is refused as another site's, or None: it comes from this page."""
    headers = handler.request.headers
    origin = urlsplit(headers.get("Origin", ""))
    here = origin.scheme in ("http", "https") and (origin.netloc == handler.request.host or origin.netloc in access.origins)
    if not here or headers.get("Sec-Fetch-Site", "same-origin") != "same-origin":
        return "Only this page itself may write; this request comes from elsewhere."
    if headers.get("Content-Type", "").split(";")[0].strip().lower() != "application/json":
        return "What is to be written comes as application/json."
    return None


def read_body(handler: RequestHandler) -> Mapping[str, Any]:
    """The request as a map. Raises NoteError."""
    if len(handler.request.body) > MAX_BODY:
        raise NoteError(f"the request has {len(handler.request.body)} bytes; {MAX_BODY} is the most")
    try:
        found = json.loads(handler.request.body)
    except (ValueError, RecursionError) as error:
        raise NoteError(f"the request is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise NoteError("the request is no JSON object")
    return found


def owner_of(handler: RequestHandler, *, make: bool = False) -> str:
    """Who writes: the hash of the browser's cookie, '' without one. `make`: give it one."""
    pen = handler.get_cookie(PEN)
    if (pen is None or not 20 <= len(pen) <= 100) and make:
        pen = secrets.token_urlsafe(24)
        secure = handler.request.protocol == "https"
        handler.set_cookie(PEN, pen, expires_days=PEN_DAYS, httponly=True, samesite="Strict", secure=secure)
    return "" if pen is None else hashlib.sha256(pen.encode()).hexdigest()


def _text(command: Mapping[str, Any], name: str) -> str:
    found = command.get(name, "")
    if not isinstance(found, str):
        raise NoteError(f"{name} is no text")
    return found


def _number(command: Mapping[str, Any]) -> int:
    found = command.get("note")
    if not isinstance(found, int) or isinstance(found, bool) or not 0 < found < 1 << 60:
        raise NoteError("note is no number of a note")
    return found
