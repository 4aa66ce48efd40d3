"""Recordings: MCAP files with zstd, written message by message as they are sent (docs/recording.md).

The writer collects one chunk in memory and puts it on the disk in one piece, every second and whenever CHUNK_BYTES are
reached. A chunk that does
not fit is taken back whole, so what counts as recorded can be read. Nothing is synced to the disk: a crash of the
process loses at most a second,
a loss of power what the system had not written.
"""

from __future__ import annotations

import base64
import json
import math
import os
from pathlib import Path
from typing import IO, Any, Final, cast

import msgpack
from mcap.writer import CompressionType, IndexType, Writer

from interlatent_live.stream.errors import RecordingError, RecordingExists
from interlatent_live.stream.frames import FrameBatch
from interlatent_live.stream.manifest import Manifest
from interlatent_live.stream.wire import Message, Picture, Signals, pack

__all__ = ["CHUNK_BYTES", "FORMAT", "Recorder"]

CHUNK_BYTES: Final = 256 << 10
"""Uncompressed size at which a chunk is closed."""
FORMAT: Final = "1"
"""Major version of docs/recording.md, in the metadata record `interlatent-live`."""
METADATA: Final = "interlatent-live"

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
    """Writes one run's messages to a new file. For one thread; inert in a forked child."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Make the file. Raises RecordingExists, or RecordingError where it cannot be made."""
        self.path = Path(path)
        self.frames = 0
        """Frames in the file."""
        self.pending_frames = 0
        """Frames in the open chunk."""
        self._run: str | None = None
        self._manifests: set[str] = set()
        self._channels: dict[str, int] = {}
        self._schemas: dict[str, int] = {}
        self._chunk_bytes = 0
        self._file = _Spool(self.path)
        # its own chunking is off: a chunk that it closed by itself could half fail
        self._writer: Any = Writer(
            cast(IO[bytes], self._file), chunk_size=1 << 62, compression=CompressionType.ZSTD, index_types=IndexType.ALL
        )
        self._writer.start(library="interlatent-live")
        self._writer.add_metadata(METADATA, {"format": FORMAT})
        try:
            self.flush()
        except RecordingError:
            self._file.close()
            raise

    def write(self, message: Message) -> None:
        """Append a message. A manifest already in the file is left out. Raises RecordingError, after which the recorder
        is closed.
        """
        if not self._file.usable():
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
        kind, header, wall_ns, buffers = pack(message)
        if isinstance(message, Signals):
            channel, data = self._channel("/signals", kind, "json"), _signals_json(message)
        elif isinstance(message, Picture):
            channel, data = self._channel(f"/picture/{message.env}", kind, "json"), _picture_json(message, header)
        else:
            channel, data = self._channel(f"/{kind}", kind, "msgpack"), msgpack.packb(header | {"data": buffers})
        sequence = message.first_seq & 0xFFFFFFFF if isinstance(message, FrameBatch) else 0
        wall_ns = max(0, wall_ns)  # MCAP times are unsigned
        self._writer.add_message(channel, wall_ns, data, wall_ns, sequence)
        self._chunk_bytes += len(data)
        if isinstance(message, FrameBatch):
            self.pending_frames += message.rows
        if self._chunk_bytes >= CHUNK_BYTES or isinstance(message, Manifest):
            self.flush()  # a manifest at once: a file without one cannot be read

    def flush(self) -> None:
        """Close the chunk and write it. Raises RecordingError, after which the recorder is closed and `pending_frames`
        were not recorded.
        """
        if not self._file.usable():
            return
        try:
            self._writer.flush()
        except OSError as error:
            self._file.close()
            raise RecordingError(
                f"recording {self.path} stopped after {self.frames} frames: {error.strerror}; free some space or "
                "record elsewhere"
            ) from error
        self.frames += self.pending_frames
        self.pending_frames = self._chunk_bytes = 0

    def close(self) -> None:
        """Write what is pending and the index. Twice is once. Raises RecordingError if that fails; what was flushed
        stays readable.
        """
        if not self._file.usable():
            self._file.close()
            return
        self.flush()
        try:
            self._writer.finish()
            self._file.flush()
        except OSError as error:
            raise RecordingError(
                f"recording {self.path} has no index: {error.strerror}; its {self.frames} frames are readable"
            ) from error
        finally:
            self._file.close()

    def abandon(self) -> None:
        """Close the file without the open chunk. Twice is once."""
        self._file.close()

    def _channel(self, topic: str, kind: str, encoding: str) -> int:
        if topic not in self._channels:
            if kind not in self._schemas:
                name, schema = _SCHEMAS[kind]
                self._schemas[kind] = self._writer.register_schema(name, "jsonschema", json.dumps(schema).encode())
            metadata = {"run": self._run or ""}
            self._channels[topic] = self._writer.register_channel(topic, encoding, self._schemas[kind], metadata)
        return self._channels[topic]


class _Spool:
    """A new file to which whole pieces are appended: `flush` writes everything since the last one, or nothing."""

    def __init__(self, path: Path) -> None:
        self._pid = os.getpid()
        self._pieces = bytearray()
        self._length = 0
        try:
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        except FileExistsError as error:
            raise RecordingExists(
                f"recording {path} exists and is never overwritten; choose another name or remove it"
            ) from error
        except OSError as error:
            raise RecordingError(f"recording {path} cannot be made: {error.strerror}") from error

    def usable(self) -> bool:
        return self._fd >= 0 and self._pid == os.getpid()

    def write(self, data: bytes) -> int:
        self._pieces += data
        return len(data)

    def tell(self) -> int:
        return self._length + len(self._pieces)

    def flush(self) -> None:
        rest = memoryview(bytes(self._pieces))
        self._pieces.clear()
        good = self._length
        try:
            while rest:
                written = os.write(self._fd, rest)
                self._length += written
                rest = rest[written:]
        except OSError:
            os.ftruncate(self._fd, good)  # half a chunk is of no use, and its bytes may be what others lack
            self._length = good
            raise

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


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
