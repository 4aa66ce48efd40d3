"""What the timeline shows of a whole boot: episodes, where events were many, alarms, gaps and sentences, by frame number.

Bounded: the newest `EPISODES` episodes; events as counts in at most `BINS` bins, whose width doubles as the run grows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from interlatent_live.analyzer.queries import Reader
from interlatent_live.viewer.text import number, plain

__all__ = ["BINS", "EPISODES", "Density", "Timeline"]

BINS: Final = 512
EPISODES: Final = 400
_EVENTS_A_LOOK: Final = 20_000


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
        self._events: dict[int, int] = {}
        self._data: dict[str, Any] = {}
        self.version = 0
        """Rises with every change."""

    def look(self, reader: Reader, boot: str, env: int, sections: Sequence[int]) -> None:
        """Read what is new."""
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
        episodes = [
            [e.first_seq, e.last_seq, e.episode, "" if e.return_ is None else number(e.return_), _how(e.terminated, e.truncated), e.steps]
            for e in reader.episodes(boot, env, EPISODES)
        ]
        alarms = [
            [d.first_seq, d.last_seq, plain(f"{d.kind}: {d.measure} {number(d.value)} outside {number(d.low)} … {number(d.high)}", 90)]
            for section in sections
            for d in reader.drift(section)
        ]
        gaps = [[g.first_seq, g.next_seq, plain(f"{g.lost} frames: {g.reason}")] for g in reader.gaps(boot, 200)]
        used = min(BINS, math.ceil(self.next / self.density.width))
        data = {
            "first": self.first, "next": self.next, "episodes": episodes, "alarms": alarms, "gaps": gaps,
            "width": self.density.width, "events": self.density.counts[:used].tolist(),
        }  # fmt: skip
        if data != self._data:
            self._data = data
            self.version += 1

    @property
    def data(self) -> dict[str, Any]:
        """As plain data: see `look`."""
        return self._data


def _how(terminated: int, truncated: int) -> str:
    return "ended by itself" if terminated else "cut off" if truncated else "running"
