from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from interlatent_live.analyzer import registry
from interlatent_live.analyzer.dictionary import Dictionary, DictionaryConfig
from interlatent_live.stream.errors import DictionaryError, DictionaryMismatch
from interlatent_live.stream.manifest import Manifest, TapPointSpec


def dictionary(name: str = "mine", model_hash: str = "w1", seed: int = 0, fvu: float | None = None) -> Dictionary:
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        "W_enc": torch.randn(6, 9, generator=generator),
        "b_enc": torch.zeros(9),
        "W_dec": torch.randn(9, 4, generator=generator),
        "b_dec": torch.zeros(4),
    }
    made = Dictionary(DictionaryConfig(name, "relu", 6, 4, 9, "1:out", "3:out", model_hash=model_hash), tensors)
    return made if fvu is None else made.with_card({"hash": made.hash, "fvu": fvu})


def manifest(weights_hash: str = "w1", weights: str = "frozen", shape: tuple[int, ...] = (2, 3)) -> Manifest:
    points = (TapPointSpec("1:out", "float32", shape), TapPointSpec("3:out", "float32", (4,)))
    return Manifest.from_dict({
        **Manifest("r", "b", 0, 0, tap_points=points, weights_hash=weights_hash).to_dict(), "weights": weights,
    })  # fmt: skip


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(registry.VARIABLE, str(tmp_path))
    return tmp_path


def test_found_by_path_name_and_hash(place: Path) -> None:
    made = dictionary()
    made.save(place / "folder")
    for wanted in (place / "folder", str(place / "folder"), "folder", "mine", made.hash, made.hash[:10]):
        assert registry.find(wanted).hash == made.hash


def test_an_unknown_name_lists_close_ones(place: Path) -> None:
    dictionary("humanoids-mine").save(place / "a")
    with pytest.raises(DictionaryError, match="humanoids-mine"):
        registry.find("humanoids-min")
    with pytest.raises(DictionaryError, match="no dictionary at"):
        registry.find("some/where")


def test_matched_by_weights_and_tap_points_best_first(place: Path) -> None:
    dictionary("worse", seed=1, fvu=0.2).save(place / "a")
    dictionary("better", seed=2, fvu=0.1).save(place / "b")
    dictionary("unjudged", seed=3).save(place / "c")
    dictionary("other", "w2").save(place / "d")
    assert [d.name for d in registry.match(manifest())] == ["better", "worse", "unjudged"]
    assert [d.name for d in registry.match(manifest("w2"))] == ["other"]
    assert registry.match(manifest("w3")) == []
    assert registry.match(manifest(shape=(7,))) == []


def test_what_does_not_fit_is_named() -> None:
    made = dictionary()
    assert registry.check(made, manifest()) is None
    other = registry.check(made, manifest("w2"))
    assert other is not None
    assert not other.stale
    assert all(part in other.text for part in ("'mine' is of w1", "the stream of w2", "--override mine"))
    for weights in ("w1", "w2"):
        changing = registry.check(made, manifest(weights, "changing"))
        assert changing is not None
        assert changing.stale
        assert f"began with {weights}" in changing.text
    unknown = registry.check(made, manifest(""))
    assert unknown is not None
    assert "does not name" in unknown.text


def test_what_cannot_be_computed_is_refused_with_both_values_and_the_remedy() -> None:
    made = dictionary()
    with pytest.raises(DictionaryMismatch, match=r"expects 6 values at tap point '1:out'; the stream has 5 there"):
        registry.check(made, manifest(shape=(5,)))
    with pytest.raises(DictionaryMismatch, match=r"needs tap point '1:out', 6 wide; the stream has none: tap it as well"):
        registry.check(made, Manifest("r", "b", 0, 0))
    with pytest.raises(DictionaryMismatch, match=r"the stream has 1:out \(6 wide\), 3:out \(4 wide\).*--override mine=INPUT,OUTPUT"):
        registry.check(made, manifest(), ("2:in", "3:out"))


def test_a_stream_whose_weights_change_is_matched_by_those_it_began_with(place: Path) -> None:
    dictionary().save(place / "a")
    assert [d.name for d in registry.match(manifest("w1", "changing"))] == ["mine"]
    assert registry.match(manifest("w2", "changing")) == []
    assert registry.match(manifest("")) == []


def test_a_damaged_one_is_logged_and_left_out(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    dictionary().save(place / "good")
    (dictionary(seed=1).save(place / "bad") / "dictionary.safetensors").write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        assert [d.name for d in registry.match(manifest())] == ["mine"]
    assert "left out" in caplog.text
