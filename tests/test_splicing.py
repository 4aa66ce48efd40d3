"""Cross-entropy with a dictionary spliced in, against a model that is changed by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.tiny_lm import model, tokenizer, torch

from interlatent_live.analyzer.dictionary import Dictionary, DictionaryConfig
from interlatent_live.prompting import Loaded
from interlatent_live.splicing import judge, recovered
from interlatent_live.stream.errors import DictionaryError

TEXTS = ["the cat sat on the mat and the dog", "the rocket flies and burns fuel", "a pot stirs", "salt"]
PATH = "model.layers.1.mlp"


def dictionary(point: str = f"{PATH}:in", *, whole: bool = False) -> Dictionary:
    generator = torch.Generator().manual_seed(2)
    if whole:  # +x and −x of every component, all active: an autoencoder without error
        eye = torch.eye(32)
        both = torch.cat([eye, -eye], 1)
        tensors = {"W_enc": both, "W_dec": both.T.contiguous(), "b_enc": torch.zeros(64), "b_dec": torch.zeros(32)}
        return Dictionary(DictionaryConfig("whole", "relu", 32, 32, 64, f"{PATH}:out", f"{PATH}:out"), tensors)
    tensors = {"W_enc": torch.randn(32, 8, generator=generator), "b_enc": torch.zeros(8), "W_dec": torch.randn(8, 32, generator=generator),
               "b_dec": torch.zeros(32)}  # fmt: skip
    return Dictionary(DictionaryConfig("d", "topk", 32, 32, 8, point, f"{PATH}:out", k=2), tensors)


def loss(made: Any) -> float:
    total, count = 0.0, 0
    with torch.no_grad():
        for text in TEXTS:
            ids = tokenizer()(text, return_tensors="pt").input_ids
            if ids.shape[1] > 1:
                logits = made(ids).logits[0, :-1]
                total += float(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum"))
                count += ids.shape[1] - 1
    return total / count


def test_controls_and_splice_are_what_they_say() -> None:
    made = model(fresh=True)
    loaded = Loaded(made, tokenizer(), "tiny", 128)
    found = judge(loaded, dictionary(), TEXTS)
    entropy = found["cross_entropy"]
    assert found["texts"] == 3
    assert entropy["clean"] == pytest.approx(loss(made), rel=1e-6)
    with torch.no_grad():
        made.model.layers[1].mlp.down_proj.weight.zero_()
    assert entropy["zero"] == pytest.approx(loss(made), rel=1e-6)
    assert {"fvu", "recovered_over_zero", "recovered_over_mean"} <= set(found)
    assert entropy["spliced"] != entropy["clean"]


def test_a_dictionary_without_error_recovers_all() -> None:
    loaded = Loaded(model(), tokenizer(), "tiny", 128)
    found = judge(loaded, dictionary(whole=True), TEXTS)
    assert found["fvu"] == pytest.approx(0, abs=1e-10)
    assert found["cross_entropy"]["spliced"] == pytest.approx(found["cross_entropy"]["clean"], rel=1e-6)


def test_one_of_other_points_is_refused() -> None:
    with pytest.raises(DictionaryError, match="can be spliced in"):
        judge(Loaded(model(), tokenizer(), "tiny", 128), dictionary("model.layers.0:out"), TEXTS)


def test_recovery_with_an_interval() -> None:
    ones = np.ones(20)
    conditions = {name: np.stack([value * ones, ones], 1) for name, value in {"clean": 2.0, "spliced": 2.5, "zero": 4.0}.items()}
    assert recovered(conditions, "zero") == pytest.approx({"value": 0.75, "low": 0.75, "high": 0.75})
    assert recovered(conditions | {"zero": conditions["clean"]}, "zero") == {"value": None, "low": None, "high": None}
