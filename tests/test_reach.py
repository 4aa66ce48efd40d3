"""The drawer "Reach in" in a browser, on a real agent that may be steered: what is applied is seen to act, and to end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.test_demo_page import _accessible, axe
from tests.test_page import ARGS, CHROMIUM, needs_browser

from interlatent_live.analyzer.interventions import InterventionRow
from interlatent_live.analyzer.queries import Reader

playwright = pytest.importorskip("playwright.sync_api")
__all__ = ["axe"]
AGENT = """
import sys, time, torch
import interlatent_live as il
from interlatent_live.agent_side import rollout
from interlatent_live.agent_side.agents import agent_named
torch.set_num_threads(1)
agent = agent_named("cartpole")
tap = rollout.make_tap(agent, endpoint="tcp://127.0.0.1:*", steering=il.SteeringPolicy(lease_s=float(sys.argv[1])))
with tap:
    print(tap.endpoint, flush=True)
    rollout.wait_for_subscriber(tap, 60)
    rollout.run(agent, tap, seconds=600, stop=lambda: sys.stdin.closed)
"""
RUNNING = "window.ireach && document.body.dataset.view == 'running' && document.body.dataset.state == 'LIVE'"


class Play:
    """An agent, its analyzer and a page, each a process of its own; their secrets in a folder of the test."""

    def __init__(self, folder: Path, lease_s: float) -> None:
        self.db = folder / "r.db"
        self.env = os.environ | {"XDG_STATE_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}
        self.env.pop("XDG_RUNTIME_DIR", None)
        self.processes: list[subprocess.Popen[str]] = []
        self.folder = folder
        self.agent, self.endpoint = self._start([sys.executable, "-c", AGENT, str(lease_s)], "agent")
        self._start([sys.executable, "-m", "interlatent_live", "analyze", "--connect", self.endpoint, "--db", str(self.db), "--json"], "")
        self.viewer, self.url = self.page("--control", self.endpoint)

    def _start(self, command: list[str], says: str) -> tuple[subprocess.Popen[str], str]:
        with (self.folder / f"{len(self.processes)}.log").open("w") as log:
            out = subprocess.PIPE if says else subprocess.DEVNULL
            process = subprocess.Popen(command, stdout=out, stderr=log, text=True, env=self.env)
        self.processes.append(process)
        return process, process.stdout.readline().strip() if process.stdout is not None else ""

    def page(self, *more: str) -> tuple[subprocess.Popen[str], str]:
        command = [sys.executable, "-m", "interlatent_live", "view", "--db", str(self.db), "--port", "0", "--json", *more]
        process, line = self._start(command, "view")
        return process, str(json.loads(line)["url"])

    def interventions(self) -> list[InterventionRow]:
        with Reader(self.db) as reader:
            return [row for boot in reader.boots() for row in reader.interventions(boot.boot)]

    def close(self) -> None:
        for process in reversed(self.processes):
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


@contextmanager
def playing(folder: Path, lease_s: float) -> Iterator[Play]:
    play = Play(folder, lease_s)
    try:
        yield play
    finally:
        play.close()


@pytest.fixture(scope="module")
def play(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Play]:
    """Its lease is long: on a loaded machine a browser's beats may be late."""
    with playing(tmp_path_factory.mktemp("reach"), 30.0) as made:
        yield made


@pytest.fixture
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=ARGS.split())
        yield opened
        opened.close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens a page that runs, and holds it to silence."""
    said: list[str] = []

    def open_(url: str, **options: Any) -> Any:
        page = browser.new_page(**({"viewport": {"width": 1440, "height": 900}} | options))
        page.on("console", lambda m: said.append(f"{m.type}: {m.text}") if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(url)
        becomes(page, RUNNING)
        becomes(page, "document.querySelector('.rows [data-row]')")
        return page

    yield open_
    assert said == []


def becomes(page: Any, expression: str, seconds: float = 120) -> None:
    page.wait_for_function(expression, timeout=1000 * seconds)


def until(condition: Callable[[], Any], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def measured(page: Any, **fields: str) -> None:
    """Fill the form in, and try it in shadow; for long, as a loaded machine is slow."""
    page.select_option("#reach-ttl", "300")
    for name, value in fields.items():
        page.fill(f"#reach-{name}", value)
    page.locator("#reach-try").click()
    becomes(page, "document.querySelector('#reach-trial h3')?.textContent == 'In shadow it measured'")


def applied(page: Any) -> None:
    becomes(page, "!document.querySelector('#reach-apply').disabled")
    page.locator("#reach-apply").click()
    becomes(page, "document.querySelector('.act[data-kind=acts]')")
    becomes(page, "document.querySelector('#steered b').textContent == 'STEERED'")


@needs_browser
def test_measured_in_shadow_applied_seen_and_released(play: Play, open_page: Callable[..., Any]) -> None:
    page = open_page(f"{play.url}?reach=31,clamp,2")
    becomes(page, "!document.querySelector('#reach-fields').disabled")
    assert page.locator("#reach-feature").input_value() == "31"
    assert page.locator("#reach-op-clamp").is_checked()
    assert page.locator("#reach-strength").input_value() == "2"
    assert play.interventions() == [], "a link applies nothing, and tries nothing"
    assert page.locator("#reach-apply").is_disabled()
    page.fill("#reach-when", "pole_angle >")
    becomes(page, "document.querySelector('#reach-problem').textContent && document.querySelector('#reach-try').disabled")
    measured(page, when="", reason="why not")
    assert page.locator("#steered b").inner_text() == "SHADOW"
    (shadow,) = play.interventions()
    assert (shadow.shadow, shadow.reason) == (1, "why not")
    assert page.locator("#reach-trial .outcome tbody tr").count() == 2
    applied(page)
    card = page.locator(".act[data-kind=acts]")
    becomes(page, "/\\d (nats|sd)/.test(document.querySelector('.act .value').textContent.replace(/\\u202f/, ' '))")
    becomes(page, "document.querySelector('.act polyline').getAttribute('points').split(' ').length > 2")
    assert card.locator(".outcome thead").inner_text().split() == ["action", "without", "with"]
    assert "by you, here" in card.inner_text()
    assert "s left" in card.inner_text()
    becomes(page, "document.querySelectorAll('.act').length == 1")  # its shadow gave way
    card.get_by_role("button", name="Release").click()
    becomes(page, "document.querySelector('#steered').hidden && !document.querySelector('.act')")
    until(lambda: [row.cause for row in play.interventions()] == ["released", "released"])
    becomes(page, "document.querySelectorAll('#reach-before li').length == 2")
    assert "held at 2" in page.locator("#reach-before").inner_text()


@needs_browser
def test_all_is_released_from_a_closed_drawer_and_those_who_may_not_see_it(play: Play, open_page: Callable[..., Any]) -> None:
    _, looking = play.page()
    page, other = open_page(play.url), open_page(looking)
    assert page.locator("#reach").is_hidden()
    page.keyboard.press("r")
    becomes(page, "!document.querySelector('#reach-fields').disabled")
    page.fill("#reach-feature", "31")
    page.locator("label[for=reach-op-scale]").click()
    assert page.locator("#reach-apply").is_disabled()
    page.select_option("#reach-ttl", "300")
    page.locator("#reach-unmeasured").check()
    applied(page)
    becomes(other, "document.querySelector('#steered b').textContent == 'STEERED'")  # in words, for who may not touch it
    assert other.locator("#release-all").is_hidden()
    other.locator("#reach-open").click()
    becomes(other, "document.querySelector('.reach-why code').textContent.includes('--control')")
    becomes(other, "document.querySelector('.act[data-kind=acts]')")
    assert other.locator("#reach-try").is_disabled()
    assert other.locator(".act button").is_hidden()
    page.locator("#reach-reason").focus()
    page.keyboard.press("Escape")
    becomes(page, "document.querySelector('#reach').hidden")
    page.keyboard.press("x")
    becomes(page, "document.querySelector('#reach-said').textContent.startsWith('Released 1: f31 × 2')")
    for each in (page, other):
        becomes(each, "document.querySelector('#steered').hidden")
    until(lambda: play.interventions()[-1].cause == "released_all")


@needs_browser
@pytest.mark.slow
def test_the_open_drawer_is_accessible(play: Play, open_page: Callable[..., Any], axe: str | None) -> None:
    if axe is None:
        pytest.skip("axe-core cannot be had")
    _, looking = play.page()
    for url, width in ((play.url, 1440), (play.url, 390), (looking, 1440)):
        page = open_page(f"{url}?reach=31,clamp,2", viewport={"width": width, "height": 844})
        if url == play.url:
            becomes(page, "!document.querySelector('#reach-fields').disabled")
            measured(page)
            applied(page)
        becomes(page, "document.querySelector('.act')")
        _accessible(page, axe)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        if url == play.url and width == 390:
            other = page
        elif url == play.url:
            page.keyboard.press("Alt+x")
            becomes(page, "document.querySelector('#steered').hidden")
    other.keyboard.press("Alt+x")
    becomes(other, "document.querySelector('#steered').hidden")


@needs_browser
@pytest.mark.slow
def test_who_steered_is_gone_so_the_agent_lets_go(tmp_path: Path, browser: Any) -> None:
    """A tab that is closed, one whose script hangs, a viewer that is killed: each time the lease alone ends it. It is 8 s here, for
    on a loaded machine the beats of a browser may be late."""
    with playing(tmp_path, 8.0) as play:
        url = f"{play.url}?reach=31,clamp,2"
        for n, leave in enumerate(("close", "hang", "kill"), 1):
            page = browser.new_page(viewport={"width": 390, "height": 844})
            page.goto(url)
            becomes(page, RUNNING)
            becomes(page, "!document.querySelector('#reach-fields').disabled")
            measured(page)
            applied(page)
            page.wait_for_timeout(9000)
            acting = [row for row in play.interventions() if not row.shadow]
            assert [row.cause for row in acting][-1] is None, "its beats held it for longer than its lease"
            assert page.locator("#release-all").is_visible()
            if leave == "close":
                page.close()
            elif leave == "hang":
                page.evaluate("setTimeout(() => { const end = Date.now() + 60000; while (Date.now() < end); }, 0)")
            else:
                play.viewer.send_signal(signal.SIGKILL)
            gone = time.time()
            until(lambda n=n: [row.cause for row in play.interventions() if not row.shadow] == ["author_gone"] * n)  # type: ignore[misc]
            ended = [row for row in play.interventions() if not row.shadow][-1].ended_wall_ns
            assert ended is not None
            print(f"{leave}: let go {ended / 1e9 - gone:.2f} s later")
            if leave == "kill":
                becomes(page, "document.body.dataset.state == 'STALE'")
                page.locator("#release-all").click()
                assert "server of this page is gone" in page.locator("#reach-said").inner_text()


@needs_browser
@pytest.mark.slow
def test_an_agent_that_is_killed_while_steered_is_said(tmp_path: Path, browser: Any) -> None:
    with playing(tmp_path, 30.0) as play:
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        page.goto(f"{play.url}?reach=31,scale,3")
        becomes(page, RUNNING)
        becomes(page, "!document.querySelector('#reach-fields').disabled")
        measured(page, reason="to be kept")
        page.select_option("#reach-ttl", "30")
        applied(page)
        play.agent.kill()
        becomes(page, "/did not answer|not there/.test(document.querySelector('.reach-why p').textContent)")
        assert page.locator("#reach-reason").input_value() == "to be kept", "nothing that was written is lost"
        assert page.locator("#reach-try").is_disabled()
        becomes(page, "document.body.dataset.state == 'STALE'")
        page.locator("#release-all").click()
        becomes(page, "document.querySelector('#reach-said').classList.contains('bad')")
        becomes(page, "document.querySelector('#steered').hidden")  # its time is over, and no end was heard


@needs_browser
@pytest.mark.slow
def test_the_past_shows_what_was_done(play: Play, open_page: Callable[..., Any]) -> None:
    page = open_page(f"{play.url}?reach=31,clamp,2")
    becomes(page, "!document.querySelector('#reach-fields').disabled")
    measured(page)
    applied(page)
    page.wait_for_timeout(2000)
    row = play.interventions()[-1]
    assert row.first_seq is not None
    page.keyboard.press("Escape")
    page.keyboard.press("Alt+x")
    becomes(page, "document.querySelector('#steered').hidden")
    page.keyboard.press("r")
    becomes(page, "document.querySelector('#reach-before button')")
    page.locator("#reach-before button").first.click()
    becomes(page, f"document.querySelector('#frame').value == {row.first_seq}")
    page.evaluate(f"window.itime.seek({row.first_seq + 60})")
    becomes(page, "document.querySelector('#steered b').textContent == 'STEERED HERE'")
    becomes(page, "!document.querySelector('#reach-at').hidden")
    assert page.locator("#reach-at tbody tr").count() == 2
    assert "reach=31" in page.evaluate("location.search")
