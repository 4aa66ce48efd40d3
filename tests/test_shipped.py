from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from interlatent_live.agent_side.agents import AGENTS
from interlatent_live.agent_side.weights import weights_hash
from interlatent_live.analyzer import registry
from interlatent_live.stream.manifest import Manifest, TapPointSpec


@pytest.mark.parametrize("name", ["cartpole", "humanoid", "mspacman"])
def test_a_dictionary_is_of_its_agents_weights_and_tap_points(name: str) -> None:
    agent = AGENTS[name]
    dictionary = registry.find(agent.dictionary)
    cfg, card = dictionary.cfg, dictionary.card
    assert card is not None
    assert (dictionary.name, cfg.model_hash) == (name, weights_hash(agent.make_policy()))
    assert {cfg.input, cfg.output} <= set(agent.tap_points)
    widths = {cfg.input: cfg.d_in, cfg.output: cfg.d_out}
    points = tuple(TapPointSpec(point, "float32", (width,)) for point, width in widths.items())
    stream = Manifest("r", "b", 0, 0, tap_points=points, weights_hash=cfg.model_hash)
    assert [d.hash for d in registry.match(stream)] == [dictionary.hash]
    assert {"seed", "command"} <= set(cfg.provenance)
    assert dictionary.path is not None
    assert sum(file.stat().st_size for file in Path(dictionary.path).iterdir()) <= 2_000_000


def test_they_are_what_ships() -> None:
    names = [d.name for d in registry.shipped()]
    small = {f"cartpole-reinforce-{latents}" for latents in (2, 4, 8)} | {"smollm2-mlp15"}
    least = {"cartpole", "cartpole-reinforce", "humanoid", "mspacman"} | small
    assert least <= set(names) <= {agent.dictionary for agent in AGENTS.values()} | small


@pytest.mark.parametrize(("name", "fvu", "l0"), [("cartpole", 0.02, 8), ("humanoid", 0.05, 16)])
def test_their_cards_reach_what_was_asked(name: str, fvu: float, l0: float) -> None:
    card = registry.find(name).card
    assert card is not None
    assert card["fvu"] <= fvu
    assert card["l0"] <= l0
    assert card["fvu"] <= card["baselines"]["pca"]["fvu"] / 3
    assert card["dead_share"] <= 0.05
    recovery = card["return_recovery"]
    assert recovery["episodes"] >= 100
    assert recovery["mean"] >= (0.99 if name == "cartpole" else 0.95)
    assert recovery["low"] >= 0.9
    assert all(baseline["return_recovery"] is not None for baseline in card["baselines"].values())
    path = registry.find(name).path
    assert path is not None
    assert {"card.md", "card.html"} <= {file.name for file in path.iterdir()}
    for measure in ("fvu", "l0"):
        values = list(card["quantiles"][measure].values())
        assert values == sorted(values)
        assert all(math.isfinite(v) for v in values)


def test_mspacmans_card_is_measured_in_life_and_knows_its_critic() -> None:
    card = registry.find("mspacman").card
    assert card is not None
    assert card["fvu"] <= 0.02
    assert card["l0"] <= 16
    assert card["fvu"] < card["baselines"]["pca"]["fvu"] / 2
    recovery = card["return_recovery"]
    assert recovery["episodes"] >= 40
    assert recovery["low"] >= 0.9
    assert card["action_kl"] < 0.01
    assert card["value_error"] < 0.1 * card["value_deviation"]


def test_the_cartpole_dictionary_reconstructs_an_episode_it_never_saw() -> None:
    agent = AGENTS["cartpole"]
    policy, env, dictionary = agent.make_policy(), agent.make_env(), registry.find("cartpole")
    captured: dict[str, list[Any]] = {dictionary.cfg.input: [], dictionary.cfg.output: []}
    for point, kept in captured.items():
        module = policy.get_submodule(point.split(":")[0])
        module.register_forward_hook(lambda _m, _i, out, kept=kept: kept.append(out[0].clone()) and None)
    observation, _ = env.reset(seed=123_456, options=dict(agent.reset_options or {}))
    over = False
    while not over:
        observation, _, terminated, truncated, _ = env.step(agent.act(policy, np.asarray(observation)))
        over = terminated or truncated
    env.close()
    with torch.inference_mode():
        x, y = (torch.stack(kept) for kept in captured.values())
    codes, sse, sst = dictionary.measure(x, y)
    assert sst is not None
    assert sse / sst <= 0.02
    assert codes.active / codes.rows <= 8
