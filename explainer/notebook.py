"""The explainer's own tables, in the analyzer's file, with migrations of their own.

One process at a time writes them (a lock beside the file); users' names are written by whoever the user commands. The
analyzer never waits for long: a transaction is gathered first and takes about a millisecond, and the log is never
checkpointed from here. A database that the analyzer has not made yet is a StoreError: wait for it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import time
from importlib.resources import files
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from interlatent_live.analyzer.store import APPLICATION_ID, translated
from interlatent_live.analyzer.writes import Writes
from interlatent_live.stream.errors import ForeignDatabase, StoreError

__all__ = ["MIGRATIONS", "Notebook"]

MIGRATIONS: Final[tuple[str, ...]] = (
    files(__package__).joinpath("notebook.sql").read_text(encoding="utf-8"),
    "ALTER TABLE narration ADD COLUMN wording TEXT; ALTER TABLE narration ADD COLUMN worded_by TEXT",  # a language model's, if any
)
"""Script n brings the explainer's tables from version n to n + 1."""
_BUSY_S: Final = 5.0
_COUNTED: Final = ("explanations", "attempts", "narration")


class Notebook:
    """The writer's side. Not for several threads.

    `service`: take the lock that lets one process write explanations. False: for users' names only.
    """

    def __init__(self, path: Path | str, *, service: bool = True) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise StoreError(f"{self.path} does not exist; `interlatent-live analyze` makes it")
        self._lock = _take_lock(self.path) if service else None
        try:
            with translated(self.path):
                self._db = sqlite3.connect(self.path, isolation_level=None, timeout=_BUSY_S)
                try:
                    self._prepare()
                except BaseException:
                    self._db.close()
                    raise
            self._ids = {t: int(self.one(f"SELECT coalesce(max(id), 0) FROM {t}")[0]) for t in _COUNTED}
        except BaseException:
            _release(self._lock)
            raise

    def _prepare(self) -> None:
        application = int(self._db.execute("PRAGMA application_id").fetchone()[0])
        tables = {row[0] for row in self._db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if application != APPLICATION_ID and (application or tables):
            raise ForeignDatabase(f"{self.path} is a database of another program; name another file")
        if "ledger" not in tables:
            raise StoreError(f"{self.path} holds no analysis yet; wait until the analyzer has made its tables")
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.execute("PRAGMA wal_autocheckpoint=0")  # the analyzer does that
        version = self._version(tables)
        if version > len(MIGRATIONS):
            raise StoreError(f"{self.path}: its explanations were made by a newer build (version {version}): upgrade interlatent-live")
        for number in range(version, len(MIGRATIONS)):
            keys = "CREATE TABLE IF NOT EXISTS explainer_meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID"
            stamp = f"INSERT OR REPLACE INTO explainer_meta VALUES ('version', '{number + 1}')"
            try:
                self._db.executescript(f"BEGIN IMMEDIATE; {keys}; {MIGRATIONS[number]}\n; {stamp}; COMMIT;")
            except BaseException as error:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                # a name and a service that begin together: the other one was faster
                if not (isinstance(error, sqlite3.OperationalError) and self._version(None) >= number + 1):
                    raise

    def _version(self, tables: set[str] | None) -> int:
        if tables is not None and "explainer_meta" not in tables:
            return 0
        row = self._db.execute("SELECT value FROM explainer_meta WHERE key = 'version'").fetchone()
        return int(row[0]) if row else 0

    def new_id(self, table: str) -> int:
        """The next id of a table that counts its rows."""
        self._ids[table] += 1
        return self._ids[table]

    def commit(self, writes: Writes) -> None:
        """Write all of it or, raising a StoreError, none of it."""
        if not writes:
            return
        with translated(self.path):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                for sql, rows in writes:
                    self._db.executemany(sql, rows)
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def commit_in_parts(self, writes: Writes, rows: int = 64) -> None:
        """Write rows that need not come together, a few at a time: this process runs below the analyzer's priority, and
        while it is kept from the processor in a transaction, the analyzer waits.
        """
        for sql, values in writes:
            for begin in range(0, len(values), rows):
                part = Writes()
                part.execute_many(sql, values[begin : begin + rows])
                self.commit(part)

    def name(self, dictionary_hash: str, feature: int, label: str, predicate: str | None) -> None:
        """Keep what a user calls a feature."""
        writes = Writes()
        writes.insert(
            "user_names", wall_ns=time.time_ns(), dictionary_hash=dictionary_hash, feature=feature, label=label, predicate=predicate,
        )  # fmt: skip
        self.commit(writes)

    def one(self, sql: str, *values: Any) -> tuple[Any, ...]:
        """The first row of a query, or ()."""
        with translated(self.path):
            row = self._db.execute(sql, values).fetchone()
        return () if row is None else tuple(row)

    def all(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        """All rows of a query."""
        with translated(self.path):
            return self._db.execute(sql, values).fetchall()

    def close(self) -> None:
        """Let go of the file. May be called twice."""
        try:
            with translated(self.path):
                self._db.close()
        finally:
            _release(self._lock)
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _take_lock(path: Path) -> int:
    """The lock's file stays: removing it would let two processes hold locks on two files of one name."""
    name = path.with_name(path.name + "-explainer")
    try:
        handle = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise StoreError(f"{name}: {error.strerror}; check that its folder may be written") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.read(handle, 32).decode("ascii", "replace").strip() or "unknown"
        os.close(handle)
        raise StoreError(f"{path} is being explained by process {holder}; end it, or wait until it has ended") from error
    with contextlib.suppress(OSError):
        os.ftruncate(handle, 0)
        os.write(handle, str(os.getpid()).encode())
    return handle


def _release(handle: int | None) -> None:
    if handle is not None:
        os.close(handle)
