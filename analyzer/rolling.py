"""The window around the correlations: the last minute of frame time, and all since the start.

Batches are kept as they came until their bucket closes (or 4096 rows are waiting), and are then reduced together, since
a reduction costs the same for one row as for a hundred. Closed buckets, at most 64, stand in two stacks, so that the
oldest can leave without a subtraction (the two-stack queue of "Low-Latency Sliding-Window Aggregation in Worst-Case
Constant Time", Tangwongsan, Hirzel and Schneider 2017, section 2): `back` collects new buckets and their running total,
`front` holds totals from each of its buckets to its newest. When `front` is empty, `back` is turned over into it.

Everything is decided at batch boundaries by the agent's clock, and a snapshot changes nothing, so the same batches give
the same numbers. Memory: at most 65 co-moments, whatever the rate; wide dictionaries get fewer, longer buckets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from interlatent_live.analyzer.codes import Codes
from interlatent_live.analyzer.correlation import CoMoments, Correlation, correlate, lag_pairs, merge_all
from interlatent_live.stream.errors import MalformedMessage
from interlatent_live.stream.frames import FrameBatch

__all__ = ["WINDOW_S", "Rolling", "Span"]

Span = Literal["rolling", "start"]

WINDOW_S = 60.0
"""Length of the rolling window, in seconds of frame time."""
MOST_BUCKETS = 64
LEAST_BUCKETS = 8
MOST_BYTES = 128 << 20
"""What the buckets may take, while all metrics are missing on the same rows."""
MOST_ROWS = 4096
"""Rows that may wait before they are reduced into the open bucket."""
MOST_ACTIVE = 1 << 19
"""Active features that may wait before they are reduced into the open bucket."""


@dataclass(frozen=True, slots=True, eq=False)
class _Rows:
    """Rows that wait: features as CSR, metrics, and what tells which rows are consecutive."""

    frames: int
    counts: npt.NDArray[Any]
    indices: npt.NDArray[Any]
    values: npt.NDArray[np.float32]
    metrics: npt.NDArray[np.float64]
    env: npt.NDArray[Any]
    episode: npt.NDArray[Any]
    step: npt.NDArray[Any]


class Rolling:
    """Correlations of `features` features with `metrics` metrics over one section of a stream."""

    def __init__(self, features: int, metrics: int, *, window_s: float = WINDOW_S, buckets: int = MOST_BUCKETS) -> None:
        """`window_s`: seconds of frame time; `buckets`: how many it is cut into, fewer where memory asks for it."""
        affordable = MOST_BYTES // (8 * (10 + metrics) * max(features, 1))
        self.buckets = max(min(buckets, affordable), min(buckets, LEAST_BUCKETS))
        self._features, self._metrics = features, metrics
        self._window_ns = round(window_s * 1e9)
        self._bucket_ns = self._window_ns // self.buckets
        self._waiting: list[_Rows] = []
        self._waiting_rows = self._waiting_active = 0
        self._context: _Rows | None = None  # the last frame of each environment before the rows that wait
        self._partial: CoMoments | None = None  # what the open bucket has reduced already
        self._first_ns: int | None = None  # of the open bucket
        self._last_ns = 0
        self._back: list[tuple[int, CoMoments]] = []
        self._back_total: CoMoments | None = None
        self._front: list[tuple[int, CoMoments]] = []  # the oldest last; (its last frame's time, total to the newest)
        self._before: CoMoments | None = None  # everything that was ever in `back` and left it
        self._open: CoMoments | None = None  # the open bucket as a snapshot saw it

    def push(self, codes: Codes, rows: npt.NDArray[np.int32], batch: FrameBatch) -> None:
        """Add a batch; `codes` has one row for each of `rows`, the batch's rows that have finite activations."""
        columns = batch.columns
        time = columns["monotonic_ns"]
        first, last = int(time[0]), int(time[-1])
        if self._first_ns is None:
            self._first_ns = first
        self._last_ns = max(self._last_ns, last)
        metrics = columns.get("metrics")
        if metrics is None:
            metrics = np.full((batch.rows, self._metrics), np.nan)
        elif metrics.shape[1:] != (self._metrics,):
            raise MalformedMessage(
                f"column 'metrics' has shape {metrics.shape}, but its manifest names {self._metrics} metrics; "
                "a new manifest begins a new section"
            )
        chosen: Any = slice(None) if len(rows) == batch.rows else rows
        self._waiting.append(_Rows(
            batch.rows, codes.indptr, codes.indices, codes.values, metrics[chosen], columns["env"][chosen],
            columns["episode"][chosen], columns["step"][chosen],
        ))  # fmt: skip
        self._waiting_rows += batch.rows
        self._waiting_active += len(codes.values)
        self._open = None
        if self._last_ns - self._first_ns >= self._bucket_ns:
            self._close_bucket()
        elif self._waiting_rows >= MOST_ROWS or self._waiting_active >= MOST_ACTIVE:
            self._settle()
        self._expire()

    def snapshot(self, span: Span) -> Correlation:
        """Correlations now: over the window ('rolling'), or since the first batch ('start')."""
        if self._open is None:
            self._open = merge_all((self._partial, self._reduce()[0]))
        earlier = self._before if span == "start" else (self._front[-1][1] if self._front else None)
        total = merge_all((earlier, self._back_total, self._open))
        if total is None:
            empty = np.zeros((0, self._metrics))
            return Correlation(np.zeros(0, np.int64), 0, empty, empty, empty, empty, empty, empty, empty, empty)
        return correlate(total)

    def _settle(self) -> None:
        """Reduce what waits into the open bucket."""
        reduced, self._context = self._reduce()
        self._partial = merge_all((self._partial, reduced))
        self._waiting.clear()
        self._waiting_rows = self._waiting_active = 0

    def _close_bucket(self) -> None:
        self._settle()
        if self._partial is not None:
            self._back.append((self._last_ns, self._partial))
            self._back_total = merge_all((self._back_total, self._partial))
        self._partial = self._first_ns = None

    def _expire(self) -> None:
        """Let buckets go of which every frame is older than the window, and any beyond their number."""
        horizon = self._last_ns - self._window_ns
        while self._front or self._back:
            oldest = self._front[-1][0] if self._front else self._back[0][0]
            if oldest > horizon and len(self._front) + len(self._back) <= self.buckets:
                return
            if not self._front:
                self._turn_over()
            self._front.pop()

    def _turn_over(self) -> None:
        self._before = merge_all((self._before, self._back_total))
        self._back_total = total = None
        while self._back:
            last_ns, bucket = self._back.pop()
            total = bucket if total is None else merge_all((bucket, total))
            assert total is not None
            self._front.append((last_ns, total))

    def _reduce(self) -> tuple[CoMoments | None, _Rows | None]:
        """Co-moments of what waits, and the frames that may have a successor in what follows."""
        if not self._waiting:
            return None, self._context
        parts = self._waiting if self._context is None else [self._context, *self._waiting]
        frames = sum(part.frames for part in self._waiting)
        context = 0 if self._context is None else len(self._context.env)
        counts = np.concatenate([np.diff(part.counts) for part in parts])
        indptr = np.zeros(len(counts) + 1, np.int32)
        np.cumsum(counts, out=indptr[1:])
        indices = np.concatenate([part.indices for part in parts]).astype(np.int32)
        values = np.concatenate([part.values for part in parts])
        x = csr_array((values, indices, indptr), shape=(len(counts), self._features))
        y = np.concatenate([part.metrics for part in parts])
        env, episode, step = (
            np.concatenate([getattr(part, name) for part in parts]) for name in ("env", "episode", "step")
        )
        reduced = CoMoments.from_block(x, y, lag_pairs(env, episode, step), context=context, frames=frames)
        last = _last_of_each(env, step)
        rest = x[last]
        return reduced, _Rows(0, rest.indptr, rest.indices, rest.data, y[last], env[last], episode[last], step[last])


def _last_of_each(env: npt.NDArray[Any], step: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """The last row of each environment that may still be followed by a consecutive one."""
    if len(env) == 0:
        return np.zeros(0, np.int64)
    recent = np.flatnonzero(step >= step.max() - 1)[::-1]  # a step's rows may be cut over two batches
    _, first = np.unique(env[recent], return_index=True)
    return np.sort(recent[first])
