"""What the server answers beside the page: a feature's page and data, pictures, a predicate tried, spans compared, a clip.

By GET nothing is ever written; names and notes come by POST, see `writing`. What runs long runs in the finder's thread.
Access is the page's own: a signed cookie where there is a token; else only under the names of this machine, so that no site
of another name can read along (DNS rebinding).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any, Final

from tornado.web import HTTPError, RequestHandler

from interlatent_live.stream.errors import InterlatentError, NoteError
from interlatent_live.viewer.access import Access
from interlatent_live.viewer.assets import document
from interlatent_live.viewer.finding import Finder
from interlatent_live.viewer.listing import ALL
from interlatent_live.viewer.writing import Writing, foreign, owner_of, read_body

__all__ = ["routes"]

_LONGEST: Final = 2_000
_POLICY: Final = (
    "default-src 'none'; img-src 'self' data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'"
)


class _Answer(RequestHandler):
    """What they share."""

    def initialize(self, finder: Finder, access: Access, writing: Writing) -> None:
        self.finder, self.access, self.writing = finder, access, writing

    def set_default_headers(self) -> None:
        self.set_header("Cache-Control", "no-store")
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Referrer-Policy", "same-origin")
        self.set_header("Content-Security-Policy", _POLICY)

    def prepare(self) -> None:
        if not self.access.admits(self):
            raise HTTPError(403)

    def write_error(self, status_code: int, **_: Any) -> None:
        self.finish(f"{status_code}")

    def word(self, name: str, default: str = "") -> str:
        """An argument, of bounded length."""
        return str(self.get_query_argument(name, default))[:_LONGEST]

    def whole(self, name: str, default: int = 0) -> int:
        """An argument that is a whole number."""
        text = self.word(name, str(default))
        if not (text.isascii() and text.isdigit() and len(text) < 16):
            raise HTTPError(400)
        return int(text)

    async def ask(self, question: Callable[..., Any], *given: Any) -> Any:
        """In the finder's thread; a database that cannot be read just now is 503."""
        try:
            return await asyncio.wrap_future(self.finder.pool.submit(question, *given))
        except InterlatentError as error:
            raise HTTPError(503, log_message=str(error)) from error

    def data(self, found: Any) -> None:
        self.set_header("Content-Type", "application/json; charset=utf-8")
        self.finish(json.dumps(found, allow_nan=False))


class _Feature(_Answer):
    """`/feature/<hash>/<number>`: the page; `.json`: its data; `?embed`: the panel alone."""

    async def get(self, hash: str, number: str, twin: str | None) -> None:
        found = await self.ask(self.finder.feature, hash, int(number))
        self.set_status(404 if found is None else 200)
        if found is not None:
            found |= {"notes": _own(found["notes"], owner_of(self)), "writing": self.writing.about(self.access)}
        if twin:
            self.data({"error": "no such feature here"} if found is None else found)
            return
        embed = "embed" in self.request.query_arguments
        if not embed:  # what writes is in no frame of another site, where a click may be stolen; the panel alone has nothing that writes
            self.set_header("Content-Security-Policy", f"{_POLICY}; frame-ancestors 'self'")
        self.finish(document("feature", found, embed=embed))

    async def post(self, hash: str, number: str, _: str | None) -> None:
        """`{"do": "name" | "undo" | "add" | "edit" | "delete", …}`; the answer is what is said of the feature now."""
        refused = foreign(self, self.access) or self.writing.why_not()
        if refused is not None:
            self._wrong(403, refused)
            return
        try:
            command, owner = read_body(self), owner_of(self, make=True)
            known = await self.ask(self.finder.known, hash)
            if known is None:
                raise NoteError("this database does not know that dictionary")
            await self.writing.write(known, int(number), command, owner)
        except NoteError as error:  # a mistake in what was typed is data, as everywhere here
            self._wrong(200, str(error))
            return
        except InterlatentError as error:
            self._wrong(503, str(error))
            return
        found = await self.ask(self.finder.said, known, int(number))
        self.data({"error": None, **found, "notes": _own(found["notes"], owner)})

    def _wrong(self, status: int, why: str) -> None:
        self.set_status(status)
        self.data({"error": why})


def _own(notes: list[dict[str, Any]], owner: str) -> list[dict[str, Any]]:
    """Notes for one browser: which of them are its own, and whose nobody is told."""
    return [{**{k: v for k, v in note.items() if k != "owner"}, "own": bool(owner) and note["owner"] == owner} for note in notes]


class _Writing(_Answer):
    """`/writing`: whether names and notes can be written here, and why not."""

    async def get(self) -> None:
        self.data(self.writing.about(self.access))


class _Picture(_Answer):
    """`/picture/<boot>/<env>/<seq>`: what was seen at a frame, or last before it."""

    async def get(self, boot: str, env: str, seq: str) -> None:
        found = await self.ask(lambda: self.finder.pages.picture(boot, int(env), int(seq)))
        if found is None:
            raise HTTPError(404)
        self.set_header("Content-Type", "image/jpeg")
        self.set_header("Cache-Control", "private, max-age=3600")
        self.finish(found.data)


class _Try(_Answer):
    """`/try?when=…`: a predicate's scores; without one, the names that it may use."""

    async def get(self) -> None:
        text, point = self.word("when").strip(), self.word("point") or None
        if not text:
            self.data({"names": await self.ask(self.finder.names, point)})
            return
        self.data(await self.ask(self.finder.attempt, text, point))


class _Features(_Answer):
    """`/features?boot=…&layer=all`: the list of features of other layers."""

    async def get(self) -> None:
        self.data(await self.ask(self.finder.features, self.word("boot"), self.word("layer", ALL)))


class _Compare(_Answer):
    """`/compare?boot=…&env=0&a=120-480&b=rest`: what differs."""

    async def get(self) -> None:
        point = self.word("point") or None
        self.data(await self.ask(self.finder.compare, self.word("boot"), self.whole("env"), self.word("a"), self.word("b", "rest"), point))


class _Clip(_Answer):
    """`/clip?boot=…&env=0&at=…`: ten seconds around a frame as a file."""

    async def get(self) -> None:
        at, env = self.whole("at"), self.whole("env")
        made = await self.ask(self.finder.clip, at, self.word("boot") or None, env, self.word("source") or None)
        self.set_header("Content-Type", "text/html; charset=utf-8")
        self.set_header("Content-Disposition", f'attachment; filename="clip-{at}.html"')
        self.finish(made)


def routes(finder: Finder, access: Access, writing: Writing) -> list[tuple[str, type[RequestHandler], dict[str, Any]]]:
    """For bokeh.server.server.Server(extra_patterns=…)."""
    given = {"finder": finder, "access": access, "writing": writing}
    return [
        (r"/feature/([^/]{1,200})/(\d{1,9})(\.json)?", _Feature, given),
        (r"/picture/([^/]{1,200})/(\d{1,9})/(\d{1,15})", _Picture, given),
        (r"/writing", _Writing, given),
        (r"/try", _Try, given),
        (r"/features", _Features, given),
        (r"/compare", _Compare, given),
        (r"/clip", _Clip, given),
    ]
