"""A table: frames as named columns, with what a predicate may ask of them.

Numbers are float64 (float32 stays), NaN where unknown; labels are text, None where unknown. Rows may come in any order
and from several environments and processes; an episode is one (boot, env, episode). Derived on first use and kept:

- episode attributes (`ATTRIBUTES`), of which what cannot be known yet is NaN: an episode still running has no end;
- features as `f41`, made dense one at a time from a sparse matrix, NaN in rows that were not encoded (missing, not
  inactive);
- the order that a lag follows: the row `n` steps earlier of the same episode. A lag that reaches before the episode's
  first frame, or over a missing frame, is undefined.

A million rows of ten columns are 80 MB; features stay sparse.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from interlatent_live.stream.errors import PredicateError, UnknownName
from interlatent_live.stream.manifest import Manifest

__all__ = ["ATTRIBUTES", "Features", "Labels", "Table", "Vocabulary", "feature_number"]

Numbers = npt.NDArray[np.float64] | npt.NDArray[np.float32]

ATTRIBUTES: Mapping[str, str] = {
    "episode": "number of the episode in its environment, from 0",
    "episode_step": "step within the episode, from 0",
    "steps_to_end": "steps until the episode's last frame, which has 0; undefined while it runs",
    "episode_length": "steps of the episode; undefined while it runs or where its beginning is missing",
    "episode_return": "sum of the episode's rewards; undefined while it runs or where frames or rewards are missing",
    "episode_terminated": "1 where the episode ended by itself, 0 where it was cut off; undefined while it runs",
}
"""What can be asked of every frame that has episodes."""

_FEATURE = re.compile(r"f(0|[1-9][0-9]{0,8})")


def feature_number(name: str) -> int | None:
    """41 for 'f41', None for anything else."""
    match = _FEATURE.fullmatch(name)
    return None if match is None else int(match[1])


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The names that may stand in a predicate, with their units."""

    units: Mapping[str, str]
    """Numbers: metrics, rewards, actions. Name to unit, '' for a pure number."""
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Labels: name to the values that occur; () for any."""
    features: int = 0
    """Number of features, `f0` to `f<features - 1>`."""
    attributes: tuple[str, ...] = tuple(ATTRIBUTES)
    steady: frozenset[str] = frozenset()
    """Labels that are said of a whole episode: they have no lag."""

    @classmethod
    def of(
        cls, manifest: Manifest, features: int = 0, labels: Mapping[str, tuple[str, ...]] | None = None
    ) -> Vocabulary:
        """The names that frames of a stream have."""
        units = {m.name: m.unit for m in manifest.metrics} | {name: "" for name in _action_names(manifest)}
        return cls(units | {"reward": "", "terminated": "", "truncated": ""}, labels or {}, features)

    def kind(self, name: str) -> str:
        """'number', 'label', 'attribute' or 'feature'; UnknownName with close names otherwise.

        A metric comes before an attribute or a feature of its name.
        """
        if name in self.units:
            return "number"
        if name in self.labels:
            return "label"
        if name in self.attributes:
            return "attribute"
        number = feature_number(name)
        if number is not None and number < self.features:
            return "feature"
        if number is not None and self.features:
            raise UnknownName(f"there is no feature {name}; features go from f0 to f{self.features - 1}")
        names = [*self.units, *self.labels, *self.attributes]
        close = self.close(name)
        help_ = f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(names[:12])}" + (
            f" and {len(names) - 12} more" if len(names) > 12 else "")
        raise UnknownName(f"unknown name {name!r}; {help_}", close=close)

    def close(self, name: str) -> tuple[str, ...]:
        """Up to three known names that resemble `name`, the closest first."""
        known = {n.lower(): n for n in (*self.attributes, *self.labels, *self.units)}
        return tuple(known[n] for n in difflib.get_close_matches(name.lower(), list(known), n=3, cutoff=0.6))

    def unit(self, name: str) -> str:
        """The unit of a number, '' where it has none."""
        return self.units.get(name, "steps" if name in ("steps_to_end", "episode_length") else "")


@dataclass(frozen=True, slots=True, eq=False)
class Labels:
    """A text column: `values[codes]`, with code -1 where unknown."""

    codes: npt.NDArray[np.int32]
    """(n,) index into `values`."""
    values: tuple[str, ...]
    steady: bool = False
    """Whether it is said of a whole episode."""

    def among(self, codes: npt.NDArray[np.int32], texts: Sequence[str]) -> npt.NDArray[np.bool_]:
        """(n,) which of these `codes` are of one of `texts`."""
        asked = set(texts)
        wanted = np.array([*(value in asked for value in self.values), False])  # the last for code -1
        found: npt.NDArray[np.bool_] = wanted[codes]
        return found

    @classmethod
    def of(cls, texts: Iterable[str | None]) -> Labels:
        """From one text per row."""
        texts = list(texts)
        values = tuple(sorted({t for t in texts if t is not None}))
        index: dict[str | None, int] = {v: i for i, v in enumerate(values)} | {None: -1}
        return cls(np.array([index[t] for t in texts], np.int32), values)


class Features:
    """Activations of features as a (rows, features) matrix, dense or scipy.sparse, with the rows that were encoded."""

    def __init__(self, matrix: Any, encoded: npt.NDArray[np.bool_] | None = None) -> None:
        from scipy.sparse import csc_array, issparse

        self._matrix: Any = csc_array(matrix) if issparse(matrix) else np.asarray(matrix)
        self.shape: tuple[int, int] = self._matrix.shape
        """(rows, features)."""
        self.encoded = np.ones(self.shape[0], np.bool_) if encoded is None else np.asarray(encoded, np.bool_)
        """(rows,) False where the agent ran no forward pass or an activation was not finite: missing, not inactive."""
        if len(self.encoded) != self.shape[0]:
            raise PredicateError(f"features have {self.shape[0]} rows, but `encoded` has {len(self.encoded)}")
        self._sparse = issparse(matrix)

    def values(self, feature: int) -> npt.NDArray[np.float32]:
        """(rows,) activation of one feature, 0 where inactive; rows that were not encoded hold 0, see `encoded`."""
        if not self._sparse:
            dense: npt.NDArray[np.float32] = self._matrix[:, feature].astype(np.float32)
            return dense
        out = np.zeros(self.shape[0], np.float32)
        start, end = self._matrix.indptr[feature], self._matrix.indptr[feature + 1]
        out[self._matrix.indices[start:end]] = self._matrix.data[start:end]
        return out

    def active(self, feature: int) -> npt.NDArray[np.bool_]:
        """(rows,) where one feature is active."""
        active: npt.NDArray[np.bool_] = self.values(feature) != 0
        return active

    def counts(self, rows: npt.NDArray[np.bool_] | None = None) -> npt.NDArray[np.int64]:
        """(features,) in how many of the `rows` each is active; every row by default."""
        if rows is None:
            rows = np.ones(self.shape[0], np.bool_)
        if self._sparse:
            live = rows[self._matrix.indices] & (self._matrix.data != 0)
            total = np.concatenate(([0], np.cumsum(live)))
            counts: npt.NDArray[Any] = total[self._matrix.indptr[1:]] - total[self._matrix.indptr[:-1]]
            return counts.astype(np.int64)
        dense: npt.NDArray[np.int64] = np.count_nonzero(self._matrix[rows], axis=0)
        return dense

    def counts_by(self, groups: npt.NDArray[np.int64], count: int, rows: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
        """(count, features) in how many of the `rows` of each group, numbered by `groups` (rows,), each is active."""
        features = self.shape[1]
        if self._sparse:
            row, feature = self._matrix.indices, np.repeat(np.arange(features), np.diff(self._matrix.indptr))
            kept = rows[row] & (self._matrix.data != 0)
            row, feature = row[kept], feature[kept]
        else:
            row, feature = np.nonzero((self._matrix != 0) & rows[:, None])
        found: npt.NDArray[np.int64] = np.bincount(groups[row] * features + feature, minlength=count * features)
        return found.reshape(count, features)


class Table:
    """Frames as named columns."""

    def __init__(
        self,
        numbers: Mapping[str, npt.ArrayLike],
        *,
        env: npt.ArrayLike | None = None,
        episode: npt.ArrayLike | None = None,
        episode_step: npt.ArrayLike | None = None,
        boot: npt.ArrayLike | None = None,
        labels: Mapping[str, Labels] | None = None,
        units: Mapping[str, str] | None = None,
        features: Features | None = None,
    ) -> None:
        """`numbers`: name to (n,). Without `episode` all rows are one episode, in order; without `episode_step` rows of
        an episode are consecutive steps from 0, in order. `reward`, `terminated` and `truncated` feed the attributes.
        """
        self.numbers = {name: _numbers(values) for name, values in numbers.items()}
        self.labels = dict(labels or {})
        self.features = features
        self._units = dict(units or {})
        lengths = {len(v) for v in self.numbers.values()} | {len(v.codes) for v in self.labels.values()}
        lengths |= {features.shape[0]} if features is not None else set()
        if len(lengths) != 1:
            raise PredicateError(f"columns of a table have lengths {sorted(lengths)}; they must be one length")
        self.rows: int = lengths.pop()
        self.env = _whole(env, self.rows)
        self.episode = _whole(episode, self.rows)
        self.boot = _whole(boot, self.rows)
        self._step = None if episode_step is None else _whole(episode_step, self.rows)

    @classmethod
    def of(
        cls, columns: Mapping[str, npt.NDArray[Any]], manifest: Manifest, *, features: Features | None = None,
        boot: npt.ArrayLike | None = None, labels: Mapping[str, Labels] | None = None,
    ) -> Table:
        """From the row columns of frame batches, concatenated (names as in `stream.frames`), and their manifest."""
        numbers: dict[str, npt.ArrayLike] = {}
        metrics = columns.get("metrics")
        if metrics is not None:
            numbers |= {m.name: metrics[:, i] for i, m in enumerate(manifest.metrics)}
        action = columns.get("action")
        if action is not None:
            parts = action.reshape(len(action), -1)
            numbers |= {n: parts[:, i] for i, n in enumerate(_action_names(manifest)[: parts.shape[1]])}
        numbers |= {n: columns[n] for n in ("reward", "terminated", "truncated") if n in columns}
        return cls(
            numbers, env=columns["env"], episode=columns["episode"], episode_step=columns["episode_step"], boot=boot,
            labels=labels, units={m.name: m.unit for m in manifest.metrics}, features=features,
        )

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The names that a predicate over this table may use."""
        units = {name: self._units.get(name, "") for name in self.numbers}
        count = 0 if self.features is None else self.features.shape[1]
        steady = frozenset(name for name, label in self.labels.items() if label.steady)
        return Vocabulary(units, {name: label.values for name, label in self.labels.items()}, count, steady=steady)

    @cached_property
    def groups(self) -> npt.NDArray[np.int64]:
        """(n,) index of each row's episode, numbered from 0 in the order in which episodes first appear."""
        key = np.zeros(self.rows, np.int64)
        for column in (self.boot, self.env, self.episode):  # renumbered after each, so that no product overflows
            low = int(column.min(initial=0))
            key = key * (int(column.max(initial=0)) - low + 1) + (column - low)
            first = np.flatnonzero(np.diff(key, prepend=key[:1] - 1))  # runs of equal keys: few unless rows interleave
            _, where, inverse = np.unique(key[first], return_index=True, return_inverse=True)
            key = np.repeat(inverse, np.diff(np.append(first, self.rows)))
        rank = np.empty(len(where), np.int64)
        rank[np.argsort(where)] = np.arange(len(where))
        return rank[key]

    @cached_property
    def episodes(self) -> int:
        """Number of episodes that have a row."""
        return int(self.groups.max(initial=-1)) + 1

    @cached_property
    def _order(self) -> npt.NDArray[np.int64] | None:
        """(n,) rows sorted by episode and step; None where they are so already."""
        groups = self.groups
        narrow = groups.astype(np.uint16) if self.episodes <= 1 << 16 else groups  # sorted by radix, ten times faster
        order = None if (np.diff(groups) >= 0).all() else np.argsort(narrow, kind="stable")
        if self._step is None:
            return order
        step, group = (self._step, groups) if order is None else (self._step[order], groups[order])
        in_time = bool(((np.diff(step) > 0) | (np.diff(group) > 0)).all())
        return order if in_time else np.lexsort((self._step, groups))

    @cached_property
    def _run(self) -> npt.NDArray[np.int32]:
        """(n,) in sorted order: how many consecutive earlier frames of the episode there are."""
        groups, step = self._sorted(self.groups), None if self._step is None else self._sorted(self._step)
        begin = np.ones(self.rows, np.bool_)
        begin[1:] = np.diff(groups) != 0
        if step is not None:
            begin[1:] |= np.diff(step) != 1
        index = np.arange(self.rows, dtype=np.int32)
        return index - np.maximum.accumulate(np.where(begin, index, np.int32(0)))

    def _sorted(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return values if self._order is None else values[self._order]

    def _unsorted(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        if self._order is None:
            return values
        out = np.empty_like(values)
        out[self._order] = values
        return out

    @cached_property
    def episode_step(self) -> npt.NDArray[np.int64]:
        """(n,) step within the episode."""
        return self._unsorted(self._run.astype(np.int64)) if self._step is None else self._step

    def number(self, name: str) -> Numbers:
        """(n,) a metric, attribute or feature; NaN where unknown. Do not write into it."""
        kind = self.vocabulary.kind(name)
        if kind == "number":
            return self.numbers[name]
        if kind == "attribute":
            return self._attribute(name)
        if kind == "label" or self.features is None:
            raise PredicateError(f"{name!r} is a label, not a number")
        values = self.features.values(int(name[1:]))
        values[~self.features.encoded] = np.nan
        return values

    def lagged(self, name: str, steps: int) -> Numbers:
        """(n,) what the number was `steps` steps earlier in the episode; NaN where that is not known."""
        values = self._sorted(self.number(name))
        out = np.full_like(values, np.nan)
        if 0 < steps < self.rows:
            np.copyto(out[steps:], values[:-steps], where=self._run[steps:] >= steps)
        elif steps == 0:
            out[:] = values
        unsorted: Numbers = self._unsorted(out)
        return unsorted

    def codes(self, name: str, steps: int = 0) -> npt.NDArray[np.int32]:
        """(n,) a label's codes `steps` steps earlier in the episode; -1 where that is not known."""
        now = self.labels[name].codes
        if not steps:
            return now
        values = self._sorted(now)
        out = np.full_like(values, -1)
        if steps < self.rows:
            np.copyto(out[steps:], values[:-steps], where=self._run[steps:] >= steps)
        return self._unsorted(out)

    def _attribute(self, name: str) -> Numbers:
        if name == "episode":
            return self.episode.astype(np.float64)
        if name == "episode_step":
            return self.episode_step.astype(np.float64)
        per_episode = self._ends
        if name == "steps_to_end":
            return per_episode["last"][self.groups] - self.episode_step
        return per_episode[name][self.groups]

    @cached_property
    def _ends(self) -> dict[str, npt.NDArray[np.float64]]:
        """(episodes,) the attributes that need the episode's end; 'last' is the step of its last frame."""
        groups, n = self.groups, self.episodes
        never = np.zeros(self.rows)
        terminated = self.numbers.get("terminated", never) > 0
        truncated = self.numbers.get("truncated", never) > 0
        end, died, last = np.zeros(n, np.bool_), np.zeros(n, np.bool_), np.full(n, -1.0)
        end[groups[terminated | truncated]] = True
        died[groups[terminated]] = True
        np.maximum.at(last, groups, self.episode_step.astype(np.float64))
        first = np.full(n, np.inf)
        np.minimum.at(first, groups, self.episode_step.astype(np.float64))
        whole = end & (first == 0) & (np.bincount(groups, minlength=n) == last + 1)
        reward = self.numbers.get("reward", np.full(self.rows, np.nan)).astype(np.float64)
        unknown = np.nan
        return {
            "last": np.where(end, last, unknown),
            "episode_length": np.where(end & (first == 0), last + 1, unknown),
            "episode_return": np.where(whole, np.bincount(groups, weights=reward, minlength=n), unknown),
            "episode_terminated": np.where(end, died, unknown),
        }


def _numbers(values: npt.ArrayLike) -> Numbers:
    array = np.asarray(values)
    if array.ndim != 1:
        raise PredicateError(f"a column of a table has shape {array.shape}; it must have one dimension")
    kept: Numbers = array if array.dtype == np.float32 else np.ascontiguousarray(array, np.float64)
    return kept


def _whole(values: npt.ArrayLike | None, rows: int) -> npt.NDArray[np.int64]:
    array = np.zeros(rows, np.int64) if values is None else np.asarray(values, np.int64)
    if array.shape != (rows,):
        raise PredicateError(f"a column of the table's keys has shape {array.shape}, but the table has {rows} rows")
    return array


def _action_names(manifest: Manifest) -> list[str]:
    spec = manifest.action
    size = int(np.prod(spec.shape)) if spec.shape else 1
    return ["action"] if spec.kind == "discrete" and size == 1 else [f"action[{i}]" for i in range(size)]
