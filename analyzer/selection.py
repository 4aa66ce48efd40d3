"""Which frames of a run are meant: all, an episode, a range of steps, one environment, one boot.

A selection reads only the extents that may hold its frames, and gives what it finds batch by batch; it costs nothing
until it is asked.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from interlatent_live.analyzer.sources import Source
from interlatent_live.stream.errors import RecordingError
from interlatent_live.stream.frames import FrameBatch

__all__ = ["Selection", "Where"]

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Where:
    """What frames have to be; None: anything."""

    boot: str | None = None
    env: int | None = None
    episode: int | None = None
    steps: tuple[int, int] | None = None
    """The agent's step numbers [first, next)."""

    def rows(self, batch: FrameBatch) -> Rows:
        """Rows of a batch that are meant."""
        columns = batch.columns
        kept = np.full(batch.rows, self.boot in (None, batch.boot))
        if self.env is not None:
            kept &= columns["env"] == self.env
        if self.episode is not None:
            kept &= columns["episode"] == self.episode
        if self.steps is not None:
            kept &= (columns["step"] >= self.steps[0]) & (columns["step"] < self.steps[1])
        return np.flatnonzero(kept)

    def __str__(self) -> str:
        parts = [f"{name} {value}" for name in ("boot", "env", "episode") if (value := getattr(self, name)) is not None]
        return ", ".join([*parts, *([f"steps {self.steps[0]} to {self.steps[1]}"] if self.steps else [])]) or "all frames"


@dataclass(frozen=True)
class Selection:
    """Frames of a source."""

    source: Source
    where: Where = Where()

    def narrowed(
        self, *, boot: str | None = None, env: int | None = None, episode: int | None = None, steps: tuple[int, int] | None = None
    ) -> Selection:
        """The frames of these that are also that."""
        old = self.where
        if boot is not None and boot not in self.source.boots:
            raise RecordingError(f"{self.source.path} has no boot {boot!r}; it has {', '.join(self.source.boots)}")
        if steps is not None:
            if steps[0] < 0 or steps[1] < steps[0]:
                raise RecordingError(f"steps {steps[0]} to {steps[1]} are no range; give the first, and the one after the last")
            if old.steps is not None:
                steps = (max(steps[0], old.steps[0]), max(steps[0], min(steps[1], old.steps[1])))
        for name, new in (("boot", boot), ("env", env), ("episode", episode)):
            if new is not None and getattr(old, name) not in (None, new):
                raise RecordingError(f"{name} {new} of {old} is nothing; ask the whole run")
        given: dict[str, Any] = {"boot": boot, "env": env, "episode": episode, "steps": steps}
        return replace(self, where=replace(old, **{name: value for name, value in given.items() if value is not None}))

    @cached_property
    def extents(self) -> Rows:
        """Numbers of the extents that may hold frames of these."""
        entries, where = self.source.extents, self.where
        found = entries["rows"] > 0
        if where.boot is not None:
            found &= entries["boot"] == self.source.boots.index(where.boot)
        if where.steps is not None:
            found &= (entries["first_step"] < where.steps[1]) & (entries["last_step"] >= where.steps[0])
        if where.episode is not None:
            found &= self.source.episode(where.episode, where.env)
        return np.flatnonzero(found)

    @property
    def whole(self) -> bool:
        """Whether every frame of its extents is meant, so that they need not be read to be counted."""
        where = self.where
        return where.env is None and where.episode is None and where.steps is None

    @cached_property
    def frames(self) -> int:
        """How many frames these are."""
        if self.whole:
            return int(self.source.extents["rows"][self.extents].sum(dtype=np.int64))
        return sum(len(rows) for _, rows in self)

    def __iter__(self) -> Iterator[tuple[FrameBatch, Rows]]:
        for extent in self.extents:
            yield from self.extent(int(extent))

    def extent(self, number: int) -> Iterator[tuple[FrameBatch, Rows]]:
        """Batches of an extent that hold frames of these, with the rows meant."""
        for batch in self.source.batches(number):
            rows = self.where.rows(batch)
            if len(rows):
                yield batch, rows

    def between(self, start: int, stop: int) -> Iterator[tuple[FrameBatch, Rows]]:
        """The frames at positions [start, stop) among these, without reading what lies before where that is known."""
        position = 0
        for extent in self.extents:
            if position >= stop:
                return
            held = int(self.source.extents["rows"][extent])
            if self.whole and position + held <= start:
                position += held
                continue
            for batch, rows in self.extent(int(extent)):
                wanted = rows[max(0, start - position) : max(0, stop - position)]
                position += len(rows)
                if len(wanted):
                    yield batch, wanted
