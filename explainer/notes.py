"""What people say of features: names, which win over an explainer's labels, and notes. The one door through which they are written.

1. Both belong to (dictionary's hash, feature), so they hold for every run of the file that this dictionary reads.
2. Every name is kept and the newest counts; None takes it back, `undo` goes one back. A note may be changed and taken away by who
   wrote it; without an `owner`, as on the command line, all may: whoever may write the file.
3. A transaction is one row. It waits for the analyzer's, a millisecond or so, and at most `BUSY_S` for one that hangs.

The tables are the analyzer's last migration; a database of an older build gets them here.
"""

from __future__ import annotations

import os
import sqlite3
import time
import unicodedata
from collections.abc import Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from interlatent_live.analyzer.store import APPLICATION_ID
from interlatent_live.analyzer.writer import BUSY_S, Writer, translated
from interlatent_live.analyzer.writes import Writes
from interlatent_live.explainer.hypothesis import Hypothesis
from interlatent_live.stream.errors import ForeignDatabase, NoteError, StoreError

__all__ = ["MAX_AUTHOR", "MAX_NOTES", "MAX_TEXT", "MOVED", "TABLES", "Name", "Note", "Notes", "beside", "unwritable"]

MAX_TEXT: Final = 4_000
"""Characters of a note."""
MAX_AUTHOR: Final = 60
MAX_NOTES: Final = 200
"""Of one feature."""
TABLES: Final = files("interlatent_live.analyzer").joinpath("notes.sql").read_text(encoding="utf-8")
"""Creates what is not there."""
MOVED: Final = (
    "INSERT INTO names (wall_ns, dictionary_hash, feature, label, predicate, author) "
    "SELECT wall_ns, dictionary_hash, feature, label, predicate, '' FROM user_names u WHERE NOT EXISTS "
    "(SELECT 1 FROM names n WHERE n.dictionary_hash = u.dictionary_hash AND n.feature = u.feature) ORDER BY id; DELETE FROM user_names"
)
"""Takes over the names that an older build kept among the explainer's tables."""


@dataclass(frozen=True, slots=True)
class Name:
    """What a person called a feature, or that the name was taken back."""

    id: int
    wall_ns: int
    label: str | None
    author: str


@dataclass(frozen=True, slots=True)
class Note:
    """What a person wrote about a feature."""

    id: int
    wall_ns: int
    edited_wall_ns: int | None
    dictionary_hash: str
    feature: int
    author: str
    owner: str | None
    text: str


class Notes(Writer):
    """The writer's side, for one thread; open it for a moment. Raises StoreError where the file may not be written."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        why = unwritable(self.path)
        if why is not None:
            raise StoreError(why)
        with beside(self.path) as (self.connection, tables):
            self._prepare(tables)

    def _prepare(self, tables: Set[str]) -> None:
        old = "user_names" in tables and self.connection.execute("SELECT 1 FROM user_names LIMIT 1").fetchone()
        if old or not {"names", "notes"} <= tables:
            try:
                self.connection.executescript(f"BEGIN IMMEDIATE; {TABLES}; {MOVED if old else ''}; COMMIT;")
            except BaseException:
                if self.connection.in_transaction:
                    self.connection.execute("ROLLBACK")
                raise

    # names

    def name(self, dictionary_hash: str, feature: int, label: str | None, *, author: str = "", predicate: str | None = None) -> str | None:
        """Call a feature so from now on; None: as the explainer does. The name as it is kept. Raises NoteError."""
        self._known(dictionary_hash, feature)
        kept = None if label is None else _label(label)
        before = self.one("SELECT label FROM names WHERE dictionary_hash = ? AND feature = ? ORDER BY id DESC", dictionary_hash, feature)
        if (before[0] if before else None) == kept and predicate is None:
            return kept
        self._name(dictionary_hash, feature, kept, author, predicate)
        return kept

    def undo(self, dictionary_hash: str, feature: int, *, author: str = "") -> str | None:
        """What it was called before the newest change. Done twice, the change is there again. Raises NoteError where there is none."""
        sql = "SELECT label FROM names WHERE dictionary_hash = ? AND feature = ? ORDER BY id DESC LIMIT 2"
        rows = self.all(sql, dictionary_hash, feature)
        if not rows:
            raise NoteError(f"feature {feature} was never named by anybody: there is nothing to undo")
        before = str(rows[1][0]) if len(rows) > 1 and rows[1][0] is not None else None
        self._name(dictionary_hash, feature, before, author, None)
        return before

    def _name(self, dictionary_hash: str, feature: int, label: str | None, author: str, predicate: str | None) -> None:
        writes = Writes()
        writes.insert(
            "names", wall_ns=time.time_ns(), dictionary_hash=dictionary_hash, feature=feature, label=label, predicate=predicate,
            author=_author(author),
        )  # fmt: skip
        self.commit(writes)

    # notes

    def add(self, dictionary_hash: str, feature: int, text: str, *, author: str = "", owner: str | None = None) -> int:
        """Keep a note; its number. Raises NoteError for what cannot be kept."""
        self._known(dictionary_hash, feature)
        kept, by = _text(text), _author(author)
        there = self.one("SELECT count(*) FROM notes WHERE dictionary_hash = ? AND feature = ?", dictionary_hash, feature)[0]
        if there >= MAX_NOTES:
            raise NoteError(f"feature {feature} has {there} notes; {MAX_NOTES} is the most: delete some first")
        writes = Writes()
        writes.insert("notes", wall_ns=time.time_ns(), dictionary_hash=dictionary_hash, feature=feature, author=by, owner=owner, text=kept)
        self.commit(writes)
        return int(self.one("SELECT last_insert_rowid()")[0])

    def edit(self, id: int, text: str, *, owner: str | None = None) -> None:
        """Change a note."""
        self._mine(id, owner)
        writes = Writes()
        writes.execute("UPDATE notes SET text = ?, edited_wall_ns = ? WHERE id = ?", _text(text), time.time_ns(), id)
        self.commit(writes)

    def delete(self, id: int, *, owner: str | None = None) -> None:
        """Take a note away."""
        self._mine(id, owner)
        writes = Writes()
        writes.execute("DELETE FROM notes WHERE id = ?", id)
        self.commit(writes)

    def _mine(self, id: int, owner: str | None) -> None:
        row = self.one("SELECT owner FROM notes WHERE id = ?", id)
        if not row:
            raise NoteError(f"there is no note {id}; it may have been deleted meanwhile")
        if owner is not None and row[0] != owner:
            raise NoteError(f"note {id} was written from another browser; only that one, or `interlatent-live notes`, changes it")

    def _known(self, dictionary_hash: str, feature: int) -> None:
        row = self.one("SELECT features FROM dictionaries WHERE hash = ?", dictionary_hash)
        if not row:
            raise NoteError(f"{self.path} knows no dictionary {dictionary_hash[:60]!r}")
        if not 0 <= feature < row[0]:
            raise NoteError(f"there is no feature {feature}; they go from 0 to {row[0] - 1}")


@contextmanager
def beside(path: Path) -> Iterator[tuple[sqlite3.Connection, Set[str]]]:
    """A connection for tables of one's own in the analyzer's file, and what tables there are; closed where what follows fails.

    Raises StoreError where the analyzer has not made the file yet, ForeignDatabase for a file of another program.
    """
    with translated(path):
        connection = sqlite3.connect(path, isolation_level=None, timeout=BUSY_S)
        try:
            application = int(connection.execute("PRAGMA application_id").fetchone()[0])
            tables = {str(row[0]) for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if application != APPLICATION_ID and (application or tables):
                raise ForeignDatabase(f"{path} is a database of another program; name another file")
            if "ledger" not in tables:
                raise StoreError(f"{path} holds no analysis yet; wait until the analyzer has made its tables")
            connection.execute("PRAGMA synchronous=NORMAL")
            connection.execute("PRAGMA wal_autocheckpoint=0")  # the analyzer does that
            yield connection, tables
        except BaseException:
            connection.close()
            raise


def unwritable(path: Path) -> str | None:
    """Why a database cannot be written, None where it can."""
    if not path.is_file():
        return f"{path} does not exist; `interlatent-live analyze` makes it"
    effective = os.access in os.supports_effective_ids
    if not all(os.access(place, os.W_OK, effective_ids=effective) for place in (path, path.absolute().parent)):
        return f"{path} or its folder may not be written (a read-only disk, or another user's): copy it to where you may, and open that"
    return None


def _label(text: str) -> str:
    try:
        return Hypothesis(label=text, description="", predicate=None, source="user").label
    except ValidationError as error:
        reason = str(error.errors()[0]["msg"]).removeprefix("Value error, ")
        raise NoteError(f"{text[:80]!r} cannot be a name: {reason}") from None


def _text(text: str) -> str:
    """A note as it is kept: with its lines, without characters that steer a terminal."""
    kept = "".join(c for c in text.replace("\r\n", "\n").strip() if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cs"))
    if not kept:
        raise NoteError("a note needs some text")
    if len(kept) > MAX_TEXT:
        raise NoteError(f"the note has {len(kept)} characters; {MAX_TEXT} is the most: shorten it, or make two of it")
    return kept


def _author(text: str) -> str:
    kept = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    if len(kept) > MAX_AUTHOR:
        raise NoteError(f"the author's name has {len(kept)} characters; {MAX_AUTHOR} is the most")
    return kept
