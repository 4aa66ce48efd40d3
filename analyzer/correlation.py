"""Correlation of every feature with every metric, from co-moments that are merged and never subtracted.

1. A block of frames becomes `CoMoments`: counts, means, centred squares and products, and the same for the pairs of
   consecutive frames (lag 1). Two passes over the block, centred in float64.
2. Blocks are merged pairwise (Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample
   variances", 1979, equations 2.1; Bennett et al. 2009 for the products). A subtraction, as a sliding sum needs it,
   keeps the rounding error of every spike and level shift for good.
3. `correlate` turns them into Pearson's r, an effective sample size n(1 - px py)/(1 + px py) (Bartlett 1935), Fisher's
   interval with it (approximate for sparse features, which are far from normal), and Benjamini and Hochberg's q (1995).

A mean is kept as origin + offset: an exact first value and a small float64 remainder, so an offset of 1e6 costs no
digits. Features come sparse. What is active in at most half of a block's rows needs no centring first (its variance is
at least half of its mean square, so nothing cancels); the rest is made dense, at most twice the active values.

Missing: rows that had no activation are not handed in (`frames` counts them); metrics are NaN where missing and every
metric is paired with the rows it has. Metrics with one pattern of missing rows share one column ("group") of feature
moments, so that usually there is one. What cannot be computed is NaN, never 0.
Cost: 1 to 3 us a frame for 2048 features, 32 active, 16 metrics in blocks of 4096 rows.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array
from scipy.special import erfc

__all__ = ["CoMoments", "Correlation", "Moments", "benjamini_hochberg", "correlate", "lag_pairs", "merge", "merge_all"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

Z95 = 1.959963984540054
"""Half width of a 95 % interval, in standard errors."""
LEAST_N_EFF = 4.0
"""Below it Fisher's interval says nothing, and n_eff is NaN."""


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """Count, mean (origin + offset) and sum of squared deviations; `n` broadcasts against the others' last axis."""

    n: Floats
    origin: Floats
    offset: Floats
    m2: Floats

    def at(self, rows: Ints, size: int) -> Moments:
        """The same, spread to `size` features of which only `rows` were ever active (the others are constant 0)."""
        return Moments(self.n, *(_spread(a, rows, size) for a in (self.origin, self.offset, self.m2)))

    def columns(self, index: Ints) -> Moments:
        """The same, with the last axis taken at `index`."""
        return Moments(self.n[index], self.origin[..., index], self.offset[..., index], self.m2[..., index])


@dataclass(frozen=True, slots=True, eq=False)
class CoMoments:
    """What a block of frames says about f features, m metrics and g groups of metrics observed on the same rows.

    A feature that is not listed was 0 in every row. Merging is associative up to rounding.
    """

    frames: int
    """Frames of the block, with or without an activation."""
    features: Ints
    """(f,) ids of the features that were active, rising."""
    active: Ints
    """(f,) rows in which each was active, whatever the metrics."""
    group: Ints
    """(m,) the group of each metric."""
    x: Moments
    """Features over the rows of each group: n (g,), the others (f, g)."""
    y: Moments
    """Metrics: (m,)."""
    cross: Floats
    """(f, m) sums of centred products."""
    x_head: Moments
    """First frames of the consecutive pairs: n (g,), the others (f, g)."""
    x_tail: Moments
    x_lag: Floats
    """(f, g) sums of centred products of a frame and the next."""
    y_head: Moments
    y_tail: Moments
    y_lag: Floats
    """(m,)"""

    @classmethod
    @np.errstate(over="ignore", invalid="ignore")  # beyond 1e150 a square is infinite, and r is NaN
    def from_block(
        cls, x: Any, y: Floats, pairs: tuple[Ints, Ints], *, context: int = 0, frames: int | None = None
    ) -> CoMoments:
        """Reduce a block.

        `x`: (n, F) features, csr_array or dense. `y`: (n, m) metrics, NaN where missing. `pairs`: rows (head, tail)
        that are consecutive frames, see `lag_pairs`. The first `context` rows belong to an earlier block and serve as
        heads only. `frames`: how many there were, where some had no activation; else the rows.
        """
        x = csr_array(x)
        rows = x.shape[0]
        flags = np.bincount(x.indices, minlength=x.shape[1]) > 0
        features = np.flatnonzero(flags).astype(np.int64)
        local = (np.cumsum(flags) - 1)[x.indices].astype(np.int32)
        fired = np.bincount(local[x.indptr[context] :], minlength=len(features))
        x = csr_array((x.data.astype(np.float64), local, x.indptr), shape=(rows, len(features)))
        seen = np.isfinite(y)
        group, patterns = _group(seen)
        heads, tails = pairs
        moments_y, centred_own = _moments(y[context:], seen[context:])
        centred_y = np.zeros(y.shape)
        centred_y[context:] = centred_own
        pair_seen = seen[heads] & seen[tails]
        y_head, head_y = _moments(y[heads], pair_seen)
        y_tail, tail_y = _moments(y[tails], pair_seen)

        groups = patterns.shape[1]
        weights = np.zeros((rows, 3, groups))  # of a row: in the moments, as a head, as a tail
        weights[context:, 0] = patterns[context:]
        pair_patterns = patterns[heads] & patterns[tails]
        weights[heads, 1] = pair_patterns
        weights[tails, 2] = pair_patterns
        n = weights.sum(axis=0)
        flat = weights.reshape(rows, 3 * groups)
        metrics = y.shape[1]
        products = x.T @ np.hstack((centred_y, flat))
        shape = (len(features), 3, groups)
        sums = products[:, metrics:].reshape(shape)
        squares = (csr_array((x.data * x.data, x.indices, x.indptr), shape=x.shape).T @ flat).reshape(shape)
        active = (csr_array((np.ones_like(x.data), x.indices, x.indptr), shape=x.shape).T @ flat).reshape(shape)
        mean = sums / np.maximum(n, 1)
        m2 = np.maximum(squares - mean * sums, 0)
        cross = products[:, :metrics] - mean[:, 0, group] * centred_y.sum(axis=0)
        lagged = x[heads].multiply(x[tails])
        lag = csr_array(lagged).T @ pair_patterns.astype(np.float64) - mean[:, 1] * sums[:, 2]
        origin = np.zeros(shape)
        crowded = active * 2 > n  # more often active than not: centre them first
        for g in np.flatnonzero(crowded[:, 0].any(axis=0)):
            chosen, where = np.flatnonzero(crowded[:, 0, g]), np.flatnonzero(weights[:, 0, g])
            moments, centred = _moments(_dense(x, where, chosen))
            origin[chosen, 0, g], mean[chosen, 0, g] = moments.origin, moments.offset
            m2[chosen, 0, g] = moments.m2
            columns = np.flatnonzero(group == g)
            cross[np.ix_(chosen, columns)] = centred.T @ centred_y[np.ix_(where, columns)]
        for g in np.flatnonzero((crowded[:, 1] | crowded[:, 2]).any(axis=0)):
            chosen, where = np.flatnonzero(crowded[:, 1, g] | crowded[:, 2, g]), np.flatnonzero(pair_patterns[:, g])
            both = []
            for side, index in ((1, heads), (2, tails)):
                moments, centred = _moments(_dense(x, index[where], chosen))
                origin[chosen, side, g], mean[chosen, side, g] = moments.origin, moments.offset
                m2[chosen, side, g] = moments.m2
                both.append(centred)
            lag[chosen, g] = (both[0] * both[1]).sum(axis=0)
        of_x = [Moments(n[side], origin[:, side].copy(), mean[:, side].copy(), m2[:, side].copy()) for side in range(3)]
        return cls(
            rows - context if frames is None else frames, features, fired, group, of_x[0], moments_y, cross,
            of_x[1], of_x[2], lag, y_head, y_tail, (head_y * tail_y).sum(axis=0),
        )  # fmt: skip

    @property
    def metrics(self) -> int:
        """Number of metrics."""
        return len(self.group)


def merge(a: CoMoments, b: CoMoments) -> CoMoments:
    """Co-moments of the frames of both; `a` came first. Neither is changed."""
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        features, a, b = _same_features(a, b)
        group, a, b = _same_groups(a, b)
        x, dx, weight = _chan(a.x, b.x)
        y, dy, weight_y = _chan(a.y, b.y)
        cross = a.cross + b.cross
        cross += _by_metric(dx, group) * (dy * weight_y)
        x_head, dh, weight = _chan(a.x_head, b.x_head)
        x_tail, dt, _ = _chan(a.x_tail, b.x_tail)
        y_head, eh, weight_y = _chan(a.y_head, b.y_head)
        y_tail, et, _ = _chan(a.y_tail, b.y_tail)
        return CoMoments(
            a.frames + b.frames, features, a.active + b.active, group, x, y, cross, x_head, x_tail,
            a.x_lag + b.x_lag + dh * dt * weight, y_head, y_tail, a.y_lag + b.y_lag + eh * et * weight_y,
        )  # fmt: skip


def merge_all(parts: Iterable[CoMoments | None]) -> CoMoments | None:
    """Merge what there is, in time's order; None if there is nothing."""
    there = [part for part in parts if part is not None]
    return reduce(merge, there) if there else None


@dataclass(frozen=True, slots=True, eq=False)
class Correlation:
    """Every feature that was active with every metric. Arrays are (f, m) float64, NaN = undefined."""

    features: Ints
    """(f,) feature ids, rising; those never active are left out."""
    frames: int
    """Frames looked at, with or without an activation."""
    r: Floats
    """Pearson's r over the frames in which both were observed."""
    n: Floats
    """Frames in which both were observed."""
    n_eff: Floats
    """Independent frames that they are worth, at most n; NaN under 4."""
    low: Floats
    """95 % interval of r, approximate for sparse features."""
    high: Floats
    p: Floats
    """Two-sided, of r = 0."""
    q: Floats
    """Smallest false discovery rate, within this snapshot, at which r would be called different from 0."""
    observed: Floats
    """n over frames."""


def correlate(moments: CoMoments) -> Correlation:
    """Correlations of a block, or of merged blocks."""
    with np.errstate(all="ignore"):
        x = moments.x
        alive = moments.active > 0
        group, y = moments.group, moments.y
        scale = _by_metric(np.sqrt(x.m2[alive]), group) * np.sqrt(y.m2)
        r = np.where((scale > 0) & np.isfinite(scale), moments.cross[alive] / scale, np.nan).clip(-1, 1)
        n = np.repeat(y.n[None], len(r), axis=0)
        rho_x = _rho(moments.x_lag, moments.x_head, moments.x_tail)[alive]
        rho = _by_metric(rho_x, group) * _rho(moments.y_lag, moments.y_head, moments.y_tail)
        n_eff = np.minimum(n * ((1 - rho) / (1 + rho)), n)
        n_eff[~(n_eff >= LEAST_N_EFF) | np.isnan(r)] = np.nan
        z, root = np.arctanh(r), np.sqrt(n_eff - 3)
        low, high = np.tanh(z - Z95 / root), np.tanh(z + Z95 / root)
        p = erfc(np.abs(z) * root / np.sqrt(2))
        observed = n / moments.frames if moments.frames else np.full_like(n, np.nan)
    return Correlation(
        moments.features[alive], moments.frames, r, n, n_eff, low, high, p, benjamini_hochberg(p), observed
    )


def benjamini_hochberg(p: Floats) -> Floats:
    """Adjusted p values, over the defined entries of an array of any shape; NaN stays NaN."""
    q = np.full(p.shape, np.nan)
    defined = ~np.isnan(p)
    values = p[defined]
    order = np.argsort(values, kind="stable")
    scaled = values[order] * (len(values) / np.arange(1, len(values) + 1))
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1)
    q[defined] = adjusted
    return q


def lag_pairs(env: npt.NDArray[Any], episode: npt.NDArray[Any], step: npt.NDArray[Any]) -> tuple[Ints, Ints]:
    """Rows (heads, tails) that are consecutive steps of one episode of one environment; inputs (n,)."""
    order = np.lexsort((step, env))  # stable: an environment's rows stay in the order of its steps
    first, second = order[:-1], order[1:]
    linked = (env[second] == env[first]) & (episode[second] == episode[first]) & (step[second] == step[first] + 1)
    return first[linked], second[linked]


def _group(seen: npt.NDArray[np.bool_]) -> tuple[Ints, npt.NDArray[np.bool_]]:
    """Metrics by their pattern of missing rows: (m,) group of each, (n, g) the patterns."""
    if seen.all():
        return np.zeros(seen.shape[1], np.int64), np.ones((len(seen), 1), np.bool_)
    packed = np.packbits(seen, axis=0)
    _, first, group = np.unique(packed, axis=1, return_index=True, return_inverse=True)
    return group.reshape(-1).astype(np.int64), seen[:, first]


def _moments(values: Floats, seen: npt.NDArray[np.bool_] | None = None) -> tuple[Moments, Floats]:
    """Moments of the columns of (n, k) values where `seen`, and the centred values, 0 elsewhere.

    Deviations are from the first value seen, so a constant has exactly none.
    """
    count = values.shape[1]
    if seen is None or seen.all():
        n = np.full(count, float(len(values)))
        origin = values[0].copy() if len(values) else np.zeros(count)
        centred = values - origin
        offset = centred.sum(axis=0) / np.maximum(n, 1)
        centred -= offset
    else:
        n = seen.sum(axis=0).astype(np.float64)
        origin = np.where(n > 0, values[seen.argmax(axis=0), np.arange(count)], 0.0)
        centred = np.where(seen, values - origin, 0.0)
        offset = centred.sum(axis=0) / np.maximum(n, 1)
        centred = np.where(seen, centred - offset, 0.0)
    rest = centred.sum(axis=0)
    m2 = np.maximum((centred * centred).sum(axis=0) - rest * rest / np.maximum(n, 1), 0)
    return Moments(n, origin, offset, m2), centred


def _dense(x: Any, rows: Ints, columns: Ints) -> Floats:
    """x[rows][:, columns] of a csr_array, dense."""
    dense: Floats = x[rows][:, columns].toarray()
    return dense


def _chan(a: Moments, b: Moments) -> tuple[Moments, Floats, Floats]:
    """Merged moments, the distance of the means, and the weight with which its products count."""
    n = a.n + b.n
    share = b.n / np.maximum(n, 1)
    delta = (b.origin - a.origin) + (b.offset - a.offset)
    weight = a.n * share
    m2 = a.m2 + b.m2 + delta * delta * weight
    if (a.n > 0).all():
        return Moments(n, a.origin, a.offset + delta * share, m2), delta, weight
    nothing = a.n == 0  # then b's origin is nearer, and the mean stays exact
    origin = np.where(nothing, b.origin, a.origin)
    return Moments(n, origin, np.where(nothing, b.offset, a.offset + delta * share), m2), delta, weight


def _rho(lag: Floats, head: Moments, tail: Moments) -> Floats:
    """Lag-1 autocorrelation: Pearson's r of the frames and those that follow them."""
    scale = np.sqrt(head.m2) * np.sqrt(tail.m2)
    return np.where((scale > 0) & np.isfinite(scale), lag / scale, np.nan).clip(-1, 1)


def _by_metric(by_group: Floats, group: Ints) -> Floats:
    """(f, g) per group as an array that broadcasts to (f, m)."""
    return by_group if by_group.shape[1] == 1 else by_group[:, group]


def _spread(values: Floats, rows: Ints, size: int) -> Floats:
    out = np.zeros((size, values.shape[1]))
    out[rows] = values
    return out


def _same_features(a: CoMoments, b: CoMoments) -> tuple[Ints, CoMoments, CoMoments]:
    if np.array_equal(a.features, b.features):
        return a.features, a, b
    features = np.union1d(a.features, b.features)
    return features, _with_features(a, features), _with_features(b, features)


def _with_features(part: CoMoments, features: Ints) -> CoMoments:
    if len(part.features) == len(features):
        return part
    rows, size = np.searchsorted(features, part.features), len(features)
    active = np.zeros(size, np.int64)
    active[rows] = part.active
    return CoMoments(
        part.frames, features, active, part.group, part.x.at(rows, size), part.y, _spread(part.cross, rows, size),
        part.x_head.at(rows, size), part.x_tail.at(rows, size), _spread(part.x_lag, rows, size),
        part.y_head, part.y_tail, part.y_lag,
    )  # fmt: skip


def _same_groups(a: CoMoments, b: CoMoments) -> tuple[Ints, CoMoments, CoMoments]:
    if np.array_equal(a.group, b.group):
        return a.group, a, b
    of_b = int(b.group.max()) + 1
    both, group = np.unique(a.group * of_b + b.group, return_inverse=True)
    group = group.reshape(-1).astype(np.int64)
    return group, _with_groups(a, group, both // of_b), _with_groups(b, group, both % of_b)


def _with_groups(part: CoMoments, group: Ints, index: Ints) -> CoMoments:
    return CoMoments(
        part.frames, part.features, part.active, group, part.x.columns(index), part.y, part.cross,
        part.x_head.columns(index), part.x_tail.columns(index), part.x_lag[:, index],
        part.y_head, part.y_tail, part.y_lag,
    )  # fmt: skip
