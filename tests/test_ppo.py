"""The shared trainer: its advantages equal a plain sum, autoreset rows teach nothing, wrong modes are refused."""

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from torch import nn

from interlatent_live.agent_side.agents.ppo import ActorCritic, Recipe, _advantages, learn
from interlatent_live.stream.errors import AgentError

SMALL = Recipe(steps=2 * 4 * 16, envs=4, horizon=16, minibatch=32)


def _policy() -> ActorCritic:
    torch.manual_seed(0)
    return ActorCritic(nn.Linear(4, 2), nn.Linear(4, 1))


def test_with_lambda_one_advantages_are_discounted_returns_minus_values() -> None:
    recipe = Recipe(steps=128 * 32, gae_lambda=1.0, gamma=0.9)
    random = torch.Generator().manual_seed(0)
    rewards, values = torch.rand(6, 1, generator=random), torch.rand(6, 1, generator=random)
    next_values = torch.cat([values[1:], torch.tensor([[0.3]])])
    alive, running = torch.ones(6, 1), torch.ones(6, 1)
    alive[2], running[2] = 0, 0  # terminated
    running[4] = 0  # truncated: its next value still counts
    found = _advantages(recipe, rewards, values, next_values, alive, running)[:, 0]
    r, v, after = (x[:, 0].tolist() for x in (rewards, values, next_values))
    returns = [r[0] + 0.9 * (r[1] + 0.9 * r[2]), r[1] + 0.9 * r[2], r[2], r[3] + 0.9 * (r[4] + 0.9 * after[4])]
    returns += [r[4] + 0.9 * after[4], r[5] + 0.9 * after[5]]
    np.testing.assert_allclose(found.numpy(), np.array(returns) - v, rtol=1e-5)


def test_learning_is_the_same_twice_and_changes_every_weight() -> None:
    learned = []
    for _ in range(2):
        policy, envs = _policy(), gymnasium.make_vec("CartPole-v1", num_envs=4, vectorization_mode="vector_entry_point")
        done = list(learn(SMALL, policy, envs, torch.Generator().manual_seed(1)))
        learned.append({name: tensor.clone() for name, tensor in policy.state_dict().items()})
        assert [(p.update, p.updates, p.steps) for p in done] == [(1, 2, 64), (2, 2, 128)]
    first = _policy().state_dict()
    for name in first:
        assert torch.equal(learned[0][name], learned[1][name])
        assert not torch.equal(learned[0][name], first[name])


def test_the_environments_own_rewards_are_reported_and_the_shaped_ones_learned() -> None:
    envs = gymnasium.make_vec("CartPole-v1", num_envs=4, vectorization_mode="vector_entry_point")
    seen: list[np.ndarray[Any, Any]] = []

    def nothing(reward: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        seen.append(reward)
        return 0 * reward

    for done in learn(SMALL, _policy(), envs, torch.Generator().manual_seed(1), shape_reward=nothing):
        if np.isfinite(done.episode_return):
            assert done.episode_return >= 8  # no pole falls faster
    assert len(seen) == 32


def test_environments_that_reset_otherwise_are_refused() -> None:
    envs = gymnasium.make_vec(
        "CartPole-v1", num_envs=4, vectorization_mode="sync", vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP}
    )
    with pytest.raises(AgentError, match="needs NEXT_STEP"):
        next(learn(SMALL, _policy(), envs, torch.Generator()))
    envs.close()
