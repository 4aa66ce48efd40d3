"""Where a run is read from, a recording or a database: the same frames by the same questions, one extent at a time.

An extent is what is read at once: a chunk of a recording, 64 batches of a database.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from interlatent_live.analyzer.bulk import BulkReader
from interlatent_live.stream.errors import StoreError
from interlatent_live.stream.frames import FrameBatch
from interlatent_live.stream.manifest import Manifest
from interlatent_live.stream.reading import Recording
from interlatent_live.stream.wire import Picture, Scalars

__all__ = ["Recorded", "Source", "Stored"]

_LOOK_BEHIND: Final = 64
"""Chunks with pictures that are searched for the one that shows a frame."""
_LOOK_AHEAD: Final = 4
"""A picture is encoded after its frame is recorded; so many chunks later it is there."""


class Source(Protocol):
    """A run's frames."""

    path: Path
    manifest: Manifest
    """The first one."""
    boots: tuple[str, ...]
    extents: npt.NDArray[np.void]
    """(extents,) stream.index.ENTRY; in written order; those without frames have 0 rows."""

    def batches(self, extent: int) -> Iterator[FrameBatch]:
        """The batches of an extent; without activations where they are not kept."""

    def episode(self, episode: int, env: int | None) -> npt.NDArray[np.bool_]:
        """(extents,) whether an extent may hold frames of an episode."""

    def manifests(self) -> list[Manifest]:
        """All manifests, in order."""

    def scalars(self) -> Iterator[dict[str, Any]]:
        """Rows of what the training loop logged, in columns."""

    def picture(self, boot: str, env: int, seq: int) -> tuple[int, bytes] | None:
        """Sequence number and JPEG of the newest picture of an environment that is not after frame `seq`."""


class Recorded:
    """A recording."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recording = Recording(path)
        self.manifest = self.recording.manifest
        index = self.recording.index
        self.boots, self.extents = index.boots, index.entries

    def batches(self, extent: int) -> Iterator[FrameBatch]:
        """The batches of a chunk, with activations."""
        for message in self.recording.chunk(extent, ("/frames",)):
            if isinstance(message, FrameBatch):
                yield message

    def episode(self, episode: int, env: int | None) -> npt.NDArray[np.bool_]:
        """By the index, over all environments."""
        found: npt.NDArray[np.bool_] = (self.extents["low_episode"] <= episode) & (self.extents["high_episode"] >= episode)
        return found

    def manifests(self) -> list[Manifest]:
        """All of the file, each once."""
        found: dict[str, Manifest] = {}
        for chunk in self.recording.index.holding("Manifest"):
            for message in self.recording.chunk(int(chunk), ("/manifest",)):
                if isinstance(message, Manifest):
                    found.setdefault(message.hash, message)
        return list(found.values())

    def scalars(self) -> Iterator[dict[str, Any]]:
        """A message at a time."""
        for chunk in self.recording.index.holding("Scalars"):
            for message in self.recording.chunk(int(chunk), ("/scalars",)):
                if isinstance(message, Scalars):
                    yield _long(message)

    def picture(self, boot: str, env: int, seq: int) -> tuple[int, bytes] | None:
        """From the chunks around the frame's."""
        index = self.recording.index
        place = index.boots.index(boot)
        mine = index.entries["boot"] == place
        begun = np.flatnonzero(mine & (index.entries["rows"] > 0) & (index.entries["first_seq"] <= seq))
        here = int(begun[-1]) if len(begun) else 0
        chunks = index.holding("Picture")
        best: tuple[int, bytes] | None = None
        for chunk in chunks[(chunks <= here + _LOOK_AHEAD) & mine[chunks]][::-1][:_LOOK_BEHIND]:
            for message in self.recording.chunk(int(chunk), (f"/picture/{env}",)):
                if isinstance(message, Picture) and message.seq <= seq and (best is None or message.seq > best[0]):
                    best = (message.seq, message.data)
            if best is not None and chunk <= here:
                break
        return best


class Stored:
    """A database."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.reader = BulkReader(path)
        if not self.reader.ready():
            raise StoreError(f"{path} holds no analysis yet; `interlatent-live analyze` makes one")
        boots = self.reader.boots()
        self.boots = tuple(boot.boot for boot in boots)
        hashes = [boot.manifest_hash for boot in boots if boot.manifest_hash is not None]
        manifest = next((m for m in map(self.reader.manifest, hashes) if m is not None), None)
        if manifest is None:
            raise StoreError(f"{path} holds no manifest yet; wait for the agent's first frame")
        self.manifest = manifest
        self.extents = self.reader.blocks(list(self.boots))

    def batches(self, extent: int) -> Iterator[FrameBatch]:
        """The batches of a block; activations are not kept in a database."""
        entry = self.extents[extent]
        for row in self.reader.block(int(entry["offset"]), self.boots[entry["boot"]]):
            yield FrameBatch(row.run, row.boot, row.manifest_hash, row.first_seq, 0, row.columns)

    def episode(self, episode: int, env: int | None) -> npt.NDArray[np.bool_]:
        """By the table of episodes; one that it does not have yet may be anywhere."""
        spans = self.reader.episode_spans(episode, env)
        found = np.full(len(self.extents), not spans)
        for boot, first, last in spans:
            mine = self.extents["boot"] == self.boots.index(boot)
            found |= mine & (self.extents["first_seq"] <= last) & (self.extents["next_seq"] > first)
        return found

    def manifests(self) -> list[Manifest]:
        """All that batches refer to, in order."""
        _, rows = self.reader.table("SELECT manifest_hash FROM batches GROUP BY manifest_hash ORDER BY min(id)")
        hashes = [str(row[0]) for some in rows for row in some]
        return [m for m in map(self.reader.manifest, hashes) if m is not None] or [self.manifest]

    def scalars(self) -> Iterator[dict[str, Any]]:
        """Some thousand rows at a time."""
        names, rows = self.reader.table(
            "SELECT boot, seq, step, monotonic_ns, wall_ns, policy_version, name, value FROM scalars ORDER BY boot, seq, name"
        )
        for some in rows:
            columns = dict(zip(names, map(list, zip(*some, strict=True)), strict=True))
            yield columns | {"value": [float("nan") if v is None else float(v) for v in columns["value"]]}

    def picture(self, boot: str, env: int, seq: int) -> tuple[int, bytes] | None:
        """By the table of pictures."""
        found = self.reader.picture(boot, env, seq)
        return None if found is None else (found.seq, found.data)


def _long(message: Scalars) -> dict[str, Any]:
    """One row for each name and time of logging."""
    names, rows = message.names, message.rows
    clocks = {name: np.repeat(getattr(message, name), len(names)) for name in ("step", "monotonic_ns", "wall_ns", "policy_version")}
    return {
        "boot": [message.boot] * (rows * len(names)),
        "seq": np.repeat(np.arange(message.seq, message.seq + rows), len(names)),
        **clocks,
        "name": list(names) * rows,
        "value": [value for row in message.values for value in row],
    }
