"""Memory of every process of a demo over time: flat means that the last third is no higher than the second.

`python -m bench.memory [MINUTES]`; 3 by default, 30 for the figure in docs/benchmarks.md.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from .table import Row, show


def _resident_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return float("nan")


def _children(pid: int) -> list[int]:
    return [int(c) for task in Path(f"/proc/{pid}/task").glob("*/children") for c in task.read_text().split()]


def _role(pid: int) -> str:
    words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    return next((w.decode() for w in words if w in (b"run", b"analyze", b"view")), "other")


def measure(minutes: float, agent: str = "cartpole") -> list[Row]:
    """One row a process: MiB at the median of each third."""
    samples: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "interlatent_live",
            "demo",
            "--agent",
            agent,
            "--no-open",
            "--port",
            "0",
            "--seconds",
            str(minutes * 60),
        ]
        files = ["--record", f"{folder}/r.mcap", "--db", f"{folder}/r.db"]
        demo = subprocess.Popen([*command, *files], stdout=subprocess.DEVNULL)
        time.sleep(20)
        while demo.poll() is None:
            for pid in _children(demo.pid):
                try:
                    samples[_role(pid)].append(_resident_mib(pid))
                except FileNotFoundError:
                    continue
            time.sleep(2)
    rows: list[Row] = []
    for role, values in sorted(samples.items()):
        third = max(1, len(values) // 3)
        parts = [statistics.median(values[i * third : (i + 1) * third]) for i in range(3)]
        rows.append((f"memory of `{role}` over {minutes:g} min, by third", " → ".join(f"{p:.0f}" for p in parts) + " MiB", "flat"))
    return rows


if __name__ == "__main__":
    show("Memory", measure(float(sys.argv[1]) if len(sys.argv) > 1 else 3.0))
