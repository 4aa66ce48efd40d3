"""The window equals numpy on the frames of its buckets, at every snapshot, and its memory does not grow."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interlatent_live.analyzer.codes import Codes
from interlatent_live.analyzer.correlation import Correlation
from interlatent_live.analyzer.rolling import Rolling, Span
from interlatent_live.stream.errors import MalformedMessage
from interlatent_live.stream.frames import BASE_COLUMNS, FrameBatch

Floats = npt.NDArray[np.float64]
Part = tuple[Codes, npt.NDArray[np.int32], FrameBatch]
FEATURES, METRICS = 6, 3
WINDOW_S, BUCKETS = 6.4, 64
BUCKET_NS = 100_000_000


class Stream:
    """Interleaved environments at a changing rate, with rows and metrics missing, kept whole for the oracle."""

    def __init__(self, seed: int, steps: int, envs: int, offset: float, patchy: bool) -> None:
        rng = np.random.default_rng(seed)
        n = steps * envs
        self.step = np.repeat(np.arange(steps), envs)
        self.env = np.tile(np.arange(envs), steps)
        self.episode = self.step // 70
        self.ns = np.repeat(np.cumsum(rng.integers(1, 60_000_000, steps)), envs) + 10**18
        shared = np.cumsum(rng.normal(size=(n, 1)), axis=0) / 5
        x = (shared + rng.normal(size=(n, FEATURES))) * (rng.random((n, FEATURES)) < np.linspace(0, 1, FEATURES))
        x[:, 4:] += offset
        self.x = x.astype(np.float32).astype(np.float64)
        self.y = shared + rng.normal(size=(n, METRICS)) + offset
        self.y[n // 2 :, 0] += offset
        self.y[:, 2] = 0.1
        self.fired = np.ones(n, np.bool_)
        if patchy:
            self.y[rng.random((n, METRICS)) < 0.2] = np.nan
            self.y[n // 3 : n // 2, 1] = np.nan
            self.fired = rng.random(n) < 0.8
            self.fired[n // 4 : n // 3] = False
        self.x[~self.fired] = np.nan
        self.rng = rng

    def batches(self) -> list[tuple[slice, Part]]:
        """Random cuts."""
        n, out, begin = len(self.step), [], 0
        while begin < n:
            part = slice(begin, min(n, begin + int(self.rng.integers(1, 40))))
            out.append((part, self.part(part)))
            begin = part.stop
        return out

    def part(self, part: slice) -> Part:
        columns = {name: np.zeros(part.stop - part.start, dtype) for name, dtype in BASE_COLUMNS.items()}
        for name in ("step", "env", "episode"):
            columns[name][:] = getattr(self, name)[part]
        columns["monotonic_ns"][:] = self.ns[part]
        columns["metrics"] = self.y[part]
        rows = np.flatnonzero(self.fired[part]).astype(np.int32)
        return Codes.from_dense(self.x[part][rows]), rows, FrameBatch("r", "b", "m", part.start, 0, columns)


def pearson(a: Floats, b: Floats) -> float:
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])


def assert_equal(found: Correlation, stream: Stream, first: int, stop: int) -> None:
    """Against frames [first, stop)."""
    chosen = np.flatnonzero(stream.fired[first:stop]) + first
    x, y = stream.x[chosen], stream.y[chosen]
    assert found.frames == stop - first
    assert found.features.tolist() == np.flatnonzero((x != 0).any(axis=0)).tolist()
    before = {
        (e, s, p): i
        for i, e, s, p in zip(
            np.flatnonzero(stream.fired).tolist(), stream.env[stream.fired].tolist(),
            stream.step[stream.fired].tolist(), stream.episode[stream.fired].tolist(), strict=True,
        )
    }  # fmt: skip
    pairs = [(before.get((stream.env[i], stream.step[i] - 1, stream.episode[i])), i) for i in chosen.tolist()]
    heads, tails = (np.array([p[side] for p in pairs if p[0] is not None], np.int64) for side in (0, 1))
    for j in range(METRICS):
        seen = ~np.isnan(y[:, j])
        both = ~np.isnan(stream.y[heads, j]) & ~np.isnan(stream.y[tails, j])
        h, t = heads[both], tails[both]
        rho_y = pearson(stream.y[h, j], stream.y[t, j])
        for row, i in enumerate(found.features.tolist()):
            r = pearson(x[seen, i], y[seen, j])
            np.testing.assert_allclose(found.r[row, j], r, rtol=0, atol=1e-9)
            assert found.n[row, j] == seen.sum()
            assert found.observed[row, j] == seen.sum() / (stop - first)
            rho = pearson(stream.x[h, i], stream.x[t, i]) * rho_y
            n_eff = min(seen.sum(), seen.sum() * (1 - rho) / (1 + rho)) if not np.isnan(r) else np.nan
            if not np.isnan(n_eff) and abs(n_eff - 4) < 1e-5:
                continue
            np.testing.assert_allclose(found.n_eff[row, j], n_eff if n_eff >= 4 else np.nan, rtol=1e-6)


@given(st.integers(0, 2**32), st.sampled_from([1, 3]), st.sampled_from([0.0, 1e6]), st.booleans())
@settings(max_examples=12, deadline=None)
def test_both_spans_equal_numpy(seed: int, envs: int, offset: float, patchy: bool) -> None:
    stream = Stream(seed, 600, envs, offset, patchy)
    rolling = Rolling(FEATURES, METRICS, window_s=WINDOW_S, buckets=BUCKETS)
    buckets: list[tuple[int, int]] = []  # (first row, last frame's time) of those closed
    opened = None
    for number, (part, (codes, rows, batch)) in enumerate(stream.batches()):
        rolling.push(codes, rows, batch)
        opened = part.start if opened is None else opened
        last = int(stream.ns[part.stop - 1])
        if last - int(stream.ns[opened]) >= BUCKET_NS:
            buckets.append((opened, last))
            opened = None
        while buckets and (buckets[0][1] <= last - WINDOW_S * 1e9 or len(buckets) > BUCKETS):
            del buckets[0]
        if number % 17 == 5 or part.stop == len(stream.step):
            first = buckets[0][0] if buckets else opened
            assert first is not None
            assert_equal(rolling.snapshot("rolling"), stream, first, part.stop)
            assert_equal(rolling.snapshot("start"), stream, 0, part.stop)


def bits(found: Correlation) -> list[bytes]:
    names = ("features", "r", "n", "n_eff", "low", "high", "p", "q", "observed")
    return [getattr(found, name).tobytes() for name in names]


def test_a_snapshot_changes_nothing() -> None:
    batches = [part for _, part in Stream(3, 500, 2, 1e6, True).batches()]
    often, seldom = Rolling(FEATURES, METRICS, window_s=WINDOW_S), Rolling(FEATURES, METRICS, window_s=WINDOW_S)
    spans: Sequence[Span] = ("rolling", "start")
    for part in batches:
        often.push(*part)
        seldom.push(*part)
        for span in spans:
            often.snapshot(span)
    for span in spans:
        assert bits(often.snapshot(span)) == bits(seldom.snapshot(span))


def test_many_rows_in_one_bucket_are_the_window_too() -> None:
    """Beyond 4096 waiting rows the bucket is reduced in parts; it closes by time alone."""
    stream = Stream(4, 12_000, 1, 1e6, False)
    stream.ns = 10**18 + np.arange(12_000) * 5_000
    rolling = Rolling(FEATURES, METRICS)
    for begin in range(0, 12_000, 500):
        rolling.push(*stream.part(slice(begin, begin + 500)))
    found = rolling.snapshot("rolling")
    assert_equal(found, stream, 0, 12_000)


def test_a_pause_longer_than_the_window_empties_it() -> None:
    stream = Stream(5, 400, 1, 0.0, False)
    stream.ns[200:] += 100 * 10**9
    rolling = Rolling(FEATURES, METRICS)
    for begin in range(0, 400, 50):
        rolling.push(*stream.part(slice(begin, begin + 50)))
    assert_equal(rolling.snapshot("rolling"), stream, 200, 400)
    assert_equal(rolling.snapshot("start"), stream, 0, 400)


def test_without_metrics_or_frames() -> None:
    rolling = Rolling(FEATURES, METRICS)
    assert rolling.snapshot("rolling").r.shape == (0, METRICS)
    codes, rows, batch = Stream(6, 50, 1, 0.0, False).part(slice(0, 50))
    columns: dict[str, Any] = {name: column for name, column in batch.columns.items() if name != "metrics"}
    rolling.push(codes, rows, FrameBatch("r", "b", "m", 0, 0, columns))
    found = rolling.snapshot("start")
    assert len(found.r)
    assert np.isnan(found.r).all()
    assert not found.n.any()
    assert not found.observed.any()
    silent = Rolling(FEATURES, METRICS)
    silent.push(Codes.empty(0, FEATURES), np.zeros(0, np.int32), batch)
    assert silent.snapshot("rolling").frames == 50
    assert silent.snapshot("rolling").r.shape == (0, METRICS)


def test_metrics_that_contradict_the_manifest_are_refused() -> None:
    codes, rows, batch = Stream(6, 50, 1, 0.0, False).part(slice(0, 50))
    with pytest.raises(MalformedMessage, match=r"shape \(50, 3\).*names 2 metrics"):
        Rolling(FEATURES, 2).push(codes, rows, batch)


def test_memory_is_flat() -> None:
    stream = Stream(7, 3_000, 1, 0.0, True)
    rolling = Rolling(FEATURES, METRICS, window_s=WINDOW_S)
    assert stream.ns[-1] - stream.ns[0] > 10 * WINDOW_S * 1e9
    sizes = []
    tracemalloc.start()
    try:
        for begin in range(0, 3_000, 20):
            rolling.push(*stream.part(slice(begin, begin + 20)))
            if begin % 100 == 0:
                sizes.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    third = len(sizes) // 3  # the first is filling up; medians, for what a reduction holds for a moment is not growth
    assert np.median(sizes[2 * third :]) < 1.1 * np.median(sizes[third : 2 * third])


def test_wide_dictionaries_get_fewer_buckets() -> None:
    assert Rolling(2048, 16).buckets == 64
    assert Rolling(1 << 16, 16).buckets == 9
    assert Rolling(1 << 20, 16).buckets == 8
