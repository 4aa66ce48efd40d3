"""The reader: a database that is not there yet, half made, locked, killed, replaced, or somebody else's."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tests.store_builder import StoreBuilder

from interlatent_live.analyzer.queries import Reader
from interlatent_live.analyzer.store import Store
from interlatent_live.stream.errors import ForeignDatabase, StoreError

BUILDER = Path(__file__).with_name("store_builder.py")


@pytest.fixture
def db(tmp_path: Path) -> Path:
    return tmp_path / "run.db"


def test_a_file_that_does_not_exist_yet_is_simply_empty(db: Path) -> None:
    with Reader(db) as reader:
        assert not reader.ready()
        assert reader.boots() == []
        assert reader.run() is None
        assert reader.snapshot_id(1) is None
        assert reader.info()["frames"] == 0
        assert not db.exists(), "a reader makes no file"
        Store(db, run="r").close()
        assert reader.ready()
        assert reader.run() == "r"


def test_an_empty_file_is_a_database_in_the_making(db: Path) -> None:
    db.touch()
    with Reader(db) as reader:
        assert not reader.ready()


@pytest.mark.parametrize("content", [b"not a database, but long enough to be looked at" * 30, None])
def test_another_program_s_file_is_refused(db: Path, content: bytes | None) -> None:
    if content is None:
        other = sqlite3.connect(db)
        other.execute("CREATE TABLE somebody (id)")
        other.commit()
        other.close()
    else:
        db.write_bytes(content)
    with Reader(db) as reader, pytest.raises(ForeignDatabase, match=r"name another file"):
        reader.ready()


def test_everything_written_is_read_back(db: Path) -> None:
    builder = StoreBuilder(db, period_s=0.02)
    builder.frames(400, rows=7)
    builder.lose(5)
    builder.frames(200, rows=7)
    builder.snapshot()
    builder.accounts()
    with Reader(db) as reader:
        boot = reader.boots()[-1]
        assert (boot.boot, boot.ended) == ("b0", 0)
        manifest = reader.manifest(boot.manifest_hash or "")
        assert manifest == builder.manifest
        batches = reader.batches("b0", 0)
        assert sum(b.rows for b in batches) == 600
        seq = np.concatenate([b.first_seq + np.arange(b.rows) for b in batches])
        assert seq.tolist() == [*range(400), *range(405, 605)]
        section = reader.sections("b0")[0]
        codes = reader.codes(section.id, batches[0].id, batches[-1].id)
        assert [c.codes.rows for c in codes] == [b.rows for b in batches]
        activity = reader.activity(section.id)
        assert activity is not None
        assert activity.frames == 600
        counted = sum(np.bincount(c.codes.indices, minlength=64) for c in codes)
        np.testing.assert_array_equal(activity.active, counted)
        snapshot = reader.snapshot(reader.snapshot_id(section.id) or 0)
        assert snapshot is not None
        assert snapshot.metrics == manifest.metric_names
        assert snapshot.r.shape == (len(snapshot.features), 5)
        assert np.isnan(snapshot.r[:, 4]).all(), "a constant metric has no correlation"
        top = reader.top_correlations(snapshot.id)
        strengths = [abs(t.r or 0) for t in top]
        assert strengths == sorted(strengths, reverse=True)
        ledger = reader.ledger("b0")
        assert ledger is not None
        assert (ledger.received, ledger.wire_lost, ledger.status["overhead_us_median"]) == (600, 5, 8.7)
        assert reader.gaps("b0")[0].lost == 5
        assert reader.episodes("b0")[0].return_ == 500
        newest, earlier = reader.picture("b0"), reader.picture("b0", until_seq=100)
        assert newest is not None
        assert earlier is not None
        assert newest.seq > earlier.seq
        assert earlier.seq <= 100
        assert newest.data[:2] == b"\xff\xd8"
        assert reader.quality(section.id)[-1].fvu == pytest.approx(0.041, abs=0.02)
        assert reader.info()["frames"] == 600
    builder.close()


def test_newest_batches_are_those_of_the_last_span(db: Path) -> None:
    builder = StoreBuilder(db, period_s=0.02, pictures=False)
    builder.frames(1000, rows=10)
    with Reader(db) as reader:
        batches = reader.newest_batches("b0", int(5e9), 100_000)
        span = batches[-1].last_monotonic_ns - batches[0].last_monotonic_ns
        assert 4.7e9 <= span <= 5e9
        assert sum(b.rows for b in reader.newest_batches("b0", int(5e9), 40)) == 40
        assert [b.id for b in batches] == sorted(b.id for b in batches)
    builder.close()


def test_a_locked_moment_is_over_soon(db: Path) -> None:
    Store(db, run="r").close()
    holder = sqlite3.connect(db, isolation_level=None)
    holder.execute("PRAGMA locking_mode=EXCLUSIVE")
    holder.execute("BEGIN EXCLUSIVE")
    with Reader(db) as reader:
        with pytest.raises(StoreError, match="locked"):
            reader.ready()
        holder.execute("COMMIT")
        holder.close()
        assert reader.ready()


def test_a_writer_that_was_killed_leaves_a_readable_file(db: Path) -> None:
    writer = subprocess.Popen([sys.executable, str(BUILDER), str(db), "--seconds", "30"])
    with Reader(db) as reader:
        _wait(lambda: reader.ready() and bool(reader.batches("b0", 0)))
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        assert reader.batches("b0", 0)
    with Reader(db) as fresh:  # nobody else holds the file: the log must be recovered by a reader
        batches = fresh.batches("b0", 0)
        assert batches
        assert fresh.codes(1, batches[0].id, batches[-1].id)


def test_a_replaced_file_is_noticed(db: Path) -> None:
    Store(db, run="first").close()
    with Reader(db) as reader:
        assert reader.run() == "first"
        before = reader.identity
        other = db.with_name("other.db")
        Store(other, run="second").close()
        other.replace(db)
        assert reader.run() == "second"
        assert reader.identity != before
        db.unlink()
        assert not reader.ready()


def test_one_consistent_view(db: Path) -> None:
    builder = StoreBuilder(db, pictures=False)
    builder.frames(10)
    with Reader(db) as reader:
        with reader.consistent():
            seen = len(reader.batches("b0", 0))
            builder.frames(10)
            assert len(reader.batches("b0", 0)) == seen
        assert len(reader.batches("b0", 0)) > seen
    builder.close()


def test_reading_needs_no_torch() -> None:
    code = "import sys, interlatent_live.analyzer.queries, interlatent_live.viewer.app; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def _wait(condition: object, seconds: float = 20) -> None:
    assert callable(condition)
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing was written"
        time.sleep(0.05)
