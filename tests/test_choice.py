"""Which features a stream is shown in: the dictionary that belongs to it, the one that was named, or neurons."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from bench.synthetic import Synthetic

from interlatent_live.analyzer.choice import MAX_NEURONS, Mismatch, choose
from interlatent_live.analyzer.dictionary import Dictionary, DictionaryConfig
from interlatent_live.analyzer.door import Analyzer
from interlatent_live.analyzer.registry import VARIABLE
from interlatent_live.analyzer.report import report
from interlatent_live.analyzer.service import analyze_recording
from interlatent_live.analyzer.store import Store
from interlatent_live.stream.errors import DictionaryError, DictionaryMismatch
from interlatent_live.stream.manifest import TapPointSpec
from interlatent_live.stream.recording import Recorder

STREAM = Synthetic(width=12, metrics=3)


def dictionary(model_hash: str = STREAM.manifest.weights_hash, point: str = "0:out", width: int = 12) -> Dictionary:
    torch.manual_seed(0)
    weights = torch.nn.functional.normalize(torch.randn(24, width), dim=1)
    cfg = DictionaryConfig(
        name="mine", activation="topk", d_in=width, d_out=width, features=24, k=4, input=point, output=point,
        model_hash=model_hash,
    )  # fmt: skip
    zeros = torch.zeros(width)
    tensors = {"W_enc": weights.T, "b_enc": torch.zeros(24), "W_dec": weights, "b_dec": zeros, "mean_out": zeros}
    return Dictionary(cfg, tensors, card={"fvu": 0.5, "hash": Dictionary(cfg, tensors).hash})


def kinds(*args: object, **options: object) -> list[tuple[str, str, int]]:
    return [(c.source.kind, c.source.point, c.mismatch) for c in choose(*args, **options)]  # type: ignore[arg-type]


def test_neurons_where_there_is_no_dictionary() -> None:
    assert kinds(STREAM.manifest) == [("neurons", "0:out", 0)]


def test_a_registered_dictionary_of_the_same_weights_and_points_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dictionary().save(tmp_path / "mine")
    dictionary(model_hash="f" * 64).save(tmp_path / "other")
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    assert kinds(STREAM.manifest) == [("topk", "0:out", 0)]
    assert kinds(STREAM.manifest, neurons_only=True) == [("neurons", "0:out", 0)]
    more = dataclasses.replace(
        STREAM.manifest, tap_points=(*STREAM.manifest.tap_points, TapPointSpec("1:out", "float32", (3,)))
    )
    assert kinds(more) == [("topk", "0:out", 0), ("neurons", "1:out", 0)]


def test_a_named_dictionary_of_another_model_is_refused_unless_overridden_by_name(caplog: pytest.LogCaptureFixture) -> None:
    other = dictionary(model_hash="f" * 64)
    ours = STREAM.manifest.weights_hash[:12]
    with pytest.raises(DictionaryMismatch, match=f"'mine' is of ffffffffffff, the stream of {ours}.*--override mine"):
        choose(STREAM.manifest, [other])
    with pytest.raises(DictionaryMismatch):
        choose(STREAM.manifest, [other], override={dictionary().hash: None})  # another one was overridden
    with caplog.at_level(logging.WARNING):
        assert kinds(STREAM.manifest, [other], override={other.hash: None}) == [("topk", "0:out", Mismatch.OVERRIDDEN)]
    assert "by override" in caplog.text
    for impossible in (dictionary(point="9:out"), dictionary(width=13)):
        with pytest.raises(DictionaryMismatch):
            choose(STREAM.manifest, [impossible], override={impossible.hash: None})


def test_a_tap_point_of_another_name_is_overridden_by_naming_it() -> None:
    elsewhere = dictionary(point="blocks.0.hook")
    (choice,) = choose(STREAM.manifest, [elsewhere], override={elsewhere.hash: ("0:out", "0:out")})
    assert (choice.source.point, choice.mismatch) == ("0:out", Mismatch.OVERRIDDEN)
    encoded = choice.source.encode(Synthetic(width=12, metrics=3).batch(8), STREAM.manifest)
    assert encoded is not None
    assert encoded.codes.rows == 8
    assert encoded.sse is not None


def test_with_changing_weights_a_dictionary_is_taken_and_marked_stale(caplog: pytest.LogCaptureFixture) -> None:
    changing = dataclasses.replace(STREAM.manifest, weights="changing")
    with caplog.at_level(logging.WARNING):
        assert kinds(changing, [dictionary(model_hash="f" * 64)]) == [("topk", "0:out", Mismatch.STALE)]
    assert "changing" in caplog.text


def test_a_layer_too_wide_for_neurons_is_left_out_and_said(caplog: pytest.LogCaptureFixture) -> None:
    wide = dataclasses.replace(STREAM.manifest, tap_points=(TapPointSpec("0:out", "float32", (MAX_NEURONS + 1,)),))
    assert kinds(wide) == []
    assert "at most" in caplog.text


def test_a_dictionary_gives_errors_and_a_report(tmp_path: Path) -> None:
    stream = Synthetic(width=12, metrics=3)
    recorder = Recorder(tmp_path / "r.mcap")
    recorder.write(stream.manifest)
    for batch in stream.batches(100, 8):
        recorder.write(batch)
    recorder.close()
    path = tmp_path / "mine"
    dictionary().save(path)
    analyze_recording(tmp_path / "r.mcap", tmp_path / "r.db", dictionaries=[path])
    with Store(tmp_path / "r.db", readonly=True) as store:
        assert store.one("SELECT count(*), count(sse), count(sst), sum(active) FROM codes") == (100, 100, 100, 3200)
        assert store.one("SELECT min(l0), max(l0), count(fvu) = count(*) FROM quality") == (4.0, 4.0, 1)
        assert store.one("SELECT mismatch FROM sections") == (0,)
        sse, sst = store.one("SELECT sum(sse), sum(sst) FROM codes")
    found = report(tmp_path / "r.db")["dictionary"]
    assert found == {"hash": dictionary().hash, "fvu_live": pytest.approx(sse / sst), "fvu_card": 0.5}


def test_a_mismatch_is_marked_in_its_section(tmp_path: Path) -> None:
    other = dictionary(model_hash="f" * 64)
    changing = dataclasses.replace(STREAM.manifest, weights="changing")
    for name, manifest, mark in (("frozen.db", STREAM.manifest, 1), ("changing.db", changing, 2)):
        stream = Synthetic(width=12, metrics=3)
        stream.manifest = manifest
        with Store(tmp_path / name) as store:
            analyzer = Analyzer(store, dictionaries=[other], override={other.hash: None})
            analyzer.feed(manifest)
            analyzer.feed(dataclasses.replace(stream.batch(8), manifest_hash=manifest.hash))
            assert store.one("SELECT mismatch FROM sections") == (mark,)


def test_an_analysis_takes_overrides_by_name(tmp_path: Path) -> None:
    stream = Synthetic(width=12, metrics=3)
    recorder = Recorder(tmp_path / "r.mcap")
    recorder.write(stream.manifest)
    recorder.write(stream.batch(8))
    recorder.close()
    dictionary(model_hash="f" * 64, point="hook").save(tmp_path / "d")
    with pytest.raises(DictionaryMismatch, match="hook"):
        analyze_recording(tmp_path / "r.mcap", tmp_path / "a.db", dictionaries=[tmp_path / "d"], override=["mine"])
    with pytest.raises(DictionaryError, match="output tap point"):
        analyze_recording(tmp_path / "r.mcap", tmp_path / "b.db", override=[f"{tmp_path / 'd'}=a,b,c"])
    named: dict[str, Any] = {"dictionaries": [tmp_path / "d"], "override": ["mine=0:out"]}
    for number, words in enumerate((named, {"override": [f"{tmp_path / 'd'}=0:out"]})):
        analyze_recording(tmp_path / "r.mcap", tmp_path / f"{number}.db", **words)
        with Store(tmp_path / f"{number}.db", readonly=True) as store:
            assert store.all("SELECT point, mismatch FROM sections") == [("0:out", 1)]
