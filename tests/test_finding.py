"""Finding: a feature's page and its data, predicates tried, spans compared, clips; over the server and in a browser."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.explained import Run
from tests.store_builder import StoreBuilder

from interlatent_live.analyzer.writes import Writes
from interlatent_live.explainer.notebook import Notebook
from interlatent_live.explainer.reading import Pages
from interlatent_live.stream.errors import StoreError
from interlatent_live.viewer.clip import clip
from interlatent_live.viewer.feature import finite
from interlatent_live.viewer.finding import Finder

HOSTILE = "</script><img src=x onerror=alert(1)> & \"it\""
CHROMIUM = next((p for p in (os.environ.get("CHROMIUM", ""), "/usr/bin/chromium") if p and Path(p).exists()), None)
ARGS = "--no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-component-update --disable-sync"
HASH = "9f3ac1d27be04c55"
SERVE = """
import sys, warnings
warnings.simplefilter("error")
from pathlib import Path
from interlatent_live.viewer.app import serve
serve(Path(sys.argv[1]), port=0, on_ready=lambda url: print(url, flush=True))
"""


@pytest.fixture(scope="module")
def explained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features that rules can explain, over twelve episodes."""
    db = tmp_path_factory.mktemp("finding") / "r.db"
    run = Run(db)
    run.write(12)
    run.close()
    return db


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with pictures, correlations, a strongest window, a hostile name and a hostile sentence."""
    db = tmp_path_factory.mktemp("shown") / "r.db"
    builder = StoreBuilder(db)
    builder.frames(1200)
    builder.snapshot()
    writes = Writes()
    for seq in (310, 320, 900):
        writes.insert(
            "peaks", section_id=builder.section, feature=20, seq=seq, env=0, episode=seq // 500, step=seq, value=seq / 100,
            window_first_seq=seq - 30, window_next_seq=seq + 30,
        )  # fmt: skip
    builder.store.commit(writes)
    Notebook(db, service=False).close()
    writes = Writes()
    writes.insert("names", wall_ns=1, dictionary_hash=builder.hash, feature=20, label=HOSTILE, predicate=None, author=HOSTILE)
    writes.insert("notes", wall_ns=2, dictionary_hash=builder.hash, feature=20, author=HOSTILE, owner=None, text=HOSTILE)
    builder.store.commit(writes)  # past the door that would refuse the name
    builder.narrate(f"unusually active: {HOSTILE}", [{"feature": 20, "name": "f20", "label": HOSTILE, "score": 0.9}])
    builder.accounts(ended=True)
    builder.close()
    return db


@pytest.fixture(scope="module")
def server(shown: Path) -> Iterator[str]:
    log = shown.with_suffix(".log")
    with log.open("w") as errors:
        process = subprocess.Popen([sys.executable, "-c", SERVE, str(shown)], stdout=subprocess.PIPE, stderr=errors, text=True)
    assert process.stdout is not None
    yield process.stdout.readline().strip()
    process.terminate()
    process.wait()
    process.stdout.close()
    assert "Traceback" not in log.read_text()


def get(url: str, **headers: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as answer:
            return answer.status, answer.read().decode("utf-8", "replace")
    except urllib.error.HTTPError as error:
        with error:
            return error.code, ""


def test_a_predicate_is_scored_and_a_mistake_is_data(explained: Path) -> None:
    finder = Finder(explained)
    try:
        found = finder.pool.submit(finder.attempt, "angle > 0.5", None).result()
        assert [f["feature"] for f in found["fits"][:2]] == [0, 5]
        assert found["fits"][0]["balanced_accuracy"] == 1.0
        assert 0.7 < found["fits"][1]["low"] < found["fits"][1]["balanced_accuracy"] < found["fits"][1]["high"] <= 1
        wrong = finder.pool.submit(finder.attempt, "angel > 0.5", None).result()
        assert "did you mean angle" in wrong["error"]
        assert (wrong["position"], wrong["close"], wrong["fits"]) == (0, ["angle"], [])
        assert {"angle", "episode_step"} <= set(finder.pool.submit(finder.names, None).result())
    finally:
        finder.close()


def test_spans_are_compared_by_episodes_or_blocks_and_say_which(explained: Path) -> None:
    finder = Finder(explained)

    def compare(a: str, b: str = "rest", env: int = 0) -> dict[str, Any]:
        found: dict[str, Any] = finder.pool.submit(finder.compare, "b0", env, a, b, None).result()
        return found

    try:
        many = compare("0-599")
        assert (many["by"], many["a"]["episodes"], many["b"]["frames"]) == ("episodes", 6, 600)
        one = compare("e3", "e4")
        assert one["by"] == "blocks of 25 frames"
        assert (one["a"]["first"], one["a"]["last"], one["b"]["first"]) == (300, 399, 400)
        row = next(r for r in one["rows"] if r["feature"] == 0)
        assert row["difference"] == pytest.approx(row["a"] - row["b"])
        assert row["low"] < row["difference"] < row["high"]
        constant = next(r for r in one["rows"] if r["feature"] == 4)
        assert (constant["difference"], constant["effect"]) == (0.0, None), "always active: nothing to differ by"
        assert compare("2.0s-3.98s")["a"]["frames"] == 100, "frames 100 to 199, by frame time"
        assert "overlap" in compare("0-10", "5-20")["error"]
        assert "names no frames" in compare("yesterday")["error"]
        assert "of this environment: 0 to 1199" in compare("5000-6000")["error"]
        assert "start of the agent" in finder.pool.submit(finder.compare, "other", 0, "e1", "rest", None).result()["error"]
    finally:
        finder.close()


def test_everything_of_a_feature_with_lags_and_company(explained: Path) -> None:
    finder = Finder(explained)
    try:
        found = finder.pool.submit(finder.feature, "d0", 0).result()
        assert found is not None
        assert found["histogram"]["frames"] == 1200
        assert sum(found["histogram"]["counts"]) == found["histogram"]["active"]
        assert found["together"][0]["feature"] == 5
        assert found["effect"] is None
        assert found["similar"] == [], "its dictionary has no file: nothing is guessed"
        assert found["rename"].endswith("--name 0 LABEL")
        assert finder.pool.submit(finder.feature, "d0", 99).result() is None
        assert finder.pool.submit(finder.feature, "none", 0).result() is None
        json.dumps(found, allow_nan=False)
    finally:
        finder.close()


def test_not_a_number_is_null_at_any_depth() -> None:
    assert finite({"a": [float("nan"), 1.5, {"b": float("inf")}], "c": (True, None)}) == {"a": [None, 1.5, {"b": None}], "c": [True, None]}


def test_a_feature_by_url_its_twin_and_its_panel(server: str) -> None:
    status, text = get(f"{server}feature/{HASH}/20.json")
    data = json.loads(text)
    assert status == 200
    assert (data["feature"], data["label"], data["named_by_user"], data["dictionary"]["hash"]) == (20, HOSTILE, True, HASH)
    assert [w["seq"] for w in data["windows"]] == [900, 320, 310]
    assert len(data["windows"][0]["values"]) == 60
    strongest = [abs((c["rolling"] or c["start"])["r"] or 0) for c in data["correlations"]]
    assert strongest == sorted(strongest, reverse=True)
    assert strongest[0] > 0.2
    status, page = get(f"{server}feature/{HASH}/20")
    assert status == 200
    assert "<img src=x" not in page, "what a user typed is data, never markup"
    assert "data-embed" in get(f"{server}feature/{HASH}/20?embed")[1]
    assert get(f"{server}feature/{HASH}/9999.json")[0] == get(f"{server}feature/nothing/1")[0] == 404
    assert get(f"{server}picture/b0/0/310")[0] == 200


def test_other_names_of_this_machine_are_refused(server: str) -> None:
    """A site whose name resolves to 127.0.0.1 shall not read along."""
    for path in (f"feature/{HASH}/20.json", "try?when=pole_angle>0", "compare?boot=b0&a=e0", "clip?at=100", "picture/b0/0/310"):
        assert get(server + path, Host="evil.example")[0] == 403, path


def inside(made: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(made.split('id="data">', 1)[1].split("</script>", 1)[0])
    return found


def test_a_clip_holds_all_it_needs_and_nothing_that_runs(shown: Path, server: str) -> None:
    with Pages(shown) as pages:
        made = clip(pages, 1100)
        assert len(made) < 4_000_000
        assert not re.search(r'(src|href)="?https?:', made)
        assert "default-src 'none'" in made
        assert "<img src=x" not in made
        data = inside(made)
        assert (data["at"], len(data["features"]), data["features"][0]["name"]) == (1100, 3, "f20")
        assert data["t"][-1] == pytest.approx(10, abs=0.05)
        assert len(data["pictures"]) > 5
        assert data["sentence"]["text"].startswith("unusually active")
        assert [f["name"] for f in inside(clip(pages, 600, features=[3]))["features"]] == ["f3"]
        assert inside(clip(pages, 600))["sentence"] is None, "nothing had been said yet"
        with pytest.raises(StoreError, match="frames 0 to 1199"):
            clip(pages, 5000)
        with pytest.raises(StoreError, match=r"0\.5 to 60"):
            clip(pages, 600, seconds=600)
    status, text = get(f"{server}clip?boot=b0&at=1100")
    assert (status, len(text)) == (200, len(made))


@pytest.mark.skipif(CHROMIUM is None, reason="Debian's chromium is not installed (make setup-system)")
def test_found_opened_and_back_to_the_same_view(server: str) -> None:
    playwright = pytest.importorskip("playwright.sync_api")
    said: list[str] = []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=ARGS.split())
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        page.set_default_timeout(60_000)
        page.on("console", lambda m: said.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(f"{server}?at=600")
        page.wait_for_function("document.body.dataset.cursor == 'past'")
        page.keyboard.press("/")
        page.keyboard.type("f20")
        page.wait_for_function("document.querySelectorAll('.table tbody tr').length == 1")
        page.locator("[data-sort=share]").click()
        page.wait_for_function("location.hash.includes('find=f20') && location.search.includes('at=600')")
        page.locator(".table tbody a").click()
        page.wait_for_selector(".windows li")
        assert page.locator("h1").inner_text() == f"f20{HOSTILE}"
        assert page.locator("img[onerror]").count() == 0
        for i in range(3):
            playwright.expect(page.locator(".windows img").nth(i)).to_have_js_property("naturalWidth", 300, timeout=60_000)
        assert page.locator(".note-list .text").inner_text() == HOSTILE
        page.get_by_role("link", name="← The page").click()
        page.wait_for_function("document.body.dataset.cursor == 'past' && document.querySelectorAll('.table tbody tr').length == 1")
        assert page.locator("#search").input_value() == "f20"
        assert page.locator("th[aria-sort=descending]").inner_text().startswith("active")
        page.wait_for_function("document.querySelector('#when').textContent.endsWith('frame 600')")

        page.keyboard.press("Escape")
        page.locator("h1").click()
        page.keyboard.press("4")
        box = page.locator("[data-canvas=raster]").bounding_box()
        page.mouse.move(box["x"] + 400, box["y"] + 100)
        page.mouse.down()
        page.mouse.move(box["x"] + 500, box["y"] + 100, steps=4)
        page.mouse.up()
        page.wait_for_function("/^\\d+-\\d+$/.test(document.querySelector('#span-a').value)")
        page.wait_for_function("document.querySelectorAll('#compared tbody tr').length > 10")
        page.locator("#when-box").fill("pole_angel > 0")
        page.keyboard.press("Enter")
        page.wait_for_selector("#tried .wrong")
        assert "did you mean pole_angle" in page.locator("#tried").inner_text()
        page.locator("#when-box").fill("pole_angle > 0")
        page.keyboard.press("Enter")
        page.wait_for_function("document.querySelector('#tried').textContent.includes('held-out frames')")
        with page.expect_download() as waiting:
            page.locator("#clip").click()
        saved = waiting.value.path()
        kept = Path(saved).rename(Path(saved).with_suffix(".html"))
        page.goto(f"file://{kept}")
        page.wait_for_selector(".row >> nth=2")
        playwright.expect(page.locator(".stage img")).to_have_js_property("naturalWidth", 300, timeout=60_000)
        playwright.expect(page.locator("input")).not_to_have_value("0", timeout=60_000)
        assert page.locator("img[onerror]").count() == 0
        browser.close()
    assert said == []
