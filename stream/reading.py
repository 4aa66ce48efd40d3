"""Reading a recording, also one whose tail is missing, in bounded memory: one chunk at a time. Needs no torch.

Messages come in written order, which is the order in which they were sent. Times are seconds of frame time: an agent's
monotonic clock since the
first frame of the file. Where the agent was started again, its later boots are placed by wall clock.
"""

from __future__ import annotations

import base64
import binascii
import json
import logging
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgpack
import zstandard
from mcap.exceptions import EndOfFile, McapError
from mcap.records import Channel, Chunk, Footer, McapRecord, Metadata
from mcap.records import Message as Record
from mcap.stream_reader import StreamReader, breakup_chunk

from interlatent_live.stream.errors import MalformedMessage, RecordingDamaged, RecordingError, WireError
from interlatent_live.stream.frames import FrameBatch
from interlatent_live.stream.manifest import Manifest
from interlatent_live.stream.recording import FORMAT, METADATA
from interlatent_live.stream.wire import MAX_MESSAGE_BYTES, Bye, Heartbeat, Message, Picture, Scalars, Signals, unpack

__all__ = ["FrameClock", "Recording"]

_LOG = logging.getLogger(__name__)
_MAX_CHUNK_BYTES: Final = 2 * MAX_MESSAGE_BYTES
_MANIFEST_WITHIN: Final = 256
"""Messages among which the first manifest must be."""
_PICTURE: Final = "/picture/"


class Recording:
    """A recording that may be read several times, and by several readers."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open `path`. Raises RecordingError where it cannot be opened, RecordingDamaged where it is not a recording of
        ours.
        """
        self.path = Path(path)
        self.damaged: str | None = None
        """What was found missing or broken, once reading came to it."""
        self._warned = False
        first = None
        for number, message in enumerate(self._all()):
            if isinstance(message, Manifest):
                first = message
                break
            if number >= _MANIFEST_WITHIN:
                break
        if first is None:
            raise RecordingDamaged(
                f"{self.path} holds no manifest{f' ({self.damaged})' if self.damaged else ''}; it cannot be "
                "understood"
            )
        self.manifest: Manifest = first
        """The first manifest of the file."""

    def messages(self, from_s: float | None = None, to_s: float | None = None) -> Iterator[Message]:
        """All messages in written order, or those of [from_s, to_s) in seconds of frame time.

        Batches are never cut: one belongs where its first row is. Manifests always come, so that what follows is
        understood.
        """
        axis = FrameClock()
        now = 0.0
        for message in self._all():
            now = axis.seconds(message, now)
            if isinstance(message, Manifest) or ((from_s is None or now >= from_s) and (to_s is None or now < to_s)):
                yield message

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
        for message in self._all():
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
            "bytes": self.path.stat().st_size,
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

    def _all(self) -> Iterator[Message]:
        channels: dict[int, Channel] = {}
        for record in self._records():
            if isinstance(record, Channel):
                channels[record.id] = record
            elif isinstance(record, Record):
                channel = channels.get(record.channel_id)
                if channel is None:
                    self._found(f"a message of the unknown channel {record.channel_id}")
                    continue
                try:
                    message = self._message(channel, record)
                except WireError as error:
                    self._found(f"a message of {channel.topic} that is refused: {error}")
                    continue
                if message is not None:
                    yield message

    def _records(self) -> Iterator[McapRecord]:
        """Records of the data section, chunks opened; ends quietly at the first byte that cannot be read, and says so
        in `damaged`.
        """
        try:
            file = open(self.path, "rb")  # noqa: SIM115 - closed below, and by the generator's end
        except OSError as error:
            raise RecordingError(f"recording {self.path} cannot be opened: {error.strerror}") from error
        with file:
            ours = complete = False
            try:
                for record in StreamReader(file, emit_chunks=True, record_size_limit=_MAX_CHUNK_BYTES).records:
                    if isinstance(record, Metadata) and record.name == METADATA:
                        ours = True
                        if record.metadata.get("format") != FORMAT:
                            found = record.metadata.get("format")
                            raise RecordingDamaged(
                                f"{self.path} has format {found!r}; this build reads {FORMAT}: upgrade the older side"
                            )
                    elif isinstance(record, (Chunk, Record)) and not ours:
                        raise RecordingDamaged(f"{self.path} is an MCAP file, but no recording of Interlatent Live")
                    elif isinstance(record, Chunk):
                        yield from self._chunk(record)
                    elif isinstance(record, Footer):
                        complete = True
                    else:
                        yield record
            except (McapError, EndOfFile, struct.error, ValueError, MemoryError, OverflowError) as error:
                if not ours:
                    raise RecordingDamaged(
                        f"{self.path} is not a recording: {type(error).__name__} at byte {file.tell()}"
                    ) from error
                if not complete:
                    self._found(f"its tail is missing after byte {file.tell()}: it was not closed, or was cut off")

    def _chunk(self, chunk: Chunk) -> Iterator[McapRecord]:
        try:
            if chunk.uncompressed_size > _MAX_CHUNK_BYTES or (
                chunk.compression == "zstd" and zstandard.frame_content_size(chunk.data) > _MAX_CHUNK_BYTES
            ):
                raise ValueError(f"it claims {chunk.uncompressed_size} bytes; the limit is {_MAX_CHUNK_BYTES}")
            yield from breakup_chunk(chunk, validate_crc=True)
        except (McapError, EndOfFile, struct.error, zstandard.ZstdError, ValueError, MemoryError) as error:
            self._found(f"a chunk that cannot be read: {type(error).__name__}: {error}")

    def _message(self, channel: Channel, record: Record) -> Message | None:
        if channel.topic == "/signals":
            values = _json(record.data)
            if not all(v is None or isinstance(v, (int, float)) for v in values.values()):
                raise MalformedMessage("signals are not a flat map of numbers")
            numbers = {name: float("nan") if v is None else float(v) for name, v in values.items()}
            return Signals(channel.metadata.get("run", ""), record.log_time, numbers)
        if channel.topic.startswith(_PICTURE):
            header = _json(record.data)
            try:
                data = base64.b64decode(header.pop("data", ""), validate=True)
            except (binascii.Error, TypeError, ValueError) as error:
                raise MalformedMessage(f"picture is not base64: {error}") from error
            return unpack("picture", str(header.get("run")), header, [data])
        if channel.message_encoding != "msgpack":
            return None  # of a newer minor format
        try:
            header = msgpack.unpackb(record.data, raw=False, strict_map_key=True, max_ext_len=0)
        except (ValueError, TypeError, msgpack.UnpackException) as error:
            raise MalformedMessage(f"not msgpack: {error}") from error
        buffers = header.pop("data", []) if isinstance(header, dict) else None
        if not isinstance(buffers, list) or not all(isinstance(b, bytes) for b in buffers):
            raise MalformedMessage("not a map with a list of buffers")
        return unpack(channel.topic.removeprefix("/"), str(header.get("run")), header, buffers)

    def _found(self, what: str) -> None:
        self.damaged = self.damaged or what
        if not self._warned:
            self._warned = True
            _LOG.warning("recording %s is damaged: %s; what can be read is read", self.path, what)


class FrameClock:
    """Seconds of frame time for each message of a file, in its order."""

    def __init__(self) -> None:
        self._zero_ns: dict[str, int] = {}
        self._wall_ns = 0

    def seconds(self, message: Message, now: float) -> float:
        """Time of `message`'s first row; what has no clock of its own, or comes before all frames, is at `now`."""
        if isinstance(message, FrameBatch):
            monotonic_ns, wall_ns = int(message.columns["monotonic_ns"][0]), int(message.columns["wall_ns"][0])
            if not self._zero_ns:
                self._wall_ns = wall_ns
            if message.boot not in self._zero_ns:
                begin_ns = 0 if not self._zero_ns else max(int(now * 1e9), wall_ns - self._wall_ns)
                self._zero_ns[message.boot] = monotonic_ns - begin_ns
            return (monotonic_ns - self._zero_ns[message.boot]) / 1e9
        if isinstance(message, (Heartbeat, Picture)) and message.boot in self._zero_ns:
            return (message.monotonic_ns - self._zero_ns[message.boot]) / 1e9
        if isinstance(message, Scalars) and message.boot in self._zero_ns:
            return (message.monotonic_ns[0] - self._zero_ns[message.boot]) / 1e9
        return now

    def last(self, batch: FrameBatch) -> float:
        """Time of the last row of a batch that `seconds` has seen."""
        return (int(batch.columns["monotonic_ns"][-1]) - self._zero_ns[batch.boot]) / 1e9


def _json(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise MalformedMessage(f"not JSON: {error}") from error
    if not isinstance(value, dict):
        raise MalformedMessage(f"a JSON {type(value).__name__}, not an object")
    return value
