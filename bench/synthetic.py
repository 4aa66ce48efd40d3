"""Frames without an agent: AR(1) activations, metrics that follow some of them, episodes of a set length."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from interlatent_live.stream.frames import FrameBatch
from interlatent_live.stream.manifest import Manifest, MetricSpec, TapPointSpec

__all__ = ["Synthetic"]


class Synthetic:
    """A stream whose batches are the same for the same arguments."""

    def __init__(
        self,
        *,
        run: str = "synthetic",
        boot: str = "b0",
        width: int = 256,
        metrics: int = 16,
        num_envs: int = 1,
        rate_hz: float = 50.0,
        episode_steps: int = 500,
        phi: float = 0.95,
        seed: int = 0,
        start_ns: int = 1_000_000_000_000,
        host_boot: str = "",
    ) -> None:
        self.manifest = Manifest(
            run=run,
            boot=boot,
            started_wall_ns=start_ns,
            started_monotonic_ns=start_ns,
            host_boot=host_boot,
            num_envs=num_envs,
            environment="Synthetic-v0",
            tap_points=(TapPointSpec("0:out", "float32", (width,), "Linear"),),
            metrics=tuple(MetricSpec(f"metric_{i}", "m") for i in range(metrics)),
            weights_hash=hashlib.sha256(f"synthetic {width}".encode()).hexdigest(),
        )
        self.seq = 0
        self.queue_dropped = 0
        self._width, self._metrics, self._envs = width, metrics, num_envs
        self._period_ns, self._episode_steps, self._phi = round(1e9 / rate_hz), episode_steps, phi
        self._rng = np.random.default_rng(seed)
        self._state = self._rng.standard_normal((num_envs, width)).astype(np.float32)
        self._start_ns = start_ns

    def batch(self, rows: int, *, now_ns: tuple[int, int] | None = None) -> FrameBatch:
        """The next frames; `now_ns`, (monotonic, wall) clocks of the last row, instead of the nominal ones."""
        seq = np.arange(self.seq, self.seq + rows)
        step, env = np.divmod(seq, self._envs)
        episode, episode_step = np.divmod(step, self._episode_steps)
        x = np.empty((rows, self._width), np.float32)
        noise = self._rng.standard_normal((rows, self._width), np.float32) * np.sqrt(1 - self._phi**2)
        for row, where in enumerate(env):
            self._state[where] = x[row] = self._phi * self._state[where] + noise[row]
        metrics = x[:, : self._metrics].astype(np.float64) + self._rng.standard_normal((rows, self._metrics))
        clock = self._start_ns + step * self._period_ns
        mono, wall = (clock, clock) if now_ns is None else (clock - clock[-1] + now for now in now_ns)
        columns: dict[str, np.ndarray[Any, Any]] = {
            "step": step,
            "env": env.astype(np.int32),
            "episode": episode.astype(np.int32),
            "episode_step": episode_step.astype(np.int32),
            "monotonic_ns": mono,
            "wall_ns": wall,
            "policy_version": np.zeros(rows, np.int32),
            "forward_age": np.zeros(rows, np.int32),
            "observation": x[:, :4],
            "metrics": metrics,
            "action": (x[:, :1] > 0).astype(np.float32),
            "reward": np.ones(rows),
            "terminated": episode_step == self._episode_steps - 1,
            "truncated": np.zeros(rows, np.bool_),
        }
        first, self.seq = self.seq, self.seq + rows
        manifest = self.manifest
        return FrameBatch(
            manifest.run, manifest.boot, manifest.hash, first, self.queue_dropped, columns, {"0:out": x}
        )

    def skip(self, frames: int, *, queue_dropped: bool = False) -> None:
        """Lose frames: on the wire, or in the agent's queue."""
        self.seq += frames
        self.queue_dropped += frames if queue_dropped else 0

    def batches(self, count: int, rows: int) -> Iterator[FrameBatch]:
        """`count` batches of `rows` frames."""
        for _ in range(count):
            yield self.batch(rows)
