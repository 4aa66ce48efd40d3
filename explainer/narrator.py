"""Narration: one line when something worth saying happens, from what the frames and the scored explanations say.

Pure: fed with pieces of frames in order, asked for a line; every time is frame time, so the same frames, explanations
and alarms give the same lines. One environment is followed. Each half second, in this order:

1. an alarm of drift; an episode that ended;
2. a change of regime: the densities of the last two seconds against those of the two before, by cosine distance, beyond
   what is usual for this stream (mean + 3 standard deviations of earlier distances, and 0.3);
3. a surprise: a feature three times as active in the last second as usual (or a third, for one that is usually on), the
   one with the largest divergence KL(share of this second || usual density); it surprises once in 20 s;
4. nothing for 10 s: how things stand.

Lines are at least `GAP_S` apart; what happens between them is not kept for later. A feature is spoken of in words where
its score reaches `NARRATED` and is not stale, and the line says in how many of the frames its rule held just now; any
other by its statistics only. While the stream is outside the dictionary's card nothing is said of features.
About 60 µs a batch, 2 ms a half second at 512 features.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from interlatent_live.explainer.explaining import Current, askable
from interlatent_live.explainer.source import Frames, Piece, Subject, gather
from interlatent_live.explainer.wording import Words, spoken

__all__ = ["GAP_S", "Line", "Mention", "Narrator"]

GAP_S: Final = 4.0
"""Seconds of frame time between lines at least."""
_TICK_S: Final = 0.5
_RECENT_S: Final = 1.0
_REGIME_S: Final = 2.0
_AGAIN_S: Final = 20.0
_QUIET_S: Final = 10.0
_WARM_S: Final = 10.0
"""Frame time after which densities count as usual where no explanation came with one."""
_PRIOR: Final = 500.0
"""Frames that a density which came with an explanation counts for."""
_FRAMES: Final = 4_000
"""Frames looked back at most, whatever their rate."""
_MENTIONS: Final = 3
_HOLDS: Final = 0.5
"""Share of a feature's active frames in which its rule must hold just now for the label to be said."""
_SPOKEN: Final = 2
"""Of these, so many stand in the text as well."""
_TELLING: Final = 0.2
"""Share of the last second in which a feature must be active to tell something of it."""
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Mention:
    """One feature in a line."""

    feature: int
    name: str
    """'f41', or 'n41' for a neuron."""
    label: str | None
    """None where it may not be spoken of in words."""
    explanation: int | None
    """Id of the explanation."""
    score: float | None
    """Balanced accuracy on frames that the explanation has not seen."""
    low: float | None
    high: float | None
    share: float
    """Fraction of the last second's frames in which it is active."""
    usual: float | None
    """Fraction of all frames."""
    holds: float | None
    """Fraction of those frames of the last second in which it is active and its rule holds."""
    kind: str = "predicate"
    """Of the score: 'predicate' or 'detection'."""
    effect: str | None = None
    """What changing it does, where that was measured: see explainer.causes."""


@dataclass(frozen=True, slots=True)
class Line:
    """Something worth saying, and its moment."""

    kind: str
    """'begin', 'surprise', 'regime', 'episode', 'drift' or 'steady'."""
    boot: str
    env: int
    seq: int
    """Frame of the moment; frames [first_seq, next_seq) are what the line is about."""
    first_seq: int
    next_seq: int
    time_s: float
    """Since the boot began, on the agent's clock."""
    wall_ns: int
    episode: int
    episode_step: int
    text: str
    action: str
    """What the agent does, in words; '' where that is not known."""
    features: tuple[Mention, ...]


class Narrator:
    """Follows one environment of one subject."""

    def __init__(self, subject: Subject, env: int = 0, effects: Mapping[int, str] | None = None) -> None:
        """`effects`: feature to what changing it does, in words."""
        self.subject, self.env = subject, env
        self._effects = effects or {}
        n = subject.dictionary.features
        self._pieces: deque[tuple[Piece, npt.NDArray[np.int64]]] = deque()
        self._active, self._frames = np.zeros(n), 0.0
        self._prior, self._weight = np.zeros(n), np.zeros(n)
        self._current: Mapping[int, Current] = {}
        self._names: Mapping[int, str] = {}
        self._withheld = ""
        self._began_s: float | None = None
        self._ticked_s = self._told_s = -math.inf
        self._named: dict[int, float] = {}
        self._distances: deque[float] = deque(maxlen=240)
        self._alarms: deque[str] = deque(maxlen=4)
        self._ended: tuple[int, int, bool, float | None, int] | None = None
        self._return: float | None = None
        self._episode = -1
        self._boot = ""

    @property
    def _called(self) -> Words:
        return Words.of(self.subject.language)

    def learn(self, current: Mapping[int, Current], withheld: str = "", names: Mapping[int, str] | None = None) -> None:
        """What explanations there are. `withheld`: why nothing may be said of features now, '' where it may.
        `names`: what people call features; they stand in for labels.
        """
        self._current, self._withheld, self._names = current, withheld, names or {}
        for feature, explanation in current.items():
            if explanation.held_out is not None and not self._weight[feature] and math.isfinite(explanation.held_out.base_rate):
                self._weight[feature] = _PRIOR
                self._prior[feature] = explanation.held_out.base_rate * _PRIOR

    def alarm(self, text: str) -> None:
        """Something that the next line must say."""
        self._alarms.append(text)

    def feed(self, piece: Piece) -> Line | None:
        """Take in a batch; a line, where there is something to say."""
        mine = np.flatnonzero(piece.columns["env"] == self.env)
        if not len(mine):
            return None
        if piece.boot != self._boot:
            self._boot, self._began_s, self._told_s, self._ticked_s = piece.boot, None, -math.inf, -math.inf
            self._pieces.clear()
        self._count(piece, mine)
        self._note_episode(piece, mine)
        self._pieces.append((piece, mine))
        now = float(piece.t[mine[-1]])
        self._began_s = float(piece.t[mine[0]]) if self._began_s is None else self._began_s
        while len(self._pieces) > 1 and (now - self._pieces[0][0].t[-1] > 2 * _REGIME_S or self._looked_back() > _FRAMES):
            self._pieces.popleft()
        if now - self._ticked_s < _TICK_S:
            return None
        self._ticked_s = now
        return self._tick(now, piece, int(mine[-1]))

    def _looked_back(self) -> int:
        return sum(len(m) for _, m in self._pieces)

    def _count(self, piece: Piece, mine: npt.NDArray[np.int64]) -> None:
        self._active += np.bincount(piece.codes.indices, minlength=len(self._active))
        self._frames += float(np.count_nonzero(piece.encoded))

    def _note_episode(self, piece: Piece, mine: npt.NDArray[np.int64]) -> None:
        columns = piece.columns
        for row in mine.tolist():
            if int(columns["episode"][row]) != self._episode:
                self._episode = int(columns["episode"][row])
                self._return = 0.0 if int(columns["episode_step"][row]) == 0 and "reward" in columns else None
            if self._return is not None:
                reward = float(columns["reward"][row])
                self._return = self._return + reward if math.isfinite(reward) else None
            died = bool(columns["terminated"][row]) if "terminated" in columns else False
            cut = bool(columns["truncated"][row]) if "truncated" in columns else False
            if died or cut:
                self._ended = self._episode, int(columns["episode_step"][row]) + 1, died, self._return, piece.first_seq + row

    def _tick(self, now: float, piece: Piece, row: int) -> Line | None:
        recent, before = self._split(now)
        share, earlier = self._share(recent), self._share(before)
        last = self._share([p for p in recent if now - p[0].t[-1] <= _RECENT_S] or recent)
        distance = _distance(share, earlier) if before else math.nan
        usual = self._usual()
        line = None
        assert self._began_s is not None
        if now - self._told_s >= GAP_S and now - self._began_s >= _RECENT_S:
            line = self._say(now, piece, row, last, share, earlier, distance, usual)
        if math.isfinite(distance):
            self._distances.append(distance)
        if line is not None:
            self._told_s, self._ended = now, None
            if line.kind in ("surprise", "regime"):
                self._named |= {m.feature: now for m in line.features}
        return line

    def _split(self, now: float) -> tuple[list[tuple[Piece, Any]], list[tuple[Piece, Any]]]:
        recent = [p for p in self._pieces if now - p[0].t[-1] <= _REGIME_S]
        return recent, [p for p in self._pieces if now - p[0].t[-1] > _REGIME_S]

    def _share(self, pieces: Sequence[tuple[Piece, npt.NDArray[np.int64]]]) -> Floats:
        """(features,) fraction of the followed environment's encoded frames in which each is active."""
        active, frames = np.zeros(len(self._active)), 0
        for piece, mine in pieces:
            codes = piece.codes
            if len(mine) == len(piece):
                active += np.bincount(codes.indices, minlength=len(active))
            else:
                kept = np.isin(codes.row_index, mine)
                active += np.bincount(codes.indices[kept], minlength=len(active))
            frames += int(np.count_nonzero(piece.encoded[mine]))
        return active / frames if frames else np.full(len(active), np.nan)

    def _usual(self) -> Floats:
        """(features,) usual densities; NaN where not enough has been seen."""
        total = self._frames + self._weight
        with np.errstate(invalid="ignore", divide="ignore"):
            usual = (self._active + self._prior) / total
        assert self._began_s is not None
        known = (self._weight > 0) | (self._ticked_s - self._began_s >= _WARM_S)
        usual[~known] = np.nan
        return usual

    def _say(
        self, now: float, piece: Piece, row: int, last: Floats, share: Floats, earlier: Floats, distance: float, usual: Floats
    ) -> Line | None:
        first = math.isinf(self._told_s)
        telling = self._telling(last, usual)
        if self._alarms:
            return self._line("drift", "; ".join(self._drain()), piece, row, last, usual, [])
        if self._ended is not None:
            episode, steps, died, total, seq = self._ended
            how = "ended" if self.subject.language else "ended by itself" if died else "was cut off"  # a text has no other end
            ended = f"{self._called.episode} {episode} {how} after {steps} {self._called.steps}"
            ended += "" if total is None else f", return {total:.5g}"
            return self._line("episode", ended, piece, row, last, usual, telling, seq=seq)
        if first:
            return self._line("begin", "", piece, row, last, usual, telling)
        usually = np.array(self._distances)
        if len(usually) >= 20 and distance > max(0.3, float(usually.mean() + 3 * usually.std())):
            changed = np.nan_to_num(share - earlier)
            order = np.argsort(-np.abs(changed), kind="stable")[:_MENTIONS].tolist()
            return self._line("regime", "something else than before", piece, row, last, usual, order)
        surprising = self._surprising(last, usual, now)
        if surprising is not None:
            more = last[surprising] > usual[surprising]
            head = "unusually active" if more else "unusually silent"
            return self._line("surprise", head, piece, row, last, usual, [surprising])
        if now - self._told_s >= _QUIET_S:
            return self._line("steady", "as usual", piece, row, last, usual, telling)
        return None

    def _drain(self) -> list[str]:
        alarms = list(self._alarms)
        self._alarms.clear()
        return alarms

    def _telling(self, last: Floats, usual: Floats) -> list[int]:
        """Explained features that are more active now than usual, the one with the largest excess first."""
        rare = np.nan_to_num(usual, nan=0.5)
        spoken_of = [f for f, c in self._current.items() if c.narratable and last[f] >= max(_TELLING, rare[f])]
        return sorted(spoken_of, key=lambda f: (rare[f] - last[f], f))[: 3 * _MENTIONS]

    def _surprising(self, last: Floats, usual: Floats, now: float) -> int | None:
        share = np.clip(last, 1e-3, 1 - 1e-3)
        p = np.clip(usual, 1e-3, 1 - 1e-3)
        bits = share * np.log2(share / p) + (1 - share) * np.log2((1 - share) / (1 - p))
        odd = ((last >= 0.3) & (last >= 3 * usual)) | ((usual >= 0.3) & (last <= usual / 3))
        bits[~odd | np.isnan(bits)] = 0
        for feature, at in self._named.items():
            if now - at < _AGAIN_S:
                bits[feature] = 0
        for feature in np.flatnonzero(bits).tolist():
            current = self._current.get(feature)
            if current is None or not current.narratable:
                bits[feature] *= 0.5  # a number alone is worth less than a sentence
        best = int(np.argmax(bits))
        return best if bits[best] > 0.5 else None

    # words

    def _line(
        self, kind: str, head: str, piece: Piece, row: int, last: Floats, usual: Floats, features: Sequence[int], seq: int | None = None
    ) -> Line:
        newest = [p for p, _ in self._pieces if piece.t[row] - p.t[-1] <= _RECENT_S]
        frames = gather(newest, self.subject.manifest, self.subject.dictionary.features)
        mentions = [] if self._withheld else [self._mention(f, frames, last, usual) for f in features]
        if kind not in ("surprise", "regime"):  # a label whose rule does not hold just now would be a false sentence
            mentions = [m for m in mentions if m.holds is None or m.holds >= _HOLDS]
            mentions = list({m.label or m.name: m for m in reversed(mentions)}.values())[::-1]  # one sentence says it once
        mentions = mentions[:_MENTIONS]
        action = self._action(newest)
        columns = piece.columns
        episode, step = int(columns["episode"][row]), int(columns["episode_step"][row])
        seq = piece.first_seq + row if seq is None else seq
        parts = [head] if head else []
        parts += [", ".join(_words(m, "tokens" if self.subject.language else "frames") for m in mentions[:_SPOKEN])] if mentions else []
        parts += [m.effect for m in mentions[:1] if m.effect and m.label]
        if self._withheld and kind != "drift":
            parts.append(f"nothing is said of features: {self._withheld}")
        if action:
            parts.append(f"the {'model' if self.subject.language else 'agent'}: {action}")
        text = "; ".join(parts) or "nothing known yet"
        return Line(
            kind, piece.boot, self.env, seq, newest[0].first_seq, piece.first_seq + len(piece), float(piece.t[row]), piece.wall_ns,
            episode, step, text, action, tuple(mentions),
        )  # fmt: skip

    def _mention(self, feature: int, frames: Frames, last: Floats, usual: Floats) -> Mention:
        current = self._current.get(feature)
        shown = current.score if current is not None else None
        spoken_of = current is not None and current.narratable
        interval = shown.balanced_accuracy if shown is not None else None
        return Mention(
            feature=feature, name=self.subject.name(feature),
            label=self._names.get(feature, current.label) if current is not None and spoken_of else None,
            explanation=current.id if current is not None else None, score=_known(interval.mean) if interval else None,
            low=_known(interval.low) if interval else None, high=_known(interval.high) if interval else None,
            share=float(np.nan_to_num(last[feature])), usual=_known(float(usual[feature])),
            holds=self._holds(current, frames) if current is not None and spoken_of else None,
            kind=current.kind if current is not None else "predicate", effect=self._effects.get(feature),
        )  # fmt: skip

    def _holds(self, current: Current, frames: Frames) -> float | None:
        features = frames.table.features
        assert features is not None
        rows = features.active(current.feature) & features.encoded & (frames.table.env == self.env)
        if not rows.any() or not askable(current.predicate, frames.table):
            return None
        truth = current.predicate.evaluate(frames.table)
        known = rows & truth.defined
        return float(np.mean(truth.holds[known])) if known.any() else None

    def _action(self, newest: Sequence[Piece]) -> str:
        """What the agent mostly does in the last second."""
        spec = self.subject.manifest.action
        taken = [p.columns["action"][p.columns["env"] == self.env] for p in newest if "action" in p.columns]
        if not taken or not sum(map(len, taken)):
            return ""
        values = np.concatenate(taken).reshape(sum(map(len, taken)), -1).astype(np.float64)
        if spec.kind == "discrete" and values.shape[1] == 1:
            choices, counts = np.unique(values[np.isfinite(values)], return_counts=True)
            if not len(choices):
                return ""
            best = int(np.argmax(counts))
            number = int(choices[best])
            name = spoken(spec.names[number]) if 0 <= number < len(spec.names) else f"action {number}"
            return f"{name} in {100 * counts[best] / counts.sum():.0f} % of {self._called.steps}"
        mean = np.nanmean(values, axis=0) if np.isfinite(values).any() else np.zeros(0)
        if not len(mean) or not np.isfinite(mean).any():
            return ""
        best = int(np.nanargmax(np.abs(mean)))
        name = spoken(spec.names[best]) if best < len(spec.names) else f"action {best}"
        return f"strongest on average {name} {mean[best]:+.2f}".replace("-", "−")


def _words(mention: Mention, frames: str = "frames") -> str:
    """One feature, with its score. `frames`: what these are called."""
    usual = "" if mention.usual is None else f", usually {_percent(mention.usual)}"
    if mention.label is None:
        why = "not explained" if mention.score is None else f"explanation scores {_score(mention)} only"
        return f"{mention.name} active in {_percent(mention.share)} of {frames}{usual} ({why})"
    holds = "" if mention.holds is None else f", rule holds in {_percent(mention.holds)}"
    score = f"{'score ' if mention.kind == 'predicate' else ''}{_score(mention)}"
    return f"“{mention.label}” ({mention.name}, {score}; active {_percent(mention.share)}{usual}{holds})"


def _score(mention: Mention) -> str:
    """With its kind, where it is not of a predicate."""
    return f"{'' if mention.kind == 'predicate' else f'{mention.kind} '}{mention.score:.2f}"


def _percent(share: float) -> str:
    return "< 1 %" if 0 < share < 0.005 else f"{100 * share:.0f} %"


def _distance(a: Floats, b: Floats) -> float:
    """Cosine distance, NaN where nothing was active."""
    length = float(np.linalg.norm(a) * np.linalg.norm(b))
    return 1 - float(a @ b) / length if length > 0 else math.nan


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None
