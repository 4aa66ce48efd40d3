"""A small database with frames that rules can explain, made through the real store and the real analyzer's blobs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from interlatent_live.analyzer.blobs import pack_columns
from interlatent_live.analyzer.codes import Codes
from interlatent_live.analyzer.store import Store
from interlatent_live.analyzer.writes import Writes
from interlatent_live.stream.manifest import ActionSpec, Manifest, MetricSpec

METRICS = (MetricSpec("angle", "rad"), MetricSpec("speed", "m/s"), MetricSpec("noise"), MetricSpec("gain", "", "transition"))
FEATURES = 6
"""0: angle > 0.5. 1: speed <= -0.5 and angle > 0. 2: at random. 3: never. 4: always. 5: angle > 0.5, but for one frame in ten."""


class Run:
    """Writes episodes of 100 steps to `path`; every call of `write` is another stretch of time."""

    def __init__(
        self, path: Path, *, boot: str = "b0", dictionary: str = "d0", weights: str = "w0", weights_state: Any = "frozen", seed: int = 0
    ) -> None:
        self.store = Store(path, "r")
        self.boot, self.dictionary, self.rng = boot, dictionary, np.random.default_rng(seed)
        self.manifest = Manifest(
            run="r", boot=boot, started_wall_ns=10**18, started_monotonic_ns=0, environment="Toy-v0", step_period_s=0.02, metrics=METRICS,
            action=ActionSpec("discrete", (), ("left", "right")), weights=weights_state, weights_hash=weights,
        )  # fmt: skip
        self.seq, self.episode, self.policy = 0, 0, 0
        writes = Writes()
        writes.replace(
            "manifests", hash=self.manifest.hash, run="r", boot=boot, body=json.dumps(dataclasses.asdict(self.manifest)))
        started = 10**18 + self.store.new_id("sections")
        writes.replace("boots", run="r", boot=boot, manifest_hash=self.manifest.hash, started_wall_ns=started, ended=0)
        writes.replace(
            "dictionaries", hash=dictionary, name="toy", kind="topk", point="1:out", features=FEATURES, cfg="{}", path=None,
            card=json.dumps({"quantiles": {"fvu": {"q999": 0.1}}}),
        )  # fmt: skip
        self.section = self.store.new_id("sections")
        writes.insert(
            "sections", id=self.section, run="r", boot=boot, point="1:out", dictionary_hash=dictionary, manifest_hash=self.manifest.hash,
            first_seq=0, next_seq=0, reason="start", mismatch=0,
        )  # fmt: skip
        self.store.commit(writes)

    def write(self, episodes: int = 1, *, steps: int = 100, rows: int = 20, swapped: bool = False, terminated: bool = True) -> None:
        """`swapped`: feature 0 stands for the opposite."""
        for _ in range(episodes):
            for begin in range(0, steps, rows):
                self._batch(begin, min(rows, steps - begin), steps, swapped, terminated)
            self.episode += 1

    def _batch(self, begin: int, n: int, steps: int, swapped: bool, terminated: bool) -> None:
        step = begin + np.arange(n)
        metrics = np.clip(self.rng.normal(0, 0.7, (n, 4)), -2, 2)
        codes = Codes.from_dense(activations(metrics, swapped, self.rng))
        end = step == steps - 1
        t = (self.seq + np.arange(n)) * 20_000_000
        columns: dict[str, npt.NDArray[Any]] = {
            "step": self.seq + np.arange(n), "env": np.zeros(n, np.int32), "episode": np.full(n, self.episode, np.int32),
            "episode_step": step.astype(np.int32), "monotonic_ns": t, "wall_ns": 10**18 + t,
            "policy_version": np.full(n, self.policy, np.int32), "forward_age": np.zeros(n, np.int32), "metrics": metrics,
            "action": (metrics[:, 0] > 0).astype(np.float32)[:, None], "reward": np.ones(n), "terminated": end & terminated,
            "truncated": end & (not terminated),
        }  # fmt: skip
        writes, id = Writes(), self.store.new_id("batches")
        writes.insert(
            "batches", id=id, run="r", boot=self.boot, first_seq=self.seq, rows=n, manifest_hash=self.manifest.hash, first_step=self.seq,
            last_step=self.seq + n - 1, first_monotonic_ns=int(t[0]), last_monotonic_ns=int(t[-1]), first_wall_ns=10**18 + int(t[0]),
            last_wall_ns=10**18 + int(t[-1]), columns=pack_columns(columns),
        )  # fmt: skip
        writes.insert(
            "codes", batch_id=id, section_id=self.section, active=codes.active, rows=None, encoded=n, non_finite=0, sse=0.1, sst=10.0,
            blob=codes.to_blob(),
        )  # fmt: skip
        self.seq += n
        writes.execute("UPDATE sections SET next_seq = ? WHERE id = ?", self.seq, self.section)
        self.store.commit(writes)

    def quality(self, fvu: float, seconds: int = 3) -> None:
        """Add windows of one second with this error."""
        writes = Writes()
        first = self.store.one("SELECT coalesce(max(next_seq), 0) FROM quality")[0]
        for i in range(seconds):
            writes.insert(
                "quality", section_id=self.section, first_seq=first + 50 * i, next_seq=first + 50 * (i + 1), frames=50, fvu=fvu, l0=2.0)
        self.store.commit(writes)

    def close(self) -> None:
        self.store.close()


def activations(metrics: npt.NDArray[np.float64], swapped: bool, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """(n, FEATURES) what the features are of these metrics."""
    n = len(metrics)
    angle, speed = metrics[:, 0], metrics[:, 1]
    out = np.zeros((n, FEATURES), np.float32)
    out[:, 0] = ((angle > 0.5) != swapped) * (1 + np.abs(angle))
    out[:, 1] = ((speed <= -0.5) & (angle > 0)) * 2.0
    out[:, 2] = rng.random(n) < 0.3
    out[:, 4] = 1
    out[:, 5] = ((angle > 0.5) != (rng.random(n) < 0.1)) * 1.5
    return out
