"""Whether contributions foretell ablation: exact where it must be, below 1 where curvature is, its interval by episode."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

from interlatent_live.analyzer.dictionary import Dictionary, DictionaryConfig
from interlatent_live.analyzer.edit import Edit, edited
from interlatent_live.analyzer.effect import Effect
from interlatent_live.analyzer.registry import find, shipped
from interlatent_live.analyzer.samples import Samples
from interlatent_live.analyzer.why_card import agreement_with_ablation, mean_by_episode

WIDTH, FEATURES, K, ACTIONS = 6, 12, 4, 3


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def made() -> tuple[Dictionary, Samples]:
    g = torch.Generator().manual_seed(0)
    cfg = DictionaryConfig("t", "topk", WIDTH, WIDTH, FEATURES, "a", "b", k=K)
    shapes = {"W_enc": (WIDTH, FEATURES), "b_enc": (FEATURES,), "W_dec": (FEATURES, WIDTH), "b_dec": (WIDTH,)}
    dictionary = Dictionary(cfg, {name: torch.randn(*shape, generator=g) for name, shape in shapes.items()})
    x, y = (torch.randn(200, WIDTH, generator=g).numpy() for _ in range(2))
    return dictionary, Samples(x, y, np.repeat(np.arange(10), 20), "a", "b")


def head(*layers: nn.Module) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(*layers).requires_grad_(False)


def test_a_linear_rest_is_foretold_exactly() -> None:
    dictionary, held = made()
    found = agreement_with_ablation(dictionary, Effect(head(nn.Linear(WIDTH, ACTIONS)), "discrete"), held, frames=50)
    assert found["rank_correlation"]["mean"] == pytest.approx(1, abs=1e-6)
    assert found["rank_correlation"]["frames"] == 50
    assert 0 < found["of_action"]["mean"] < 1, "softmax is no line"
    clipped = agreement_with_ablation(dictionary, Effect(head(nn.Linear(WIDTH, ACTIONS)), "continuous", -0.1, 0.1), held, frames=50)
    assert clipped["rank_correlation"]["mean"] == pytest.approx(1, abs=1e-6)
    assert clipped["of_action"]["mean"] < 1


def test_behind_layers_it_equals_an_oracle_frame_by_frame() -> None:
    dictionary, held = made()
    rest = head(nn.Linear(WIDTH, 8), nn.Tanh(), nn.Linear(8, ACTIONS))
    found = agreement_with_ablation(dictionary, Effect(rest, "continuous"), held, frames=200)
    rho = []
    for x, y in zip(torch.from_numpy(held.x)[:, None], torch.from_numpy(held.y)[:, None], strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda v: rest(v)[0], y)[:, 0]  # type: ignore[no-untyped-call]
        codes = dictionary.codes(x)
        predicted, measured = [], []
        for feature, value in zip(codes.indices, codes.values, strict=True):
            predicted.append((-float(value) * jacobian @ dictionary.W_dec[int(feature)]).numpy())
            measured.append((rest(edited(dictionary, [Edit("ablate", feature=int(feature))], x, y)) - rest(y))[0].numpy())
        rho.append(float(spearmanr(np.concatenate(predicted), np.concatenate(measured)).statistic))
    assert found["rank_correlation"]["mean"] == pytest.approx(float(np.mean(rho)), abs=1e-6)
    assert 0.3 < found["rank_correlation"]["mean"] < 0.9999
    assert found["rank_correlation"]["low"] < found["rank_correlation"]["mean"] < found["rank_correlation"]["high"]
    again = agreement_with_ablation(dictionary, Effect(rest, "continuous"), held, frames=200)
    assert again == found, "the same frames, the same figures"


def test_a_rest_that_does_nothing_gives_null_and_not_0() -> None:
    dictionary, held = made()
    layer = nn.Linear(WIDTH, ACTIONS)
    nn.init.zeros_(layer.weight)
    silent = head(layer)
    found = agreement_with_ablation(dictionary, Effect(silent, "continuous"), held, frames=20)
    assert found["rank_correlation"] == {"mean": None, "low": None, "high": None, "frames": 0}


def test_the_interval_is_that_of_episodes_not_of_frames() -> None:
    episode = np.repeat(np.arange(4), 250)
    values = np.repeat([0.0, 1.0, 0.0, 1.0], 250)
    found = mean_by_episode(values, episode, 0)
    assert found["mean"] == 0.5
    assert found["low"] == 0.0
    assert found["high"] == 1.0
    assert mean_by_episode(values[:250], episode[:250], 0)["low"] is None, "one episode has no interval"


def test_shipped_cards_say_it() -> None:
    for dictionary in shipped():
        if dictionary.name not in ("cartpole", "humanoid"):
            continue
        assert dictionary.card is not None
        found = dictionary.card["attribution"]
        assert found["rank_correlation"]["frames"] == 1_000
        assert 0 < found["rank_correlation"]["low"] <= found["rank_correlation"]["mean"] <= found["rank_correlation"]["high"] <= 1 + 1e-9
        assert found["of_action"]["mean"] > 0.9


def test_a_card_is_amended_and_nothing_else_on_it_changes(tmp_path: Path) -> None:
    from interlatent_live.card import amend_card

    cartpole = find("cartpole")
    assert cartpole.path is not None
    folder = Path(shutil.copytree(cartpole.path, tmp_path / "cartpole"))
    before = json.loads((folder / "card.json").read_text())
    amended = amend_card(find(folder), episodes=2)
    after = json.loads((folder / "card.json").read_text())
    assert after == json.loads(json.dumps(amended))
    assert {k: v for k, v in after.items() if k != "attribution"} == {k: v for k, v in before.items() if k != "attribution"}
    assert after["attribution"]["rank_correlation"]["frames"] == 1_000
    assert "rank correlation" in (folder / "card.md").read_text()
    assert find(folder).hash == cartpole.hash
