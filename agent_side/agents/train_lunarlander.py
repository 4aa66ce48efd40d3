"""Train the LunarLander reference policy: proximal policy optimisation (`ppo`) on one thread, in a few minutes.

    python -m interlatent_live.agent_side.agents.train_lunarlander --seed 1

A separate value network; rewards are divided by 20 for it. An episode may last 1,000 steps, and one that hovers until
then was truncated: its last state keeps its value. The policy is judged greedily on 100 episodes.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import gymnasium
import numpy as np
import torch
from torch import nn

from interlatent_live.agent_side.agents import ppo
from interlatent_live.agent_side.agents.lunarlander import CHECKPOINT, greedy_returns, make_env, policy_network

__all__ = ["RECIPE", "SOLVED", "main", "train"]

SOLVED: Final = 200.0
"""Mean return that gymnasium calls solved."""

RECIPE: Final = ppo.Recipe(
    seed=1,
    steps=1_000_000,
    envs=32,
    horizon=256,
    epochs=4,
    minibatch=256,
    learning_rate=5e-4,
    gamma=0.999,
    gae_lambda=0.98,
    clip=0.2,
    entropy=0.01,
)
REWARD_SCALE: Final = 1 / 20


def train(recipe: ppo.Recipe, progress: bool = False) -> nn.Sequential:
    """Return the actor trained by `recipe`: (n, 8) float32 observations to (n, 4) logits."""
    generator = torch.Generator().manual_seed(recipe.seed)
    actor = policy_network()
    critic = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))
    ppo.initialise(actor, generator, last_gain=0.01)
    ppo.initialise(critic, generator, last_gain=1.0)
    make_env().close()  # imports Box2D with care
    envs = gymnasium.make_vec("LunarLander-v3", num_envs=recipe.envs, vectorization_mode="sync")
    learning = ppo.learn(recipe, ppo.ActorCritic(actor, critic), envs, generator, shape_reward=lambda r: r * REWARD_SCALE)
    for done in learning:
        if progress and done.update % 10 == 0:
            print(f"{done.steps} steps, mean return {done.episode_return:.0f}", file=sys.stderr)  # noqa: T201
    return actor


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, judge, write; print one line of JSON. Returns 1, writing nothing, when the policy falls short of 200."""
    parser = argparse.ArgumentParser(description="Train the LunarLander reference policy and write its checkpoint.")
    parser.add_argument("--seed", type=int, default=RECIPE.seed)
    parser.add_argument("--steps", type=int, default=RECIPE.steps, help="environment steps in all")
    parser.add_argument("--episodes", type=int, default=100, help="greedy episodes that judge the policy")
    parser.add_argument("--out", type=Path, default=CHECKPOINT, help="where the safetensors checkpoint goes")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    recipe = replace(RECIPE, seed=chosen.seed, steps=chosen.steps)
    begun = time.perf_counter()
    actor = train(recipe, progress=True)
    elapsed = time.perf_counter() - begun
    returns = greedy_returns(actor, seeds=range(chosen.episodes))
    solved = float(np.mean(returns)) >= SOLVED
    if solved:
        ppo.write_checkpoint(chosen.out, actor.state_dict(), recipe)
    result = {
        "seconds": round(elapsed, 1),
        "mean_return": float(np.mean(returns)),
        "min_return": min(returns),
        "share_solved": float(np.mean(np.array(returns) >= SOLVED)),
        "written": str(chosen.out) if solved else None,
    }
    print(json.dumps(result))  # noqa: T201  the command's answer
    return 0 if solved else 1


if __name__ == "__main__":
    raise SystemExit(main())
