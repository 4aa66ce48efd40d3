"""Recovering: what can be had of a damaged recording is had, and what was lost is told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from mcap.reader import make_reader
from tests.stream_samples import batch, heartbeat, manifest, picture, scalars, signals
from tests.test_wire import same

from interlatent_live.stream.errors import RecordingDamaged, RecordingError, RecordingExists
from interlatent_live.stream.frames import FrameBatch
from interlatent_live.stream.manifest import Manifest
from interlatent_live.stream.reading import Recording
from interlatent_live.stream.recording import Recorder
from interlatent_live.stream.salvage import recover
from interlatent_live.stream.wire import Bye, Message

ROWS = 10


def make(path: Path, batches: int = 100) -> list[Message]:
    written: list[Message] = [manifest(), signals(), scalars()]
    for i in range(batches):
        written += [batch(i * ROWS, ROWS)] if i % 20 else [batch(i * ROWS, ROWS), picture(i * ROWS), signals()]
    written.append(heartbeat(batches * ROWS, Bye))
    recorder = Recorder(path)
    for number, message in enumerate(written):
        recorder.write(message)
        if number % 10 == 9:
            recorder.flush()
    recorder.close()
    return written


def chunks(path: Path) -> list[tuple[int, int]]:
    with open(path, "rb") as file:
        summary = make_reader(file).get_summary()
    assert summary is not None
    return [(c.chunk_start_offset, c.chunk_length) for c in summary.chunk_indexes]


def frames(path: Path) -> list[int]:
    return [m.first_seq // ROWS for m in Recording(path).messages() if isinstance(m, FrameBatch)]


def test_a_whole_recording_loses_nothing(tmp_path: Path) -> None:
    written = make(tmp_path / "run.mcap")
    done = recover(tmp_path / "run.mcap")
    assert (done.frames, done.lost_frames, done.lost_bytes, done.refused_messages, done.farewell) == (1000, 0, 0, 0, True)
    assert done.out == str(tmp_path / "run.recovered.mcap")
    read = list(Recording(done.out).messages())
    assert all(same(a, b) for a, b in zip(read, written, strict=True))


@pytest.mark.parametrize("share", [0.2, 0.5, 0.97])
def test_a_file_that_was_cut_off(tmp_path: Path, share: float) -> None:
    make(tmp_path / "run.mcap")
    whole = (tmp_path / "run.mcap").read_bytes()
    (tmp_path / "torn.mcap").write_bytes(whole[: int(len(whole) * share)])
    done = recover(tmp_path / "torn.mcap", tmp_path / "good.mcap")
    assert done.frames > 0
    assert done.messages
    assert not done.farewell or share > 0.9
    recording = Recording(tmp_path / "good.mcap")
    assert recording.info()["frames"] == done.frames
    assert recording.damaged is None
    assert recording.parts[0].index() is not None


def test_a_hole_is_stepped_over(tmp_path: Path) -> None:
    """Blocks that the system had not yet written when the power went are zeros."""
    make(tmp_path / "run.mcap")
    places = chunks(tmp_path / "run.mcap")
    whole = bytearray((tmp_path / "run.mcap").read_bytes())
    begin, end = places[4][0] - 3, places[6][0] + 11
    whole[begin:end] = bytes(end - begin)
    (tmp_path / "torn.mcap").write_bytes(whole)
    assert len(frames(tmp_path / "torn.mcap")) < 50, "reading stops at the hole"
    done = recover(tmp_path / "torn.mcap")
    kept = frames(Path(done.out))
    missing = sorted(set(range(100)) - set(kept))
    assert missing == list(range(missing[0], missing[-1] + 1))
    assert done.lost_frames == len(missing) * ROWS
    assert done.gaps == [("b0", missing[0] * ROWS, (missing[-1] + 1) * ROWS)]
    assert done.lost_seconds == pytest.approx((len(missing) * ROWS + 1) / 50)
    assert done.lost_bytes >= end - begin
    assert done.farewell


def test_a_chunk_whose_checksum_does_not_hold_is_left_out(tmp_path: Path) -> None:
    make(tmp_path / "run.mcap")
    start, length = chunks(tmp_path / "run.mcap")[5]
    whole = bytearray((tmp_path / "run.mcap").read_bytes())
    whole[start + length - 20] ^= 0xFF
    (tmp_path / "torn.mcap").write_bytes(whole)
    done = recover(tmp_path / "torn.mcap")
    assert (done.broken_chunks, done.lost_bytes) == (1, length)
    assert done.lost_frames == 1000 - done.frames > 0


def test_channels_that_were_described_in_a_lost_chunk(tmp_path: Path) -> None:
    written = make(tmp_path / "run.mcap")
    places = chunks(tmp_path / "run.mcap")
    whole = bytearray((tmp_path / "run.mcap").read_bytes())
    whole[places[1][0] : places[1][0] + places[1][1]] = bytes(places[1][1])  # that of /frames, /picture/0, /signals, /scalars
    (tmp_path / "torn.mcap").write_bytes(whole[: places[-1][0]])
    done = recover(tmp_path / "torn.mcap")
    assert done.refused_messages == 0
    assert done.frames > 800
    read = [m for m in Recording(done.out).messages() if not isinstance(m, Manifest)]
    assert all(any(same(m, w) for w in written) for m in read)
    assert {type(m).__name__ for m in read} >= {"FrameBatch", "Picture", "Signals"}


def test_messages_inside_a_half_written_chunk(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "run.mcap")
    recorder.write(manifest())
    rng = np.random.default_rng(0)
    for i in range(60):  # one chunk of two blocks of zstd
        made = batch(i * 100, 100)
        recorder.write(FrameBatch(made.run, made.boot, made.manifest_hash, made.first_seq, 0, made.columns,
                                  {"1:out": rng.standard_normal((100, 3)).astype("<f4")}))  # fmt: skip
        if recorder.frames:
            break
    recorder.close()
    start, length = chunks(tmp_path / "run.mcap")[1]
    (tmp_path / "torn.mcap").write_bytes((tmp_path / "run.mcap").read_bytes()[: start + length - 9])
    done = recover(tmp_path / "torn.mcap")
    assert done.half_chunk_messages > 3
    assert done.frames == done.half_chunk_messages * 100
    assert frames(Path(done.out)) == list(range(0, done.half_chunk_messages * 10, 10))


def test_any_damage_is_survived(tmp_path: Path) -> None:
    make(tmp_path / "run.mcap", 30)
    whole = (tmp_path / "run.mcap").read_bytes()
    rng = np.random.default_rng(1)
    for number in range(60):
        broken = bytearray(whole[: int(rng.integers(1, len(whole) + 1))])
        for where in rng.integers(0, len(broken), 3):
            broken[where] ^= 1 << int(rng.integers(8))
        (tmp_path / "torn.mcap").write_bytes(broken)
        try:
            done = recover(tmp_path / "torn.mcap", tmp_path / f"{number}.mcap")
        except RecordingDamaged:
            continue
        assert Recording(done.out).info()["frames"] == done.frames <= 300


def test_a_part_keeps_its_place(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "run.mcap", rotate_bytes=3_000)
    messages: list[Message] = [manifest(), *(batch(i * 2) for i in range(60))]
    for message in messages:
        recorder.write(message)
        recorder.flush()
    recorder.close()
    part = tmp_path / "run.1.mcap"
    part.write_bytes(part.read_bytes()[:-100])
    recover(part)
    (tmp_path / "run.1.recovered.mcap").replace(part)
    recording = Recording(tmp_path / "run.mcap")
    assert recording.info()["frames"] == 120
    assert recording.damaged is None


def test_what_cannot_be_rebuilt(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="cannot be opened"):
        recover(tmp_path / "none.mcap")
    for name, content in {"empty": b"", "text": b"hello" * 100}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(RecordingDamaged):
            recover(tmp_path / name)
        assert not (tmp_path / f"{name}.recovered").exists()
    make(tmp_path / "run.mcap", 3)
    with pytest.raises(RecordingExists):
        recover(tmp_path / "run.mcap", tmp_path / "run.mcap")
