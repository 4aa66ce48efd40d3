"""The page of a real demo: agent, analyzer, explainer and browser, and the finished database afterwards."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
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
