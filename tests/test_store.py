"""The database file: whose it is, what survives, what is refused."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from interlatent_live.analyzer.store import APPLICATION_ID, MIGRATIONS, Store, connect_readonly
from interlatent_live.analyzer.writes import Writes
from interlatent_live.stream.errors import ForeignDatabase, StoreError, StoreFull


def _row(n: int, size: int = 10) -> Writes:
    writes = Writes()
    writes.insert("meta", key=f"k{n}", value="x" * size)
    return writes


def test_a_new_file_is_ours_in_wal_and_empty(tmp_path: Path) -> None:
    with Store(tmp_path / "r.db", run="a") as store:
        assert store.one("PRAGMA application_id") == (APPLICATION_ID,)
        assert store.one("PRAGMA user_version") == (len(MIGRATIONS),)
        assert store.one("PRAGMA journal_mode") == ("wal",)
        assert store.run == "a"
        assert [store.new_id("events"), store.new_id("events")] == [1, 2]
    assert (tmp_path / "r.db").read_bytes()[68:72] == b"ILLV"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r.db"]


def test_ids_go_on_after_reopening(tmp_path: Path) -> None:
    with Store(tmp_path / "r.db") as store:
        writes = Writes()
        writes.insert("batches", id=store.new_id("batches"), run="a", boot="b", first_seq=0, rows=1, manifest_hash="m",
                      first_step=0, last_step=0, first_monotonic_ns=0, last_monotonic_ns=0, first_wall_ns=0,
                      last_wall_ns=0, columns=b"")
        store.commit(writes)
    with Store(tmp_path / "r.db") as store:
        assert store.new_id("batches") == 2


def test_a_database_of_another_run_is_refused_and_untouched(tmp_path: Path) -> None:
    with Store(tmp_path / "r.db", run="a"):
        pass
    before = (tmp_path / "r.db").read_bytes()
    for readonly in (False, True):
        with pytest.raises(ForeignDatabase, match="belongs to run 'a', not 'b'"):
            Store(tmp_path / "r.db", run="b", readonly=readonly)
    with Store(tmp_path / "r.db") as store, pytest.raises(ForeignDatabase):
        store.bind("b")
    assert (tmp_path / "r.db").read_bytes() == before


def test_a_file_of_another_program_is_refused_and_untouched(tmp_path: Path) -> None:
    other = sqlite3.connect(tmp_path / "other.db")
    other.execute("CREATE TABLE t (x)")
    other.commit()
    other.close()
    (tmp_path / "text.db").write_text("not a database, but long enough to be looked at " * 30)
    for name in ("other.db", "text.db"):
        before = (tmp_path / name).read_bytes()
        for readonly in (False, True):
            with pytest.raises(ForeignDatabase, match=name):
                Store(tmp_path / name, readonly=readonly)
        assert (tmp_path / name).read_bytes() == before


def test_what_a_reader_cannot_have_is_said(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="does not exist"):
        connect_readonly(tmp_path / "none.db")
    (tmp_path / "empty.db").touch()
    with pytest.raises(StoreError, match="no analysis yet"):
        connect_readonly(tmp_path / "empty.db")
    with Store(tmp_path / "empty.db", run="a"):  # an empty file may become a database
        connection = connect_readonly(tmp_path / "empty.db", "a")
        with pytest.raises(sqlite3.OperationalError):
            connection.execute("INSERT INTO meta VALUES ('x', 'y')")
        connection.close()
    with pytest.raises(StoreError, match="folder"):
        Store(tmp_path / "missing" / "r.db")


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    with Store(tmp_path / "r.db") as store:
        store.connection.execute("PRAGMA user_version=99")
    with pytest.raises(StoreError, match="newer build"):
        Store(tmp_path / "r.db")


def test_migrations_run_once_each_and_a_failing_one_changes_nothing(tmp_path: Path) -> None:
    with Store(tmp_path / "r.db", run="a"):
        pass
    broken = (*MIGRATIONS, "CREATE TABLE more (x); INSERT INTO nowhere VALUES (1);")
    with pytest.raises(StoreError):
        Store(tmp_path / "r.db", migrations=broken)
    with Store(tmp_path / "r.db") as store:
        assert store.one("SELECT count(*) FROM sqlite_master WHERE name='more'") == (0,)
    grown = (*MIGRATIONS, "CREATE TABLE more (x);")
    for _ in range(2):
        with Store(tmp_path / "r.db", migrations=grown) as store:
            assert store.one("PRAGMA user_version") == (len(grown),)
            assert store.one("SELECT count(*) FROM more") == (0,)
            assert store.run == "a"


def test_a_second_writer_is_refused_by_name_and_welcome_afterwards(tmp_path: Path) -> None:
    with Store(tmp_path / "r.db"), pytest.raises(StoreError, match=f"process {os.getpid()}"):
        Store(tmp_path / "r.db")
    with Store(tmp_path / "r.db"):
        pass


def test_a_transaction_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    with Store(tmp_path / "r.db") as store:
        writes = _row(1)
        writes.insert("meta", key="k1", value="again")
        with pytest.raises(StoreError, match="UNIQUE"):
            store.commit(writes)
        assert store.one("SELECT count(*) FROM meta") == (0,)
        store.commit(Writes())
        store.commit(_row(2))
        assert store.all("SELECT key FROM meta") == [("k2",)]


def test_a_full_database_is_named_and_loses_no_committed_row(tmp_path: Path) -> None:
    with Store(tmp_path / "r.db") as store:
        store.commit(_row(0))
        pages = store.one("PRAGMA page_count")[0]
        store.connection.execute(f"PRAGMA max_page_count={pages + 2}")
        full = _row(1, 50_000)
        with pytest.raises(StoreFull, match="free space"):
            store.commit(full)
        assert store.all("SELECT key FROM meta") == [("k0",)]
        store.connection.execute(f"PRAGMA max_page_count={pages + 200}")
        store.commit(full)  # the same rows, once there is room
        assert store.all("SELECT key FROM meta") == [("k0",), ("k1",)]
        assert store.one("PRAGMA integrity_check") == ("ok",)


def test_a_file_size_limit_is_a_full_disk(tmp_path: Path) -> None:
    code = f"""
import resource, sys
from pathlib import Path
from interlatent_live.analyzer.store import Store
from interlatent_live.analyzer.writes import Writes
from interlatent_live.stream.errors import StoreFull
store = Store(Path({str(tmp_path / "r.db")!r}))
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
for n in range(1000):
    writes = Writes()
    writes.insert("meta", key=f"k{{n}}", value="x" * 10_000)
    try:
        store.commit(writes)
    except StoreFull:
        break
print(n)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    with Store(tmp_path / "r.db") as store:
        assert store.one("SELECT count(*) FROM meta") == (int(done.stdout),)
        assert 10 < int(done.stdout) < 1000
        assert store.one("PRAGMA integrity_check") == ("ok",)


def test_a_killed_writer_loses_no_committed_row_and_leaves_no_lock(tmp_path: Path) -> None:
    code = f"""
from interlatent_live.analyzer.store import Store
from interlatent_live.analyzer.writes import Writes
store = Store({str(tmp_path / "r.db")!r}, run="a")
n = 0
while True:
    writes = Writes()
    writes.insert("meta", key=f"k{{n}}", value="x" * 500)
    store.commit(writes)
    n += 1
    print(n, flush=True)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(200):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        told = [200, *(int(line) for line in process.stdout.read().split("\n") if line)]
    with Store(tmp_path / "r.db", run="a") as store:
        assert store.one("PRAGMA integrity_check") == ("ok",)
        kept = store.one("SELECT count(*) FROM meta WHERE key LIKE 'k%'")[0]
    assert kept >= max(told)
