"""What the analyzer makes of messages: rows, accounts, sections, and the same for the same batches."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from bench.synthetic import Synthetic

from interlatent_live.analyzer.blobs import unpack_columns
from interlatent_live.analyzer.codes import Codes
from interlatent_live.analyzer.door import Analyzer
from interlatent_live.analyzer.queries import Reader
from interlatent_live.analyzer.store import Store
from interlatent_live.stream.wire import Bye, Heartbeat, Picture, Signals

COUNTS = (
    "next_seq", "produced", "queue_dropped", "subscriber_queue_dropped", "not_subscribed", "wire_lost", "received",
)  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "r.db") as opened:
        yield opened


def small(**changes: object) -> Synthetic:
    return Synthetic(**{"width": 12, "metrics": 3, "episode_steps": 40, **changes})  # type: ignore[arg-type]


def ledger(store: Store, boot: str = "b0") -> dict[str, int]:
    row = store.one(f"SELECT {', '.join(COUNTS)}, analyzed FROM ledger WHERE boot = ?", boot)
    return dict(zip((*COUNTS, "analyzed"), row, strict=True))


def beat(
    stream: Synthetic, kind: type[Heartbeat] = Heartbeat, produced: int | None = None, **status: float
) -> Heartbeat:
    total = stream.seq if produced is None else produced
    return kind(stream.manifest.run, stream.manifest.boot, 1, 1, total, stream.queue_dropped, total, 0, status)


def test_a_batch_becomes_one_row_of_batches_and_one_of_codes(store: Store) -> None:
    stream, analyzer = small(), Analyzer(store)
    analyzer.feed(stream.manifest)
    batches = list(stream.batches(30, 8))
    for batch in batches:
        analyzer.feed(batch)
    assert store.run == "synthetic"
    rows = store.all("SELECT first_seq, rows, columns FROM batches ORDER BY id")
    assert [row[:2] for row in rows] == [(b.first_seq, 8) for b in batches]
    for (_, _, blob), batch in zip(rows, batches, strict=True):
        columns = unpack_columns(blob)
        assert list(columns) == list(batch.columns)
        assert all(columns[name].tobytes() == array.tobytes() for name, array in batch.columns.items())
    codes = store.all("SELECT batch_id, active, encoded, non_finite, sse, blob FROM codes ORDER BY batch_id")
    assert [row[0] for row in codes] == list(range(1, 31))
    assert [row[2] for row in codes] == [0] * 8 + [8] * 22  # the first 64 frames tell what is usual of a neuron
    for _, active, encoded, non_finite, sse, blob in codes:
        unpacked = Codes.from_blob(blob)
        assert (unpacked.active, unpacked.rows, unpacked.features) == (active, encoded, 12)
        assert (non_finite, sse) == (0, None)
    assert ledger(store)["analyzed"] == 240
    assert store.all("SELECT first_seq, next_seq, reason, mismatch, dictionary_hash FROM sections JOIN dictionaries "
                     "ON hash = dictionary_hash WHERE kind = 'neurons'")[0][:4] == (0, 240, "start", 0)


def test_events_peaks_quality_snapshots_and_episodes_follow(store: Store) -> None:
    stream, analyzer = small(rate_hz=50.0), Analyzer(store)
    analyzer.feed(stream.manifest)
    for batch in stream.batches(500, 4):  # 40 s
        analyzer.feed(batch)
    analyzer.close()
    counts = {t: store.one(f"SELECT count(*) FROM {t}")[0] for t in ("events", "peaks", "quality", "activity")}
    assert counts["events"] > 100
    assert 12 <= counts["peaks"] <= 12 * 16
    assert 38 <= counts["quality"] <= 40
    assert counts["activity"] == 1
    frames, active = store.one("SELECT frames, active FROM activity")
    stored = store.one("SELECT sum(active), sum(encoded) FROM codes")
    assert (np.frombuffer(active, "<u4").sum(), frames) == stored
    assert store.all("SELECT span, count(*) FROM correlation_snapshots GROUP BY span") == [("rolling", 3), ("start", 3)]
    top = store.all("SELECT metric, feature, r, significant FROM correlations WHERE snapshot_id = "
                    "(SELECT max(id) FROM correlation_snapshots) ORDER BY metric, abs(r) DESC")
    assert len(top) == 3 * 8
    assert [(m, f, s) for m, f, r, s in top[::8]] == [(f"metric_{i}", i, 1) for i in range(3)]
    episodes = store.all("SELECT episode, first_seq, last_seq, steps, return, complete, terminated FROM episodes")
    assert episodes == [(e, 40 * e, 40 * e + 39, 40, 40.0, 1, 1) for e in range(50)]


def test_snapshots_that_stay_are_the_last_two_and_one_a_minute(store: Store) -> None:
    stream, analyzer = small(rate_hz=10.0), Analyzer(store)
    analyzer.feed(stream.manifest)
    for batch in stream.batches(400, 5):  # 200 s
        analyzer.feed(batch)
    kept = store.all("SELECT next_seq FROM correlation_snapshots WHERE span = 'rolling' ORDER BY id")
    assert len(kept) in (4 + 2, 4 + 1)  # the newest may be the first of its minute
    stray = "SELECT count(*) FROM correlations WHERE snapshot_id NOT IN (SELECT id FROM correlation_snapshots)"
    assert store.one(stray) == (0,)


def test_every_reference_between_tables_holds(store: Store) -> None:
    stream, analyzer = small(), Analyzer(store)
    analyzer.feed(stream.manifest)
    for batch in stream.batches(300, 8):
        analyzer.feed(batch)
    analyzer.close()
    assert store.all("PRAGMA foreign_key_check") == []


def test_batches_wait_for_their_manifest_and_nothing_overtakes_them(store: Store) -> None:
    stream, analyzer = small(), Analyzer(store)
    early = list(stream.batches(3, 4))
    for batch in early:
        analyzer.feed(batch)
    analyzer.feed(beat(stream, hook_failures=float("nan"), overhead_us_median=7.5))
    assert store.one("SELECT count(*) FROM batches") == (0,)
    analyzer.feed(stream.manifest)
    analyzer.feed(stream.batch(4))
    assert store.all("SELECT first_seq FROM batches ORDER BY id") == [(0,), (4,), (8,), (12,)]
    found = ledger(store)
    assert [found[k] for k in ("wire_lost", "not_subscribed", "received", "analyzed")] == [0, 0, 16, 16]
    status = json.loads(store.one("SELECT status FROM ledger")[0])
    assert status == {"hook_failures": None, "overhead_us_median": 7.5}


def test_batches_whose_manifest_never_comes_are_counted(store: Store) -> None:
    stream, analyzer = small(), Analyzer(store)
    for batch in stream.batches(3, 4):
        analyzer.feed(batch)
    analyzer.close()
    assert json.loads(store.one("SELECT refused FROM ledger")[0]) == {"no_manifest": 12}
    assert ledger(store)["received"] == 12
    assert ledger(store)["analyzed"] == 0


def test_waiting_is_bounded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("interlatent_live.analyzer.boots.MAX_WAITING", 2)
    stream, analyzer = small(), Analyzer(store)
    for batch in stream.batches(5, 4):
        analyzer.feed(batch)
    analyzer.feed(stream.manifest)
    assert json.loads(store.one("SELECT refused FROM ledger")[0]) == {"no_manifest": 12}
    assert ledger(store)["analyzed"] == 8


def test_losses_are_told_apart_and_add_up(store: Store) -> None:
    stream, analyzer = small(), Analyzer(store)
    analyzer.feed(stream.manifest)
    stream.skip(10)
    analyzer.feed(stream.batch(4))  # not subscribed before
    stream.skip(3)
    analyzer.feed(stream.batch(4))  # lost on the wire
    stream.skip(5, queue_dropped=True)
    batch = stream.batch(4)
    analyzer.feed(batch)
    analyzer.feed(batch)  # again: ignored
    analyzer.feed(beat(stream, produced=stream.seq + 2))  # the tail
    found = ledger(store)
    assert found == {
        "next_seq": 32, "produced": 32, "queue_dropped": 5, "subscriber_queue_dropped": 5, "not_subscribed": 10,
        "wire_lost": 5, "received": 12, "analyzed": 12,
    }  # fmt: skip
    assert found["produced"] == sum(found[k] for k in ("queue_dropped", "not_subscribed", "wire_lost", "received"))
    gaps = store.all("SELECT first_seq, next_seq, reason, lost FROM gaps ORDER BY first_seq")
    assert gaps == [
        (0, 10, "not_subscribed", 10),
        (14, 17, "wire_lost", 3),
        (21, 26, "queue_dropped", 5),
        (30, 32, "wire_lost", 2),
    ]
    assert store.one("SELECT return FROM episodes WHERE episode = 0") == (None,)  # frames of it are missing


def test_an_agent_that_starts_again_begins_new_sections_and_accounts(store: Store) -> None:
    first, second = small(), small(boot="b1", seed=1)
    analyzer = Analyzer(store)
    for stream in (first, second, first):
        analyzer.feed(stream.manifest)
        for batch in stream.batches(4, 4):
            analyzer.feed(batch)
    analyzer.feed(beat(first, Bye))
    assert analyzer.ended
    assert store.all("SELECT boot, ended FROM boots ORDER BY boot") == [("b0", 1), ("b1", 0)]
    sections = store.all("SELECT boot, first_seq, next_seq, reason FROM sections ORDER BY id")
    assert sections == [("b0", 0, 16, "start"), ("b1", 0, 16, "start"), ("b0", 16, 32, "resume")]
    assert [ledger(store, boot)["analyzed"] for boot in ("b0", "b1")] == [32, 16]


def test_a_changed_manifest_begins_a_new_section(store: Store) -> None:
    stream, analyzer = small(), Analyzer(store)
    analyzer.feed(stream.manifest)
    analyzer.feed(stream.batch(4))
    stream.manifest = dataclasses.replace(stream.manifest, weights="changing")
    late = stream.batch(4)
    analyzer.feed(late)  # waits
    analyzer.feed(stream.manifest)
    sections = store.all("SELECT first_seq, next_seq, reason, manifest_hash FROM sections ORDER BY id")
    assert [s[:3] for s in sections] == [(0, 4, "start"), (4, 8, "manifest")]
    assert sections[1][3] == stream.manifest.hash
    assert store.one("SELECT count(*) FROM manifests") == (2,)


def test_what_contradicts_its_manifest_is_refused_and_counted(store: Store) -> None:
    stream, analyzer = small(), Analyzer(store)
    analyzer.feed(stream.manifest)
    good = stream.batch(4)
    wide = dataclasses.replace(good, activations={"0:out": np.zeros((4, 13), np.float32)})
    analyzer.feed(wide)
    other = stream.batch(4)
    analyzer.feed(dataclasses.replace(other, columns={**other.columns, "metrics": np.zeros((4, 2))}))
    analyzer.feed(stream.batch(4))
    assert json.loads(store.one("SELECT refused FROM ledger")[0]) == {"manifest_mismatch": 8}
    assert ledger(store)["received"] == 12
    assert ledger(store)["analyzed"] == 4


def test_another_run_is_counted_and_left_alone(store: Store) -> None:
    stream, other, analyzer = small(), small(run="other"), Analyzer(store)
    analyzer.feed(stream.manifest)
    analyzer.feed(other.manifest)
    analyzer.feed(other.batch(4))
    analyzer.feed(stream.batch(4))
    assert store.one("SELECT count(*) FROM batches") == (1,)
    assert json.loads(store.one("SELECT refused FROM ledger")[0]) == {"other_run": 2}


def test_frames_that_are_not_finite_are_missing_and_counted(store: Store) -> None:
    stream, analyzer = small(), Analyzer(store)
    analyzer.feed(stream.manifest)
    for batch in stream.batches(20, 4):
        analyzer.feed(batch)
    batch = stream.batch(4)
    x = batch.activations["0:out"].copy()
    x[1, 3], x[2, 0] = np.nan, np.inf
    analyzer.feed(dataclasses.replace(batch, activations={"0:out": x}))
    analyzer.feed(dataclasses.replace(stream.batch(4), activations={}))  # no forward ran: a row, but no codes
    assert store.one("SELECT encoded, non_finite FROM codes WHERE batch_id = 21") == (2, 2)
    analyzer.commit()
    with Reader(store.path) as reader:
        broken, whole = (reader.codes(store.one("SELECT id FROM sections")[0], i, i)[0] for i in (21, 20))
    assert broken.rows.tolist() == [0, 3]
    assert whole.rows.tolist() == list(range(4))
    assert store.one("SELECT count(*) FROM codes WHERE batch_id = 22") == (0,)
    assert store.one("SELECT count(*) FROM batches") == (22,)


def test_pictures_are_kept_and_signals_are_not(store: Store) -> None:
    stream, analyzer = small(), Analyzer(store)
    analyzer.feed(stream.manifest)
    picture = Picture("synthetic", "b0", 3, 3, 0, 1, 2, 64, 48, b"jpeg")
    for message in (picture, picture, Signals("synthetic", 1, {"a": 1.0})):
        analyzer.feed(message)
    assert store.all("SELECT seq, width, data FROM pictures") == [(3, 64, b"jpeg")]
