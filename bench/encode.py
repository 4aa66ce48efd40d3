"""Encoding, decoding and judging a batch: microseconds a frame on one core, beside matmul and topk alone.

Run: python bench/encode.py [--json]. Ratios within one process hold; absolute times are this machine's today.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

import numpy as np
import torch

from interlatent_live.analyzer.codes import Codes
from interlatent_live.analyzer.dictionary import Dictionary, DictionaryConfig
from interlatent_live.analyzer.features import DictionaryFeatures, NeuronFeatures
from interlatent_live.stream.frames import BASE_COLUMNS, FrameBatch
from interlatent_live.stream.manifest import Manifest

D, FEATURES, K = 256, 2048, 32
REPEATS = 7


def fastest(work: Callable[[], object], rows: int) -> float:
    """Microseconds a frame: the best of REPEATS, each of at least 30 ms of processor time."""
    work()
    began = time.process_time()
    work()
    count = max(1, int(0.03 / max(time.process_time() - began, 1e-6)))
    best = float("inf")
    for _ in range(REPEATS):
        began = time.process_time()
        for _ in range(count):
            work()
        best = min(best, (time.process_time() - began) / (count * rows))
    return 1e6 * best


def dictionary() -> Dictionary:
    """256 -> 2048 -> 256, TopK 32, random."""
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "W_enc": torch.randn(D, FEATURES, generator=generator),
        "b_enc": torch.randn(FEATURES, generator=generator),
        "W_dec": torch.randn(FEATURES, D, generator=generator),
        "b_dec": torch.zeros(D),
        "mean_out": torch.zeros(D),
    }
    return Dictionary(DictionaryConfig("bench", "topk", D, D, FEATURES, "x", "y", k=K), tensors)


def batch(rows: int, seed: int) -> FrameBatch:
    """A batch with one tap point for the input and one for the output."""
    columns = {name: np.zeros(rows, dtype) for name, dtype in BASE_COLUMNS.items()}
    rng = np.random.default_rng(seed)
    activations = {point: rng.normal(size=(rows, D)).astype(np.float32) for point in ("x", "y")}
    return FrameBatch("bench", "b", "m", 0, 0, columns, activations)


@torch.inference_mode()
def measure(rows: int) -> dict[str, float]:
    """Microseconds a frame of each stage at a batch size."""
    coder, given = dictionary(), batch(rows, 0)
    x = torch.from_numpy(given.activations["x"])
    codes = coder.codes(x)
    dense = coder.encode_dense(x)
    manifest = Manifest("bench", "b", 0, 0)
    source, neurons = DictionaryFeatures(coder), NeuronFeatures("x", D)
    for seed in range(max(4, 2048 // rows)):
        neurons.encode(batch(rows, seed), manifest)
    several = [batch(rows, seed) for seed in range(16)]
    blob = codes.to_blob()
    return {
        "matmul + topk": fastest(lambda: torch.topk(torch.addmm(coder.b_enc, x, coder.W_enc), K, dim=1), rows),
        "encode to codes": fastest(lambda: coder.codes(x), rows),
        "decode sparsely": fastest(lambda: coder.decode_codes(codes), rows),
        "decode densely": fastest(lambda: coder.decode(dense), rows),
        "encode + decode + error": fastest(lambda: source.encode(given, manifest), rows),
        "codes to blob": fastest(codes.to_blob, rows),
        "codes from blob": fastest(lambda: Codes.from_blob(blob), rows),
        "256 neurons": fastest(lambda: [neurons.encode(each, manifest) for each in several], 16 * rows),
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON only")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results = {rows: measure(rows) for rows in (1, 32, 128)}
    if arguments.json:
        print(json.dumps(results))
        return
    print(f"{D} -> {FEATURES}, TopK {K}: microseconds a frame, one core")
    print(f"{'batch':26}" + "".join(f"{rows:>9}" for rows in results))
    for stage in results[1]:
        print(f"{stage:26}" + "".join(f"{by[stage]:9.2f}" for by in results.values()))
    ratio = {rows: by["encode to codes"] / by["matmul + topk"] for rows, by in results.items()}
    print(f"{'encode / (matmul + topk)':26}" + "".join(f"{value:9.2f}" for value in ratio.values()))


if __name__ == "__main__":
    main()
