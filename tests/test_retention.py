"""Old frames go, evidence stays, and the analysis that goes on does not notice."""

from __future__ import annotations

from pathlib import Path

import pytest
from bench.synthetic import Synthetic

from interlatent_live.analyzer.digest import digest
from interlatent_live.analyzer.door import Analyzer
from interlatent_live.analyzer.retention import Retention
from interlatent_live.analyzer.store import Store
from interlatent_live.stream.errors import StoreError
from interlatent_live.stream.wire import Picture

TABLES = ("batches", "codes", "events", "pictures", "correlation_snapshots", "peaks", "episodes", "quality", "sections")


def run(path: Path, seconds: int, **limits: float | None) -> dict[str, int]:
    """Analyse so many seconds at 50 Hz, a picture a second; the number of rows."""
    stream = Synthetic(width=6, metrics=2, episode_steps=100)
    with Store(path) as store:
        analyzer = Analyzer(store, neurons_only=True, retention=Retention(store, **limits))  # type: ignore[arg-type]
        analyzer.feed(stream.manifest, commit=False)
        for number in range(seconds * 5):
            if number % 5 == 0:
                picture = Picture("synthetic", "b0", stream.seq, stream.seq, 0, 1, 1, 8, 8, b"x" * 2_000)
                analyzer.feed(picture, commit=False)
            analyzer.feed(stream.batch(10), commit=number % 5 == 0)
        analyzer.close()
        assert store.one("PRAGMA integrity_check") == ("ok",)
        assert store.all("PRAGMA foreign_key_check") == []
        return {table: store.one(f"SELECT count(*) FROM {table}")[0] for table in TABLES}


def test_frames_older_than_the_limit_go_but_for_those_around_peaks(tmp_path: Path) -> None:
    whole, kept = run(tmp_path / "a.db", 250), run(tmp_path / "b.db", 250, max_age_s=60.0, max_bytes=None)
    for table in ("batches", "codes", "events", "pictures"):
        assert kept[table] < whole[table], table
    for table in ("peaks", "episodes", "quality", "sections"):
        assert kept[table] == whole[table], table
    with Store(tmp_path / "b.db", readonly=True) as store:
        newest = store.one("SELECT max(last_wall_ns) FROM batches")[0]
        cited = store.all("SELECT window_first_seq, window_next_seq FROM peaks")
        stale = 0  # cited when they were looked at, no longer
        for first, rows, wall in store.all("SELECT first_seq, rows, last_wall_ns FROM batches"):
            evidence = any(a < first + rows and first < b for a, b in cited)
            stale += not evidence and wall < newest - 62e9
        assert stale < whole["batches"] / 5
        there = {seq for (first,) in store.all("SELECT first_seq FROM batches") for seq in range(first, first + 10)}
        for first, end in cited:
            assert set(range(first, min(end, 12_500))) <= there
        assert store.one("SELECT max(id) FROM correlation_snapshots")[0] is not None
        gone = int(store.one("SELECT value FROM meta WHERE key = 'retired_frames'")[0])
        assert gone == 12_500 - store.one("SELECT sum(rows) FROM batches")[0]
    with pytest.raises(StoreError, match=f"{gone} old frames were retired"):
        digest(tmp_path / "b.db")
    digest(tmp_path / "a.db")


def test_a_size_limit_holds_the_file_and_the_last_two_minutes(tmp_path: Path) -> None:
    limit = 1 << 19
    whole, kept = run(tmp_path / "a.db", 400), run(tmp_path / "b.db", 400, max_bytes=limit)
    assert kept["batches"] < 0.7 * whole["batches"]
    with Store(tmp_path / "b.db", readonly=True) as store:
        recent = "SELECT sum(rows) FROM batches WHERE last_wall_ns > (SELECT max(last_wall_ns) FROM batches) - 119e9"
        assert store.one(recent)[0] >= 119 * 50
    assert (tmp_path / "b.db").stat().st_size < 0.8 * (tmp_path / "a.db").stat().st_size


def test_retention_goes_on_after_a_restart(tmp_path: Path) -> None:
    stream = Synthetic(width=6, metrics=2, episode_steps=100)
    for _ in range(3):
        with Store(tmp_path / "a.db") as store:
            limits = Retention(store, max_age_s=30.0, max_bytes=None)
            analyzer = Analyzer(store, neurons_only=True, retention=limits)
            analyzer.feed(stream.manifest)
            for batch in stream.batches(300, 10):
                analyzer.feed(batch)
            analyzer.close()
            newest, seen = store.one("SELECT max(last_wall_ns), max(first_seq) FROM batches")
            young = store.one("SELECT count(*) FROM batches WHERE last_wall_ns >= ?", newest - 29_000_000_000)[0]
            assert young >= 145
            assert store.one("SELECT count(*) FROM batches")[0] <= seen / 10
            assert store.one("SELECT count(*) FROM events WHERE last_seq < ?", seen - 2_500)[0] < 600
