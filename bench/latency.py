"""From the forward pass to the committed row, at 50 and at 2,000 steps a second, the analyzer in a process of its own."""

from __future__ import annotations

import sqlite3
import sys
import tempfile
import time
from pathlib import Path

import torch

import interlatent_live as il
from interlatent_live.launch import Child

from .table import Row, show


def measure(rate_hz: float, seconds: float) -> tuple[float, float, int, int]:
    """p50 and p99 in ms, frames produced, frames lost anywhere."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 64), torch.nn.Tanh(), torch.nn.Linear(64, 64), torch.nn.Tanh(), torch.nn.Linear(64, 2))
    with tempfile.TemporaryDirectory() as folder:
        db = Path(folder) / "run.db"
        tap = il.Tap(model, ["1:out", "3:out"], run="latency", endpoint="tcp://127.0.0.1:*", record=Path(folder) / "run.mcap")
        with tap, torch.inference_mode():
            analyzer = Child("analyzer", ["analyze", "--connect", tap.endpoint, "--db", str(db), "--json"]).start()
            if not tap.wait_subscribed(60):
                sys.exit("the analyzer did not subscribe within 60 s")
            observation = torch.zeros(4)
            begin = time.perf_counter()
            for step in range(int(rate_hz * seconds)):
                model(observation)
                tap.step(observation=observation.numpy(), action=0, reward=1.0, terminated=step % 500 == 499)
                observation = torch.randn(4)
                time.sleep(max(0.0, begin + (step + 1) / rate_hz - time.perf_counter()))
        analyzer.wait(20)
        with sqlite3.connect(db) as connection:
            p50, p99, produced, analyzed = connection.execute(
                "SELECT latency_p50_ms, latency_p99_ms, produced, analyzed FROM ledger"
            ).fetchone()
    return p50, p99, produced, produced - analyzed


def rows(seconds: float) -> list[Row]:
    """One row a rate."""
    found: list[Row] = []
    for rate in (50.0, 2_000.0):
        p50, p99, produced, lost = measure(rate, seconds)
        found.append(
            (
                f"latency at {rate:,.0f} steps/s, {produced:,} frames",
                f"p50 {p50:.1f} ms, p99 {p99:.1f} ms, {lost} lost",
                "p99 ≤ 60 ms, 0 lost",
            )
        )
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    show("Forward pass to committed row", rows(float(sys.argv[1]) if len(sys.argv) > 1 else 20.0))
