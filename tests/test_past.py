"""The past at a cursor: windows of the database, wherever they are asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.store_builder import StoreBuilder

from interlatent_live.analyzer.codes import Codes
from interlatent_live.analyzer.queries import Reader
from interlatent_live.stream.errors import StoreError
from interlatent_live.viewer.cursor import Cursor
from interlatent_live.viewer.drawing import SPAN_S
from interlatent_live.viewer.feed import Feed
from interlatent_live.viewer.past import KEPT_FRAMES
from interlatent_live.viewer.stretch import _one_by_one, stretch
from interlatent_live.viewer.timeline import BINS, Density


@pytest.fixture
def cursor(tmp_path: Path) -> Cursor:
    builder = StoreBuilder(tmp_path / "run.db", envs=2, pictures=False)
    builder.frames(3000, rows=5)
    builder.lose(100)
    builder.frames(500, rows=5)
    builder.snapshot()
    builder.close()
    feed = Feed(tmp_path / "run.db", env=1)
    feed.pull()
    return Cursor(feed)


def test_any_frame_is_found_with_its_window(cursor: Cursor) -> None:
    cursor.obey({"op": "pause"})
    clip = cursor.clip
    assert clip is not None
    assert cursor.behind == 0
    for seq in (1, 2001, 5999, 6103, 777, 6):
        cursor.obey({"op": "seek", "to": seq})
        while clip.fill(1.0):
            pass
        wanted = seq if seq % 2 else seq - 1  # environment 1 has the odd ones
        assert clip.seq == wanted
        assert clip.frames is not None
        assert clip.start <= clip.t <= clip.end
        assert (np.diff(clip.frames.t) > 0).all()
        assert clip.frames.t[0] <= max(clip.start, 0.0) + 0.02 or clip.frames.seq[0] == 1
        assert clip.end - clip.start <= SPAN_S + 1e-9
    newest = cursor.feed.window.last.seq[-1]
    assert cursor.behind == newest - clip.seq


def test_steps_go_by_frames_of_the_environment_and_stop_at_the_ends(cursor: Cursor) -> None:
    cursor.obey({"op": "seek", "to": 5995})
    clip = cursor.clip
    assert clip is not None
    seen = [clip.seq]
    for _ in range(4):
        cursor.obey({"op": "step", "to": 1})
        seen.append(clip.seq)
    assert seen == [5995, 5997, 5999, 6101, 6103], "over the gap"
    cursor.obey({"op": "seek", "to": 1})
    cursor.obey({"op": "step", "to": -1})
    assert clip.seq == 1
    cursor.obey({"op": "live"})
    assert cursor.live


def test_nonsense_is_ignored(cursor: Cursor) -> None:
    for command in ({}, {"op": "seek"}, {"op": "seek", "to": "x"}, {"op": "seek", "to": 1e300}, {"op": "fly", "to": 1}):
        cursor.obey(command)
    assert cursor.clip is None or cursor.clip.frames is not None


def test_what_is_drawn_of_the_past_is_what_was_drawn_live(cursor: Cursor) -> None:
    live = cursor.feed.drawing
    cursor.obey({"op": "pause"})
    assert cursor.clip is not None
    while cursor.clip.fill(1.0):
        pass
    past = cursor.drawing(live)
    assert past is not live
    head = min(live.raster.head, past.raster.head)
    for column in range(head - 400, head):
        tile, at = column // live.raster.columns % 2, column % live.raster.columns
        np.testing.assert_array_equal(live.raster.tiles[tile][:, at], past.raster.tiles[tile][:, at])


def test_many_batches_at_once_are_what_they_are_one_by_one(tmp_path: Path) -> None:
    builder = StoreBuilder(tmp_path / "run.db", envs=2, pictures=False)
    for rows, missing in ((1, False), (4, False), (1, True), (3, False)):
        builder.frames(40, rows=rows, missing=missing)
        builder.lose(6)
    builder.close()
    with Reader(tmp_path / "run.db") as reader:
        for first, last, env in ((1, 40, 0), (30, 75, 1), (1, 1000, 1), (41, 50, 0)):
            found = stretch(reader, "b0", (builder.section,), first, last, builder.start_ns, env, 5)
            wanted = _one_by_one(reader, "b0", (builder.section,), first, last, builder.start_ns, env, 5)
            assert found is not None
            assert wanted is not None
            for name in ("t", "step", "episode", "episode_step", "reward", "metrics", "action", "version", "seq"):
                np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name), name)
            slots = np.arange(builder.features)
            np.testing.assert_array_equal(found.values(slots, 64), wanted.values(slots, 64))
        assert stretch(reader, "b0", (builder.section,), 5000, 6000, 0, 0, 5) is None
    blobs = [Codes.from_dense(np.eye(3, 7, k, np.float32)).to_blob() for k in range(4)]
    joined = Codes.from_blobs(blobs)
    np.testing.assert_array_equal(joined.dense(), np.concatenate([Codes.from_blob(b).dense() for b in blobs]))
    for damaged in (blobs[0][:-1], blobs[0] + b"x", b"\x01\x01"):
        with pytest.raises(StoreError):
            Codes.from_blobs([blobs[1], damaged])


def test_memory_is_bounded(cursor: Cursor) -> None:
    assert KEPT_FRAMES <= 100_000
    density = Density()
    density.add([5])
    density.add(list(range(0, 10_000_000, 1000)))
    assert len(density.counts) == BINS
    assert density.counts.sum() == 10_001
    assert density.width * BINS > 10_000_000
