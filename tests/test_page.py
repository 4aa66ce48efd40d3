"""The page in a browser: loads in silence, moves, survives its writer, escapes what it shows, fits a phone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.store_builder import StoreBuilder

from interlatent_live.stream.errors import EndpointError, EndpointInUse
from interlatent_live.stream.manifest import MetricSpec
from interlatent_live.viewer.app import serve

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = next((p for p in (os.environ.get("CHROMIUM", ""), "/usr/bin/chromium") if p and Path(p).exists()), None)
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="Debian's chromium is not installed (make setup-system)")
ARGS = "--no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-component-update --disable-sync"
BUILDER = Path(__file__).with_name("store_builder.py")
SERVE = """
import sys, warnings
warnings.simplefilter("error")
from pathlib import Path
from interlatent_live.viewer.app import serve
serve(Path(sys.argv[1]), port=0, on_ready=lambda url: print(url, flush=True))
"""


class Served:
    """A page server in its own process."""

    def __init__(self, db: Path) -> None:
        self.log = db.with_suffix(".log")
        with self.log.open("w") as log:
            self.process = subprocess.Popen([sys.executable, "-c", SERVE, str(db)], stdout=subprocess.PIPE, stderr=log, text=True)
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()
        assert self.url.startswith("http://127.0.0.1:"), self.log.read_text()

    def close(self) -> str:
        """End it; what it had to say."""
        self.process.terminate()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        return self.log.read_text()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=ARGS.split())
        yield opened
        opened.close()


@pytest.fixture
def open_page(browser: Any, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Opens a page and holds it to silence: no console error or warning, no exception, no request that leaves the machine."""
    servers: list[Served] = []
    pages: list[Any] = []
    said: list[str] = []

    def open_(db: Path, **options: Any) -> Any:
        server = Served(db)
        servers.append(server)
        page = browser.new_page(**({"viewport": {"width": 1440, "height": 900}} | options))
        pages.append(page)
        page.on("console", lambda m: said.append(f"{m.type}: {m.text}") if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: said.append(str(error)))
        own = server.url, "data:", f"blob:{server.url}"
        page.on("request", lambda r: None if r.url.startswith(own) else said.append(f"request {r.url}"))
        page.goto(server.url)
        return page

    yield open_
    for page in pages:
        page.close()
    logs = [s.close() for s in servers]
    assert said == []
    assert logs == ["" for _ in servers]


def text(page: Any, name: str) -> str:
    return str(page.locator(f"[data-text={name}]").inner_text())


def becomes(page: Any, expression: str, seconds: float = 30) -> None:
    page.wait_for_function(expression, timeout=1000 * seconds)


STATE = "document.body.dataset.state == '{}'"


def test_served_at_root_on_this_machine_only(tmp_path: Path) -> None:
    seen: list[tuple[int, str, str]] = []
    urls: list[str] = []

    def stop() -> bool:  # runs in the server's own loop: ask from another process
        if not seen:
            body = "b = r.read().decode(); print(r.status, r.geturl(), 'cdn' in b, 'Waiting for an analyzer' in b)"
            code = f"import urllib.request as u; r = u.urlopen('{urls[0]}'); {body}"  # its answer must fit a pipe nobody reads yet
            asked.append(subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True))
            seen.append((0, "", ""))
        return asked[0].poll() is not None

    asked: list[subprocess.Popen[str]] = []
    serve(tmp_path / "none.db", port=0, stop=stop, on_ready=urls.append)
    out, _ = asked[0].communicate()
    assert out.split() == ["200", urls[0], "False", "True"], "at the root, with nothing from elsewhere"
    with pytest.raises(EndpointError, match=r"forward the port .* --token-file"):
        serve(tmp_path / "none.db", address="0.0.0.0", port=0)


def test_a_taken_port_is_named(tmp_path: Path) -> None:
    server = Served(tmp_path / "a.db")
    port = int(server.url.rsplit(":", 1)[1].strip("/"))
    with pytest.raises(EndpointInUse, match=str(port)):
        serve(tmp_path / "b.db", port=port)
    assert urllib.request.urlopen(server.url).status == 200
    assert server.close() == ""


@needs_browser
def test_empty_then_live_then_stale_then_live_then_ended(open_page: Callable[..., Any], tmp_path: Path) -> None:
    db = tmp_path / "run.db"
    page = open_page(db)
    becomes(page, "document.body.dataset.view == 'empty'")
    assert "Waiting for an analyzer" in page.locator(".start").inner_text()
    assert str(db) in page.locator(".start").inner_text()
    writer = subprocess.Popen([sys.executable, str(BUILDER), str(db), "--seconds", "60"])
    try:
        becomes(page, STATE.format("LIVE"))
        becomes(page, "document.querySelector('.picture img').naturalWidth == 300")
        becomes(page, "document.querySelector('[data-pair=\"0\"] .r') != null")
        before = int(text(page, "step")), page.locator(".flow .stage .count").last.inner_text()
        painted = "window.idraw.stats.paints"
        painted_before = page.evaluate(painted)
        page.wait_for_timeout(1500)
        after = int(text(page, "step")), page.locator(".flow .stage .count").last.inner_text()
        assert after[0] != before[0]
        assert after[1] != before[1]
        assert page.evaluate(painted) > painted_before
        assert "steps/s" in text(page, "steps")
        assert text(page, "dictionary") == "cartpole#9f3ac1d2"
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        becomes(page, STATE.format("STALE"), 10)
        assert "is the analyzer running" in page.locator(".note").inner_text()
        assert page.locator("b[data-state]").inner_text() == "STALE", "said in words, not by colour alone"
        writer = subprocess.Popen([sys.executable, str(BUILDER), str(db), "--seconds", "6", "--end"])
        becomes(page, STATE.format("LIVE"))
        assert not page.locator(".note").is_visible()
        assert "frames" in text(page, "lost")
        becomes(page, "!document.querySelector('[data-text=lost]').textContent.startsWith('0')")  # the gap, in the ledger
        becomes(page, STATE.format("ENDED"))
    finally:
        writer.kill()
        writer.wait()


@needs_browser
@pytest.mark.parametrize(("width", "height"), [(390, 844), (900, 1100), (1440, 900), (1920, 1080)])
def test_nothing_sticks_out(open_page: Callable[..., Any], tmp_path: Path, width: int, height: int) -> None:
    db = tmp_path / "run.db"
    builder = StoreBuilder(db, run="a-run-with-a-rather-long-name-as-users-like-to-give-them", neurons=width == 900)
    builder.frames(600)
    builder.snapshot()
    builder.accounts()
    page = open_page(db, viewport={"width": width, "height": height}, color_scheme="dark" if width < 1000 else "light")
    becomes(page, "document.body.dataset.view == 'running'")
    page.wait_for_timeout(700)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for tab in ("goes", "features", "health", "says"):
        page.locator(f"#tab-{tab}").click()
        becomes(page, f"!document.querySelector('#panel-{tab}').hidden")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        hidden = "[...document.querySelectorAll('main .plot')].filter(e => e.offsetParent && e.getBoundingClientRect().height < 90).length"
        assert page.evaluate(hidden) == 0
    if (width, height) == (1440, 900):
        assert page.evaluate("document.documentElement.scrollHeight") <= 900, "all of it in one glance"
    builder.close()


@needs_browser
def test_what_a_run_names_is_never_markup(open_page: Callable[..., Any], tmp_path: Path) -> None:
    evil = "<img src=x onerror=\"document.title='owned'\">"
    metrics = (MetricSpec(evil, "<b>"), MetricSpec("$$x^2$$"), MetricSpec("{{ 7*7 }}"), MetricSpec("@r{safe}"))
    builder = StoreBuilder(tmp_path / "run.db", environment=evil, metrics=metrics)
    builder.frames(600)
    builder.snapshot()
    builder.accounts()
    page = open_page(tmp_path / "run.db")
    becomes(page, "document.querySelector('[data-pair=\"0\"] .m') != null")
    page.locator("#tab-goes").click()
    box = page.locator(".plot.heat").bounding_box()
    for y in range(10, 330, 21):
        page.mouse.move(box["x"] + 90, box["y"] + y)
        page.wait_for_timeout(40)
    assert page.locator("main img").count() == 1, "the picture, and nothing that a name made"
    assert text(page, "environment").startswith("<img")
    assert "owned" not in page.title()
    builder.close()


@needs_browser
def test_a_server_that_dies_is_said_and_a_page_without_metrics_works(browser: Any, tmp_path: Path) -> None:
    builder = StoreBuilder(tmp_path / "run.db", metrics=(), pictures=False)
    builder.frames(300)
    builder.snapshot()
    server = Served(tmp_path / "run.db")
    page = browser.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(server.url)
    becomes(page, "document.body.dataset.view == 'running'")
    assert "no metrics" in page.locator("[data-lacks=metrics]").inner_text()
    assert page.locator(".picture .none").is_visible()
    server.process.kill()
    becomes(page, "document.querySelector('.note').textContent.includes('does not answer')")
    assert page.evaluate(STATE.format("STALE"))
    page.close()
    server.close()
    builder.close()
    assert errors == []


@needs_browser
def test_pause_scrub_step_and_go_live(open_page: Callable[..., Any], tmp_path: Path) -> None:
    db = tmp_path / "run.db"
    writer = subprocess.Popen([sys.executable, str(BUILDER), str(db), "--before", "90", "--seconds", "120"])
    try:
        page = open_page(db)
        becomes(page, STATE.format("LIVE"), 60)
        becomes(page, "window.itime && document.querySelector('#frame').max > 4000")
        page.keyboard.press("Space")
        becomes(page, "document.body.dataset.cursor == 'past'")
        stood = text(page, "step"), text(page, "episode")
        becomes(page, "parseInt(document.querySelector('#behind').textContent) > 20")
        assert (text(page, "step"), text(page, "episode")) == stood, "the cursor stays while the recording goes on"
        frame = "Number(document.querySelector('#frame').value)"
        seek = "n => {{ const s = document.querySelector('#frame'); s.value = n; s.dispatchEvent(new Event('input')); }}"
        page.evaluate(seek.format(), 1234)
        becomes(page, f"{frame} == 1234 && document.querySelector('#when').textContent.startsWith('0:24')")
        becomes(page, "document.querySelector('[data-text=step]').textContent == '234'")
        painted = "window.itime.lags.length >= {}"  # the next command comes when the last one's answer has been painted
        becomes(page, painted.format(1))
        assert text(page, "episode") == "2"
        assert text(page, "return") == "235"
        page.locator("h1").click()
        page.keyboard.press("ArrowRight")
        becomes(page, f"{frame} == 1235")
        becomes(page, "document.querySelector('[data-text=step]').textContent == '235'")
        becomes(page, painted.format(2))
        page.keyboard.press("Shift+ArrowLeft")
        becomes(page, f"{frame} == 1225")
        becomes(page, painted.format(3))
        page.evaluate(seek.format(), 0)
        becomes(page, "document.querySelector('#when').textContent.endsWith('frame 0')")
        becomes(page, painted.format(4))
        page.keyboard.press("ArrowLeft")
        page.wait_for_timeout(300)
        becomes(page, painted.format(5))
        assert text(page, "step") == "0", "there is nothing before the first frame"
        box = page.locator("[data-canvas=raster]").bounding_box()
        page.mouse.click(box["x"] + box["width"] / 2, box["y"] + 60)
        becomes(page, f"{frame} > 300 && {frame} < 1200")
        becomes(page, painted.format(6))
        assert "behind" in page.locator("#behind").inner_text()
        page.locator("#golive").click()
        becomes(page, "document.body.dataset.cursor == 'live' && document.querySelector('#behind').textContent == ''")
        assert page.evaluate("window.itime.lags.length") >= 6
    finally:
        writer.kill()
        writer.wait()


@needs_browser
def test_environments_sources_training_and_sentences(open_page: Callable[..., Any], tmp_path: Path) -> None:
    evil = "<img src=x onerror=\"document.title='owned'\">"
    builder = StoreBuilder(tmp_path / "run.db", envs=3, weights="changing")
    for version in range(4):
        builder.version, builder.bad = version, 3
        builder.frames(150)
        builder.snapshot()
    builder.log({"losses/value": [3.0, 2.0, 1.5]})
    builder.accounts()
    chips: list[dict[str, Any]] = [{"feature": 3, "name": "f3", "label": evil, "score": 0.91}, {"feature": 5, "score": None}]
    builder.narrate(f"unusually active: {evil}", chips)
    page = open_page(tmp_path / "run.db")
    becomes(page, "document.querySelectorAll('.lines li').length == 1")
    assert page.locator(".chip").all_inner_texts()[1] == "f5 unscored"
    assert evil in page.locator(".lines").inner_text()
    assert page.locator("main img").count() == 1
    assert "owned" not in page.title()
    assert "policy v3, weights changing" in text(page, "weights")
    assert "weights are changing" in page.locator("[data-stale-why]").inner_text()
    assert "line-through" in page.evaluate("getComputedStyle(document.querySelector('.card-fvu')).textDecoration")
    becomes(page, "document.body.dataset.versions == 'yes'")
    page.locator("#tab-health").click()
    assert page.locator(".by-version").is_visible()
    assert "non-finite frames" in page.locator(".vitals").inner_text()
    assert "losses/value" in page.locator(".scalars").inner_text()
    page.locator("#tab-says").click()
    page.locator(".lines .go").click()
    becomes(page, "document.body.dataset.cursor == 'past'")
    page.locator("[data-select=env]").select_option("2")
    becomes(page, "document.querySelectorAll('.lines li').length == 0")
    becomes(page, "location.search.includes('at=1799') && location.search.includes('env=2')")  # the same step of the other environment
    assert (page.evaluate("document.body.dataset.cursor"), text(page, "step")) == ("past", "99")
    assert page.locator("[data-select=env]").input_value() == "2"
    assert not page.locator("[data-select=source]").is_visible(), "one source of features needs no choice"
    builder.close()


@needs_browser
def test_closed_tabs_leave_no_sessions(browser: Any, tmp_path: Path) -> None:
    server = Served(tmp_path / "run.db")
    tabs = [browser.new_page() for _ in range(3)]
    for tab in tabs:
        tab.goto(server.url)
        becomes(tab, "document.body.dataset.view == 'empty' && window.Bokeh.documents.length == 1")
    for tab in tabs:
        tab.close()
    end = time.monotonic() + 40
    while _busy(server.process.pid) and time.monotonic() < end:
        time.sleep(0.5)
    assert not _busy(server.process.pid)
    assert server.close() == ""


def _busy(pid: int) -> bool:
    """Whether the server still has a connection open to a browser."""
    sockets = {os.readlink(f) for f in Path(f"/proc/{pid}/fd").iterdir() if f.is_symlink()}
    rows = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
    return any(row[3] == "01" and f"socket:[{row[9]}]" in sockets for row in rows)
