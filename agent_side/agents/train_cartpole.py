"""Train the CartPole reference policy: proximal policy optimisation (`ppo`) on one thread, in seconds.

    python -m interlatent_live.agent_side.agents.train_cartpole --seed 1

32 environments of gymnasium's vectorised CartPole-v1, a separate value network. The policy is judged greedily, from
gymnasium's start and from its own, and written with its recipe as metadata.

Episodes start with each of the four state variables uniform within ±`start` (gymnasium's own is ±0.05), so that the
policy has seen a pole that is about to fall and recovers it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import gymnasium
import numpy as np
import torch
from torch import nn

from interlatent_live.agent_side.agents import ppo
from interlatent_live.agent_side.agents.cartpole import CHECKPOINT, greedy_returns, policy_network

__all__ = ["Recipe", "main", "train"]


@dataclass(frozen=True, slots=True)
class Recipe(ppo.Recipe):
    """Everything that determines the trained policy, on one machine and build."""

    start: float = 0.2
    """Half-width of the uniform start of each state variable, in m, m/s, rad and rad/s."""


def train(recipe: Recipe) -> nn.Sequential:
    """Return the actor trained by `recipe`: (n, 4) float32 observations to (n, 2) logits."""
    generator = torch.Generator().manual_seed(recipe.seed)
    actor, critic = policy_network(), _value_network()
    ppo.initialise(actor, generator, last_gain=0.01)
    ppo.initialise(critic, generator, last_gain=1.0)
    envs = gymnasium.make_vec("CartPole-v1", num_envs=recipe.envs, vectorization_mode="vector_entry_point")
    start = {"low": -recipe.start, "high": recipe.start}
    for _ in ppo.learn(recipe, ppo.ActorCritic(actor, critic), envs, generator, options=start):
        pass
    return actor


def _value_network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, judge, write; print one line of JSON. Returns 1, writing nothing, when the policy falls short of 500."""
    parser = argparse.ArgumentParser(description="Train the CartPole reference policy and write its checkpoint.")
    parser.add_argument("--seed", type=int, default=Recipe().seed)
    parser.add_argument("--steps", type=int, default=Recipe().steps, help="environment steps in all")
    parser.add_argument("--out", type=Path, default=CHECKPOINT, help="where the safetensors checkpoint goes")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    recipe = Recipe(seed=chosen.seed, steps=chosen.steps)
    begun = time.perf_counter()
    actor = train(recipe)
    elapsed = time.perf_counter() - begun
    returns = greedy_returns(actor, seeds=range(20))
    wide = greedy_returns(actor, seeds=range(20), start=recipe.start)
    result = {
        "seconds": round(elapsed, 1),
        "mean_return": float(np.mean(returns)),
        "min_return": min(returns),
        "mean_return_wide_start": float(np.mean(wide)),
        "min_return_wide_start": min(wide),
    }
    solved = min(returns) == 500
    if solved:
        ppo.write_checkpoint(chosen.out, actor.state_dict(), recipe)
    print(json.dumps({**result, "written": str(chosen.out) if solved else None}))  # noqa: T201  the command's answer
    return 0 if solved else 1


if __name__ == "__main__":
    raise SystemExit(main())
