"""Playback, loops, pins, tabs, files, the address and the keyboard of the page, in a browser, over a finished run and two starts."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tests.store_builder import StoreBuilder
from tests.test_page import becomes, browser, needs_browser, open_page, text  # noqa: F401 - fixtures

from interlatent_live.viewer.choice import Pair
from interlatent_live.viewer.view import View, pin_of, pin_text

playwright = pytest.importorskip("playwright.sync_api")
FRAME = "Number(document.querySelector('#frame').value)"


def finished(path: Path, *, seconds: int = 60, snapshots: bool = True) -> None:
    """A run of a minute at 50 Hz that has ended, with a gap in it."""
    builder = StoreBuilder(path)
    builder.frames(seconds * 25, rows=10)
    builder.lose(100)
    builder.frames(seconds * 25 - 100, rows=10)
    if snapshots:
        builder.snapshot()
    builder.narrate("something happened", [{"feature": 3, "name": "f3", "label": "leans", "score": 0.9}])
    builder.accounts(ended=True)
    builder.close()


def test_an_address_says_a_view_and_nonsense_says_none() -> None:
    view = View(
        boot="b0", env=2, source="3:out|abc", at=41, playing=True, speed=0.25, loop=(3, 90), tab="health",
        pins=(Pair(7, None), Pair(None, "a~b, c"), Pair(1, "x")),
    )  # fmt: skip
    arguments: dict[str, list[bytes]] = {}
    for name, value in view.query():
        arguments.setdefault(name, []).append(value.encode())
    assert View.read(arguments) == view
    assert View().query() == []
    pins = [b"", b"~", b"-1", b"9" * 30]
    nonsense = {"at": [b"-4"], "speed": [b"7"], "loop": [b"9-3"], "env": [b"x"], "pin": pins, "tab": [b"<b>"], "boot": [b"\xff"]}
    assert View.read(nonsense) == View(boot="\ufffd")
    for pin in view.pins:
        assert pin_of(pin_text(pin)) == pin


@needs_browser
def test_it_plays_loops_and_stops_at_the_end(open_page: Callable[..., Any], tmp_path: Path) -> None:  # noqa: F811
    finished(tmp_path / "run.db")
    page = open_page(tmp_path / "run.db")
    becomes(page, "document.body.dataset.state == 'ENDED' && window.itime.data()")
    page.locator("h1").click()
    page.keyboard.press("Home")
    becomes(page, f"{FRAME} == 0")
    page.keyboard.press("PageDown")
    becomes(page, f"{FRAME} == 500")
    page.locator("#later").click()
    becomes(page, f"{FRAME} == 1000")
    page.locator("#earlier").click()
    becomes(page, f"{FRAME} == 500")
    for _ in range(3):
        page.keyboard.press("+")
    becomes(page, "document.querySelector('#speed').value == '8'")
    page.keyboard.press("Space")
    becomes(page, f"document.body.dataset.playing == 'yes' && {FRAME} > 900")
    becomes(page, f"{FRAME} == 2999 && document.body.dataset.playing == 'no'", 60)
    assert text(page, "step") == "499"
    page.locator("h1").click()
    page.keyboard.press("Space")
    becomes(page, f"document.body.dataset.playing == 'yes' && {FRAME} < 2500")  # from the beginning
    page.keyboard.press("Space")
    becomes(page, "document.body.dataset.playing == 'no'")
    page.evaluate("window.itime.seek(200)")
    becomes(page, f"{FRAME} == 200")
    page.keyboard.press("[")
    page.locator("#forth").click()
    for _ in range(4):
        page.keyboard.press("Shift+ArrowRight")
    becomes(page, f"{FRAME} == 241")
    page.keyboard.press("]")
    becomes(page, "document.querySelector('#loop').getAttribute('aria-pressed') == 'true'")
    seen = set()
    for _ in range(30):
        seen.add(page.evaluate(FRAME))
        page.wait_for_timeout(40)
    assert len(seen) > 4
    assert all(200 <= frame <= 241 for frame in seen), "it stays in its range"
    page.locator("#pause").click()
    becomes(page, "document.body.dataset.playing == 'no'")
    page.keyboard.press("l")
    becomes(page, "document.querySelector('#loop').getAttribute('aria-pressed') == 'false'")
    page.locator("#speed").select_option("0.5")
    becomes(page, "new URLSearchParams(location.search).get('speed') == '0.5'")
    box = page.locator("#frame").bounding_box()
    page.keyboard.down("Shift")
    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 10)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.7, box["y"] + 10, steps=4)
    page.mouse.up()
    page.keyboard.up("Shift")
    becomes(page, "/^14\\d\\d-2[01]\\d\\d$|^15\\d\\d-2[01]\\d\\d$/.test(new URLSearchParams(location.search).get('loop') || '')")
    page.locator("#loop").click()
    becomes(page, "document.querySelector('#loop').getAttribute('aria-pressed') == 'false'")
    page.locator("#golive").click()
    becomes(page, "document.body.dataset.cursor == 'live' && location.search == '?speed=0.5'")


@needs_browser
def test_pins_tabs_files_and_the_address(open_page: Callable[..., Any], tmp_path: Path) -> None:  # noqa: F811
    finished(tmp_path / "run.db")
    page = open_page(tmp_path / "run.db")
    becomes(page, "document.querySelectorAll('.rows .n').length > 4 && document.querySelectorAll('.titles h3').length == 4")
    name = page.locator(".rows .n b").nth(2).inner_text()
    page.locator(".rows .n").nth(2).click()
    becomes(page, f"document.querySelector('.titles h3 .f').textContent.startsWith('{name}')")
    page.keyboard.press("/")
    becomes(page, "document.activeElement.id == 'search' && document.querySelectorAll('.table tbody tr').length > 20")
    page.keyboard.type("pole_ang")
    becomes(page, "document.querySelectorAll('.table tbody tr.metric').length == 1")
    page.locator(".table tr.metric button").click()
    becomes(page, "document.querySelectorAll('.titles [aria-pressed=true]').length == 2")
    becomes(page, "document.querySelectorAll('.titles h3')[1].querySelector('.f') == null")
    page.locator("#search").fill("nobody is called that")
    becomes(page, "!document.querySelector('.nothing').hidden")
    page.keyboard.press("Escape")
    becomes(page, "document.querySelectorAll('.table tbody tr').length > 20")
    page.locator("#tab-health").click()
    becomes(page, "!document.querySelector('#panel-health').hidden")
    assert "analyzer" in page.locator(".services").inner_text()
    page.keyboard.press("3")
    page.locator("#tab-features").press("ArrowLeft")
    becomes(page, "!document.querySelector('#panel-goes').hidden && document.activeElement.id == 'tab-goes'")
    page.evaluate("window.itime.seek(321)")
    wanted = f"boot=b0&at=321&pin={name[1:]}&pin=%7Epole_angle&tab=goes"
    becomes(page, f"location.search == '?{wanted}'")
    page.reload()
    becomes(page, f"document.body.dataset.view == 'running' && document.body.dataset.cursor == 'past' && {FRAME} == 321")
    becomes(page, "document.querySelectorAll('.titles [aria-pressed=true]').length == 2 && !document.querySelector('#panel-goes').hidden")
    assert page.evaluate("location.search") == f"?{wanted}"
    with page.expect_download() as csv_file:
        page.locator("[data-save=csv]").click()
    rows = list(csv.DictReader(io.StringIO(Path(csv_file.value.path()).read_text())))
    assert rows[321]["frame"] == "321"
    assert {"time [s]", "pole_angle [rad]", name} <= set(rows[0])
    assert all(int(b["frame"]) - int(a["frame"]) == 1 for a, b in pairwise(rows))
    for button in ("[data-of=raster]", "[data-of=strips]", "[data-of=heatmap]"):
        with page.expect_download() as file:
            page.locator(button).click()
        assert Path(file.value.path()).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    with page.expect_download() as cells:
        page.locator("[data-save=cells]").click()
    assert Path(cells.value.path()).read_text().startswith("feature,metric,r,")
    page.locator("#tab-says").click()
    page.locator("#golive").click()
    page.locator(".lines li").hover()
    page.locator(".lines li p").first.click()
    becomes(page, f"{FRAME} == 2999")
    page.keyboard.press("?")
    becomes(page, "document.querySelector('#keys').open")
    assert "go live" in page.locator("#keys").inner_text()
    page.keyboard.press("Escape")
    becomes(page, "!document.querySelector('#keys').open")
    page.locator("#help").click()
    page.locator("#keys button").click()
    becomes(page, "!document.querySelector('#keys').open")
    page.keyboard.press("g")
    becomes(page, "document.body.dataset.cursor == 'live'")


@needs_browser
def test_an_earlier_start_and_an_address_that_names_none(open_page: Callable[..., Any], tmp_path: Path) -> None:  # noqa: F811
    finished(tmp_path / "run.db", seconds=20)
    page = open_page(tmp_path / "run.db")
    becomes(page, "document.body.dataset.state == 'ENDED'")
    page.evaluate("window.itime.seek(77)")
    becomes(page, f"{FRAME} == 77 && location.search == '?boot=b0&at=77'")
    second = StoreBuilder(tmp_path / "run.db", boot="b1", start_wall_ns=2 * 10**18)
    second.frames(300)
    second.snapshot()
    second.accounts()
    becomes(page, "document.querySelectorAll('[data-select=boot] option').length == 2")
    assert page.evaluate(FRAME) == 77, "it stays with what is looked at"
    assert page.locator("[data-select=boot]").input_value() == "b0"
    page.locator("#golive").click()
    becomes(page, "document.querySelector('[data-select=boot]').value == 'b1' && document.body.dataset.cursor == 'live'")
    page.locator("[data-select=boot]").select_option("b0")
    becomes(page, "document.body.dataset.state == 'ENDED' && location.search == '?boot=b0'")
    page.goto(page.url.split("?")[0] + "?boot=none&at=5")
    becomes(page, "document.body.dataset.view == 'running'")
    becomes(page, "document.querySelector('.note').textContent.includes('does not hold the start')")
    second.close()
