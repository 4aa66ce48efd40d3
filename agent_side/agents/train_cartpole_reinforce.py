"""Makes `cartpole-reinforce`: REINFORCE (Williams 1992), stopped half-way, in seconds on one thread.

    python -m interlatent_live.agent_side.agents.train_cartpole_reinforce --seed 0

1. Each update plays `envs` whole episodes and takes one Adam step along the sum of log-probabilities weighted by the
   discounted return to go, from which the mean over the episodes still running at that step is subtracted and which is
   divided by the standard deviation.
2. After an update whose own episodes came near the target, the policy is judged on `judged` episodes from seeds that
   training never uses; within `tolerance` of the target, it is judged again on as many others (the first look chose it, so
   it flatters), and kept where it is within `tolerance` there too. That second figure is what is written down.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import nn

from interlatent_live.agent_side.agents.cartpole_batch import LIMIT, CartPoleBatch
from interlatent_live.agent_side.agents.cartpole_reinforce import CHECKPOINT, policy_network, sampled_returns

__all__ = ["Recipe", "main", "train"]

_LOOK, _CONFIRM = 100_000_000, 200_000_000
"""First seeds of the episodes that choose when to stop, and of those that then judge."""
_NEAR = 60.0
"""How far an update's own episodes may be from the target for the policy to be judged: their mean is off by 20 or so."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that determines the policy, on one machine and build."""

    seed: int = 0
    """Of the initial weights, the episodes and the drawn actions."""
    target: float = 261.0
    """Mean return at which to stop, of at most 500."""
    tolerance: float = 3.0
    """How far from it the judgements may be."""
    judged: int = 4000
    """Episodes of each judgement."""
    envs: int = 32
    """Episodes of an update."""
    updates: int = 2000
    """The most updates."""
    learning_rate: float = 1e-3
    """Of Adam."""
    gamma: float = 0.99
    """Discount per step."""


def train(recipe: Recipe) -> tuple[nn.Sequential, dict[str, Any]] | None:
    """The policy and what was found of it; None where the target was never met."""
    torch.manual_seed(recipe.seed)
    policy = policy_network()
    generator = np.random.default_rng([recipe.seed, 2])
    optimiser = torch.optim.Adam(policy.parameters(), lr=recipe.learning_rate)
    looks = 0
    for update in range(1, recipe.updates + 1):
        first = recipe.seed * 1_000_000 + update * recipe.envs
        mean = _update(policy, optimiser, recipe, range(first, first + recipe.envs), generator)
        if abs(mean - recipe.target) > _NEAR:
            continue
        looks += 1
        seen = sampled_returns(policy, range(_LOOK, _LOOK + recipe.judged)).mean()
        if abs(seen - recipe.target) > recipe.tolerance:
            continue
        returns = sampled_returns(policy, range(_CONFIRM, _CONFIRM + recipe.judged))
        if abs(returns.mean() - recipe.target) <= recipe.tolerance:
            found = {"mean_return": float(returns.mean()), "standard_error": float(returns.std(ddof=1) / len(returns) ** 0.5)}
            return policy.eval(), {**found, "episodes": len(returns), "updates": update, "looks": looks}
    return None


def _update(
    policy: nn.Sequential, optimiser: torch.optim.Optimizer, recipe: Recipe, seeds: Sequence[int], generator: np.random.Generator
) -> float:
    """One step of the optimiser; the mean return of its episodes."""
    batch = CartPoleBatch(seeds)
    log_chances, running = [], []
    while batch.running.any():
        log_p = policy(torch.from_numpy(batch.observation)).log_softmax(dim=1)
        right = generator.random(len(seeds)) >= log_p[:, 0].detach().exp().numpy()
        log_chances.append(log_p[torch.arange(len(seeds)), torch.from_numpy(right.astype(np.int64))])
        running.append(batch.running.copy())
        batch.step(right.astype(np.int64))
    alive = np.array(running, np.float64)  # (steps, n)
    to_go = np.zeros_like(alive)
    following = np.zeros(len(seeds))
    for t in range(len(alive) - 1, -1, -1):
        following = alive[t] * (1 + recipe.gamma * following)
        to_go[t] = following
    advantage = (to_go - to_go.sum(axis=1, keepdims=True) / alive.sum(axis=1, keepdims=True)) * alive
    advantage /= advantage[alive > 0].std() + 1e-8
    loss = -(torch.stack(log_chances) * torch.from_numpy(advantage.astype(np.float32))).sum() / float(alive.sum())
    optimiser.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimiser.step()
    return float(batch.steps.mean())


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, judge, write; print one line of JSON. Returns 1, writing nothing, when the target was not met."""
    parser = argparse.ArgumentParser(description=f"Train CartPole by REINFORCE until its mean return, of at most {LIMIT}, is the target.")
    parser.add_argument("--seed", type=int, default=Recipe().seed)
    parser.add_argument("--updates", type=int, default=Recipe().updates, help="the most updates")
    parser.add_argument("--judged", type=int, default=Recipe().judged, help="episodes of each judgement")
    parser.add_argument("--out", type=Path, default=CHECKPOINT, help="where the safetensors checkpoint goes")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    recipe = Recipe(seed=chosen.seed, updates=chosen.updates, judged=chosen.judged)
    begun = time.perf_counter()
    result = train(recipe)
    answer: dict[str, Any] = {"seconds": round(time.perf_counter() - begun, 1), "written": None}
    if result is not None:
        policy, found = result
        versions = {name: version(name) for name in ("torch", "gymnasium")}
        # one entry, since safetensors does not keep the order of several
        training = json.dumps({"recipe": asdict(recipe), "found": found, "versions": versions})
        chosen.out.write_bytes(save(dict(policy.state_dict()), metadata={"training": training}))
        answer |= {**found, "written": str(chosen.out)}
    print(json.dumps(answer))  # noqa: T201  the command's answer
    return 0 if result is not None else 1


if __name__ == "__main__":
    raise SystemExit(main())
