"""The analyzer as a process: live over real sockets, killed, started again, told to stop, out of disk."""

from __future__ import annotations

import dataclasses
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from bench.synthetic import Synthetic

from interlatent_live.analyzer.digest import verify
from interlatent_live.analyzer.door import Analyzer
from interlatent_live.analyzer.report import report
from interlatent_live.analyzer.service import analyze_recording, analyze_stream
from interlatent_live.analyzer.store import Store
from interlatent_live.stream.errors import StoreError, StoreFull
from interlatent_live.stream.publisher import Publisher
from interlatent_live.stream.recording import Recorder
from interlatent_live.stream.wire import Bye, Heartbeat

HOST_BOOT = Path("/proc/sys/kernel/random/boot_id")
ANALYZER = """
import resource, signal, sys
from interlatent_live.analyzer.service import analyze_stream
told = []
signal.signal(signal.SIGTERM, lambda *_: told.append(1))
if len(sys.argv) > 3:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]),) * 2)
print(analyze_stream(sys.argv[1], sys.argv[2], neurons_only=True, stop=lambda: bool(told)))
"""


class Agent(threading.Thread):
    """Publishes 4 frames every few ms, as the agent's sender would, until told to say goodbye."""

    def __init__(self, stream: Synthetic, *, recorder: Recorder | None = None, frames: int | None = None) -> None:
        super().__init__()
        self.stream, self.recorder, self.frames = stream, recorder, frames
        self.publisher = Publisher("tcp://127.0.0.1:*")
        self.endpoint = self.publisher.endpoint
        self.finish = threading.Event()
        self.silent = False
        """Whether to end without a farewell."""

    def run(self) -> None:
        publisher, stream, beat = self.publisher, self.stream, 0.0
        while not publisher.poll() and not self.finish.is_set():
            time.sleep(0.005)
        self._send(stream.manifest)
        while not self.finish.is_set() and (self.frames is None or stream.seq < self.frames):
            if publisher.poll() or time.monotonic() - beat > 0.3:
                beat = time.monotonic()
                publisher.send(stream.manifest)
                self._send(Heartbeat(*self._accounts()))
            self._send(stream.batch(4, now_ns=(time.monotonic_ns(), time.time_ns())))
            time.sleep(0.004)
        if not self.silent:
            self._send(Bye(*self._accounts()))
        if self.recorder is not None:
            self.recorder.close()
        self.publisher.close()

    def _accounts(self) -> tuple[str, str, int, int, int, int]:
        manifest = self.stream.manifest
        return manifest.run, manifest.boot, time.monotonic_ns(), time.time_ns(), self.stream.seq, 0

    def _send(self, message: object) -> None:
        if self.recorder is not None:
            self.recorder.write(message)  # type: ignore[arg-type]
        self.publisher.send(message)  # type: ignore[arg-type]


@contextmanager
def agent(**options: object) -> Iterator[Agent]:
    boot = str(options.pop("boot", "b0"))
    stream = Synthetic(
        width=12, metrics=3, episode_steps=40, boot=boot, start_ns=time.monotonic_ns(), host_boot=HOST_BOOT.read_text().strip()
    )
    thread = Agent(stream, **options)  # type: ignore[arg-type]
    thread.start()
    try:
        yield thread
    finally:
        thread.finish.set()
        thread.join(10)


@contextmanager
def analyzer(endpoint: str, db: Path, *more: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", ANALYZER, endpoint, str(db), *more]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def committed(db: Path) -> int:
    """Frames in the database; 0 while there is none."""
    try:
        with Store(db, readonly=True) as store:
            return int(store.one("SELECT coalesce(sum(rows), 0) FROM batches")[0])
    except StoreError:
        return 0


def balanced(db: Path) -> dict[str, int]:
    """The accounts of each boot, after checking that they add up."""
    with Store(db, readonly=True) as store:
        assert store.one("PRAGMA integrity_check") == ("ok",)
        assert store.all("PRAGMA foreign_key_check") == []
        for boot, produced, *losses, received, analyzed in store.all(
            "SELECT boot, produced, subscriber_queue_dropped, not_subscribed, wire_lost, received, analyzed FROM ledger"
        ):
            assert produced == sum(losses) + received
            assert received == analyzed == store.one("SELECT sum(rows) FROM batches WHERE boot = ?", boot)[0]
            lost = store.one("SELECT coalesce(sum(lost), 0) FROM gaps WHERE boot = ?", boot)[0]
            assert lost == sum(losses)
        return dict(store.all("SELECT boot, analyzed FROM ledger"))


def test_a_live_stream_and_its_recording_give_the_same_rows(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "r.mcap")
    with agent(recorder=recorder, frames=400) as acting:
        done = analyze_stream(acting.endpoint, tmp_path / "live.db", neurons_only=True)
    assert done == {"run": "synthetic", "frames": 400, "analyzed": 400, "received": 400, "lost": 0}
    analyze_recording(tmp_path / "r.mcap", tmp_path / "again.db", neurons_only=True)
    assert verify(tmp_path / "live.db", tmp_path / "again.db") is None
    found = report(tmp_path / "live.db")
    assert found["ledger"]["produced"] == 400
    assert 0 < found["latency_ms"]["p50"] <= found["latency_ms"]["p99"]
    assert report(tmp_path / "again.db")["latency_ms"] == {"p50": None, "p99": None}


def test_a_killed_analyzer_loses_no_committed_row_and_names_the_gap(tmp_path: Path) -> None:
    db = tmp_path / "r.db"
    with agent() as acting:
        with analyzer(acting.endpoint, db) as first:
            until(lambda: committed(db) > 200)
            first.send_signal(signal.SIGKILL)
            first.wait()
        with Store(db, readonly=True) as store:
            before = store.all("SELECT * FROM batches ORDER BY id")
            stored = store.all("SELECT * FROM codes ORDER BY batch_id")
            events = store.all("SELECT * FROM events ORDER BY id")
        here = acting.stream.seq
        until(lambda: acting.stream.seq > here + 100)
        with analyzer(acting.endpoint, db) as second:
            until(lambda: committed(db) > sum(row[4] for row in before) + 200)
            acting.finish.set()
            _, errors = second.communicate(timeout=60)
        assert second.returncode == 0, errors
    produced = acting.stream.seq
    with Store(db, readonly=True) as store:
        assert store.all("SELECT * FROM batches ORDER BY id")[: len(before)] == before
        assert store.all("SELECT * FROM codes ORDER BY batch_id")[: len(stored)] == stored
        assert store.all("SELECT * FROM events ORDER BY id")[: len(events)] == events
        assert store.all("SELECT reason FROM sections ORDER BY id") == [("start",), ("resume",)]
        assert store.one("SELECT produced FROM ledger") == (produced,)
        gaps = store.all("SELECT first_seq, next_seq, reason, lost FROM gaps ORDER BY first_seq")
        assert gaps[-1][2] == "not_subscribed"
        assert gaps[-1][3] >= 100
        assert store.one("SELECT ended FROM boots") == (1,)
    balanced(db)


def test_sigterm_commits_what_it_has(tmp_path: Path) -> None:
    db = tmp_path / "r.db"
    with agent() as acting, analyzer(acting.endpoint, db) as process:
        until(lambda: committed(db) > 100)
        process.terminate()
        output, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    assert "'run': 'synthetic'" in output
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r.db"]  # log and lock are gone
    with Store(db, readonly=True) as store:
        assert store.one("SELECT next_seq FROM sections") == store.one("SELECT max(first_seq + rows) FROM batches")
        assert store.one("SELECT next_seq FROM activity") == store.one("SELECT next_seq FROM sections")
    balanced(db)


def test_an_agent_that_dies_and_starts_again_is_followed(tmp_path: Path) -> None:
    db, endpoint = tmp_path / "r.db", ""
    with agent() as first:
        endpoint = first.endpoint
        with analyzer(endpoint, db) as process:
            until(lambda: committed(db) > 100)
            first.silent = True
            first.finish.set()
            first.join()
            stream = dataclasses.replace(first.stream.manifest, boot="b1")
            second = Agent(Synthetic(width=12, metrics=3, boot=stream.boot, seed=1))
            second.publisher.close()
            second.publisher = Publisher(endpoint)
            second.start()
            until(lambda: second.stream.seq > 200)
            second.finish.set()
            second.join()
            _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    counts = balanced(db)
    assert set(counts) == {"b0", "b1"}
    with Store(db, readonly=True) as store:
        assert store.all("SELECT boot, ended FROM boots ORDER BY boot") == [("b0", 0), ("b1", 1)]


def test_a_disk_that_stays_full_ends_the_analyzer_and_keeps_what_was_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    db = tmp_path / "r.db"
    code = ANALYZER.replace("told = []", "told = []\nimport interlatent_live.analyzer.service as s; s.FULL_PATIENCE_S = 0.5")
    monkeypatch.setattr(sys.modules[__name__], "ANALYZER", code)
    with agent() as acting, analyzer(acting.endpoint, db, "400000") as process:
        _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "StoreFull" in errors
    assert "free space and start again" in errors
    with Store(db) as store:  # opens, and goes on
        assert store.one("PRAGMA integrity_check") == ("ok",)
        assert store.one("SELECT sum(rows) FROM batches")[0] == store.one("SELECT analyzed FROM ledger")[0] > 0


def test_a_disk_that_is_full_for_a_moment_costs_no_frame(tmp_path: Path) -> None:
    stream = Synthetic(width=12, metrics=3)
    with Store(tmp_path / "r.db") as store:
        fed = Analyzer(store, neurons_only=True)
        fed.feed(stream.manifest)
        for batch in stream.batches(30, 8):
            fed.feed(batch)
        pages = store.one("PRAGMA page_count")[0]
        store.connection.execute(f"PRAGMA max_page_count={pages}")

        def fill() -> None:
            for batch in stream.batches(200, 8):
                fed.feed(batch)

        with pytest.raises(StoreFull):
            fill()
        seen = stream.seq
        store.connection.execute(f"PRAGMA max_page_count={pages + 10_000}")
        fed.commit()
        fed.feed(stream.batch(8))
        fed.close()
        assert store.one("SELECT sum(rows), max(first_seq) FROM batches") == (seen + 8, seen)
        assert store.one("SELECT analyzed FROM ledger") == (seen + 8,)


def test_a_replayed_stream_has_no_latency(tmp_path: Path) -> None:
    stream = Synthetic(width=12, metrics=3, host_boot=HOST_BOOT.read_text().strip(), start_ns=1)
    with Store(tmp_path / "r.db") as store:
        fed = Analyzer(store, neurons_only=True, live_since_ns=time.monotonic_ns())
        fed.feed(stream.manifest)
        fed.feed(stream.batch(8))
        fed.feed(stream.batch(8, now_ns=(time.monotonic_ns() + 500_000_000, time.time_ns())))
        fed.close()
        assert store.one("SELECT latency_p50_ms FROM ledger")[0] is not None
    with Store(tmp_path / "s.db") as store:
        fed = Analyzer(store, neurons_only=True, live_since_ns=time.monotonic_ns())
        fed.feed(stream.manifest)
        fed.feed(stream.batch(8))
        fed.close()
        assert store.one("SELECT latency_p50_ms FROM ledger") == (None,)


def test_the_analyzer_may_come_first_and_stops_when_told(tmp_path: Path) -> None:
    calls: list[int] = []

    def stop() -> bool:
        calls.append(1)
        return len(calls) > 3

    done = analyze_stream("tcp://127.0.0.1:9", tmp_path / "r.db", neurons_only=True, stop=stop)
    assert done == {"run": None, "frames": 0, "analyzed": 0, "received": 0, "lost": 0}
