"""The index of a recording: what each chunk holds, so that a reader goes to a step, an episode or a second directly.

One entry a chunk, 100 bytes, kept by the recorder and written as an MCAP attachment when the file is closed
(docs/recording.md); a file without it is read through once. A chunk holds messages of one boot.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import msgpack
import numpy as np
import numpy.typing as npt
import zstandard

from interlatent_live.stream.clock import FrameClock, stamp_ns
from interlatent_live.stream.errors import RecordingDamaged
from interlatent_live.stream.frames import FrameBatch
from interlatent_live.stream.wire import Message

__all__ = ["ATTACHMENT", "ENTRY", "KINDS", "ChannelInfo", "Index", "Tally"]

ATTACHMENT: Final = "interlatent-index"
KINDS: Final[Mapping[str, int]] = {
    "FrameBatch": 1, "Manifest": 2, "Heartbeat": 4, "Bye": 8, "Picture": 16, "Scalars": 32, "Signals": 64, "Attribution": 128,
    "Intervention": 256, "Effects": 512,
    "Prompt": 1024, "Vocabulary": 2048,
}  # fmt: skip
"""Bit of each kind of message in `kinds`."""
_FIELDS: Final = (
    ("offset", "<u8"),  # where the chunk record begins in its file
    ("part", "<i4"),  # file of the recording, from 0
    ("boot", "<i4"),  # number in `boots`, -1 where no message has one
    ("kinds", "<i4"),  # bits of KINDS
    ("rows", "<i4"),  # frames; where it is 0, all that follows about frames is 0
    ("first_seq", "<i8"),
    ("next_seq", "<i8"),
    ("first_step", "<i8"),
    ("last_step", "<i8"),
    ("low_episode", "<i4"),  # over its rows and environments
    ("high_episode", "<i4"),
    ("first_ns", "<i8"),  # monotonic clock of the first row
    ("last_ns", "<i8"),  # and of the last
    ("first_wall_ns", "<i8"),
    ("low_ns", "<i8"),  # monotonic clock over all messages that have one
    ("high_ns", "<i8"),
)
ENTRY: Final = np.dtype(list(_FIELDS))
"""What is known of a chunk."""
_PACKED: Final = struct.Struct("<" + "".join({"<u8": "Q", "<i4": "i", "<i8": "q"}[dtype] for _, dtype in _FIELDS))
_VERSION: Final = 1
_MAX_BYTES: Final = 1 << 30
Entries: TypeAlias = npt.NDArray[np.void]


@dataclass(frozen=True, slots=True)
class ChannelInfo:
    """An MCAP channel."""

    topic: str
    encoding: str
    run: str


@dataclass(frozen=True, slots=True, eq=False)
class Index:
    """All chunks of a recording, in written order."""

    channels: Sequence[Mapping[int, ChannelInfo]]
    """By part and channel number."""
    boots: tuple[str, ...]
    entries: Entries
    """(chunks,) ENTRY."""

    @property
    def frames(self) -> int:
        """Frames of all chunks."""
        return int(self.entries["rows"].sum(dtype=np.int64))

    def holding(self, kind: str) -> npt.NDArray[np.int64]:
        """Chunks that hold messages of a class of `stream.wire`."""
        return np.flatnonzero(self.entries["kinds"] & KINDS[kind])

    def clock(self, until: int | None = None) -> FrameClock:
        """The clock after the first `until` chunks, as one that has seen all their messages."""
        clock = FrameClock()
        for entry in _turns(self.entries[:until]):
            boot = self.boots[entry["boot"]]
            clock.begin(boot, int(entry["first_ns"]), int(entry["first_wall_ns"]))
            clock.end(boot, int(entry["last_ns"]))
        return clock

    def seconds(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """(chunks,) least and (chunks,) greatest frame time of each chunk's messages; what has no time is where it is written."""
        clock, entries = self.clock(), self.entries
        zero = np.array([-1 if z is None else z for z in map(clock.zero_ns, self.boots)] + [-1], np.int64)[entries["boot"]]
        timed = (zero != -1) & (entries["high_ns"] > 0)
        low, high = ((np.where(timed, entries[name] - zero, 0) / 1e9) for name in ("low_ns", "high_ns"))
        before = np.maximum.accumulate(np.where(timed, np.arange(len(entries)), 0)) if len(entries) else np.zeros(0, np.int64)
        return np.where(timed, low, high[before]), np.where(timed, high, high[before])

    def pack(self) -> bytes:
        """The attachment of one file."""
        channels = {number: [c.topic, c.encoding, c.run] for number, c in self.channels[0].items()}
        body = {
            "version": _VERSION,
            "fields": [list(field) for field in _FIELDS],
            "channels": channels,
            "boots": list(self.boots),
            "entries": self.entries.tobytes(),
        }
        return zstandard.ZstdCompressor(level=3).compress(msgpack.packb(body))

    @classmethod
    def unpack(cls, data: bytes) -> Index | None:
        """Inverse of `pack`; None for one of another version. Raises RecordingDamaged for what is no index."""
        try:
            if not 0 <= zstandard.frame_content_size(data) <= _MAX_BYTES:
                raise ValueError("its size is unknown or beyond all bounds")
            body = msgpack.unpackb(zstandard.ZstdDecompressor().decompress(data), raw=False, strict_map_key=False)
            if body["version"] != _VERSION:
                return None
            dtype = np.dtype([(str(name), str(kind)) for name, kind in body["fields"]])
            found = np.frombuffer(body["entries"], dtype)
            entries = np.zeros(len(found), ENTRY)
            for name in ENTRY.names or ():
                entries[name] = found[name]
            channels = {int(number): ChannelInfo(*map(str, values)) for number, values in body["channels"].items()}
            boots = tuple(map(str, body["boots"]))
            if len(entries) and not -1 <= int(entries["boot"].min()) <= int(entries["boot"].max()) < len(boots):
                raise ValueError("it names an unknown boot")
        except (zstandard.ZstdError, ValueError, TypeError, KeyError, AttributeError, msgpack.UnpackException) as error:
            raise RecordingDamaged(f"its index cannot be read: {type(error).__name__}: {error}") from error
        return cls((channels,), boots, entries)

    @classmethod
    def joined(cls, parts: Sequence[Index]) -> Index:
        """The index of a recording in several files."""
        boots: dict[str, int] = {}
        pieces: list[Entries] = []
        for number, part in enumerate(parts):
            places = np.array([boots.setdefault(boot, len(boots)) for boot in part.boots] + [-1], np.int32)
            piece = part.entries.copy()
            piece["boot"] = places[piece["boot"]]
            piece["part"] = number
            pieces.append(piece)
        return cls([part.channels[0] for part in parts], tuple(boots), np.concatenate(pieces) if pieces else np.zeros(0, ENTRY))


def _turns(entries: Entries) -> Entries:
    """Of the chunks with frames, the first and last of each uninterrupted stretch of one boot: all that a clock needs."""
    framed = entries[entries["rows"] > 0]
    if not len(framed):
        return framed
    change = np.diff(framed["boot"]) != 0
    return framed[np.concatenate(([True], change)) | np.concatenate((change, [True]))]


class Tally:
    """Makes the entries of one file while its messages pass."""

    def __init__(self) -> None:
        self.boots: dict[str, int] = {}
        self.frames = 0
        """Frames of all closed chunks."""
        self._entries = bytearray()
        self._clear()

    def _clear(self) -> None:
        self.boot: str | None = None
        """Whose messages the open chunk holds."""
        self._kinds = self._rows = self._low_ns = self._high_ns = 0
        self._frames: list[int] = []

    def add(self, message: Message) -> None:
        """Account for a message of the open chunk."""
        self._kinds |= KINDS[type(message).__name__]
        self.boot = getattr(message, "boot", None) or self.boot
        stamp = stamp_ns(message)
        if stamp is not None:
            last = stamp
            if isinstance(message, FrameBatch):
                last = self._add_frames(message, stamp)
            self._low_ns = min(self._low_ns or stamp, stamp)
            self._high_ns = max(self._high_ns, stamp, last)

    def _add_frames(self, batch: FrameBatch, first_ns: int) -> int:
        columns, rows = batch.columns, batch.rows
        step, episode, last_ns = columns["step"], columns["episode"], int(columns["monotonic_ns"][-1])
        low, high = (int(episode[0]),) * 2 if rows == 1 else (int(episode.min()), int(episode.max()))
        if not self._rows:
            self._frames = [
                batch.first_seq, batch.next_seq, int(step[0]), int(step[-1]), low, high,
                first_ns, last_ns, int(columns["wall_ns"][0]),
            ]  # fmt: skip
        else:
            known = self._frames
            known[1], known[3], known[7] = batch.next_seq, int(step[-1]), last_ns
            known[4], known[5] = min(known[4], low), max(known[5], high)
        self._rows += rows
        return last_ns

    def close(self, offset: int) -> None:
        """End the open chunk, which was written at `offset`."""
        if self._kinds:
            boot = -1 if self.boot is None else self.boots.setdefault(self.boot, len(self.boots))
            frames = self._frames or [0] * 9
            self._entries += _PACKED.pack(offset, 0, boot, self._kinds, self._rows, *frames, self._low_ns, self._high_ns)
            self.frames += self._rows
        self._clear()

    def index(self, channels: Mapping[int, ChannelInfo]) -> Index:
        """The index of all closed chunks."""
        entries: Any = np.frombuffer(bytes(self._entries), ENTRY)
        return Index((dict(channels),), tuple(self.boots), entries)
