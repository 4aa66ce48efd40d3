"""What was done to the agent, as the database tells it: kept by a feed, for every page, whether it may steer or not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from interlatent_live.analyzer.interventions import EffectRow, InterventionRow, OutcomeRow
from interlatent_live.analyzer.queries import Reader

__all__ = ["KEPT", "Done", "Steered", "did"]

KEPT: Final = 40
"""Newest interventions that are shown."""
EFFECTS: Final = 120
"""Newest measurements of each."""


@dataclass(frozen=True, slots=True)
class Done:
    """One intervention with what was measured of it."""

    row: InterventionRow
    effects: tuple[EffectRow, ...]
    """Newest last."""
    outcome: OutcomeRow | None
    """What is done with and without, as measured last."""


class Steered:
    """The interventions of one boot, looked at now and then."""

    def __init__(self) -> None:
        self.done: tuple[Done, ...] = ()
        """In the order in which they began."""
        self.begun = (0, 0)
        """How many began and ended, among those kept: changes when one does either."""
        self.version = 0
        """Rises with every change."""
        self._settled: set[int] = set()

    def look(self, reader: Reader, boot: str) -> None:
        """Read what is new; those that have ended are read once more, for their last measurement may come after their end."""
        before = {d.row.number: d for d in self.done}
        found = []
        for row in reader.interventions(boot, KEPT):
            known = before.get(row.number) if row.number in self._settled else None
            if known is None:
                effects = tuple(reader.effects(boot, row.number, EFFECTS))
                known = Done(row, effects, reader.outcome(boot, row.number) if effects else None)
                ended = before.get(row.number)
                if ended is not None and ended.row.next_seq is not None:
                    self._settled.add(row.number)
            found.append(known)
        if tuple(found) != self.done:
            self.done = tuple(found)
            self.begun = (found[-1].row.number + 1 if found else 0, sum(d.row.next_seq is not None for d in found))
            self.version += 1


def did(edit: Mapping[str, Any]) -> str:
    """What an intervention does to its feature, in a word and a number."""
    operation, strength = str(edit.get("operation", "")), edit.get("strength")
    size = f"{strength:g}".replace("-", "−") if isinstance(strength, (int, float)) and not isinstance(strength, bool) else ""
    plus = size if size.startswith("−") else f"+{size}"
    return {"ablate": "ablated", "scale": f"× {size}", "clamp": f"held at {size}", "add": plus}.get(operation, operation)
