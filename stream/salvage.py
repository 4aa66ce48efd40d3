"""Rebuilding a recording that was cut off, half written or damaged, and telling what was lost.

1. Walk the file record by record. Where no record can begin, look for the next chunk: a chunk's header names its
   compression and its own length twice, so one is not mistaken. What lies between is lost.
2. A chunk is taken if its checksum holds. One that the file's end cuts is unpacked as far as its blocks are there, and
   its complete messages are taken.
3. Every message passes the checks of the wire. One whose channel's description was lost is recognised by its keys.
4. All goes into a new recording, with an index. Frames count as lost where numbers are missing around bytes that could
   not be read; other gaps were there before (a full queue, a lossy subscriber).
"""

from __future__ import annotations

import json
import mmap
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Final

import msgpack
import zstandard
from mcap.data_stream import ReadDataStream
from mcap.opcode import Opcode
from mcap.records import Channel
from mcap.records import Message as Record

from interlatent_live.stream.errors import MalformedMessage, RecordingDamaged, RecordingError, WireError
from interlatent_live.stream.frames import FrameBatch
from interlatent_live.stream.index import ChannelInfo
from interlatent_live.stream.manifest import Manifest
from interlatent_live.stream.part import BROKEN, MAX_CHUNK_BYTES, Part, decode, described
from interlatent_live.stream.recording import Recorder
from interlatent_live.stream.wire import Bye, Message

__all__ = ["Recovery", "recover"]

_MAGIC_BYTES: Final = 8
_RECORD: Final = struct.Struct("<BQ")
_CHUNK: Final = struct.Struct("<QQQII4sQ")  # start, end, unpacked size, CRC, length of the name, "zstd", packed size
_NAME: Final = b"\x04\x00\x00\x00zstd"
_NAME_AT: Final = _RECORD.size + 28
_MAX_RECORD: Final = 1 << 30
_KEYS: Final = (
    ("rows", "frames"), ("hash", "manifest"), ("scores", "attribution"), ("names", "scalars"), ("event", "intervention"),
    ("factor", "effects"), ("labels", "prompt"), ("texts", "vocabulary"), ("produced", "heartbeat"),
)  # fmt: skip
"""A key that only messages of that kind have."""


@dataclass(slots=True)
class Recovery:
    """What was rebuilt, and what was lost."""

    source: str
    out: str
    bytes: int
    """Of the damaged file."""
    messages: int = 0
    frames: int = 0
    lost_frames: int = 0
    """Frames known to be missing where bytes could not be read. What came after the last frame is not known: see
    `farewell`."""
    lost_seconds: float = 0.0
    """Frame time of these stretches."""
    lost_bytes: int = 0
    """That could not be read."""
    broken_chunks: int = 0
    """Chunks left out because their checksum does not hold."""
    half_chunk_messages: int = 0
    """Messages taken from the chunk that the file's end cuts."""
    refused_messages: int = 0
    farewell: bool = False
    """Whether the recording reaches its end; False: it ends at `last_wall_ns`, and how much more there was is unknown."""
    last_wall_ns: int | None = None
    gaps: list[tuple[str, int, int]] = field(default_factory=list)
    """Boot, first and next sequence number of each stretch that was lost."""


def recover(path: str | os.PathLike[str], out: str | os.PathLike[str] | None = None) -> Recovery:
    """Rebuild the one file `path` as `out`; None: `run.recovered.mcap` beside `run.mcap`. The file is not changed.

    Raises RecordingDamaged where nothing can be made of it, RecordingExists where `out` is there.
    """
    path = Path(path)
    target = path.with_name(f"{path.stem}.recovered{path.suffix}") if out is None else Path(out)
    try:
        size = path.stat().st_size
        file = open(path, "rb")  # noqa: SIM115 - closed below
    except OSError as error:
        raise RecordingError(f"recording {path} cannot be opened: {error.strerror}") from error
    with file:
        if not size:
            raise RecordingDamaged(f"{path} is empty; nothing can be rebuilt")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            manifest = next((m for m in _Walk(data).messages() if isinstance(m, Manifest)), None)
            if manifest is None:
                raise RecordingDamaged(f"no manifest can be read in {path}, so nothing in it can be understood")
            return _rebuild(_Walk(data), manifest, path, target)


def _rebuild(walk: _Walk, manifest: Manifest, path: Path, target: Path) -> Recovery:
    done = Recovery(str(path), str(target), len(walk.data))
    recorder = Recorder(target, place=_place(path))
    last: dict[str, FrameBatch] = {}
    lost_before = 0
    try:
        recorder.write(manifest)
        for message in walk.messages():
            if message.run != manifest.run:
                walk.refused += 1
                continue
            if isinstance(message, FrameBatch):
                if walk.lost > lost_before:
                    _count_gap(done, last.get(message.boot), message)
                lost_before = walk.lost
                done.frames += message.rows
                done.last_wall_ns = int(message.columns["wall_ns"][-1])
                last[message.boot] = message
                done.farewell = False
            done.farewell = done.farewell or isinstance(message, Bye)
            done.messages += not isinstance(message, Manifest)
            recorder.write(message)
    finally:
        recorder.close()
    done.lost_bytes, done.broken_chunks = walk.lost, walk.broken
    done.half_chunk_messages, done.refused_messages = walk.halves, walk.refused
    return done


def _place(path: Path) -> tuple[str, int] | None:
    try:
        return Part(path).identity()
    except RecordingError:
        return None


def _count_gap(done: Recovery, before: FrameBatch | None, after: FrameBatch) -> None:
    first, dropped = (0, 0) if before is None else (before.next_seq, before.queue_dropped)
    missing = after.first_seq - first - (after.queue_dropped - dropped)
    if missing <= 0:
        return
    done.lost_frames += missing
    done.gaps.append((after.boot, first, after.first_seq))
    if before is not None:
        done.lost_seconds += (int(after.columns["monotonic_ns"][0]) - int(before.columns["monotonic_ns"][-1])) / 1e9


class _Walk:
    """One pass through the bytes of a recording."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.lost = self.broken = self.halves = self.refused = 0
        self._channels: dict[int, ChannelInfo] = {}
        self._run = ""

    def messages(self) -> Iterator[Message]:
        """Every message that can be had, in written order."""
        for place, length in self._chunks():
            start, cut = place + _RECORD.size + _CHUNK.size, place + _RECORD.size + length > len(self.data)
            unpacked = self._half(start) if cut else self._whole(place, length)
            taken = 0
            for record in self._records(unpacked):
                message = self._message(record)
                if message is not None:
                    taken += 1
                    yield message
            if cut:
                self.halves = taken

    def _chunks(self) -> Iterator[tuple[int, int]]:
        """Place and length of each chunk; bytes that are no record are counted as lost."""
        data, place = self.data, _MAGIC_BYTES
        while place < len(data):
            length = self._length(place)
            if length is None:
                found = self._next_chunk(place + 1)
                self.lost += (len(data) if found is None else found) - place
                if found is None:
                    return
                place = found
                continue
            opcode = data[place]
            if opcode == Opcode.CHUNK:
                yield place, length
            if opcode == Opcode.DATA_END:
                return  # the summary follows
            if place + _RECORD.size + length > len(data):
                if opcode != Opcode.CHUNK:
                    self.lost += len(data) - place
                return
            place += _RECORD.size + length

    def _length(self, place: int) -> int | None:
        """Length of the record that begins at `place`; None where none does."""
        if place + _RECORD.size > len(self.data):
            return None
        opcode, length = _RECORD.unpack_from(self.data, place)
        if opcode == Opcode.CHUNK:
            return length if self._is_chunk(place) else None
        return length if 0 < opcode <= Opcode.DATA_END and 0 < length <= _MAX_RECORD else None

    def _is_chunk(self, place: int) -> bool:
        if place < 0 or place + _RECORD.size + _CHUNK.size > len(self.data):
            return False
        opcode, length = _RECORD.unpack_from(self.data, place)
        *_, unpacked, _, name_length, name, packed = _CHUNK.unpack_from(self.data, place + _RECORD.size)
        whole: bool = length == _CHUNK.size + packed and unpacked <= MAX_CHUNK_BYTES
        return bool(opcode == Opcode.CHUNK and name_length == 4 and name == b"zstd" and whole)

    def _next_chunk(self, place: int) -> int | None:
        at = place
        while (at := self.data.find(_NAME, at)) >= 0:
            if at - _NAME_AT >= place and self._is_chunk(at - _NAME_AT):
                return at - _NAME_AT
            at += 1
        return None

    def _whole(self, place: int, length: int) -> bytes:
        *_, unpacked_size, crc, _, _, _ = _CHUNK.unpack_from(self.data, place + _RECORD.size)
        packed = self.data[place + _RECORD.size + _CHUNK.size : place + _RECORD.size + length]
        try:
            if not 0 <= zstandard.frame_content_size(packed) <= MAX_CHUNK_BYTES:
                raise ValueError("its size is unknown")
            unpacked = zstandard.ZstdDecompressor().decompress(packed, max_output_size=unpacked_size)
            if zlib.crc32(unpacked) == crc:
                return unpacked
        except BROKEN:
            pass
        self.broken += 1
        self.lost += _RECORD.size + length
        return b""

    def _half(self, start: int) -> bytes:
        """What the blocks that are there unpack to."""
        try:
            unpacked = zstandard.ZstdDecompressor().decompressobj().decompress(self.data[start:])
        except zstandard.ZstdError:
            unpacked = b""
        self.lost += len(self.data) - start + _RECORD.size + _CHUNK.size
        return unpacked

    def _records(self, unpacked: bytes) -> Iterator[Record]:
        at = 0
        while at + _RECORD.size <= len(unpacked):
            opcode, length = _RECORD.unpack_from(unpacked, at)
            body = unpacked[at + _RECORD.size : at + _RECORD.size + length]
            if len(body) < length:
                return
            at += _RECORD.size + length
            try:
                if opcode == Opcode.CHANNEL:
                    channel = Channel.read(ReadDataStream(BytesIO(body)))
                    self._channels[channel.id] = described(channel)
                elif opcode == Opcode.MESSAGE:
                    yield Record.read(ReadDataStream(BytesIO(body)), length)
            except BROKEN:
                self.refused += 1

    def _message(self, record: Record) -> Message | None:
        try:
            channel = self._channels.get(record.channel_id) or _recognised(record.data, self._run)
            message = decode(channel, record)
        except WireError:
            self.refused += 1
            return None
        if message is not None:
            self._run = message.run
        return message


def _recognised(data: bytes, run: str) -> ChannelInfo:
    """The channel that a message must have come by. Raises MalformedMessage where its keys do not tell."""
    try:
        if data[:1] == b"{":
            keys = json.loads(data)
            return ChannelInfo(f"/picture/{keys.get('env')}" if "frame_id" in keys else "/signals", "json", run)
        keys = msgpack.unpackb(data, raw=False, strict_map_key=True, max_ext_len=0)
    except (ValueError, TypeError, AttributeError, msgpack.UnpackException) as error:
        raise MalformedMessage(f"neither JSON nor msgpack: {error}") from error
    for key, kind in _KEYS:
        if isinstance(keys, dict) and key in keys:
            return ChannelInfo(f"/{kind}", "msgpack", run)
    raise MalformedMessage("a message of an unknown kind")
