"""Opening a recording of 1 GB: time to first answers and memory, each in a fresh process.

`python -m bench.opening [MEGABYTES]`. The recording is made of synthetic frames in a temporary folder, and deleted.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from interlatent_live.stream.recording import Recorder

from .synthetic import Synthetic
from .table import Row, show

ASK = """
import json, resource, sys, time
import interlatent_live as il
begin, cpu = time.perf_counter(), time.process_time()
run = il.open(sys.argv[1])
frames = len(run)
opened = time.perf_counter() - begin
answer = eval(sys.argv[2])
took = time.perf_counter() - begin
cpu = time.process_time() - cpu
print(json.dumps({"opened_s": opened, "seconds": took, "cpu": cpu,
                  "mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, "frames": frames,
                  "torch": "torch" in sys.modules, "answer": str(answer)}))
"""
QUESTIONS = {
    "`il.open`, number of frames": ("run.manifest.run", "≤ 1 s, ≤ 300 MiB"),
    "activations of 100 frames in the middle": ("run.activations['0:out'][frames // 2 : frames // 2 + 100].shape", "≤ 1 s, ≤ 300 MiB"),
    "activations of an episode late in it": ("run.activations['0:out'].episode(frames // 500 - 2).shape", "≤ 1 s, ≤ 300 MiB"),
    "metrics of an episode, pandas": ("run.episode(frames // 1000).metrics.shape", "≤ 1 s, ≤ 300 MiB"),
    "`run.show` of a step": ("len(run.show(episode=frames // 700, step=80).html)", "≤ 1 s, ≤ 300 MiB"),
    "the last 10 s of frame time": (
        "sum(1 for _ in run._recorded.recording.messages(from_s=frames / 50 - 10))", "≤ 1 s, ≤ 300 MiB"
    ),
    "all metrics, pandas (every chunk is read)": ("run.metrics.shape", ""),
    "all activations, chunk by chunk": ("sum(len(x) for _, _, x in run.activations['0:out'].blocks())", "≤ 300 MiB"),
}  # fmt: skip


def make(path: Path, megabytes: float) -> None:
    """A recording of at least so many MB: 256 units, 16 metrics, batches of 32 frames, noise that does not compress."""
    stream = Synthetic()
    stream.batch(32)
    pool = np.random.default_rng(0).standard_normal((4096, 256), np.float32)
    recorder = Recorder(path)
    recorder.write(stream.manifest)
    seq = 0
    template = stream.batch(32)
    while True:
        # drawing 800,000 rows of noise would take longer than all that is measured
        rows = np.arange(seq, seq + 32)
        columns = dict(template.columns)
        clock = 10**12 + rows * 20_000_000
        columns |= {
            "step": rows, "episode": (rows // 500).astype("<i4"), "episode_step": (rows % 500).astype("<i4"),
            "monotonic_ns": clock, "wall_ns": clock, "metrics": pool[rows % 4096, :16].astype(np.float64) * (1 + seq % 97),
        }  # fmt: skip
        values = pool[rows % 4096] * np.float32(1 + (seq % 1013) / 1013)
        recorder.write(dataclasses.replace(template, first_seq=seq, columns=columns, activations={"0:out": values}))
        seq += 32
        if seq % 32_768 == 0:
            recorder.flush()
            if path.stat().st_size >= megabytes * 1e6:
                break
    recorder.close()


def measure(megabytes: float) -> list[Row]:
    """One row a question."""
    folder = Path(tempfile.mkdtemp())
    rows: list[Row] = []
    try:
        path = folder / "large.mcap"
        make(path, megabytes)
        for name, (question, wanted) in QUESTIONS.items():
            done = subprocess.run([sys.executable, "-c", ASK, str(path), question], capture_output=True, text=True, check=True)
            found = json.loads(done.stdout)
            assert not found["torch"]
            size = f"{path.stat().st_size / 1e9:.2f} GB, {found['frames']:,} frames: "
            rows.append((size + name, f"{found['seconds']:.2f} s ({found['cpu']:.2f} s of CPU), {found['mib']:.0f} MiB", wanted))
    finally:
        shutil.rmtree(folder)
    return rows


if __name__ == "__main__":
    show("Opening a recording", measure(float(sys.argv[1]) if len(sys.argv) > 1 else 1000.0))
