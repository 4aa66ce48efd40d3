"""A predicate as data: at most four clauses over named numbers, joined by and/or, true or false of every frame.

A clause compares a metric, an episode attribute, a feature (`f41`) or a label with a constant: as it is, as it was
`lag` steps earlier, or by how much it changed over `change` steps. Clauses stand in groups: `join` is the word between
groups, the other word joins the clauses inside a group. So both `a and b or c and d` and `(a or b) and (c or d)` are
one level of lists, which a language model fills more reliably than a tree. A label is compared with one text or with several.

What is unknown (NaN, a lag that reaches before the episode's first frame, a label without value, a feature in a row
that was not encoded) makes a clause *undefined*, and Kleene's logic carries it on: `undefined and false` is false,
`undefined or true` is true, all else stays undefined. A predicate *holds* only where it is true; undefined counts as
"does not hold" when it is scored, so that no predicate can dodge frames, and `evaluate` tells the two apart.

Text form and parser: `explainer.grammar`. Cost: about 2 ms a clause for a million frames.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from interlatent_live.explainer.table import Table, Vocabulary
from interlatent_live.stream.errors import PredicateError

__all__ = ["MAX_CLAUSES", "MAX_STEPS", "MAX_TEXTS", "Clause", "Comparison", "Predicate", "Truth"]

MAX_CLAUSES = 4
MAX_STEPS = 10_000
"""Longest lag and longest change, in steps."""
MAX_TEXTS = 32
"""Most values of a label that one clause may name …"""
_MAX_LENGTH = 400
"""… and their characters in all."""

Comparison = Literal[">", ">=", "<", "<=", "==", "!=", "in", "not in"]
Join = Literal["and", "or"]
Mask = npt.NDArray[np.bool_]

_NUMPY = {
    ">": np.greater, ">=": np.greater_equal, "<": np.less, "<=": np.less_equal, "==": np.equal, "!=": np.not_equal,
}
Name = Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=r"^[^`\x00-\x1f\x7f]+$")]
Text = Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f]+$")]


class Truth(NamedTuple):
    """What a predicate says of every frame."""

    holds: Mask
    """(n,) where it is true."""
    defined: Mask
    """(n,) where it is true or false."""


class Clause(BaseModel):
    """One comparison."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    metric: Name = Field(description="Name of a metric, a feature such as f41, an episode attribute or a label.")
    comparison: Comparison
    value: Annotated[float, Field(allow_inf_nan=False)] | Text | tuple[Text, ...] = Field(
        description="A number in the metric's own unit; for a label its text, with == or != only, or several texts, with in or not in only."
    )
    lag: int = Field(default=0, ge=0, le=MAX_STEPS, description="Compare the value this many steps earlier; 0: now.")
    change: int = Field(
        default=0, ge=0, le=MAX_STEPS,
        description="Compare the change over this many steps, now minus then; 0: the value itself. Not with a lag.",
    )

    @field_validator("value")
    @classmethod
    def _no_negative_zero(cls, value: float | str | tuple[str, ...]) -> float | str | tuple[str, ...]:
        return 0.0 if value == 0 else value  # -0.0 equals 0.0 but prints otherwise

    @model_validator(mode="after")
    def _consistent(self) -> Clause:
        if self.lag and self.change:
            raise ValueError("a clause has a lag or a change, not both")
        if isinstance(self.value, tuple):
            if self.comparison not in ("in", "not in"):
                raise ValueError(f"several values go with in or not in, not {self.comparison}")
            if not self.value or len(set(self.value)) < len(self.value):
                raise ValueError("the values after in are one or more, each once")
            if len(self.value) > MAX_TEXTS or sum(map(len, self.value)) > _MAX_LENGTH:
                raise ValueError(f"after in stand at most {MAX_TEXTS} values, of {_MAX_LENGTH} characters together")
        elif self.comparison in ("in", "not in"):
            raise ValueError(f"{self.comparison} takes values in parentheses, as in token in (heat, fuel)")
        elif isinstance(self.value, str) and self.comparison not in ("==", "!="):
            raise ValueError(f"a label is compared by == or !=, not {self.comparison}")
        if self.texts and self.change:
            raise ValueError("a label has no change")
        return self

    @property
    def texts(self) -> tuple[str, ...]:
        """The values that a label is compared with; () for a number."""
        return self.value if isinstance(self.value, tuple) else (self.value,) if isinstance(self.value, str) else ()

    @property
    def number(self) -> float:
        """The value that a number is compared with; NaN for a label."""
        return self.value if isinstance(self.value, float) else math.nan

    @property
    def positive(self) -> bool:
        """Whether a label is asked to be one of `texts`, not to be another."""
        return self.comparison in ("==", "in")

    @property
    def quantity(self) -> tuple[str, int, int]:
        """What is compared: name, lag, change."""
        return self.metric, self.lag, self.change

    def check(self, vocabulary: Vocabulary) -> None:
        """Raise UnknownName or PredicateError unless the clause can be evaluated over these names."""
        is_label = vocabulary.kind(self.metric) == "label"
        if is_label and not self.texts:
            text = f'{self.metric} == "{self.number:g}"'
            raise PredicateError(f"{self.metric} is a label: compare it with text, as in {text}")
        if not is_label and self.texts:
            raise PredicateError(f"{self.metric} is a number: {self.texts[0]!r} is text; compare it with a number")
        if is_label and self.lag and self.metric in vocabulary.steady:
            raise PredicateError(f"{self.metric} is said of a whole text, so it has no lag: leave [-{self.lag}] out")

    def truth(self, table: Table) -> tuple[Mask, Mask]:
        """(n,) where true, and (n,) where false; where neither, undefined."""
        if self.texts:
            codes = table.codes(self.metric, self.lag)
            equal, known = table.labels[self.metric].among(codes, self.texts), codes >= 0
            return (equal, ~equal & known) if self.positive else (~equal & known, equal)
        if self.change:
            values = table.number(self.metric) - table.lagged(self.metric, self.change)
        elif self.lag:
            values = table.lagged(self.metric, self.lag)
        else:
            values = table.number(self.metric)
        true: Mask = _NUMPY[self.comparison](values, self.number)
        unknown = np.isnan(values)
        if self.comparison == "!=":  # NaN differs from everything, but here it is unknown
            true &= ~unknown
        return true, ~(true | unknown)


class Predicate(BaseModel):
    """Up to four clauses in groups, kept in one canonical form so that equal text means equal data."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    join: Join = Field(
        default="or",
        description="The word between groups; clauses inside a group are joined by the other. "
        "'or' with groups [[a, b], [c]]: a and b, or c. 'and' with the same groups: (a or b) and c.",
    )
    groups: Annotated[tuple[Annotated[tuple[Clause, ...], Field(min_length=1, max_length=MAX_CLAUSES)], ...],
                      Field(min_length=1, max_length=MAX_CLAUSES)] = Field(description="At most four clauses in all.")

    @model_validator(mode="after")
    def _canonical(self) -> Predicate:
        count = sum(len(g) for g in self.groups)
        if count > MAX_CLAUSES:
            raise ValueError(f"a predicate has at most {MAX_CLAUSES} clauses; this one has {count}")
        if self.join == "and" and (len(self.groups) == 1 or count == len(self.groups)):
            clauses = [c for g in self.groups for c in g]
            # (a or b) alone is a or b; (a) and (b) is a and b: say both with 'or' between groups. A frozen model has no
            # other way to bring itself into form.
            groups = tuple((c,) for c in clauses) if len(self.groups) == 1 else (tuple(clauses),)
            object.__setattr__(self, "join", "or")
            object.__setattr__(self, "groups", groups)
        return self

    @property
    def clauses(self) -> tuple[Clause, ...]:
        """All clauses, in order."""
        return tuple(c for g in self.groups for c in g)

    @property
    def names(self) -> tuple[str, ...]:
        """The names it uses, each once, in order."""
        return tuple(dict.fromkeys(c.metric for c in self.clauses))

    def __str__(self) -> str:
        from interlatent_live.explainer.grammar import to_text

        return to_text(self)

    def check(self, vocabulary: Vocabulary) -> None:
        """Raise UnknownName or PredicateError unless it can be evaluated over these names."""
        for clause in self.clauses:
            clause.check(vocabulary)

    def evaluate(self, table: Table) -> Truth:
        """True, false or undefined, for every row of the table."""
        self.check(table.vocabulary)
        true, false = self._combine([self._inside([c.truth(table) for c in g]) for g in self.groups], self.join)
        return Truth(true, true | false)

    def holds(self, table: Table) -> Mask:
        """(n,) where it is true; neither false nor undefined."""
        return self.evaluate(table).holds

    def _inside(self, truths: list[tuple[Mask, Mask]]) -> tuple[Mask, Mask]:
        return self._combine(truths, "and" if self.join == "or" else "or")

    @staticmethod
    def _combine(truths: list[tuple[Mask, Mask]], word: Join) -> tuple[Mask, Mask]:
        true, false = truths[0]
        for t, f in truths[1:]:
            if word == "and":
                true, false = true & t, false | f
            else:
                true, false = true | t, false & f
        return true, false

    def alternatives(self) -> Iterator[tuple[Clause, ...]]:
        """The conjunctions of which one must hold (at most four)."""
        if self.join == "or":
            yield from self.groups
            return
        partial: list[tuple[Clause, ...]] = [()]
        for group in self.groups:
            partial = [(*p, c) for p in partial for c in group]
        yield from partial

    @property
    def impossible(self) -> bool:
        """Whether no value at all can satisfy it, as in `x > 5 and x < 3`."""
        return all(_empty(clauses) for clauses in self.alternatives())


def _empty(clauses: tuple[Clause, ...]) -> bool:
    """Whether some quantity is asked to be in an empty set by clauses that must all hold."""
    by_quantity: dict[tuple[str, int, int], list[Clause]] = {}
    for clause in clauses:
        by_quantity.setdefault(clause.quantity, []).append(clause)
    return any(_empty_text(of) if of[0].texts else _empty_range(of) for of in by_quantity.values())


def _empty_text(clauses: list[Clause]) -> bool:
    wanted = [set(c.texts) for c in clauses if c.positive]
    excluded = {text for c in clauses if not c.positive for text in c.texts}
    return bool(wanted) and not set.intersection(*wanted) - excluded


def _empty_range(clauses: list[Clause]) -> bool:
    low, high, low_open, high_open = -math.inf, math.inf, True, True
    excluded: set[Any] = set()
    for c in clauses:
        value = c.number
        if c.comparison == "!=":
            excluded.add(value)
        if c.comparison in (">", ">=", "==") and (value, c.comparison == ">") > (low, low_open):
            low, low_open = value, c.comparison == ">"
        if c.comparison in ("<", "<=", "==") and (-value, c.comparison == "<") > (-high, high_open):
            high, high_open = value, c.comparison == "<"
    return low > high or (low == high and (low_open or high_open or low in excluded))
