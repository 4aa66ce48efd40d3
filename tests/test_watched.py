"""Every control of the page used once, live and over a recording, on agents of each kind; axe-core on every page; in silence throughout."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.store_builder import StoreBuilder
from tests.test_demo_page import _accessible, axe
from tests.test_page import becomes, browser, needs_browser, open_page

playwright = pytest.importorskip("playwright.sync_api")
__all__ = ["axe", "browser", "open_page"]
CLI = [sys.executable, "-m", "interlatent_live"]
SIZES = [(1440, 900), (1920, 1080), (390, 844)]
FRAME = "Number(document.querySelector('#frame').value)"


def recorded(folder: Path, agent: str, *limits: str) -> Path:
    """The database of a real agent's recording."""
    record, db = folder / f"{agent}.mcap", folder / f"{agent}.db"
    for command in (
        ["run", agent, "--fast", *limits, "--bind", "tcp://127.0.0.1:*", "--record", str(record)],
        ["analyze", "--recording", str(record), "--db", str(db)],
    ):
        done = subprocess.run([*CLI, *command], capture_output=True, text=True, timeout=500, check=False)
        assert done.returncode == 0, done.stderr
    return db


@contextmanager
def acting(folder: Path, agent: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A demo of an agent in real time, and its page's address; what it had to say is kept in `said`."""
    command = ["demo", "--agent", agent, "--seconds", "900", "--no-open", "--port", "0", "--db", str(folder / "r.db")]
    with (folder / "said").open("w") as log:
        process = subprocess.Popen([*CLI, *command, "--record", str(folder / "r.mcap")], stdout=subprocess.DEVNULL, stderr=log)
    try:
        url = None
        while url is None:
            assert process.poll() is None, (folder / "said").read_text()
            url = re.search(r"http://127\.0\.0\.1:\d+/", (folder / "said").read_text())
        yield process, url.group()
    finally:
        process.terminate()
        process.wait(timeout=60)


def use_everything(page: Any, frames: int) -> None:
    """Each control once, seen to have done what it says. `frames`: how many there are at least."""
    page.set_default_timeout(60_000)
    place, cursor = "window.itime.place()", "document.body.dataset.cursor == '{}'"
    middle = frames // 2

    def painted(act: Callable[[], Any]) -> None:
        """Do it, and wait until its answer is on the screen."""
        before = page.evaluate("window.itime.count()")
        act()
        becomes(page, f"window.itime.count() > {before}", 60)

    def seek(frame: int) -> None:
        painted(lambda: page.evaluate(f"window.itime.seek({frame})"))
        becomes(page, f"{place}.seq == {frame} && document.querySelector('#when').textContent.replace(/\\D/g, '').endsWith('{frame}')")

    def press(key: str) -> None:
        painted(lambda: page.keyboard.press(key))

    # the transport, by hand and by key
    seek(middle)
    painted(page.locator("#back").click)
    becomes(page, f"{place}.seq < {middle}")
    painted(page.locator("#forth").click)
    becomes(page, f"{place}.seq == {middle}")
    press("Shift+ArrowRight")
    press("Shift+ArrowLeft")
    becomes(page, f"{place}.seq == {middle}")
    page.locator("#earlier").click()
    becomes(page, f"{place}.seq < {middle}")
    page.locator("#later").click()
    page.keyboard.press("PageUp")
    page.keyboard.press("PageDown")
    seek(middle)
    page.locator("#speed").select_option("8")
    becomes(page, f"{place}.speed == 8")
    page.keyboard.press("-")
    becomes(page, f"{place}.speed == 4 && document.querySelector('#speed').value == '4'")
    page.locator("#pause").click()
    becomes(page, f"{place}.playing && {place}.seq > {middle}")
    page.keyboard.press("Space")
    becomes(page, f"!{place}.playing")
    seek(middle)
    page.locator("#loop").click()
    seek(middle + 20)
    page.keyboard.press("]")
    becomes(page, f"{place}.loop && {place}.loop[0] == {middle} && {place}.playing")
    page.locator("#loop").click()
    becomes(page, f"!{place}.loop")
    page.keyboard.press("Space")
    becomes(page, f"!{place}.playing")
    press("Home")
    becomes(page, f"{place}.seq < 5")
    box = page.locator("#frame").bounding_box()
    painted(lambda: page.mouse.click(box["x"] + box["width"] / 3, box["y"] + box["height"] / 2))
    becomes(page, f"{place}.seq > {frames // 5}")
    page.locator("#golive").click()
    becomes(page, cursor.format("live"))

    # pins, rows, what is pointed at
    seek(middle)
    first = page.locator(".rows .n").first
    first.click()
    becomes(page, "document.querySelectorAll('.titles [aria-pressed=true]').length == 1")
    page.locator(".titles [aria-pressed=true]").click()
    becomes(page, "document.querySelectorAll('.titles [aria-pressed=true]').length == 0")
    box = page.locator("[data-canvas=raster]").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.4, box["y"] + 60)
    becomes(page, "!document.querySelector('.tip').hidden")
    painted(lambda: page.mouse.click(box["x"] + box["width"] * 0.5, box["y"] + 60))
    box = page.locator("[data-canvas=strips]").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + box["height"] * 0.7)
    becomes(page, "document.querySelector('.tip').textContent.startsWith('at ')")
    page.mouse.move(5, 5)

    # tabs, finding, asking
    for key, name in zip("12345", ("says", "goes", "features", "ask", "health"), strict=True):
        page.locator("h1").click()
        page.keyboard.press(key)
        becomes(page, f"!document.querySelector('#panel-{name}').hidden")
    page.locator("#tab-features").click()
    becomes(page, "document.querySelectorAll('.table tbody tr').length > 5")
    page.locator("[data-sort=share]").click()
    becomes(page, "document.querySelector('th[aria-sort]') != null")
    name = page.locator(".rows .n b").first.inner_text()
    page.locator("h1").click()
    page.keyboard.press("/")
    page.keyboard.type(name)
    becomes(page, f"document.querySelector('.table tbody a .who-is')?.textContent == '{name}'")
    page.keyboard.press("Escape")
    page.locator("h1").click()
    page.locator("#tab-ask").click()
    page.locator("#use-episode").click()
    becomes(page, "document.querySelector('#compared').textContent.length > 20", 120)
    page.locator("#when-box").fill("no_such_metric > 1")
    page.keyboard.press("Enter")
    becomes(page, "document.querySelector('#tried').textContent.includes('no_such_metric')", 120)
    page.locator("#tab-says").click()

    # files, help
    files = [("[data-save=png][data-of=raster]", ".png"), ("[data-save=csv]", ".csv"), ("[data-save=png][data-of=strips]", ".png")]
    for selector, ending in files:
        with page.expect_download(timeout=60_000) as waiting:
            page.locator(selector).click()
        assert waiting.value.suggested_filename.endswith(ending)
    page.locator("#tab-goes").click()
    for selector, ending in (("[data-save=png][data-of=heatmap]", ".png"), ("[data-save=cells]", ".csv")):
        with page.expect_download(timeout=60_000) as waiting:
            page.locator(selector).click()
        assert waiting.value.suggested_filename.endswith(ending)
    with page.expect_download(timeout=120_000) as waiting:
        page.locator("#clip").click()
    assert Path(waiting.value.path()).stat().st_size > 10_000
    page.keyboard.press("?")
    becomes(page, "document.querySelector('#keys').open")
    page.keyboard.press("Escape")
    becomes(page, "!document.querySelector('#keys').open")

    # everything about a feature, and back to the same view
    seek(middle)
    becomes(page, f"location.search.includes('at={middle}')")
    page.locator(".rows .o").first.click()
    page.wait_for_selector(".windows, .card")
    page.go_back()
    becomes(page, f"window.itime && {place}.seq == {middle}", 60)
    page.go_forward()
    page.wait_for_selector(".windows, .card")
    page.go_back()
    becomes(page, f"window.itime && {place}.seq == {middle} && document.querySelector('.picture img')", 60)


def fits(page: Any, width: int) -> None:
    """Nothing sticks out on any tab."""
    for tab in ("says", "goes", "features", "ask", "health"):
        page.locator(f"#tab-{tab}").click()
        becomes(page, f"!document.querySelector('#panel-{tab}').hidden")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, tab


def keep_picture(page: Any, name: str) -> None:
    """For who looks at them: in the folder that INTERLATENT_LIVE_PICTURES names."""
    folder = os.environ.get("INTERLATENT_LIVE_PICTURES")
    if folder:
        page.wait_for_timeout(800)
        page.screenshot(path=str(Path(folder) / f"{name}.png"))


def every_size(page: Any, name: str) -> None:
    """Three sizes, two themes: nothing sticks out."""
    for width, height in SIZES:
        page.set_viewport_size({"width": width, "height": height})
        for scheme in ("dark", "light"):
            page.emulate_media(color_scheme=scheme)
            fits(page, width)
            page.locator("#tab-says").click()
            keep_picture(page, f"{name}-{width}-{scheme}")
    page.set_viewport_size({"width": 1440, "height": 900})


@needs_browser
def test_a_game_of_ms_pacman_is_gone_through(open_page: Callable[..., Any], tmp_path: Path) -> None:
    """The quick look; the others below use every control."""
    page = open_page(recorded(tmp_path, "mspacman", "--seconds", "1.5"))
    becomes(page, "document.body.dataset.state == 'ENDED' && document.querySelector('.picture img').naturalWidth > 0", 60)
    becomes(page, "window.itime.data() != null && document.querySelectorAll('.rows .n').length > 5")
    page.evaluate("window.itime.seek(3)")
    becomes(page, f"{FRAME} == 3 && document.querySelector('[data-text=step]').textContent == '3'")
    page.keyboard.press("ArrowRight")
    becomes(page, f"{FRAME} == 4")
    fits(page, 1440)


@needs_browser
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("agent", "limits"),
    [("humanoid", ["--episodes", "1"]), ("mspacman", ["--episodes", "1"]), ("cartpole", ["--episodes", "60", "--no-pictures"])],
)
def test_every_control_over_a_recording(
    open_page: Callable[..., Any], tmp_path: Path, axe: str | None, agent: str, limits: list[str]
) -> None:
    page = open_page(recorded(tmp_path, agent, *limits))
    becomes(page, "document.body.dataset.state == 'ENDED' && window.itime.data() != null", 60)
    frames = int(page.evaluate("window.itime.place().newest")) + 1
    if agent == "cartpole":
        assert frames == 30_000, "sixty episodes of 500 steps"
    use_everything(page, frames)
    every_size(page, agent)
    if axe is not None:
        for tab in ("says", "goes", "features", "ask", "health"):
            page.locator(f"#tab-{tab}").click()
            _accessible(page, axe)


@needs_browser
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("agent", ["humanoid", "mspacman"])
def test_every_control_while_it_acts(browser: Any, tmp_path: Path, agent: str) -> None:
    said: list[str] = []
    with acting(tmp_path, agent) as (_, url):
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        page.on("console", lambda m: said.append(f"{m.type}: {m.text}") if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(url)
        becomes(page, "document.body.dataset.state == 'LIVE' && window.itime.place().newest > 150", 180)
        becomes(page, "document.querySelector('[data-pair=\"0\"] .r') != null", 60)
        use_everything(page, 150)
        page.keyboard.press("g")
        every_size(page, f"{agent}-live")
        other = browser.new_page(viewport={"width": 1440, "height": 900})
        other.goto(url)
        becomes(other, "document.body.dataset.state == 'LIVE'", 60)
        other.evaluate("window.itime.seek(20)")
        becomes(other, "document.body.dataset.cursor == 'past'")
        assert page.evaluate("document.body.dataset.cursor") == "live", "each tab has its own cursor"
        for tab in (other, page):
            tab.close()
    assert said == []
    assert "Traceback" not in (tmp_path / "said").read_text()


@needs_browser
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_axe_finds_nothing_on_any_page(open_page: Callable[..., Any], tmp_path: Path, axe: str | None) -> None:
    if axe is None:
        pytest.skip("axe-core cannot be fetched")
    empty = open_page(tmp_path / "none.db")
    becomes(empty, "document.body.dataset.view == 'empty'")
    _accessible(empty, axe)
    waiting = StoreBuilder(tmp_path / "waiting.db")
    page = open_page(tmp_path / "waiting.db")
    becomes(page, "document.body.dataset.view == 'waiting'")
    _accessible(page, axe)
    waiting.close()
    (tmp_path / "text.db").write_text("no database")
    page = open_page(tmp_path / "text.db")
    becomes(page, "document.body.dataset.view == 'problem'")
    _accessible(page, axe)
    builder = StoreBuilder(tmp_path / "neurons.db", neurons=True, envs=2)
    builder.frames(600)
    builder.lose(40)
    builder.frames(200)
    builder.snapshot()
    builder.narrate("unusually active", [{"feature": 3, "name": "n3", "label": "leaning", "score": 0.9}, {"feature": 5, "score": None}])
    builder.accounts()
    page = open_page(tmp_path / "neurons.db")
    becomes(page, "document.body.dataset.view == 'running' && window.itime.data() != null")
    for tab in ("says", "goes", "features", "ask", "health"):
        page.locator(f"#tab-{tab}").click()
        _accessible(page, axe)
    page.keyboard.press("Space")
    page.keyboard.press("[")
    _accessible(page, axe)
    page.keyboard.press("?")
    _accessible(page, axe)
    page.keyboard.press("Escape")
    where = page.evaluate("document.querySelector('.rows .o').href")
    for address in (where, where.split("?")[0].split("#")[0] + "?embed"):
        page.goto(address)
        page.wait_for_selector("h1, .card")
        _accessible(page, axe)
    builder.close()


@needs_browser
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_agent_that_is_killed_comes_back_as_a_new_start_while_watched(
    open_page: Callable[..., Any], browser: Any, tmp_path: Path
) -> None:
    """Who looks at a frame of the first start stays there, pins and tab and all; who is live follows the new one."""
    db, address = tmp_path / "r.db", f"tcp://127.0.0.1:{_free_port()}"
    run, analyze = [*CLI, "run", "cartpole", "--bind", address], [*CLI, "analyze", "--connect", address, "--db", str(db), "--stay"]
    with (tmp_path / "said").open("w") as said:
        analyzer = subprocess.Popen(analyze, stdout=said, stderr=said)
        agent = subprocess.Popen(run, stdout=said, stderr=said)
        try:
            stays = open_page(db)
            becomes(stays, "document.body.dataset.state == 'LIVE' && window.itime.place().newest > 300", 120)
            follows = browser.new_page(viewport={"width": 1440, "height": 900})
            follows.goto(stays.url)
            becomes(follows, "document.body.dataset.state == 'LIVE'", 60)
            stays.locator("#tab-goes").click()
            stays.locator(".rows .n").first.click()
            stays.evaluate("window.itime.seek(123)")
            becomes(stays, "/boot=[^&]+&at=123&pin=\\d+&tab=goes/.test(location.search)", 120)
            wanted, first = stays.evaluate("location.search"), stays.evaluate("new URLSearchParams(location.search).get('boot')")
            agent.send_signal(signal.SIGKILL)
            agent.wait()
            becomes(follows, "document.body.dataset.state == 'STALE'", 60)
            assert "agent is silent" in follows.locator(".note").inner_text() or "analyzer" in follows.locator(".note").inner_text()
            agent = subprocess.Popen(run, stdout=said, stderr=said)
            two = "document.querySelectorAll('[data-select=boot] option').length == 2"
            becomes(follows, f"document.body.dataset.state == 'LIVE' && {two}", 120)
            becomes(stays, two, 60)
            assert stays.evaluate("location.search") == wanted
            becomes(stays, "document.querySelector('[data-text=step]').textContent == '123' && document.body.dataset.cursor == 'past'")
            assert stays.locator("[data-select=boot]").input_value() == first
            assert follows.locator("[data-select=boot]").input_value() != first
            pinned = "document.querySelectorAll('.titles [aria-pressed=true]').length == 1"
            becomes(stays, pinned)
            assert stays.locator("#panel-goes").is_visible()
            stays.locator("#golive").click()
            becomes(stays, f"document.body.dataset.state == 'LIVE' && document.querySelector('[data-select=boot]').value != '{first}'", 60)
            becomes(stays, "!/[?&](at|boot)=/.test(location.search) && /pin=/.test(location.search)")
            stays.reload()
            becomes(stays, f"document.body && document.body.dataset.state == 'LIVE' && {pinned}", 60)
            follows.close()
        finally:
            for process in (agent, analyzer):
                process.kill()
                process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@needs_browser
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_what_users_do_to_pages(open_page: Callable[..., Any], tmp_path: Path) -> None:
    """Reloaded while it loads, zoomed, resized, moved through history, left hidden, another clock."""
    builder = StoreBuilder(tmp_path / "run.db", environment="E" * 300, run="a-run-" + "long" * 14)
    builder.frames(900)
    builder.snapshot()
    builder.narrate("long " * 200, [{"feature": 3, "name": "f3", "label": "label " * 30, "score": 0.9}])
    builder.accounts()
    page = open_page(tmp_path / "run.db")
    address = page.url
    for wait in (0, 30, 80, 150, 300, 600):
        page.goto(address, wait_until="commit")
        page.wait_for_timeout(wait)
    page.goto(address)
    becomes(page, "document.body.dataset.view == 'running' && window.itime.data() != null", 60)
    for width, height in ((2880, 1800), (1152, 720), (720, 450), (390, 844), (1440, 900)):  # half, 125 % and 200 % of 1440 × 900; a phone
        page.set_viewport_size({"width": width, "height": height})
        page.wait_for_timeout(150)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    before = page.evaluate("window.idraw.stats.paints")
    told = "document.dispatchEvent(new Event('visibilitychange'))"
    page.evaluate(f"Object.defineProperty(document, 'hidden', {{get: () => true, configurable: true}}); {told}")
    builder.frames(200)
    page.wait_for_timeout(3000)
    page.evaluate(f"delete document.hidden; {told}")
    becomes(page, f"window.itime.place().newest == 1099 && window.idraw.stats.paints > {before}")
    page.evaluate("(now => { Date.now = () => now() + 7200_000 })(Date.now.bind(Date))")
    builder.frames(50)
    becomes(page, "window.itime.place().newest == 1149")
    becomes(page, "/^\\d|stale|–/.test(document.querySelector('[data-age]').textContent)")
    builder.close()

