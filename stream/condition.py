"""A condition as data, for the agent's side: the predicate of `explainer.grammar` that holds for the frame at hand, or not.

The data is what the explainer's `Predicate` dumps: `{"join": "or", "groups": [[{"metric", "comparison", "value", "lag",
"change"}, …], …]}`, at most four clauses. Nothing but the standard library is needed to evaluate it, one frame at a time, in about 1 µs a
clause; the meaning is the explainer's, clause by clause (a test holds the two together): what is unknown makes a clause
undefined, Kleene's logic carries it on, and a condition holds only where it is true.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from interlatent_live.stream.errors import PredicateError

__all__ = ["MAX_LAG", "Condition"]

MAX_LAG: Final = 10_000
"""Longest lag and longest change, in steps."""
_MAX_CLAUSES: Final = 4
_MAX_NAME: Final = 128
_NAME: Final = re.compile(r"[^\W\d][\w.]*(?:\[\d+\])*")
_WORDS: Final = ("and", "or", "not", "change")
_COMPARE: Final[Mapping[str, Callable[[float, float], bool]]] = {
    ">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le, "==": operator.eq, "!=": operator.ne,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Clause:
    name: str
    comparison: str
    value: float
    lag: int
    change: int

    def __str__(self) -> str:
        name = self.name if _NAME.fullmatch(self.name) and self.name.lower() not in _WORDS else f"`{self.name}`"
        if self.lag:
            name = f"{name}[-{self.lag}]"
        elif self.change:
            name = f"change({name}, {self.change})"
        return f"{name} {self.comparison} {repr(self.value).removesuffix('.0')}"

    def truth(self, look: Callable[[str, int], float]) -> bool | None:
        """`look(name, steps back)` gives NaN for what is unknown."""
        found = look(self.name, self.lag)
        if self.change:
            found -= look(self.name, self.change)
        return None if math.isnan(found) else _COMPARE[self.comparison](found, self.value)


@dataclass(frozen=True, slots=True)
class Condition:
    """Clauses in groups: `join` stands between groups, the other word inside them."""

    join: str
    groups: tuple[tuple[_Clause, ...], ...]

    @classmethod
    def from_data(cls, data: Any) -> Condition:
        """Raises PredicateError for anything that is no predicate over numbers."""
        groups = data.get("groups") if isinstance(data, Mapping) else None
        join = data.get("join", "or") if isinstance(data, Mapping) else None
        if join not in ("and", "or") or not isinstance(groups, (list, tuple)) or not 0 < len(groups) <= _MAX_CLAUSES:
            raise PredicateError("a condition is a map of `join` ('and' or 'or') and `groups`, 1 to 4 lists of clauses")
        built = tuple(tuple(map(_clause, group)) if isinstance(group, (list, tuple)) else () for group in groups)
        if not all(built) or sum(map(len, built)) > _MAX_CLAUSES:
            raise PredicateError(f"a condition has 1 to {_MAX_CLAUSES} clauses, and none of its groups is empty")
        return cls(str(join), built)

    @property
    def text(self) -> str:
        """The same for people, as `explainer.grammar` prints it."""
        inside = " and " if self.join == "or" else " or "
        parts = [inside.join(map(str, group)) for group in self.groups]
        if self.join == "and":
            parts = [f"({part})" if len(group) > 1 else part for part, group in zip(parts, self.groups, strict=True)]
        return f" {self.join} ".join(parts)

    @property
    def names(self) -> tuple[str, ...]:
        """The names it uses, each once, in order."""
        return tuple(dict.fromkeys(clause.name for group in self.groups for clause in group))

    @property
    def reach(self) -> int:
        """How many steps back it looks."""
        return max(max(clause.lag, clause.change) for group in self.groups for clause in group)

    def truth(self, look: Callable[[str, int], float]) -> bool | None:
        """True, False, or None where it is undefined. `look(name, n)`: the value n steps earlier, NaN where unknown."""
        inside = "and" if self.join == "or" else "or"
        return _combined([_combined([clause.truth(look) for clause in group], inside) for group in self.groups], self.join)


def _combined(truths: list[bool | None], word: str) -> bool | None:
    deciding = word == "or"
    if deciding in truths:
        return deciding
    return None if None in truths else not deciding


def _clause(data: Any) -> _Clause:
    if not isinstance(data, Mapping):
        raise PredicateError("a clause is a map of metric, comparison, value, lag and change")
    name, comparison, value = data.get("metric"), data.get("comparison"), data.get("value")
    lag, change = data.get("lag", 0), data.get("change", 0)
    if not isinstance(name, str) or not 0 < len(name) <= _MAX_NAME:
        raise PredicateError(f"a clause names a number by 1 to {_MAX_NAME} characters, not {str(name)[:40]!r}")
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise PredicateError(f"{name} is compared with {str(value)[:40]!r}; a condition compares numbers with finite numbers")
    if comparison not in _COMPARE:
        raise PredicateError(f"comparison {str(comparison)[:20]!r} is none of {' '.join(_COMPARE)}")
    for steps in (lag, change):
        if type(steps) is not int or not 0 <= steps <= MAX_LAG:
            raise PredicateError(f"{name}: lag and change are 0 to {MAX_LAG} steps, not {str(steps)[:20]!r}")
    if lag and change:
        raise PredicateError(f"{name}: a clause has a lag or a change, not both")
    return _Clause(name, str(comparison), float(value), lag, change)
