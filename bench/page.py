"""The page in a browser: first paint, age of what is drawn, frames a second, the server's share of a core, scrubbing an hour.

`python -m bench page`, or `python -m bench.page [SECONDS]` for the live part. Needs playwright and Debian's chromium.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from interlatent_live.analyzer.blobs import pack_columns
from interlatent_live.analyzer.codes import Codes
from interlatent_live.analyzer.store import Store
from interlatent_live.analyzer.writes import Writes
from interlatent_live.stream.manifest import Manifest

from .synthetic import Synthetic
from .table import Row, show

CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
ARGS = ("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update")
SEEKS, HOUR_S, RATE = 100, 3600, 50
FEATURES, ACTIVE = 64, 8


def percentile(values: list[float], q: float) -> float:
    """As a plain float."""
    return float(np.percentile(values, q))


def hour(path: Path) -> None:
    """An hour at 50 Hz as a robot sends it: one frame a batch, 64 features, 8 active, 16 metrics."""
    stream = Synthetic()
    manifest: Manifest = stream.manifest
    random, template = np.random.default_rng(0), stream.batch(1).columns
    store = Store(path, manifest.run)
    writes = Writes()
    writes.insert_once("manifests", hash=manifest.hash, run=manifest.run, boot=manifest.boot, body=json.dumps(manifest.to_dict()))
    writes.insert_once("boots", run=manifest.run, boot=manifest.boot, manifest_hash=manifest.hash, started_wall_ns=10**18, ended=1)
    writes.insert_once(
        "dictionaries", hash="d" * 16, name="bench", kind="topk", point="0:out", features=FEATURES, cfg="{}", path=None, card=None
    )
    section = store.new_id("sections")
    writes.insert(
        "sections", id=section, run=manifest.run, boot=manifest.boot, point="0:out", dictionary_hash="d" * 16,
        manifest_hash=manifest.hash, first_seq=0, next_seq=HOUR_S * RATE, reason="start", mismatch=0,
    )  # fmt: skip
    start = manifest.started_monotonic_ns
    for seq in range(HOUR_S * RATE):
        clock = start + seq * 10**9 // RATE
        columns = dict(template) | {
            "step": np.array([seq]), "episode": np.array([seq // 500], "<i4"), "episode_step": np.array([seq % 500], "<i4"),
            "monotonic_ns": np.array([clock]), "wall_ns": np.array([clock]), "metrics": random.standard_normal((1, 16)),
        }  # fmt: skip
        batch = store.new_id("batches")
        writes.insert(
            "batches", id=batch, run=manifest.run, boot=manifest.boot, first_seq=seq, rows=1, manifest_hash=manifest.hash,
            first_step=seq, last_step=seq, first_monotonic_ns=clock, last_monotonic_ns=clock, first_wall_ns=clock, last_wall_ns=clock,
            columns=pack_columns(columns),
        )  # fmt: skip
        dense = np.zeros((1, FEATURES), np.float32)
        dense[0, (np.arange(ACTIVE) * 7 + seq // 40) % FEATURES] = 1 + seq % 40
        codes = Codes.from_dense(dense)
        writes.insert(
            "codes", batch_id=batch, section_id=section, active=codes.active, encoded=1, non_finite=0, sse=0.04, sst=1.0,
            blob=codes.to_blob(),
        )  # fmt: skip
        if seq % 2000 == 1999:
            store.commit(writes)
            writes = Writes()
    store.commit(writes)
    store.close()


@contextmanager
def served(db: Path) -> Iterator[tuple[int, str]]:
    """A page server: process id and address."""
    command = [sys.executable, "-m", "interlatent_live", "view", "--db", str(db), "--port", "0", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process.pid, json.loads(process.stdout.readline())["url"]
    finally:
        process.terminate()
        process.communicate(timeout=30)


def cpu_s(pid: int) -> float:
    """CPU seconds that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def page_of(browser: Any, url: str) -> Any:
    """A page that shows frames."""
    page = browser.new_page(viewport={"width": 1440, "height": 900})
    page.goto(url)
    page.wait_for_function("window.idraw && window.idraw.stats.first !== null", timeout=60_000)
    return page


def live(browser: Any, folder: Path, seconds: float) -> list[Row]:
    """A real agent at 50 steps/s with its analyzer, explainer and page."""
    command = [
        sys.executable, "-m", "interlatent_live", "demo", "--agent", "cartpole", "--seconds", str(seconds + 40), "--no-open", "--port", "0",
        "--db", str(folder / "live.db"), "--record", str(folder / "live.mcap"),
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    url = next(line.split()[-1] for line in process.stderr if "is live at" in line)
    try:
        page = page_of(browser, url)
        page.wait_for_function("document.body.dataset.state == 'LIVE'", timeout=60_000)
        first = []
        for _ in range(5):
            page.close()
            page = page_of(browser, url)
            first.append(page.evaluate("window.idraw.stats.first"))
        for i in range(6):
            page.evaluate(f"window.itime.send({{op: 'pin', what: '{i}~' + ['cart_position', 'pole_angle'][{i % 2}]}})")
        page.wait_for_function("document.querySelectorAll('.titles h3').length == 6", timeout=30_000)
        pid = next(p for p in children(process.pid) if b"view" in Path(f"/proc/{p}/cmdline").read_bytes().split(b"\0"))
        page.evaluate("window.idraw.ages.length = 0")
        before, began = cpu_s(pid), time.monotonic()
        looks, paints = page.evaluate("[window.idraw.stats.looks, window.idraw.stats.paints]")
        raf = "() => new Promise(done => { let n = 0; const t = performance.now(); const f = () => { n++; const d = performance.now() - t; d > 5000 ? done(n / d * 1000) : requestAnimationFrame(f); }; f(); })"  # noqa: E501
        fps = page.evaluate(raf)
        time.sleep(max(0.0, seconds - 5))
        passed = time.monotonic() - began
        ages = page.evaluate("window.idraw.ages")
        used = (cpu_s(pid) - before) / passed
        looks_, paints_, cost = page.evaluate("[window.idraw.stats.looks, window.idraw.stats.paints, window.idraw.stats.paint_ms]")
        page.close()
    finally:
        process.terminate()
        process.communicate(timeout=60)
    return [
        ("first meaningful paint, of five", f"median {percentile(first, 50):.0f} ms, most {max(first):.0f} ms", "≤ 1,500 ms"),
        (
            "age of the newest frame drawn, 50 steps/s, measured in the page",
            f"p50 {percentile(ages, 50):.0f} ms, p99 {percentile(ages, 99):.0f} ms",
            "p99 ≤ 250 ms",
        ),
        ("frames a second that the browser gives while live", f"{fps:.0f}; {(looks_ - looks) / passed:.0f} looks, "
         f"{(paints_ - paints) / passed:.0f} repaints a second, {cost / max(1, paints_):.1f} ms each", "≥ 30"),
        ("server, 24 features in rows and 12 series at 20 Hz, with pictures", f"{100 * used:.1f} % of a core", "≤ 10 %"),
    ]  # fmt: skip


def children(pid: int) -> list[int]:
    """Process ids."""
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def scrub(browser: Any, folder: Path) -> list[Row]:
    """Random frames of an hour, each far from the last."""
    hour(folder / "hour.db")
    with served(folder / "hour.db") as (_, url):
        page = page_of(browser, url)
        page.wait_for_function("window.itime.data() && document.body.dataset.state == 'ENDED'", timeout=60_000)
        random = np.random.default_rng(1)
        lags: list[float] = []
        for seq in random.integers(0, HOUR_S * RATE, SEEKS).tolist():
            count = page.evaluate("window.itime.count()")
            page.evaluate(f"window.itime.seek({seq})")
            page.wait_for_function(f"window.itime.count() > {count}", timeout=30_000)
            lags.append(page.evaluate("window.itime.lags.at(-1)"))
            page.wait_for_timeout(30)
        page.close()
    size = (folder / "hour.db").stat().st_size / 1e6
    name = f"scrub to a random frame of an hour at 50 Hz, one frame a batch ({size:.0f} MB), asked to painted"
    return [(name, f"p50 {percentile(lags, 50):.0f} ms, p95 {percentile(lags, 95):.0f} ms", "p95 ≤ 150 ms")]


def measure(seconds: float) -> list[Row]:
    """All of it."""
    from playwright.sync_api import sync_playwright

    folder = Path(tempfile.mkdtemp())
    try:
        with sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=CHROMIUM, args=list(ARGS))
            rows = [*scrub(browser, folder), *live(browser, folder, seconds)]
            browser.close()
        return rows
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    show("The page", measure(float(sys.argv[1]) if len(sys.argv) > 1 else 60.0))
