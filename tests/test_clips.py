"""What came before an alarm, as a recording of its own: whole, small, named by the alarm's row, and in nobody's way."""

from __future__ import annotations

import dataclasses
import logging
import sqlite3
from pathlib import Path

import numpy as np
import pytest
import torch
from bench.synthetic import Synthetic

from interlatent_live.analyzer.clips import Clips, clips_folder
from interlatent_live.analyzer.dictionary import Dictionary, DictionaryConfig
from interlatent_live.analyzer.digest import verify
from interlatent_live.analyzer.door import Analyzer
from interlatent_live.analyzer.queries import Reader
from interlatent_live.analyzer.records import Drift
from interlatent_live.analyzer.service import analyze_recording
from interlatent_live.analyzer.store import MIGRATIONS, Store
from interlatent_live.analyzer.writes import Writes
from interlatent_live.stream.frames import FrameBatch
from interlatent_live.stream.publisher import Publisher
from interlatent_live.stream.reading import Recording
from interlatent_live.stream.recording import Recorder
from interlatent_live.stream.replay import replay
from interlatent_live.stream.wire import Picture
from interlatent_live.viewer.alarms import alarm_text

FRAMES, ROWS = 3000, 25
SHIFT = 2500
"""Frame at which the activations leave what the card saw; 50 frames are a second."""


def dictionary() -> Dictionary:
    torch.manual_seed(0)
    weights = torch.nn.functional.normalize(torch.randn(24, 12), dim=1)
    cfg = DictionaryConfig(
        name="mine", activation="topk", d_in=12, d_out=12, features=24, k=4, input="0:out", output="0:out",
        model_hash=Synthetic(width=12).manifest.weights_hash,
    )  # fmt: skip
    zeros = torch.zeros(12)
    made = Dictionary(cfg, {"W_enc": weights.T, "b_enc": torch.ones(24), "W_dec": weights, "b_dec": zeros, "mean_out": zeros})
    low_high = dict(zip(("q001", "q01", "q50", "q99", "q999"), (0.0, 0.1, 0.5, 9.0, 10.0), strict=True))
    return made.with_card({"hash": made.hash, "fvu": 0.5, "quantiles": {"fvu": low_high}})


def stream(run: str = "synthetic") -> tuple[Synthetic, list[FrameBatch]]:
    """Calm, then of a kind that the dictionary reconstructs worse than the mean does."""
    made = Synthetic(run=run, width=12, metrics=2)
    batches = list(made.batches(FRAMES // ROWS, ROWS))
    for batch in batches[SHIFT // ROWS :]:
        batch.activations["0:out"][:] *= 0.01
    return made, batches


def picture(run: str, batch: FrameBatch) -> Picture:
    seq, clock = batch.next_seq - 1, int(batch.columns["monotonic_ns"][-1])
    return Picture(run, "b0", seq, seq, 0, clock, clock, 2, 2, b"\xff\xd8jpeg")


def analysed(path: Path, run: str = "synthetic", clips: Clips | None = None) -> None:
    made, batches = stream(run)
    with Store(path) as store:
        analyzer = Analyzer(store, dictionaries=[dictionary()], clips=clips)
        analyzer.feed(made.manifest)
        for batch in batches:
            analyzer.feed(batch)
            analyzer.feed(picture(run, batch))
        analyzer.close()


def test_an_alarm_saves_the_half_minute_before_it_and_its_row_names_it(tmp_path: Path) -> None:
    analysed(tmp_path / "r.db", clips=Clips(tmp_path / "r.db"))
    with Reader(tmp_path / "r.db") as reader:
        (section,) = reader.sections("b0")
        alarm = next(d for d in reader.drift(section.id) if d.kind == "gate")
        clip = reader.clips(section.id)[alarm.id]
    assert clip == f"r.clips/synthetic-b0-{alarm.last_seq}.mcap"
    recording = Recording(tmp_path / clip)
    info = recording.info()
    assert (info["run"], info["boot"], info["damaged"]) == ("synthetic", "b0", None)
    assert 29 < info["duration_s"] < 31  # whole batches, of half a second here
    assert info["pictures"] > 50
    batches = [m for m in recording.messages() if isinstance(m, FrameBatch)]
    assert batches[-1].first_seq == alarm.last_seq + 1  # the batch that closed the alarm's last second
    _, sent = stream()
    same = next(b for b in sent if b.first_seq == batches[0].first_seq)
    np.testing.assert_array_equal(batches[0].activations["0:out"], same.activations["0:out"])
    # it can be analysed and replayed like any other
    done = analyze_recording(recording, tmp_path / "clip.db", dictionaries=[dictionary()])
    assert done["analyzed"] == info["frames"]
    publisher = Publisher("tcp://127.0.0.1:*")
    assert replay(recording, publisher, speed=float("inf")).frames == info["frames"]
    publisher.close()


def test_the_analysis_is_the_same_with_clips_and_without(tmp_path: Path) -> None:
    analysed(tmp_path / "with.db", clips=Clips(tmp_path / "with.db"))
    analysed(tmp_path / "without.db")
    assert verify(tmp_path / "with.db", tmp_path / "without.db") is None
    assert list(clips_folder(tmp_path / "with.db").iterdir())
    assert not clips_folder(tmp_path / "without.db").exists()


def test_an_analysis_of_a_recording_saves_clips_only_when_asked(tmp_path: Path) -> None:
    made, batches = stream()
    recorder = Recorder(tmp_path / "r.mcap")
    recorder.write(made.manifest)
    for batch in batches:
        recorder.write(batch)
    recorder.close()
    analyze_recording(tmp_path / "r.mcap", tmp_path / "a.db", dictionaries=[dictionary()])
    analyze_recording(tmp_path / "r.mcap", tmp_path / "b.db", dictionaries=[dictionary()], clips=True)
    assert not clips_folder(tmp_path / "a.db").exists()
    assert list(clips_folder(tmp_path / "b.db").glob("*.mcap"))


def test_files_and_memory_are_bounded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made, batches = stream("x.y")
    clips, writes = Clips(tmp_path / "r.db", kept_bytes=20_000, max_clips=2), Writes()
    with caplog.at_level(logging.WARNING):
        for number, batch in enumerate(batches):
            clips.keep(batch)
            if number in (20, 40, 60):
                clips.save(made.manifest, [number], batch.next_seq - 1)
    clips.close(writes)
    files = sorted(clips_folder(tmp_path / "r.db").iterdir())
    assert [f.name for f in files] == ["x.y-b0-1024.mcap", "x.y-b0-524.mcap"]
    assert Recording(files[0]).info()["frames"] * 12 * 4 < 20_000
    assert {row[1] for _, rows in writes for row in rows} == {20, 40}
    assert "clips of 2" in caplog.text
    files[0].unlink()
    clips.save(made.manifest, [80], batches[-1].next_seq)
    clips.close(writes)
    assert len(list(clips_folder(tmp_path / "r.db").iterdir())) == 2


def test_a_full_disk_costs_the_clip_and_nothing_else(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        analysed(tmp_path / "r.db", clips=Clips(tmp_path / "r.db", keep_free_bytes=1 << 62))
    assert "are not saved" in caplog.text
    assert list(clips_folder(tmp_path / "r.db").iterdir()) == []
    with Reader(tmp_path / "r.db") as reader:
        (section,) = reader.sections("b0")
        assert reader.drift(section.id)
        assert reader.clips(section.id) == {}


def test_another_boot_or_manifest_begins_anew(tmp_path: Path) -> None:
    made, batches = stream()
    clips, writes = Clips(tmp_path / "r.db"), Writes()
    for batch in batches[:10]:
        clips.keep(batch)
    second = dataclasses.replace(made.manifest, boot="b1")
    clips.keep(dataclasses.replace(batches[10], boot="b1", manifest_hash=second.hash))
    clips.save(made.manifest, [1], 5)  # nothing of that manifest is kept
    clips.save(second, [2], 6)
    clips.close(writes)
    (file,) = clips_folder(tmp_path / "r.db").iterdir()
    assert Recording(file).info()["frames"] == ROWS


def test_a_database_from_before_there_were_clips_can_still_be_read(tmp_path: Path) -> None:
    with Store(tmp_path / "old.db", run="r", migrations=MIGRATIONS[:2]):
        pass
    with Reader(tmp_path / "old.db") as reader:
        assert reader.clips(1) == {}
    with Store(tmp_path / "old.db"):
        pass
    with sqlite3.connect(tmp_path / "old.db") as connection:
        assert "clip" in [row[1] for row in connection.execute("PRAGMA table_info(drift)")]
    connection.close()


def test_an_alarm_says_its_span_measure_and_the_cards_value() -> None:
    gate = Drift(1, 1, "gate", "fvu", 50, 199, 0.3, None, 0.1)
    assert alarm_text(gate) == "drift, frames 50 to 199: FVU 0.300, outside the card's range (to 0.100)"
    assert alarm_text(gate, "r.clips/a.mcap").endswith("; the 30 s before it: r.clips/a.mcap")
    adwin = Drift(2, 1, "adwin", "l0", 0, 9, 12.0, 8.0, 8.0)
    assert alarm_text(adwin) == "drift, frames 0 to 9: L0 12, another mean than before (8)"
