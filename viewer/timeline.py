"""What the timeline and the bands show of a whole boot: episodes, where events were many, alarms, gaps, interventions.

By frame number, and in seconds of frame time since the boot began.

Bounded: the newest `EPISODES` episodes; events as counts in at most `BINS` bins, whose width doubles as the run grows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from interlatent_live.analyzer.interventions import InterventionRow
from interlatent_live.analyzer.queries import Reader
from interlatent_live.viewer.alarms import alarm_text
from interlatent_live.viewer.text import number, plain

__all__ = ["BINS", "EPISODES", "Density", "Timeline"]

BINS: Final = 512
EPISODES: Final = 400
TICKS: Final = 24
"""Points at which frame numbers are matched with time."""
_EVENTS_A_LOOK: Final = 20_000
_NEAR: Final = 5
"""Frames after its beginning within which going back means the episode before."""


class Density:
    """Counts by frame number."""

    def __init__(self) -> None:
        self.width = 64
        """Frames in a bin."""
        self.counts: npt.NDArray[np.int64] = np.zeros(BINS, np.int64)

    def add(self, seqs: Sequence[int]) -> None:
        """Count what began at these frames."""
        if not len(seqs):
            return
        at = np.asarray(seqs, np.int64)
        while int(at.max()) // self.width >= BINS:
            self.counts = np.concatenate((self.counts.reshape(-1, 2).sum(axis=1), np.zeros(BINS // 2, np.int64)))
            self.width *= 2
        self.counts += np.bincount(at // self.width, minlength=BINS)


class Timeline:
    """One boot and one environment, looked at now and then."""

    def __init__(self) -> None:
        self.first = self.next = 0
        """Frames [first, next) are kept."""
        self.density = Density()
        self.whole = True
        """Whether all events were counted."""
        self.alarms = 0
        """Drift alarms raised so far, as far as they are kept."""
        self.alarm: tuple[str, float] | None = None
        """What the newest alarm measured, and its frame time, s."""
        self._events: dict[int, int] = {}
        self._times: dict[int, float] = {}
        self._starts: list[int] = []
        self._data: dict[str, Any] = {}
        self.version = 0
        """Rises with every change."""

    def look(self, reader: Reader, boot: str, env: int, sections: Sequence[int], start_ns: int) -> None:
        """Read what is new. `start_ns`: monotonic clock at the boot's beginning."""
        extent = reader.extent(boot)
        if extent is None:
            return
        self.first, self.next = extent[2], extent[3]
        self.whole = True
        for section in sections:
            found = reader.event_starts(section, self._events.get(section, 0), _EVENTS_A_LOOK)
            self.density.add([seq for _, seq in found])
            if found:
                self._events[section] = found[-1][0]
            self.whole &= len(found) < _EVENTS_A_LOOK
        if len(self._times) > 8 * EPISODES:
            self._times.clear()

        def at(seq: int) -> float:
            if seq not in self._times:
                clock = reader.clock_at(boot, seq)
                self._times[seq] = 0.0 if clock is None else round((clock - start_ns) / 1e9, 3)
            return self._times[seq]

        kept = reader.episodes(boot, env, EPISODES)
        self._starts = [e.first_seq for e in kept]
        episodes = [
            [
                e.first_seq, e.last_seq, e.episode, "" if e.return_ is None else number(e.return_), _how(e.terminated, e.truncated),
                e.steps, at(e.first_seq), at(e.last_seq) if e.complete else None,
            ]
            for e in kept
        ]  # fmt: skip
        drifts = [d for section in sections for d in reader.drift(section)]
        clips = {id: clip for section in sections for id, clip in reader.clips(section).items()}
        alarms = [
            [
                d.first_seq, d.last_seq, alarm_text(d, clips.get(d.id)),
                at(d.first_seq), at(d.last_seq),
            ]
            for d in drifts
        ]  # fmt: skip
        self.alarms = len(drifts)
        if drifts:
            self.alarm = plain(drifts[-1].measure, 12), at(drifts[-1].first_seq)
        gaps = [
            [g.first_seq, g.next_seq, plain(f"{g.lost} frames missing: {g.reason.replace('_', ' ')}"), at(g.first_seq), at(g.next_seq)]
            for g in reader.gaps(boot, 200)
        ]
        interventions = [
            [i.first_seq, i.next_seq, _steered(i), at(i.first_seq), None if i.next_seq is None else at(i.next_seq), i.shadow]
            for i in reader.interventions(boot)[-200:]
            if i.first_seq is not None
        ]
        used = min(BINS, math.ceil(self.next / self.density.width))
        step = max(1, 1 << max(0, (self.next // TICKS).bit_length()))  # a power of two: the same frames are asked for again
        ticks = [[seq, at(seq)] for seq in (self.first, *range((self.first // step + 1) * step, self.next - 1, step))]
        newest = reader.clock_at(boot, self.next - 1)
        if newest is not None:
            ticks.append([self.next - 1, round((newest - start_ns) / 1e9, 3)])
        data = {
            "first": self.first, "next": self.next, "episodes": episodes, "alarms": alarms, "gaps": gaps, "ticks": ticks,
            "width": self.density.width, "events": self.density.counts[:used].tolist(), "interventions": interventions,
        }  # fmt: skip
        if data != self._data:
            self._data = data
            self.version += 1

    def episode(self, seq: int, direction: int) -> int | None:
        """First frame of the next episode, or of this one or, near its beginning, the one before; None where there is none."""
        if direction > 0:
            return next((s for s in self._starts if s > seq), None)
        return next((s for s in reversed(self._starts) if s < seq - _NEAR), self._starts[0] if self._starts else None)

    @property
    def data(self) -> dict[str, Any]:
        """As plain data: see `look`."""
        return self._data


def _steered(i: InterventionRow) -> str:
    """What was done, by whom and why, in a line."""
    edit = i.edit
    what = f"feature {edit.get('feature')}" if edit.get("feature") is not None else f"a direction at {edit.get('output')}"
    strength = "" if edit.get("operation") == "ablate" else f" {edit.get('strength', 0.0):g}"
    only = f" while {i.condition}" if i.condition else ""
    end = f"; {i.cause.replace('_', ' ')}" if i.cause else ""
    why = f": {i.reason}" if i.reason else ""
    done = f"{'measured' if i.shadow else 'steered'}: {edit.get('operation')}{strength} {what}{only} by {i.author}{why}{end}"
    return plain(done, 160)


def _how(terminated: int, truncated: int) -> str:
    return "ended by itself" if terminated else "cut off" if truncated else "running"
