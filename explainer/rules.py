"""Explanations without a language model: predicates fitted to the data by decision trees.

For each feature, on training episodes:

1. A balanced sample of frames, and one scikit-learn tree over the named metrics in 32 quantile bins, grown best first;
   weakest-link pruning (Breiman et al. 1984) gives the best tree of every smaller size. Steps 2 to 4 use these frames.
2. Each tree becomes a predicate twice: its active leaves joined by or, and its inactive leaves turned round and joined
   by and. A clause whose removal costs nothing goes. What has more than four clauses left is dropped.
3. Thresholds move, one at a time, to where the balanced accuracy of the whole predicate is highest, and are then
   rounded to the fewest decimals within 5 % of the metric's standard deviation.
4. The best candidates grow by the one clause, over all metrics and bins, that helps most where it decides, for as long
   as one helps; and clauses are taken away one by one, cheapest first, giving simpler candidates.
5. Of all candidates the one with the fewest clauses is taken whose balanced accuracy is not worse than the best one's
   beyond the paired interval over training episodes, or not by more than `TOLERANCE` a clause. Its clauses are put in
   the order of what each is worth, so that words begin with what matters.

The score that is shown is made elsewhere, on held-out episodes. Only metrics of scope 'observation' should be offered:
reward and done describe what came after. Policies without memory see the observation alone, so lags and changes are
not tried unless asked for. Deterministic. About 40 ms a feature with 44 metrics, half of it step 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from interlatent_live.explainer.predicate import MAX_CLAUSES, Clause, Comparison, Join, Predicate
from interlatent_live.explainer.scoring import Counts
from interlatent_live.explainer.table import Table
from interlatent_live.stream.errors import PredicateError

__all__ = ["TOLERANCE", "Fitted", "Quantity", "fit"]

TOLERANCE = 0.01
"""Balanced accuracy that one clause less is always worth: a rule is to be read."""

_LEAVES = 6
_SAMPLE = 4000
"""Frames that a tree is grown on."""
_ROWS = 50_000
"""Frames that candidates are compared on, evenly spaced over the training frames where there are more."""
_RESAMPLES = 400
_BINS = 32
_SLACK = 0.05
"""Standard deviations that a threshold may move to become shorter."""
_STARTS = 2
"""Candidates that are grown, and from which clauses are taken away."""

Mask = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Quantity = tuple[str, int, int]
"""Name, lag, change."""
_Test = tuple[int, bool, float]
"""Column, whether above (else at most), threshold."""
_Groups = tuple[tuple[_Test, ...], ...]


@dataclass(frozen=True, slots=True)
class Fitted:
    """The rule found for one feature."""

    feature: int
    predicate: Predicate
    train_accuracy: float
    """Balanced accuracy on the training frames it was chosen on: optimistic, not a score."""


@dataclass(frozen=True, slots=True)
class _Candidate:
    join: Join
    groups: _Groups

    @property
    def clauses(self) -> int:
        return sum(len(g) for g in self.groups)


def fit(
    table: Table, features: Iterable[int], rows: Mask, *, metrics: Sequence[str], lags: Sequence[int] = (),
    changes: Sequence[int] = (), max_clauses: int = MAX_CLAUSES,
) -> list[Fitted]:
    """A rule for each of `features` from the training frames `rows` (n,), over `metrics`, which are names of numbers.

    A feature that is active in all or in none of the frames, or that no rule tells better than chance, is left out.
    """
    if table.features is None:
        raise PredicateError("the table has no features to explain; give it some")
    kept = np.flatnonzero(rows & table.features.encoded)
    kept = kept[_evenly(len(kept), _ROWS)]
    data = _Data.of(table, kept, [(m, 0, 0) for m in metrics] + [(m, n, 0) for m in metrics for n in lags]
                    + [(m, 0, n) for m in metrics for n in changes])
    fitted = []
    for feature in features:
        active = table.features.active(feature)[kept]
        if len(data.quantities) and 0 < np.count_nonzero(active) < len(active):
            found = _fit_one(int(feature), data, active, max_clauses)
            if found is not None:
                fitted.append(found)
    return fitted


@dataclass(frozen=True, slots=True)
class _Data:
    """The training frames of all features."""

    quantities: list[Quantity]
    values: Floats
    """(q, n), NaN where undefined."""
    edges: list[Floats]
    """(q,) of rising bin edges; bin k holds what is above edge k - 1 and at most edge k."""
    binned: npt.NDArray[np.float32]
    """(n, q) the bin, the median's for NaN: what trees are grown on, three times faster than on the values."""
    scale: Floats
    """(q,) standard deviation."""
    groups: npt.NDArray[np.int64]
    """(n,) episode."""

    @classmethod
    def of(cls, table: Table, kept: npt.NDArray[np.intp], wanted: list[Quantity]) -> _Data:
        quantities, columns = [], []
        for name, lag, change in wanted:
            now = table.number(name)
            column = np.asarray(table.lagged(name, lag) if lag else now - table.lagged(name, change) if change else now)
            column = column[kept].astype(np.float64)
            column[~np.isfinite(column)] = np.nan  # an infinity has no place on an axis of thresholds
            known = column[~np.isnan(column)]
            if 2 * len(known) >= len(column) and len(known) and known.min() < known.max():
                quantities.append((name, lag, change))  # a constant or a mostly unknown column cannot split
                columns.append(column)
        values = np.array(columns).reshape(len(columns), len(kept))
        edges = [_edges(column) for column in values]
        binned = np.empty((len(kept), len(columns)), np.float32)
        for j, column in enumerate(values):
            binned[:, j] = np.searchsorted(edges[j], np.where(np.isnan(column), np.nanmedian(column), column))
        return cls(quantities, values, edges, binned, np.nanstd(values, axis=1), table.groups[kept])

    def sample(self, rows: npt.NDArray[np.int64]) -> _Data:
        """The same of fewer frames."""
        return replace(self, values=self.values[:, rows], binned=self.binned[rows], groups=self.groups[rows])

    def test(self, test: _Test) -> Mask:
        column, above, threshold = test
        mask: Mask = self.values[column] > threshold if above else self.values[column] <= threshold
        return mask

    def holds(self, candidate: _Candidate) -> Mask:
        return _combine(candidate.join, [[self.test(t) for t in g] for g in candidate.groups])


def _combine(join: Join, groups: list[list[Mask]]) -> Mask:
    inside, between = (np.logical_and, np.logical_or) if join == "or" else (np.logical_or, np.logical_and)
    holds: Mask = between.reduce([inside.reduce(g) for g in groups])
    return holds


def _fit_one(feature: int, data: _Data, active: Mask, max_clauses: int) -> Fitted | None:
    yes, no = np.flatnonzero(active), np.flatnonzero(~active)
    few = min(len(yes), len(no), _SAMPLE // 2)
    rows = np.sort(np.concatenate([part[_evenly(len(part), _SAMPLE - few)] for part in (yes, no)]))
    sample, target = data.sample(rows), active[rows]
    starts = dict.fromkeys(  # a dict keeps the order, a set would not
        _drop_idle(c, sample, target) for tree in _trees(sample, target) for c in _predicates(tree))
    polished = dict.fromkeys(_polish(c, sample, target) for c in starts if c.clauses <= max_clauses)
    ranked = sorted(polished, key=lambda c: -_accuracy(sample.holds(c), target))
    grown = [_grow(c, sample, target, max_clauses) for c in ranked[:_STARTS]]
    steps = dict.fromkeys(ranked) | dict.fromkeys(s for c in grown for s in _backward(c, sample, target))
    candidates = list(dict.fromkeys(_rounded(c, data) for c in steps))
    if not candidates:  # so few frames that no tree splits them
        return None
    counts = Counts.of(np.stack([data.holds(c) for c in candidates], axis=1),
                       np.repeat(active[:, None], len(candidates), axis=1), data.groups)
    accuracy, draws = counts.balanced_accuracy(), counts.resampled(_RESAMPLES, seed=0)
    best = int(np.argmax(accuracy))
    lost = draws[:, [best]] - draws
    known = ~np.isnan(lost[:, best])
    size = np.array([c.clauses for c in candidates])
    as_good = accuracy >= accuracy[best] - TOLERANCE * (size[best] - size).clip(min=0)
    if known.any() and len(counts.tp) > 1:
        as_good |= np.quantile(lost[known], 0.025, axis=0) <= 0
    as_good &= accuracy >= 0.5
    if not as_good.any():
        return None
    order = sorted(np.flatnonzero(as_good), key=lambda i: (candidates[i].clauses, -accuracy[i], str(candidates[i])))
    chosen = int(order[0])
    ordered = _by_worth(candidates[chosen], data, active)
    return Fitted(feature, _to_predicate(ordered, data.quantities), float(accuracy[chosen]))


def _evenly(count: int, limit: int) -> npt.NDArray[np.int64]:
    """At most `limit` of `count` positions, evenly spaced."""
    return np.arange(count) if count <= limit else np.linspace(0, count - 1, limit).astype(np.int64)


@dataclass(frozen=True, slots=True)
class _Node:
    """A decision tree as data. A leaf has no children."""

    positive: bool
    loss: float
    """Weighted impurity, were it a leaf."""
    column: int = -1
    threshold: float = 0.0
    low: _Node | None = None
    """Where the column is at most the threshold."""
    high: _Node | None = None


def _trees(data: _Data, active: Mask) -> list[_Node]:
    """The largest tree and its weakest-link prunings, down to one split."""
    from sklearn.tree import DecisionTreeClassifier

    grown = DecisionTreeClassifier(
        max_leaf_nodes=_LEAVES, min_weight_fraction_leaf=0.01, class_weight="balanced", random_state=0,
    ).fit(data.binned, active).tree_
    tree = _read(grown, 0, data.edges)
    trees = []
    while tree.low is not None:
        trees.append(tree)
        tree = _prune(tree, min(_strengths(tree)))
    return trees


def _edges(values: Floats) -> Floats:
    """Where a column may be split: between all its values if they are few, else at quantiles."""
    distinct = np.unique(values[~np.isnan(values)])
    if len(distinct) <= _BINS:
        return (distinct[1:] + distinct[:-1]) / 2
    edges: Floats = np.unique(np.nanquantile(values, np.linspace(0, 1, _BINS + 1)[1:-1]))
    return edges


def _read(tree: Any, node: int, edges: list[Floats]) -> _Node:
    positive = bool(tree.value[node, 0, 1] > tree.value[node, 0, 0])
    loss = float(tree.impurity[node] * tree.weighted_n_node_samples[node])
    low, high = int(tree.children_left[node]), int(tree.children_right[node])
    if low < 0:
        return _Node(positive, loss)
    column = int(tree.feature[node])
    threshold = float(edges[column][math.floor(tree.threshold[node])])
    return _Node(positive, loss, column, threshold, _read(tree, low, edges), _read(tree, high, edges))


def _leaves(node: _Node) -> list[_Node]:
    if node.low is None or node.high is None:
        return [node]
    return _leaves(node.low) + _leaves(node.high)


def _strengths(node: _Node) -> list[float]:
    """What each split below gains per leaf."""
    if node.low is None or node.high is None:
        return []
    leaves = _leaves(node)
    own = (node.loss - sum(leaf.loss for leaf in leaves)) / (len(leaves) - 1)
    return [own, *_strengths(node.low), *_strengths(node.high)]


def _prune(node: _Node, strength: float) -> _Node:
    if node.low is None or node.high is None or min(_strengths(node)) > strength:
        return node
    leaves = _leaves(node)
    if (node.loss - sum(leaf.loss for leaf in leaves)) / (len(leaves) - 1) <= strength:
        return _Node(node.positive, node.loss)
    low, high = _prune(node.low, strength), _prune(node.high, strength)
    return _Node(node.positive, node.loss, node.column, node.threshold, low, high)


def _paths(node: _Node, positive: bool, path: tuple[_Test, ...] = ()) -> list[tuple[_Test, ...]]:
    """The conditions of the leaves that say `positive`; a split whose leaves all agree is one leaf."""
    labels = {leaf.positive for leaf in _leaves(node)}
    if len(labels) == 1 or node.low is None or node.high is None:
        return [path] if positive in labels else []
    below = _paths(node.low, positive, (*path, (node.column, False, node.threshold)))
    return below + _paths(node.high, positive, (*path, (node.column, True, node.threshold)))


def _predicates(tree: _Node) -> list[_Candidate]:
    yes, no = _paths(tree, True), _paths(tree, False)
    if not yes or not no or yes == [()] or no == [()]:
        return []
    turned = tuple(tuple((c, not above, t) for c, above, t in path) for path in no)
    return [_Candidate("or", tuple(yes)), _Candidate("and", turned)]


def _without(candidate: _Candidate) -> list[_Candidate]:
    """Every candidate with one clause less."""
    out = []
    for g, group in enumerate(candidate.groups):
        for i in range(len(group)):
            rest = group[:i] + group[i + 1 :]
            groups = candidate.groups[:g] + ((rest,) if rest else ()) + candidate.groups[g + 1 :]
            if groups:
                out.append(_Candidate(candidate.join, groups))
    return out


def _by_worth(candidate: _Candidate, data: _Data, active: Mask) -> _Candidate:
    """Clauses within groups, and groups, in the order of the accuracy that is lost without them."""
    left: dict[_Test, float] = {}
    if candidate.clauses > 1:
        tests = [t for g in candidate.groups for t in g]  # as `_without` takes them away
        left = {t: _accuracy(data.holds(c), active) for t, c in zip(tests, _without(candidate), strict=True)}
    groups = [tuple(sorted(g, key=lambda t: left.get(t, 0.0))) for g in candidate.groups]
    return _Candidate(candidate.join, tuple(sorted(groups, key=lambda g: left.get(g[0], 0.0))))


def _drop_idle(candidate: _Candidate, data: _Data, active: Mask) -> _Candidate:
    """Take clauses away for as long as one can go without loss."""
    score = _accuracy(data.holds(candidate), active)
    while candidate.clauses > 1:
        reduced = max(_without(candidate), key=lambda c: _accuracy(data.holds(c), active))
        if (best := _accuracy(data.holds(reduced), active)) < score - 1e-4:
            break
        candidate, score = reduced, best
    return candidate


def _backward(candidate: _Candidate, data: _Data, active: Mask) -> list[_Candidate]:
    """The candidate, then with ever fewer clauses, the cheapest taken first, thresholds set again."""
    steps = [candidate]
    while candidate.clauses > 1:
        reduced = max(_without(candidate), key=lambda c: _accuracy(data.holds(c), active))
        candidate = _polish(reduced, data, active)
        steps.append(candidate)
    return steps


def _grow(candidate: _Candidate, data: _Data, active: Mask, max_clauses: int) -> _Candidate:
    """Add the clause that helps most, inside a group or as a new one, for as long as it pays."""
    score = _accuracy(data.holds(candidate), active)
    while candidate.clauses < max_clauses:
        masks = [[data.test(t) for t in group] for group in candidate.groups]
        options = []
        for g in range(len(masks) + 1):
            inside = masks[g] if g < len(masks) else []
            always, never = (
                _combine(candidate.join, [*masks[:g], [*inside, np.full(len(active), v)], *masks[g + 1 :]])
                for v in (True, False))
            gain, test = _best_test(data, active, always & ~never)
            group = (*candidate.groups[g], test) if g < len(masks) else (test,)
            groups = (*candidate.groups[:g], group, *candidate.groups[g + 1 :])
            options.append((gain + _accuracy(never, active), _Candidate(candidate.join, groups)))
        extended = _polish(max(options, key=lambda o: o[0])[1], data, active)
        if (best := _accuracy(data.holds(extended), active)) <= score + TOLERANCE / 2:
            break
        candidate, score = extended, best
    return candidate


def _best_test(data: _Data, active: Mask, decides: Mask) -> tuple[float, _Test]:
    """The clause that gains most balanced accuracy if it alone decides in the frames `decides`, and how much."""
    gain = _gain(active)[decides]
    columns = data.binned.shape[1]
    flat = data.binned[decides].astype(np.int64) + np.arange(columns) * _BINS
    sums = np.bincount(flat.reshape(-1), weights=np.repeat(gain, columns), minlength=columns * _BINS)
    below = np.cumsum(sums.reshape(columns, _BINS), axis=1, dtype=np.float64)  # of no frame at all, bincount gives integers
    gains = np.stack([below, below[:, -1:] - below])  # (at most or above, column, edge)
    for j, edges in enumerate(data.edges):
        gains[:, j, len(edges) :] = -math.inf
    up, column, edge = np.unravel_index(int(np.argmax(gains)), gains.shape)
    test = (int(column), bool(up), float(data.edges[int(column)][int(edge)]))
    return float(gains[up, column, edge]) / 2, test


def _gain(active: Mask) -> Floats:
    """(n,) what saying yes adds to twice the balanced accuracy."""
    positives = np.count_nonzero(active)
    return np.where(active, 1 / positives, -1 / (len(active) - positives))


def _accuracy(holds: Mask, active: Mask) -> float:
    """Balanced accuracy; both classes occur."""
    positives, both = np.count_nonzero(active), np.count_nonzero(holds & active)
    false = np.count_nonzero(holds) - both
    return float(both / positives + 1 - false / (len(active) - positives)) / 2


def _polish(candidate: _Candidate, data: _Data, active: Mask, rounds: int = 2) -> _Candidate:
    """Move one threshold after the other to the best balanced accuracy of the whole."""
    groups = [list(g) for g in candidate.groups]
    gain = _gain(active)
    for _ in range(rounds):
        moved = False
        for g, group in enumerate(groups):
            for i, (column, above, threshold) in enumerate(group):
                masks = [[data.test(t) for t in other] for other in groups]
                masks[g][i] = np.zeros(len(active), np.bool_)
                without = _combine(candidate.join, masks)
                masks[g][i] = np.ones(len(active), np.bool_)
                matters = _combine(candidate.join, masks) & ~without  # frames in which this clause decides
                best = _best_threshold(data.values[column][matters], gain[matters], above, threshold)
                if best != threshold:
                    group[i] = (column, above, best)
                    moved = True
        if not moved:
            break
    return _Candidate(candidate.join, tuple(tuple(g) for g in groups))


def _best_threshold(values: Floats, gain: Floats, above: bool, threshold: float) -> float:
    """The threshold with the highest balanced accuracy, given that the rest of the predicate stays."""
    known = ~np.isnan(values)
    values, gain = values[known], gain[known]
    if len(values) < 2:
        return threshold
    order = np.argsort(values)
    values, below = values[order], np.cumsum(gain[order])  # gain of saying yes up to here
    total = below[-1]
    value = total - below if above else below
    value[:-1][values[1:] == values[:-1]] = -math.inf  # no threshold fits between equal values
    value[-1] = -math.inf
    at = int(np.argmax(value))
    if not math.isfinite(value[at]):
        return threshold
    now = int(np.searchsorted(values, threshold, side="right")) - 1
    current = (total - (below[now] if now >= 0 else 0.0)) if above else (below[now] if now >= 0 else 0.0)
    return float(values[at] + values[at + 1]) / 2 if value[at] > current + 1e-12 else threshold


def _rounded(candidate: _Candidate, data: _Data) -> _Candidate:
    groups = tuple(tuple((c, up, _round(t, _SLACK * float(data.scale[c]))) for c, up, t in g) for g in candidate.groups)
    return _Candidate(candidate.join, groups)


def _round(value: float, slack: float) -> float:
    """The number with the fewest decimals within `slack`."""
    if slack <= 0:
        return value
    for decimals in range(-math.floor(math.log10(max(abs(value), slack))), 18):
        rounded = round(value, decimals)
        if abs(rounded - value) <= slack:
            return rounded + 0.0
    return value


def _to_predicate(candidate: _Candidate, quantities: list[Quantity]) -> Predicate:
    above: dict[bool, Comparison] = {True: ">", False: "<="}


    def clause(test: _Test) -> Clause:
        (name, lag, change), up, threshold = quantities[test[0]], test[1], test[2]
        return Clause(metric=name, comparison=above[up], value=threshold, lag=lag, change=change)

    return Predicate(join=candidate.join, groups=tuple(tuple(clause(t) for t in g) for g in candidate.groups))
