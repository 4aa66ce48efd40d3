"""Interventions and their measured effects as rows: written by the analyzer, read by the page and the command line."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from interlatent_live.analyzer.writes import Value, Writes
from interlatent_live.stream.intervention import Effects, Intervention

__all__ = ["EffectRow", "InterventionRow", "OutcomeRow", "decode_intervention", "decode_outcome", "intervened", "measured"]

_APART: Final = ("author", "reason", "condition", "shadow")


@dataclass(frozen=True, slots=True)
class InterventionRow:
    """What was done to the agent, from frame `first_seq` until before `next_seq`."""

    number: int
    """As the row column `intervention` has it."""
    id: str
    author: str
    reason: str
    edit: Mapping[str, Any]
    """operation, strength, unit, feature, direction (its width), dictionary, dictionary_hash, output, env, ttl_s, max_effect."""
    condition: str | None
    shadow: int
    first_seq: int | None
    """None: its start was not received."""
    next_seq: int | None
    """None while it is in force."""
    cause: str | None
    started_wall_ns: int | None
    ended_wall_ns: int | None


@dataclass(frozen=True, slots=True)
class EffectRow:
    """What an intervention did to the action of frame `seq`."""

    number: int
    seq: int
    kind: str
    """'kl': nats. 'sd': standard deviations of the action."""
    value: float | None
    factor: float
    """What a limit left of the change, 1: all."""
    monotonic_ns: int
    wall_ns: int


@dataclass(frozen=True, slots=True)
class OutcomeRow:
    """What the agent does with and without an intervention, as measured on frame `seq`."""

    number: int
    seq: int
    measure: str
    """'share': probabilities of actions. 'value': numbers of the action."""
    actions: tuple[int, ...]
    """Numbers of the actions or components."""
    steered: tuple[float, ...]
    unsteered: tuple[float, ...]


def decode_outcome(row: tuple[Any, ...]) -> tuple[Any, ...]:
    """Columns in the order of OutcomeRow."""
    return (*row[:3], *(tuple(json.loads(text)) for text in row[3:]))


def decode_intervention(row: tuple[Any, ...]) -> tuple[Any, ...]:
    """Columns in the order of InterventionRow."""
    return (*row[:4], json.loads(row[4]), *row[5:])


def intervened(message: Intervention, writes: Writes) -> None:
    """The row of an intervention, or its end. Twice is once."""
    key: dict[str, Value] = {"run": message.run, "boot": message.boot, "number": message.number}
    told, start = message.told, message.event == "start"
    condition = told.get("condition")
    writes.insert_once(
        "interventions",
        **key,
        id=message.id,
        author=str(told.get("author", "")),
        reason=str(told.get("reason", "")),
        edit=json.dumps({name: value for name, value in told.items() if name not in _APART}, sort_keys=True),
        condition=None if condition is None else str(condition),
        shadow=int(bool(told.get("shadow"))),
        first_seq=message.frame if start else None,
        started_wall_ns=message.wall_ns if start else None,
    )
    if not start:
        sql = "UPDATE interventions SET next_seq = ?, cause = ?, ended_wall_ns = ? WHERE run = ? AND boot = ? AND number = ?"
        writes.execute(sql, message.frame, message.cause, message.wall_ns, *key.values())


def measured(message: Effects, writes: Writes) -> None:
    """A row for each measurement, and one for what is done with and without where that is told. Twice is once."""
    for i, outcome in enumerate(message.outcome):
        if outcome is not None:
            writes.insert_once(
                "outcomes",
                run=message.run,
                boot=message.boot,
                number=message.number[i],
                seq=message.frame[i],
                measure=outcome.measure,
                actions=json.dumps(outcome.actions),
                steered=json.dumps(outcome.steered),
                unsteered=json.dumps(outcome.unsteered),
            )
    for i, value in enumerate(message.value):
        writes.insert_once(
            "effects",
            run=message.run,
            boot=message.boot,
            number=message.number[i],
            seq=message.frame[i],
            kind=message.kind,
            value=None if math.isnan(value) else value,
            factor=message.factor[i],
            monotonic_ns=message.monotonic_ns[i],
            wall_ns=message.wall_ns[i],
        )
