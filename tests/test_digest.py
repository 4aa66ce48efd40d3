"""The hash of an analysis: equal for equal batches however they came, and it says where two differ."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bench.synthetic import Synthetic

from interlatent_live.analyzer.digest import RETIRED, digest, verify
from interlatent_live.analyzer.door import Analyzer
from interlatent_live.analyzer.report import report
from interlatent_live.analyzer.service import analyze_recording
from interlatent_live.analyzer.store import Store
from interlatent_live.analyzer.writes import Writes
from interlatent_live.stream.errors import ForeignDatabase, StoreError
from interlatent_live.stream.recording import Recorder
from interlatent_live.stream.wire import Bye, Message


def messages(batches: int = 150, seed: int = 0) -> list[Message]:
    stream = Synthetic(width=12, metrics=3, episode_steps=40, seed=seed)
    frames = list(stream.batches(batches, 4))
    status = {"overhead_us_median": 5.0, "overhead_us_p99": 9.0}
    bye = Bye("synthetic", "b0", 1, 1, stream.seq, 0, stream.seq, 0, status)
    return [stream.manifest, *frames, bye]


def analysed(path: Path, fed: list[Message], every: int = 1) -> Path:
    with Store(path) as store:
        analyzer = Analyzer(store)
        for number, message in enumerate(fed):
            analyzer.feed(message, commit=number % every == 0)
        analyzer.close()
    return path


def test_the_grouping_of_transactions_leaves_no_trace(tmp_path: Path) -> None:
    fed = messages()
    one, many = analysed(tmp_path / "a.db", fed), analysed(tmp_path / "b.db", fed, every=37)
    assert digest(one) == digest(many)
    assert len(digest(one)) == 64
    assert verify(one, many) is None


def test_a_recording_gives_the_rows_of_the_live_stream(tmp_path: Path) -> None:
    fed = messages()
    live = analysed(tmp_path / "live.db", fed)
    recorder = Recorder(tmp_path / "r.mcap")
    for message in fed:
        recorder.write(message)
    recorder.close()
    done = analyze_recording(tmp_path / "r.mcap", tmp_path / "again.db")
    assert done == {"run": "synthetic", "frames": 600, "analyzed": 600, "received": 600, "lost": 0}
    assert verify(live, tmp_path / "again.db") is None
    assert digest(live) == digest(tmp_path / "again.db")
    # the same recording again into the same database adds nothing
    assert analyze_recording(tmp_path / "r.mcap", tmp_path / "again.db")["frames"] == 0
    assert verify(live, tmp_path / "again.db") is None
    with pytest.raises(ForeignDatabase):
        analyze_recording(tmp_path / "r.mcap", tmp_path / "again.db", run="other")
    analyze_recording(tmp_path / "r.mcap", tmp_path / "part.db", seconds=2.0)
    with Store(tmp_path / "part.db", readonly=True) as store:
        assert store.one("SELECT max(last_monotonic_ns) - min(first_monotonic_ns) FROM batches")[0] >= 2e9
        assert store.one("SELECT count(*) FROM batches")[0] < 30


def test_the_first_difference_is_told(tmp_path: Path) -> None:
    fed = messages()
    a, b = analysed(tmp_path / "a.db", fed), analysed(tmp_path / "b.db", fed)
    shorter = analysed(tmp_path / "c.db", fed[:-2])
    other = analysed(tmp_path / "d.db", messages(seed=1))
    assert digest(a) != digest(other)
    assert "next_seq is 600" in str(verify(a, shorter))
    assert "columns is" in str(verify(a, other))
    with Store(b) as store:
        writes = Writes()
        writes.execute("UPDATE events SET peak = peak + 1e-12 WHERE id = 7")
        store.commit(writes)
    found = verify(a, b)
    assert found is not None
    assert found.startswith("events: row (boot b0, rank 1, feature")
    assert ": peak is" in found
    with Store(b) as store:
        writes = Writes()
        writes.execute("UPDATE events SET peak = (SELECT 1.0 * peak FROM events WHERE id = 7) WHERE id = 7")
        writes.execute("DELETE FROM quality")
        store.commit(writes)
    assert verify(analysed(tmp_path / "e.db", fed[:1]), analysed(tmp_path / "f.db", fed[:1])) is None


def test_one_dictionary_may_be_asked_for(tmp_path: Path) -> None:
    a = analysed(tmp_path / "a.db", messages())
    with Store(a, readonly=True) as store:
        (hash,) = store.one("SELECT hash FROM dictionaries")
    assert digest(a, hash) == digest(a)
    assert digest(a, "none") != digest(a)


def test_what_was_retired_is_not_compared(tmp_path: Path) -> None:
    a = analysed(tmp_path / "a.db", messages(10))
    with Store(a) as store:
        writes = Writes()
        writes.insert("meta", key=RETIRED, value="4")
        store.commit(writes)
    with pytest.raises(StoreError, match="4 old frames were retired"):
        digest(a)


def test_the_report_has_every_key_and_adds_up(tmp_path: Path) -> None:
    fed = messages()
    del fed[5]  # lost on the wire
    found = report(analysed(tmp_path / "a.db", fed))
    assert list(found) == [
        "agent", "seconds", "steps", "episodes", "mean_return", "ledger", "latency_ms", "overhead_us", "features",
        "dictionary", "top_correlations",
    ]  # fmt: skip
    ledger = found["ledger"]
    assert ledger == {
        "produced": 600, "queue_dropped": 0, "recorded": 600, "record_failed": 0,
        "subscriber": {"not_subscribed": 0, "wire_lost": 4, "received": 596}, "analyzed": 596,
        "dropped": {"wire_lost": 4},
    }  # fmt: skip
    assert (found["agent"], found["steps"], found["episodes"], found["mean_return"]) == ("synthetic", 600, 15, 40.0)
    assert found["seconds"] == pytest.approx(599 * 0.02)
    assert found["overhead_us"] == {"median": 5.0, "p99": 9.0}
    assert found["latency_ms"] == {"p50": None, "p99": None}
    assert found["features"]["total"] == found["features"]["alive"] == 12
    assert found["features"]["events"] > 0
    assert found["dictionary"] == {"hash": None, "fvu_live": None, "fvu_card": None}
    top = found["top_correlations"]
    assert [(t["metric"], t["feature"]) for t in top] == [("metric_0", 0), ("metric_1", 1), ("metric_2", 2)]
    assert set(top[0]) == {"feature", "metric", "r", "n", "n_eff", "ci", "significant"}
    assert top[0]["ci"][0] < top[0]["r"] < top[0]["ci"][1]
    json.dumps(found, allow_nan=False)


def test_a_report_of_nothing_is_null_and_of_no_run_an_error(tmp_path: Path) -> None:
    with Store(tmp_path / "a.db", run="x"):
        pass
    with pytest.raises(StoreError, match="no run yet"):
        report(tmp_path / "a.db")
    manifest = messages(1)[0]
    found = report(analysed(tmp_path / "b.db", [manifest]), agent="mine")
    assert found["agent"] == "mine"
    assert found["features"] == {"total": None, "alive": None, "events": None}
    assert [t["r"] for t in found["top_correlations"]] == [None] * 3
    assert found["mean_return"] is None
