"""The analyzer on one core, all of it on: a random 256 → 2048 TopK dictionary (k 32), 16 metrics, from a recording.

Activations are AR(1) at 0.95, ten milliseconds of frames in a batch (32 rows: a 3.2 kHz stream), one row at 50 Hz.
CPU seconds are what one core would take; on a machine that does other things as well, wall seconds are more.
"""

# ruff: noqa: E402 - the number of threads is read when numpy is imported
from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"

import torch

from interlatent_live.analyzer.dictionary import Dictionary, DictionaryConfig
from interlatent_live.analyzer.service import analyze_recording
from interlatent_live.analyzer.store import Store
from interlatent_live.stream.recording import Recorder
from interlatent_live.stream.wire import Bye

from .synthetic import Synthetic
from .table import Row, show

WIDTH, FEATURES, K, METRICS = 256, 2048, 32, 16


def dictionary(model_hash: str) -> Dictionary:
    """Random weights, unit decoder rows: what it finds means nothing, what it costs does."""
    torch.manual_seed(0)
    decoder = torch.nn.functional.normalize(torch.randn(FEATURES, WIDTH), dim=1)
    cfg = DictionaryConfig(
        name="random", activation="topk", d_in=WIDTH, d_out=WIDTH, features=FEATURES, k=K, input="0:out",
        output="0:out", model_hash=model_hash,
    )  # fmt: skip
    encoder, nothing = decoder.T.contiguous(), torch.zeros(WIDTH)
    biases = {"b_enc": torch.zeros(FEATURES), "b_dec": nothing, "mean_out": nothing}
    return Dictionary(cfg, {"W_enc": encoder, "W_dec": decoder, **biases})


def measure(rows: int, batches: int, rate_hz: float) -> tuple[float, float, float, float]:
    """Frames a CPU second, frames a wall second, bytes of codes an active feature, bytes of database a frame."""
    stream = Synthetic(width=WIDTH, metrics=METRICS, rate_hz=rate_hz)
    with tempfile.TemporaryDirectory() as folder:
        recording, db = Path(folder) / "run.mcap", Path(folder) / "run.db"
        recorder = Recorder(recording)
        recorder.write(stream.manifest)
        for batch in stream.batches(batches, rows):
            recorder.write(batch)
        recorder.write(Bye("synthetic", "b0", 1, 1, stream.seq, 0, stream.seq, 0))
        recorder.close()
        found = dictionary(stream.manifest.weights_hash)
        cpu, wall = time.process_time(), time.perf_counter()
        done = analyze_recording(recording, db, dictionaries=[found])
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        if done["analyzed"] != stream.seq:
            sys.exit(f"{stream.seq} frames were recorded, {done['analyzed']} analysed")
        with Store(db, readonly=True) as store:
            bytes_, active = store.one("SELECT sum(length(blob)), sum(active) FROM codes")
        return stream.seq / cpu, stream.seq / wall, bytes_ / active, db.stat().st_size / stream.seq


def rows(share: float = 1.0) -> list[Row]:
    """One row a batch size."""
    measure(32, 50, 3_200.0)  # torch, numpy and scipy warm up
    found: list[Row] = []
    for size, batches, rate in ((128, 1_000, 12_800.0), (32, 3_000, 3_200.0), (1, 5_000, 50.0)):
        cpu, wall, active, frame = measure(size, max(20, int(batches * share)), rate)
        speed = f"{cpu:,.0f} frames a CPU second ({wall:,.0f} a wall second)"
        targets = ("≥ 15,000 on one core", "≤ 8") if size >= 16 else ("", "")
        found.append((f"batches of {size} at {rate:,.0f} Hz", speed, targets[0]))
        found.append((f"codes, batches of {size}", f"{active:.2f} bytes an active feature", targets[1]))
        found.append((f"database, batches of {size}", f"{frame:,.0f} bytes a frame", ""))
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    show("Analyzer, 256 → 2048 TopK, 16 metrics, all of it on", rows(float(sys.argv[1]) if len(sys.argv) > 1 else 1.0))
