"""The database: one SQLite file per run, in WAL mode, written by one analyzer and read by anybody.

1. A file is ours by its `application_id`; its `user_version` counts the migrations it has seen. Others are refused.
2. A transaction is gathered in `Writes` and committed at once: a reader sees whole batches, a kill loses none of them.
3. With `synchronous=NORMAL` a commit waits for no disk: a killed process loses nothing, a power cut the last seconds.
4. Every sqlite3 error leaves here as a StoreError that names the file and the remedy.

A commit of one batch costs about 100 µs. Cheaper: several batches in one `Writes`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Final

from interlatent_live.analyzer.lock import FileLock
from interlatent_live.analyzer.writer import BUSY_S, Writer, translated
from interlatent_live.analyzer.writes import Writes
from interlatent_live.stream.errors import ForeignDatabase, StoreError

__all__ = ["APPLICATION_ID", "MIGRATIONS", "Store", "connect_readonly"]

APPLICATION_ID: Final = 0x494C4C56
"""'ILLV' at byte 68 of the file."""
MIGRATIONS: Final[tuple[str, ...]] = tuple(
    files(__package__).joinpath(name).read_text(encoding="utf-8")
    for name in (
        "schema.sql", "scalars.sql", "clips.sql", "attributions.sql", "interventions.sql", "prompts.sql", "outcomes.sql", "notes.sql",
        "pairs.sql",
    )
)
"""Script n brings a database of `user_version` n to n + 1."""
_COUNTED: Final = ("batches", "sections", "events", "drift", "correlation_snapshots")
_CHECKPOINT_PAGES: Final = 1_000


def connect_readonly(path: str | Path, run: str | None = None) -> sqlite3.Connection:
    """A connection that only reads, for any thread. Raises ForeignDatabase unless the file is ours (and of `run`)."""
    path = Path(path)
    if not path.exists():
        raise StoreError(f"{path} does not exist; `interlatent-live analyze` makes it")
    with translated(path):
        connection = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode=ro",
            uri=True,
            isolation_level=None,
            timeout=BUSY_S,
            check_same_thread=False,
        )
        try:
            connection.execute("PRAGMA query_only=1")
            if _version(connection, path) == 0:
                raise StoreError(f"{path} holds no analysis yet; wait until the analyzer has made its tables")
            _check_run(_meta(connection, "run"), run, path)
        except BaseException:
            connection.close()
            raise
    return connection


class Store(Writer):
    """The writer's side of one database. Not for several threads.

    `run` None: the first manifest or batch decides, see `bind`.
    """

    def __init__(
        self,
        path: str | Path,
        run: str | None = None,
        readonly: bool = False,
        *,
        migrations: Sequence[str] = MIGRATIONS,
    ) -> None:
        self.path = Path(path)
        self.readonly = readonly
        if readonly:
            self.connection = connect_readonly(self.path, run)
        else:
            if not self.path.parent.is_dir():
                raise StoreError(f"{self.path}: folder {self.path.parent} does not exist; create it first")
            self._lock = FileLock(self.path, "analyzer", "written")  # a second analyzer would give the same ids twice
            try:
                self.connection = self._open(run, migrations)
            except BaseException:
                self._lock.release()
                raise
        with translated(self.path):
            self.run = _meta(self.connection, "run")
        self.count(*_COUNTED)
        if run is not None and not readonly:
            self.bind(run)

    def _open(self, run: str | None, migrations: Sequence[str]) -> sqlite3.Connection:
        with translated(self.path):
            connection = sqlite3.connect(self.path, isolation_level=None, timeout=BUSY_S)
            try:
                version = _version(connection, self.path)
                if version > len(migrations):
                    reason = f"was made by a newer build (schema {version}, this one knows {len(migrations)})"
                    raise StoreError(f"{self.path} {reason}: upgrade interlatent-live")
                if version:
                    _check_run(_meta(connection, "run"), run, self.path)
                connection.execute("PRAGMA journal_mode=WAL")
                connection.execute("PRAGMA synchronous=NORMAL")
                connection.execute("PRAGMA foreign_keys=OFF")  # one writer that gives the ids itself; checked in tests
                connection.execute(f"PRAGMA wal_autocheckpoint={_CHECKPOINT_PAGES}")
                connection.execute("PRAGMA cache_size=-16384")
                for number in range(version, len(migrations)):
                    _migrate(connection, number, migrations[number])
            except BaseException:
                connection.close()
                raise
        return connection

    def bind(self, run: str) -> None:
        """Make this the database of `run`, or raise ForeignDatabase if it is another's."""
        if self.run is None:
            writes = Writes()
            writes.insert("meta", key="run", value=run)
            self.commit(writes)
            self.run = run
        _check_run(self.run, run, self.path)


def _version(connection: sqlite3.Connection, path: Path) -> int:
    """Migrations that the file has seen; 0 for an empty file. Raises ForeignDatabase for somebody else's."""
    application = int(connection.execute("PRAGMA application_id").fetchone()[0])
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if application == APPLICATION_ID:
        return version
    if application or version or connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone():
        raise ForeignDatabase(f"{path} is another program's database (application id {application:#x}); name another")
    return 0


def _meta(connection: sqlite3.Connection, key: str) -> str | None:
    row = connection.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
    return None if row is None else str(row[0])


def _check_run(found: str | None, wanted: str | None, path: Path) -> None:
    if found is not None and wanted is not None and found != wanted:
        raise ForeignDatabase(f"{path} belongs to run {found!r}, not {wanted!r}; name another file or that run")


def _migrate(connection: sqlite3.Connection, number: int, script: str) -> None:
    """Schema, application id and version change together or not at all."""
    stamp = f"PRAGMA application_id={APPLICATION_ID}; PRAGMA user_version={number + 1};"
    try:
        connection.executescript(f"BEGIN IMMEDIATE; {script}\n; {stamp} COMMIT;")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
