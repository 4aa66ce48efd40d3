"""Statistics of experiments against known answers and scipy."""

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from interlatent_live.analyzer import paired

RANDOM = np.random.default_rng(7)


def test_bca_is_scipys_bca() -> None:
    base = RANDOM.normal(100, 20, 300)
    treated = 1.1 * base + RANDOM.exponential(20, 300)
    ours = paired.change(base, treated)

    def percent(b: Any, t: Any, axis: int) -> Any:
        return 100 * (t.mean(axis) / b.mean(axis) - 1)

    theirs = stats.bootstrap((base, treated), percent, paired=True, vectorized=True, n_resamples=9999, batch=500).confidence_interval
    assert ours.mean == pytest.approx(100 * (treated.mean() / base.mean() - 1))
    width = theirs.high - theirs.low
    assert abs(ours.low - theirs.low) < 0.08 * width
    assert abs(ours.high - theirs.high) < 0.08 * width
    skewed = RANDOM.exponential(1.0, 40)
    known = stats.bootstrap((skewed,), np.mean, n_resamples=9999).confidence_interval
    ours = paired.mean(skewed)
    assert abs(ours.low - known.low) < 0.1 * (known.high - known.low)
    assert abs(ours.high - known.high) < 0.1 * (known.high - known.low)


def test_intervals_cover_as_often_as_they_say() -> None:
    inside = 0
    for _ in range(200):
        luck = RANDOM.normal(0, 10, 60)
        base, treated = 50 + luck + RANDOM.normal(0, 3, 60), 55 + luck + RANDOM.normal(0, 3, 60)
        found = paired.change(base, treated, whole=50.0, resamples=1000)
        inside += found.low <= 10.0 <= found.high
    assert 0.88 <= inside / 200 <= 0.99


def test_pairing_makes_intervals_narrow() -> None:
    luck = RANDOM.normal(0, 30, 200)
    base, treated = 100 + luck, 105 + luck + RANDOM.normal(0, 1, 200)
    together = paired.change(base, treated)
    apart = paired.change(base, treated[::-1].copy())
    assert together.high - together.low < (apart.high - apart.low) / 5
    assert together.low > 0


def test_degenerate_data_has_an_interval_of_no_width_or_none() -> None:
    same = np.full(10, 4.0)
    assert paired.change(same, same) == paired.Interval(0.0, 0.0, 0.0, 10)
    assert paired.change(same, same + 1).low == 25.0
    one = paired.mean(np.array([3.0]))
    assert one.plain() == {"mean": 3.0, "low": None, "high": None, "n": 1}
    assert paired.mean(np.empty(0)).plain()["mean"] is None
    with pytest.raises(ValueError, match="pairs"):
        paired.change(np.zeros(3), np.zeros(4))


def test_sign_flips_give_the_exact_p_of_a_small_case() -> None:
    base = np.zeros(5)
    treated = np.array([1.0, 2.0, 3.0, 4.0, 5.0])  # two of 32 sign patterns are as far out
    assert paired.p_of_difference(base, treated) == pytest.approx(2 / 32, abs=0.01)
    assert paired.p_of_difference(base, base) == 1.0
    p = np.array([paired.p_of_difference(np.zeros(30), RANDOM.normal(0, 1, 30), draws=500) for _ in range(200)])
    assert 0.01 <= (p < 0.05).mean() <= 0.10


def test_holm_and_benjamini_hochberg_by_hand() -> None:
    p = np.array([0.01, 0.04, 0.03, 0.005])
    assert paired.holm(p) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert paired.holm(np.array([0.6, 0.9])) == pytest.approx([1.0, 1.0])
    q = paired.benjamini_hochberg(np.array([0.01, math.nan, 0.04, 0.03, 0.005]))
    assert q[[0, 2, 3, 4]] == pytest.approx([0.02, 0.04, 0.04, 0.02])
    assert math.isnan(q[1])


def test_rank_correlation_is_spearmans() -> None:
    a = RANDOM.normal(0, 1, 60)
    b = a + RANDOM.normal(0, 1, 60)
    b[3] = math.nan
    known = np.isfinite(b)
    found = paired.rank_correlation(a, b)
    assert found.mean == pytest.approx(stats.spearmanr(a[known], b[known]).statistic)
    assert found.n == 59
    assert found.low < found.mean < found.high
    assert math.isnan(paired.rank_correlation(a[:3], b[:3]).mean)
    assert math.isnan(paired.rank_correlation(a, np.ones(60)).mean)


def test_arms_count_as_a_sample_too() -> None:
    base = 100 + RANDOM.normal(0, 5, 200)
    arms = np.stack([base * (1 + shift) for shift in (-0.2, 0.0, 0.2, 0.1, -0.1)])
    found = paired.change_over_arms(base, arms, resamples=2000)
    assert found.mean == pytest.approx(0.0, abs=1e-9)
    assert found.low < -5
    assert found.high > 5
