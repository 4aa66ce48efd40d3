"""Which features a stream is shown in: the dictionary that belongs to it, the one that was named, or neurons."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import pytest
import torch
from bench.synthetic import Synthetic

from interlatent_live.analyzer.choice import MAX_NEURONS, choose
from interlatent_live.analyzer.dictionary import Dictionary, DictionaryConfig
from interlatent_live.analyzer.registry import VARIABLE
from interlatent_live.analyzer.report import report
from interlatent_live.analyzer.service import Analyzer, analyze_recording
from interlatent_live.analyzer.store import Store
from interlatent_live.stream.errors import DictionaryMismatch
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


def kinds(*args: object, **options: object) -> list[tuple[str, str, bool]]:
    return [(c.source.kind, c.source.point, c.mismatch) for c in choose(*args, **options)]  # type: ignore[arg-type]


def test_neurons_where_there_is_no_dictionary() -> None:
    assert kinds(STREAM.manifest) == [("neurons", "0:out", False)]


def test_a_registered_dictionary_of_the_same_weights_and_points_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dictionary().save(tmp_path / "mine")
    dictionary(model_hash="f" * 64).save(tmp_path / "other")
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    assert kinds(STREAM.manifest) == [("topk", "0:out", False)]
    assert kinds(STREAM.manifest, neurons_only=True) == [("neurons", "0:out", False)]
    more = dataclasses.replace(
        STREAM.manifest, tap_points=(*STREAM.manifest.tap_points, TapPointSpec("1:out", "float32", (3,)))
    )
    assert kinds(more) == [("topk", "0:out", False), ("neurons", "1:out", False)]


def test_a_named_dictionary_of_another_model_is_refused_unless_allowed(caplog: pytest.LogCaptureFixture) -> None:
    other = dictionary(model_hash="f" * 64)
    with pytest.raises(DictionaryMismatch, match="allow the mismatch"):
        choose(STREAM.manifest, [other])
    with caplog.at_level(logging.WARNING):
        assert kinds(STREAM.manifest, [other], allow_mismatch=True) == [("topk", "0:out", True)]
    assert "mismatched" in caplog.text
    for impossible in (dictionary(point="9:out"), dictionary(width=13)):
        with pytest.raises(DictionaryMismatch):
            choose(STREAM.manifest, [impossible], allow_mismatch=True)


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
    stream = Synthetic(width=12, metrics=3)
    with Store(tmp_path / "r.db") as store:
        analyzer = Analyzer(store, dictionaries=[dictionary(model_hash="f" * 64)], allow_mismatch=True)
        analyzer.feed(stream.manifest)
        analyzer.feed(stream.batch(8))
        assert store.one("SELECT mismatch FROM sections") == (1,)
