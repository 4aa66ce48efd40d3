"""Merged co-moments equal numpy on all frames at once, with offsets, shifts, spikes, constants and missing values."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.sparse import csr_array

from interlatent_live.analyzer.correlation import (
    CoMoments,
    Correlation,
    benjamini_hochberg,
    correlate,
    lag_pairs,
    merge_all,
)

Floats = npt.NDArray[np.float64]
FEATURES, METRICS = 9, 5
TOLERANCE = 1e-9


def pearson(a: Floats, b: Floats) -> float:
    """numpy's, or NaN where it is undefined."""
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])


def oracle(x: Floats, y: Floats, pairs: tuple[Any, Any], own: npt.NDArray[Any]) -> dict[str, Floats]:
    """One feature and one metric at a time. `own`: rows that count; others serve as heads of pairs only."""
    heads, tails = pairs
    out = {name: np.full((x.shape[1], y.shape[1]), np.nan) for name in ("r", "n", "n_eff", "low", "high", "p")}
    for j in range(y.shape[1]):
        seen = np.isfinite(y[:, j])
        rows, both = np.flatnonzero(seen & own), seen[heads] & seen[tails]
        h, t = heads[both], tails[both]
        rho_y, n = pearson(y[h, j], y[t, j]), len(rows)
        for i in range(x.shape[1]):
            r = pearson(x[rows, i], y[rows, j])
            rho = pearson(x[h, i], x[t, i]) * rho_y
            n_eff = np.nan if np.isnan(r + rho) else n if rho <= 0 else n * (1 - rho) / (1 + rho)
            n_eff = n_eff if n_eff >= 4 else np.nan
            z, error = np.arctanh(np.clip(r, -1 + 1e-16, 1 - 1e-16)), 1 / np.sqrt(n_eff - 3)
            low, high = np.tanh(z + stats.norm.ppf(0.025) * error), np.tanh(z + stats.norm.ppf(0.975) * error)
            for name, value in zip(out, (r, n, n_eff, low, high, 2 * stats.norm.sf(abs(z) / error)), strict=True):
                out[name][i, j] = value
    return out


def full(found: Correlation, name: str, features: int) -> Floats:
    """(features, m) of a result that leaves features out."""
    values: Floats = getattr(found, name)
    out = np.full((features, values.shape[1]), np.nan)
    out[found.features] = values
    return out


def assert_equal(found: Correlation, expected: dict[str, Floats]) -> None:
    features = len(expected["r"])
    r, n_eff = full(found, "r", features), full(found, "n_eff", features)
    np.testing.assert_array_equal(np.isnan(r), np.isnan(expected["r"]))
    np.testing.assert_allclose(r, expected["r"], rtol=0, atol=TOLERANCE)
    listed = found.features
    np.testing.assert_array_equal(found.n, expected["n"][listed])
    # Where n_eff is at its limit of 4, rounding decides.
    excess = [np.abs(np.nan_to_num(values, nan=4.0) - 4) for values in (n_eff, expected["n_eff"])]
    decided = (excess[0] + excess[1] >= 1e-5) | (np.isnan(n_eff) & np.isnan(expected["n_eff"]))
    np.testing.assert_allclose(n_eff[decided], expected["n_eff"][decided], rtol=1e-6)
    for name in ("low", "high", "p"):
        np.testing.assert_allclose(full(found, name, features)[decided], expected[name][decided], rtol=0, atol=1e-6)
    np.testing.assert_array_equal(np.isnan(found.q), np.isnan(found.p))
    some = ~np.isnan(found.p)
    if some.any():
        np.testing.assert_allclose(found.q[some], stats.false_discovery_control(found.p[some]), rtol=1e-12)


@st.composite
def data(draw: st.DrawFn) -> tuple[Floats, Floats]:
    """(n, FEATURES) float32 values as float64, (n, METRICS) with what makes correlations go wrong."""
    n = draw(st.integers(1, 90))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    smooth = draw(st.booleans())
    x = rng.normal(size=(n, FEATURES))
    if smooth:
        x = np.cumsum(x, axis=0) / 3
    x *= rng.random((n, FEATURES)) < np.linspace(0, 1, FEATURES)  # the first is never active, the last always
    offset = draw(st.sampled_from([0.0, 1e6]))
    x[:, 4:] += offset
    x[:, 3] = 3.3
    x[:, 5] = 0.1 * (np.arange(n) >= n // 2)  # constant in either half
    x = x.astype(np.float32).astype(np.float64)
    y = rng.normal(size=(n, METRICS)) + rng.normal(size=METRICS) * (x[:, 4:] - offset)
    if smooth:
        y = np.cumsum(y, axis=0)
    y += draw(st.sampled_from([0.0, 1e6]))
    y[:, 1] = 0.1
    if draw(st.booleans()):
        y[n // 2 :, 0] += 1e6
    if draw(st.booleans()):
        y[n // 3, 2] = 1e12
    if draw(st.booleans()):
        y[rng.random((n, METRICS)) < 0.3] = np.nan
    if draw(st.booleans()):
        y[: n // 2, 3] = np.nan
        y[n // 2 :, 4] = np.nan
    if draw(st.booleans()):
        y[0, 0] = np.inf  # counts as missing
    return x, y


def reduce(x: Floats, y: Floats, bounds: list[int]) -> CoMoments | None:
    """Blocks between `bounds`, each with the row before it as context, merged."""
    parts = []
    for begin, end in itertools.pairwise(bounds):
        context = min(begin, 1)
        step = np.arange(begin - context, end)
        pairs = lag_pairs(np.zeros_like(step), np.zeros_like(step), step)
        block = slice(begin - context, end)
        parts.append(CoMoments.from_block(csr_array(x[block]), y[block], pairs, context=context))
    return merge_all(parts)


@given(data(), st.sets(st.integers(1, 89), max_size=6))
@settings(max_examples=120, deadline=None)
def test_merged_blocks_equal_numpy(drawn: tuple[Floats, Floats], cuts: set[int]) -> None:
    x, y = drawn
    n = len(x)
    moments = reduce(x, y, [0, *sorted(c for c in cuts if c < n), n])
    assert moments is not None
    y = np.where(np.isfinite(y), y, np.nan)
    pairs = (np.arange(n - 1), np.arange(1, n))
    found = correlate(moments)
    assert_equal(found, oracle(x, y, pairs, np.ones(n, np.bool_)))
    assert set(found.features.tolist()) == set(np.flatnonzero((x != 0).any(axis=0)).tolist())
    np.testing.assert_allclose(found.observed, np.isfinite(y).sum(axis=0) / n * np.ones_like(found.r))


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_a_level_shift_leaves_nothing_behind(offset: float) -> None:
    rng = np.random.default_rng(1)
    x = (rng.random((4000, 6)) < 0.9) * (offset + rng.normal(size=(4000, 6)))
    x[:, 3:] = offset + rng.normal(size=(4000, 3))
    x = x.astype(np.float32).astype(np.float64)
    y = 0.3 * x[:, :5] + rng.normal(size=(4000, 5)) + 1e6
    y[1000:] += 1e6
    y[2000] = -1e9
    found = [reduce(x[a:], y[a:], [*range(0, 4000 - a, 63), 4000 - a]) for a in (0, 1000, 2001)]
    for a, moments in zip((0, 1000, 2001), found, strict=True):
        assert moments is not None
        r = correlate(moments).r
        np.testing.assert_allclose(r, np.corrcoef(x[a:].T, y[a:].T)[:6, 6:], rtol=0, atol=1e-11)


def test_missing_frames_are_not_zeros() -> None:
    x = np.array([[1.0], [2.0], [3.0], [4.0], [5.0]])
    y = np.array([[1.0], [np.nan], [3.0], [4.0], [5.0]])
    step = np.array([0, 1, 2, 3, 4])
    found = correlate(CoMoments.from_block(x, y, lag_pairs(step * 0, step * 0, step), frames=10))
    assert found.r[0, 0] == pytest.approx(1)
    assert found.n[0, 0] == 4
    assert found.observed[0, 0] == 0.4
    assert found.frames == 10


def test_what_cannot_be_computed_is_nan() -> None:
    x = np.array([[1.0, 7.0, 0.0], [2.0, 7.0, 0.0], [4.0, 7.0, 0.0]])
    y = np.array([[5.0, np.nan, 1.0], [5.0, np.nan, 2.0], [5.0, 3.0, 3.0]])
    step = np.arange(3)
    found = correlate(CoMoments.from_block(x, y, lag_pairs(step * 0, step * 0, step)))
    assert found.features.tolist() == [0, 1]
    assert np.isnan(found.r).tolist() == [[True, True, False], [True, True, True]]
    assert np.isnan(found.n_eff).all()  # three frames
    assert np.isnan([found.low, found.high, found.p, found.q]).all()
    assert found.n.tolist() == [[3, 1, 3]] * 2


def test_what_overflows_is_nan_and_stays_in_its_metric() -> None:
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(40, 3)), rng.normal(size=(40, 2))
    y[7, 0], y[30, 0] = 1e200, -1e308
    moments = reduce(x, y, [0, 20, 40])
    assert moments is not None
    r = correlate(moments).r
    assert np.isnan(r[:, 0]).all()
    np.testing.assert_allclose(r[:, 1], np.corrcoef(x.T, y[:, 1])[:3, 3], rtol=0, atol=TOLERANCE)


def test_no_metrics_and_no_rows() -> None:
    none = np.zeros(0, np.int64)
    empty = CoMoments.from_block(np.zeros((0, 3)), np.zeros((0, 2)), (none, none), frames=4)
    some = CoMoments.from_block(np.eye(3), np.arange(6.0).reshape(3, 2), (none, none))
    for parts in ((empty, some), (some, empty)):
        moments = merge_all(parts)
        assert moments is not None
        np.testing.assert_allclose(correlate(moments).r, correlate(some).r)
        assert moments.frames == 7
    assert correlate(empty).r.shape == (0, 2)
    assert correlate(CoMoments.from_block(np.eye(3), np.zeros((3, 0)), (none, none))).r.shape == (3, 0)


def test_only_consecutive_steps_of_one_episode_pair() -> None:
    env = np.array([0, 1, 0, 1, 0, 1, 0])
    episode = np.array([0, 0, 0, 1, 0, 1, 0])
    step = np.array([5, 5, 6, 6, 8, 7, 9])
    heads, tails = lag_pairs(env, episode, step)
    assert sorted(zip(heads.tolist(), tails.tolist(), strict=True)) == [(0, 2), (3, 5), (4, 6)]


@given(st.lists(st.one_of(st.floats(0, 1), st.just(float("nan"))), max_size=40))
def test_q_equals_scipy(values: list[float]) -> None:
    p = np.array(values)
    q = benjamini_hochberg(p)
    some = ~np.isnan(p)
    np.testing.assert_array_equal(np.isnan(q), ~some)
    if some.any():
        np.testing.assert_allclose(q[some], stats.false_discovery_control(p[some]), rtol=1e-12)
