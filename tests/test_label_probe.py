"""A probe of labels finds what a layer holds of them, by prompt, and chance where labels were dealt at random."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tests.tiny_lm import model, tokenizer, torch
from typer.testing import CliRunner

import interlatent_live as il
from interlatent_live.analyzer.label_probe import _score, probe_label
from interlatent_live.cli import app
from interlatent_live.stream.errors import DictionaryError

POINT = "model.layers.1:out"


def record(path: Path) -> None:
    made, tok = model(), tokenizer()
    generator = np.random.default_rng(0)
    words = {"pets": ["cat", "dog", "mat"], "physics": ["rocket", "fuel", "orbit"], "cooking": ["soup", "pot", "salt"]}
    with il.Tap(made, POINT, run="probe", record=path, endpoint="", tokenizer=tok) as tap, torch.no_grad():
        for turn in range(10):
            for topic, some in words.items():
                text = "<s> " + " ".join(generator.choice(some, 8))
                with tap.prompt(text, labels={"topic": topic, "turn": str(turn % 2), "same": "x"}):
                    made(**tok(text, return_tensors="pt", return_token_type_ids=False))


def test_labels_are_told_by_prompts_that_were_not_seen(tmp_path: Path) -> None:
    record(tmp_path / "r.mcap")
    found = probe_label(tmp_path / "r.mcap", POINT, "topic", "none")
    assert found["values"] == ["cooking", "pets", "physics"]
    assert (found["prompts"], found["frames"]) == (30, 240), "special tokens are left out"
    assert found["activations"]["mean"] > 0.95
    assert found["activations"]["control"] < 0.6
    assert found["features"] is None
    told = CliRunner().invoke(app, ["probe", str(tmp_path / "r.mcap"), "--at", POINT, "--label", "turn", "--dictionary", "none", "--json"])
    assert json.loads(told.stdout)["activations"]["mean"] < 0.75
    for label in ("nowhere", "same"):
        with pytest.raises(DictionaryError, match=label):
            probe_label(tmp_path / "r.mcap", POINT, label)
    with pytest.raises(DictionaryError, match="no tap point"):
        probe_label(tmp_path / "r.mcap", "lm_head:out", "topic")
    assert CliRunner().invoke(app, ["probe", str(tmp_path / "r.mcap"), "--at", POINT]).exit_code == 2


def test_what_identifies_a_prompt_but_not_its_label_is_worth_nothing() -> None:
    generator = np.random.default_rng(1)
    prompt = np.repeat(np.arange(40), 20)
    x = generator.normal(size=(40, 16))[prompt] + 0.01 * generator.normal(size=(800, 16))
    classes = np.tile([0, 1], 20)
    score = _score(x.astype(np.float32), classes, prompt, 0)
    assert score.mean is not None
    assert 0.2 < score.mean < 0.8
