"""What steering tells: the start and end of every intervention, and its measured effect. Two kinds of message.

The row column `intervention` says on which frames one acted; these messages say what it was, by whom and why, and what it
did to the action. Both are told by the agent, so a recording and its replay hold them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from interlatent_live.stream.errors import MalformedMessage

__all__ = ["MAX_EFFECT_ROWS", "MAX_OUTCOMES", "Effects", "Intervention", "Outcome"]

Count = Callable[[Mapping[str, Any], str], int]
"""A whole number of a map, or a WireError."""
MAX_EFFECT_ROWS: Final = 4_096
MAX_OUTCOMES: Final = 16
"""Actions of which an outcome tells."""
_MAX_ID: Final = 64
_STARTED: Final = ("seq", "number", "frame", "step", "monotonic_ns", "wall_ns")
_COUNTS: Final = ("number", "frame", "monotonic_ns", "wall_ns")
_VALUES: Final = ("value", "factor")


@dataclass(frozen=True, slots=True)
class Intervention:
    """The start or the end of an intervention: from which frame on, by whom, why."""

    run: str
    boot: str
    seq: int
    """Number of this message among the boot's of its kind."""
    number: int
    """Number of the intervention in its boot, as the row column `intervention` has it."""
    id: str
    event: str
    """'start' or 'end'."""
    cause: str
    """Of an end: 'expired', 'author_gone', 'released', 'released_all', 'closed' or 'error'; '' of a start."""
    frame: int
    """Sequence number of the first frame that it may act on, or no longer acts on."""
    step: int
    monotonic_ns: int
    wall_ns: int
    told: Mapping[str, Any] = field(default_factory=dict)
    """author, reason, operation, strength, unit, feature, direction (its width), dictionary, dictionary_hash, output, env, condition,
    shadow, ttl_s, max_effect; None where it does not apply."""

    def header(self) -> dict[str, Any]:
        """What the wire's header holds beside its common keys."""
        names = (*_STARTED, "id", "event", "cause")
        return {"boot": self.boot, **{name: getattr(self, name) for name in names}, "told": dict(self.told)}

    @classmethod
    def read(cls, run: str, boot: str, header: Mapping[str, Any], count: Count) -> Intervention:
        """Inverse of `header`. Raises a WireError."""
        id, event, cause, told = (header.get(name) for name in ("id", "event", "cause", "told"))
        if not isinstance(id, str) or not 0 < len(id) <= _MAX_ID or not isinstance(cause, str) or len(cause) > _MAX_ID:
            raise MalformedMessage(f"intervention: `id` (1 to {_MAX_ID} characters) and `cause` are text")
        if event not in ("start", "end"):
            raise MalformedMessage(f"intervention: `event` is {str(event)[:40]!r}, not 'start' or 'end'")
        if not isinstance(told, dict) or not all(isinstance(value, (str, int, float, type(None))) for value in told.values()):
            raise MalformedMessage("intervention: `told` is not a flat map")
        counts = {name: count(header, name) for name in _STARTED}
        return cls(run, boot, id=id, event=event, cause=cause, told={str(k): v for k, v in told.items()}, **counts)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the agent would do with and without: mean over its environments, of the actions that say most."""

    measure: str
    """'share': probabilities of actions. 'value': components of the action, or what the model returns for it."""
    actions: tuple[int, ...]
    """Numbers of the actions or components, rising; at most 16."""
    steered: tuple[float, ...]
    unsteered: tuple[float, ...]

    @property
    def data(self) -> list[Any]:
        """As plain data."""
        return [self.measure, list(self.actions), list(self.steered), list(self.unsteered)]

    @classmethod
    def of(cls, data: Any) -> Outcome:
        """Inverse of `data`. Raises MalformedMessage."""
        if not isinstance(data, (list, tuple)) or len(data) != 4 or data[0] not in ("share", "value"):
            raise MalformedMessage("effects: an outcome is ['share' or 'value', actions, steered, unsteered]")
        columns = [tuple(column) if isinstance(column, (list, tuple)) else () for column in data[1:]]
        if not 0 < len(columns[0]) <= MAX_OUTCOMES or len({len(column) for column in columns}) != 1:
            raise MalformedMessage(f"effects: an outcome has three lists of 1 to {MAX_OUTCOMES} numbers, equally long")
        if not all(type(a) is int and 0 <= a < 1 << 31 for a in columns[0]):
            raise MalformedMessage("effects: an outcome names actions by their numbers")
        if any(isinstance(v, bool) or not isinstance(v, (int, float)) for column in columns[1:] for v in column):
            raise MalformedMessage("effects: an outcome holds something that is no number")
        return cls(data[0], columns[0], tuple(map(float, columns[1])), tuple(map(float, columns[2])))


@dataclass(frozen=True, slots=True)
class Effects:
    """What interventions did to the action, as measured; by row."""

    run: str
    boot: str
    seq: int
    """Number of row 0 among the boot's rows of effects."""
    kind: str
    """'kl': nats. 'sd': standard deviations of the action."""
    number: tuple[int, ...]
    frame: tuple[int, ...]
    """Sequence number of the frame it was measured on."""
    monotonic_ns: tuple[int, ...]
    wall_ns: tuple[int, ...]
    value: tuple[float, ...]
    """NaN: not known."""
    factor: tuple[float, ...]
    """What a limit left of the change, 1: all."""
    outcome: tuple[Outcome | None, ...] = ()
    """What is done with and without, by row; (): not told."""

    def header(self) -> dict[str, Any]:
        """What the wire's header holds beside its common keys."""
        columns = {name: list(getattr(self, name)) for name in (*_COUNTS, *_VALUES)}
        if any(self.outcome):
            columns["outcome"] = [None if one is None else one.data for one in self.outcome]
        return {"boot": self.boot, "seq": self.seq, "kind": self.kind, **columns}

    @classmethod
    def read(cls, run: str, boot: str, header: Mapping[str, Any], count: Count) -> Effects:
        """Inverse of `header`. Raises a WireError."""
        kind, value = header.get("kind"), header.get("value")
        if kind not in ("kl", "sd") or not isinstance(value, list) or not 0 < len(value) <= MAX_EFFECT_ROWS:
            raise MalformedMessage(f"effects: `kind` 'kl' or 'sd', and `value`, a list of 1 to {MAX_EFFECT_ROWS} numbers, are needed")
        columns: dict[str, Any] = {}
        for name in (*_COUNTS, *_VALUES):
            column = header.get(name)
            if not isinstance(column, list) or len(column) != len(value):
                raise MalformedMessage(f"effects: `{name}` is not a list of {len(value)} numbers")
            if name in _COUNTS:
                columns[name] = tuple(count({name: item}, name) for item in column)
            elif not all(isinstance(item, (int, float)) for item in column):
                raise MalformedMessage(f"effects: `{name}` holds something that is no number")
            else:
                columns[name] = tuple(float(item) for item in column)
        outcome = header.get("outcome")
        if outcome is not None:
            if not isinstance(outcome, list) or len(outcome) != len(value):
                raise MalformedMessage(f"effects: `outcome` is not a list of {len(value)}")
            columns["outcome"] = tuple(None if one is None else Outcome.of(one) for one in outcome)
        return cls(run, boot, count(header, "seq"), str(kind), **columns)
