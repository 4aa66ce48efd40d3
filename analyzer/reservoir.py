"""A bounded sample of an unbounded stream, by reservoir sampling.

    even     after t pieces each of them is held with the same probability, slots / t (algorithm R: Vitter 1985, Random Sampling
             with a Reservoir, ACM Transactions on Mathematical Software 11(1), doi:10.1145/3147.3165)
    recent   every new piece goes in, in place of one drawn at random, so that a piece's chance of being held falls by 1/e with
             every `slots` pieces that follow (Aggarwal 2006, On Biased Reservoir Sampling in the Presence of Stream Evolution,
             VLDB): for a stream whose past no longer holds, as when weights change

A piece is a run of consecutive frames of one stream, or one frame. Frames of one second resemble each other: to fit, single
frames are drawn; to judge as the live page does, by the second, whole seconds. Memory is taken as it fills, and never more than
`bytes_for` says. Offering costs about a microsecond a frame, and a copy of those that are held.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

__all__ = ["BYTES_A_FRAME", "Reservoir"]

Floats = npt.NDArray[np.float32]
BYTES_A_FRAME: Final = 20
"""Beside the activations: episode, step in the episode, place in the stream."""


class Reservoir:
    """At most `slots` pieces of `length` frames, each an input (d_in,) and an output (d_out,)."""

    def __init__(self, slots: int, d_in: int, d_out: int, *, length: int = 1, recent: bool = False, seed: int = 0) -> None:
        self.slots, self.length, self.recent = slots, length, recent
        self.offered = 0
        """Pieces that came, in all."""
        self._rng = np.random.default_rng(seed)
        self._x = np.empty((slots, length, d_in), np.float32)
        self._y = np.empty((slots, length, d_out), np.float32)
        self._episode = np.empty((slots, length), np.int64)
        self._step = np.empty((slots, length), np.int32)
        self._place = np.empty((slots, length), np.int64)
        self._open: list[tuple[npt.NDArray[Any], ...]] = []
        self._open_rows = 0

    @property
    def _stores(self) -> tuple[npt.NDArray[Any], ...]:
        return self._x, self._y, self._episode, self._step, self._place

    @property
    def held(self) -> int:
        """Pieces held."""
        return min(self.offered, self.slots)

    @property
    def frames(self) -> int:
        """Frames held, without those of a piece that is not complete."""
        return self.held * self.length

    def offer(self, x: Floats, y: Floats, episode: npt.NDArray[np.int64], step: npt.NDArray[Any], place: npt.NDArray[Any]) -> None:
        """Take in consecutive frames: (m, d_in), (m, d_out), and (m,) numbers of episode, step in it, place in the stream."""
        columns: tuple[npt.NDArray[Any], ...] = (x, y, episode, step, place)
        if self.length > 1:
            self._open.append(columns)
            self._open_rows += len(x)
            whole = self._open_rows // self.length * self.length
            if not whole:
                return
            columns = tuple(np.concatenate(parts) for parts in zip(*self._open, strict=True))
            rest = tuple(part[whole:].copy() for part in columns)
            self._open, self._open_rows = ([rest] if len(rest[0]) else []), len(rest[0])
            columns = tuple(part[:whole] for part in columns)
        pieces = len(columns[0]) // self.length
        slots, chosen = self._places(pieces)
        for store, part in zip(self._stores, columns, strict=True):
            store[slots] = part.reshape(pieces, self.length, *part.shape[1:])[chosen]

    def _places(self, pieces: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Slots, and the pieces that go there; where a slot repeats, the last one stays, as if they had come one by one."""
        number = np.arange(self.offered, self.offered + pieces)
        self.offered += pieces
        free = min(pieces, max(0, self.slots - int(number[0]))) if pieces else 0
        later = number[free:]
        drawn = self._rng.integers(0, self.slots if self.recent else later + 1, len(later))
        kept = drawn < self.slots
        return np.concatenate([number[:free], drawn[kept]]), np.concatenate([np.arange(free), free + np.flatnonzero(kept)])

    def draw(self, frames: int) -> tuple[Floats, Floats]:
        """(frames, d_in), (frames, d_out): frames held, drawn with replacement."""
        slot, at = self._rng.integers(0, self.held, frames), self._rng.integers(0, self.length, frames)
        return self._x[slot, at], self._y[slot, at]

    def columns(self, most: int | None = None) -> tuple[npt.NDArray[Any], ...]:
        """x, y, episode, step and place of the frames held, in the order of the stream; at most about `most`, whole pieces of
        them drawn at random.
        """
        held: npt.NDArray[Any] = np.arange(self.held)
        if most is not None and self.frames > most:
            held = self._rng.permutation(held)[: max(1, most // self.length)]
        held = held[np.argsort(self._place[held, 0], kind="stable")]
        parts = [store[held].reshape(-1, *store.shape[2:]) for store in self._stores]
        if self._open and most is None:
            rest = [np.concatenate(column) for column in zip(*self._open, strict=True)]
            parts = [np.concatenate(pair) for pair in zip(parts, rest, strict=True)]
        return tuple(parts)

    @staticmethod
    def bytes_for(slots: int, d_in: int, d_out: int, *, length: int = 1) -> int:
        """Bytes that a full reservoir takes."""
        return slots * length * (4 * (d_in + d_out) + BYTES_A_FRAME)
