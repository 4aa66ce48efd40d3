"""Predicates in plain words: `describe` says all of one with units, `label` names it in at most six words.

Words claim no more than the clause does: "high" means beyond the median of the training frames, and a phrase such as
"torso leans forward" is used only where the clause implies its sign. Pure; a few microseconds.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from interlatent_live.explainer.grammar import print_number
from interlatent_live.explainer.labelled import NEXT, TOKEN
from interlatent_live.explainer.predicate import Clause, Predicate
from interlatent_live.explainer.table import Table, Vocabulary, feature_number

__all__ = ["LABEL_WORDS", "PHRASES", "Wording", "Words", "spoken"]

LABEL_WORDS = 6

PHRASES: Mapping[str, tuple[str, str]] = {
    "pole_angle": ("pole leans right", "pole leans left"),
    "pole_angular_velocity": ("pole turns right", "pole turns left"),
    "cart_position": ("cart right of centre", "cart left of centre"),
    "cart_velocity": ("cart moves right", "cart moves left"),
    "pitch": ("torso leans forward", "torso leans back"),
    "forward_velocity": ("moving forward", "moving backward"),
    "left_velocity": ("moving left", "moving right"),
    "up_velocity": ("torso rises", "torso sinks"),
    "target_sine": ("target to the left", "target to the right"),
    "right_foot_contact": ("right foot down", "right foot lifted"),
    "left_foot_contact": ("left foot down", "left foot lifted"),
}
"""Metrics of the environments we ship whose sign has a name: for positive values, for negative (or 0, if 0 or 1)."""

_SCALED = re.compile(r"(\d+(?:\.\d+)?)(?:/(\d+(?:\.\d+)?))?\s*([^\d\s/].*)?")
_PLAIN = {">": "above", ">=": "at least", "<": "below", "<=": "at most", "==": "equal to", "!=": "other than"}
_COUNT = {">": "more than", ">=": "at least", "<": "fewer than", "<=": "at most", "==": "exactly", "!=": "other than"}
_RISING = (">", ">=")


_TOLD = 8
"""Values of a label that a description tells."""
_TURNS = 8
"""Members of a set of which one may stand first in its label."""


@dataclass(frozen=True, slots=True)
class Words:
    """What a frame and an episode are called."""

    step: str = "step"
    episode: str = "episode"

    @classmethod
    def of(cls, language: bool) -> Words:
        """Of a language model's run: its tokens and texts."""
        return cls("token", "text") if language else cls()

    @property
    def steps(self) -> str:
        """Several."""
        return f"{self.step}s"

    @property
    def an_episode(self) -> str:
        """With its article."""
        return f"{'an' if self.episode == 'episode' else 'a'} {self.episode}"


def spoken(name: str) -> str:
    """A name as words: 'right foot contact' for 'right_foot_contact', 'feature 41' for 'f41'."""
    number = feature_number(name)
    if number is not None:
        return f"feature {number}"
    return _clean(re.sub(r"\[(\d+)\]", r" \1", name).replace("_", " "))


@dataclass(frozen=True, slots=True)
class Wording:
    """What words need to know of the data."""

    vocabulary: Vocabulary
    step_period_s: float | None = None
    """Seconds a step takes, to give lags in seconds; None to give them in steps."""
    quantiles: Mapping[str, npt.NDArray[np.float64]] = field(default_factory=dict)
    """Metric to its (101,) percentiles over the training frames; what is not there is never called high or low."""
    switches: frozenset[str] = frozenset()
    """Metrics that are 0 or 1."""
    phrases: Mapping[str, tuple[str, str]] = field(default_factory=lambda: PHRASES)
    names: Mapping[str, str] = field(default_factory=dict)
    """What a number is called where that is not its name: `action[3]`."""
    words: Words = field(default_factory=Words)

    @classmethod
    def of(
        cls, table: Table, rows: npt.NDArray[np.bool_], metrics: Sequence[str], *, step_period_s: float | None = None,
        phrases: Mapping[str, tuple[str, str]] = PHRASES, names: Mapping[str, str] | None = None, words: Words | None = None,
    ) -> Wording:
        """With what the training frames `rows` (n,) say of `metrics`."""
        quantiles, switches = {}, set()
        for name in metrics:
            values = np.asarray(table.number(name)[rows], np.float64)
            values = values[np.isfinite(values)]
            if len(values):
                quantiles[name] = np.quantile(values, np.linspace(0, 1, 101))
                if np.isin(values, (0.0, 1.0)).all():
                    switches.add(name)
        return cls(table.vocabulary, step_period_s, quantiles, frozenset(switches), phrases, names or {}, words or Words())

    def describe(self, predicate: Predicate) -> str:
        """The whole predicate in words, with units."""
        if predicate.join == "or":
            parts = [" and ".join(map(self._piece, _pieces(group))) for group in predicate.groups]
        else:
            parts, left = [], _pieces([group[0] for group in predicate.groups if len(group) == 1])
            for group in predicate.groups:
                if len(group) > 1:
                    parts.append("either " + " or ".join(map(self.clause, group)))
                elif left and group[0] in left[0]:
                    parts.append(self._piece(left.pop(0)))
        simple = len(parts) > 1 and predicate.join == "or" and all(len(g) == 1 for g in predicate.groups)
        return (" or " if simple else ", or " if predicate.join == "or" else ", and ").join(parts)

    def _piece(self, piece: tuple[Clause, ...]) -> str:
        if len(piece) == 1:
            return self.clause(piece[0])
        low, high = piece
        then = f" {self._steps(low.lag)} ago" if low.lag else ""
        bound = self._quantity(low.metric, low.number).split(" ")[0]
        return f"{self._spoken(low.metric)}{then} between {bound} and {self._quantity(high.metric, high.number)}"

    def clause(self, clause: Clause) -> str:
        """One clause in words."""
        name, sign = self._spoken(clause.metric), clause.comparison
        if clause.texts:
            name = self._labelled(clause.metric, clause.lag)
            return f"{name} is {'' if clause.positive else 'not '}{_text(clause, _TOLD)}"
        if clause.change:
            return self._changed(clause, name, clause.number)
        then = f" {self._steps(clause.lag)} ago" if clause.lag else ""
        state = self._state(clause)
        if state is not None:
            return (self.phrases[clause.metric][0 if state else 1] if clause.metric in self.phrases
                    else f"{'' if state else 'no '}{name}") + then
        special = self._attribute(clause)
        if special is not None and not clause.lag:
            return special
        return f"{name}{then} {_PLAIN[sign]} {self._quantity(clause.metric, clause.number)}"

    def label(self, predicate: Predicate) -> str:
        """At most six words: as many clauses as fit, those of the first alternative where there are several."""
        if len(predicate.groups) > 1 and all(len(g) == 1 for g in predicate.groups) and predicate.join == "or":
            label = _fitting([self._short(clause) for clause in predicate.clauses], " or ")
        else:
            label = _fitting(self._called(next(iter(predicate.alternatives())), 0), ", ")
        return label or " ".join(self._spoken(predicate.clauses[0].metric).split()[:LABEL_WORDS])

    def distinct(self, predicate: Predicate, taken: Set[str]) -> str:
        """A label that is not among `taken`: with thresholds or another clause where that tells it from others, else with a number."""
        first, *others = predicate.alternatives()
        for label in (self.label(predicate), *self._candidates(first, others)):
            if label and label[:80].strip() not in taken:
                return label[:80].strip()
        stem = self._called(first, 0)[0] if not first[0].texts else self._one_of(first[0], words=LABEL_WORDS - 1)
        stem = " ".join(stem.split()[: LABEL_WORDS - 1])[:72].strip(" ,")
        return next(f"{stem} {n}" for n in range(2, len(taken) + 3) if f"{stem} {n}" not in taken)

    def _candidates(self, first: Sequence[Clause], others: Sequence[Sequence[Clause]]) -> Iterator[str]:
        """Other labels that are true of a predicate, the best first."""
        count = len(_pieces(first))
        if first[0].texts:
            yield from (_fitting(self._called(first, 0, turn=turn), ", ") for turn in range(1, min(_TURNS, len(first[0].texts))))
        for digits in (2, 3):
            yield from (_fitting(self._called(first, precise, digits), ", ") for precise in range(1, count + 1))
            for other in others:
                either = (_fitting([self._called(first, 0)[0], self._called(other, precise, digits)[0]], " or ") for precise in (1, 0))
                yield from (label for label in either if " or " in label)
            for lead in range(1, count):  # another clause first
                pieces = self._called(first, count, digits)
                yield _fitting([pieces[lead], self._called(first, 0)[0], *pieces[1:lead], *pieces[lead + 1 :]], ", ")

    def _called(self, clauses: Sequence[Clause], precise: int, digits: int = 2, turn: int = 0) -> list[str]:
        """Each piece of a conjunction in a few words, the first `precise` of them with thresholds of so many digits; of sets, from the
        text at place `turn` on."""
        def called(i: int, piece: tuple[Clause, ...]) -> str:
            if len(piece) == 2:
                return self._band(piece, digits)
            if piece[0].texts and not (i < precise and len(piece[0].texts) <= _TOLD):
                return self._one_of(piece[0], turn)
            return self._precise(piece[0], digits) if i < precise else self._short(piece[0])

        return [called(i, piece) for i, piece in enumerate(_pieces(clauses))]

    def _one_of(self, clause: Clause, turn: int = 0, words: int = LABEL_WORDS) -> str:
        """A set of texts by two or one of them; by their number where even one is told in more than so many words."""
        before = {(TOKEN, 0): "", (TOKEN, 1): "after ", (NEXT, 0): "before "}.get((clause.metric, clause.lag))
        lead = f"{self._labelled(clause.metric, clause.lag)} is " if before is None else before
        lead += "" if clause.positive else "not "
        shown = (f"{lead}{_text(clause, most, turn)}" for most in (2, 1))
        number = f"{lead}one of {len(clause.texts)}{'' if before is None else ' tokens'}"
        return next((text for text in shown if len(text.split()) <= words), number)

    def _band(self, piece: tuple[Clause, ...], digits: int) -> str:
        low, high = (print_number(_significant(clause.number, digits)) for clause in piece)
        return f"{self._spoken(piece[0].metric)} {low} to {high}"

    def _precise(self, clause: Clause, digits: int) -> str:
        """With its threshold, without a unit."""
        if clause.texts:
            shown = f"{'' if clause.positive else 'not '}{_text(clause, _TOLD)}"
            return f"after {shown}" if clause.metric == TOKEN and clause.lag else shown if clause.metric == TOKEN else self._short(clause)
        if clause.comparison in ("==", "!=") or self._state(clause) is not None:
            return self._short(clause)
        name, value, rising = self._spoken(clause.metric), clause.number, clause.comparison in _RISING
        number = print_number(_significant(abs(value) if clause.change else value, digits))
        if clause.change:
            return f"{name} {'rises' if rising else 'falls'} by {number}" if (value >= 0) == rising else self._short(clause)
        return f"{name} {'above' if rising else 'below'} {number}"

    def _spoken(self, name: str) -> str:
        return spoken(self.names.get(name, name))

    def _short(self, clause: Clause) -> str:
        name, sign = self._spoken(clause.metric), clause.comparison
        if clause.texts:
            return self._one_of(clause)
        if sign in ("==", "!="):
            return self.clause(clause)
        value, rising = clause.number, sign in _RISING
        if clause.change:
            return f"{name} {'rises' if value >= 0 else 'not falling'}" if rising else (
                f"{name} {'falls' if value <= 0 else 'not rising'}")
        state = self._state(clause)
        if state is not None:
            return self.clause(clause.model_copy(update={"lag": 0}))
        if clause.metric in self.phrases and (value >= 0 if rising else value <= 0):
            return self.phrases[clause.metric][0 if rising else 1]
        percentiles = self.quantiles.get(clause.metric)
        if percentiles is None:
            return f"{name} {'above' if rising else 'below'} {print_number(_significant(value, 2))}"
        if value == 0 and percentiles[0] == 0 and sign in (">", "<="):
            return f"{name} not zero" if rising else f"zero {name}"
        rank = float(np.searchsorted(percentiles, value)) / 100
        beyond = rank if rising else 1 - rank
        high, low = ("high", "low") if rising else ("low", "high")
        return f"very {high} {name}" if beyond >= 0.9 else f"{high} {name}" if beyond >= 0.5 else f"{name} not {low}"

    def _state(self, clause: Clause) -> bool | None:
        """True or False where the clause says that a switch is on or off."""
        if clause.metric not in self.switches or clause.texts:
            return None
        truths = [_compare(clause.comparison, v, clause.number) for v in (0.0, 1.0)]
        return truths[1] if truths[0] != truths[1] else None

    def _changed(self, clause: Clause, name: str, value: float) -> str:
        over = f"over {self._steps(clause.change)}"
        amount = self._quantity(clause.metric, abs(value))
        if clause.comparison in _RISING and value >= 0:
            return f"{name} up by {_PLAIN[clause.comparison].replace('above', 'more than')} {amount} {over}"
        if clause.comparison in ("<", "<=") and value <= 0:
            least = {"<": "more than", "<=": "at least"}[clause.comparison]
            return f"{name} down by {least} {amount} {over}"
        return f"change of {name} {over} {_PLAIN[clause.comparison]} {self._quantity(clause.metric, value)}"

    def _attribute(self, clause: Clause) -> str | None:
        value = clause.number
        if self.vocabulary.kind(clause.metric) != "attribute":
            return None
        count = f"{_COUNT[clause.comparison]} {print_number(value)}"
        if clause.metric == "steps_to_end":
            return f"{count} {self.words.steps} before the {self.words.episode} ends"
        if clause.metric == "episode_step":
            return f"{count} {self.words.steps} into the {self.words.episode}"
        if clause.metric == "episode_length":
            return f"{self.words.an_episode} of {count} {self.words.steps}"
        if clause.metric == "episode_terminated":
            truths = [_compare(clause.comparison, v, value) for v in (0.0, 1.0)]
            if truths[0] != truths[1]:
                return f"{self.words.an_episode} that {'ends by itself' if truths[1] else 'is cut off'}"
        return None

    def _steps(self, steps: int) -> str:
        if self.step_period_s is None:
            return f"{steps} {self.words.step}{'' if steps == 1 else 's'}"
        return f"{print_number(_significant(steps * self.step_period_s, 2))} s"

    def _labelled(self, name: str, lag: int) -> str:
        """A label, so many steps ago; the token before by its name."""
        if name == TOKEN and lag == 1:
            return "the token before"
        return self._spoken(name) + (f" {self._steps(lag)} ago" if lag else "")

    def _quantity(self, name: str, value: float) -> str:
        """With its unit; '3 m/s' where 0.9 is counted in '10/3 m/s'."""
        unit = self.vocabulary.unit(name)
        scaled = _SCALED.fullmatch(unit)
        if scaled:
            value *= float(scaled[1]) / float(scaled[2] or 1)
            unit = scaled[3] or ""
            value = _significant(value, 2)
        return f"{print_number(value)} {_clean(unit) if unit else ''}".rstrip()


def _pieces(clauses: Sequence[Clause]) -> list[tuple[Clause, ...]]:
    """Clauses that must all hold, one by one, but for two that leave a band of one number: these together, the lower bound first."""
    pieces: list[tuple[Clause, ...]] = []
    for clause in clauses:
        for i, piece in enumerate(pieces):
            low, high = (clause, piece[0]) if clause.comparison in _RISING else (piece[0], clause)
            bounds = low.comparison in _RISING and high.comparison in ("<", "<=") and not clause.change
            if len(piece) == 1 and clause.quantity == piece[0].quantity and bounds and low.number < high.number:
                pieces[i] = (low, high)
                break
        else:
            pieces.append((clause,))
    return pieces


def _fitting(parts: Sequence[str], between: str) -> str:
    """As many parts as a label has words for, none twice."""
    chosen: list[str] = []
    for part in parts:
        words = sum(len(p.split()) for p in chosen) + len(part.split()) + (len(chosen) if between.strip().isalpha() else 0)
        if words <= LABEL_WORDS and part not in chosen:
            chosen.append(part)
    return between.join(chosen)


def _clean(text: str) -> str:
    """Without what could be markup or is not seen: names, units and labels come from outside."""
    return " ".join(re.sub(r"[^\w.+\-*/%°²³·]+", " ", text).split()) or "unnamed"


def _text(clause: Clause, most: int, turn: int = 0) -> str:
    """A label's text in words, of several `most` from place `turn` on, and how many more there are."""
    told = list(dict.fromkeys(_one_text(text, clause.metric in (TOKEN, NEXT)) for text in clause.texts))
    told = told[turn % len(told) :] + told[: turn % len(told)]
    if len(told) <= most:
        return " or ".join(told)
    return f"{', '.join(told[:most])} or {len(told) - most} more"


def _one_text(text: str, quoted: bool) -> str:
    """That of a token in quotes, or spelt where it is nothing but signs."""
    if any(c.isalnum() for c in text):
        return f"‘{_clean(text)}’" if quoted else _clean(text)
    signs = [unicodedata.name(c, "a sign").lower() for c in text if not c.isspace()]
    return " ".join([*dict.fromkeys(signs)][:1] + (["and more"] if len(signs) > 1 else []))


def _compare(comparison: str, left: float, right: float) -> bool:
    outcomes: dict[str, Any] = {
        ">": left > right, ">=": left >= right, "<": left < right, "<=": left <= right, "==": left == right,
        "!=": left != right,
    }
    return bool(outcomes[comparison])


def _significant(value: float, digits: int) -> float:
    return float(f"{value:.{digits}g}")
