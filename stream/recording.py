"""Recordings: MCAP files with zstd, written message by message as they are sent (docs/recording.md).

The writer collects one chunk in memory and puts it on the disk in one piece, every second and whenever CHUNK_BYTES are
reached. A chunk that does
not fit is taken back whole, so what counts as recorded can be read. Nothing is synced to the disk: a crash of the
process loses at most a second,
a loss of power what the system had not written. It stops before the disk is full: room is kept free for others.
"""

from __future__ import annotations

import base64
import json
import math
import os
import re
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Final, cast

import msgpack
from mcap.writer import CompressionType, IndexType, Writer

from interlatent_live.stream.errors import RecordingError, RecordingExists
from interlatent_live.stream.frames import FrameBatch
from interlatent_live.stream.index import ATTACHMENT, ChannelInfo, Tally
from interlatent_live.stream.manifest import Manifest
from interlatent_live.stream.spool import Spool, shortage
from interlatent_live.stream.wire import Message, Picture, Signals, pack

__all__ = ["CHUNK_BYTES", "FORMAT", "METADATA", "Recorder", "part_path", "parts_beside"]

CHUNK_BYTES: Final = 256 << 10
"""Uncompressed size at which a chunk is closed."""
FORMAT: Final = "1"
"""Major version of docs/recording.md, in the metadata record `interlatent-live`."""
METADATA: Final = "interlatent-live"
"""Name of the metadata record: the format, which recording this file is a part of, and which part."""

_INTEGER: Final = {"type": "integer"}
_TIME: Final = {"type": "object", "title": "time", "properties": {"sec": _INTEGER, "nsec": _INTEGER}}
_COUNTS: Final = {"produced": _INTEGER, "queue_dropped": _INTEGER, "recorded": _INTEGER, "record_failed": _INTEGER}
_SCHEMAS: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "frames": (
        "interlatent.Frames",
        {
            "type": "object",
            "description": "Consecutive frames; buffers[i] = [name, dtype, shape] of data[i]; see docs/recording.md",
            "properties": {"run": {"type": "string"}, "boot": {"type": "string"}, "seq": _INTEGER, "rows": _INTEGER},
        },
    ),
    "manifest": (
        "interlatent.Manifest",
        {"type": "object", "properties": {"hash": {"type": "string"}, "manifest": {"type": "object"}}},
    ),
    "heartbeat": ("interlatent.Heartbeat", {"type": "object", "properties": _COUNTS}),
    "bye": ("interlatent.Bye", {"type": "object", "properties": _COUNTS}),
    "scalars": (
        "interlatent.Scalars",
        {
            "type": "object",
            "description": "values[i][j]: what was logged under names[j] before step[i]; see docs/wire.md",
            "properties": {"run": {"type": "string"}, "boot": {"type": "string"}, "seq": _INTEGER},
        },
    ),
    "attribution": (
        "interlatent.Attribution",
        {
            "type": "object",
            "description": "Why the action of frame seq; buffers[i] = [name, dtype, shape] of data[i]; see docs/wire.md",
            "properties": {"run": {"type": "string"}, "boot": {"type": "string"}, "seq": _INTEGER, "env": _INTEGER},
        },
    ),
    "intervention": (
        "interlatent.Intervention",
        {
            "type": "object",
            "description": "the start or end of an intervention, see docs/steering.md",
            "properties": {"run": {"type": "string"}, "boot": {"type": "string"}, "seq": _INTEGER, "number": _INTEGER},
        },
    ),
    "effects": (
        "interlatent.Effects",
        {
            "type": "object",
            "description": "value[i]: the effect on the action of intervention number[i] at frame[i]; see docs/wire.md",
            "properties": {"run": {"type": "string"}, "boot": {"type": "string"}, "seq": _INTEGER},
        },
    ),
    "prompt": (
        "interlatent.Prompt",
        {
            "type": "object",
            "description": "a sequence that a language model ran: its text and labels; see docs/wire.md",
            "properties": {"run": {"type": "string"}, "boot": {"type": "string"}, "prompt": _INTEGER, "text": {"type": "string"}},
        },
    ),
    "vocabulary": (
        "interlatent.Vocabulary",
        {
            "type": "object",
            "description": "texts[i]: the text of token tokens[i], as bytes; see docs/wire.md",
            "properties": {"run": {"type": "string"}, "boot": {"type": "string"}},
        },
    ),
    "signals": (
        "interlatent.Signals",
        {
            "type": "object",
            "description": "name: number; null is NaN or infinity",
            "additionalProperties": {"type": ["number", "null"]},
        },
    ),
    "picture": (
        "foxglove.CompressedImage",
        {
            "type": "object",
            "title": "foxglove.CompressedImage",
            "properties": {
                "timestamp": _TIME,
                "frame_id": {"type": "string"},
                "data": {"type": "string", "contentEncoding": "base64"},
                "format": {"type": "string"},
            },
        },
    ),
}


class Recorder:
    """Writes one run's messages to a new file, or to several. For one thread; inert in a forked child."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        rotate_bytes: int | None = None,
        rotate_s: float | None = None,
        keep_free_bytes: int | None = None,
        place: tuple[str, int] | None = None,
    ) -> None:
        """Make the file. Raises RecordingExists, or RecordingError where it cannot be made or its disk has no room.

        `rotate_bytes`, `rotate_s`: go on in another file (`run.mcap`, `run.1.mcap`, …) once one has so many bytes, or
        so many seconds after it was begun; each can be read by itself. `keep_free_bytes`: room that stays free on the
        disk; None is the default of `stream.spool`, 0 does not look. `place`: recording and part that a rebuilt file
        belongs to.
        """
        self.path = Path(path)
        for name, limit in (("rotate_bytes", rotate_bytes), ("rotate_s", rotate_s)):
            if limit is not None and not limit > 0:
                raise RecordingError(f"{name} is {limit}; it must be above 0, or None for one file")
        self._rotate_bytes, self._rotate_s, self._keep_free_bytes = rotate_bytes, rotate_s, keep_free_bytes
        self._id, number = place or (secrets.token_hex(8), 0)
        if (reason := shortage(self.path, keep_free_bytes)) is not None:
            raise RecordingError(f"recording {self.path} is not begun: {reason}; free some, or record elsewhere")
        if (rotate_bytes or rotate_s) and (taken := next(parts_beside(self.path), None)) is not None:
            raise RecordingExists(f"recording {taken[1]} exists, and {self.path} would go on in a file of that name")
        self.frames = 0
        """Frames in the files."""
        self.pending_frames = 0
        """Frames in the open chunk."""
        self._run: str | None = None
        self._manifests: set[str] = set()
        self._manifest: Manifest | None = None
        self._part = _Part(self.path, self._id, number)

    def write(self, message: Message) -> None:
        """Append a message. A manifest already in the file is left out. Raises RecordingError, after which the recorder
        is closed.
        """
        if not self._part.usable():
            raise RecordingError(f"recording {self.path} is closed")
        if self._run is None:
            self._run = message.run
        elif message.run != self._run:
            raise RecordingError(
                f"recording {self.path} holds run {self._run!r}; a message of {message.run!r} needs its own file"
            )
        if isinstance(message, Manifest):
            if message.hash in self._manifests:
                return
            self._manifests.add(message.hash)
            self._manifest = message
        if self._part.tally.boot not in (None, getattr(message, "boot", self._part.tally.boot)):
            self.flush()  # a chunk is of one boot
        self._part.write(message)
        if isinstance(message, FrameBatch):
            self.pending_frames += message.rows
        if self._part.pending_bytes >= CHUNK_BYTES or isinstance(message, Manifest):
            self.flush()  # a manifest at once: a file without one cannot be read

    def flush(self) -> None:
        """Close the chunk and write it, and go on in another file where it is time. Raises RecordingError, after which
        the recorder is closed and `pending_frames` were not recorded; that is, too, how it stops before its disk is
        full, with the file complete but for the farewell.
        """
        if not self._part.usable():
            return
        try:
            self._part.flush()
        except OSError as error:
            self._part.abandon()
            raise RecordingError(
                f"recording {self.path} stopped after {self.frames} frames: {error.strerror}; free some space or "
                "record elsewhere"
            ) from error
        self.frames += self.pending_frames
        self.pending_frames = 0
        if (reason := shortage(self._part.path, self._keep_free_bytes)) is not None:
            self._part.close(self.frames)
            raise RecordingError(f"recording {self.path} stopped after {self.frames} frames: {reason}")
        if self._due():
            self._rotate()

    def close(self) -> None:
        """Write what is pending and the index. Twice is once. Raises RecordingError if that fails; what was flushed
        stays readable.
        """
        if not self._part.usable():
            self._part.abandon()
            return
        self._rotate_bytes = self._rotate_s = None
        self._keep_free_bytes = 0  # what is left is written anyhow
        self.flush()
        self._part.close(self.frames)

    def abandon(self) -> None:
        """Close the file without the open chunk. Twice is once."""
        self._part.abandon()

    def _due(self) -> bool:
        part = self._part
        full = self._rotate_bytes is not None and part.length >= self._rotate_bytes
        late = self._rotate_s is not None and time.monotonic() - part.begun_s >= self._rotate_s
        return part.tally.frames > 0 and (full or late)

    def _rotate(self) -> None:
        self._part.close(self.frames)
        number = self._part.number + 1
        self._part = _Part(part_path(self.path, number), self._id, number)
        if self._manifest is not None:
            self._manifests = {self._manifest.hash}
            self._part.write(self._manifest)
            try:
                self._part.flush()
            except OSError as error:
                self._part.abandon()
                raise RecordingError(f"recording {self._part.path} cannot be begun: {error.strerror}") from error


class _Part:
    """One file of a recording."""

    def __init__(self, path: Path, recording: str, number: int) -> None:
        self.path, self.number, self.begun_s = path, number, time.monotonic()
        self.tally = Tally()
        self.pending_bytes = 0
        """Bytes of messages in the open chunk."""
        self._channels: dict[str, int] = {}
        self._described: dict[int, ChannelInfo] = {}
        self._schemas: dict[str, int] = {}
        self._file = Spool(path)
        # its own chunking is off: a chunk that it closed by itself could half fail
        self._writer: Any = Writer(
            cast(IO[bytes], self._file), chunk_size=1 << 62, compression=CompressionType.ZSTD, index_types=IndexType.ALL
        )
        self._writer.start(library="interlatent-live")
        self._writer.add_metadata(METADATA, {"format": FORMAT, "recording": recording, "part": str(number)})
        try:
            self.flush()
        except OSError as error:
            self._file.close()
            raise RecordingError(f"recording {path} cannot be begun: {error.strerror}") from error

    @property
    def length(self) -> int:
        """Bytes of the file, once flushed."""
        return self._file.tell()

    def usable(self) -> bool:
        return self._file.usable()

    def write(self, message: Message) -> None:
        """Add to the open chunk."""
        kind, header, wall_ns, buffers = pack(message)
        if isinstance(message, Signals):
            channel, data = self._channel("/signals", kind, "json", message.run), _signals_json(message)
        elif isinstance(message, Picture):
            topic = f"/picture/{message.env}"
            channel, data = self._channel(topic, kind, "json", message.run), _picture_json(message, header)
        else:
            channel = self._channel(f"/{kind}", kind, "msgpack", message.run)
            data = msgpack.packb(header | {"data": buffers})
        sequence = message.first_seq & 0xFFFFFFFF if isinstance(message, FrameBatch) else 0
        wall_ns = max(0, wall_ns)  # MCAP times are unsigned
        self._writer.add_message(channel, wall_ns, data, wall_ns, sequence)
        self.pending_bytes += len(data)
        self.tally.add(message)

    def flush(self) -> None:
        """Put the open chunk on the disk, or raise OSError with none of it there."""
        offset = self._file.tell()
        self._writer.flush()
        self.tally.close(offset)
        self.pending_bytes = 0

    def close(self, frames: int) -> None:
        """Write the indexes and close the file. Raises RecordingError; what was flushed stays readable."""
        try:
            self._writer.add_attachment(0, 0, ATTACHMENT, "application/zstd", self.tally.index(self._described).pack())
            self._writer.finish()
            self._file.flush()
        except OSError as error:
            raise RecordingError(
                f"recording {self.path} has no index: {error.strerror}; its {frames} frames are readable"
            ) from error
        finally:
            self._file.close()

    def abandon(self) -> None:
        self._file.close()

    def _channel(self, topic: str, kind: str, encoding: str, run: str) -> int:
        if topic not in self._channels:
            if kind not in self._schemas:
                name, schema = _SCHEMAS[kind]
                self._schemas[kind] = self._writer.register_schema(name, "jsonschema", json.dumps(schema).encode())
            number = self._writer.register_channel(topic, encoding, self._schemas[kind], {"run": run})
            self._channels[topic] = number
            self._described[number] = ChannelInfo(topic, encoding, run)
        return self._channels[topic]


def part_path(path: Path, number: int) -> Path:
    """File of a recording's part: `run.mcap`, `run.1.mcap`, `run.2.mcap`, …"""
    return path.with_name(f"{path.stem}.{number}{path.suffix}") if number else path


def parts_beside(path: Path) -> Iterator[tuple[int, Path]]:
    """Number and path of every file that has the name of a later part of `path`; which recording it is of is not asked."""
    name = re.compile(rf"{re.escape(path.stem)}\.([1-9]\d{{0,8}}){re.escape(path.suffix)}")
    try:
        found = [(int(match[1]), path.with_name(entry)) for entry in os.listdir(path.parent) if (match := name.fullmatch(entry))]
    except OSError:
        return
    yield from sorted(found)


def _signals_json(message: Signals) -> bytes:
    values = {name: value if math.isfinite(value) else None for name, value in message.values.items()}
    return json.dumps(values, separators=(",", ":"), allow_nan=False).encode()


def _picture_json(message: Picture, header: dict[str, Any]) -> bytes:
    seconds, nanoseconds = divmod(message.wall_ns, 1_000_000_000)
    image = {
        "timestamp": {"sec": seconds, "nsec": nanoseconds},
        "frame_id": f"env{message.env}",
        "data": base64.b64encode(message.data).decode("ascii"),
        "format": "jpeg",
    }
    return json.dumps(image | {k: v for k, v in header.items() if k != "buffers"}, separators=(",", ":")).encode()
