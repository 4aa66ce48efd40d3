from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.explained import Run
from tests.test_swap import fed

from interlatent_live.explainer.source import Source


def test_reads_what_is_new_and_keeps_the_split(tmp_path: Path) -> None:
    run = Run(tmp_path / "r.db")
    source = Source(tmp_path / "r.db")
    run.write(3)
    assert sum(len(p) for p in source.pull()) == 300
    before = source.kept()
    assert before is not None
    run.write(2)
    assert sum(len(p) for p in source.pull()) == 200
    assert source.pull() == []
    after = source.kept()
    assert after is not None
    assert after.table.episodes == 5
    assert after.held_out[:300].tolist() == before.held_out.tolist()
    assert sorted(set(after.table.episode[after.held_out].tolist())) == [1, 4]
    assert after.table.features is not None
    assert after.table.features.counts()[3:5].tolist() == [0, 500]
    source.close()
    run.close()


def test_a_dictionary_that_was_swapped_in_is_read_from_its_first_frame_on(tmp_path: Path) -> None:
    fed(tmp_path / "r.db", swap_at=23)
    source = Source(tmp_path / "r.db")
    pieces = source.pull()
    assert sum(len(p) for p in pieces) == 370
    assert source.subject is not None
    assert (source.subject.dictionary.name, source.subject.section.first_seq) == ("learned", 230)
    source.close()


def test_memory_is_bounded_and_held_out_episodes_stay_so(tmp_path: Path) -> None:
    run = Run(tmp_path / "r.db")
    run.write(10)
    source = Source(tmp_path / "r.db", max_frames=350)
    while source.pull(3):
        assert source.frames <= 350
    frames = source.kept()
    assert frames is not None
    assert source.seen == 1000
    assert frames.table.rows == 340
    assert sorted(set(frames.table.episode.tolist())) == [6, 7, 8, 9]
    assert sorted(set(frames.table.episode[frames.held_out].tolist())) == [6, 9]
    source.close()
    run.close()


def test_another_boot_of_the_same_weights_counts_and_other_weights_begin_afresh(tmp_path: Path) -> None:
    run = Run(tmp_path / "r.db")
    run.write(2)
    run.close()
    source = Source(tmp_path / "r.db")
    source.pull()
    epoch = source.epoch
    again = Run(tmp_path / "r.db", boot="b1")
    again.write(1)
    again.close()
    source.pull()
    frames = source.kept()
    assert frames is not None
    assert (source.epoch, frames.table.rows, frames.boots, frames.table.episodes) == (epoch, 300, ("b0", "b1"), 3)
    other = Run(tmp_path / "r.db", boot="b2", weights="w1")
    other.write(1)
    other.close()
    source.pull()
    frames = source.kept()
    assert frames is not None
    assert source.epoch > epoch
    assert frames.boots == ("b2",)
    source.close()


def test_rows_that_were_not_encoded_are_missing(tmp_path: Path) -> None:
    run = Run(tmp_path / "r.db")
    run.write(1)
    run.store.connection.execute("DELETE FROM codes WHERE batch_id = 2")
    source = Source(tmp_path / "r.db")
    source.pull()
    frames = source.kept()
    assert frames is not None
    assert frames.table.features is not None
    assert frames.table.features.encoded.tolist() == [not 20 <= i < 40 for i in range(100)]
    assert np.isnan(frames.table.number("f0")[25])
    source.close()
    run.close()


def test_a_database_that_is_not_there_is_nothing_to_read(tmp_path: Path) -> None:
    assert Source(tmp_path / "none.db").pull() == []


@pytest.mark.parametrize("batches", [1, 500])
def test_falling_behind_leaves_frames_out(tmp_path: Path, batches: int) -> None:
    run = Run(tmp_path / "r.db")
    run.write(20)
    source = Source(tmp_path / "r.db")
    source.pull(batches)
    assert source.skip() == (batches == 1)
    pieces = source.pull()
    assert (pieces[0].t[0] > 25) if batches == 1 else pieces == []
    source.close()
    run.close()
