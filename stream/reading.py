"""Reading a recording, also one whose tail is missing, in bounded memory: one chunk at a time. Needs no torch.

Messages come in written order, which is the order in which they were sent, through all files of a recording that was
rotated. Times are seconds of frame time (`stream.clock`). With the recorder's index, a stretch of time, a step or an
episode is found without reading what lies before.
"""

from __future__ import annotations

import os
from collections.abc import Container, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np

from interlatent_live.stream.clock import FrameClock
from interlatent_live.stream.errors import RecordingDamaged, RecordingError
from interlatent_live.stream.frames import FrameBatch
from interlatent_live.stream.index import Index
from interlatent_live.stream.manifest import Manifest
from interlatent_live.stream.part import Part
from interlatent_live.stream.recording import parts_beside
from interlatent_live.stream.wire import Bye, Message, Picture

__all__ = ["Recording"]

_MANIFEST_WITHIN: Final = 256
"""Messages among which the first manifest must be."""


class Recording:
    """A recording that may be read several times, and by several readers."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open `path`, and the parts that follow it. Raises RecordingError where it cannot be opened, RecordingDamaged
        where it is not a recording of ours.
        """
        self.path = Path(path)
        self._missing: str | None = None
        first = Part(self.path)
        manifest = next((m for m, _ in zip(first.messages(), range(_MANIFEST_WITHIN), strict=False) if isinstance(m, Manifest)), None)
        if manifest is None:
            raise RecordingDamaged(
                f"{self.path} holds no manifest{f' ({first.damaged})' if first.damaged else ''}; it cannot be "
                "understood"
            )
        self.manifest: Manifest = manifest
        """The first manifest of the file."""
        self.parts: tuple[Part, ...] = (first, *self._later(first))
        """The files, in order."""

    def _later(self, first: Part) -> Iterator[Part]:
        identity = first.identity()
        if identity is None or identity[1] != 0:
            return  # made before there were parts, or one of the later ones, read by itself
        expected = 1
        for number, path in parts_beside(self.path):
            part = Part(path)
            try:
                found = part.identity()
            except RecordingError:
                continue
            if found == (identity[0], number):
                if number != expected:
                    self._missing = self._missing or f"part {expected} is missing beside it"
                expected = number + 1
                yield part

    @property
    def damaged(self) -> str | None:
        """What was found missing or broken, once reading came to it."""
        return next((part.damaged for part in self.parts if part.damaged), self._missing)

    @property
    def bytes(self) -> int:
        """Size of all files."""
        return sum(part.path.stat().st_size for part in self.parts)

    @cached_property
    def index(self) -> Index:
        """What each chunk holds. Files without the recorder's index are read through for it, once."""
        return Index.joined([part.index() or part.scan() for part in self.parts])

    def messages(self, from_s: float | None = None, to_s: float | None = None) -> Iterator[Message]:
        """All messages in written order, or those of [from_s, to_s) in seconds of frame time.

        Batches are never cut: one belongs where its first row is. Manifests always come, so that what follows is
        understood. Chunks outside the stretch are not read where the recorder left an index.
        """
        if from_s is None and to_s is None:
            for part in self.parts:
                yield from part.messages()
            return
        for message, now in self._timed(from_s, to_s):
            if isinstance(message, Manifest) or ((from_s is None or now >= from_s) and (to_s is None or now < to_s)):
                yield message

    def chunk(self, number: int, topics: Container[str] | None = None) -> Iterator[Message]:
        """Messages of a chunk of the index; `topics`: of these only."""
        entry = self.index.entries[number]
        part = int(entry["part"])
        return self.parts[part].chunk(int(entry["offset"]), self.index.channels[part], topics)

    def _timed(self, from_s: float | None, to_s: float | None) -> Iterator[tuple[Message, float]]:
        """Messages with their times, of the stretch at least."""
        clock, now = FrameClock(), 0.0
        if "index" not in self.__dict__:
            found = [part.index() for part in self.parts]
            if all(found):
                self.__dict__["index"] = Index.joined([index for index in found if index is not None])
        if "index" not in self.__dict__:
            for part in self.parts:
                for message in part.messages():
                    now = clock.seconds(message, now)
                    yield message, now
            return
        index = self.index
        low, high = index.seconds()
        reached = np.flatnonzero(high >= from_s) if from_s is not None else np.arange(len(high))
        # one chunk earlier tells the time of messages without a clock
        begin = max(0, int(reached[0]) - 1) if len(reached) else len(high)
        within = np.flatnonzero(low < to_s) if to_s is not None else np.arange(len(low))
        end = int(within[-1]) + 1 if len(within) else 0
        wanted = np.zeros(len(high), np.bool_)
        wanted[begin:end] = True
        wanted[index.holding("Manifest")] = True
        clock = index.clock(begin)
        for number in np.flatnonzero(wanted):
            for message in self.chunk(int(number)):
                if number >= begin:
                    now = clock.seconds(message, now)
                yield message, now

    def info(self) -> dict[str, Any]:
        """Counts and names, by reading all of it; `ledger` is None where the farewell is missing."""
        manifest, axis, now = self.manifest, FrameClock(), 0.0
        boots: list[str] = []
        frames = batches = steps = episodes = pictures = 0
        last_step: tuple[str, int] | None = None
        current: dict[tuple[str, int], int] = {}
        bye: Bye | None = None
        begin: float | None = None
        duration = 0.0
        for message in self.messages():
            now = axis.seconds(message, now)
            if isinstance(message, FrameBatch):
                frames, batches = frames + message.rows, batches + 1
                if message.boot not in boots:
                    boots.append(message.boot)
                for step in message.columns["step"].tolist():
                    if last_step != (message.boot, step):
                        steps, last_step = steps + 1, (message.boot, step)
                pairs = zip(message.columns["env"].tolist(), message.columns["episode"].tolist(), strict=True)
                for env, episode in pairs:
                    if current.get((message.boot, env)) != episode:
                        episodes, current[(message.boot, env)] = episodes + 1, episode
                begin = now if begin is None else begin
                duration = axis.last(message) - begin
            elif isinstance(message, Picture):
                pictures += 1
            elif isinstance(message, Bye):
                bye = message
        ledger = None
        if bye is not None:
            names = ("produced", "queue_dropped", "recorded", "record_failed")
            ledger = {name: getattr(bye, name) for name in names}
        return {
            "path": str(self.path),
            "parts": len(self.parts),
            "bytes": self.bytes,
            "run": manifest.run,
            "boot": manifest.boot,
            "boots": boots,
            "agent": manifest.agent,
            "environment": manifest.environment,
            "num_envs": manifest.num_envs,
            "frames": frames,
            "batches": batches,
            "steps": steps,
            "episodes": episodes,
            "duration_s": duration,
            "pictures": pictures,
            "tap_points": [{"name": p.name, "dtype": p.dtype, "shape": list(p.shape)} for p in manifest.tap_points],
            "metrics": [{"name": m.name, "unit": m.unit, "scope": m.scope} for m in manifest.metrics],
            "ledger": ledger,
            "damaged": self.damaged,
        }
