"""Recordings in several files, and recordings that stop before their disk is full."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.stream_samples import Agent, batch, heartbeat, manifest
from tests.test_wire import same

from interlatent_live.stream import spool
from interlatent_live.stream.errors import RecordingError, RecordingExists
from interlatent_live.stream.frames import FrameBatch
from interlatent_live.stream.manifest import Manifest
from interlatent_live.stream.reading import Recording
from interlatent_live.stream.recording import Recorder
from interlatent_live.stream.wire import Bye, Message


def make(path: Path, batches: int = 60, **options: float) -> tuple[Recorder, list[Message]]:
    """A recording flushed after every 10 batches of 2 frames."""
    recorder = Recorder(path, **options)  # type: ignore[arg-type]
    written: list[Message] = [manifest(), *(batch(i * 2, 2) for i in range(batches)), heartbeat(batches * 2, Bye)]
    for number, message in enumerate(written, start=1):
        recorder.write(message)
        if number % 10 == 0:
            recorder.flush()
    recorder.close()
    return recorder, written


def test_parts_are_read_on_through(tmp_path: Path) -> None:
    recorder, written = make(tmp_path / "run.mcap", rotate_bytes=3_000)
    names = sorted(p.name for p in tmp_path.iterdir())
    assert len(names) > 2
    assert {"run.mcap", "run.1.mcap", "run.2.mcap"} <= set(names)
    assert recorder.frames == 120
    recording = Recording(tmp_path / "run.mcap")
    read = [m for m in recording.messages() if not isinstance(m, Manifest)]
    assert all(same(a, b) for a, b in zip(read, written[1:], strict=True))
    assert recording.damaged is None
    info = recording.info()
    assert (info["parts"], info["frames"]) == (len(names), 120)
    assert info["ledger"]
    assert recording.index.frames == 120


def test_each_part_can_be_read_by_itself(tmp_path: Path) -> None:
    make(tmp_path / "run.mcap", rotate_bytes=3_000)
    frames = 0
    for path in tmp_path.iterdir():
        (tmp_path / "alone").mkdir(exist_ok=True)
        if path.is_file():
            alone = Recording(path.rename(tmp_path / "alone" / f"{path.name.replace('.', '_')}.mcap"))
            assert alone.manifest == manifest()
            frames += alone.info()["frames"]
    assert frames == 120


def test_rotation_by_time(tmp_path: Path) -> None:
    make(tmp_path / "run.mcap", rotate_s=1e-9)
    assert len(Recording(tmp_path / "run.mcap").parts) >= 6


def test_frame_time_goes_on_through_the_parts(tmp_path: Path) -> None:
    make(tmp_path / "run.mcap", rotate_bytes=3_000)
    read = [m.first_seq for m in Recording(tmp_path / "run.mcap").messages(2.0, 2.2) if isinstance(m, FrameBatch)]
    assert read == [100, 102, 104, 106, 108]


def test_a_missing_part_is_told(tmp_path: Path) -> None:
    make(tmp_path / "run.mcap", rotate_bytes=3_000)
    (tmp_path / "run.1.mcap").unlink()
    recording = Recording(tmp_path / "run.mcap")
    assert "part 1 is missing" in (recording.damaged or "")
    assert 0 < recording.info()["frames"] < 120


def test_files_of_other_recordings_are_no_parts(tmp_path: Path) -> None:
    make(tmp_path / "run.1.mcap")
    (tmp_path / "run.2.mcap").write_text("no recording")
    make(tmp_path / "run.mcap", 10)
    assert Recording(tmp_path / "run.mcap").info()["frames"] == 20


def test_rotation_refuses_names_that_are_taken(tmp_path: Path) -> None:
    (tmp_path / "run.7.mcap").touch()
    with pytest.raises(RecordingExists, match=r"run\.7\.mcap"):
        Recorder(tmp_path / "run.mcap", rotate_s=60)
    assert not (tmp_path / "run.mcap").exists()


@pytest.mark.parametrize("options", [{"rotate_bytes": 0}, {"rotate_s": -1.0}])
def test_limits_must_be_above_zero(tmp_path: Path, options: dict[str, float]) -> None:
    with pytest.raises(RecordingError, match="above 0"):
        Recorder(tmp_path / "run.mcap", **options)  # type: ignore[arg-type]


def test_no_recording_is_begun_on_a_disk_without_room(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="kept free"):
        Recorder(tmp_path / "run.mcap", keep_free_bytes=1 << 60)
    assert not (tmp_path / "run.mcap").exists()


class Disk:
    """A disk that fills while a recording is made."""

    def __init__(self, free: int) -> None:
        self.free = free

    def __call__(self, path: object) -> os.statvfs_result:
        return os.statvfs_result((4096, 4096, 100 << 18, self.free // 4096, self.free // 4096, 1, 1, 1, 0, 255))


def test_a_recording_stops_before_its_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    disk = Disk(50 << 30)
    monkeypatch.setattr(os, "statvfs", disk)
    with Agent(endpoint=None, record=tmp_path / "run.mcap") as agent:
        agent.produce(10)
        agent.settle()
        disk.free = (1 << 30) - 4096
        for _ in range(600):  # flushed once a second
            agent.produce(1)
            agent.settle()
            if agent.sender.record_failed:
                break
            agent.sender._stop.wait(0.01)
        agent.produce(5)
    assert agent.sender.record_failed >= 5
    assert agent.sender.recorded + agent.sender.record_failed == agent.next_seq
    assert len([r for r in caplog.records if "kept free" in r.message]) == 1
    recording = Recording(tmp_path / "run.mcap")
    assert recording.info()["frames"] == agent.sender.recorded
    assert recording.damaged is None, "it was closed with its index"
    assert recording.parts[0].index() is not None


def test_room_is_judged_by_the_disks_size(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    disk = Disk(2 << 30)
    monkeypatch.setattr(os, "statvfs", disk)
    assert spool.shortage(tmp_path, None) is None
    assert "2048 MiB are free" in (spool.shortage(tmp_path, 3 << 30) or "")
    disk.free = 0
    assert spool.shortage(tmp_path, None)
    assert spool.shortage(tmp_path, 0) is None, "0 does not look"


def test_what_is_left_at_the_end_is_written_anyhow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(50 << 30)
    monkeypatch.setattr(os, "statvfs", disk)
    recorder = Recorder(tmp_path / "run.mcap")
    recorder.write(manifest())
    recorder.write(batch())
    disk.free = 0
    recorder.close()
    assert Recording(tmp_path / "run.mcap").info()["frames"] == 2
