"""The wire: golden bytes, round trips, and refusing everything else."""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tests.stream_samples import attribution, batch, every_kind, heartbeat, manifest, picture, scalars, signals

from interlatent_live.stream import errors, wire
from interlatent_live.stream.errors import MalformedMessage, OversizedMessage, WireError
from interlatent_live.stream.frames import BASE_COLUMNS, FrameBatch
from interlatent_live.stream.manifest import Manifest, MetricSpec
from interlatent_live.stream.wire import Attribution, Bye, Heartbeat, Message, Picture, Scalars, Signals, decode, encode

GOLDEN = Path(__file__).parent / "golden"
KINDS = sorted(every_kind())


def same(one: Any, other: Any) -> bool:
    """Equality that knows arrays and NaN."""
    if isinstance(one, FrameBatch) and isinstance(other, FrameBatch):
        fields = ("run", "boot", "manifest_hash", "first_seq", "queue_dropped")
        return all(getattr(one, f) == getattr(other, f) for f in fields) and all(
            a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and a[k].tobytes() == b[k].tobytes() for k in a)
            for a, b in zip(
                (one.columns, one.activations, one.present), (other.columns, other.activations, other.present), strict=True
            )
        )
    if isinstance(one, Attribution) and isinstance(other, Attribution):
        names = [field.name for field in dataclasses.fields(Attribution) if field.name not in one.arrays()]
        mine, yours = one.arrays(), other.arrays()
        return all(getattr(one, n) == getattr(other, n) for n in names) and all(
            mine[k].shape == yours[k].shape and mine[k].tobytes() == yours[k].tobytes() for k in mine
        )
    return type(one) is type(other) and repr(one) == repr(other)  # repr writes NaN as nan, and floats exactly


def framed(parts: Sequence[bytes]) -> bytes:
    return b"".join(struct.pack("<I", len(part)) + part for part in parts)


@pytest.mark.parametrize("kind", KINDS)
def test_golden_bytes(kind: str) -> None:
    """The bytes of version 1 never change. `python -m tests.test_wire` writes them for a new kind."""
    message = every_kind()[kind]
    golden = (GOLDEN / f"{kind}.bin").read_bytes()
    assert framed(encode(message)) == golden
    parts, rest = [], golden
    while rest:
        (size,) = struct.unpack_from("<I", rest)
        parts.append(rest[4 : 4 + size])
        rest = rest[4 + size :]
    assert same(decode(parts), message)


def test_arrays_are_views_of_the_received_bytes() -> None:
    decoded = decode(encode(batch()))
    assert isinstance(decoded, FrameBatch)
    assert not decoded.columns["step"].flags.owndata
    assert not decoded.columns["step"].flags.writeable


COUNTS = st.integers(0, (1 << 62) - 1)
CLOCKS = st.integers(0, (1 << 62) - 1)
NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
RUNS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True)
NUMBERS = st.floats(allow_nan=True)


@st.composite
def batches(draw: st.DrawFn) -> FrameBatch:
    rows = draw(st.integers(1, 4))
    columns = {
        name: draw(hnp.arrays(dtype, (rows,), elements=st.integers(-1 if name == "forward_age" else 0, 2**31 - 1)))
        for name, dtype in BASE_COLUMNS.items()
    }
    optional = {
        "observation": hnp.arrays("<f4", (rows, draw(st.integers(0, 3)))),
        "metrics": hnp.arrays("<f8", (rows, 2)),
        "action": hnp.arrays(draw(st.sampled_from(["<f4", "<i8", "|b1", "|u1"])), (rows, 2)),
        "reward": hnp.arrays("<f8", (rows,)),
        "terminated": hnp.arrays("|b1", (rows,)),
    }
    columns |= {name: draw(optional[name]) for name in draw(st.sets(st.sampled_from(sorted(optional))))}
    activations, present = {}, {}
    for point in draw(st.sets(NAMES, max_size=3)):
        fired = np.array(sorted(draw(st.sets(st.integers(0, rows - 1)))), dtype="<i4")
        shape = (len(fired), *draw(hnp.array_shapes(max_dims=2, max_side=3)))
        activations[point] = draw(hnp.arrays(draw(st.sampled_from(["<f4", "<f2", "<u2"])), shape))
        if len(fired) < rows or draw(st.booleans()):
            present[point] = fired
    return FrameBatch(draw(RUNS), draw(NAMES), "0" * 16, draw(COUNTS), draw(COUNTS), columns, activations, present)


HEARTBEATS = st.builds(
    Heartbeat,
    run=RUNS,
    boot=NAMES,
    monotonic_ns=CLOCKS,
    wall_ns=CLOCKS,
    produced=COUNTS,
    queue_dropped=COUNTS,
    recorded=COUNTS,
    record_failed=COUNTS,
    status=st.dictionaries(NAMES, NUMBERS, max_size=4),
)
MANIFESTS = st.builds(
    Manifest,
    run=RUNS,
    boot=NAMES,
    started_wall_ns=CLOCKS,
    started_monotonic_ns=CLOCKS,
    environment=NAMES,
    metrics=st.lists(st.builds(MetricSpec, NAMES, NAMES), max_size=3, unique_by=lambda m: m.name).map(tuple),
    step_period_s=st.none() | st.floats(0, 10),
    software=st.dictionaries(NAMES, NAMES, max_size=3),
)
SIGNALS = st.builds(Signals, run=RUNS, wall_ns=CLOCKS, values=st.dictionaries(NAMES, NUMBERS, max_size=4))
PICTURES = st.builds(
    Picture, RUNS, NAMES, COUNTS, COUNTS, COUNTS, CLOCKS, CLOCKS, COUNTS, COUNTS, st.binary(max_size=20)
)


@st.composite
def scalar_rows(draw: st.DrawFn) -> Scalars:
    names, rows = draw(st.lists(NAMES, min_size=1, max_size=3, unique=True)), draw(st.integers(1, 3))
    column = st.lists(COUNTS, min_size=rows, max_size=rows).map(tuple)
    values = st.lists(st.tuples(*[NUMBERS for _ in names]), min_size=rows, max_size=rows).map(tuple)
    return draw(st.builds(Scalars, RUNS, NAMES, COUNTS, st.just(tuple(names)), column, column, column, column, values))


@st.composite
def attributions(draw: st.DrawFn) -> Attribution:
    a, f = draw(st.integers(1, 4)), draw(st.integers(0, 3))
    finite = st.floats(allow_nan=False, allow_infinity=False, width=32)

    def floats(*shape: int) -> Any:
        return draw(hnp.arrays("<f4", shape, elements=finite))

    vectors = {name: floats(a) for name in ("total", "bias", "error", "rest")}
    counts: dict[str, Any] = {name: draw(COUNTS) for name in ("seq", "step", "env", "monotonic_ns", "wall_ns")}
    return Attribution(
        draw(RUNS), draw(NAMES), **counts, dictionary=draw(NAMES), kind=draw(st.sampled_from(["logits", "means", "q", "scores"])),
        chosen=draw(st.integers(-1, a - 1)), action_count=a, names=tuple(draw(st.lists(NAMES | st.just(""), min_size=a, max_size=a))),
        actions=np.arange(a, dtype="<i4"), **vectors, features=np.arange(f, dtype="<i4"), values=floats(f), contributions=floats(f, a),
    )  # fmt: skip


@given(batches() | attributions() | HEARTBEATS | MANIFESTS | SIGNALS | PICTURES | scalar_rows())
@settings(max_examples=200, deadline=None)
def test_decode_inverts_encode(message: Message) -> None:
    assert same(decode(encode(message)), message)


@given(MANIFESTS)
@settings(max_examples=30, deadline=None)
def test_a_manifest_keeps_its_hash(message: Manifest) -> None:
    decoded = decode(encode(message))
    assert isinstance(decoded, Manifest)
    assert decoded.hash == message.hash


JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


def survives(parts: Sequence[bytes]) -> None:
    """Whatever it is: a message, or a WireError with a reason."""
    try:
        decode(parts)
    except WireError as error:
        reason = error.reason
    else:
        return
    assert reason in {"malformed", "oversized", "truncated", "unsupported_version", "non_finite"}


@given(st.sampled_from(KINDS), st.data())
@settings(max_examples=200, deadline=None)
def test_mutated_bytes_are_refused_or_read(kind: str, data: st.DataObject) -> None:
    parts = [bytearray(part) for part in encode(every_kind()[kind])]
    for _ in range(data.draw(st.integers(1, 4))):
        part = data.draw(st.sampled_from(parts))
        where = data.draw(st.integers(0, len(part)))
        match data.draw(st.sampled_from(["flip", "cut", "insert", "drop"])):
            case "flip" if where < len(part):
                part[where] ^= data.draw(st.integers(1, 255))
            case "cut":
                del part[where:]
            case "insert":
                part[where:where] = data.draw(st.binary(max_size=8))
            case "drop" if len(parts) > 1:
                parts = [p for p in parts if p is not part]
    survives([bytes(part) for part in parts])


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    below: list[tuple[Any, ...]] = []
    if isinstance(value, (dict, list)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in items:
            below += _places(inner, (*path, key))
    return [path, *below] if path else below


@given(st.sampled_from(KINDS), st.data())
@settings(max_examples=200, deadline=None)
def test_headers_with_wrong_values_are_refused_or_read(kind: str, data: st.DataObject) -> None:
    topic, raw, *rest = encode(every_kind()[kind])
    header = msgpack.unpackb(raw)
    path = data.draw(st.sampled_from(_places(header)))
    inner = header
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = data.draw(JUNK)
    survives([topic, msgpack.packb(header), *rest])


@given(st.lists(st.binary(max_size=60), max_size=6))
@settings(max_examples=200, deadline=None)
def test_garbage_is_refused(parts: list[bytes]) -> None:
    with pytest.raises(WireError):
        decode(parts)


def changed(message: Message, **header: Any) -> list[bytes]:
    topic, raw, *rest = encode(message)
    return [topic, msgpack.packb(msgpack.unpackb(raw) | header), *rest]


def column(name: str, array: np.ndarray[Any, Any]) -> list[bytes]:
    """The sample batch with one column replaced, past the checks of `encode`."""
    topic, raw, stamp, *buffers = encode(batch())
    header = msgpack.unpackb(raw)
    index = [spec[0] for spec in header["buffers"]].index(name)
    header["buffers"][index] = [name, array.dtype.str, list(array.shape)]
    buffers[index] = array.tobytes()
    return [topic, msgpack.packb(header), stamp, *buffers]


REFUSED: dict[str, tuple[str, Callable[[], Sequence[bytes]]]] = {
    "no parts": ("truncated", list),
    "two parts": ("truncated", lambda: encode(heartbeat())[:2]),
    "a buffer missing": ("truncated", lambda: encode(batch())[:-1]),
    "a buffer cut": ("truncated", lambda: [*encode(batch())[:-1], b""]),
    "a buffer too many": ("malformed", lambda: [*encode(batch()), b""]),
    "a buffer too long": ("malformed", lambda: [*encode(batch())[:-1], encode(batch())[-1] + b"\0"]),
    "another major version": ("unsupported_version", lambda: [b"v2/agent/frames/", *encode(batch())[1:]]),
    "another version in the header": ("unsupported_version", lambda: changed(heartbeat(), v=2)),
    "another run in the header": ("malformed", lambda: changed(heartbeat(), run="other")),
    "an unknown kind": ("malformed", lambda: [b"v1/agent/news/", *encode(heartbeat())[1:]]),
    "a run that is a path": ("malformed", lambda: [b"v1/../frames/", *encode(batch())[1:]]),
    "a header that is no map": ("malformed", lambda: [b"v1/agent/frames/", b"\x93\1\2\3", b"1.0"]),
    "a header nested too deeply": ("malformed", lambda: [b"v1/agent/frames/", b"\x91" * 5000 + b"\1", b"1.0"]),
    "a header of extension types": ("malformed", lambda: [b"v1/agent/frames/", b"\x81\xa1v\xd4\x01\x01", b"1.0"]),
    "a huge header": ("oversized", lambda: [b"v1/agent/signals/", b"\0" * (wire.MAX_HEADER_BYTES + 1), b"1.0"]),
    "a huge message": ("oversized", lambda: [*encode(batch()), bytes(wire.MAX_MESSAGE_BYTES)]),
    "a claim of many rows": ("oversized", lambda: changed(batch(), rows=wire.MAX_ROWS + 1)),
    "a claim of other rows": ("malformed", lambda: changed(batch(), rows=3)),
    "too many buffers": ("malformed", lambda: changed(batch(), buffers=[["x", "<f4", [0]]] * 300)),
    "a shape beyond memory": ("malformed", lambda: changed(batch(), buffers=[["step", "<i8", [0, 2**63]]] * 17)),
    "pickled objects": ("malformed", lambda: changed(batch(), buffers=[["step", "|O", [2]]] * 17)),
    "NaN for a clock": ("non_finite", lambda: changed(heartbeat(), wall_ns=float("nan"))),
    "infinity for a count": ("non_finite", lambda: changed(batch(), seq=float("inf"))),
    "NaN for the seconds": ("non_finite", lambda: [*encode(signals())[:2], b"nan"]),
    "a negative count": ("malformed", lambda: changed(heartbeat(), produced=-1)),
    "a fraction for a count": ("malformed", lambda: changed(heartbeat(), produced=1.5)),
    "truth for a count": ("malformed", lambda: changed(heartbeat(), produced=True)),
    "a text among the status numbers": ("malformed", lambda: changed(heartbeat(), status={"a": "b"})),
    "a text among the signals": ("malformed", lambda: [b"v1/agent/signals/", msgpack.packb({"a": "b"}), b"1.0"]),
    "a picture that is no JPEG": ("malformed", lambda: changed(picture(), mime="image/svg+xml")),
    "scalars without names": ("malformed", lambda: changed(scalars(), names=[])),
    "scalars of one name twice": ("malformed", lambda: changed(scalars(), names=["lr", "lr"])),
    "scalars that lack a clock": ("malformed", lambda: changed(scalars(), wall_ns=[1])),
    "scalars that lack a value": ("malformed", lambda: changed(scalars(), values=[[1.0], [2.0]])),
    "a text among the scalars": ("malformed", lambda: changed(scalars(), values=[["a", 1.0], [1.0, 1.0]])),
    "scalars of no rows": ("malformed", lambda: changed(scalars(), step=[])),
    "an attribution of no actions": ("oversized", lambda: changed(attribution(), names=[])),
    "an attribution of other actions": ("malformed", lambda: changed(attribution(), names=["left"])),
    "an attribution of fewer actions than it has": ("malformed", lambda: changed(attribution(), action_count=1)),
    "an attribution of an unknown choice": ("malformed", lambda: changed(attribution(), chosen=2)),
    "an attribution of moods": ("malformed", lambda: changed(attribution(), scores="moods")),
    "an attribution without a part": ("truncated", lambda: encode(attribution())[:-1]),
    "an attribution of NaN": ("malformed", lambda: [*encode(attribution())[:4], b"\0\0\xc0\x7f" * 2, *encode(attribution())[5:]]),
    "a boot id without end": ("malformed", lambda: changed(heartbeat(), boot="b" * 65)),
    "a manifest of another boot": ("malformed", lambda: changed(manifest(), boot="b9")),
    "a manifest without a hash": ("malformed", lambda: changed(manifest(), hash=None)),
    "a wrong dtype": ("malformed", lambda: column("step", np.zeros(2, "<i4"))),
    "a column of columns": ("malformed", lambda: column("reward", np.zeros((2, 1)))),
    "a clock before 0": ("malformed", lambda: column("monotonic_ns", np.array([1, -1], "<i8"))),
    "a forward age below -1": ("malformed", lambda: column("forward_age", np.array([0, -2], "<i4"))),
    "truth of 2": ("malformed", lambda: column("terminated", np.array([2, 0], "u1").view("?"))),
    "an observation without end": ("oversized", lambda: column("observation", np.zeros((2, 4097), "<f4"))),
    "an activation without end": ("oversized", lambda: column("act:1:out", np.zeros((2, (1 << 20) + 1), "<f4"))),
    "an activation of integers": ("malformed", lambda: column("act:1:out", np.zeros((2, 3), "<i8"))),
    "rows out of order": ("malformed", lambda: column("rows:3:out", np.array([5], "<i4"))),
    "rows of nothing": ("malformed", lambda: column("act:3:out", np.zeros((2, 2), "<u2"))),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused_with_its_reason(what: str) -> None:
    reason, make = REFUSED[what]
    with pytest.raises(WireError) as caught:
        decode(make())
    assert caught.value.reason == reason


def test_unknown_keys_columns_and_manifest_keys_are_ignored() -> None:
    assert same(decode(changed(heartbeat(), mood="good")), heartbeat())
    topic, raw, stamp, *buffers = encode(batch())
    header = msgpack.unpackb(raw)
    header["buffers"].append(["smell", "<f4", [2]])
    assert same(decode([topic, msgpack.packb(header), stamp, *buffers, bytes(8)]), batch())
    newer = manifest().to_dict() | {"weather": "fine", "weights": "molten"}
    decoded = decode(changed(manifest(), manifest=newer, hash="feedfeedfeedfeed"))
    assert isinstance(decoded, Manifest)
    assert decoded.hash == "feedfeedfeedfeed", "batches of a newer writer refer to its hash, not to what we would compute"
    assert decoded.weights == "changing"


def test_what_could_not_be_received_is_not_sent() -> None:
    good = batch()
    with pytest.raises(MalformedMessage, match="<i2"):
        encode(dataclasses.replace(good, columns={**good.columns, "action": np.zeros(2, "int16")}))
    with pytest.raises(MalformedMessage, match="observation"):
        encode(dataclasses.replace(good, columns={**good.columns, "observation": np.zeros((2, 4))}))
    with pytest.raises(MalformedMessage, match="smell"):
        encode(dataclasses.replace(good, columns={**good.columns, "smell": np.zeros(2, "<f4")}))
    wide = {"1:out": np.zeros((65, 1 << 18), "<f4")}
    with pytest.raises(OversizedMessage, match="smaller batches"):
        encode(FrameBatch("agent", "b0", "0", 0, 0, batch(0, 65).columns, wide))


def test_big_endian_and_strided_arrays_travel() -> None:
    good = batch()
    columns = {**good.columns, "reward": np.arange(4, dtype=">f8")[::2]}
    decoded = decode(encode(dataclasses.replace(good, columns=columns)))
    assert isinstance(decoded, FrameBatch)
    assert decoded.columns["reward"].tolist() == [0.0, 2.0]


def test_topics_do_not_match_longer_runs() -> None:
    assert not wire.topic("agent10", "frames").startswith(wire.topic("agent1"))


def test_every_error_is_exported_and_drawn() -> None:
    classes = {name for name, value in vars(errors).items() if isinstance(value, type) and value.__module__ == errors.__name__}
    assert classes == set(errors.__all__)
    assert all(name in (errors.__doc__ or "") for name in classes)


def write_golden() -> None:
    for kind, message in every_kind().items():
        (GOLDEN / f"{kind}.bin").write_bytes(framed(encode(message)))


if __name__ == "__main__":
    write_golden()


def test_bye_is_told_from_a_heartbeat() -> None:
    assert type(decode(encode(heartbeat(kind=Bye)))) is Bye
    assert type(decode(encode(heartbeat()))) is Heartbeat
