"""Each process of a demo dies in turn; the others go on, nothing committed is lost, and the accounts say what was missed."""

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


def _children(pid: int) -> list[int]:
    return [int(c) for task in Path(f"/proc/{pid}/task").glob("*/children") for c in task.read_text().split()]


def _role(pid: int) -> str:
    with contextlib.suppress(FileNotFoundError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        return next((w.decode() for w in words if w in (b"run", b"analyze", b"view", b"explain")), "")
    return ""


def _eventually(condition: Callable[[], bool], seconds: float = 40.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.05)


class _Demo:
    def __init__(self, folder: Path) -> None:
        self.folder, self.db = folder, folder / "r.db"
        files = ["--record", "r.mcap", "--db", "r.db", "--report", "r.json"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "interlatent_live", "demo", "--no-open", "--port", "0", *files],
            cwd=folder,
            env=os.environ | {"SDL_VIDEODRIVER": "dummy"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        _eventually(lambda: self.analyzed() > 50)

    def pid(self, role: str) -> int:
        found = [pid for pid in _children(self.process.pid) if _role(pid) == role]
        return found[0] if found else 0

    def analyzed(self) -> int:
        with (
            contextlib.suppress(sqlite3.OperationalError),
            contextlib.closing(sqlite3.connect(f"file:{self.db}?mode=ro", uri=True)) as connection,
        ):
            return int(connection.execute("SELECT coalesce(sum(rows), 0) FROM batches").fetchone()[0])
        return 0

    def kill(self, role: str) -> int:
        pid = self.pid(role)
        os.kill(pid, signal.SIGKILL)
        return pid

    def end(self) -> str:
        self.process.send_signal(signal.SIGINT)
        return self.process.communicate(timeout=20)[1]


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[_Demo]:
    demo = _Demo(tmp_path)
    children = _children(demo.process.pid)
    try:
        yield demo
    finally:
        if demo.process.poll() is None:
            demo.process.kill()
            demo.process.communicate()
    _eventually(lambda: not any(_role(pid) for pid in children), 10)


def test_analyzer_killed_comes_back_and_the_gap_is_in_the_ledger(demo: _Demo) -> None:
    before = demo.analyzed()
    dead = demo.kill("analyze")
    _eventually(lambda: demo.pid("analyze") not in (0, dead))
    _eventually(lambda: demo.analyzed() > before + 50)
    said = demo.end()
    assert demo.process.returncode == 0, said
    assert "the analyzer ended with status -9; starting it again" in said
    ledger = json.loads((demo.folder / "r.json").read_text())["ledger"]
    subscriber = ledger["subscriber"]
    assert ledger["produced"] == ledger["recorded"]
    assert subscriber["not_subscribed"] > 0
    assert ledger["produced"] == ledger["queue_dropped"] + subscriber["not_subscribed"] + subscriber["wire_lost"] + subscriber["received"]
    assert ledger["produced"] == ledger["analyzed"] + sum(ledger["dropped"].values())
    with contextlib.closing(sqlite3.connect(demo.db)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert connection.execute("SELECT sum(lost) FROM gaps").fetchone() == (subscriber["not_subscribed"],)
        rows = connection.execute("SELECT first_seq, rows FROM batches ORDER BY first_seq").fetchall()
    ends = [first + n for first, n in rows]
    assert all(first >= end for (first, _), end in zip(rows[1:], ends[:-1], strict=True))
    assert demo.analyzed() == ledger["analyzed"]


def test_page_killed_comes_back_at_the_same_address(demo: _Demo) -> None:
    before = demo.analyzed()
    dead = demo.kill("view")
    _eventually(lambda: demo.pid("view") not in (0, dead))
    _eventually(lambda: demo.analyzed() > before + 50)
    said = demo.end()
    assert demo.process.returncode == 0, said
    ledger = json.loads((demo.folder / "r.json").read_text())["ledger"]
    assert ledger["analyzed"] == ledger["produced"]


def test_explainer_killed_or_stalled_is_noticed_by_nobody(demo: _Demo) -> None:
    _eventually(lambda: demo.pid("explain") != 0)
    before, dead = demo.analyzed(), demo.kill("explain")
    _eventually(lambda: demo.pid("explain") not in (0, dead))
    _eventually(lambda: demo.analyzed() > before + 50)
    os.kill(demo.pid("explain"), signal.SIGSTOP)
    before = demo.analyzed()
    _eventually(lambda: demo.analyzed() > before + 100)
    said = demo.end()
    assert demo.process.returncode == 0, said
    ledger = json.loads((demo.folder / "r.json").read_text())["ledger"]
    assert ledger["produced"] == ledger["subscriber"]["received"] == ledger["analyzed"]


def test_agent_killed_ends_the_demo_and_its_recording_reads(demo: _Demo) -> None:
    demo.kill("run")
    said = demo.process.communicate(timeout=20)[1]
    assert demo.process.returncode == 1
    assert "the agent ended with status -9" in said
    info = subprocess.run(
        [sys.executable, "-m", "interlatent_live", "info", "r.mcap", "--json"], cwd=demo.folder, capture_output=True, text=True, check=True
    )
    assert json.loads(info.stdout)["frames"] > 0
    with contextlib.closing(sqlite3.connect(demo.db)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_demo_killed_leaves_no_process(demo: _Demo) -> None:
    demo.process.kill()
    demo.process.communicate()  # the fixture waits for the children to end by themselves
