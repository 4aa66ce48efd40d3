"""The page of a real demo: agent, analyzer, explainer and browser, and the finished database afterwards."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.test_page import ARGS, CHROMIUM, Served, becomes, needs_browser

playwright = pytest.importorskip("playwright.sync_api")


@pytest.fixture(scope="module")
def axe() -> str | None:
    """axe-core's source, fetched for these tests alone; None where it cannot be had."""
    npm = shutil.which("npm")
    if npm is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        command = [npm, "install", "--no-save", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", folder, "axe-core@4"]
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=60)
        except (subprocess.SubprocessError, OSError):
            return None
        found = Path(folder) / "node_modules/axe-core/axe.min.js"
        return found.read_text(encoding="utf-8") if found.exists() else None


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[subprocess.Popen[str], str, Path]]:
    folder = tmp_path_factory.mktemp("demo")
    command = [
        sys.executable, "-m", "interlatent_live", "demo", "--agent", "cartpole", "--seconds", "25", "--no-open", "--port", "0",
        "--db", str(folder / "r.db"), "--record", str(folder / "r.mcap"), "--report", str(folder / "r.json"),
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    url, said = "", []
    for line in process.stdout:
        said.append(line)
        if found := re.search(r"http://127\.0\.0\.1:\d+/", line):
            url = found.group()
            break
    assert url, "".join(said)
    yield process, url, folder
    if process.poll() is None:
        process.terminate()
    process.communicate(timeout=60)


@needs_browser
def test_a_real_agent_is_watched_paused_and_scrubbed(demo: tuple[subprocess.Popen[str], str, Path], axe: str | None) -> None:
    process, url, folder = demo
    said: list[str] = []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=ARGS.split())
        page = _open(browser, url, said)
        becomes(page, "document.body.dataset.state == 'LIVE' && document.querySelector('.picture img').naturalWidth > 0", 90)
        analysed = "Number([...document.querySelectorAll('.flow .stage .count')].at(-1).textContent.replace(/\\D/g, ''))"
        before = page.evaluate(analysed)
        becomes(page, f"{analysed} > {before + 50}")
        page.keyboard.press("Space")
        becomes(page, "parseInt(document.querySelector('#behind').textContent) > 20")
        page.evaluate("() => { const s = document.querySelector('#frame'); s.value = 40; s.dispatchEvent(new Event('input')); }")
        becomes(page, "document.querySelector('#when').textContent.endsWith('frame 40')")
        becomes(page, "document.querySelector('[data-text=step]').textContent == '40'")
        page.keyboard.press("End")
        becomes(page, "document.body.dataset.cursor == 'live'")
        if axe is not None:
            _accessible(page, axe)
        page.close()  # else it would ask for its server, which ends with the demo
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0, output
        assert said == []
        steps = json.loads((folder / "r.json").read_text())["steps"]
        server = Served(folder / "r.db")
        page = _open(browser, server.url, said)
        becomes(page, "document.body.dataset.state == 'ENDED'")
        becomes(page, f"Number(document.querySelector('#frame').value) == {steps - 1}")
        page.keyboard.press("ArrowLeft")
        becomes(page, f"Number(document.querySelector('#frame').value) == {steps - 2}")
        page.evaluate("() => { const s = document.querySelector('#frame'); s.value = 7; s.dispatchEvent(new Event('input')); }")
        becomes(page, "document.querySelector('[data-text=step]').textContent == '7'")
        page.close()
        browser.close()
        assert server.close() == ""
    assert said == []


@needs_browser
@pytest.mark.slow
def test_every_process_is_killed_while_watched(tmp_path: Path) -> None:
    """Viewer, analyzer and explainer come back by themselves; where the page looked, it looks again."""
    with _demo(tmp_path, 600) as (process, url), playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=ARGS.split())
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        page.goto(url)
        becomes(page, "document.body.dataset.state == 'LIVE' && document.querySelector('#frame').max > 200", 90)
        page.locator("#tab-goes").click()
        page.locator(".rows .n").first.click()
        page.evaluate("window.itime.seek(123)")
        becomes(page, "/at=123&pin=\\d+&tab=goes/.test(location.search)")
        wanted = page.evaluate("location.search")
        for name in ("view", "analyze", "explain"):
            os.kill(_child(process.pid, name), signal.SIGKILL)
            if name == "view":
                becomes(page, "document.body.dataset.state == 'STALE'", 30)
            becomes(page, "window.itime && document.body.dataset.view == 'running' && document.body.dataset.cursor == 'past'", 90)
            assert page.evaluate("location.search") == wanted
            becomes(page, "document.querySelector('[data-text=step]').textContent == '123'", 90)
            becomes(page, "document.body.dataset.state == 'LIVE'", 90)
        becomes(page, "document.querySelectorAll('.titles [aria-pressed=true]').length == 1")
        assert page.locator("#panel-goes").is_visible()
        page.locator("#golive").click()
        becomes(page, "document.body.dataset.cursor == 'live' && Number(document.querySelector('#frame').max) > 500", 60)
        browser.close()


@needs_browser
@pytest.mark.slow
@pytest.mark.timeout(0)
def test_memory_is_flat_while_it_is_watched(tmp_path: Path) -> None:
    """Server and browser, for INTERLATENT_LIVE_SOAK_S seconds (default 1800): the last third against the second."""
    seconds = float(os.environ.get("INTERLATENT_LIVE_SOAK_S", "1800"))
    with _demo(tmp_path, seconds + 120) as (process, url), playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=[*ARGS.split(), "--js-flags=--expose-gc"])
        said: list[str] = []
        page = _open(browser, url, said)
        becomes(page, "document.body.dataset.state == 'LIVE'", 90)
        server: list[float] = []
        heap: list[float] = []
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            page.keyboard.press(("Space", "g", "1", "3", "4", "g")[len(heap) % 6])
            page.wait_for_timeout(1000 * min(10.0, seconds / 60))
            heap.append(page.evaluate("gc(), performance.memory.usedJSHeapSize / 2**20"))
            server.append(_rss_mib(_child(process.pid, "view")))
        third = len(heap) // 3
        for name, values in (("server", server), ("browser", heap)):
            middle, last = (sorted(v)[len(v) // 2] for v in (values[third : 2 * third], values[2 * third :]))
            assert last <= 1.1 * middle + 8, f"{name}: {middle:.0f} MiB, then {last:.0f} MiB"
        assert said == []
        page.close()
        browser.close()


@contextmanager
def _demo(folder: Path, seconds: float) -> Iterator[tuple[subprocess.Popen[str], str]]:
    command = [
        sys.executable, "-m", "interlatent_live", "demo", "--agent", "cartpole", "--seconds", str(seconds), "--no-open", "--port", "0",
        "--db", str(folder / "r.db"), "--record", str(folder / "r.mcap"),
    ]  # fmt: skip
    with (folder / "said").open("w") as log:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log, text=True)
        try:
            url = None
            while url is None and process.poll() is None:
                url = re.search(r"http://127\.0\.0\.1:\d+/", (folder / "said").read_text())
                time.sleep(0.1)
            assert url is not None, (folder / "said").read_text()
            yield process, url.group()
        finally:
            process.terminate()
            process.wait(timeout=60)


def _child(pid: int, command: str) -> int:
    """Process id of the demo's child that runs a command; waits for it to be there."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                words = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
                if command.encode() in words:
                    return int(child)
        time.sleep(0.1)
    raise AssertionError(f"no process {command}")


def _rss_mib(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def _open(browser: Any, url: str, said: list[str]) -> Any:
    page = browser.new_page(viewport={"width": 1440, "height": 900})
    page.on("console", lambda m: said.append(f"{m.type}: {m.text}") if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(url)
    return page


def _accessible(page: Any, axe: str) -> None:
    """No violation of WCAG 2 A and AA that axe-core finds, in light and dark."""
    page.evaluate(axe)
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        page.wait_for_timeout(200)
        found = page.evaluate("axe.run(document, {runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa']})")
        broken = [(v["id"], [n["html"][:120] for n in v["nodes"]][:4]) for v in found["violations"]]
        assert broken == [], scheme
