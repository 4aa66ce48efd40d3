"""What correlations, events and peaks cost a frame, on one thread: 2048 features, TopK 32, 16 metrics.

    python bench/statistics.py [--frames N] [--features F] [--active K]

Frames come at 100 a second and row of the batch (batch 32: 3,200 frames/s), as the agent's 10 ms timer cuts them; batch
1 is also shown at 50 a second, where buckets hold 47 frames. Features persist (mean span 5 frames) and are unevenly
frequent. A snapshot of both spans is taken every 5 s of frame time and shown apart; it is not part of the sum.
"""

# ruff: noqa: E402 - the number of threads is read when numpy is imported
from __future__ import annotations

import argparse
import os
import resource
import time
from collections import defaultdict

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"

import numpy as np

from interlatent_live.analyzer.codes import Codes
from interlatent_live.analyzer.events import EventTracker
from interlatent_live.analyzer.peaks import PeakKeeper
from interlatent_live.analyzer.rolling import Rolling
from interlatent_live.stream.frames import BASE_COLUMNS, FrameBatch

METRICS = 16
LIMIT_US = 20.0


def make(frames: int, batch: int, rate: float, features: int, active: int) -> list[tuple[Codes, FrameBatch]]:
    """Batches of one environment, episodes of 1000 steps."""
    rng = np.random.default_rng(0)
    weight = rng.pareto(1.5, features) + 0.1
    weight /= weight.sum()
    pool = iter(rng.choice(features, frames * active, p=weight).tolist())
    current = set(rng.choice(features, active, replace=False, p=weight).tolist())
    rows = []
    for gone in rng.random((frames, active)) < 0.2:  # a fifth of the active set changes with every frame
        current = {f for f, g in zip(sorted(current), gone.tolist(), strict=True) if not g}
        while len(current) < active:
            current.add(next(pool, None) or int(rng.integers(features)))
        rows.append(sorted(current))
    index = np.array(rows, np.uint16 if features <= 1 << 16 else np.uint32)
    values = rng.gamma(2.0, 1.0, index.shape).astype(np.float32)
    metrics = np.cumsum(rng.normal(size=(frames, METRICS)), axis=0) + values[:, :METRICS]
    numbers = np.arange(frames)
    columns = {name: np.zeros(frames, dtype) for name, dtype in BASE_COLUMNS.items()}
    columns["step"] = numbers
    columns["episode"] = (numbers // 1000).astype(np.int32)
    columns["monotonic_ns"] = (numbers / rate * 1e9).astype(np.int64)
    columns |= {"metrics": metrics, "terminated": numbers % 1000 == 999}
    batches = []
    for begin in range(0, frames - batch + 1, batch):
        part = slice(begin, begin + batch)
        indptr = np.arange(0, (batch + 1) * active, active, dtype=np.int32)
        codes = Codes(indptr, index[part].reshape(-1), values[part].reshape(-1), features)
        batches.append((codes, FrameBatch("r", "b", "m", begin, 0, {k: v[part] for k, v in columns.items()})))
    return batches


def measure(batches: list[tuple[Codes, FrameBatch]], features: int) -> dict[str, float]:
    """Microseconds a frame of each part."""
    rolling, tracker, keeper = Rolling(features, METRICS), EventTracker(features), PeakKeeper(features)
    spent: dict[str, float] = defaultdict(float)
    snapshots, due = 0, 5_000_000_000
    clock = time.thread_time  # the processor's time: other work on the machine is not ours
    for codes, batch in batches:
        rows = np.arange(batch.rows, dtype=np.int32)
        begin = clock()
        rolling.push(codes, rows, batch)
        pushed = clock()
        tracker.update(codes, rows, batch)
        tracked = clock()
        keeper.update(tracker.closed)
        kept = clock()
        spent["correlation"] += pushed - begin
        spent["events"] += tracked - pushed
        spent["peaks"] += kept - tracked
        if int(batch.columns["monotonic_ns"][-1]) >= due:
            due += 5_000_000_000
            begin = clock()
            rolling.snapshot("rolling")
            rolling.snapshot("start")
            spent["snapshots"] += clock() - begin
            snapshots += 1
    frames = sum(batch.rows for _, batch in batches)
    out = {name: value / frames * 1e6 for name, value in spent.items()}
    out["sum"] = out["correlation"] + out["events"] + out["peaks"]
    out["ms a snapshot"] = spent["snapshots"] / snapshots * 1e3 if snapshots else float("nan")
    return out


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=128_000)
    parser.add_argument("--features", type=int, default=2048)
    parser.add_argument("--active", type=int, default=32)
    args = parser.parse_args()
    print(f"{args.features} features, {args.active} active, {METRICS} metrics, one thread; us of processor time a frame")
    print("batch  frames/s  correlation  events  peaks    sum  snapshots  ms a snapshot")
    for batch, rate, share in ((1, 50, 8), (1, 100, 8), (8, 800, 4), (32, 3200, 1), (128, 12_800, 1)):
        found = measure(make(args.frames // share, batch, rate, args.features, args.active), args.features)
        print(
            f"{batch:5}  {rate:8}  {found['correlation']:11.2f}  {found['events']:6.2f}  {found['peaks']:5.2f}  "
            f"{found['sum']:5.2f}  {found.get('snapshots', 0.0):9.2f}  {found['ms a snapshot']:13.2f}"
            + ("" if batch < 32 else f"   {'within' if found['sum'] <= LIMIT_US else 'OVER'} {LIMIT_US:.0f}")
        )
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB (the input included)")


if __name__ == "__main__":
    main()
