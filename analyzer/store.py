"""The database: one SQLite file per run, in WAL mode, written by one analyzer and read by anybody.

1. A file is ours by its `application_id`; its `user_version` counts the migrations it has seen. Others are refused.
2. A transaction is gathered in `Writes` and committed at once: a reader sees whole batches, a kill loses none of them.
3. With `synchronous=NORMAL` a commit waits for no disk: a killed process loses nothing, a power cut the last seconds.
4. Every sqlite3 error leaves here as a StoreError that names the file and the remedy.

A commit of one batch costs about 100 µs. Cheaper: several batches in one `Writes`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from interlatent_live.analyzer.writes import Writes
from interlatent_live.stream.errors import ForeignDatabase, StoreError, StoreFull

__all__ = ["APPLICATION_ID", "MIGRATIONS", "Store", "connect_readonly", "translated"]

APPLICATION_ID: Final = 0x494C4C56
"""'ILLV' at byte 68 of the file."""
MIGRATIONS: Final[tuple[str, ...]] = tuple(
    files(__package__).joinpath(name).read_text(encoding="utf-8")
    for name in ("schema.sql", "scalars.sql", "clips.sql", "attributions.sql", "interventions.sql", "prompts.sql")
)
"""Script n brings a database of `user_version` n to n + 1."""
_COUNTED: Final = ("batches", "sections", "events", "drift", "correlation_snapshots")
_BUSY_MS: Final = 10_000
_CHECKPOINT_PAGES: Final = 1_000
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
            remedy = f"another process has held it for {_BUSY_MS / 1000:.0f} s: end that process"
        elif name.startswith("SQLITE_CORRUPT"):
            remedy = "the file is damaged: keep it for rescue and analyse the recording into a new one"
        elif name.startswith(("SQLITE_CANTOPEN", "SQLITE_READONLY", "SQLITE_PERM")):
            remedy = "check that its folder exists and may be written"
        else:
            remedy = "start again on this file; what was committed is safe"
        raise StoreError(f"{path}: {error} ({name or type(error).__name__}); {remedy}") from error


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
            timeout=_BUSY_MS / 1000,
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


class Store:
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
        self._lock: int | None = None
        if readonly:
            self.connection = connect_readonly(self.path, run)
        else:
            if not self.path.parent.is_dir():
                raise StoreError(f"{self.path}: folder {self.path.parent} does not exist; create it first")
            self._lock = _take_lock(self.path)
            try:
                self.connection = self._open(run, migrations)
            except BaseException:
                _release_lock(self.path, self._lock)
                raise
        with translated(self.path):
            self.run = _meta(self.connection, "run")
            self._ids = {t: int(self.one(f"SELECT coalesce(max(id), 0) FROM {t}")[0]) for t in _COUNTED}
        if run is not None and not readonly:
            self.bind(run)

    def _open(self, run: str | None, migrations: Sequence[str]) -> sqlite3.Connection:
        with translated(self.path):
            connection = sqlite3.connect(self.path, isolation_level=None, timeout=_BUSY_MS / 1000)
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

    def new_id(self, table: str) -> int:
        """The next id of a table that counts its rows; given here so that rows can be gathered before they go."""
        self._ids[table] += 1
        return self._ids[table]

    def commit(self, writes: Writes) -> None:
        """Write all of it or, raising a StoreError, none of it; the same `writes` may then be tried again."""
        if not writes:
            return
        with translated(self.path):
            self.connection.execute("BEGIN IMMEDIATE")
            try:
                for sql, rows in writes:
                    self.connection.executemany(sql, rows)
                self.connection.execute("COMMIT")
            except BaseException:
                if self.connection.in_transaction:  # sqlite rolls back by itself on some errors
                    self.connection.execute("ROLLBACK")
                raise

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
        """Fold the write-ahead log into the file and let go of it. May be called twice."""
        try:
            with translated(self.path):
                self.connection.close()
        finally:
            if self._lock is not None:
                _release_lock(self.path, self._lock)
                self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


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


def _lock_path(path: Path) -> Path:
    return path.with_name(path.name + "-analyzer")


def _take_lock(path: Path) -> int:
    """A second analyzer on the file would give the same ids twice. The lock dies with its process."""
    name = _lock_path(path)
    while True:
        try:
            handle = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise StoreError(f"{name}: {error.strerror}; check that its folder exists and may be written") from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(handle, 32).decode("ascii", "replace").strip() or "unknown"
            os.close(handle)
            raise StoreError(f"{path} is being written by process {holder}; end it, or name another file") from error
        try:
            same = os.fstat(handle).st_ino == os.stat(name).st_ino
        except FileNotFoundError:
            same = False
        if same:
            with contextlib.suppress(OSError):  # a full disk: the number is only for the message above
                os.ftruncate(handle, 0)
                os.write(handle, str(os.getpid()).encode())
            return handle
        os.close(handle)  # its former holder removed it between our open and our lock


def _release_lock(path: Path, handle: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(_lock_path(path))
    os.close(handle)
