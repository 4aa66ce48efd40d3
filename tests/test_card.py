from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from interlatent_live.analyzer import registry
from interlatent_live.analyzer.baselines import NAMES, baselines
from interlatent_live.analyzer.card import judge
from interlatent_live.analyzer.card_page import as_html, as_markdown
from interlatent_live.analyzer.dictionary import Dictionary, load
from interlatent_live.analyzer.recovery import recovery_of
from interlatent_live.analyzer.samples import Samples
from interlatent_live.card import agent_of, make_card
from interlatent_live.stream.errors import DictionaryError, DictionaryMismatch

WANTED = {
    "hash", "recipe", "features", "k", "l0", "fvu", "dead_share", "action_agreement", "action_error", "return_recovery",
    "baselines", "quantiles",
}  # fmt: skip


def samples(frames: int = 400, episodes: int = 4, seed: int = 0) -> Samples:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(frames, 6)).astype(np.float32) + 3
    y = (x @ np.random.default_rng(9).normal(size=(6, 5))).astype(np.float32)
    return Samples(x, y, np.repeat(np.arange(episodes), frames // episodes), "1:out", "3:out")


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    return Path(shutil.copytree(registry.SHIPPED / "cartpole", tmp_path / "cartpole"))


def test_recovery_is_the_ratio_of_means_and_its_interval_is_paired() -> None:
    rng = np.random.default_rng(0)
    clean = rng.choice([100.0, 3700.0], 200, p=[0.07, 0.93])
    ablated = rng.uniform(20, 60, 200)
    spliced = clean - 50
    found = recovery_of(spliced, clean, ablated)
    assert found["mean"] == pytest.approx((spliced.mean() - ablated.mean()) / (clean.mean() - ablated.mean()))
    assert found["low"] <= found["mean"] <= found["high"]
    assert found["high"] - found["low"] < 0.01  # unpaired, the falls alone would make it 0.1
    assert found["episodes"] == 200
    assert recovery_of(clean, clean, ablated) == {"mean": 1.0, "low": 1.0, "high": 1.0, "episodes": 200}


def test_recovery_is_null_where_it_has_no_meaning() -> None:
    same = np.full(5, 500.0)
    assert recovery_of(same, same, same) == {"mean": None, "low": None, "high": None, "episodes": 5}
    one = recovery_of(np.array([3.0]), np.array([4.0]), np.array([2.0]))
    assert one == {"mean": 0.5, "low": None, "high": None, "episodes": 1}


def test_the_interval_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(60):
        clean = np.where(rng.random(100) < 0.07, 100.0, 3700.0)
        spliced = np.where(rng.random(100) < 0.12, 100.0, 3650.0)
        found = recovery_of(spliced, clean, np.full(100, 50.0))
        truth = (0.12 * 100 + 0.88 * 3650 - 50) / (0.07 * 100 + 0.93 * 3700 - 50)
        covered += found["low"] <= truth <= found["high"]
    assert covered >= 50


def test_baselines_equal_numpy_oracles() -> None:
    fit, held = samples(seed=1), samples(seed=2)
    made = baselines(fit, features=12, k=2)
    assert tuple(made) == NAMES
    x, y = torch.from_numpy(held.x), torch.from_numpy(held.y)
    mean = fit.y.astype(np.float64).mean(axis=0)
    _, _, vt = np.linalg.svd(fit.y - mean, full_matrices=False)
    np.testing.assert_allclose(made["pca"](x, y).numpy(), mean + (held.y - mean) @ vt[:2].T @ vt[:2], atol=1e-3)
    kept = made["neurons"](x, y).numpy()
    rest = np.abs(held.y - mean)
    for row, found in enumerate(kept):
        largest = np.argsort(rest[row])[-2:]
        expected = mean.copy()
        expected[largest] = held.y[row, largest]
        np.testing.assert_allclose(found, expected, atol=1e-4)
    np.testing.assert_allclose(made["mean"](x, y).numpy(), np.tile(mean, (400, 1)), atol=1e-4)
    assert made["random"](x, y).shape == (400, 5)


def test_phases_density_and_what_is_alive(copied: Path) -> None:
    dictionary = load(copied)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(300, 64)).astype(np.float32), rng.normal(size=(300, 64)).astype(np.float32)
    held = Samples(x, y, np.tile([0, 1], 150), "1:out", "3:out")  # two environments, interleaved
    card = judge(dictionary, held, held)
    with torch.inference_mode():
        y_hat = dictionary.decode(dictionary.encode_dense(torch.from_numpy(x))).double().numpy()
    errors, total = ((y - y_hat) ** 2).sum(axis=1), ((y - y.mean(axis=0, dtype=np.float64)) ** 2).sum()
    first = card["fvu_by_phase"][0]
    assert (first["from_step"], first["to_step"], first["frames"]) == (0, 10, 20)
    assert first["fvu"] == pytest.approx(errors[:20].mean() / (total / 300), rel=1e-4)
    assert sum(p["frames"] for p in card["fvu_by_phase"]) == 300
    assert sum(card["density"]["latents"]) + card["density"]["silent"] == dictionary.features
    assert card["alive_after"][-1] == [300, 1 - card["dead_share"]]


def test_a_card_of_an_agents_dictionary(copied: Path) -> None:
    dictionary = load(copied)
    assert agent_of(dictionary) == "cartpole"
    card = make_card(dictionary, episodes=2)
    assert set(card) >= WANTED
    assert card["return_recovery"]["episodes"] == 2
    assert card["return_recovery"]["mean"] >= 0.99
    assert 0.9 <= card["action_agreement"] <= 1
    assert card["action_error"] is None
    assert {name: set(b) for name, b in card["baselines"].items()} == {name: {"fvu", "return_recovery"} for name in NAMES}
    assert card["baselines"]["mean"]["return_recovery"] == 0
    assert json.loads((copied / "card.json").read_text()) == card == load(copied).card
    assert load(copied).hash == dictionary.hash
    text, page = (copied / "card.md").read_text(), (copied / "card.html").read_text()
    for shown in (card["hash"], card["model_hash"], "seeds 30000000 to 30000001", "--seed 0", "dict card"):
        assert shown in text
        assert shown in page
    assert page.count("<svg") >= 5
    assert not re.search(r"(src|href)=|<script|https?://|@import", page)  # self-contained


def test_without_an_agent_a_recording_is_needed(copied: Path) -> None:
    dictionary = load(copied)
    other = Dictionary(replace(dictionary.cfg, model_hash="0" * 64), dictionary.tensors)
    other.save(copied.parent / "other")
    with pytest.raises(DictionaryError, match="--recording"):
        make_card(other)
    with pytest.raises(DictionaryMismatch, match="of the weights"):
        make_card(other, agent="cartpole", episodes=1)
    with pytest.raises(DictionaryError, match="never saved"):
        make_card(Dictionary(dictionary.cfg, dictionary.tensors))


def test_names_are_escaped_and_unknown_numbers_are_dashes() -> None:
    card = judge(load(registry.SHIPPED / "cartpole"), *(_of_cartpole(), _of_cartpole()))
    page = as_html(card | {"name": "<script>alert(1)</script>", "fvu": None})
    assert "<script>" not in page
    assert "| return recovery | – |" in as_markdown(card)


def test_a_language_models_card_says_what_is_kept_and_nothing_of_actions() -> None:
    card = json.loads((registry.SHIPPED / "smollm2-mlp15" / "card.json").read_text())
    text = as_markdown(card)
    assert "| cross-entropy, nats a token: clean, spliced, zeros, mean | 3.372, 3.395, 3.479, 3.441 |" in text
    assert "| of the loss that zeros in its place cost, recovered | 0.783 (95 %: 0.657 to 0.949) |" in text
    assert "action" not in text
    assert (registry.SHIPPED / "smollm2-mlp15" / "card.md").read_text() == text
    assert (registry.SHIPPED / "smollm2-mlp15" / "card.html").read_text() == as_html(card)


def _of_cartpole() -> Samples:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 64)).astype(np.float32)
    return Samples(x, x + 1, np.zeros(50, np.int64), "1:out", "3:out")
