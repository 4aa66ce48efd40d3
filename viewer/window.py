"""The last seconds of one environment, as the page needs them: frames with their metrics and their codes.

Bounded by frame time and by frames; nothing here knows Bokeh or a database connection.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from interlatent_live.analyzer.codes import Codes
from interlatent_live.analyzer.records import BatchRow, CodesRow

__all__ = ["MAX_FRAMES", "Piece", "Window", "merge", "piece", "piece_of"]

MAX_FRAMES: Final = 120_000
"""Frames kept at most, whatever their rate: 30 s of 4,000 a second."""


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """Frames of one environment out of one batch, in order."""

    t: npt.NDArray[np.float64]
    """(n,) seconds of the agent's monotonic clock since the boot began."""
    step: npt.NDArray[np.int64]
    episode: npt.NDArray[np.int64]
    episode_step: npt.NDArray[np.int64]
    reward: npt.NDArray[np.float64]
    """(n,) NaN where unknown."""
    metrics: npt.NDArray[np.float64]
    """(n, m) NaN where unknown."""
    action: npt.NDArray[Any] | None
    """(n, a)"""
    version: npt.NDArray[np.int64]
    """(n,) of the policy."""
    seq: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int64]
    """(n,) row of `codes`, -1 where the frame was not encoded."""
    codes: Codes | None

    def __len__(self) -> int:
        return len(self.t)

    def cut(self, first: int, last: int) -> Piece:
        """Frames [first, last)."""
        part = slice(first, last)
        action = None if self.action is None else self.action[part]
        return Piece(
            self.t[part], self.step[part], self.episode[part], self.episode_step[part], self.reward[part], self.metrics[part], action,
            self.version[part], self.seq[part], self.rows[part], self.codes,
        )  # fmt: skip

    def values(self, slots: npt.NDArray[np.int64], width: int) -> npt.NDArray[np.float32]:
        """(n, width) activations of the features that `slots` (features,) places in a column; -1 leaves one out. NaN where not encoded."""
        out = np.full((len(self), width), np.nan, np.float32)
        if self.codes is None or not width:
            return out
        dense = np.zeros((self.codes.rows, width), np.float32)
        column = slots[self.codes.indices]
        shown = column >= 0
        dense[self.codes.row_index[shown], column[shown]] = self.codes.values[shown]
        encoded = self.rows >= 0
        out[encoded] = dense[self.rows[encoded]]
        return out


def piece(batch: BatchRow, coded: CodesRow | None, start_ns: int, env: int, metrics: int) -> Piece | None:
    """The frames of environment `env` in a batch, or None if it has none. `metrics`: how many the manifest names."""
    rows = np.full(batch.rows, -1, np.int64)
    if coded is not None:
        rows[coded.rows] = np.arange(len(coded.rows))
    seq = batch.first_seq + np.arange(batch.rows)
    return piece_of(batch.columns, seq, rows, None if coded is None else coded.codes, start_ns, env, metrics)


def piece_of(
    columns: Mapping[str, npt.NDArray[Any]], seq: npt.NDArray[np.int64], rows: npt.NDArray[np.int64], codes: Codes | None, start_ns: int,
    env: int, metrics: int,
) -> Piece | None:  # fmt: skip
    """The same from columns: `seq` (n,) of all environments, `rows` (n,) their row of `codes`, -1 where not encoded."""
    mine = np.flatnonzero(columns["env"] == env)
    if not len(mine):
        return None
    n = len(mine)
    table = columns.get("metrics")
    reward, action = columns.get("reward"), columns.get("action")
    return Piece(
        t=(columns["monotonic_ns"][mine] - start_ns) / 1e9,
        step=columns["step"][mine].astype(np.int64),
        episode=columns["episode"][mine].astype(np.int64),
        episode_step=columns["episode_step"][mine].astype(np.int64),
        reward=np.full(n, np.nan) if reward is None else reward[mine].astype(np.float64),
        metrics=np.full((n, metrics), np.nan) if table is None or table.shape[1] != metrics else table[mine],
        action=None if action is None else action[mine].reshape(n, -1),
        version=columns["policy_version"][mine].astype(np.int64) if "policy_version" in columns else np.zeros(n, np.int64),
        seq=seq[mine],
        rows=rows[mine],
        codes=codes,
    )


def merge(pieces: Sequence[Piece]) -> Piece | None:
    """Consecutive pieces as one; None for none."""
    if not pieces:
        return None
    coded = [p.codes for p in pieces if p.codes is not None]
    codes = Codes.joined(coded) if coded else None
    rows, before = [], 0
    for part in pieces:
        rows.append(np.where(part.rows >= 0, part.rows + before, -1))
        before += 0 if part.codes is None else part.codes.rows
    actions = [p.action for p in pieces if p.action is not None]
    alike = len(actions) == len(pieces) and len({a.shape[1] for a in actions}) == 1

    def joined(name: str) -> npt.NDArray[Any]:
        return np.concatenate([getattr(p, name) for p in pieces])

    return Piece(
        t=joined("t"), step=joined("step"), episode=joined("episode"), episode_step=joined("episode_step"), reward=joined("reward"),
        metrics=joined("metrics"), action=np.concatenate(actions) if alike else None, version=joined("version"), seq=joined("seq"),
        rows=np.concatenate(rows), codes=codes,
    )  # fmt: skip


class Window:
    """Pieces of the last `span_s` seconds of frame time."""

    def __init__(self, span_s: float) -> None:
        self.span_s = span_s
        self._pieces: deque[Piece] = deque()
        self._frames = 0

    def __iter__(self) -> Iterator[Piece]:
        return iter(self._pieces)

    def __bool__(self) -> bool:
        return bool(self._pieces)

    def __len__(self) -> int:
        return self._frames

    @property
    def last(self) -> Piece:
        """The newest piece."""
        return self._pieces[-1]

    @property
    def period_s(self) -> float | None:
        """Median seconds between frames of the newest few hundred, None before there are two."""
        times: list[npt.NDArray[np.float64]] = []
        count = 0
        for part in reversed(self._pieces):
            times.append(part.t)
            count += len(part)
            if count >= 300:
                break
        if count < 2:
            return None
        return float(np.median(np.diff(np.concatenate(times[::-1]))))

    @property
    def steps_per_s(self) -> float | None:
        """Steps per second of frame time over the last five seconds, None before there are two frames."""
        if not self._pieces:
            return None
        until, last = self.last.t[-1], self.last.step[-1]
        first: tuple[float, int] | None = None
        for part in reversed(self._pieces):
            if until - part.t[0] > 5 and first is not None:
                break
            first = float(part.t[0]), int(part.step[0])
        if first is None or until <= first[0]:
            return None
        return float((last - first[1]) / (until - first[0]))

    def extend(self, pieces: Iterable[Piece]) -> None:
        """Append newer pieces and let go of old ones."""
        for part in pieces:
            self._pieces.append(part)
            self._frames += len(part)
        while len(self._pieces) > 1 and (
            self._frames > MAX_FRAMES or self.last.t[-1] - self._pieces[0].t[-1] > self.span_s
        ):
            self._frames -= len(self._pieces.popleft())

    def counts(self, features: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32], int]:
        """(features,) frames in which each was active, (features,) largest magnitude, and encoded frames; in this window."""
        maximum = np.zeros(features, np.float32)
        coded = list({id(part.codes): part.codes for part in self._pieces if part.codes is not None}.values())
        if not coded:
            return np.zeros(features, np.int64), maximum, 0
        indices = np.concatenate([codes.indices for codes in coded])  # at once: a robot's window has 1,500 pieces of one frame
        np.maximum.at(maximum, indices, np.abs(np.concatenate([codes.values for codes in coded])))
        return np.bincount(indices, minlength=features), maximum, sum(codes.rows for codes in coded)
