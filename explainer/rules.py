"""Explanations without a language model: predicates fitted to the data by a beam search.

For each feature, on training episodes:

1. A balanced sample of frames, and over it the best predicates of one to four clauses that a beam search finds
   (explainer.search), each metric in 20 to 32 quantile bins: alternatives of conjunctions, and conjunctions of alternatives.
2. Thresholds move, one at a time, to where the balanced accuracy of the whole predicate is highest, and are then
   rounded to the fewest decimals within 5 % of the metric's standard deviation.
3. Of all candidates that one is taken whose balanced accuracy on all training frames is highest after `TOLERANCE` off for
   each clause and one standard error, by episodes, off for doubt. Its clauses are put in the order of what each is
   worth, so that words begin with what matters.
4. Where that does not reach `GOOD`, steps 1 to 3 again with more quantities: lags, changes, what the agent does. What is
   found so must be better by the same measure.
5. A text's features: a label (a token, the one before, the model's guess of the next) is compared with one value, or with a set
   of the values that tell most. Which values these are is found on training frames too, so while candidates are compared a
   frame's own fold of episodes has no say in the set that it is held against; else rare values would seem to tell much.

The score that is shown is made elsewhere, on held-out episodes. Only metrics of scope 'observation' should be offered
first: reward and done describe what came after, and what the agent does follows from the feature rather than leading to
it. Deterministic. About 40 ms a feature with 44 metrics, twice that where step 4 is needed.

Against decision trees (Breiman et al. 1984), pruned, turned into predicates and grown, on the humanoid: the share of
features that reach 0.80 on held-out episodes rose from 0.91 to 0.96, the search for a single clause being as exact as a
tree's split, but judged by what the whole predicate scores.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from interlatent_live.explainer.predicate import MAX_CLAUSES, Clause, Comparison, Join, Predicate
from interlatent_live.explainer.scoring import Counts
from interlatent_live.explainer.search import Groups, Tests, search
from interlatent_live.explainer.table import Table
from interlatent_live.stream.errors import PredicateError

__all__ = ["GOOD", "TOLERANCE", "Fitted", "Quantity", "fit"]

TOLERANCE = 0.01
"""Balanced accuracy that one clause less is always worth: a rule is to be read."""

GOOD = 0.90
"""Balanced accuracy on the training frames from which on nothing but the metrics themselves is tried."""

_SAMPLE = 3000
"""Frames that are searched."""
_ROWS = 50_000
"""Frames that candidates are compared on, evenly spaced over the training frames where there are more."""
_RESAMPLES = 200
_BINS = (20, 32)
"""Bins of a metric: as many as give `_CLAUSES` clauses in all, within these."""
_CLAUSES = 2_000
_VALUES = 12
"""Values of a label that are tried for a feature: those whose share differs most between its frames and the others."""
_SEEN = 5
"""Frames of the training in which a value must stand to be tried."""
_SETS = (32, 24, 16, 12, 8, 6, 4, 2)
"""Values of a label in the sets that are tried …"""
_SET_COST = 0.0005
"""… and the balanced accuracy that one value less is worth …"""
_FOLDS = 4
"""… of episodes, among which sets are compared."""
_SET_LENGTH = 360
"""Characters of a set's values in all."""
_SLACK = 0.05
"""Standard deviations that a threshold may move to become shorter."""
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
    changes: Sequence[int] = (), actions: Sequence[str] = (), labels: Sequence[str] = (), sets: Sequence[tuple[str, int]] = (),
    more_sets: Sequence[tuple[str, int]] = (), max_clauses: int = MAX_CLAUSES,
) -> list[Fitted]:
    """A rule for each of `features` from the training frames `rows` (n,), over `metrics`, which are names of numbers, and
    over `labels`, names of labels, of which each feature is tried with the values that tell most of it; `sets`, names and lags of
    labels, with sets of such values.

    Where these do not suffice: what each was so many steps earlier (`lags`), by how much it changed over so many
    (`changes`), `actions`, names of numbers too, and `more_sets`. A feature that is active in all or in none of the frames, or that no
    rule tells better than chance, is left out.
    """
    if table.features is None:
        raise PredicateError("the table has no features to explain; give it some")
    kept = np.flatnonzero(rows & table.features.encoded)
    kept = kept[_evenly(len(kept), _ROWS)]
    plain: list[Quantity] = [(m, 0, 0) for m in metrics]
    more = plain + [(m, n, 0) for m in metrics for n in lags] + [(m, 0, n) for m in metrics for n in changes]
    more += [(m, 0, 0) for m in actions]
    data = _Data.of(table, kept, plain)
    wide: _Data | None = None
    fitted = []
    for feature in features:
        active = table.features.active(feature)[kept]
        if not 0 < np.count_nonzero(active) < len(active):
            continue
        found = _fit_one(data.labelled(table, kept, labels, sets, active), active, max_clauses)
        if (len(more) > len(plain) or more_sets) and (found is None or found.accuracy < GOOD):
            wide = _Data.of(table, kept, more) if wide is None else wide
            wider = _fit_one(wide.labelled(table, kept, labels, (*sets, *more_sets), active), active, max_clauses)
            found = wider if wider is not None and (found is None or wider.worth > found.worth) else found
        if found is not None:
            fitted.append(Fitted(int(feature), found.predicate, found.accuracy))
    return fitted


@dataclass(frozen=True, slots=True)
class _Data:
    """The training frames of all features."""

    quantities: list[Quantity]
    values: Floats
    """(q, n), NaN where undefined."""
    edges: list[Floats]
    """(q,) of rising bin edges."""
    bins: npt.NDArray[np.int8]
    """(q, n) how many edges a value is above; -1 for NaN."""
    scale: Floats
    """(q,) standard deviation."""
    groups: npt.NDArray[np.int64]
    """(n,) episode."""
    texts: tuple[str | tuple[tuple[str, ...], ...] | None, ...] = ()
    """(q,) the value that a label is compared with, 1 where it has it, or sets, the largest first, each within the one before, with in
    how many of them it is; None for a number. () for numbers alone."""

    def labelled(
        self, table: Table, kept: npt.NDArray[np.intp], labels: Sequence[str], sets: Sequence[tuple[str, int]], active: Mask
    ) -> _Data:
        """With a column for each value of a label that stands more often, or less, where the feature is active, and for sets of them."""
        found: list[tuple[Quantity, str | tuple[tuple[str, ...], ...], Floats]] = []
        for name in labels:
            column = table.labels[name]
            codes = column.codes[kept]
            known = codes >= 0
            if 2 * np.count_nonzero(known) < len(codes):
                continue
            count = np.bincount(codes[known], minlength=len(column.values))
            yes = np.bincount(codes[known & active], minlength=len(column.values))
            no = count - yes
            share = np.abs(yes / max(1, yes.sum()) - no / max(1, no.sum()))
            share[(count < _SEEN) | (count == np.count_nonzero(known))] = 0
            best = [code for code in np.argsort(-share, kind="stable")[:_VALUES].tolist() if share[code] > 0]
            found += [((name, 0, 0), column.values[code], np.where(known, (codes == code).astype(np.float64), np.nan)) for code in best]
        for name, lag in sets:
            nested, within = self._sets(table, kept, name, lag, active)
            found += [((name, lag, 0), nested, within)] if nested else []
        if not found:
            return self
        values = np.array([column for _, _, column in found])
        bins = np.where(np.isnan(values), -1, values).astype(np.int8)
        levels = [len(texts) if isinstance(texts, tuple) else 1 for _, texts, _ in found]
        return _Data(
            [*self.quantities, *(quantity for quantity, _, _ in found)], np.concatenate([self.values.reshape(-1, len(kept)), values]),
            [*self.edges, *(np.arange(n, dtype=np.float64) + 0.5 for n in levels)],
            np.concatenate([self.bins.reshape(-1, len(kept)), bins]), np.concatenate([self.scale, np.zeros(len(found))]), self.groups,
            (*(self.texts or [None] * len(self.quantities)), *(texts for _, texts, _ in found)),
        )  # fmt: skip

    def _sets(
        self, table: Table, kept: npt.NDArray[np.intp], name: str, lag: int, active: Mask
    ) -> tuple[tuple[tuple[str, ...], ...], Floats]:
        """Sets of values that stand more often where the feature is active, the largest first; (n,) in how many of those that the
        other folds gave a frame's value is, NaN where it has none."""
        label = table.labels[name]
        codes, fold = table.codes(name, lag)[kept], self.groups % _FOLDS
        known = codes >= 0
        if 2 * np.count_nonzero(known) < len(codes):
            return (), np.zeros(0)
        count = len(label.values)
        mine = _telling(codes[known], active[known], count)
        others = [_telling(codes[known & (fold != f)], active[known & (fold != f)], count) for f in range(_FOLDS)]
        sizes = [len(mine), *(size for size in _SETS if size < len(mine))] if len(mine) < _SETS[0] else list(_SETS)
        nested = [tuple(label.values[code] for code in mine[:size]) for size in sizes if size > 1]
        nested = [texts for texts in nested if sum(map(len, texts)) <= _SET_LENGTH]
        among = np.zeros((_FOLDS, count + 1))  # the last for code -1
        for texts in nested:
            for f, order in enumerate(others):
                among[f, order[: len(texts)]] += 1
        return tuple(nested), np.where(known, among[fold, codes], np.nan)

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
        count = min(max(_CLAUSES // max(1, len(columns)), _BINS[0]), _BINS[1])
        edges = [_edges(column, count) for column in values]
        bins = np.full(values.shape, -1, np.int8)
        for j, column in enumerate(values):
            known = ~np.isnan(column)
            bins[j, known] = np.searchsorted(edges[j], column[known])
        return cls(quantities, values, edges, bins, np.nanstd(values, axis=1), table.groups[kept])

    def sample(self, rows: npt.NDArray[np.int64]) -> _Data:
        """The same of fewer frames."""
        return replace(self, values=self.values[:, rows], bins=self.bins[:, rows], groups=self.groups[rows])

    def test(self, test: _Test) -> Mask:
        column, above, threshold = test
        mask: Mask = self.values[column] > threshold if above else self.values[column] <= threshold
        return mask

    def named(self, candidate: _Candidate) -> int:
        """Values in its sets."""
        tests = [test for group in candidate.groups for test in group] if self.texts else []
        return sum(len(texts) for test in tests if isinstance(texts := self.text(test), tuple))

    def text(self, test: _Test) -> str | tuple[str, ...] | None:
        """What a label is compared with; None for a number."""
        texts = self.texts[test[0]] if self.texts else None
        return texts[math.floor(test[2])] if isinstance(texts, tuple) else texts

    def holds(self, candidate: _Candidate) -> Mask:
        return _combine(candidate.join, [[self.test(t) for t in g] for g in candidate.groups])


def _combine(join: Join, groups: list[list[Mask]]) -> Mask:
    inside, between = (np.logical_and, np.logical_or) if join == "or" else (np.logical_or, np.logical_and)
    holds: Mask = between.reduce([inside.reduce(g) for g in groups])
    return holds


def _telling(codes: npt.NDArray[np.int32], active: Mask, count: int) -> npt.NDArray[np.int64]:
    """Values that stand more often where a feature is active than elsewhere, by more than chance, the most telling first."""
    yes, no = (np.bincount(codes[part], minlength=count).astype(np.float64) for part in (active, ~active))
    positives, negatives = max(1.0, yes.sum()), max(1.0, no.sum())
    gain = yes / positives - no / negatives
    error = np.sqrt(yes / positives**2 + no / negatives**2)
    order = np.argsort(-gain, kind="stable")
    found: npt.NDArray[np.int64] = order[((yes + no >= _SEEN) & (gain > error))[order]]
    return found


@dataclass(frozen=True, slots=True)
class _Chosen:
    predicate: Predicate
    accuracy: float
    worth: float
    """The accuracy less what its clauses and its uncertainty cost."""


def _fit_one(data: _Data, active: Mask, max_clauses: int) -> _Chosen | None:
    if not data.quantities:
        return None
    yes, no = np.flatnonzero(active), np.flatnonzero(~active)
    few = min(len(yes), len(no), _SAMPLE // 2)
    rows = np.sort(np.concatenate([part[_evenly(len(part), _SAMPLE - few)] for part in (yes, no)]))
    sample, target = data.sample(rows), active[rows]
    tests = Tests.of(sample.bins, [len(e) for e in data.edges])
    found = [_candidate(turned, groups, tests, data) for turned, groups in search(tests, target, size=max_clauses)]
    found += [c for f in found for c in _factored(f)]
    candidates = list(dict.fromkeys(_rounded(_polish(c, sample, target), data) for c in dict.fromkeys(found)))
    if not candidates:
        return None
    counts = Counts.of(np.stack([data.holds(c) for c in candidates], axis=1),
                       np.repeat(active[:, None], len(candidates), axis=1), data.groups)
    accuracy, draws = counts.balanced_accuracy(), counts.resampled(_RESAMPLES, seed=0)
    known = ~np.isnan(draws).any(axis=1)
    error = draws[known].std(axis=0) if known.any() else np.zeros(len(candidates))
    worth = accuracy - error - np.array([TOLERANCE * c.clauses + _SET_COST * data.named(c) for c in candidates])
    chosen = max(range(len(candidates)), key=lambda i: (round(float(worth[i]), 9), -candidates[i].clauses, str(candidates[i])))
    if accuracy[chosen] < 0.5:
        return None
    ordered = _by_worth(candidates[chosen], data, active)
    return _Chosen(_to_predicate(ordered, data), float(accuracy[chosen]), float(worth[chosen]))


def _candidate(turned: bool, groups: Groups, tests: Tests, data: _Data) -> _Candidate:
    """Turned round: what says when a feature is inactive, its tests and both its words reversed."""
    def test(number: int) -> _Test:
        column, edge, above = tests.decode(number)
        return column, above != turned, float(data.edges[column][edge])

    return _Candidate("and" if turned else "or", tuple(tuple(test(t) for t in g) for g in groups))


def _factored(candidate: _Candidate) -> list[_Candidate]:
    """`a and b or a and c` as `a and (b or c)`, where the two thresholds of a may differ, and the other way round."""
    if len(candidate.groups) != 2 or any(len(g) != 2 for g in candidate.groups):
        return []
    (one, other), turned = candidate.groups, {"or": "and", "and": "or"}
    return [
        _Candidate(turned[candidate.join], ((a,), (one[1 - i], other[1 - k])))  # type: ignore[arg-type]
        for i, a in enumerate(one) for k, b in enumerate(other) if a[:2] == b[:2]
    ]


def _evenly(count: int, limit: int) -> npt.NDArray[np.int64]:
    """At most `limit` of `count` positions, evenly spaced."""
    return np.arange(count) if count <= limit else np.linspace(0, count - 1, limit).astype(np.int64)


def _edges(values: Floats, bins: int) -> Floats:
    """Where a column may be split: between all its values if they are few, else at quantiles."""
    distinct = np.unique(values[~np.isnan(values)])
    if len(distinct) <= bins:
        return (distinct[1:] + distinct[:-1]) / 2
    edges: Floats = np.unique(np.nanquantile(values, np.linspace(0, 1, bins + 1)[1:-1]))
    return edges


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


def _to_predicate(candidate: _Candidate, data: _Data) -> Predicate:
    above: dict[bool, Comparison] = {True: ">", False: "<="}
    equal: dict[bool, Comparison] = {True: "==", False: "!="}
    among: dict[bool, Comparison] = {True: "in", False: "not in"}

    def clause(test: _Test) -> Clause:
        (name, lag, change), up, threshold = data.quantities[test[0]], test[1], test[2]
        text = data.text(test)
        if text is not None:
            return Clause(metric=name, comparison=(among if isinstance(text, tuple) else equal)[up], value=text, lag=lag)
        return Clause(metric=name, comparison=above[up], value=threshold, lag=lag, change=change)

    return Predicate(join=candidate.join, groups=tuple(tuple(clause(t) for t in g) for g in candidate.groups))
