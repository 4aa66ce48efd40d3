"""Evidence: what an explainer is shown of one feature, from training episodes only.

- Peaks: the feature's active spans, by their strongest value, ten quantiles of them, each as a short window of frames.
- Contrast: windows in which the feature is inactive; half at random, half nearest to the peaks in metric space (each
  metric divided by its standard deviation), since it is the near misses that a wrong explanation gets wrong.
- Profile: density, when in the episode it is active, which actions go with it, how each metric differs.
- Of a language model: the text of each window, with the activation at each token from 0 to 10.

Values keep four significant digits, unknown is null, keys have one order: equal data gives equal JSON and equal hash on
every machine. Windows show the metrics that differ most and those named in `always`; 20 windows of 7 frames and 6
metrics are about 16 kB of JSON. Pure; about 30 ms a feature at 10,000 frames of 44 metrics, most of it near misses.
"""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from interlatent_live.explainer.labelled import TOKEN
from interlatent_live.explainer.table import Table
from interlatent_live.stream.errors import PredicateError

__all__ = ["ActionShare", "Correlate", "Difference", "Evidence", "Window", "gather"]

Mask = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]

QUANTILES = 10
LEVELS = 10
"""Steps in which the activation at a token is told."""
_TOKENS_BEFORE, _TOKENS_AFTER = 12, 4
"""Of a window of text: it takes more of it to be understood."""
_PHASES = 10
_DIFFERENCES = 12
_SEARCH = 20_000
"""Inactive frames among which near misses are looked for, evenly spaced where there are more."""


@dataclass(frozen=True, slots=True)
class Window:
    """A few consecutive frames of one episode."""

    kind: str
    """'peak', 'random' or 'near'."""
    env: int
    episode: int
    step: int
    """Step within the episode of the frame at which the window is centred."""
    quantile: int | None
    """For a peak: 0 (weakest tenth of the spans) to 9 (strongest)."""
    offsets: tuple[int, ...]
    """Steps relative to the centre."""
    feature: tuple[float | None, ...]
    """The feature's activation, None where it was not encoded."""
    values: dict[str, tuple[float | None, ...]]
    """Metrics, action, reward and done, frame by frame."""
    tokens: tuple[tuple[str | None, int | None], ...] | None = None
    """Of a language model: each token's text, and the feature's activation as a whole number from 0 to 10, its largest among the
    training frames."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One metric where the feature is active and where it is not."""

    metric: str
    unit: str
    active_mean: float | None
    inactive_mean: float | None
    effect: float | None
    """Difference of the means in standard deviations of all frames."""


@dataclass(frozen=True, slots=True)
class ActionShare:
    """One action where the feature is active and where it is not: fraction of frames, or mean of a component."""

    action: str
    active: float | None
    inactive: float | None


@dataclass(frozen=True, slots=True)
class Correlate:
    """A correlation that the analyzer found, handed in."""

    metric: str
    r: float | None
    low: float | None
    high: float | None
    lag: int = 0


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that is shown of one feature."""

    feature: int
    frames: int
    """Encoded training frames."""
    episodes: int
    density: float | None
    """Fraction of them in which the feature is active."""
    spans: int
    """Contiguous spans in which it is active."""
    span_steps: float | None
    """Median length of a span, in steps."""
    phase: tuple[float | None, ...]
    """Density in each tenth of the episode, complete episodes only."""
    differences: tuple[Difference, ...]
    """The 12 metrics with the largest effect, the largest first."""
    actions: tuple[ActionShare, ...]
    peaks: tuple[Window, ...]
    contrasts: tuple[Window, ...]
    correlations: tuple[Correlate, ...] = field(default=())

    def to_json(self) -> str:
        """Canonical JSON."""
        data = asdict(self)
        for window in (*data["peaks"], *data["contrasts"]):
            if window["tokens"] is None:  # an agent's frames have no text
                del window["tokens"]
        return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)

    @property
    def hash(self) -> str:
        """First 16 hex digits of the SHA-256 of the canonical JSON."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]


def gather(
    feature: int, table: Table, rows: Mask, *, metrics: Sequence[str], actions: Sequence[str] = ("action",),
    action_names: Sequence[str] = (), always: Sequence[str] = (), shown: int = 6, contrasts: int = 10,
    before: int = 4, after: int = 2, correlations: Sequence[Correlate] = (),
) -> Evidence:
    """Evidence for one feature from the training frames `rows` (n,).

    `metrics`: the numbers to describe it by. `actions`: the table's action columns; one column with `action_names` is a
    discrete choice. `always`: metrics that windows show whatever their effect. Windows go from `before` steps before
    their centre to `after` steps after it, within the episode.
    """
    if table.features is None:
        raise PredicateError("the table has no features to gather evidence on; give it some")
    usable = rows & table.features.encoded
    frames = _Frames.of(feature, table, usable)
    differences = _differences(frames, table, metrics)
    ranked = [d.metric for d in differences]
    chosen = dict.fromkeys([*always, *ranked[:shown]])
    columns = {m: table.number(m) for m in chosen}
    columns |= {n: table.numbers[n] for n in (*actions, "reward", "terminated", "truncated") if n in table.numbers}
    before, after = (_TOKENS_BEFORE, _TOKENS_AFTER) if TOKEN in table.labels else (before, after)
    picture = _Picture(table, feature, columns, np.arange(-before, after + 1), float(np.abs(frames.values).max(initial=0.0)))
    centres, ranks = _peaks(frames)
    seed = zlib.crc32(f"{feature}/{len(frames.order)}".encode())
    near = _near(frames, table, ranked, centres, contrasts // 2, before + after)
    random = _random(frames, near, contrasts - len(near), seed)
    density = float(frames.active.mean()) if len(frames.active) else math.nan
    return Evidence(
        feature=feature, frames=len(frames.order), episodes=len(np.unique(table.groups[usable])),
        density=_short(density), spans=len(frames.first),
        span_steps=_short(float(np.median(frames.last - frames.first + 1))) if len(frames.first) else None,
        phase=_phase(frames, table), differences=tuple(differences[:_DIFFERENCES]),
        actions=_actions(frames, table, actions, action_names),
        peaks=tuple(picture.window("peak", int(c), int(q)) for c, q in zip(centres, ranks, strict=True)),
        contrasts=tuple(picture.window(k, int(c)) for k, cs in (("near", near), ("random", random)) for c in cs),
        correlations=tuple(
            Correlate(c.metric, _short(c.r), _short(c.low), _short(c.high), c.lag) for c in correlations),
    )


@dataclass(frozen=True, slots=True)
class _Frames:
    """The usable frames in the order of time within episodes; `order` gives their rows in the table."""

    order: Rows
    values: Floats
    active: Mask
    first: Rows
    """Where spans begin …"""
    last: Rows
    """… and where they end, inclusive, as positions in `order`."""

    @classmethod
    def of(cls, feature: int, table: Table, usable: Mask) -> _Frames:
        rows = np.flatnonzero(usable)
        order = rows[np.lexsort((table.episode_step[rows], table.groups[rows]))]
        assert table.features is not None
        values = table.features.values(feature)[order].astype(np.float64)
        active = values != 0
        step, group = table.episode_step[order], table.groups[order]
        joined = (np.diff(step) == 1) & (np.diff(group) == 0)
        before = np.concatenate(([False], active[:-1] & joined)) if len(order) else active
        following = np.concatenate((active[1:] & joined, [False])) if len(order) else active
        return cls(order, values, active, np.flatnonzero(active & ~before), np.flatnonzero(active & ~following))


def _peaks(frames: _Frames) -> tuple[Rows, Rows]:
    """Rows of the strongest frame of up to ten spans, and the tenth of the spans by strength that each is the top of."""
    if not len(frames.first):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    strength = np.abs(frames.values)  # a neuron's activity has two signs
    span = np.zeros(len(strength), np.int64)
    span[frames.first] = 1
    span = np.cumsum(span) - 1
    best = np.lexsort((np.arange(len(strength)), -strength, span))
    best = best[frames.active[best]]
    starts = np.flatnonzero(np.diff(span[best], prepend=-1))
    at = best[starts]  # position of each span's strongest frame, the earliest of equals
    ranked = at[np.argsort(strength[at], kind="stable")]
    tops = {int(np.ceil((q + 1) * len(ranked) / QUANTILES)) - 1: q for q in range(QUANTILES)}
    places = sorted(tops, reverse=True)
    return frames.order[ranked[places]], np.array([tops[p] for p in places])


def _near(
    frames: _Frames, table: Table, metrics: Sequence[str], centres: Rows, count: int, gap: int
) -> list[int]:
    """Rows of inactive frames nearest to the peaks in metric space, none within `gap` steps of activity or each other."""
    quiet = frames.order[_quiet(frames, table, gap)]
    if not len(centres) or not len(quiet) or not metrics or count <= 0:
        return []
    if len(quiet) > _SEARCH:
        quiet = quiet[np.linspace(0, len(quiet) - 1, _SEARCH).astype(np.int64)]
    columns = np.stack([table.number(m).astype(np.float64) for m in metrics], axis=1)
    scale = np.array([_spread(c) for c in columns[frames.order].T])
    scale[~(scale > 0)] = np.inf  # a constant tells nothing
    points, targets = (np.nan_to_num(columns[r] / scale) for r in (quiet, centres))
    distance = np.min([((points - t) ** 2).sum(axis=1) for t in targets], axis=0)
    picked: list[int] = []
    for row in quiet[np.argsort(distance, kind="stable")]:
        same = [p for p in picked if table.groups[p] == table.groups[row]]
        if all(abs(int(table.episode_step[p] - table.episode_step[row])) > gap for p in same):
            picked.append(int(row))
        if len(picked) == count:
            break
    return picked


def _random(frames: _Frames, taken: Sequence[int], count: int, seed: int) -> list[int]:
    quiet = np.setdiff1d(frames.order[~frames.active], np.asarray(taken, np.int64))
    rng = np.random.default_rng(seed)
    return sorted(int(r) for r in rng.choice(quiet, min(count, len(quiet)), replace=False))


def _quiet(frames: _Frames, table: Table, gap: int) -> Mask:
    """(frames,) at least `gap` steps from any activity of the same episode."""
    step, group = table.episode_step[frames.order], table.groups[frames.order]
    far = np.iinfo(np.int64).max // 4
    key = step + group * (int(step.max(initial=0)) + gap + 1)  # episodes lie more than `gap` apart on one line
    busy = key[frames.active]
    if not len(busy):
        return np.ones(len(key), np.bool_)
    at = np.searchsorted(busy, key)
    after = np.where(at < len(busy), busy[np.minimum(at, len(busy) - 1)] - key, far)
    before = np.where(at > 0, key - busy[np.maximum(at - 1, 0)], far)
    quiet: Mask = (np.minimum(after, before) >= gap) & ~frames.active
    return quiet


class _Picture:
    """Cuts windows out of a table."""

    def __init__(self, table: Table, feature: int, columns: dict[str, Any], offsets: Rows, largest: float) -> None:
        self._table, self._columns, self._offsets, self._largest = table, columns, offsets, largest
        self._feature = table.number(f"f{feature}")
        order = np.lexsort((table.episode_step, table.groups))
        self._rows = order
        self._place = np.empty(len(order), np.int64)
        self._place[order] = np.arange(len(order))

    def window(self, kind: str, centre: int, quantile: int | None = None) -> Window:
        table = self._table
        step = int(table.episode_step[centre])
        around = self._place[centre] + self._offsets
        rows = self._rows[around[(around >= 0) & (around < len(self._rows))]]
        rows = rows[table.groups[rows] == table.groups[centre]]
        offsets = table.episode_step[rows] - step
        kept = (offsets >= self._offsets[0]) & (offsets <= self._offsets[-1])  # a gap must not stretch the window
        rows, offsets = rows[kept], offsets[kept]
        return Window(
            kind=kind, env=int(table.env[centre]), episode=int(table.episode[centre]), step=step, quantile=quantile,
            offsets=tuple(int(o) for o in offsets), feature=tuple(_short(v) for v in self._feature[rows]),
            values={n: tuple(_short(v) for v in c[rows]) for n, c in self._columns.items()}, tokens=self._tokens(rows),
        )

    def _tokens(self, rows: Rows) -> tuple[tuple[str | None, int | None], ...] | None:
        column = self._table.labels.get(TOKEN)
        if column is None:
            return None
        found: list[tuple[str | None, int | None]] = []
        for code, value in zip(column.codes[rows].tolist(), self._feature[rows].tolist(), strict=True):
            level = None if math.isnan(value) else round(LEVELS * abs(value) / self._largest) if self._largest else 0
            found.append((column.values[code] if code >= 0 else None, level if level is None else min(LEVELS, level)))
        return tuple(found)


def _phase(frames: _Frames, table: Table) -> tuple[float | None, ...]:
    position = table.episode_step[frames.order] / table.number("episode_length")[frames.order]
    known = ~np.isnan(position)
    tenth = np.minimum((position[known] * _PHASES).astype(np.int64), _PHASES - 1)
    count = np.bincount(tenth, minlength=_PHASES)
    active = np.bincount(tenth, weights=frames.active[known].astype(np.float64), minlength=_PHASES)
    return tuple(_short(a / c) if c else None for a, c in zip(active, count, strict=True))


def _differences(frames: _Frames, table: Table, metrics: Sequence[str]) -> list[Difference]:
    out = []
    for name in metrics:
        values = table.number(name)[frames.order].astype(np.float64)
        yes, no, spread = _mean(values[frames.active]), _mean(values[~frames.active]), _spread(values)
        effect = (yes - no) / spread if spread > 0 else math.nan
        out.append(Difference(name, table.vocabulary.unit(name), _short(yes), _short(no), _short(effect)))
    return sorted(out, key=lambda d: (-abs(d.effect or 0.0), d.metric))


def _actions(
    frames: _Frames, table: Table, actions: Sequence[str], names: Sequence[str]
) -> tuple[ActionShare, ...]:
    columns = [a for a in actions if a in table.numbers]
    out = []
    for i, column in enumerate(columns):
        values = table.numbers[column][frames.order].astype(np.float64)
        if len(columns) == 1 and column == "action":
            for choice in np.unique(values[~np.isnan(values)]):
                name = names[int(choice)] if 0 <= choice < len(names) else f"{choice:g}"
                taken = np.where(np.isnan(values), np.nan, values == choice)
                out.append(ActionShare(name, _short(_mean(taken[frames.active])), _short(_mean(taken[~frames.active]))))
        else:
            name = names[i] if i < len(names) else column
            out.append(ActionShare(name, _short(_mean(values[frames.active])), _short(_mean(values[~frames.active]))))
    return tuple(out)


def _mean(values: Floats) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan


def _spread(values: Floats) -> float:
    known = values[~np.isnan(values)]
    return float(known.std()) if len(known) else math.nan


def _short(value: float | None) -> float | None:
    """Four significant digits; None for what is not finite."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{float(value):.4g}") + 0.0
