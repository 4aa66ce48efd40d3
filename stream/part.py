"""One file of a recording: its records in written order, a chunk by its place, its index. Bounded memory: one chunk.

Whatever mcap, zstandard or msgpack make of damaged bytes is translated: the records before are given, and `damaged`
says what was found.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import logging
import struct
from collections.abc import Container, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Final

import msgpack
import zstandard
from mcap.exceptions import EndOfFile, McapError
from mcap.opcode import Opcode
from mcap.records import Attachment, AttachmentIndex, Channel, Chunk, Footer, McapRecord, Metadata, SummaryOffset
from mcap.records import Message as Record
from mcap.stream_reader import StreamReader, breakup_chunk

from interlatent_live.stream.errors import MalformedMessage, RecordingDamaged, RecordingError, WireError
from interlatent_live.stream.index import ATTACHMENT, ChannelInfo, Index, Tally
from interlatent_live.stream.recording import FORMAT, METADATA
from interlatent_live.stream.wire import MAX_MESSAGE_BYTES, Message, Signals, unpack

__all__ = ["BROKEN", "MAX_CHUNK_BYTES", "Part", "decode", "described"]

_LOG = logging.getLogger(__name__)
MAX_CHUNK_BYTES: Final = 2 * MAX_MESSAGE_BYTES
BROKEN: Final = (McapError, EndOfFile, struct.error, zstandard.ZstdError, ValueError, MemoryError, OverflowError)
"""What damaged bytes raise in the libraries below."""
_PICTURE: Final = "/picture/"
_FOOTER_BYTES: Final = 9 + 20 + 8


class Part:
    """A file that may be read several times, and by several readers."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.damaged: str | None = None
        """What was found missing or broken, once reading came to it."""
        self._warned = False

    def identity(self) -> tuple[str, int] | None:
        """Recording that the file is a part of, and the part's number; None for files that do not tell."""
        for _, record in self._walk():
            if isinstance(record, Metadata) and record.name == METADATA:
                name, number = record.metadata.get("recording"), record.metadata.get("part", "")
                return (name, int(number)) if name and number.isdecimal() and len(number) < 10 else None
        return None

    def messages(self, offset: int | None = None, channels: Mapping[int, ChannelInfo] | None = None) -> Iterator[Message]:
        """Messages in written order, from the chunk at `offset` on if given, whose `channels` the index has told."""
        known = dict(channels or {})
        for _, record in self._walk(offset):
            if isinstance(record, Chunk):
                for inner in self._records(record):
                    yield from self._message(inner, known)
            else:
                yield from self._message(record, known)

    def chunk(self, offset: int, channels: Mapping[int, ChannelInfo], topics: Container[str] | None = None) -> Iterator[Message]:
        """Messages of the one chunk at `offset`; `topics`: of these only, the others are not even decoded."""
        known = dict(channels)
        for _, record in self._walk(offset):
            if isinstance(record, Chunk):
                for inner in self._records(record):
                    yield from self._message(inner, known, topics)
            return

    def index(self) -> Index | None:
        """What the recorder noted of each chunk; None where the file was not closed, or was made before there were
        indexes.
        """
        try:
            with self._open() as file:
                place = _attachment(file)
                if place is None:
                    return None
                file.seek(place)
                record = next(iter(StreamReader(file, skip_magic=True, record_size_limit=1 << 30).records), None)
            return Index.unpack(record.data) if isinstance(record, Attachment) else None
        except (RecordingDamaged, *BROKEN):
            return None  # the messages are read all the same

    def scan(self) -> Index:
        """The same by reading the whole file."""
        known: dict[int, ChannelInfo] = {}
        tally = Tally()
        for offset, record in self._walk():
            if isinstance(record, Chunk):
                for inner in self._records(record):
                    for message in self._message(inner, known):
                        tally.add(message)
                tally.close(offset)
            else:
                list(self._message(record, known))
        return tally.index(known)

    def _open(self) -> IO[bytes]:
        try:
            return open(self.path, "rb")
        except OSError as error:
            raise RecordingError(f"recording {self.path} cannot be opened: {error.strerror}") from error

    def _walk(self, offset: int | None = None) -> Iterator[tuple[int, McapRecord]]:
        """Place and content of each record of the data section; ends quietly at the first byte that cannot be read, and
        says so in `damaged`.
        """
        with self._open() as file:
            ours, complete = offset is not None, False
            file.seek(offset or 0)
            records = StreamReader(
                file, skip_magic=offset is not None, emit_chunks=True, record_size_limit=MAX_CHUNK_BYTES
            ).records
            try:
                while True:
                    place = file.tell()
                    record = next(records, None)
                    if record is None:
                        return
                    if isinstance(record, Metadata) and record.name == METADATA:
                        ours = True
                        if record.metadata.get("format") != FORMAT:
                            found = record.metadata.get("format")
                            raise RecordingDamaged(
                                f"{self.path} has format {found!r}; this build reads {FORMAT}: upgrade the older side"
                            )
                    elif isinstance(record, (Chunk, Record)) and not ours:
                        raise RecordingDamaged(f"{self.path} is an MCAP file, but no recording of Interlatent Live")
                    complete = complete or isinstance(record, Footer)
                    yield place, record
            except BROKEN as error:
                if not ours:
                    raise RecordingDamaged(
                        f"{self.path} is not a recording: {type(error).__name__} at byte {file.tell()}"
                    ) from error
                if not complete:
                    self.found(f"its tail is missing after byte {file.tell()}: it was not closed, or was cut off")

    def _records(self, chunk: Chunk) -> list[McapRecord]:
        try:
            if chunk.uncompressed_size > MAX_CHUNK_BYTES or (
                chunk.compression == "zstd" and zstandard.frame_content_size(chunk.data) > MAX_CHUNK_BYTES
            ):
                raise ValueError(f"it claims {chunk.uncompressed_size} bytes; the limit is {MAX_CHUNK_BYTES}")
            return breakup_chunk(chunk, validate_crc=True)
        except BROKEN as error:
            self.found(f"a chunk that cannot be read: {type(error).__name__}: {error}")
            return []

    def _message(
        self, record: McapRecord, known: dict[int, ChannelInfo], topics: Container[str] | None = None
    ) -> Iterator[Message]:
        if isinstance(record, Channel):
            known[record.id] = described(record)
        if not isinstance(record, Record):
            return
        channel = known.get(record.channel_id)
        if channel is None:
            self.found(f"a message of the unknown channel {record.channel_id}")
            return
        if topics is not None and channel.topic not in topics:
            return
        try:
            message = decode(channel, record)
        except WireError as error:
            self.found(f"a message of {channel.topic} that is refused: {error}")
            return
        if message is not None:
            yield message

    def found(self, what: str) -> None:
        """Note damage; it is said once."""
        self.damaged = self.damaged or what
        if not self._warned:
            self._warned = True
            _LOG.warning("recording %s is damaged: %s; what can be read is read", self.path, what)


def _attachment(file: IO[bytes]) -> int | None:
    """Place of the index in a complete file, by way of its summary."""
    size = file.seek(0, io.SEEK_END)
    if size < _FOOTER_BYTES:
        return None
    file.seek(size - _FOOTER_BYTES)
    footer = next(iter(StreamReader(file, skip_magic=True).records), None)
    if not isinstance(footer, Footer) or not 0 < footer.summary_offset_start < size:
        return None
    file.seek(footer.summary_offset_start)
    for group in StreamReader(file, skip_magic=True).records:
        if isinstance(group, SummaryOffset) and group.group_opcode == Opcode.ATTACHMENT_INDEX:
            file.seek(group.group_start)
            for entry in StreamReader(file, skip_magic=True).records:
                if not isinstance(entry, AttachmentIndex) or entry.name == ATTACHMENT:
                    return entry.offset if isinstance(entry, AttachmentIndex) else None
        if isinstance(group, Footer):
            return None
    return None


def described(channel: Channel) -> ChannelInfo:
    """What of a channel matters here."""
    return ChannelInfo(channel.topic, channel.message_encoding, channel.metadata.get("run", ""))


def decode(channel: ChannelInfo, record: Record) -> Message | None:
    """The message that a record holds; None for one of a newer minor format. Raises a WireError."""
    if channel.topic == "/signals":
        values = _json(record.data)
        if not all(v is None or isinstance(v, (int, float)) for v in values.values()):
            raise MalformedMessage("signals are not a flat map of numbers")
        numbers = {name: float("nan") if v is None else float(v) for name, v in values.items()}
        return Signals(channel.run, record.log_time, numbers)
    if channel.topic.startswith(_PICTURE):
        header = _json(record.data)
        try:
            data = base64.b64decode(header.pop("data", ""), validate=True)
        except (binascii.Error, TypeError, ValueError) as error:
            raise MalformedMessage(f"picture is not base64: {error}") from error
        return unpack("picture", str(header.get("run")), header, [data])
    if channel.encoding != "msgpack":
        return None
    try:
        header = msgpack.unpackb(record.data, raw=False, strict_map_key=True, max_ext_len=0)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise MalformedMessage(f"not msgpack: {error}") from error
    buffers = header.pop("data", []) if isinstance(header, dict) else None
    if not isinstance(buffers, list) or not all(isinstance(b, bytes) for b in buffers):
        raise MalformedMessage("not a map with a list of buffers")
    return unpack(channel.topic.removeprefix("/"), str(header.get("run")), header, buffers)


def _json(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise MalformedMessage(f"not JSON: {error}") from error
    if not isinstance(value, dict):
        raise MalformedMessage(f"a JSON {type(value).__name__}, not an object")
    return value
