"""Recordings: what is written is read again, by us and by the plain mcap package, whole or damaged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from mcap.reader import make_reader
from mcap.writer import Writer
from tests.stream_samples import SECOND, batch, heartbeat, manifest, picture, signals
from tests.test_wire import same

from interlatent_live.stream.errors import RecordingDamaged, RecordingError, RecordingExists
from interlatent_live.stream.frames import FrameBatch
from interlatent_live.stream.manifest import Manifest, MetricSpec, TapPointSpec
from interlatent_live.stream.reading import Recording
from interlatent_live.stream.recording import CHUNK_BYTES, Recorder
from interlatent_live.stream.wire import Bye, Message, Picture, Signals


def make(path: Path, messages: list[Message], *, every: int = 10) -> list[Message]:
    """Record, with a flush after `every` messages."""
    recorder = Recorder(path)
    for number, message in enumerate(messages, start=1):
        recorder.write(message)
        if number % every == 0:
            recorder.flush()
    recorder.close()
    return messages


def story(batches: int = 100, rows: int = 2) -> list[Message]:
    """Frames at 50 Hz from one environment, episodes of 100 steps."""
    frames: list[Message] = [batch(i * rows, rows) for i in range(batches)]
    bye = heartbeat(
        batches * rows, Bye, recorded=batches * rows, monotonic_ns=5 * SECOND + int(batches * rows / 50 * 1e9)
    )
    return [manifest(), *frames, picture(), signals(), bye]


def test_messages_come_back_in_written_order(tmp_path: Path) -> None:
    written = make(tmp_path / "run.mcap", story())
    recording = Recording(tmp_path / "run.mcap")
    read = list(recording.messages())
    assert len(read) == len(written)
    assert all(same(a, b) for a, b in zip(read, written, strict=True))
    assert recording.damaged is None
    assert recording.manifest == manifest()


def test_order_is_kept_when_the_wall_clock_jumps_back(tmp_path: Path) -> None:
    early, late = batch(0), batch(2)
    early.columns["wall_ns"][:] += 3600 * SECOND
    make(tmp_path / "run.mcap", [manifest(), early, late])
    read = [m.first_seq for m in Recording(tmp_path / "run.mcap").messages() if isinstance(m, FrameBatch)]
    assert read == [0, 2]


def test_a_manifest_is_written_once(tmp_path: Path) -> None:
    other = manifest(weights="changing")
    make(tmp_path / "run.mcap", [manifest(), batch(), manifest(), other, other])
    read = [m for m in Recording(tmp_path / "run.mcap").messages() if isinstance(m, Manifest)]
    assert read == [manifest(), other]


def test_info_sums_up(tmp_path: Path) -> None:
    make(tmp_path / "run.mcap", story())
    info = Recording(tmp_path / "run.mcap").info()
    assert info["run"] == "agent"
    assert info["boots"] == ["b0"]
    assert (info["frames"], info["steps"], info["episodes"], info["batches"], info["pictures"]) == (200, 200, 2, 100, 1)
    assert info["duration_s"] == pytest.approx(199 / 50)
    assert [p["name"] for p in info["tap_points"]] == ["1:out", "3:out"]
    assert [m["name"] for m in info["metrics"]] == ["pole_angle", "reward_rate"]
    assert info["ledger"] == {"produced": 200, "queue_dropped": 0, "recorded": 200, "record_failed": 0}
    assert info["bytes"] == (tmp_path / "run.mcap").stat().st_size
    assert info["damaged"] is None
    json.dumps(info)


def test_steps_of_a_vector_of_environments_are_counted_once(tmp_path: Path) -> None:
    two = batch(0, 4)
    two.columns["step"][:] = [0, 0, 1, 1]
    two.columns["env"][:] = [0, 1, 0, 1]
    make(tmp_path / "run.mcap", [manifest(num_envs=2), two])
    info = Recording(tmp_path / "run.mcap").info()
    assert (info["frames"], info["steps"], info["episodes"]) == (4, 2, 2)


def test_a_stretch_of_frame_time(tmp_path: Path) -> None:
    make(tmp_path / "run.mcap", story())
    stretch = list(Recording(tmp_path / "run.mcap").messages(from_s=1.0, to_s=2.0))
    assert isinstance(stretch[0], Manifest)
    frames = [m for m in stretch if isinstance(m, FrameBatch)]
    assert [m.first_seq for m in frames] == list(range(50, 100, 2))
    assert not any(isinstance(m, Bye) for m in stretch)
    tail = list(Recording(tmp_path / "run.mcap").messages(from_s=3.0))
    assert isinstance(tail[-1], Bye)


def test_a_second_boot_is_placed_by_wall_clock(tmp_path: Path) -> None:
    again = batch(0, 2, boot="b1")
    again.columns["monotonic_ns"][:] += 1000 * SECOND  # the host was started again: its clock tells nothing
    again.columns["wall_ns"][:] += 10 * SECOND
    make(tmp_path / "run.mcap", [manifest(), batch(), manifest("b1"), again])
    recording = Recording(tmp_path / "run.mcap")
    assert recording.info()["boots"] == ["b0", "b1"]
    late = [m for m in recording.messages(from_s=9.0) if isinstance(m, FrameBatch)]
    assert [m.boot for m in late] == ["b1"]


def test_the_plain_mcap_package_reads_it(tmp_path: Path) -> None:
    make(tmp_path / "run.mcap", story())
    with open(tmp_path / "run.mcap", "rb") as file:
        reader = make_reader(file, validate_crcs=True)
        summary = reader.get_summary()
        assert summary is not None
        assert summary.statistics is not None
        assert summary.statistics.message_count == 104
        assert {c.topic for c in summary.channels.values()} == {"/manifest", "/frames", "/picture/0", "/signals", "/bye"}
        assert all(c.schema_id != 0 for c in summary.channels.values()), "PlotJuggler needs schemas"
        assert {c.compression for c in summary.chunk_indexes} == {"zstd"}
        frames = 0
        for schema, channel, record in reader.iter_messages(log_time_order=False):
            assert schema is not None
            if channel.topic == "/frames":
                message = msgpack.unpackb(record.data)
                columns = {
                    name: np.frombuffer(data, dtype).reshape(shape)
                    for (name, dtype, shape), data in zip(message["buffers"], message["data"], strict=True)
                }
                assert columns["observation"].shape == (2, 4)
                assert record.log_time == columns["wall_ns"][-1]
                frames += len(columns["step"])
            if channel.topic == "/signals":
                assert json.loads(record.data) == {"pole_angle": 0.25, "reward": 1.0}
            if channel.topic == "/picture/0":
                assert schema.name == "foxglove.CompressedImage"
                assert json.loads(record.data)["format"] == "jpeg"
        assert frames == 200


def test_signals_write_null_for_what_is_not_finite(tmp_path: Path) -> None:
    values = {"a": float("nan"), "b": float("inf"), "c": 1.5}
    make(tmp_path / "run.mcap", [manifest(), Signals("agent", 7, values)])
    (read,) = [m for m in Recording(tmp_path / "run.mcap").messages() if isinstance(m, Signals)]
    assert np.isnan(read.values["a"])
    assert np.isnan(read.values["b"])
    assert read.values["c"] == 1.5


def test_an_existing_file_is_never_overwritten(tmp_path: Path) -> None:
    make(tmp_path / "run.mcap", story(3))
    before = (tmp_path / "run.mcap").read_bytes()
    with pytest.raises(RecordingExists, match="never overwritten"):
        Recorder(tmp_path / "run.mcap")
    assert (tmp_path / "run.mcap").read_bytes() == before


def test_files_that_are_no_recordings(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="No such file"):
        Recording(tmp_path / "none.mcap")
    with pytest.raises(RecordingError, match="cannot be made"):
        Recorder(tmp_path / "no" / "folder.mcap")
    (tmp_path / "empty.mcap").touch()
    (tmp_path / "text.mcap").write_text("hello, I am a text")
    with open(tmp_path / "foreign.mcap", "wb") as file:
        writer: Any = Writer(file)
        writer.start()
        channel = writer.register_channel("/odom", "json", 0)
        writer.add_message(channel, 1, b"{}", 1)
        writer.finish()
    for name in ("empty", "text", "foreign"):
        with pytest.raises(RecordingDamaged):
            Recording(tmp_path / f"{name}.mcap")
    Recorder(tmp_path / "begun.mcap").close()
    with pytest.raises(RecordingDamaged, match="no manifest"):
        Recording(tmp_path / "begun.mcap")


def test_one_file_holds_one_run(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "run.mcap")
    recorder.write(manifest())
    with pytest.raises(RecordingError, match="own file"):
        recorder.write(manifest(run="other"))
    recorder.close()


@pytest.mark.parametrize("share", [0.3, 0.7, 0.99])
def test_a_missing_tail_costs_the_tail_only(tmp_path: Path, share: float, caplog: pytest.LogCaptureFixture) -> None:
    written = make(tmp_path / "run.mcap", story(400))
    whole = (tmp_path / "run.mcap").read_bytes()
    (tmp_path / "torn.mcap").write_bytes(whole[: int(len(whole) * share)])
    recording = Recording(tmp_path / "torn.mcap")
    read = list(recording.messages())
    assert all(same(a, b) for a, b in zip(read, written, strict=False))
    assert recording.damaged is not None
    assert "tail" in recording.damaged
    frames = [m for m in read if isinstance(m, FrameBatch)]
    assert len(frames) >= 400 * share * 0.5
    list(recording.messages())
    assert len([r for r in caplog.records if "damaged" in r.message]) == 1, "said once"
    assert recording.info()["damaged"]


def test_a_file_torn_anywhere_never_fails_otherwise(tmp_path: Path) -> None:
    make(tmp_path / "run.mcap", story(30))
    whole = (tmp_path / "run.mcap").read_bytes()
    for size in range(0, len(whole), 97):
        (tmp_path / "torn.mcap").write_bytes(whole[:size])
        try:
            recording = Recording(tmp_path / "torn.mcap")
        except RecordingDamaged:
            continue
        assert list(recording.messages())
        assert recording.damaged


def test_flipped_bytes_never_fail_otherwise(tmp_path: Path) -> None:
    make(tmp_path / "run.mcap", story(30))
    whole = (tmp_path / "run.mcap").read_bytes()
    rng = np.random.default_rng(0)
    for where in rng.integers(0, len(whole), 150):
        broken = bytearray(whole)
        broken[where] ^= 1 << int(rng.integers(8))
        (tmp_path / "broken.mcap").write_bytes(broken)
        try:
            list(Recording(tmp_path / "broken.mcap").messages())
        except RecordingDamaged:
            continue


def test_a_broken_chunk_is_left_out(tmp_path: Path) -> None:
    make(tmp_path / "run.mcap", story(100))
    with open(tmp_path / "run.mcap", "rb") as file:
        summary = make_reader(file).get_summary()
    assert summary is not None
    chunk = summary.chunk_indexes[3]
    whole = bytearray((tmp_path / "run.mcap").read_bytes())
    whole[chunk.chunk_start_offset + chunk.chunk_length - 20] ^= 0xFF
    (tmp_path / "run.mcap").write_bytes(whole)
    recording = Recording(tmp_path / "run.mcap")
    frames = [m.first_seq for m in recording.messages() if isinstance(m, FrameBatch)]
    assert len(frames) == 90
    assert recording.damaged is not None
    assert "chunk" in recording.damaged


def test_chunks_stay_small(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "run.mcap")
    recorder.write(manifest())
    for i in range(300):
        recorder.write(batch(i * 50, 50))
    recorder.close()
    with open(tmp_path / "run.mcap", "rb") as file:
        summary = make_reader(file).get_summary()
    assert summary is not None
    assert len(summary.chunk_indexes) > 3
    assert max(c.uncompressed_size for c in summary.chunk_indexes) < 1.5 * CHUNK_BYTES


FULL = """
import resource, sys
from interlatent_live.stream.errors import RecordingError
from interlatent_live.stream.recording import Recorder
from tests.stream_samples import batch, manifest
recorder = Recorder(sys.argv[1])
recorder.write(manifest())
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
produced = 0
try:
    while True:
        recorder.write(batch(produced, 100))
        produced += 100
        recorder.flush()
except RecordingError as error:
    recorder.close()
    print(produced, recorder.frames, recorder.pending_frames, error)
"""


def test_a_full_disk_keeps_what_was_recorded(tmp_path: Path) -> None:
    path = tmp_path / "run.mcap"
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(path)], check=True, capture_output=True, text=True, cwd=Path(__file__).parents[1]
    )
    produced, recorded, pending, reason = done.stdout.split(maxsplit=3)
    assert int(recorded) > 0
    assert int(produced) == int(recorded) + int(pending)
    assert "File too large" in reason
    frames = [m for m in Recording(path).messages() if isinstance(m, FrameBatch)]
    assert sum(m.rows for m in frames) == int(recorded), "what counts as recorded can be read"


def test_a_killed_process_leaves_a_readable_file(tmp_path: Path) -> None:
    path = tmp_path / "run.mcap"
    code = """
import os, sys
from interlatent_live.stream.recording import Recorder
from tests.stream_samples import batch, manifest
recorder = Recorder(sys.argv[1])
recorder.write(manifest())
recorder.write(batch(0, 10))
recorder.flush()
recorder.write(batch(10, 10))
os._exit(1)
"""
    subprocess.run([sys.executable, "-c", code, str(path)], check=False, cwd=Path(__file__).parents[1])
    frames = [m for m in Recording(path).messages() if isinstance(m, FrameBatch)]
    assert [m.first_seq for m in frames] == [0]


def smooth(kind: str, frames: int) -> tuple[Manifest, list[Message], int]:
    """A stream of one frame a message with signals, heartbeats, smooth observations and a random MLP; and its raw bytes."""
    rng = np.random.default_rng(0)
    hz, size, widths = (50, 4, (64, 64)) if kind == "cartpole" else (60, 44, (256, 128))
    names = tuple(f"joint_{i}_velocity" for i in range(size))
    points = tuple(TapPointSpec(f"{2 * i + 1}:out", "float32", (w,)) for i, w in enumerate(widths))
    made = manifest(tap_points=points, metrics=tuple(MetricSpec(n, "rad/s") for n in names), observation_names=names)
    first, second = rng.normal(size=(size, widths[0])) / size**0.5, rng.normal(size=widths) / widths[0] ** 0.5
    speed, phase = rng.uniform(0.3, 3, size), rng.uniform(0, 6, size)
    messages: list[Message] = []
    raw = 0
    for i in range(frames):
        one = batch(i, 1, hz=hz)
        seen = (np.sin(2 * np.pi * speed * i / hz + phase) + 0.02 * rng.normal(size=size)).astype("<f4")
        hidden = np.tanh(seen @ first) if kind == "cartpole" else np.maximum(seen @ first, 0)
        out = np.tanh(hidden @ second) if kind == "cartpole" else np.maximum(hidden @ second, 0)
        jitter = int(rng.normal() * 80_000)
        columns = {
            **one.columns,
            "monotonic_ns": one.columns["monotonic_ns"] + jitter,
            "wall_ns": one.columns["wall_ns"] + jitter + int(rng.normal() * 300),
            "observation": seen[None],
            "metrics": seen[None].astype("<f8"),
        }
        acts = {points[0].name: hidden[None].astype("<f4"), points[1].name: out[None].astype("<f4")}
        one = FrameBatch("agent", "b0", made.hash, i, 0, columns, acts)
        raw += one.nbytes
        messages.append(one)
        if i % 3 == 0:
            values = {n: float(f"{v:.6g}") for n, v in zip(names, seen.tolist(), strict=True)}
            messages.append(Signals("agent", int(columns["wall_ns"][0]), values))
        if i % hz == 0:
            status = {name: float(rng.normal()) for name in ("overhead_us_median", "overhead_us_p99", "steps_per_s")}
            messages.append(heartbeat(i, status=status))
    return made, messages, raw


@pytest.mark.parametrize("kind", ["cartpole", "humanoid"])
def test_a_recording_is_not_much_larger_than_its_columns(tmp_path: Path, kind: str) -> None:
    made, messages, raw = smooth(kind, 600)
    recorder = Recorder(tmp_path / "run.mcap")
    recorder.write(made)
    for message in messages:
        recorder.write(message)
        if not isinstance(message, (FrameBatch, Signals)):
            recorder.flush()
    recorder.close()
    assert os.path.getsize(tmp_path / "run.mcap") <= 1.2 * raw


def test_pictures_come_back(tmp_path: Path) -> None:
    make(tmp_path / "run.mcap", [manifest(), batch(), picture()])
    (read,) = [m for m in Recording(tmp_path / "run.mcap").messages() if isinstance(m, Picture)]
    assert read == picture()


def test_reading_imports_no_torch(tmp_path: Path) -> None:
    make(tmp_path / "run.mcap", story(2))
    code = """
import sys
from interlatent_live.stream.reading import Recording
Recording(sys.argv[1]).info()
print("torch" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "run.mcap")], check=True, capture_output=True, text=True
    )
    assert done.stdout.strip() == "False"
