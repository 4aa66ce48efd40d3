"""The page's offer to learn a dictionary: the command, the button, how far a run is, and the dictionary that was swapped in."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.store_builder import StoreBuilder
from tests.test_swap import dictionary, fed

from interlatent_live.analyzer.announcement import Announcement, announced
from interlatent_live.analyzer.writes import Writes
from interlatent_live.stream.manifest import Manifest, TapPointSpec
from interlatent_live.viewer.feed import Feed
from interlatent_live.viewer.offer import offer, told

ENDPOINT = "tcp://127.0.0.1:5599"


def manifest(*points: tuple[str, int]) -> Manifest:
    return Manifest("r", "b", 0, 0, tap_points=tuple(TapPointSpec(name, "float32", (width,)) for name, width in points))


def test_the_command_is_filled_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    db = tmp_path / "runs" / "run.db"
    origin = {"endpoint": ENDPOINT, "follows": str(tmp_path / "runs" / "run.dictionaries")}
    stream = manifest(("1:out", 32), ("a b:out", 64))
    made = offer(stream, origin, db)
    assert made is not None
    assert made.command == (
        f"interlatent-live dict train --connect {ENDPOINT} --live --input 1:out --output 'a b:out' --features 256 --k 8 "
        "--out runs/run.dictionaries/learned"
    )
    (tmp_path / "runs" / "run.dictionaries" / "learned").mkdir(parents=True)
    again = offer(stream, origin, db)
    assert again is not None
    assert again.folder.name == "learned-2"
    recorded = offer(stream, {"recording": str(tmp_path / "r.mcap")}, db)
    assert recorded is not None
    assert recorded.words[:3] == ("dict", "train", "r.mcap")
    assert not recorded.live
    for nothing in (offer(None, origin, db), offer(manifest(), origin, db), offer(stream, {}, db)):
        assert nothing is None
    wide = offer(manifest(("a:out", 100_000)), origin, db)
    assert wide is not None
    assert wide.words[wide.words.index("--features") + 1] == "4096"


def test_the_command_is_one_that_the_program_takes(tmp_path: Path) -> None:
    made = offer(manifest(("1:out", 32)), {"endpoint": "tcp://127.0.0.1:9"}, tmp_path / "run.db")
    assert made is not None
    command = [sys.executable, "-m", "interlatent_live", *made.words, "--wait", "0.1"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 1
    assert "no frame came in 0.1 s" in done.stderr


def builder(db: Path, **options: Any) -> StoreBuilder:
    made = StoreBuilder(db, **options)
    writes = Writes()
    for key, value in (("endpoint", ENDPOINT), ("follows", str(db.with_suffix(".dictionaries")))):
        writes.replace("meta", key=key, value=value)
    made.store.commit(writes)
    made.frames(100)
    made.accounts()
    return made


def pulled(db: Path) -> Feed:
    feed = Feed(db)
    feed.pull()
    return feed


def test_it_is_offered_where_there_is_no_dictionary_and_followed_while_one_is_learned(tmp_path: Path) -> None:
    db, started = tmp_path / "run.db", list[Any]()
    builder(db, neurons=True)
    feed = pulled(db)
    shown = told(feed, started.append)
    assert shown is not None
    assert "Learn one while the agent acts" in shown["text"]
    assert shown["start"] is (feed.freshness().state == "LIVE")
    without = told(feed, None)
    assert without is not None
    assert not without["start"]
    news = Announcement(tmp_path / "run.dictionaries" / "learned")
    news.write({"phase": "learning", "share": 0.25, "fvu": 0.125, "l0": 8.0, "dead": None, "frames": 1200, "episodes": 4, "lost": 3})
    shown = told(feed, started.append)
    assert shown is not None
    assert shown["share"] == 0.25
    assert shown["progress"] == "learning, FVU 0.125, L0 8.0, 1200 frames, 4 episodes, 3 dropped"
    assert not shown["start"]
    assert shown["command"] == ""
    news.write({"phase": "failed", "error": "1 episode(s) came <b>"})
    shown = told(feed, started.append)
    assert shown is not None
    assert "1 episode(s) came" in shown["failed"]
    assert shown["command"]
    news.path.write_text("{")
    assert announced(news.path.parent) is None
    news.write({"share": 0.5})
    stale = json.loads(news.path.read_text()) | {"wall_s": time.time() - 60}
    news.path.write_text(json.dumps(stale))
    assert announced(news.path.parent) is None  # its process died


def test_nothing_is_offered_where_there_is_a_dictionary_already(tmp_path: Path) -> None:
    builder(tmp_path / "run.db")
    assert told(pulled(tmp_path / "run.db"), None) is None


def test_what_was_swapped_in_is_shown_and_what_it_replaced_can_be_looked_at(tmp_path: Path) -> None:
    db = tmp_path / "run.db"
    fed(db, swap_at=23)
    feed, learned = pulled(db), dictionary()
    assert feed.dictionary is not None
    assert feed.dictionary.hash == learned.hash
    assert list(feed.sources.values()) == [f"0:out · learned#{learned.hash[:8]}", "0:out · neurons, until frame 229"]
    before = Feed(db, source=list(feed.sources)[1])
    before.pull()
    assert before.dictionary is not None
    assert before.dictionary.kind == "neurons"


playwright = pytest.importorskip("playwright.sync_api")
from tests.test_page import ARGS, CHROMIUM, becomes, needs_browser  # noqa: E402 - it asks for playwright as it is imported

SERVE = """
import json, sys
from pathlib import Path
from interlatent_live.viewer.app import serve
def start(words):
    Path(sys.argv[2]).write_text(json.dumps(words))
serve(Path(sys.argv[1]), port=0, on_ready=lambda url: print(url, flush=True), starter=start)
"""


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, Path, Path]]:
    db, words = tmp_path / "run.db", tmp_path / "words.json"
    builder(db, neurons=True).store.close()
    writer = Path(__file__).with_name("store_builder.py")
    acting = subprocess.Popen([sys.executable, str(writer), str(db), "--seconds", "90", "--neurons"])
    process = subprocess.Popen([sys.executable, "-c", SERVE, str(db), str(words)], stdout=subprocess.PIPE, text=True, cwd=tmp_path)
    assert process.stdout is not None
    yield process.stdout.readline().strip(), db, words
    for child in (process, acting):
        child.terminate()
        child.wait()
    process.stdout.close()


@needs_browser
def test_the_button_copies_and_starts_and_the_bar_follows(served: tuple[str, Path, Path]) -> None:
    url, db, words = served
    said: list[str] = []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=ARGS.split())
        page = browser.new_context(permissions=["clipboard-read", "clipboard-write"]).new_page()
        page.on("console", lambda m: said.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(url)
        becomes(page, "document.querySelector('.offer') && !document.querySelector('.offer').hidden", 60)
        command = page.locator(".offer code").inner_text()
        assert command.startswith(f"interlatent-live dict train --connect {ENDPOINT} --live --input 3:out --output 3:out")
        page.click(".offer .copy")
        becomes(page, "document.querySelector('.offer .copy').textContent == 'Copied'")
        assert page.evaluate("navigator.clipboard.readText()") == command
        becomes(page, "!document.querySelector('.offer .go').hidden", 60)
        page.click(".offer .go")
        deadline = time.monotonic() + 30
        while not words.exists() and time.monotonic() < deadline:
            page.wait_for_timeout(50)
        assert json.loads(words.read_text())[:2] == ["dict", "train"]
        Announcement(db.with_suffix(".dictionaries") / "learned").write({"phase": "learning", "share": 0.25, "fvu": 0.125})
        becomes(page, "document.querySelector('.offer progress').value == 0.25")
        assert "FVU 0.125" in page.locator(".offer").inner_text()
        browser.close()
    assert said == []
