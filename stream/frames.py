"""A frame is one step of one environment; a FrameBatch is consecutive frames, columnar.

A FrameBatch is sent, recorded, replayed, analysed and committed whole, and never re-cut: the same batches give the same
analysis.
It holds numpy arrays only and costs no copy to decode from the wire; the cheaper alternative is `Signals` in
`stream.wire` (a few numbers a second).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from interlatent_live.stream.errors import MalformedMessage

__all__ = ["BASE_COLUMNS", "FrameBatch"]

Array = npt.NDArray[Any]

BASE_COLUMNS: Mapping[str, str] = {
    # number of the agent's step, shared by the environments of a vector; steps without a frame are counted too
    "step": "<i8",
    "env": "<i4",  # index of the environment
    "episode": "<i4",  # number of the episode in its environment, from 0
    "episode_step": "<i4",  # step within the episode, from 0
    "monotonic_ns": "<i8",  # agent host's CLOCK_MONOTONIC when the step was sealed
    "wall_ns": "<i8",  # agent host's Unix time when the step was sealed
    "policy_version": "<i4",  # counts updates of the weights
    "forward_age": "<i4",  # steps since the last forward pass; 0: one ran in this step; -1: none ever ran
}
"""Row columns that every batch has, with their wire dtype."""

OPTIONAL_COLUMNS: tuple[str, ...] = ("observation", "metrics", "action", "reward", "terminated", "truncated", "intervention")
"""observation (n, k) float32; metrics (n, m) float64, NaN where unknown; action (n, a); reward (n,) float64, NaN where
unknown; terminated, truncated (n,) bool; intervention (n, m) int32, numbers of the interventions that acted
on the frame, then -1."""


@dataclass(frozen=True, slots=True, eq=False)
class FrameBatch:
    """Consecutive frames of one stream.

    `columns[name]`: (rows, ...) arrays, see BASE_COLUMNS and OPTIONAL_COLUMNS.
    `activations[point]`: (m, *shape) float32/float16 arrays, or uint16 holding bfloat16 bits (the manifest's dtype says
    which).
    `present[point]`: (m,) int32 row indices, only where some rows ran no forward (m < rows).
    """

    run: str
    boot: str
    """Identity of the agent's process; a restarted agent has a new one and counts from 0 again."""
    manifest_hash: str
    first_seq: int
    """Sequence number of row 0; rows are consecutive."""
    queue_dropped: int
    """Frames of this stream that the agent's queue had dropped before row 0, in all."""
    columns: Mapping[str, Array]
    activations: Mapping[str, Array] = field(default_factory=dict)
    present: Mapping[str, Array] = field(default_factory=dict)

    def __post_init__(self) -> None:
        missing = [name for name in BASE_COLUMNS if name not in self.columns]
        if missing:
            raise MalformedMessage(f"frame batch lacks the column(s) {', '.join(missing)}; docs/wire.md lists those required")
        rows = len(self.columns["step"])
        if rows == 0:
            raise MalformedMessage("frame batch has 0 rows; an empty batch is not sent")
        for name, column in self.columns.items():
            if column.ndim == 0 or len(column) != rows:
                raise MalformedMessage(f"column {name!r} has shape {column.shape}, but the batch has {rows} rows")
        for point, values in self.activations.items():
            index = self.present.get(point)
            expected = rows if index is None else len(index)
            if values.ndim == 0 or len(values) != expected:
                raise MalformedMessage(f"activations of {point!r} have shape {values.shape}, but {expected} rows are announced")
            if index is not None and len(index) and not (int(index[0]) >= 0 and int(index[-1]) < rows and bool(np.all(np.diff(index) > 0))):
                raise MalformedMessage(f"row indices of {point!r} are not strictly rising within 0..{rows - 1}")

    @property
    def rows(self) -> int:
        """Number of frames."""
        return len(self.columns["step"])

    @property
    def next_seq(self) -> int:
        """Sequence number that follows the last row."""
        return self.first_seq + self.rows

    @property
    def seq(self) -> npt.NDArray[np.int64]:
        """(rows,) sequence numbers."""
        return np.arange(self.first_seq, self.next_seq, dtype=np.int64)

    def rows_of(self, point: str) -> npt.NDArray[np.int32]:
        """(m,) indices of the rows in which `point` fired, rising."""
        index = self.present.get(point)
        return np.arange(self.rows, dtype=np.int32) if index is None else index.astype(np.int32, copy=False)

    @property
    def nbytes(self) -> int:
        """Bytes of all columns, as they travel."""
        groups = (self.columns, self.activations, self.present)
        return sum(int(a.nbytes) for group in groups for a in group.values())
