"""Why actions were taken, in the store: recorded, analysed live and again, read back at the cursor, retired with their frames."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from tests.stream_samples import attribution, batch, heartbeat, manifest

from interlatent_live.analyzer.digest import digest
from interlatent_live.analyzer.door import Analyzer
from interlatent_live.analyzer.queries import Reader
from interlatent_live.analyzer.retention import Retention
from interlatent_live.analyzer.service import analyze_recording
from interlatent_live.analyzer.store import MIGRATIONS, Store
from interlatent_live.analyzer.writes import Writes
from interlatent_live.stream.attribution import Attribution
from interlatent_live.stream.errors import StoreError
from interlatent_live.stream.reading import Recording
from interlatent_live.stream.recording import Recorder
from interlatent_live.stream.wire import Bye, Message


def stream() -> list[Message]:
    """Forty frames, four of them explained, one of these for another environment."""
    found: list[Message] = [manifest()]
    for first in range(0, 40, 10):
        found += [batch(first, 10), attribution(first + 3, env=int(first == 20))]
    return [*found, heartbeat(40, Bye)]


def rows(db: Path) -> list[tuple[object, ...]]:
    with Store(db, readonly=True) as store:
        return store.all("SELECT * FROM attributions ORDER BY run, boot, env, seq")


def test_recorded_analysed_and_read_at_the_cursor(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "r.mcap", keep_free_bytes=0)
    for message in stream():
        recorder.write(message)
    recorder.close()
    kept = [m for m in Recording(tmp_path / "r.mcap").messages() if isinstance(m, Attribution)]
    assert [m.seq for m in kept] == [3, 13, 23, 33]
    for name in ("one.db", "two.db", "one.db"):  # twice is once
        analyze_recording(tmp_path / "r.mcap", tmp_path / name)
    assert rows(tmp_path / "one.db") == rows(tmp_path / "two.db")
    with Store(tmp_path / "live.db") as store:
        analyzer = Analyzer(store)
        for message in stream():
            analyzer.feed(message)
        analyzer.close()
    assert rows(tmp_path / "live.db") == rows(tmp_path / "one.db"), "live and replay give the same rows"
    assert digest(tmp_path / "live.db") == digest(tmp_path / "one.db")
    with Reader(tmp_path / "one.db") as reader:
        assert reader.attribution("b0", 0, 2) is None
        assert reader.attribution("b9") is None
        found = [reader.attribution("b0", env, until) for env, until in ((0, 3), (0, 12), (0, 30), (1, None), (0, None))]
        assert [one.seq for one in found if one is not None] == [3, 3, 13, 23, 33]
        one, wanted = found[0], attribution(3)
        assert one is not None
        for name, array in wanted.arrays().items():
            np.testing.assert_array_equal(getattr(one, name), array)
        assert (one.names, one.chosen, one.kind, one.dictionary) == (wanted.names, 1, "logits", wanted.dictionary)


def test_no_choice_is_null(tmp_path: Path) -> None:
    with Store(tmp_path / "r.db") as store:
        analyzer = Analyzer(store)
        for message in (manifest(), batch(0, 2), attribution(1, chosen=-1, kind="means")):
            analyzer.feed(message)
        analyzer.close()
        assert store.one("SELECT chosen FROM attributions") == (None,)
    with Reader(tmp_path / "r.db") as reader:
        found = reader.attribution("b0")
    assert found is not None
    assert found.chosen == -1


def test_they_go_with_their_frames(tmp_path: Path) -> None:
    with Store(tmp_path / "r.db") as store:
        analyzer = Analyzer(store, retention=Retention(store, max_age_s=2.0))
        analyzer.feed(manifest())
        for first in range(0, 1000, 50):  # a second of frames at a time
            analyzer.feed(batch(first, 50))
            analyzer.feed(attribution(first + 10))
        analyzer.close()
        batches = [int(row[0]) for row in store.all("SELECT first_seq FROM batches ORDER BY first_seq")]
        seqs = [int(row[0]) for row in store.all("SELECT seq FROM attributions ORDER BY seq")]
    assert 0 < len(seqs) < 20
    assert seqs[-1] == 960
    held = {first + i for first in batches for i in range(50)}
    peaked = [seq for seq in seqs if seq not in held]
    assert not peaked


def test_a_database_from_before_has_none_until_it_is_written_again(tmp_path: Path) -> None:
    before = next(i for i, script in enumerate(MIGRATIONS) if "CREATE TABLE attributions" in script)
    with Store(tmp_path / "r.db", "agent", migrations=MIGRATIONS[:before]) as store:
        writes = Writes()
        writes.insert("boots", run="agent", boot="b0", manifest_hash=None, started_wall_ns=0)
        store.commit(writes)
    with Reader(tmp_path / "r.db") as reader:
        assert reader.attribution("b0") is None
    with Store(tmp_path / "r.db") as store:
        assert store.one("SELECT count(*) FROM attributions") == (0,)


def test_a_damaged_row_is_said(tmp_path: Path) -> None:
    with Store(tmp_path / "r.db") as store:
        analyzer = Analyzer(store)
        for message in (manifest(), batch(0, 2), dataclasses.replace(attribution(1))):
            analyzer.feed(message)
        analyzer.close()
        writes = Writes()
        writes.execute("UPDATE attributions SET contributions = x'00'")
        store.commit(writes)
    with Reader(tmp_path / "r.db") as reader, pytest.raises(StoreError, match="damaged"):
        reader.attribution("b0")
