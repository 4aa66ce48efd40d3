"""A database that fills with plausible data through the real store, for looking at the page without an agent.

`python tests/store_builder.py r.db --seconds 60` writes one in real time.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import math
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from interlatent_live.analyzer.blobs import pack_columns, pack_matrix
from interlatent_live.analyzer.codes import Codes
from interlatent_live.analyzer.store import Store
from interlatent_live.analyzer.writes import Writes
from interlatent_live.explainer.notebook import Notebook
from interlatent_live.stream.manifest import ActionSpec, Manifest, MetricSpec, TapPointSpec

CARTPOLE = (
    MetricSpec("cart_position", "m"),
    MetricSpec("cart_velocity", "m/s"),
    MetricSpec("pole_angle", "rad"),
    MetricSpec("pole_velocity", "rad/s"),
    MetricSpec("reward", "", "transition"),
)


class StoreBuilder:
    """One run, one boot, one section; `frames` appends, `accounts` updates ledger and snapshots."""

    def __init__(
        self,
        path: Path,
        *,
        run: str = "cartpole-demo",
        boot: str = "b0",
        neurons: bool = False,
        metrics: tuple[MetricSpec, ...] = CARTPOLE,
        features: int = 64,
        envs: int = 1,
        environment: str = "CartPole-v1",
        pictures: bool = True,
        period_s: float = 0.02,
        seed: int = 0,
        start_wall_ns: int | None = None,
        weights: Literal["frozen", "changing"] = "frozen",
    ) -> None:
        self.store = Store(path, run)
        self.run, self.boot, self.envs, self.period_s, self.pictures = run, boot, envs, period_s, pictures
        self.metrics, self.features, self.neurons = metrics, features, neurons
        self.rng = np.random.default_rng(seed)
        self.start_ns = 1_000_000_000_000
        known = self.store.one("SELECT started_wall_ns FROM boots WHERE boot = ?", boot)
        self.start_wall_ns = known[0] if known else time.time_ns() if start_wall_ns is None else start_wall_ns
        self.manifest = Manifest(
            run=run, boot=boot, started_wall_ns=self.start_wall_ns, started_monotonic_ns=self.start_ns,
            agent="cartpole", environment=environment, num_envs=envs, step_period_s=period_s,
            tap_points=(TapPointSpec("3:out", "float32", (features,), "ReLU"),), metrics=metrics,
            observation_shape=(len(metrics),), action=ActionSpec("discrete", (), ("push left", "push right")),
            weights=weights, weights_hash="c0ffee",
        )  # fmt: skip
        self.weights = self.rng.normal(size=(len(metrics) + 2, features)) * (self.rng.random(features) < 0.6)
        self.thresholds = self.rng.uniform(0.5, 1.6, features)
        self.seq = self.step = self.episode = self.episode_step = 0
        self.version = self.bad = 0
        """Policy version of the next frames; activations refused in each batch."""
        self.reason = "resume" if known else "start"
        self.skip_ns = 0
        self.lost = 0
        self.batch_rows: list[tuple[npt.NDArray[Any], npt.NDArray[Any]]] = []
        self.frames_seen = 0
        self.active = np.zeros(features, np.uint32)
        self.maximum = np.zeros(features, np.float32)
        self.total = np.zeros(features)
        if known:  # the agent went on while nobody listened
            before = self.store.one("SELECT coalesce(max(first_seq + rows), 0) FROM batches WHERE boot = ?", boot)[0]
            self.step = max(before // envs, int((time.time_ns() - self.start_wall_ns) / 1e9 / period_s))
            self.seq = self.step * envs
            self.episode, self.episode_step = divmod(self.step, 500)
            self.lost = self.seq - before
        self._begin()

    def _begin(self) -> None:
        writes = Writes()
        body = json.dumps(dataclasses.asdict(self.manifest))
        writes.insert_once("manifests", hash=self.manifest.hash, run=self.run, boot=self.boot, body=body)
        writes.insert_once(
            "boots", run=self.run, boot=self.boot, manifest_hash=self.manifest.hash,
            started_wall_ns=self.start_wall_ns, ended=0,
        )  # fmt: skip
        self.hash = "neurons:3:out" if self.neurons else "9f3ac1d27be04c55"
        writes.insert_once(
            "dictionaries", hash=self.hash, name="neurons of 3:out" if self.neurons else "cartpole",
            kind="neurons" if self.neurons else "topk", point="3:out", features=self.features,
            cfg=json.dumps({"d_in": 64, "k": 8}), path=None,
            card=None if self.neurons else json.dumps({"fvu": 0.043, "l0": 8.0, "dead_share": 0.1}),
        )  # fmt: skip
        self.section = self.store.new_id("sections")
        writes.insert(
            "sections", id=self.section, run=self.run, boot=self.boot, point="3:out", dictionary_hash=self.hash,
            manifest_hash=self.manifest.hash, first_seq=self.seq, next_seq=self.seq, reason=self.reason, mismatch=0,
        )  # fmt: skip
        self.store.commit(writes)

    def _state(self, t: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """(n, metrics + 2) smooth signals of frame time `t` in seconds."""
        waves = [np.sin(t * (0.7 + 0.45 * i) + i) for i in range(self.weights.shape[0])]
        clean: npt.NDArray[np.float64] = np.stack(waves, axis=1)
        return clean + 0.15 * self.rng.normal(size=clean.shape)

    def frames(self, steps: int, *, rows: int = 10, missing: bool = False) -> None:
        """Append `steps` steps of every environment, in batches of about `rows` frames. `missing`: without codes."""
        for begin in range(0, steps, rows):
            self._batch(min(rows, steps - begin), missing)

    def _batch(self, steps: int, missing: bool) -> None:
        n = steps * self.envs
        step = np.repeat(np.arange(self.step, self.step + steps), self.envs)
        env = np.tile(np.arange(self.envs), steps)
        t_ns = (step * self.period_s * 1e9).astype(np.int64) + self.skip_ns
        state = self._state(t_ns / 1e9 + env * 0.37)
        episode = np.empty(n, np.int32)
        episode_step = np.empty(n, np.int32)
        writes = Writes()
        for i in range(steps):
            rows = slice(i * self.envs, (i + 1) * self.envs)
            episode[rows], episode_step[rows] = self.episode, self.episode_step
            self.episode_step += 1
            if self.episode_step == 500:
                for e in range(self.envs):
                    writes.replace(
                        "episodes", run=self.run, boot=self.boot, env=e, episode=self.episode,
                        first_seq=max(0, self.seq + i * self.envs - 499 * self.envs), last_seq=self.seq + i * self.envs, steps=500,
                        **{"return": float(500 - 37 * (self.episode % 4))},
                        complete=1, terminated=0, truncated=1,
                    )  # fmt: skip
                self.episode, self.episode_step = self.episode + 1, 0
        scale = np.array([[0.8, 0.5, 0.06, 0.4, *[1.0] * 40][: len(self.metrics)]])
        metrics = state[:, : len(self.metrics)] * scale
        if self.metrics and self.metrics[-1].scope == "transition":
            metrics[:, -1] = 1.0
        columns: dict[str, npt.NDArray[Any]] = {
            "step": step.astype("<i8"), "env": env.astype("<i4"), "episode": episode, "episode_step": episode_step,
            "monotonic_ns": self.start_ns + t_ns, "wall_ns": self.start_wall_ns + t_ns,
            "policy_version": np.full(n, self.version, "<i4"), "forward_age": np.zeros(n, "<i4"), "metrics": metrics,
            "action": (state[:, 0] > 0).astype(np.float32)[:, None], "reward": np.ones(n),
        }  # fmt: skip
        batch = self.store.new_id("batches")
        writes.insert(
            "batches", id=batch, run=self.run, boot=self.boot, first_seq=self.seq, rows=n,
            manifest_hash=self.manifest.hash, first_step=int(step[0]), last_step=int(step[-1]),
            first_monotonic_ns=int(columns["monotonic_ns"][0]), last_monotonic_ns=int(columns["monotonic_ns"][-1]),
            first_wall_ns=int(columns["wall_ns"][0]), last_wall_ns=int(columns["wall_ns"][-1]),
            columns=pack_columns(columns),
        )  # fmt: skip
        if not missing:
            dense = np.maximum(state @ self.weights - self.thresholds, 0).astype(np.float32)
            if self.neurons:
                z = (state @ self.weights / 2).astype(np.float32)
                dense = np.where(np.abs(z) > 1.5, z, 0)
            codes = Codes.from_dense(dense)
            writes.insert(
                "codes", batch_id=batch, section_id=self.section, active=codes.active, encoded=n, non_finite=self.bad,
                sse=None if self.neurons else 0.041 * n, sst=None if self.neurons else float(n), blob=codes.to_blob(),
            )  # fmt: skip
            self.active += np.count_nonzero(dense, axis=0).astype(np.uint32)
            self.maximum = np.maximum(self.maximum, np.abs(dense).max(axis=0))
            self.total += dense.sum(axis=0)
            self.frames_seen += n
            self.batch_rows.append((dense, metrics))
            self.batch_rows = self.batch_rows[-400:]
        if self.pictures:
            writes.insert(
                "pictures", run=self.run, boot=self.boot, env=0, seq=self.seq, wall_ns=int(columns["wall_ns"][0]),
                width=300, height=200, data=picture(state[0]),
            )  # fmt: skip
        self.seq += n
        self.step += steps
        self.store.commit(writes)

    def log(self, series: dict[str, list[float]]) -> None:
        """Scalars of a training loop, a step apart."""
        writes = Writes()
        for i, (name, values) in enumerate(series.items()):
            for k, value in enumerate(values):
                writes.insert(
                    "scalars", run=self.run, boot=self.boot, name=name, seq=100 * i + k, step=k, monotonic_ns=self.start_ns + k,
                    wall_ns=self.start_wall_ns + k, policy_version=self.version, value=value,
                )  # fmt: skip
        self.store.commit(writes)

    def narrate(self, text: str, features: list[dict[str, Any]]) -> None:
        """A sentence of the explainer about the newest frame."""
        with Notebook(self.store.path) as notebook:
            writes = Writes()
            writes.insert(
                "narration", id=notebook.new_id("narration"), run=self.run, boot=self.boot, env=0, kind="surprise", seq=self.seq - 1,
                first_seq=self.seq - 10, next_seq=self.seq, time_s=self.step * self.period_s, wall_ns=time.time_ns(),
                episode=self.episode, episode_step=self.episode_step, text=text, action="", features=json.dumps(features),
            )  # fmt: skip
            notebook.commit(writes)

    def lose(self, frames: int) -> None:
        """Frames that the wire lost."""
        writes = Writes()
        writes.insert(
            "gaps", run=self.run, boot=self.boot, first_seq=self.seq, next_seq=self.seq + frames, reason="wire_lost",
            lost=frames,
        )  # fmt: skip
        self.seq += frames
        self.step += frames
        self.lost += frames
        self.episode_step += frames
        self.store.commit(writes)

    def accounts(self, *, ended: bool = False, updated_wall_ns: int | None = None) -> None:
        """The ledger, as a heartbeat leaves it."""
        writes = Writes()
        status = {
            "steps_per_s": 1 / self.period_s, "overhead_us_median": 8.7, "overhead_us_p99": 24.1, "hook_failures": 0.0,
            "picture_us_median": 1180.0, "pictures_dropped": 0.0, "autoreset_rows": 0.0,
        }  # fmt: skip
        writes.replace(
            "ledger", run=self.run, boot=self.boot, next_seq=self.seq, queue_dropped_seen=0, produced=self.seq,
            queue_dropped=0, recorded=self.seq, record_failed=0, subscriber_queue_dropped=0, not_subscribed=0,
            wire_lost=self.lost, received=self.seq - self.lost, analyzed=self.seq - self.lost, refused="{}",
            status=json.dumps(status), latency_p50_ms=11.4, latency_p99_ms=21.9,
            updated_wall_ns=time.time_ns() if updated_wall_ns is None else updated_wall_ns,
        )  # fmt: skip
        if ended:
            writes.execute("UPDATE boots SET ended = 1 WHERE boot = ?", self.boot)
        self.store.commit(writes)

    def snapshot(self) -> None:
        """Activity, quality and a correlation snapshot over the frames kept."""
        if not self.batch_rows:
            return
        x = np.concatenate([a for a, _ in self.batch_rows]).astype(np.float64)
        y = np.concatenate([b for _, b in self.batch_rows])
        live = np.flatnonzero(x.any(axis=0))
        with np.errstate(divide="ignore", invalid="ignore"):
            zx = (x[:, live] - x[:, live].mean(0)) / x[:, live].std(0)
            zy = (y - y.mean(0)) / y.std(0)
            r = np.nan_to_num(zx.T @ zy / len(x), nan=np.nan)
        r[:, y.std(0) == 0] = np.nan
        n = np.full_like(r, len(x))
        n_eff = np.full_like(r, max(5.0, len(x) / 12))
        half = 1.96 / np.sqrt(np.maximum(n_eff - 3, 1))
        clipped = np.clip(r, -0.999, 0.999)
        low, high = np.tanh(np.arctanh(clipped) - half), np.tanh(np.arctanh(clipped) + half)
        q = np.array([[math.erfc(abs(z) / 1.4142) for z in row] for row in np.arctanh(clipped) * np.sqrt(np.maximum(n_eff - 3, 1))])
        writes = Writes()
        writes.replace(
            "activity", section_id=self.section, next_seq=self.seq, frames=self.frames_seen,
            active=pack_matrix(self.active, "<u4"), maximum=pack_matrix(self.maximum), total=pack_matrix(self.total, "<f8"),
        )  # fmt: skip
        names = [m.name for m in self.metrics]
        matrices = {k: pack_matrix(v) for k, v in (("r", r), ("n", n), ("n_eff", n_eff), ("low", low), ("high", high), ("q", q))}
        for span in ("rolling", "start"):
            id_ = self.store.new_id("correlation_snapshots")
            writes.replace(
                "correlation_snapshots", id=id_, section_id=self.section, span=span, next_seq=self.seq, frames=len(x),
                metrics=json.dumps(names), features=pack_matrix(live, "<u4"), **matrices,
            )  # fmt: skip
            for j, name in enumerate(names):
                for i in np.argsort(-np.nan_to_num(np.abs(r[:, j])))[:8]:
                    if np.isfinite(r[i, j]):
                        writes.insert(
                            "correlations", snapshot_id=id_, feature=int(live[i]), metric=name, r=float(r[i, j]), n=len(x),
                            n_eff=float(n_eff[i, j]), low=float(low[i, j]), high=float(high[i, j]), q=float(q[i, j]),
                            significant=int(q[i, j] < 0.05), observed=1.0,
                        )  # fmt: skip
        if not self.neurons:
            second = max(1, round(1 / self.period_s)) * self.envs
            for first in range(max(0, self.seq - 5 * second), self.seq, second):
                writes.insert_once(
                    "quality", section_id=self.section, first_seq=first, next_seq=first + second, frames=second,
                    fvu=0.041 + 0.006 * math.sin(first / 700) + 0.002 * float(self.rng.normal()), l0=8.0,
                )  # fmt: skip
        self.store.commit(writes)

    def close(self) -> None:
        self.store.close()


def picture(state: npt.NDArray[np.float64]) -> bytes:
    """A cart with its pole, as JPEG."""
    image = Image.new("RGB", (300, 200), "white")
    draw = ImageDraw.Draw(image)
    x, angle = 150 + 70 * float(state[0]), 0.25 * float(state[-1])
    draw.line((0, 150, 300, 150), fill="black")
    draw.rectangle((x - 22, 138, x + 22, 160), fill="black")
    draw.line((x, 140, x + 80 * math.sin(angle), 140 - 80 * math.cos(angle)), fill=(202, 152, 101), width=8)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=80)
    return out.getvalue()


def live(builder: StoreBuilder, seconds: float, *, snapshot_s: float = 5.0) -> None:
    """Write in real time for `seconds`."""
    begin = time.monotonic()
    next_snapshot, next_accounts = snapshot_s, 0.0
    offset = builder.step
    while (now := time.monotonic() - begin) < seconds:
        due = offset + int(now / builder.period_s) - builder.step
        if due > 0:
            builder.frames(due, rows=64)
        if now >= next_accounts:
            builder.accounts()
            next_accounts += 1.0
        if now >= next_snapshot:
            builder.snapshot()
            next_snapshot += snapshot_s
        time.sleep(0.02)
    builder.accounts()


def humanoid_metrics() -> tuple[MetricSpec, ...]:
    """44 named terms, as the humanoid has."""
    names = ["height", "sin_to_target", "cos_to_target", "vx", "vy", "vz", "roll", "pitch"]
    joints = [f"{j}_{k}" for j in ("abdomen_z", "abdomen_y", "right_hip_x", "right_hip_y", "right_knee", "left_hip_x",
              "left_hip_y", "left_knee", "right_shoulder1", "right_shoulder2", "right_elbow", "left_shoulder1",
              "left_shoulder2", "left_elbow", "right_hip_z", "left_hip_z", "abdomen_x") for k in ("angle", "speed")]  # fmt: skip
    names += [*joints, "right_foot_contact", "left_foot_contact"]
    return tuple(MetricSpec(n, "rad/s" if n.endswith("speed") else "rad" if n.endswith("angle") else "") for n in names)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("db", type=Path)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--before", type=float, default=0, help="seconds of history written at once")
    parser.add_argument("--boot", default="b0")
    parser.add_argument("--neurons", action="store_true")
    parser.add_argument("--humanoid", action="store_true")
    parser.add_argument("--end", action="store_true")
    parser.add_argument("--period", type=float, default=0.02)
    args = parser.parse_args()
    more: dict[str, Any] = {}
    if args.humanoid:
        more = {"metrics": humanoid_metrics(), "features": 512, "environment": "HumanoidBulletEnv-v0", "run": "humanoid"}
    builder = StoreBuilder(
        args.db, boot=args.boot, neurons=args.neurons, period_s=args.period, start_wall_ns=time.time_ns() - int(args.before * 1e9), **more
    )
    while builder.step * args.period < args.before:
        builder.frames(round(5 / args.period), rows=10)
        builder.snapshot()
    live(builder, args.seconds)
    builder.accounts(ended=args.end)
    builder.close()


if __name__ == "__main__":
    main()
