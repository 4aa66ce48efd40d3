"""Watchpoints: where a predicate comes true, marked once, told to a command and an address of the command line, and to no other."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
from tests.explained import Run

from interlatent_live.explainer.reading import Pages
from interlatent_live.explainer.source import Source
from interlatent_live.explainer.watching import Watch
from interlatent_live.stream.errors import PredicateError
from interlatent_live.viewer.feed import Feed
from interlatent_live.viewer.watched import watch_mark
from interlatent_live.watchpoints import Watchpoint


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    made = Run(tmp_path / "r.db")
    made.write(4)
    yield made
    made.close()


def by_hand(db: Path, column: str, above: float) -> list[int]:
    """Frames in which a metric comes to be above a value."""
    source = Source(db)
    while source.pull():
        pass
    frames = source.kept()
    source.close()
    assert frames is not None
    holds = frames.table.numbers[column] > above
    return [int(s) for s in frames.seq[np.flatnonzero(holds & ~np.concatenate(([False], holds[:-1])))]]


def test_it_comes_true_where_it_did_not_hold_before(run: Run) -> None:
    db = run.store.path
    watch = Watch(db, "angle > 1", quiet_s=0, since_now=False)
    expected = by_hand(db, "angle", 1)
    assert len(expected) > 20
    assert [h.seq for h in watch.look()] == expected
    assert watch.look() == []
    run.write(2)
    assert [h.seq for h in watch.look()] == [s for s in by_hand(db, "angle", 1) if s >= 400], "and so in what comes later"
    watch.close()
    assert watch.frames == 600
    quiet = Watch(db, "angle > 1", quiet_s=1.0, since_now=False)
    seqs = [h.seq for h in quiet.look()]
    assert min(np.diff(seqs)) >= 50, "a second of frame time apart"
    assert quiet.suppressed + len(seqs) == len(by_hand(db, "angle", 1))
    quiet.close()


def test_only_what_comes_after_it_began_and_lags_look_back(run: Run) -> None:
    watch = Watch(run.store.path, "angle[-30] > 1", quiet_s=0)
    assert watch.look() == []
    run.write(1)
    seqs = [h.seq for h in watch.look()]
    watch.close()
    source = Source(run.store.path)
    while source.pull():
        pass
    frames = source.kept()
    source.close()
    assert frames is not None
    late = frames.table.lagged("angle", 30) > 1
    rising = np.flatnonzero(late & ~np.concatenate(([False], late[:-1])))
    assert seqs == [int(s) for s in frames.seq[rising] if s >= 400]


def test_mistakes_are_told_before_anything_is_watched(run: Run) -> None:
    for text, said in (("angel > 1", "did you mean angle"), ("episode_return > 1", "only when an episode has ended")):
        watch = Watch(run.store.path, text, since_now=False)
        with pytest.raises(PredicateError, match=said):
            watch.look()
        watch.close()
    for options in ({"webhook": "file:///etc/passwd"}, {"webhook": "nothing"}, {"command": "say 'half"}):
        with pytest.raises(PredicateError):
            Watchpoint(run.store.path, "angle > 1", **options)  # type: ignore[arg-type]


def test_a_command_and_an_address_hear_of_it_and_the_page_marks_it(run: Run, tmp_path: Path) -> None:
    heard: list[dict[str, object]] = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(302 if len(heard) > 1 else 204)
            self.send_header("Location", "/elsewhere")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            return

    server = HTTPServer(("127.0.0.1", 0), Hook)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    out, db = tmp_path / "hit.json", run.store.path
    script = f"import sys; open({str(out)!r}, 'w').write(sys.stdin.read()); sys.exit(0)"
    command = f'{sys.executable} -c "{script}"'
    address = f"http://127.0.0.1:{server.server_port}/hook"
    try:
        told: list[dict[str, object]] = []
        point = Watchpoint(
            db, "angle > 1", command=command, webhook=address, quiet_s=3.0, clips=tmp_path / "clips", since_now=False, on_hit=told.append
        )
        done = point.run(lambda: False, lambda s: time.sleep(0), to_the_end=True)
        deadline = time.monotonic() + 60
        again = Watchpoint(db, "angle > 1", webhook=address, quiet_s=3.0, since_now=False)
        assert again.run(lambda: False, lambda s: time.sleep(0), to_the_end=True).hits == done.hits
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert done.hits == len(told) >= 2
    assert told[0]["acted"] == "command started; webhook answered 204"
    assert "too soon" in str(told[1]["acted"]), "frames of the past come faster than they were made"
    assert len(heard) == 2, "a redirect leads nowhere"
    assert heard[0]["seq"] == told[0]["seq"]
    while not out.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert json.loads(out.read_text())["predicate"] == "angle > 1"
    assert done.clips == done.hits == len(list((tmp_path / "clips").glob("watch-*.html")))
    with Pages(db) as pages:
        kept = pages.watched("b0", 0)
        assert [w.seq for w in kept] == [t["seq"] for t in told], "a second look marks nothing twice"
        assert pages.watched("b0", 1) == []
    feed = Feed(db)
    feed.pull()
    assert watch_mark(feed.watched[0])[:3] == [
        told[0]["seq"], "watchpoint", f"angle > 1; clip: clips/watch-b0-0-{told[0]['seq']}.html; command started; webhook answered 204",
    ]  # fmt: skip
    feed.reader.close()


def test_the_command_line(run: Run) -> None:
    words = [sys.executable, "-m", "interlatent_live", "watchpoint", str(run.store.path), "--when", "angle > 1", "--all"]
    done = subprocess.run([*words, "--no-clips", "--json", "--exec", "/nowhere/to/be/found"], capture_output=True, text=True, check=True)
    hits = [json.loads(line) for line in done.stdout.splitlines()]
    assert hits[0]["seq"] == by_hand(run.store.path, "angle", 1)[0]
    assert hits[0]["acted"] == "command failed: No such file or directory"
    assert hits[0]["clip"] is None
