"""A small database of a language model's frames, made through the real store: texts of 60 words, three features of known meaning."""

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
from interlatent_live.stream.manifest import Manifest, MetricSpec

METRICS = (MetricSpec("position"), MetricSpec("logprob", "nat"), MetricSpec("next_entropy", "nat"), MetricSpec("word_start"))
WORDS: tuple[str, ...] = ("heat", "fuel", "fire", "flame", "oven", "steam", "river", "lake", "rain", "ocean", "pond", "creek")
WORDS += ("the", "a", "of", "and", ",", ".", *(f"word{i}" for i in range(42)))
HEAT, WATER = WORDS[:6], WORDS[6:12]
FEATURES = 4
"""0: words of heat. 1: words of water. 2: at random, at one token in twelve. 3: the token after "the"."""


class TextRun:
    """Writes texts of `long` words, each its own prompt; words of heat and of water are rare."""

    def __init__(self, path: Path, *, boot: str = "b0", seed: int = 0) -> None:
        self.store, self.boot, self.rng = Store(path, "t"), boot, np.random.default_rng(seed)
        self.manifest = Manifest(
            run="t", boot=boot, started_wall_ns=10**18, started_monotonic_ns=0, metrics=METRICS, weights="frozen", weights_hash="w0")
        self.seq = self.prompt = 0
        writes = Writes()
        writes.replace("manifests", hash=self.manifest.hash, run="t", boot=boot, body=json.dumps(dataclasses.asdict(self.manifest)))
        writes.replace("boots", run="t", boot=boot, manifest_hash=self.manifest.hash, started_wall_ns=10**18, ended=0)
        writes.replace(
            "dictionaries", hash="d0", name="toy", kind="topk", point="1:out", features=FEATURES, cfg="{}", path=None, card="{}")
        self.section = self.store.new_id("sections")
        writes.insert(
            "sections", id=self.section, run="t", boot=boot, point="1:out", dictionary_hash="d0", manifest_hash=self.manifest.hash,
            first_seq=0, next_seq=0, reason="start", mismatch=0,
        )  # fmt: skip
        for token, word in enumerate(WORDS):
            writes.insert_once("vocabulary", run="t", boot=boot, token=token, text=word, bytes=word.encode())
        self.store.commit(writes)

    def write(self, texts: int = 1, *, long: int = 60) -> None:
        share = np.where(np.arange(len(WORDS)) < 12, 0.4, 1.0)
        for _ in range(texts):
            words = self.rng.choice(len(WORDS), long, p=share / share.sum())
            self.text(words)

    def text(self, words: npt.NDArray[np.int64]) -> None:
        """One text of these words."""
        n = len(words)
        t = (self.seq + np.arange(n)) * 20_000_000
        metrics = np.stack([np.arange(n), -self.rng.exponential(2, n), self.rng.exponential(1, n), np.ones(n)], axis=1)
        dense = np.zeros((n, FEATURES), np.float32)
        dense[:, 0] = (words < 6) * self.rng.uniform(1, 4, n)
        dense[:, 1] = ((words >= 6) & (words < 12)) * self.rng.uniform(1, 4, n)
        dense[:, 2] = (self.rng.random(n) < 1 / 12) * 1.0
        dense[1:, 3] = (words[:-1] == WORDS.index("the")) * 2.0
        codes = Codes.from_dense(dense)
        columns: dict[str, npt.NDArray[Any]] = {
            "step": self.seq + np.arange(n), "env": np.zeros(n, np.int32), "episode": np.full(n, self.prompt, np.int32),
            "episode_step": np.arange(n, dtype=np.int32), "monotonic_ns": t, "wall_ns": 10**18 + t,
            "policy_version": np.zeros(n, np.int32), "forward_age": np.zeros(n, np.int32), "metrics": metrics,
            "terminated": np.zeros(n, np.bool_), "truncated": np.arange(n) == n - 1, "prompt": np.full(n, self.prompt, np.int32),
            "position": np.arange(n, dtype=np.int32), "token": words.astype(np.int32),
        }  # fmt: skip
        writes, id = Writes(), self.store.new_id("batches")
        writes.insert(
            "prompts", run="t", boot=self.boot, prompt=self.prompt, env=0, episode=self.prompt, wall_ns=10**18, given=n,
            text=" ".join(WORDS[w] for w in words), labels="{}",
        )  # fmt: skip
        writes.insert(
            "batches", id=id, run="t", boot=self.boot, first_seq=self.seq, rows=n, manifest_hash=self.manifest.hash, first_step=self.seq,
            last_step=self.seq + n - 1, first_monotonic_ns=int(t[0]), last_monotonic_ns=int(t[-1]), first_wall_ns=10**18 + int(t[0]),
            last_wall_ns=10**18 + int(t[-1]), columns=pack_columns(columns),
        )  # fmt: skip
        writes.insert(
            "codes", batch_id=id, section_id=self.section, active=codes.active, rows=None, encoded=n, non_finite=0, sse=0.1, sst=10.0,
            blob=codes.to_blob(),
        )  # fmt: skip
        writes.execute_many(
            "INSERT INTO tokens (run, boot, seq, prompt, position, token, special, generated, logprob) VALUES (?, ?, ?, ?, ?, ?, 0, 0, -2)",
            [("t", self.boot, self.seq + i, self.prompt, i, int(word)) for i, word in enumerate(words)])
        self.seq += n
        self.prompt += 1
        writes.execute("UPDATE sections SET next_seq = ? WHERE id = ?", self.seq, self.section)
        self.store.commit(writes)

    def close(self) -> None:
        self.store.close()
