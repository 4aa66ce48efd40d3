"""The index of a recording: the recorder's equals one made by reading, and seeking gives what reading through gives."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.stream_samples import SECOND, batch, heartbeat, manifest, picture, scalars, signals
from tests.test_wire import same

from interlatent_live.stream.clock import FrameClock
from interlatent_live.stream.errors import RecordingDamaged
from interlatent_live.stream.frames import FrameBatch
from interlatent_live.stream.index import ENTRY, ChannelInfo, Index
from interlatent_live.stream.manifest import Manifest
from interlatent_live.stream.reading import Recording
from interlatent_live.stream.recording import Recorder
from interlatent_live.stream.wire import Message


def story() -> Iterator[Message]:
    """20 s at 50 Hz with everything that a stream has, a change of manifest, and the agent started again."""
    for boot, shift in (("b0", 0), ("b1", 1000 * SECOND)):
        yield manifest(boot)
        for i in range(250):
            made = batch(i * 2, 2, boot=boot)
            made.columns["monotonic_ns"][:] += shift
            made.columns["wall_ns"][:] += 60 * SECOND * (boot == "b1")
            yield made
            if i == 100:
                yield manifest(boot, weights="changing")
            if i % 25 == 0:
                yield signals()
                yield heartbeat(made.next_seq, boot=boot, monotonic_ns=int(made.columns["monotonic_ns"][-1]) + 7_000_000)
            if boot == "b0" and i % 40 == 0:
                yield picture(i * 2)
                yield scalars(i)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("index") / "run.mcap"
    recorder = Recorder(path, rotate_bytes=30_000)
    for number, message in enumerate(story()):
        recorder.write(message)
        if number % 13 == 0:
            recorder.flush()
    recorder.close()
    return path


def test_the_recorders_index_equals_a_scan(path: Path) -> None:
    recording = Recording(path)
    assert len(recording.parts) > 2
    for part in recording.parts:
        noted, scanned = part.index(), part.scan()
        assert noted is not None
        assert noted.boots == scanned.boots
        assert noted.channels == scanned.channels
        assert noted.entries.tolist() == scanned.entries.tolist()
    assert recording.index.frames == 1000


def _linear(path: Path, from_s: float | None, to_s: float | None) -> list[Message]:
    clock, now, found = FrameClock(), 0.0, []
    for message in Recording(path).messages():
        now = clock.seconds(message, now)
        if isinstance(message, Manifest) or ((from_s is None or now >= from_s) and (to_s is None or now < to_s)):
            found.append(message)
    return found


@settings(max_examples=25, deadline=None)
@given(st.one_of(st.none(), st.floats(-1, 75)), st.one_of(st.none(), st.floats(-1, 75)))
def test_seeking_gives_what_reading_through_gives(path: Path, from_s: float | None, to_s: float | None) -> None:
    sought = list(Recording(path).messages(from_s, to_s))
    read = _linear(path, from_s, to_s)
    assert len(sought) == len(read)
    assert all(same(a, b) for a, b in zip(sought, read, strict=True))


def test_seeking_leaves_most_of_the_file_alone(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recording = Recording(path)
    read: list[int] = []
    chunk = Recording.chunk

    def counted(self: Recording, number: int, topics: Any = None) -> Iterator[Message]:
        read.append(number)
        return chunk(self, number, topics)

    monkeypatch.setattr(Recording, "chunk", counted)
    frames = [m for m in recording.messages(62.0, 62.5) if isinstance(m, FrameBatch)]
    assert frames[0].boot == "b1"
    assert len(read) < len(recording.index.entries) / 3


def test_a_file_that_was_not_closed_has_none_but_is_read(path: Path, tmp_path: Path) -> None:
    torn = tmp_path / "torn.mcap"
    torn.write_bytes(path.read_bytes()[:-20])
    recording = Recording(torn)
    assert recording.parts[0].index() is None
    assert len(list(recording.messages(1.0, 2.0))) > 20
    whole = Recording(path).index.entries
    assert recording.index.entries.tolist() == whole[whole["part"] == 0].tolist()


def test_an_index_comes_back() -> None:
    entries = np.zeros(3, ENTRY)
    entries["rows"] = [1, 2, 3]
    index = Index(({4: ChannelInfo("/frames", "msgpack", "agent")},), ("b0",), entries)
    back = Index.unpack(index.pack())
    assert back is not None
    assert back.channels == index.channels
    assert back.entries.tolist() == entries.tolist()
    for broken in (b"", b"abc", index.pack()[:-3]):
        with pytest.raises(RecordingDamaged):
            Index.unpack(broken)
