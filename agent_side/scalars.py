"""Scalars of the training loop (losses, learning rates, mean returns), on the clock of the frames.

Logging appends a tuple to a bounded queue, about 1 µs; the sender's thread converts, and sends consecutive rows of the
same names as one message. Nothing is thinned out. Beyond the bound the oldest go, and their numbers are missing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from time import monotonic_ns, time_ns
from typing import Any, Final

import numpy as np

from interlatent_live.stream.wire import MAX_SCALAR_NAMES, MAX_SCALAR_ROWS, Scalars

__all__ = ["ScalarLog"]

_QUEUE_ROWS: Final = 65_536
_MESSAGE_VALUES: Final = 50_000
"""Values in a message at most, so that its header stays below the wire's bound."""
_NAME_LENGTH: Final = 200

_Row = tuple[int, int, int, int, dict[str, Any], int]
"""Number, step, monotonic ns, policy version, values, what the caller's clock is ahead of that in ns."""


class ScalarLog:
    """Rows that wait for the sender. `add` is for the agent's thread, `drain` for the sender's."""

    def __init__(self, run: str, boot: str, complain: Callable[[str], None]) -> None:
        self._run, self._boot, self._complain = run, boot, complain
        self._queue: deque[_Row] = deque(maxlen=_QUEUE_ROWS)
        self.rows = 0
        """Rows added = the next row's number."""
        self.dropped = 0
        """Rows that the queue pushed out."""

    def add(self, step: int, policy_version: int, values: Mapping[str, Any], ahead_ns: int = 0) -> None:
        """Queue a row. `ahead_ns`: what the clock of the frames is ahead of CLOCK_MONOTONIC. Never waits."""
        copied = {name: value if isinstance(value, float) else _copy(value) for name, value in values.items()}
        self.dropped += len(self._queue) == _QUEUE_ROWS
        self._queue.append((self.rows, step, monotonic_ns(), policy_version, copied, ahead_ns))
        self.rows += 1

    def drain(self) -> Iterator[Scalars]:
        """What was added since, rows of the same names together."""
        rows: list[_Row] = []
        names: tuple[str, ...] = ()
        values: list[tuple[float, ...]] = []
        for _ in range(len(self._queue)):
            row = self._queue.popleft()
            found = self._numbers(row[4])
            full = len(rows) >= min(MAX_SCALAR_ROWS, _MESSAGE_VALUES // max(1, len(names)))
            broken = rows and (full or rows[-1][0] + 1 != row[0])
            if rows and (tuple(found) != names or broken):
                yield self._message(rows, names, values)
                rows, values = [], []
            if found:
                names = tuple(found)
                rows.append(row)
                values.append(tuple(found.values()))
        if rows:
            yield self._message(rows, names, values)

    def _message(self, rows: list[_Row], names: tuple[str, ...], values: list[tuple[float, ...]]) -> Scalars:
        numbers, steps, clocks, versions, _, ahead = zip(*rows, strict=True)
        to_wall = time_ns() - monotonic_ns()
        return Scalars(
            self._run,
            self._boot,
            numbers[0],
            names,
            step=steps,
            monotonic_ns=tuple(max(0, clock + by) for clock, by in zip(clocks, ahead, strict=True)),
            wall_ns=tuple(clock + to_wall for clock in clocks),
            policy_version=versions,
            values=tuple(values),
        )

    def _numbers(self, values: Mapping[str, Any]) -> dict[str, float]:
        found: dict[str, float] = {}
        for name, value in values.items():
            try:
                if len(found) < MAX_SCALAR_NAMES and name:
                    found[str(name)[:_NAME_LENGTH]] = float(value)
            except (TypeError, ValueError, RuntimeError):
                self._complain(f"scalar {str(name)[:20]!r} is not logged: a {type(value).__name__} is no single number")
        return found


def _copy(value: Any) -> Any:
    """A copy of what the caller may overwrite; a tensor stays on its device."""
    if isinstance(value, np.ndarray):
        return value.copy()
    return value.detach().clone() if hasattr(value, "detach") else value
