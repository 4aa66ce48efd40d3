"""Statistics of experiments: paired differences between episodes of the same seed, and rank correlations.

    interval        bias-corrected and accelerated bootstrap, 95 % (Efron 1987, JASA 82; DiCiccio & Efron 1996), pairs kept
    p               two-sided sign-flip permutation of the differences (Fisher 1935; Phipson & Smyth 2010: never 0)
    many at once    Holm 1979 for the finalists of a search, Benjamini-Hochberg 1995 for a ranking of all features
    two ways        episodes and directions are both drawn again (Owen 2007, the pigeonhole bootstrap)

Pure functions of float64 arrays; everything random has its seed here, so the same episodes give the same figures.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

__all__ = [
    "RESAMPLES", "Interval", "benjamini_hochberg", "change", "change_over_arms", "holm", "mean", "p_of_difference", "rank_correlation",
]  # fmt: skip

RESAMPLES: Final = 10_000
_BATCH: Final = 1000
_PERCENT: Final = 100.0
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure with its 95 % interval; NaN where it cannot be computed."""

    mean: float
    low: float
    high: float
    n: int
    """Episodes (pairs of episodes, features) that it is of."""

    def plain(self) -> dict[str, Any]:
        """As data, null for NaN."""
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in asdict(self).items()}

    def times(self, factor: float) -> Interval:
        """In another unit; `factor` > 0."""
        return Interval(self.mean * factor, self.low * factor, self.high * factor, self.n)


def mean(values: Doubles, resamples: int = RESAMPLES) -> Interval:
    """(n,) values: their mean. Bounds are NaN under 2 values."""
    return _bca((np.asarray(values, np.float64),), lambda v: v.mean(axis=-1), resamples)


def change(base: Doubles, treated: Doubles, whole: float | None = None, resamples: int = RESAMPLES) -> Interval:
    """(n,) and (n,) paired: how much larger the mean is with treatment, in percent of `whole`, or of the mean without it."""
    if len(base) != len(treated):
        raise ValueError(f"{len(base)} episodes without and {len(treated)} with: they must be pairs")

    def statistic(b: Doubles, t: Doubles) -> Doubles:
        difference = t.mean(axis=-1) - b.mean(axis=-1)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(_PERCENT * difference / (np.abs(b.mean(axis=-1)) if whole is None else whole))

    return _bca((np.asarray(base, np.float64), np.asarray(treated, np.float64)), statistic, resamples)


def change_over_arms(base: Doubles, treated: Doubles, whole: float | None = None, resamples: int = RESAMPLES) -> Interval:
    """Base (n,), treated (arms, n): the mean change in percent over arms, where both arms and episodes are a sample; n of episodes.

    Percentile bootstrap that draws arms and, apart, episodes again: an interval that is a little too wide (Owen 2007).
    """
    arms, n = treated.shape
    generator = np.random.default_rng(0)

    def statistic(b: Doubles, t: Doubles) -> float:
        return float(_PERCENT * (t.mean() - b.mean()) / (abs(b.mean()) if whole is None else whole))

    found = np.empty(resamples)
    for i in range(resamples):
        drawn_arms = np.bincount(generator.integers(0, arms, arms), minlength=arms) / arms
        drawn = np.bincount(generator.integers(0, n, n), minlength=n) / n
        b = float(base @ drawn)
        found[i] = _PERCENT * (drawn_arms @ treated @ drawn - b) / (abs(b) if whole is None else whole)
    low, high = (float(v) for v in np.quantile(found, [0.025, 0.975]))
    return Interval(statistic(base, treated), low, high, n)


def p_of_difference(base: Doubles, treated: Doubles, draws: int = RESAMPLES) -> float:
    """Two-sided p that (n,) pairs differ in mean, by flipping the signs of their differences; at least 1 / (draws + 1)."""
    difference = np.asarray(treated, np.float64) - np.asarray(base, np.float64)
    difference = difference[difference != 0]  # a pair that does not differ says nothing, whatever its sign
    if not len(difference):
        return 1.0
    generator = np.random.default_rng(0)
    seen = abs(difference.sum())
    at_least, left = 0, draws
    while left:
        rows = min(left, _BATCH)
        signs = generator.integers(0, 2, (rows, len(difference)), np.int8) * 2.0 - 1.0
        at_least += int((np.abs(signs @ difference) >= seen * (1 - 1e-12)).sum())
        left -= rows
    return (at_least + 1) / (draws + 1)


def holm(p: Doubles) -> Doubles:
    """(m,) p-values, adjusted so that rejecting those below a level errs anywhere with at most that chance (Holm 1979)."""
    p = np.asarray(p, np.float64)
    order = np.argsort(p, kind="stable")
    steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1.0, steps)
    return adjusted


def benjamini_hochberg(p: Doubles) -> Doubles:
    """(m,) p-values to q: of those below a level, at most that share is expected to be wrong; NaN stays NaN and does not count."""
    from scipy.stats import false_discovery_control

    p = np.asarray(p, np.float64)
    q = np.full(len(p), math.nan)
    known = np.isfinite(p)
    if known.any():
        q[known] = false_discovery_control(p[known])
    return q


def rank_correlation(a: Doubles, b: Doubles, resamples: int = RESAMPLES) -> Interval:
    """Spearman's of (m,) and (m,), pairs with a NaN left out; percentile bootstrap over pairs. NaN under 4 pairs or without variance."""
    from scipy.stats import rankdata

    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    known = np.isfinite(a) & np.isfinite(b)
    a, b = a[known], b[known]
    n = len(a)
    if n < 4 or not (np.ptp(a) > 0 and np.ptp(b) > 0):
        return Interval(math.nan, math.nan, math.nan, n)

    def spearman(x: Doubles, y: Doubles) -> Doubles:
        x, y = rankdata(x, axis=-1), rankdata(y, axis=-1)
        x, y = x - x.mean(axis=-1, keepdims=True), y - y.mean(axis=-1, keepdims=True)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray((x * y).sum(axis=-1) / np.sqrt((x * x).sum(axis=-1) * (y * y).sum(axis=-1)))

    generator = np.random.default_rng(0)
    found = []
    for begin in range(0, resamples, _BATCH):
        drawn = generator.integers(0, n, (min(_BATCH, resamples - begin), n))
        found.append(spearman(a[drawn], b[drawn]))
    low, high = (float(v) for v in np.nanquantile(np.concatenate(found), [0.025, 0.975]))
    return Interval(float(spearman(a, b)), low, high, n)


def _bca(samples: tuple[Doubles, ...], statistic: Callable[..., Doubles], resamples: int) -> Interval:
    """`statistic` of paired (n,) samples; it takes (…, n) arrays and reduces the last axis."""
    from scipy.special import ndtr, ndtri

    n = len(samples[0])
    whole = float(statistic(*samples)) if n else math.nan
    if n < 2 or not math.isfinite(whole):
        return Interval(whole, math.nan, math.nan, n)
    generator = np.random.default_rng(0)
    parts = []
    for begin in range(0, resamples, _BATCH):
        drawn = generator.integers(0, n, (min(_BATCH, resamples - begin), n))
        parts.append(statistic(*(values[drawn] for values in samples)))
    found = np.concatenate(parts)
    found = found[np.isfinite(found)]
    if not len(found) or np.ptp(found) == 0:
        return Interval(whole, whole, whole, n)
    # ties count half, so that a symmetric discrete distribution has no bias
    below = float(((found < whole).mean() + (found <= whole).mean()) / 2)
    z0 = float(ndtri(min(max(below, 1 / len(found)), 1 - 1 / len(found))))
    left_out = ~np.eye(n, dtype=np.bool_)
    jackknife = np.array([float(statistic(*(values[keep] for values in samples))) for keep in left_out])
    centred = jackknife.mean() - jackknife
    spread = float((centred**2).sum())
    a = 0.0 if spread == 0 or not math.isfinite(spread) else float((centred**3).sum() / (6 * spread**1.5))
    ends = []
    for level in (0.025, 0.975):
        z = z0 + float(ndtri(level))
        ends.append(float(np.quantile(found, float(ndtr(z0 + z / (1 - a * z))))))
    return Interval(whole, ends[0], ends[1], n)
