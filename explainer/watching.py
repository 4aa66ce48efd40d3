"""A predicate kept watch over: the frames in which it comes true, as they are analysed.

1. New batches are read as the explainer reads them; the newest frames stay, so that lags look back past a batch's edge.
2. It comes true in a frame where it holds and did not hold in the environment's frame before. Undefined is not true.
3. After it, the same environment is left alone for `quiet_s` seconds of frame time; what came true meanwhile is counted.

Frame time only, so a recording gives the same frames again. Reads; writes nothing. For one thread.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from interlatent_live.explainer.grammar import parse
from interlatent_live.explainer.labelled import labels_of
from interlatent_live.explainer.predicate import Predicate
from interlatent_live.explainer.source import Piece, Source, gather
from interlatent_live.explainer.table import Vocabulary
from interlatent_live.stream.errors import PredicateError, StoreError

__all__ = ["Hit", "Watch"]

TAIL: Final = 500
"""Frames that stay beside those that are new; more where the predicate looks further back."""
_BATCHES: Final = 50
_AT_ONCE: Final = 5_000
"""Frames, about, after which what was read is looked at."""


@dataclass(frozen=True, slots=True)
class Hit:
    """A frame in which the predicate came true."""

    boot: str
    env: int
    seq: int
    time_s: float
    """Seconds since the boot began, on the agent's clock."""
    wall_ns: int
    """The agent's clock."""
    episode: int
    episode_step: int


class Watch:
    """Watches one database. `since_now`: what is there already was not watched; False: from the first frame that is kept."""

    def __init__(self, path: Path | str, text: str, *, quiet_s: float = 10.0, since_now: bool = True) -> None:
        if not quiet_s >= 0:
            raise PredicateError(f"the quiet time is {quiet_s} s; it must be 0 or more")
        self.text, self.quiet_s, self.suppressed = text, quiet_s, 0
        """`suppressed`: times that it came true within the quiet time of another."""
        self.predicate: Predicate | None = None
        """Once the names that it may use are known."""
        self.newest_s = 0.0
        """Frame time of the newest frame read, s."""
        self.frames = 0
        """Frames watched."""
        self._path = Path(path)
        self._source = Source(path, max_frames=1)  # it numbers episodes; the frames are kept here
        self._tail: deque[Piece] = deque()
        self._epoch = -1
        self._since_now = since_now
        self._before: dict[tuple[str, int], bool] = {}
        self._last_s: dict[tuple[str, int], float] = {}

    def close(self) -> None:
        """Let go of the file."""
        self._source.close()

    def look(self) -> list[Hit]:
        """The frames since the last look in which it came true, oldest first. PredicateError for a mistake in the text."""
        found: list[Hit] = []
        if self._since_now:
            self._source.skip()
        while pieces := self._read():
            found += self._take(pieces, quietly=self._since_now)
        if self._source.subject is not None:
            self._since_now = False
        return found

    def _read(self) -> list[Piece]:
        pieces: list[Piece] = []
        while sum(map(len, pieces)) < _AT_ONCE and (more := self._source.pull(_BATCHES)):
            if self._source.epoch != self._epoch:  # other features, metrics or weights: what was kept says nothing of them
                self._epoch, self.predicate = self._source.epoch, None
                self._tail.clear()
                self._before.clear()
                pieces = []
            pieces += more
        return pieces

    def _take(self, pieces: list[Piece], *, quietly: bool) -> list[Hit]:
        subject = self._source.subject
        if subject is None:
            raise StoreError(f"{self._path} was replaced while it was watched")
        new = sum(map(len, pieces))
        self._tail.extend(pieces)
        back = 0 if self.predicate is None else max(max(c.lag, c.change) for c in self.predicate.clauses) + 1
        while sum(map(len, self._tail)) - len(self._tail[0]) >= new + max(TAIL, back * subject.manifest.num_envs):
            self._tail.popleft()
        labels = labels_of(self._source.reader, list(self._tail))
        kept = gather(self._tail, subject.manifest, subject.dictionary.features, labels)
        if self.predicate is None:
            self.predicate = _parsed(self.text, kept.table.vocabulary)
        holds = self.predicate.holds(kept.table)[-new:]
        t = np.concatenate([p.t for p in pieces])
        wall = np.concatenate([p.wall_ns - (p.t[-1] - p.t) * 1e9 for p in pieces])
        seq, boot = kept.seq[-new:], kept.table.boot[-new:]
        env, episode, step = kept.table.env[-new:], kept.table.episode[-new:], kept.table.episode_step[-new:]
        self.frames += new
        self.newest_s = float(t[-1])
        found: list[Hit] = []
        for number, of in sorted({(int(b), int(e)) for b, e in zip(boot, env, strict=True)}):
            key = kept.boots[number], of
            mine = np.flatnonzero((boot == number) & (env == of))
            rising = self._rising(key, holds[mine])
            if quietly:
                continue
            for row in mine[rising].tolist():
                if float(t[row]) - self._last_s.get(key, -np.inf) < self.quiet_s:
                    self.suppressed += 1
                    continue
                self._last_s[key] = float(t[row])
                found.append(Hit(key[0], of, int(seq[row]), float(t[row]), int(wall[row]), int(episode[row]), int(step[row])))
        return sorted(found, key=lambda h: (h.time_s, h.seq))

    def _rising(self, key: tuple[str, int], holds: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """(n,) where it holds and did not just before."""
        before = np.concatenate(([self._before.get(key, False)], holds[:-1]))
        self._before[key] = bool(holds[-1])
        rising: npt.NDArray[np.bool_] = holds & ~before
        return rising


def _parsed(text: str, vocabulary: Vocabulary) -> Predicate:
    """Refuse now what could never come true while it is watched: what is known only at an episode's end."""
    predicate = parse(text, vocabulary)
    if predicate.impossible:
        raise PredicateError(f"nothing can satisfy {predicate}")
    late = [n for n in predicate.names if n in ("steps_to_end", "episode_length", "episode_return", "episode_terminated")]
    if late:
        remedy = "use terminated, truncated, reward or a metric"
        raise PredicateError(f"{late[0]} is known only when an episode has ended, so it cannot be watched for; {remedy}")
    return predicate
