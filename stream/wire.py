"""Messages and their multipart form: `topic | msgpack header | ASCII seconds | buffer | …` (docs/wire.md).

`encode` and `decode` are inverse for every message. Decoding copies nothing: arrays are read-only views of the received
parts.
No pickle; every size is bounded before it is allocated.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import msgpack
import numpy as np

from interlatent_live.stream.attribution import Attribution
from interlatent_live.stream.errors import (
    MalformedMessage,
    NonFiniteMessage,
    OversizedMessage,
    TruncatedMessage,
    UnsupportedVersion,
)
from interlatent_live.stream.frames import BASE_COLUMNS, FrameBatch
from interlatent_live.stream.intervention import Effects, Intervention
from interlatent_live.stream.manifest import Manifest, check_run
from interlatent_live.stream.prompt import Prompt, Vocabulary

__all__ = [
    "VERSION", "Attribution", "Bye", "Effects", "Heartbeat", "Intervention", "Message", "Picture", "Scalars", "Signals", "decode", "encode",
    "topic",
]  # fmt: skip

VERSION: Final = 1
MAX_HEADER_BYTES: Final = 1 << 20
MAX_MESSAGE_BYTES: Final = 64 << 20
MAX_ROWS: Final = 65_536
MAX_BUFFERS: Final = 256
MAX_NDIM: Final = 5
MAX_FRAME_BYTES: Final = 4 << 20
"""One tap point's activation in one frame; the tap refuses more."""
MAX_OBSERVATION: Final = 4_096
"""Elements of an observation vector; larger ones (pictures) do not travel in frames."""
DTYPES: Final = frozenset({"<f2", "<f4", "<f8", "<i4", "<i8", "<u2", "|u1", "|b1"})
_DTYPES: Final = {name: np.dtype(name) for name in sorted(DTYPES)}
_NAMES: Final = {dtype.newbyteorder("="): name for name, dtype in _DTYPES.items()}
_ACCEPTED: Final = f"columns of docs/wire.md of {', '.join(_DTYPES)} with at most {MAX_NDIM} dimensions are accepted"
MAX_SCALAR_ROWS: Final = 4_096
MAX_SCALAR_NAMES: Final = 256
_MAX_COUNT: Final = 1 << 62
_COLUMNS: Final[Mapping[str, tuple[str, tuple[int, ...]]]] = {
    **{name: (dtype, (1,)) for name, dtype in BASE_COLUMNS.items()},
    "observation": ("<f4", (2,)),
    "metrics": ("<f8", (2,)),
    "action": ("", (1, 2, 3)),
    "reward": ("<f8", (1,)),
    "terminated": ("|b1", (1,)),
    "truncated": ("|b1", (1,)),
    "prompt": ("<i4", (1,)),
    "position": ("<i4", (1,)),
    "token": ("<i4", (1,)),
    "special": ("|b1", (1,)),
    "generated": ("|b1", (1,)),
    "next_tokens": ("<i4", (2,)),
    "next_probs": ("<f4", (2,)),
    "intervention": ("<i4", (2,)),
}
"""Wire dtype ('': any) and allowed numbers of dimensions of each row column."""
_SCALAR_CLOCKS: Final = ("step", "monotonic_ns", "wall_ns", "policy_version")
_SECONDS: Final = re.compile(rb"(\d{1,10})(?:\.(\d{1,9}))?")


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The publisher's accounts, once a second."""

    run: str
    boot: str
    monotonic_ns: int
    wall_ns: int
    produced: int
    """Frames sealed and drained so far = the next sequence number to be sent."""
    queue_dropped: int
    recorded: int = 0
    record_failed: int = 0
    status: Mapping[str, float] = field(default_factory=dict)
    """Other numbers of the agent's side by name: `overhead_us_median`, `overhead_us_p99`, `autoreset_rows`,
    `hook_failures`, …
    """


@dataclass(frozen=True, slots=True)
class Bye(Heartbeat):
    """The last accounts; nothing follows."""


@dataclass(frozen=True, slots=True)
class Picture:
    """What the environment looked like when frame `seq` was acted on."""

    run: str
    boot: str
    seq: int
    step: int
    env: int
    monotonic_ns: int
    wall_ns: int
    width: int
    height: int
    data: bytes
    """JPEG."""
    mime: str = "image/jpeg"


@dataclass(frozen=True, slots=True)
class Signals:
    """A few named numbers, flat, for plotting tools."""

    run: str
    wall_ns: int
    values: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Scalars:
    """Numbers of the training loop on the frames' clocks: consecutive calls of `Tap.log` with the same names."""

    run: str
    boot: str
    seq: int
    """Number of row 0 among the boot's rows of scalars, which have a count of their own."""
    names: tuple[str, ...]
    step: tuple[int, ...]
    """By row: the step that comes next."""
    monotonic_ns: tuple[int, ...]
    wall_ns: tuple[int, ...]
    policy_version: tuple[int, ...]
    values: tuple[tuple[float, ...], ...]
    """By row and name. NaN was logged as NaN: what was not logged is in no row."""

    @property
    def rows(self) -> int:
        """How many times something was logged."""
        return len(self.step)


Message: TypeAlias = (
    Manifest | FrameBatch | Heartbeat | Bye | Picture | Scalars | Signals | Attribution | Intervention | Effects | Prompt | Vocabulary
)


def topic(run: str, kind: str = "") -> bytes:
    """Topic of `kind` ('' for the prefix of all kinds). The trailing slash keeps `agent1` from matching `agent10`."""
    return f"v{VERSION}/{run}/{kind}/".encode() if kind else f"v{VERSION}/{run}/".encode()


def pack(message: Message) -> tuple[str, dict[str, Any], int, list[bytes]]:
    """Kind, header, wall clock in ns, and buffers of a message."""
    base: dict[str, Any] = {"v": VERSION, "run": message.run}
    if isinstance(message, FrameBatch):
        specs, buffers = _buffers(message)
        header = base | {
            "boot": message.boot,
            "manifest": message.manifest_hash,
            "seq": message.first_seq,
            "rows": message.rows,
            "queue_dropped": message.queue_dropped,
            "buffers": specs,
        }
        return "frames", header, int(message.columns["wall_ns"][-1]), buffers
    if isinstance(message, Manifest):
        header = base | {"boot": message.boot, "hash": message.hash, "manifest": message.to_dict()}
        return "manifest", header, message.started_wall_ns, []
    if isinstance(message, Heartbeat):
        kind = "bye" if isinstance(message, Bye) else "heartbeat"
        header = base | {
            "boot": message.boot,
            "monotonic_ns": message.monotonic_ns,
            "wall_ns": message.wall_ns,
            "produced": message.produced,
            "queue_dropped": message.queue_dropped,
            "recorded": message.recorded,
            "record_failed": message.record_failed,
            "status": {name: float(value) for name, value in message.status.items()},
        }
        return kind, header, message.wall_ns, []
    if isinstance(message, Picture):
        header = base | {
            "boot": message.boot,
            "seq": message.seq,
            "step": message.step,
            "env": message.env,
            "monotonic_ns": message.monotonic_ns,
            "wall_ns": message.wall_ns,
            "width": message.width,
            "height": message.height,
            "mime": message.mime,
            "buffers": [["data", "|u1", [len(message.data)]]],
        }
        return "picture", header, message.wall_ns, [message.data]
    if isinstance(message, Scalars):
        header = base | {
            "boot": message.boot,
            "seq": message.seq,
            "names": list(message.names),
            **{name: list(getattr(message, name)) for name in _SCALAR_CLOCKS},
            "values": [[float(value) for value in row] for row in message.values],
        }
        return "scalars", header, message.wall_ns[-1], []
    if isinstance(message, Prompt | Vocabulary):
        return type(message).__name__.lower(), base | message.header(), message.wall_ns, []
    if isinstance(message, Intervention):
        return "intervention", base | message.header(), message.wall_ns, []
    if isinstance(message, Effects):
        return "effects", base | message.header(), message.wall_ns[-1], []
    if isinstance(message, Attribution):
        message.checked()
        return "attribution", base | message.header(), message.wall_ns, [array.tobytes() for array in message.arrays().values()]
    return "signals", {name: float(value) for name, value in message.values.items()}, message.wall_ns, []


def _buffers(batch: FrameBatch) -> tuple[list[list[Any]], list[bytes]]:
    specs: list[list[Any]] = []
    buffers: list[bytes] = []
    for group, arrays in (("", batch.columns), ("act", batch.activations), ("rows", batch.present)):
        for name, array in arrays.items():
            dtype = _NAMES.get(array.dtype if array.dtype.isnative else array.dtype.newbyteorder("="))
            if dtype is None or array.ndim > MAX_NDIM or (not group and name not in _COLUMNS):
                what = f"column {name!r} of {array.dtype.str} with shape {array.shape}"
                raise MalformedMessage(f"{what} cannot travel; {_ACCEPTED}")
            _check_column(group, name, dtype, array)
            specs.append([f"{group}:{name}" if group else name, dtype, list(array.shape)])
            buffers.append(array.astype(dtype, copy=False).tobytes())
    if batch.rows > MAX_ROWS or len(buffers) > MAX_BUFFERS or sum(map(len, buffers)) > MAX_MESSAGE_BYTES:
        raise OversizedMessage(
            f"batch of {batch.rows} rows, {len(buffers)} columns and {batch.nbytes} bytes; "
            f"the limits are {MAX_ROWS}, {MAX_BUFFERS} and {MAX_MESSAGE_BYTES}: send smaller batches"
        )
    return specs, buffers


def encode(message: Message) -> list[bytes]:
    """The multipart form. Raises OversizedMessage beyond a limit, so that what is sent can be received."""
    kind, header, wall_ns, buffers = pack(message)
    parts = [topic(message.run, kind), msgpack.packb(header), _stamp(wall_ns), *buffers]
    _check_sizes(parts)
    return parts


def decode(parts: Sequence[bytes]) -> Message:
    """Inverse of `encode`. Raises a WireError, whose `reason` is the ledger's, for anything that is not a valid
    message.
    """
    if len(parts) < 3:
        raise TruncatedMessage(f"message has {len(parts)} part(s); at least topic, header and seconds are required")
    _check_sizes(parts)
    version, run, kind = _split_topic(bytes(parts[0]))
    if version != f"v{VERSION}":
        raise UnsupportedVersion(
            f"message of wire version {version!r}; this build reads v{VERSION}: upgrade the older side"
        )
    stamp = _wall_ns(bytes(parts[2]))
    try:
        header = msgpack.unpackb(parts[1], raw=False, strict_map_key=True, max_ext_len=0)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise MalformedMessage(f"header is not a msgpack map: {error}") from error
    if not isinstance(header, dict):
        raise MalformedMessage(f"header is a {type(header).__name__}, not a map")
    if kind == "signals":
        if not all(isinstance(value, (int, float)) for value in header.values()):
            raise MalformedMessage("signals are not a flat map of numbers")
        return Signals(run, stamp, {name: float(value) for name, value in header.items()})
    return unpack(kind, run, header, parts[3:])


def unpack(kind: str, run: str, header: Mapping[str, Any], buffers: Sequence[bytes]) -> Message:
    """Build the message of `kind` from a header and its buffers. Raises a WireError."""
    if header.get("v") != VERSION:
        raise UnsupportedVersion(
            f"header of wire version {header.get('v')!r}; this build reads {VERSION}: upgrade the older side"
        )
    if header.get("run") != run:
        raise MalformedMessage(f"header names run {header.get('run')!r}, the topic {run!r}")
    boot = header.get("boot")
    if not isinstance(boot, str) or not 0 < len(boot) <= 64:
        raise MalformedMessage(f"boot id {boot!r} is not a string of 1 to 64 characters")
    if kind == "frames":
        return _frames(run, boot, header, buffers)
    if kind == "manifest":
        if not isinstance(header.get("manifest"), dict):
            raise MalformedMessage("manifest message without a manifest")
        manifest = Manifest.from_dict(header["manifest"])
        if (manifest.run, manifest.boot) != (run, boot):
            raise MalformedMessage(
                f"manifest of {manifest.run!r}/{manifest.boot!r} under the topic of {run!r}/{boot!r}"
            )
        announced = header.get("hash")
        if not isinstance(announced, str) or not 0 < len(announced) <= 64:
            raise MalformedMessage(f"manifest message with the hash {announced!r}")
        # what batches refer to; ours would differ where a newer writer's manifest has keys that this build ignores
        manifest.__dict__["hash"] = announced
        return manifest
    if kind in ("heartbeat", "bye"):
        cls = Bye if kind == "bye" else Heartbeat
        status = header.get("status", {})
        if not isinstance(status, dict) or not all(isinstance(v, (int, float)) for v in status.values()):
            raise MalformedMessage("heartbeat: status is not a map of numbers")
        return cls(
            run=run,
            boot=boot,
            monotonic_ns=_count(header, "monotonic_ns"),
            wall_ns=_count(header, "wall_ns"),
            produced=_count(header, "produced"),
            queue_dropped=_count(header, "queue_dropped"),
            recorded=_count(header, "recorded"),
            record_failed=_count(header, "record_failed"),
            status={str(k): float(v) for k, v in status.items()},
        )
    if kind == "picture":
        if len(buffers) != 1 or header.get("mime") != "image/jpeg":
            raise MalformedMessage(
                f"picture of type {header.get('mime')!r} with {len(buffers)} buffer(s); one JPEG is expected"
            )
        return Picture(
            run=run,
            boot=boot,
            seq=_count(header, "seq"),
            step=_count(header, "step"),
            env=_count(header, "env"),
            monotonic_ns=_count(header, "monotonic_ns"),
            wall_ns=_count(header, "wall_ns"),
            width=_count(header, "width"),
            height=_count(header, "height"),
            data=bytes(buffers[0]),
        )
    if kind == "scalars":
        return _scalars(run, boot, header)
    if kind == "prompt":
        return Prompt.read(run, boot, {name: _count(header, name) for name in ("prompt", "env", "episode", "wall_ns", "tokens")}, header)
    if kind == "vocabulary":
        return Vocabulary.read(run, boot, _count(header, "wall_ns"), header)
    if kind == "intervention":
        return Intervention.read(run, boot, header, _count)
    if kind == "effects":
        return Effects.read(run, boot, header, _count)
    if kind == "attribution":
        return _attribution(run, boot, header, buffers)
    raise MalformedMessage(
        f"unknown kind {kind!r}; this build knows frames, manifest, heartbeat, bye, picture, scalars, attribution, intervention, "
        "effects and signals"
    )


def _scalars(run: str, boot: str, header: Mapping[str, Any]) -> Scalars:
    names, values, step = header.get("names"), header.get("values"), header.get("step")
    if not isinstance(step, list) or not 0 < len(step) <= MAX_SCALAR_ROWS:
        raise MalformedMessage(f"scalars: `step` is not a list of 1 to {MAX_SCALAR_ROWS} numbers")
    if (
        not isinstance(names, list)
        or not 0 < len(names) <= MAX_SCALAR_NAMES
        or not all(isinstance(name, str) and name for name in names)
        or len(set(names)) != len(names)
    ):
        raise MalformedMessage(f"scalars: `names` is not a list of 1 to {MAX_SCALAR_NAMES} different names")
    clocks: dict[str, tuple[int, ...]] = {}
    for name in _SCALAR_CLOCKS:
        column = header.get(name)
        if not isinstance(column, list) or len(column) != len(step):
            raise MalformedMessage(f"scalars: `{name}` is not a list of {len(step)} numbers")
        clocks[name] = tuple(_count({name: value}, name) for value in column)
    if (
        not isinstance(values, list)
        or len(values) != len(step)
        or not all(isinstance(row, list) and len(row) == len(names) for row in values)
        or not all(isinstance(value, (int, float)) for row in values for value in row)
    ):
        raise MalformedMessage(f"scalars: `values` is not {len(step)} lists of {len(names)} numbers")
    rows = tuple(tuple(float(value) for value in row) for row in values)
    return Scalars(run, boot, _count(header, "seq"), tuple(names), values=rows, **clocks)


def _attribution(run: str, boot: str, header: Mapping[str, Any], buffers: Sequence[bytes]) -> Attribution:
    specs = header.get("buffers")
    if not isinstance(specs, list) or len(specs) > MAX_BUFFERS:
        raise MalformedMessage(f"buffer list is missing or longer than {MAX_BUFFERS}")
    if len(buffers) != len(specs):
        kind = TruncatedMessage if len(buffers) < len(specs) else MalformedMessage
        raise kind(f"header announces {len(specs)} buffers, {len(buffers)} arrived")
    arrays = {name: array for name, _, array in map(_array, specs, buffers)}
    counts = {name: _count(header, name) for name in ("seq", "step", "env", "monotonic_ns", "wall_ns", "action_count")}
    return Attribution.read(run, boot, counts, header, arrays)


def _frames(run: str, boot: str, header: Mapping[str, Any], buffers: Sequence[bytes]) -> FrameBatch:
    first, rows, specs = _count(header, "seq"), _count(header, "rows"), header.get("buffers")
    if not 0 < rows <= MAX_ROWS:
        raise OversizedMessage(f"batch of {rows} rows; 1 to {MAX_ROWS} are accepted: send smaller batches")
    if not isinstance(specs, list) or len(specs) > MAX_BUFFERS:
        raise MalformedMessage(f"buffer list is missing or longer than {MAX_BUFFERS}")
    if len(buffers) < len(specs):
        raise TruncatedMessage(f"header announces {len(specs)} buffers, {len(buffers)} arrived")
    if len(buffers) > len(specs):
        raise MalformedMessage(f"header announces {len(specs)} buffers, {len(buffers)} arrived")
    groups: dict[str, dict[str, np.ndarray[Any, Any]]] = {"": {}, "act": {}, "rows": {}}
    for spec, buffer in zip(specs, buffers, strict=True):
        name, dtype, array = _array(spec, buffer)
        prefix, colon, rest = name.partition(":")
        group, key = (prefix, rest) if colon and prefix in ("act", "rows") else ("", name)
        if group == "" and key not in _COLUMNS:
            continue  # a column of a newer minor version
        if key in groups[group]:
            raise MalformedMessage(f"buffer {name!r} stands twice")
        _check_column(group, key, dtype, array)
        groups[group][key] = array
    if orphans := groups["rows"].keys() - groups["act"].keys():
        raise MalformedMessage(f"row indices of {sorted(orphans)[0]!r} without its activations")
    dropped, manifest = _count(header, "queue_dropped"), str(header.get("manifest", ""))
    batch = FrameBatch(run, boot, manifest, first, dropped, groups[""], groups["act"], groups["rows"])
    for name in BASE_COLUMNS:
        column = batch.columns[name]
        # most batches of a robot have one row, and a reduction costs 4 µs
        least = column.item(0) if len(column) == 1 else int(column.min())
        if least < (-1 if name == "forward_age" else 0):
            raise MalformedMessage(f"column {name!r} holds {least}; clocks and counts begin at 0")
    if batch.rows != rows:
        raise MalformedMessage(f"header announces {rows} rows, the columns hold {batch.rows}")
    return batch


def _check_column(group: str, name: str, dtype: str, array: np.ndarray[Any, Any]) -> None:
    """Raise a WireError where an array is not what the table in docs/wire.md says."""
    ndim = array.ndim
    if group == "act":
        if dtype not in ("<f2", "<f4", "<u2") or ndim == 0:
            raise MalformedMessage(
                f"activations of {name!r} are {dtype} with {ndim} dimensions, not <f2, <f4 or <u2 with rows"
            )
        if (size := math.prod(array.shape[1:]) * array.itemsize) > MAX_FRAME_BYTES:
            raise OversizedMessage(f"activations of {name!r} take {size} bytes a frame; the limit is {MAX_FRAME_BYTES}")
        return
    wanted, dimensions = ("<i4", (1,)) if group == "rows" else _COLUMNS[name]
    if (wanted and dtype != wanted) or ndim not in dimensions:
        raise MalformedMessage(
            f"column {name!r} is {dtype} with {ndim} dimension(s), not {wanted or 'a number'} with {dimensions}"
        )
    if name == "observation" and array.shape[1] > MAX_OBSERVATION:
        raise OversizedMessage(f"observation of {array.shape[1]} numbers; the limit is {MAX_OBSERVATION}")
    if dtype == "|b1" and array.size and int(array.view(np.uint8).max()) > 1:
        raise MalformedMessage(f"column {name!r} holds bytes other than 0 and 1 as truth values")


def _array(spec: Any, buffer: bytes) -> tuple[str, str, np.ndarray[Any, Any]]:
    """Name, dtype and read-only view of a buffer."""
    name, dtype, shape = spec if type(spec) is list and len(spec) == 3 else (None, None, None)
    known = _DTYPES.get(dtype) if type(dtype) is str else None
    if known is None or type(name) is not str or type(shape) is not list or len(shape) > MAX_NDIM:
        raise MalformedMessage(f"buffer description {str(spec)[:120]} is not [name, dtype, shape]; {_ACCEPTED}")
    for size in shape:
        if type(size) is not int or not 0 <= size <= MAX_MESSAGE_BYTES:
            raise MalformedMessage(f"buffer {name!r} has a size of {str(size)[:40]!r}; {_ACCEPTED}")
    wanted, held = math.prod(shape) * known.itemsize, len(buffer)
    if held < wanted:
        raise TruncatedMessage(f"buffer {name!r} holds {held} bytes, its shape {shape} of {dtype} needs {wanted}")
    if held > wanted:
        raise MalformedMessage(f"buffer {name!r} holds {held} bytes, its shape {shape} of {dtype} needs {wanted}")
    array = np.frombuffer(buffer, known)
    return name, str(dtype), array if len(shape) == 1 else array.reshape(shape)


def _count(header: Mapping[str, Any], name: str) -> int:
    value = header.get(name)
    if isinstance(value, float) and not math.isfinite(value):
        raise NonFiniteMessage(f"{name} is {value}; a whole number is required")
    if type(value) is not int or not 0 <= value < _MAX_COUNT:
        raise MalformedMessage(f"{name} is {value!r}; a whole number from 0 to 2^62 is required")
    return value


def _split_topic(raw: bytes) -> tuple[str, str, str]:
    try:
        version, run, kind, end = raw.decode("ascii").split("/")
    except (UnicodeDecodeError, ValueError) as error:
        raise MalformedMessage(f"topic {raw[:80]!r} is not 'v{VERSION}/<run>/<kind>/'") from error
    if end or not kind:
        raise MalformedMessage(f"topic {raw[:80]!r} is not 'v{VERSION}/<run>/<kind>/'")
    return version, check_run(run), kind


def _stamp(wall_ns: int) -> bytes:
    return b"%d.%09d" % divmod(max(0, wall_ns), 1_000_000_000)


def _wall_ns(raw: bytes) -> int:
    match = _SECONDS.fullmatch(raw)
    if match is None:
        if raw.strip(b"+-").lower() in (b"nan", b"inf", b"infinity"):
            raise NonFiniteMessage(f"third part is {raw.decode()}; finite seconds are required")
        raise MalformedMessage(f"third part {raw[:40]!r} is not seconds as digits, a point and at most nine digits")
    return int(match[1]) * 1_000_000_000 + int((match[2] or b"").ljust(9, b"0"))


def _check_sizes(parts: Sequence[bytes]) -> None:
    if len(parts[1]) > MAX_HEADER_BYTES:
        raise OversizedMessage(f"header of {len(parts[1])} bytes; the limit is {MAX_HEADER_BYTES}")
    total = sum(len(p) for p in parts)
    if total > MAX_MESSAGE_BYTES:
        raise OversizedMessage(f"message of {total} bytes; the limit is {MAX_MESSAGE_BYTES}: send smaller batches")
