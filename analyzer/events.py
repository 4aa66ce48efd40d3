"""Events: contiguous spans in which a feature is active in one environment.

Of one environment only the frames with a finite activation count ("observed"). Two of them are linked if they follow
each other in one episode with at most `bridge` frames missing between them (no forward pass, refused, or lost). A span
is a run of linked observed frames in all of which the feature is active. It ends by

    'inactive'  the next observed frame is linked, and the feature is not active in it
    'episode'   its last frame terminates or truncates, or the next observed frame is of another episode
    'gap'       more than `bridge` frames are missing before the next observed frame
    'end'       the stream is over (`close`)

Which spans there are, their numbers and their order do not depend on how the frames are cut into batches: an event
comes out with the frame that decided its end, and its sum is added from left to right; nor does the cap on events a
second of frame time, which counts in that order. A batch is handled at once: every observed frame gets a position in
its environment's chain, one further than the one before it if linked, two if not; then spans are runs of consecutive
positions among the active values sorted by (environment, feature, position).
Cost: 2 to 5 us a frame for 32 active features in batches of 32 to 128; about 150 us for a batch of one.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from interlatent_live.analyzer.codes import Codes
from interlatent_live.stream.frames import FrameBatch

__all__ = ["ENDED_BY", "EndedBy", "Event", "EventTracker", "Spans"]

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
EndedBy = Literal["inactive", "episode", "gap", "end"]

ENDED_BY: tuple[EndedBy, ...] = ("inactive", "episode", "gap", "end")
"""What ends a span, by its number in `Spans.ended_by`."""
_INACTIVE, _EPISODE, _GAP, _END = range(4)


class Event(NamedTuple):
    """A row of the table `events`, without its section."""

    feature: int
    env: int
    episode: int
    first_seq: int
    last_seq: int
    first_step: int
    last_step: int
    frames: int
    """Observed frames in the span; bridged ones are not counted."""
    peak: float
    """The value of largest magnitude, with its sign; the first where several are equal."""
    peak_seq: int
    mean: float
    """Mean of the values."""
    ended_by: EndedBy


@dataclass(frozen=True, slots=True, eq=False)
class Spans:
    """Spans as columns, each (n,); the columns are those of `Event`, and the step of the peak."""

    feature: Ints
    env: Ints
    episode: Ints
    first_seq: Ints
    last_seq: Ints
    first_step: Ints
    last_step: Ints
    frames: Ints
    peak: Floats
    peak_seq: Ints
    peak_step: Ints
    mean: Floats
    ended_by: Ints

    def __len__(self) -> int:
        return len(self.feature)

    def at(self, index: npt.NDArray[Any] | slice) -> Spans:
        """Those at `index`, in its order."""
        return Spans(*(getattr(self, field.name)[index] for field in fields(self)))

    def events(self) -> list[Event]:
        """As rows."""
        named = [ENDED_BY[code] for code in self.ended_by.tolist()]
        columns = [getattr(self, name).tolist() for name in Event._fields[:-1]]
        return list(map(Event._make, zip(*columns, named, strict=True)))


def _no_spans() -> Spans:
    none, real = np.zeros(0, np.int64), np.zeros(0)
    return Spans(none, none, none, none, none, none, none, none, real, none, none, real, none)


@dataclass(frozen=True, slots=True, eq=False)
class _Open:
    """Spans that may go on, each (n,). All of them are active in the last observed frame of their environment."""

    key: Ints  # slot of the environment * features + feature, rising
    first: Ints  # (n, 2) sequence number and step
    peak_at: Ints  # (n, 2) sequence number and step
    frames: Ints
    peak: Floats
    total: Floats

    @classmethod
    def none(cls) -> _Open:
        none, pairs = np.zeros(0, np.int64), np.zeros((0, 2), np.int64)
        return cls(none, pairs, pairs, none, np.zeros(0), np.zeros(0))


_LAST = ("seq", "step", "episode", "position", "ended", "env")


class EventTracker:
    """Follows the features of one section. `update` gives the events that a batch decided."""

    def __init__(self, features: int, *, bridge: int = 1, least_frames: int = 2, most_a_second: int = 1000) -> None:
        """`bridge`: missing frames that a span survives, 0 or 1; `least_frames`: shorter spans are not events.

        `most_a_second`: events given out in one second of frame time; the rest is counted in `suppressed`.
        """
        self.suppressed = 0
        """Events that were held back because their second of frame time had enough."""
        self.closed = _no_spans()
        """All spans of `least_frames` that the last call closed, suppressed ones too."""
        self._features, self._bridge, self._least = features, bridge, least_frames
        self._most, self._second, self._given = most_a_second, -1, 0
        self._slots: dict[int, int] = {}  # environments in the order in which they came
        self._last = np.zeros((len(_LAST), 0), np.int64)  # of each slot: its last observed frame, see _LAST
        self._last_ns = 0
        self._open = _Open.none()

    def update(self, codes: Codes, rows: npt.NDArray[np.int32], batch: FrameBatch) -> list[Event]:
        """Add a batch; `codes` has one row for each of `rows`, the batch's rows that have finite activations."""
        columns = batch.columns
        self._last_ns = int(columns["monotonic_ns"][-1])
        if len(rows) == 0:
            self.closed = _no_spans()
            return []
        table, slot, ended = self._table(rows, batch)
        order, begins, linked = self._chain(table, slot, ended)
        count, opened = len(slot), self._open
        many = len(opened.key)

        # Active values, those of open spans first, sorted by environment and feature, then time.
        row = np.repeat(np.arange(count), np.diff(codes.indptr))
        key = np.concatenate((opened.key, slot[row] * self._features + codes.indices))
        size = len(key)
        if size == 0:
            self._remember(table, slot, order, begins)
            self.closed = _no_spans()
            return []
        bits = size.bit_length()
        mixed = (key << bits) | np.arange(size)
        mixed.sort()
        entry = mixed & ((1 << bits) - 1)
        key = mixed >> bits
        position = np.concatenate((self._last[3][opened.key // self._features], table[3][row]))[entry]
        new = np.empty(size, np.bool_)
        new[0] = True
        np.logical_or(key[1:] != key[:-1], position[1:] != position[:-1] + 1, out=new[1:])
        begin = new.nonzero()[0]
        span = np.cumsum(new) - 1

        value = np.concatenate((opened.peak, codes.values))[entry].astype(np.float64)
        magnitude = np.abs(value)
        strongest = (magnitude == np.maximum.reduceat(magnitude, begin)[span]).nonzero()[0][::-1]
        peak = np.empty(len(begin), np.int64)
        peak[span[strongest]] = strongest  # the first of equals is written last
        addend = np.concatenate((opened.total, codes.values))[entry]
        total = np.bincount(span, addend)  # from left to right, so that no cut changes the sum
        end = _ends(begin, size)
        frames = end - begin + 1
        source = np.concatenate((np.arange(many), row + many))[entry]  # a row of the tables below
        going = source[begin] < many
        frames[going] += opened.frames[source[begin[going]]] - 1
        here = table[:2].T
        first = np.concatenate((opened.first, here))[source[begin]]
        peak_at = np.concatenate((opened.peak_at, here))[source[peak]]
        key, value = key[begin], value[peak]

        # Where a span's last frame stands in its environment's chain, and what follows it there.
        slots = key // self._features
        at = np.empty(count, np.int64)
        at[order] = np.arange(count)
        begin_of = np.full(self._last.shape[1], -1)
        begin_of[slot[order[begins]]] = begins
        last = source[end] - many  # its row, or negative: the last frame of an earlier batch
        fresh = last >= 0
        last_row = np.where(fresh, last, 0)
        following = np.where(fresh, at[last_row] + 1, begin_of[slots])
        is_begin = np.zeros(count + 1, np.bool_)
        is_begin[begins] = is_begin[count] = True
        alone = np.where(fresh, is_begin[following], following < 0)  # nothing follows yet
        finished = fresh & ended[last_row]
        closes = ~alone | finished
        before = self._last[:, slots]
        self._remember(table, slot, order, begins)
        keeps = ~closes
        self._open = _Open(key[keeps], first[keeps], peak_at[keeps], frames[keeps], value[keeps], total[keeps])

        chosen = (closes & (frames >= self._least)).nonzero()[0]
        last_row, fresh = last_row[chosen], fresh[chosen]
        final = np.where(fresh, table[:3, last_row], before[:3, chosen])
        next_row = order[np.where(finished[chosen], 0, following[chosen])]
        decided_by = np.where(finished[chosen], last_row, next_row)
        ended_by = np.where(table[2, next_row] != final[2], _EPISODE, np.where(linked[next_row], _INACTIVE, _GAP))
        ended_by[finished[chosen]] = _EPISODE
        feature = key[chosen] % self._features
        sequence = np.lexsort((feature, decided_by))
        chosen = chosen[sequence]
        self.closed = Spans(
            feature[sequence], self._last[5, slots[chosen]], final[2, sequence], first[chosen, 0], final[0, sequence],
            first[chosen, 1], final[1, sequence], frames[chosen], value[chosen], peak_at[chosen, 0],
            peak_at[chosen, 1], total[chosen] / frames[chosen], ended_by[sequence],
        )  # fmt: skip
        return self._give(columns["monotonic_ns"][rows[decided_by[sequence]]])

    def close(self, reason: EndedBy) -> list[Event]:
        """End every open span by `reason`; what comes later begins anew."""
        opened = self._open
        chosen = np.flatnonzero(opened.frames >= self._least)
        slots, feature = np.divmod(opened.key[chosen], self._features)
        last = self._last[:, slots]
        order = np.lexsort((feature, last[5]))
        chosen, frames = chosen[order], opened.frames[chosen[order]]
        last = last[:, order]
        self.closed = Spans(
            feature[order], last[5], last[2], opened.first[chosen, 0], last[0], opened.first[chosen, 1], last[1],
            frames, opened.peak[chosen], opened.peak_at[chosen, 0], opened.peak_at[chosen, 1],
            opened.total[chosen] / frames, np.full(len(chosen), ENDED_BY.index(reason)),
        )  # fmt: skip
        self._open = _Open.none()
        self._last[4] = 1
        return self._give(np.full(len(chosen), self._last_ns))

    def _table(self, rows: npt.NDArray[np.int32], batch: FrameBatch) -> tuple[Ints, Ints, npt.NDArray[np.bool_]]:
        """Observed frames as (6, n) of _LAST (the position comes later), their slots, and which end an episode."""
        columns = batch.columns
        ended = np.zeros(len(rows), np.bool_)
        for name in ("terminated", "truncated"):
            if name in columns:
                ended |= columns[name][rows].astype(np.bool_)
        env = columns["env"][rows]
        table = np.empty((len(_LAST), len(rows)), np.int64)
        table[0], table[1], table[2] = batch.first_seq + rows, columns["step"][rows], columns["episode"][rows]
        table[4], table[5] = ended, env
        envs, index = (env[:1], np.zeros(len(env), np.int64)) if (env == env[0]).all() else _unique(env)
        slots = [self._slots.setdefault(number, len(self._slots)) for number in envs.tolist()]
        unseen = len(self._slots) - self._last.shape[1]
        if unseen:
            fresh = np.zeros((len(_LAST), unseen), np.int64)
            fresh[4] = 1  # nothing goes on into its first frame
            self._last = np.concatenate((self._last, fresh), axis=1)
        return table, np.array(slots, np.int64)[index], ended

    def _chain(
        self, table: Ints, slot: Ints, ended: npt.NDArray[np.bool_]
    ) -> tuple[Ints, Ints, npt.NDArray[np.bool_]]:
        """Write positions into `table`; return the rows by environment, where each begins, and which are linked."""
        count = len(slot)
        order = np.argsort(slot, kind="stable")
        begin = np.empty(count, np.bool_)
        begin[0] = True
        sorted_slot = slot[order]
        np.not_equal(sorted_slot[1:], sorted_slot[:-1], out=begin[1:])
        begins = begin.nonzero()[0]
        mine = table[:5, order]
        prior = np.empty((5, count), np.int64)
        prior[:, 1:] = mine[:, :-1]
        prior[:, begins] = self._last[:5, sorted_slot[begins]]
        ahead = mine[1] - prior[1]
        goes_on = (mine[2] == prior[2]) & (ahead > 0) & (ahead <= 1 + self._bridge) & (prior[4] == 0)
        steps = np.cumsum(np.where(goes_on, 1, 2))
        length = _ends(begins, count) - begins + 1
        base = prior[3, begins] - np.where(begins > 0, steps[begins - 1], 0)
        table[3, order] = steps + np.repeat(base, length)
        linked = np.empty(count, np.bool_)
        linked[order] = goes_on
        return order, begins, linked

    def _remember(self, table: Ints, slot: Ints, order: Ints, begins: Ints) -> None:
        last = order[_ends(begins, len(order))]
        self._last[:, slot[last]] = table[:, last]

    def _give(self, decided_ns: Ints) -> list[Event]:
        """Events of `closed`, as far as their seconds of frame time allow; decided_ns (n,) in order."""
        if len(self.closed) == 0:
            return []
        second = decided_ns // 1_000_000_000
        change = np.ones(len(second), np.bool_)
        np.not_equal(second[1:], second[:-1], out=change[1:])
        changes = change.nonzero()[0]
        length = _ends(changes, len(second)) - changes + 1
        rank = np.arange(len(second)) - np.repeat(changes, length)
        if second[0] == self._second:
            rank[: length[0]] += self._given
        self._second, self._given = int(second[-1]), int(rank[-1]) + 1
        allowed = rank < self._most
        if allowed.all():
            return self.closed.events()
        self.suppressed += int(np.count_nonzero(~allowed))
        return self.closed.at(allowed).events()


def _ends(begins: Ints, count: int) -> Ints:
    """The last index of each run, of runs that begin at `begins` and fill 0..count - 1."""
    ends = np.empty_like(begins)
    ends[:-1] = begins[1:] - 1
    ends[-1] = count - 1
    return ends


def _unique(env: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], Ints]:
    envs, index = np.unique(env, return_inverse=True)
    return envs, index.reshape(-1).astype(np.int64)
