"""What steering tells: the start and end of every intervention, and its measured effect. Two kinds of message.

The row column `intervention` says on which frames one acted; these messages say what it was, by whom and why, and what it
did to the action. Both are told by the agent, so a recording and its replay hold them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from interlatent_live.stream.errors import MalformedMessage

__all__ = ["MAX_EFFECT_ROWS", "Effects", "Intervention"]

Count = Callable[[Mapping[str, Any], str], int]
"""A whole number of a map, or a WireError."""
MAX_EFFECT_ROWS: Final = 4_096
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

    def header(self) -> dict[str, Any]:
        """What the wire's header holds beside its common keys."""
        columns = {name: list(getattr(self, name)) for name in (*_COUNTS, *_VALUES)}
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
        return cls(run, boot, count(header, "seq"), str(kind), **columns)
