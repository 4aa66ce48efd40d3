"""The explainer's own tables, in the analyzer's file, with migrations of their own.

One process at a time writes them (a lock beside the file); watchpoints write theirs beside it. What people say of features
goes through `explainer.notes`. The analyzer never waits for long: a transaction is gathered first and takes about a
millisecond, and the log is never checkpointed from here. A database that the analyzer has not made yet is a StoreError: wait for it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Set
from importlib.resources import files
from pathlib import Path
from typing import Final

from interlatent_live.analyzer.lock import FileLock
from interlatent_live.analyzer.writer import Writer
from interlatent_live.analyzer.writes import Writes
from interlatent_live.explainer.notes import MOVED, TABLES, beside
from interlatent_live.stream.errors import StoreError

__all__ = ["MIGRATIONS", "Notebook"]

MIGRATIONS: Final[tuple[str, ...]] = (
    files(__package__).joinpath("notebook.sql").read_text(encoding="utf-8"),
    "ALTER TABLE narration ADD COLUMN wording TEXT; ALTER TABLE narration ADD COLUMN worded_by TEXT",  # a language model's, if any
    files(__package__).joinpath("watched.sql").read_text(encoding="utf-8"),
    f"{TABLES}; {MOVED}",
    files(__package__).joinpath("exams.sql").read_text(encoding="utf-8"),
)
"""Script n brings the explainer's tables from version n to n + 1."""
_COUNTED: Final = ("explanations", "attempts", "narration", "exams")


class Notebook(Writer):
    """The writer's side. Not for several threads.

    `service`: take the lock that lets one process write explanations. False: for watchpoints.
    """

    def __init__(self, path: Path | str, *, service: bool = True) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise StoreError(f"{self.path} does not exist; `interlatent-live analyze` makes it")
        self._lock = FileLock(self.path, "explainer", "explained") if service else None
        try:
            with beside(self.path) as (self.connection, tables):
                self._prepare(tables)
            self.count(*_COUNTED)
        except BaseException:
            if self._lock is not None:
                self._lock.release()
            raise

    def _prepare(self, tables: Set[str]) -> None:
        version = self._version(tables)
        if version > len(MIGRATIONS):
            raise StoreError(f"{self.path}: its explanations were made by a newer build (version {version}): upgrade interlatent-live")
        for number in range(version, len(MIGRATIONS)):
            keys = "CREATE TABLE IF NOT EXISTS explainer_meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID"
            stamp = f"INSERT OR REPLACE INTO explainer_meta VALUES ('version', '{number + 1}')"
            try:
                self.connection.executescript(f"BEGIN IMMEDIATE; {keys}; {MIGRATIONS[number]}\n; {stamp}; COMMIT;")
            except BaseException as error:
                if self.connection.in_transaction:
                    self.connection.execute("ROLLBACK")
                # a watchpoint and a service that begin together: the other one was faster
                if not (isinstance(error, sqlite3.OperationalError) and self._version(None) >= number + 1):
                    raise

    def _version(self, tables: Set[str] | None) -> int:
        if tables is not None and "explainer_meta" not in tables:
            return 0
        row = self.connection.execute("SELECT value FROM explainer_meta WHERE key = 'version'").fetchone()
        return int(row[0]) if row else 0

    def commit_in_parts(self, writes: Writes, rows: int = 64) -> None:
        """Write rows that need not come together, a few at a time: this process runs below the analyzer's priority, and
        while it is kept from the processor in a transaction, the analyzer waits.
        """
        for sql, values in writes:
            for begin in range(0, len(values), rows):
                part = Writes()
                part.execute_many(sql, values[begin : begin + rows])
                self.commit(part)

    def watched(
        self, *, boot: str, env: int, seq: int, time_s: float, wall_ns: int, episode: int, episode_step: int, predicate: str,
        clip: str | None, acted: str | None,
    ) -> None:
        """Mark a frame in which a watchpoint's predicate came true, and keep the frames about it; once, however often it is asked."""
        writes = Writes()
        writes.execute(
            "INSERT OR IGNORE INTO watched (boot, env, seq, time_s, wall_ns, episode, episode_step, predicate, clip, acted) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            boot, env, seq, time_s, wall_ns, episode, episode_step, predicate, clip, acted,
        )  # fmt: skip
        writes.execute(
            "INSERT INTO cited (boot, first_seq, next_seq, kind, ref) "
            "SELECT boot, max(0, seq - 32), seq + 33, 'watched', id FROM watched w "
            "WHERE boot = ? AND env = ? AND seq = ? AND predicate = ? AND NOT EXISTS "
            "(SELECT 1 FROM cited c WHERE c.kind = 'watched' AND c.ref = w.id)",
            boot, env, seq, predicate,
        )  # fmt: skip
        self.commit(writes)
