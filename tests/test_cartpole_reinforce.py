"""The half-trained CartPole policy returns what it says; many episodes at once are gymnasium's own, bit for bit."""

import json
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from safetensors import safe_open

from interlatent_live.agent_side.agents import AGENTS
from interlatent_live.agent_side.agents.cartpole_batch import LIMIT, CartPoleBatch
from interlatent_live.agent_side.agents.cartpole_reinforce import (
    CHECKPOINT,
    act,
    make_policy,
    policy_network,
    sample,
    sampled_returns,
)
from interlatent_live.agent_side.agents.reference import episode_returns
from interlatent_live.agent_side.agents.train_cartpole_reinforce import Recipe, main


@pytest.mark.parametrize("options", [None, {"low": -0.2, "high": 0.2}])
def test_a_batch_is_gymnasiums_own_episodes_bit_for_bit(options: dict[str, float] | None) -> None:
    seeds = range(1000, 1012)
    noise = np.random.default_rng(0)
    batch = CartPoleBatch(seeds, options)
    observations, actions = [batch.observation], []
    while batch.running.any():
        seen = observations[-1]
        clumsy = 2.0 * noise.standard_normal(len(seeds)) * (np.arange(len(seeds)) % 2)
        actions.append((seen[:, 2] + 0.3 * seen[:, 3] + 0.05 * seen[:, 0] + 0.1 * seen[:, 1] + clumsy > 0).astype(np.int64))
        batch.step(actions[-1])
        observations.append(batch.observation)
    assert batch.steps.max() == LIMIT > batch.steps.min()
    for i, seed in enumerate(seeds):
        env = gymnasium.make("CartPole-v1")
        observation, _ = env.reset(seed=seed, options=options)
        assert np.array_equal(observation, observations[0][i])
        terminated = truncated = False
        steps = 0
        while not (terminated or truncated):
            observation, reward, terminated, truncated, _ = env.step(actions[steps][i])
            steps += 1
            assert reward == 1
            assert np.array_equal(observation, observations[steps][i])
        assert (steps, terminated) == (batch.steps[i], batch.terminated[i])
        assert np.array_equal(observations[-1][i], observation)
        env.close()


def test_a_row_that_is_over_earns_nothing() -> None:
    batch = CartPoleBatch([0, 1])
    earned = sum(batch.step(np.array([1, 1])) for _ in range(50))
    assert not batch.running.any()
    assert np.array_equal(earned, batch.steps)


def test_the_mean_return_of_2000_sampled_episodes_is_261() -> None:
    returns = sampled_returns(make_policy(), range(500_000_000, 500_002_000))
    assert abs(returns.mean() - 261) <= 8


@pytest.mark.slow
def test_acting_by_checksum_returns_the_same() -> None:
    agent = AGENTS["cartpole-reinforce"]
    returns = np.array(episode_returns(agent.make_env(), agent.act, make_policy(), range(400)))
    assert abs(returns.mean() - 262.9) <= 4 * returns.std() / 20


def test_drawn_actions_follow_the_distribution_and_repeat() -> None:
    policy = make_policy()
    observation = np.array([0.3, -0.2, 0.02, 0.1], np.float32)
    with torch.inference_mode():
        right = float(policy(torch.from_numpy(observation)[None]).softmax(1)[0, 1])
    numbers = (np.arange(2000) + 0.5) / 2000
    actions = sample(policy, np.repeat(observation[None], 2000, 0), numbers)
    assert abs(actions.mean() - right) <= 1 / 1000
    assert 0.01 < right < 0.99
    near = [observation + np.float32(1e-4 * i) for i in range(300)]
    drawn = [act(policy, o) for o in near]
    assert drawn == [act(policy, o) for o in near]
    assert abs(np.mean(drawn) - right) < 0.15


def test_the_checkpoint_is_small_and_carries_its_recipe_and_its_judgement() -> None:
    assert CHECKPOINT.stat().st_size <= 100_000
    with safe_open(CHECKPOINT, framework="numpy") as file:
        training = json.loads(file.metadata()["training"])
    assert Recipe(**training["recipe"]) == Recipe()
    assert training["found"]["episodes"] >= 2000
    assert abs(training["found"]["mean_return"] - 261) <= 8


def test_a_target_that_was_not_met_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    try:
        assert main(["--updates", "2", "--out", str(tmp_path / "weak.safetensors")]) == 1
    finally:
        torch.set_num_threads(threads)
    assert json.loads(capsys.readouterr().out)["written"] is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_trainer_makes_such_a_policy_of_another_seed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    try:
        assert main(["--seed", "1", "--out", str(tmp_path / "policy.safetensors")]) == 0
    finally:
        torch.set_num_threads(threads)
    answer = json.loads(capsys.readouterr().out)
    assert abs(answer["mean_return"] - 261) <= 8
    from safetensors.torch import load_file

    policy = policy_network()
    policy.load_state_dict(load_file(tmp_path / "policy.safetensors"))
    assert abs(sampled_returns(policy, range(2000)).mean() - 261) <= 8
