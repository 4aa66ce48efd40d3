"""Names and notes of features: kept, carried to other runs of the dictionary, written by this page alone, and never markup."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from tests.explained import Run
from tests.store_builder import StoreBuilder

import interlatent_live as il
from interlatent_live.analyzer.digest import digest
from interlatent_live.analyzer.export import export
from interlatent_live.analyzer.queries import Reader
from interlatent_live.analyzer.store import connect_readonly
from interlatent_live.explainer import notes as door
from interlatent_live.explainer.narrator import Narrator
from interlatent_live.explainer.notebook import Notebook
from interlatent_live.explainer.notes import MAX_NOTES, Notes
from interlatent_live.explainer.reading import Pages
from interlatent_live.explainer.service import explain_once
from interlatent_live.stream.errors import NoteError, StoreError

SCRIPT = "<script>document.title = 'taken'</script><img src=x onerror=\"document.title = 'taken'\">"
CHROMIUM = next((p for p in (os.environ.get("CHROMIUM", ""), "/usr/bin/chromium") if p and Path(p).exists()), None)
ARGS = "--no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-component-update --disable-sync"
SERVE = """
import sys, warnings
warnings.simplefilter("error")
from pathlib import Path
from interlatent_live.viewer.app import serve
serve(Path(sys.argv[1]), port=0, read_only="read-only" in sys.argv, on_ready=lambda url: print(url, flush=True))
"""
HASH = "9f3ac1d27be04c55"


@pytest.fixture
def db(tmp_path: Path) -> Path:
    run = Run(tmp_path / "r.db")
    run.write(1)
    run.close()
    return tmp_path / "r.db"


# the store


def test_the_newest_name_counts_and_ways_back_are_kept(db: Path) -> None:
    with Notes(db) as notes, Pages(db) as pages:
        with pytest.raises(NoteError, match="nothing to undo"):
            notes.undo("d0", 1)
        assert notes.name("d0", 1, "  leaning   left ", author="ada") == "leaning left"
        assert pages.named("d0") == {1: "leaning left"}
        assert [e.label for e in pages.explanations("d0", everything=True)] == ["leaning left"], "where no explainer ever ran"
        assert not pages.explained(), "a name is no explainer"
        notes.name("d0", 1, "leaning")
        assert notes.undo("d0", 1) == "leaning left"
        assert notes.undo("d0", 1) == "leaning", "done twice, the change is there again"
        notes.name("d0", 1, None)
        assert pages.named("d0") == {}
        assert notes.undo("d0", 1) == "leaning"
        before = pages.newest_name()
        notes.name("d0", 1, "leaning")
        assert pages.newest_name() == before, "the same name again is no change"
        assert [n.label for n in pages.names("d0", 1)][:3] == ["leaning", None, "leaning"]
        assert pages.names("d0", 1)[-1].author == "ada"


@pytest.mark.parametrize(
    ("label", "why"),
    [
        ("", "1 to 80"), ("a b c d e f g", "at most 6"), ("x" * 81, "1 to 80"), (SCRIPT, "markup"), ("a\u202eb", "invisible"),
        ("a\nb", "invisible"),
    ],
)  # fmt: skip
def test_what_is_no_name_is_told(db: Path, label: str, why: str) -> None:
    with Notes(db) as notes, pytest.raises(NoteError, match=why):
        notes.name("d0", 1, label)


def test_notes_are_their_writers_and_have_bounds(db: Path) -> None:
    with Notes(db) as notes, Pages(db) as pages:
        one = notes.add("d0", 2, "  first\r\nsecond\x07 line\n", author=" Ada\tL. ", owner="a")
        kept = pages.notes("d0", 2)[0]
        assert (kept.id, kept.text, kept.author, kept.edited_wall_ns) == (one, "first\nsecond line", "Ada L.", None)
        with pytest.raises(NoteError, match="another browser"):
            notes.edit(one, "mine now", owner="b")
        with pytest.raises(NoteError, match="another browser"):
            notes.delete(one, owner="b")
        with pytest.raises(NoteError, match="no note 99"):
            notes.delete(99, owner="a")
        notes.edit(one, SCRIPT, owner="a")
        assert pages.notes()[0].text == SCRIPT, "as it was written: who shows it escapes it"
        assert pages.notes()[0].edited_wall_ns is not None
        for text, why in (("", "some text"), (" \n", "some text"), ("x" * 4_001, "4001 characters; 4000")):
            with pytest.raises(NoteError, match=why):
                notes.add("d0", 2, text)
        with pytest.raises(NoteError, match="61 characters; 60"):
            notes.add("d0", 2, "x", author="x" * 61)
        for dictionary, feature, why in (("d0", 6, "from 0 to 5"), ("d0", -1, "from 0 to 5"), ("none", 0, "no dictionary")):
            with pytest.raises(NoteError, match=why):
                notes.add(dictionary, feature, "x")
        for _ in range(MAX_NOTES - 1):
            notes.add("d0", 2, "x")
        with pytest.raises(NoteError, match=f"{MAX_NOTES} is the most"):
            notes.add("d0", 2, "one too many")
        notes.delete(one, owner="a")
        newest = notes.add("d0", 2, "there is room again")
        assert newest > one + MAX_NOTES - 1, "a number is never given twice: a page that was left open would change another's"


def test_they_belong_to_the_dictionary_in_every_start_of_the_agent(db: Path) -> None:
    before = digest(db)
    with Notes(db) as notes:
        notes.name("d0", 0, "leaning")
        notes.add("d0", 0, "seen in the first start")
    assert digest(db) == before, "no analysis"
    later = Run(db, boot="b1")
    later.write(1)
    later.close()
    Run(db.with_name("o.db"), dictionary="d1").close()
    with Pages(db) as pages:
        assert {pages.named(s.dictionary_hash)[0] for boot in ("b0", "b1") for s in pages.sections(boot)} == {"leaning"}
        assert pages.notes("d1") == []
    with Pages(db.with_name("o.db")) as pages:
        assert pages.named("d1") == {}


def test_a_live_analyzer_and_several_writers_wait_for_each_other(tmp_path: Path) -> None:
    db, stop, failed = tmp_path / "r.db", threading.Event(), []
    Run(db).close()

    def analyze() -> None:
        run = Run(db)
        while not stop.is_set():
            run.write(1, rows=5)
        run.close()

    def write(who: str) -> None:
        try:
            for i in range(12):
                with Notes(db) as notes:
                    notes.add("d0", i % 6, f"{who} {i}", author=who)
                    notes.name("d0", i % 6, f"{who} {i}", author=who)
        except StoreError as error:
            failed.append(error)

    analyzer = threading.Thread(target=analyze)
    writers = [threading.Thread(target=write, args=(f"w{n}",)) for n in range(4)]
    for thread in (analyzer, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    stop.set()
    analyzer.join()
    assert failed == []
    with Pages(db) as pages:
        assert sorted(n.text for n in pages.notes()) == sorted(f"w{w} {i}" for w in range(4) for i in range(12))
        assert pages.named("d0").keys() == set(range(6))
        rows = [b.rows for b in pages.batches("b0", 0, 100_000)]
        assert sum(rows) == pages.sections("b0")[-1].next_seq > 0, "and the analyzer lost nothing"


def test_a_database_that_another_holds_says_so(db: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Notes(db):
        pass
    monkeypatch.setattr(door, "BUSY_S", 0.05)
    holder = Notes(db)
    holder.connection.execute("BEGIN IMMEDIATE")
    with Notes(db) as notes, pytest.raises(StoreError, match="another process has held it"):
        notes.add("d0", 0, "x")
    holder.connection.execute("ROLLBACK")
    holder.close()


def test_names_of_an_older_build_are_taken_over(db: Path) -> None:
    with Notebook(db) as notebook:
        notebook.connection.executescript(
            "DROP TABLE names; DROP TABLE notes; INSERT INTO user_names (wall_ns, dictionary_hash, feature, label) "
            "VALUES (1, 'd0', 1, 'old'), (2, 'd0', 1, 'newer'), (3, 'd0', 2, 'other')"
        )
    with Pages(db) as pages:
        assert pages.named("d0") == {1: "newer", 2: "other"}
        assert pages.notes("d0") == []
        assert pages.newest_name() == 0
    with Notes(db) as notes:
        assert notes.undo("d0", 1) == "old"
    with Pages(db) as pages:
        assert pages.named("d0") == {1: "old", 2: "other"}


def test_a_database_that_may_not_be_written_says_why() -> None:
    folder = Path(tempfile.mkdtemp())
    try:
        run = Run(folder / "r.db")
        run.write(1)
        run.close()
        folder.chmod(0o555)
        (folder / "r.db").chmod(0o444)
        root = os.geteuid() == 0
        if root:  # whom no mode keeps from writing
            os.seteuid(65534)
        try:
            with pytest.raises(StoreError, match="may not be written"):
                Notes(folder / "r.db")
            told = door.unwritable(folder / "r.db")
        finally:
            if root:
                os.seteuid(0)
        assert told is not None
        assert "copy it to where you may" in told
    finally:
        folder.chmod(0o755)
        shutil.rmtree(folder)
    with pytest.raises(StoreError, match="does not exist"):
        Notes(folder / "none.db")


def test_a_name_is_spoken_from_the_next_line_on(tmp_path: Path) -> None:
    run = Run(tmp_path / "r.db")
    run.write(12)
    explaining, frames, _ = explain_once(tmp_path / "r.db", features=[0])
    own = explaining.current[0].label
    with Notebook(tmp_path / "r.db") as notebook, Notes(tmp_path / "r.db") as notes:
        explaining._notebook = notebook
        notes.name("d0", 0, "my leaning")
        explaining.look_at_names()
        narrator = Narrator(explaining.subject)
        narrator.learn(explaining.current, "", explaining.names)
        share, usual = np.full(6, 0.5), np.full(6, 0.5)
        mention, score = narrator._mention(0, frames, share, usual), explaining.current[0].score
        assert score is not None
        assert (mention.label, mention.score) == ("my leaning", score.balanced_accuracy.mean), "the score stays the rule's"
        notes.name("d0", 0, None)
        explaining.look_at_names()
        assert narrator._mention(0, frames, share, usual).label == own
    with Pages(tmp_path / "r.db") as pages:
        found = {e.feature: e for e in pages.explanations(everything=True)}
        assert (found[0].label, found[0].own_label, found[0].named_by_user) == (own, own, False)
    run.close()


def command(*words: Any) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "interlatent_live", *map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_command_lists_writes_and_takes_away_and_export_keeps_them(db: Path, tmp_path: Path) -> None:
    with Notes(db) as notes:
        notes.name("d0", 1, "leaning", author="Ada")
        mine = notes.add("d0", 1, SCRIPT, author="Ada", owner="a browser's")
    made = json.loads(command("notes", db, "--feature", 2, "--add", "from here", "--author", "Bo", "--json"))
    assert made["feature"] == 2
    found = json.loads(command("notes", db, "--json"))
    assert found["names"] == [{"dictionary": "toy", "feature": 1, "name": "leaning", "explainer": None}]
    assert [(n["feature"], n["name"], n["author"], n["text"]) for n in found["notes"]] == [
        (1, "leaning", "Ada", SCRIPT), (2, None, "Bo", "from here")]  # fmt: skip
    run = il.open(db)
    assert run.notes["text"].tolist() == [SCRIPT, "from here"]
    assert (run.names["dictionary"][0], run.names["label"][0]) == ("toy", "leaning")
    written = export(run, tmp_path / "out", what=["names", "notes"], format="csv")
    assert sorted(written.values()) == [1, 2]
    with Notes(db) as notes:
        notes.delete(mine)
    with Pages(db) as pages:
        assert [n.text for n in pages.notes()] == ["from here"]


# the page's server


def serve(db: Path, *words: str) -> tuple[subprocess.Popen[str], str]:
    with db.with_suffix(".log").open("w") as errors:
        process = subprocess.Popen([sys.executable, "-c", SERVE, str(db), *words], stdout=subprocess.PIPE, stderr=errors, text=True)
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("notes") / "r.db"
    builder = StoreBuilder(path)
    builder.frames(600)
    builder.snapshot()
    builder.accounts(ended=True)
    builder.close()
    return path


@pytest.fixture(scope="module")
def server(shown: Path) -> Iterator[str]:
    process, url = serve(shown)
    yield url
    end(process)
    assert "Traceback" not in shown.with_suffix(".log").read_text()


def post(url: str, what: Any, *, origin: str | None = "", pen: str = "", **headers: str) -> tuple[int, dict[str, Any], str]:
    """Status, answer and the cookie that was given. `origin` '': this page's own; None: none."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc)
    given = {"Content-Type": "application/json", **headers}
    if origin is not None:
        given["Origin"] = origin or f"http://{parts.netloc}"
    if pen:
        given["Cookie"] = pen
    connection.request("POST", parts.path, what if isinstance(what, (str, bytes)) else json.dumps(what), given)
    answer = connection.getresponse()
    body, cookie = answer.read().decode(), (answer.getheader("Set-Cookie") or "")
    connection.close()
    return answer.status, json.loads(body) if body.startswith("{") else {}, cookie


def rows(db: Path) -> tuple[int, int]:
    connection = connect_readonly(db)
    try:
        tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master")}
        return (  # none of them where nothing was ever written
            connection.execute("SELECT count(*) FROM names").fetchone()[0] if "names" in tables else 0,
            connection.execute("SELECT count(*) FROM notes").fetchone()[0] if "notes" in tables else 0,
        )
    finally:
        connection.close()


def test_a_browser_writes_and_changes_what_is_its_own(server: str, shown: Path) -> None:
    url = f"{server}feature/{HASH}/7"
    status, said, cookie = post(url, {"do": "add", "text": SCRIPT, "author": "Ada"})
    assert (status, said["error"]) == (200, None)
    assert all(word in cookie for word in ("HttpOnly", "SameSite=Strict"))
    note = said["notes"][-1]
    assert (note["text"], note["author"], note["own"]) == (SCRIPT, "Ada", True)
    assert "owner" not in note, "whose it is, nobody is told"
    pen = cookie.split(";")[0]
    status, said, again = post(url, {"do": "edit", "note": note["id"], "text": "changed"}, pen=pen)
    assert (said["error"], said["notes"][-1]["text"], again) == (None, "changed", "")
    for other in ("", "interlatent-live-pen=" + "x" * 32):
        for do in ("edit", "delete"):
            assert "another browser" in post(url, {"do": do, "note": note["id"], "text": "taken"}, pen=other)[1]["error"]
    assert post(url, {"do": "name", "label": "drifts off", "author": "Ada"}, pen=pen)[1]["label"] == "drifts off"
    status, text = plain(url + ".json", Cookie=pen)
    found = json.loads(text)
    assert (status, found["label"], found["named_by_user"]) == (200, "drifts off", True)
    assert (found["notes"][-1]["own"], found["writing"]["why"]) == (True, None)
    assert json.loads(plain(url + ".json")[1])["notes"][-1]["own"] is False
    assert post(url, {"do": "undo"}, pen=pen)[1]["named_by_user"] is False
    assert post(url, {"do": "delete", "note": note["id"]}, pen=pen)[1]["notes"] == []
    page = plain(url)[1]
    assert "<script>document.title" not in page


def plain(url: str, **headers: str) -> tuple[int, str]:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc)
    connection.request("GET", f"{parts.path}?{parts.query}", headers=headers)
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, text


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"origin": "https://evil.example"}, "elsewhere"),
        ({"origin": "http://127.0.0.1:1"}, "elsewhere"),
        ({"origin": "null"}, "elsewhere"),
        ({"origin": None}, "elsewhere"),
        ({"Sec-Fetch-Site": "cross-site"}, "elsewhere"),
        ({"Sec-Fetch-Site": "same-site"}, "elsewhere"),
        ({"Content-Type": "text/plain"}, "application/json"),
        ({"Content-Type": "application/x-www-form-urlencoded"}, "application/json"),
    ],
)
def test_another_site_is_refused(server: str, shown: Path, change: dict[str, Any], why: str) -> None:
    before = rows(shown)
    status, said, cookie = post(f"{server}feature/{HASH}/7", {"do": "add", "text": "x"}, **change)
    assert status == 403
    assert why in said["error"]
    assert cookie == ""
    assert rows(shown) == before


def test_by_another_name_of_this_machine_nothing_is_written(server: str, shown: Path) -> None:
    before = rows(shown)
    assert post(f"{server}feature/{HASH}/7", {"do": "add", "text": "x"}, origin="http://evil.example", Host="evil.example")[0] == 403
    assert rows(shown) == before


def test_asking_never_writes(server: str, shown: Path) -> None:
    before = rows(shown)
    for query in ("do=add&text=x", "do=name&label=x", "do=undo"):
        assert plain(f"{server}feature/{HASH}/7?{query}")[0] == 200
        assert plain(f"{server}feature/{HASH}/7.json?{query}")[0] == 200
    assert rows(shown) == before


@pytest.mark.parametrize(
    ("what", "why"),
    [
        ("{", "no JSON"), ("[1]", "no JSON object"), ({}, "cannot be done"), ({"do": "drop"}, "cannot be done"),
        ({"do": "add"}, "some text"), ({"do": "add", "text": 5}, "no text"), ({"do": "edit", "note": "1", "text": "x"}, "no number"),
        ({"do": "edit", "note": True, "text": "x"}, "no number"), ({"do": "name", "label": SCRIPT}, "markup"),
        ({"do": "add", "text": "x" * 70_000}, "65536 is the most"), ({"do": "add", "text": "x", "author": "x" * 61}, "60 is the most"),
    ],
)  # fmt: skip
def test_a_mistake_is_told(server: str, shown: Path, what: Any, why: str) -> None:
    before = rows(shown)
    status, said, _ = post(f"{server}feature/{HASH}/7", what)
    assert status == 200
    assert why in said["error"]
    assert rows(shown) == before


def test_of_an_unknown_feature_nothing_is_kept(server: str) -> None:
    assert "know that dictionary" in post(f"{server}feature/nothing/7", {"do": "add", "text": "x"})[1]["error"]
    assert "from 0 to 63" in post(f"{server}feature/{HASH}/64", {"do": "add", "text": "x"})[1]["error"]


def test_a_page_that_only_reads_says_so(shown: Path) -> None:
    process, url = serve(shown, "read-only")
    try:
        before = rows(shown)
        status, said, _ = post(f"{url}feature/{HASH}/7", {"do": "add", "text": "x"})
        assert status == 403
        assert "--read-only" in said["error"]
        assert "--read-only" in json.loads(plain(f"{url}writing")[1])["why"]
        assert rows(shown) == before
    finally:
        end(process)


@pytest.mark.skipif(CHROMIUM is None, reason="Debian's chromium is not installed (make setup-system)")
def test_written_reloaded_renamed_and_undone_in_a_browser(server: str, shown: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api")
    said: list[str] = []
    expect = playwright.expect
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=ARGS.split())
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        page.set_default_timeout(60_000)
        expect.set_options(timeout=60_000)
        page.on("console", lambda m: said.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(f"{server}feature/{HASH}/20")
        page.get_by_label("signed").fill("Ada <b>")
        page.get_by_label("Write a note").fill(SCRIPT)
        page.get_by_role("button", name="Keep note").click()
        expect(page.locator(".note-list .text")).to_have_text(SCRIPT)
        expect(page.locator(".note-list .by b")).to_have_text("Ada <b>")
        page.get_by_label("Write a note").fill("a draft")

        page.get_by_role("button", name="Rename").click()
        page.locator(".naming input").fill("seven words are more than may be")
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_contain_text("at most 6")
        expect(page.locator(".naming input")).to_have_value("seven words are more than may be")
        page.locator(".naming input").fill("my own name")
        page.keyboard.press("Enter")
        expect(page.locator("h1")).to_have_text("f20my own name")
        page.reload()
        expect(page.locator("h1")).to_have_text("f20my own name")
        expect(page.locator(".origin")).to_contain_text("named by Ada <b>")
        expect(page.locator(".note-list .text")).to_have_text(SCRIPT)
        expect(page.get_by_label("Write a note")).to_have_value("a draft")
        page.get_by_role("button", name="Edit").click()
        page.get_by_label("Change the note").fill("changed")
        page.get_by_role("button", name="Save").click()
        expect(page.locator(".note-list .text")).to_have_text("changed")
        expect(page.locator(".note-list .by")).to_contain_text("edited")

        stranger = browser.new_context().new_page()
        stranger.goto(f"{server}feature/{HASH}/20")
        expect(stranger.locator(".note-list .text")).to_have_text("changed")
        assert stranger.get_by_role("button", name="Edit").count() == 0
        stranger.goto(f"{server}feature/{HASH}/20?embed")
        expect(stranger.locator(".note-list .text")).to_have_text("changed")
        assert stranger.locator("textarea, .rename").count() == 0, "the panel alone writes nothing"
        stranger.close()

        page.goto(f"{server}?tab=features")
        row = page.locator(".table tbody tr", has_text="my own name")
        row.hover()
        page.get_by_role("button", name="Rename f20").click()
        page.locator(".renaming input").fill("named in the list")
        page.keyboard.press("Enter")
        expect(page.locator(".table tbody tr", has_text="named in the list")).to_have_count(1)
        page.goto(f"{server}feature/{HASH}/20")
        expect(page.locator("h1")).to_have_text("f20named in the list")
        page.get_by_role("button", name="Undo").click()
        expect(page.locator("h1")).to_have_text("f20my own name")
        page.get_by_role("button", name="Delete").click()
        page.locator(".sure").click()
        expect(page.locator(".note-list")).to_have_count(0)
        assert "taken" not in page.title()
        assert page.locator("img[onerror]").count() == 0
        browser.close()
    assert said == []
    with Reader(shown) as reader:
        assert reader.run() == "cartpole-demo"
