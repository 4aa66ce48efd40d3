"""Memory of every process of a demo over time: flat means that the last third is no higher than the second.

`python -m bench.memory [MINUTES]`; 3 by default, 30 for the figure in docs/benchmarks.md. `--watched`: with a browser that looks at
the page and uses it; its processes and its JavaScript heap are measured, too. `--agent NAME`: another agent than CartPole.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np

from .page import ARGS, CHROMIUM
from .table import Row, show

EVERY_S = 10.0
_BEGIN_S = 30.0
"""Before the first sample: everything has been imported, and the page has been drawn."""
USE = ("3", "ArrowLeft", "4", "Space", "1", "g", "2", "PageUp", "5", "g", "1", "g")
"""Keys that a watcher presses, one a sample: tabs, pause, episodes, live."""


def _resident_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return float("nan")


def _children(pid: int) -> list[int]:
    return [int(c) for task in Path(f"/proc/{pid}/task").glob("*/children") for c in task.read_text().split()]


def _role(pid: int) -> str:
    words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    return next((w.decode() for w in words if w in (b"run", b"analyze", b"view", b"explain")), "other")


def _browser_mib(root: int) -> dict[str, float]:
    """Private and shared memory of the browser's processes, by kind; a page that several map is shared among them."""
    found: dict[str, float] = defaultdict(float)
    waiting = [root]
    while waiting:
        pid = waiting.pop()
        try:
            waiting += _children(pid)
            words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").split()
            kind = next((w.decode().partition("=")[2] for w in words if w.startswith(b"--type=")), "browser")
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except OSError:
            continue
        if words and b"chrom" in words[0]:
            found["chromium's renderer" if kind == "renderer" else "chromium's other processes"] += next(
                int(line.split()[1]) / 1024 for line in rollup.splitlines() if line.startswith("Pss:")
            )
    return found


@contextmanager
def watching(url: str) -> Iterator[Callable[[], dict[str, float]]]:
    """A browser at the page; each call uses the page a little and measures it: MiB by what holds them, and counts."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=[*ARGS, "--enable-precise-memory-info"])
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        said: list[str] = []
        page.on("console", lambda m: said.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(url)
        page.wait_for_function("document.body.dataset.state == 'LIVE'", timeout=90_000)
        session = page.context.new_cdp_session(page)
        session.send("Performance.enable")
        keys = itertools.cycle(USE)

        def look() -> dict[str, float]:
            page.keyboard.press(next(keys))
            session.send("HeapProfiler.collectGarbage")
            now = {m["name"]: m["value"] for m in session.send("Performance.getMetrics")["metrics"]}
            counts = {"DOM nodes": now["Nodes"], "event listeners": now["JSEventListeners"], "said in the console": len(said)}
            return {"JavaScript heap": now["JSHeapUsedSize"] / 2**20, **counts}

        yield look
        page.close()
        browser.close()


def measure(minutes: float, agent: str = "cartpole", *, watched: bool = False, keep: Path | None = None) -> list[Row]:
    """One row a process: at first, at last (medians of a tenth), by third, and what a line through the last two thirds rises by.
    `keep`: a file for all samples, one JSON object a line."""
    samples: dict[str, list[tuple[float, float]]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        seconds = ["--seconds", str(minutes * 60 + _BEGIN_S + 30)]
        command = [sys.executable, "-m", "interlatent_live", "demo", "--agent", agent, "--no-open", "--port", "0", *seconds]
        files = ["--record", f"{folder}/r.mcap", "--db", f"{folder}/r.db"]
        log = Path(folder, "said")
        with log.open("w") as said:
            demo = subprocess.Popen([*command, *files], stdout=subprocess.DEVNULL, stderr=said)
        url = None
        while url is None and demo.poll() is None:
            url = re.search(r"http://127\.0\.0\.1:\d+/", log.read_text())
            time.sleep(0.1)
        assert url is not None, log.read_text()
        try:
            with watching(url.group()) if watched else nullcontext(dict[str, float]) as look:
                time.sleep(_BEGIN_S)
                began = time.monotonic()
                while demo.poll() is None and (now := time.monotonic() - began) < 60 * minutes:
                    found = look() | (_browser_mib(_parent_of_browser()) if watched else {})
                    for pid in _children(demo.pid):
                        try:
                            found[f"`{_role(pid)}`"] = _resident_mib(pid)
                        except FileNotFoundError:
                            continue
                    for name, value in found.items():
                        samples[name].append((now, value))
                    if keep is not None:
                        with keep.open("a") as file:
                            file.write(json.dumps({"s": round(now, 1)} | {k: round(v, 2) for k, v in found.items()}) + "\n")
                    time.sleep(max(0.0, EVERY_S - (time.monotonic() - began - now)))
        finally:
            demo.terminate()
            demo.wait(timeout=60)
    return [_row(name, np.array(found), minutes) for name, found in sorted(samples.items())]


def _parent_of_browser() -> int:
    """Playwright's driver is a child of this process, and the browser is its child."""
    return int(Path("/proc/self").readlink().name)


def _row(name: str, found: np.ndarray[tuple[int, int], np.dtype[np.float64]], minutes: float) -> Row:
    """`found`: (samples, 2): seconds, and MiB or a count."""
    at, values = found[:, 0], found[:, 1]
    tenth, third = max(1, len(values) // 10), max(1, len(values) // 3)
    first, last = statistics.median(values[:tenth]), statistics.median(values[-tenth:])
    parts = " → ".join(f"{statistics.median(values[i * third : (i + 1) * third]):.0f}" for i in range(3))
    rise = float(np.polyfit(at[third:] / 3600, values[third:], 1)[0]) if len(values) > 5 else float("nan")
    unit = "" if name[0] in "De" or "console" in name else " MiB"
    text = f"{first:.1f} at first, {last:.1f}{unit} at last; by third {parts}; last two thirds rise by {rise:+.1f}{unit} an hour"
    return f"memory of {name} over {minutes:g} min", text, "flat"


if __name__ == "__main__":
    asked = argparse.ArgumentParser()
    asked.add_argument("minutes", type=float, nargs="?", default=3.0)
    asked.add_argument("--watched", action="store_true")
    asked.add_argument("--agent", default="cartpole")
    asked.add_argument("--keep", type=Path)
    args = asked.parse_args()
    show("Memory", measure(args.minutes, args.agent, watched=args.watched, keep=args.keep))
