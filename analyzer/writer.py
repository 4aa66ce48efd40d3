"""What every writer of the database does: commit whole or not at all, ask, and let go of file and lock."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from interlatent_live.analyzer.lock import FileLock
from interlatent_live.analyzer.writes import Writes
from interlatent_live.stream.errors import ForeignDatabase, StoreError, StoreFull

__all__ = ["BUSY_S", "Writer", "translated"]

BUSY_S: Final = 10.0
"""How long one waits for another's transaction."""
_FULL: Final = frozenset({"SQLITE_FULL", "SQLITE_IOERR_WRITE", "SQLITE_IOERR_SHMSIZE"})  # no space, quota, size limit


@contextlib.contextmanager
def translated(path: Path) -> Iterator[None]:
    """Raise what sqlite3 raises as a StoreError that says what to do."""
    try:
        yield
    except sqlite3.Error as error:
        name = getattr(error, "sqlite_errorname", "")
        if name in _FULL:
            remedy = "what was committed is safe: free space and start again on this file"
            raise StoreFull(f"{path}: {error}; {remedy}") from error
        if name == "SQLITE_NOTADB":
            raise ForeignDatabase(f"{path} is not an SQLite database; name another file") from error
        if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            remedy = f"another process has held it for {BUSY_S:.0f} s: end that process"
        elif name.startswith("SQLITE_CORRUPT"):
            remedy = "the file is damaged: keep it for rescue and analyse the recording into a new one"
        elif name.startswith(("SQLITE_CANTOPEN", "SQLITE_READONLY", "SQLITE_PERM")):
            remedy = "check that its folder exists and may be written"
        else:
            remedy = "start again on this file; what was committed is safe"
        raise StoreError(f"{path}: {error} ({name or type(error).__name__}); {remedy}") from error


class Writer:
    """One connection and, where one process at a time may write, its lock. Not for several threads."""

    path: Path
    connection: sqlite3.Connection
    _lock: FileLock | None = None
    _ids: dict[str, int]
    transactions = 0
    held_s = longest_s = 0.0
    """How long `commit` has held the file, s: in all, and at most. Nobody else can write meanwhile."""

    def new_id(self, table: str) -> int:
        """The next id of a table that counts its rows; given here so that rows can be gathered before they go."""
        self._ids[table] += 1
        return self._ids[table]

    def count(self, *tables: str) -> None:
        """Let `new_id` go on from the ids that these tables have."""
        self._ids = {table: int(self.one(f"SELECT coalesce(max(id), 0) FROM {table}")[0]) for table in tables}

    def commit(self, writes: Writes) -> None:
        """Write all of it or, raising a StoreError, none of it; the same `writes` may then be tried again."""
        if not writes:
            return
        with translated(self.path):
            self.connection.execute("BEGIN IMMEDIATE")
            begin = time.perf_counter()
            try:
                for sql, rows in writes:
                    self.connection.executemany(sql, rows)
                self.connection.execute("COMMIT")
            except BaseException:
                if self.connection.in_transaction:  # sqlite rolls back by itself on some errors
                    self.connection.execute("ROLLBACK")
                raise
            finally:
                held = time.perf_counter() - begin
                self.transactions, self.held_s = self.transactions + 1, self.held_s + held
                self.longest_s = max(self.longest_s, held)

    def one(self, sql: str, *values: Any) -> tuple[Any, ...]:
        """The first row of a query, or ()."""
        with translated(self.path):
            row = self.connection.execute(sql, values).fetchone()
        return () if row is None else tuple(row)

    def all(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        """All rows of a query."""
        with translated(self.path):
            return self.connection.execute(sql, values).fetchall()

    def close(self) -> None:
        """Let go of file and lock; the last one folds the write-ahead log into the file. May be called twice."""
        try:
            with translated(self.path):
                self.connection.close()
        finally:
            if self._lock is not None:
                self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
