"""Interventions in force: what the hooks do to what passes, on the agent's thread.

    hook at the dictionary's input ──▶ x is kept for this forward pass
    hook at its output             ──▶ y + change(x), where an intervention is in force and its condition holds

`Force` is immutable and replaced whole; a hook reads it once. What changes inside an `Act` are single attributes: its
lease (extended by the author's heartbeat), `dead` (set by a release: the next forward pass goes without), how far it was
turned down, and whether its condition holds. Whatever fails ends the act, and the agent goes on with its own activation.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from time import monotonic_ns
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import numpy as np
import torch

from interlatent_live.analyzer.edit import Edit, feature_values
from interlatent_live.analyzer.edit_row import PreparedEdit

if TYPE_CHECKING:
    from interlatent_live.analyzer.dictionary import Dictionary
    from interlatent_live.stream.condition import Condition
    from interlatent_live.stream.intervention import Outcome

__all__ = ["Act", "Cause", "Force", "History", "Steered"]

Cause: TypeAlias = Literal["", "expired", "author_gone", "released", "released_all", "closed", "error"]
"""Why an intervention ended; '' while it is in force."""
_FOREVER: Final = (1 << 62) - 1


class Act:
    """One intervention. What identifies it never changes."""

    def __init__(
        self,
        number: int,
        id: str,
        edit: Edit,
        dictionary: Dictionary | None,
        *,
        input: int,
        output: int,
        output_name: str,
        width: int,
        author: str,
        reason: str,
        ttl_s: float,
        lease_ns: int | None,
        condition: Condition | None = None,
        shadow: bool = False,
        env: int | None = None,
        max_effect: float | None = None,
        max_change: float = math.inf,
        unit: str = "activation",
    ) -> None:
        self.number, self.id, self.edit, self.dictionary = number, id, edit, dictionary
        self.input, self.output, self.output_name, self.width = input, output, output_name, width
        self.author, self.reason, self.ttl_s, self.shadow, self.env = author, reason, ttl_s, shadow, env
        self.max_effect, self.max_change, self.unit = max_effect, max_change, unit
        self.condition = condition
        self.deadline_ns = monotonic_ns() + int(ttl_s * 1e9)
        self.lease_ns = _FOREVER if lease_ns is None else lease_ns
        """When the author counts as gone, by the agent's monotonic clock."""
        self.dead: Cause = ""
        """Set where it is to end at once."""
        self.factor = 1.0
        """What is left of the change after a limit on the effect has turned it down."""
        self.clipped = 0
        """Rows whose change was cut to `max_change`."""
        self.effect: float | None = None
        """The last effect measured."""
        self.kind = ""
        """Of the effect: 'kl' or 'sd'."""
        self.outcome: Outcome | None = None
        """What the agent does with and without, as measured last."""
        self.measured = 0
        """How often it was measured."""
        self.on: list[bool] | None = None
        """By environment: whether the condition holds; None: there is none."""
        self.features: dict[str, list[float]] = {}
        """Features that the condition asks for, by environment, of the last forward pass."""
        self.watched = () if condition is None else tuple(
            (name, int(name[1:])) for name in condition.names if dictionary is not None and is_feature(name)
        )  # fmt: skip
        self._prepared = PreparedEdit(edit, dictionary)

    @property
    def needs_input(self) -> bool:
        """Whether x has to be known."""
        return self.edit.feature is not None or bool(self.watched)

    def live(self, now: int) -> bool:
        """Whether it acts at `now`, CLOCK_MONOTONIC in ns; its condition apart."""
        return not self.dead and now < self.deadline_ns and now < self.lease_ns

    def over(self, now: int) -> Cause:
        """Why it has ended by `now`, or ''."""
        return self.dead or ("expired" if now >= self.deadline_ns else "author_gone" if now >= self.lease_ns else "")

    def change(self, x: torch.Tensor | None, y: torch.Tensor, envs: int) -> torch.Tensor | None:
        """What is to be added to y (n, d_out), or None. x (n, d_in) float32; n rows are those of `envs` environments."""
        if x is None:
            if self.edit.feature is not None:
                return None
            change = self._prepared.change(y)
        else:
            if self.watched:
                self._look(x, envs)
            change = self._prepared.change(x)
        if change is None:
            return None
        rows = len(y)
        if self.on is not None or self.env is not None:
            mask = self._rows(rows, envs)
            if not any(mask):
                return None
            if not all(mask):
                change = change * torch.tensor(mask, dtype=change.dtype, device=change.device)[:, None]
        if self.max_change != math.inf:
            change = self._bounded(change, y)
        return change if self.factor == 1.0 else change * self.factor

    def row(self, x: Any, y: Any) -> Any:
        """As `change`, for the one row of a single environment: arrays x (d_in,), y (d_out,) float32 -> (d_out,) or None."""
        if x is not None and self.watched:
            self._look(torch.from_numpy(x)[None], 1)
        change = self._prepared.row(y if x is None else x)
        if change is None or (self.on is not None and not self.on[0]):
            return None
        if self.max_change != math.inf:
            size, limit = float(change @ change), float(y @ y) * self.max_change**2
            if size > limit:
                self.clipped += 1
                change = change * np.float32(math.sqrt(limit / size))
        return change if self.factor == 1.0 else change * np.float32(self.factor)

    def holds(self) -> bool:
        """Whether it acts on any environment, as far as its condition goes."""
        return self.on is None or any(self.on)

    def _rows(self, rows: int, envs: int) -> list[bool]:
        """Which rows it acts on; with tokens, an environment has several."""
        each = rows // envs if envs and rows % envs == 0 else 0
        if not each:  # rows that belong to nobody known: all or nothing
            return [self.env is None and self.on is None] * rows
        return [(self.env is None or row // each == self.env) and (self.on is None or self.on[row // each]) for row in range(rows)]

    def _bounded(self, change: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        size = torch.linalg.vector_norm(change, dim=1)
        limit = torch.linalg.vector_norm(y.detach().to(change.dtype), dim=1) * self.max_change
        if change.device.type == "cpu":
            over = size > limit
            if not bool(over.any()):
                return change
            self.clipped += int(over.sum())
        return change * torch.clamp(limit / size.clamp(min=1e-30), max=1.0)[:, None]

    def _look(self, x: torch.Tensor, envs: int) -> None:
        assert self.dictionary is not None
        columns = feature_values(self.dictionary, x.detach(), [n for _, n in self.watched]).reshape(len(x), -1)
        each = len(x) // envs if envs and len(x) % envs == 0 else 0
        last = columns[each - 1 :: each] if each else columns[:0]
        self.features = {name: last[:, i].tolist() for i, (name, _) in enumerate(self.watched)}


class Force:
    """What is in force, at once, immutable."""

    __slots__ = ("acts", "inputs", "sites")

    def __init__(self, acts: Sequence[Act]) -> None:
        self.acts = tuple(acts)
        sites: dict[int, list[Act]] = {}
        for act in acts:
            sites.setdefault(act.output, []).append(act)
        self.sites: Mapping[int, tuple[Act, ...]] = {index: tuple(found) for index, found in sites.items()}
        """By tap point: the acts that change what passes there."""
        self.inputs = frozenset(act.input for act in acts if act.needs_input)
        """Tap points whose tensors acts ask for."""


class Steered:
    """An intervention of this process: `with` it, or `release()` it."""

    def __init__(self, act: Act, end: Callable[[str | None, Cause], list[str]]) -> None:
        self._act, self._end = act, end
        self.id = act.id
        self.number = act.number
        """As the row column `intervention` has it."""

    @property
    def active(self) -> bool:
        """Whether it is still in force; its condition apart."""
        return self._act.live(monotonic_ns())

    @property
    def effect(self) -> float | None:
        """The last effect on the action that was measured."""
        return self._act.effect

    def release(self) -> None:
        """End it: the next forward pass goes without. Twice is once."""
        self._end(self.id, "released")

    def __enter__(self) -> Steered:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()


class History:
    """The last values of what a condition names, by environment, of the episode that runs. For the agent's thread."""

    def __init__(self, condition: Condition, envs: int) -> None:
        self._condition = condition
        self._values: list[deque[dict[str, float]]] = [deque(maxlen=condition.reach + 1) for _ in range(envs)]

    def add(self, env: int, values: dict[str, float]) -> bool:
        """Take in a frame; whether the condition is true of it."""
        past = self._values[env]
        past.append(values)

        def look(name: str, back: int) -> float:
            return past[-1 - back].get(name, math.nan) if back < len(past) else math.nan

        return self._condition.truth(look) is True

    def clear(self, env: int) -> None:
        """The episode ended."""
        self._values[env].clear()


def is_feature(name: Any) -> bool:
    """Whether a name is a feature's, as `f41`."""
    return isinstance(name, str) and name[:1] == "f" and name[1:].isdecimal() and len(name) <= 10 and str(int(name[1:])) == name[1:]
