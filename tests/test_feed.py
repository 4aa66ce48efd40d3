"""The feed: what pages share follows a database that grows, restarts, loses frames, and goes away."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

import numpy as np
import pytest
from tests.store_builder import StoreBuilder

from interlatent_live.viewer.drawing import PAIRS, ROWS
from interlatent_live.viewer.feed import PULL_S, SLOW_S, Feed


@pytest.fixture
def db(tmp_path: Path) -> Path:
    return tmp_path / "run.db"


def pull(feed: Feed, *, slow: bool = False) -> None:
    time.sleep((SLOW_S if slow else PULL_S) + 0.01)
    feed.pull()


def test_it_waits_for_a_database_and_then_follows_it(db: Path) -> None:
    feed = Feed(db)
    feed.pull()
    assert (feed.boot, feed.freshness().state, feed.problem) == (None, "WAITING", "")
    builder = StoreBuilder(db)
    builder.frames(200)
    builder.accounts()
    pull(feed)
    assert feed.freshness().state == "LIVE"
    assert len(feed.window) == 200
    assert len(feed.rows) == ROWS
    drawing = feed.drawing
    head, count = drawing.raster.head, drawing.series.count
    builder.frames(100)
    pull(feed)
    assert len(feed.window) == 300
    assert feed.drawing is drawing, "what is shown grows; it is not drawn anew"
    assert drawing.raster.head > head
    assert count + 39 <= drawing.series.count <= count + 41, "two seconds in bins of 50 ms"
    builder.close()


def test_what_is_drawn_is_what_was_stored(db: Path) -> None:
    builder = StoreBuilder(db)
    builder.frames(500)
    builder.snapshot()
    feed = Feed(db)
    feed.pull()
    assert all(p.metric for p in feed.pairs)
    assert len({p.feature for p in feed.pairs}) == len({p.metric for p in feed.pairs}) == PAIRS
    dense = np.concatenate([x for x, _ in builder.batch_rows])
    metrics = np.concatenate([y for _, y in builder.batch_rows])
    drawn = feed.drawing.series.table
    drawn = drawn[~np.isnan(drawn[:, 1])][:-1]
    names = builder.manifest.metric_names
    t = np.concatenate([p.t for p in feed.window])
    for i, pair in enumerate(feed.pairs):
        for j, values in ((2 * i, dense[:, pair.feature]), (2 * i + 1, metrics[:, names.index(pair.metric or "")])):
            for row in drawn:
                mine = values[np.floor(t / 0.05 + 1e-9) == np.floor(row[0] / 0.05 + 1e-9)]
                np.testing.assert_allclose(row[1 + 3 * j : 4 + 3 * j], [mine.mean(), mine.min(), mine.max()], rtol=1e-5, atol=1e-6)
    raster = feed.drawing.raster
    newest = raster.tiles[raster.head // raster.columns % 2][::-1, raster.head % raster.columns]
    shown = [dense[-1, f] for f in feed.rows]
    assert ((newest[: len(shown)] > 1) >= (np.array(shown) > 0)).all()
    assert feed.returned is None or feed.returned >= 0
    builder.close()


def test_neurons_vector_environments_and_missing_codes(db: Path) -> None:
    builder = StoreBuilder(db, neurons=True, envs=4, pictures=False)
    builder.frames(100)
    builder.frames(10, missing=True)
    feed = Feed(db)
    feed.pull()
    assert feed.label(3) == "n3"
    assert len(feed.window) == 110, "one environment's frames"
    raster = feed.drawing.raster
    last = raster.tiles[raster.head // raster.columns % 2][:, raster.head % raster.columns]
    assert (last == 0).all(), "frames that were not encoded are missing, not inactive"
    builder.close()


def test_a_lost_stretch_is_a_gap_and_ends_the_return(db: Path) -> None:
    builder = StoreBuilder(db, pictures=False)
    builder.frames(100)
    feed = Feed(db)
    feed.pull()
    assert feed.returned == 100
    builder.lose(50)
    builder.frames(20)
    pull(feed)
    assert feed.returned is None
    assert np.isnan(feed.drawing.series.table[:, 1]).sum() >= 1
    builder.close()


def test_another_boot_and_another_file_start_afresh(db: Path) -> None:
    first = StoreBuilder(db, pictures=False)
    first.frames(100)
    first.accounts(ended=True)
    feed = Feed(db)
    feed.pull()
    assert feed.freshness().state == "ENDED"
    drawing = feed.drawing
    first.close()
    second = StoreBuilder(db, boot="b1", start_wall_ns=first.start_wall_ns + 10**10, pictures=False)
    second.frames(30)
    pull(feed, slow=True)
    assert feed.boot is not None
    assert (feed.boot.boot, len(feed.window), feed.freshness().state) == ("b1", 30, "LIVE")
    assert feed.drawing is not drawing
    second.close()
    for path in db.parent.iterdir():
        path.unlink()
    pull(feed)
    assert feed.boot is None
    third = StoreBuilder(db, boot="b2", pictures=False)
    third.frames(20)
    pull(feed)
    assert (feed.boot.boot if feed.boot else "", len(feed.window)) == ("b2", 20)
    third.close()


def test_an_analyzer_that_resumes_keeps_the_page(db: Path) -> None:
    builder = StoreBuilder(db, pictures=False)
    builder.frames(100)
    feed = Feed(db)
    feed.pull()
    drawing = feed.drawing
    builder.close()
    resumed = StoreBuilder(db, pictures=False)
    assert resumed.section == 2
    resumed.frames(100)
    pull(feed, slow=True)
    assert len(feed.window) == 200
    assert feed.drawing is drawing
    resumed.close()


def test_a_database_that_cannot_be_read_is_said_after_a_while(db: Path) -> None:
    builder = StoreBuilder(db, pictures=False)
    builder.frames(50)
    feed = Feed(db)
    feed.pull()
    builder.close()
    feed.reader.close()
    holder = sqlite3.connect(db, isolation_level=None)
    holder.execute("PRAGMA locking_mode=EXCLUSIVE")
    holder.execute("BEGIN EXCLUSIVE")
    pull(feed)
    assert (feed.failures, feed.problem, len(feed.window)) == (1, "", 50)
    end = time.monotonic() + 20
    while not feed.problem and time.monotonic() < end:
        pull(feed)
    assert "locked" in feed.problem
    holder.execute("COMMIT")
    holder.close()
    pull(feed)
    assert feed.problem == ""


def test_a_foreign_file_is_named(db: Path) -> None:
    db.write_bytes(b"something else entirely " * 100)
    feed = Feed(db)
    feed.pull()
    assert "name another file" in feed.problem


def test_fast_runs_are_drawn_by_their_extremes(db: Path) -> None:
    builder = StoreBuilder(db, period_s=0.0005, pictures=False)
    builder.frames(20_000, rows=200)
    feed = Feed(db)
    feed.pull()
    assert len(feed.drawing.series.table) <= 10 / feed.drawing.series.bin_s + 2 * 40 + 10, "bins, and a break at each episode"
    assert feed.window.steps_per_s == pytest.approx(2000, rel=0.01)
    builder.close()
