"""Train the CartPole reference policy: proximal policy optimisation in plain torch, on one thread, in seconds.

    python -m interlatent_live.agent_side.agents.train_cartpole --seed 1

1. 32 environments of gymnasium's vectorised CartPole-v1 are stepped 128 times with actions sampled from the policy.
2. Advantages by generalised advantage estimation (Schulman et al., arXiv:1506.02438). An episode that was truncated,
   not terminated, bootstraps from the value of its last state; the autoreset rows of gymnasium's NEXT_STEP mode are
   no transitions and are left out.
3. Four epochs of minibatches on the clipped surrogate (Schulman et al., arXiv:1707.06347), a separate value network,
   an entropy bonus, Adam with a rate that falls linearly to zero.
4. The policy is judged greedily, from gymnasium's start and from its own, and written with its recipe as metadata.

Episodes start with each of the four state variables uniform within ±`start` (gymnasium's own is ±0.05), so that the
policy has seen a pole that is about to fall and recovers it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import gymnasium
import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn

from interlatent_live.agent_side.agents.cartpole import CHECKPOINT, greedy_returns, policy_network

__all__ = ["Recipe", "main", "train"]


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that determines the trained policy, on one machine and build."""

    seed: int = 1
    """Of the environments, the initial weights and the sampling."""
    steps: int = 400_000
    """Environment steps in all, autoreset rows included."""
    envs: int = 32
    """Environments stepped together."""
    horizon: int = 128
    """Steps of each environment between two updates."""
    epochs: int = 4
    """Passes over the collected steps per update."""
    minibatch: int = 1024
    """Rows per gradient step."""
    learning_rate: float = 2.5e-3
    """Of Adam at the start; falls linearly to 0."""
    gamma: float = 0.99
    """Discount per step."""
    gae_lambda: float = 0.95
    """Decay of the advantage estimator."""
    clip: float = 0.2
    """Bound on the change of the probability ratio."""
    entropy: float = 0.005
    """Weight of the entropy bonus."""
    start: float = 0.2
    """Half-width of the uniform start of each state variable, in m, m/s, rad and rad/s."""

    def __post_init__(self) -> None:
        if self.steps < self.envs * self.horizon:
            least = self.envs * self.horizon
            raise ValueError(f"steps is {self.steps}, less than one update of envs × horizon = {least}; raise steps")


def train(recipe: Recipe) -> nn.Sequential:
    """Return the actor trained by `recipe`: (n, 4) float32 observations to (n, 2) logits."""
    generator = torch.Generator().manual_seed(recipe.seed)
    actor, critic = policy_network(), _value_network()
    _initialise(actor, generator, last_gain=0.01)
    _initialise(critic, generator, last_gain=1.0)
    parameters = [*actor.parameters(), *critic.parameters()]
    optimiser = torch.optim.Adam(parameters, lr=recipe.learning_rate, eps=1e-5)
    envs = gymnasium.make_vec("CartPole-v1", num_envs=recipe.envs, vectorization_mode="vector_entry_point")
    first, _ = envs.reset(seed=recipe.seed, options={"low": -recipe.start, "high": recipe.start})
    observation = torch.from_numpy(first)
    shape = (recipe.horizon, recipe.envs)
    observations = torch.zeros(*shape, 4)
    actions = torch.zeros(shape, dtype=torch.int64)
    log_probs, rewards, values, next_values = (torch.zeros(shape) for _ in range(4))
    alive, running = torch.zeros(shape), torch.zeros(shape)  # not terminated; neither terminated nor truncated
    valid = torch.zeros(shape, dtype=torch.bool)
    ended = np.zeros(recipe.envs, dtype=bool)
    updates = recipe.steps // (recipe.envs * recipe.horizon)
    for update in range(updates):
        optimiser.param_groups[0]["lr"] = recipe.learning_rate * (1 - update / updates)
        with torch.inference_mode():
            for t in range(recipe.horizon):
                observations[t] = observation
                valid[t] = torch.from_numpy(~ended)
                log_p = actor(observation).log_softmax(-1)
                action = torch.multinomial(log_p.exp(), 1, generator=generator)
                actions[t], log_probs[t] = action[:, 0], log_p.gather(1, action)[:, 0]
                following, reward, terminated, truncated, _ = envs.step(action[:, 0].numpy())
                ended = terminated | truncated
                rewards[t] = torch.from_numpy(reward)
                alive[t], running[t] = torch.from_numpy(~terminated), torch.from_numpy(~ended)
                observation = torch.from_numpy(following)
                next_values[t] = critic(observation)[:, 0]
            values[0] = critic(observations[0])[:, 0]
            values[1:] = next_values[:-1]
            advantages = _advantages(recipe, rewards, values, next_values, alive, running)
        rows = valid.reshape(-1).nonzero()[:, 0]
        columns = (observations, actions, log_probs, advantages, advantages + values)
        batch = [column.reshape(-1, *column.shape[2:])[rows].clone() for column in columns]
        for _ in range(recipe.epochs):
            order = torch.randperm(len(rows), generator=generator)
            for begin in range(0, len(order), recipe.minibatch):
                chosen = order[begin : begin + recipe.minibatch]
                loss = _loss(recipe, actor, critic, *(x[chosen] for x in batch))
                optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                nn.utils.clip_grad_norm_(parameters, 0.5)
                optimiser.step()
    envs.close()
    return actor


def _advantages(
    recipe: Recipe, rewards: Tensor, values: Tensor, next_values: Tensor, alive: Tensor, running: Tensor
) -> Tensor:
    """(horizon, envs) advantage estimates; `alive` cuts the bootstrap, `running` cuts the sum at an episode's end."""
    delta = rewards + recipe.gamma * next_values * alive - values
    advantages = torch.zeros_like(delta)
    following = torch.zeros(delta.shape[1])
    for t in range(len(delta) - 1, -1, -1):
        following = delta[t] + recipe.gamma * recipe.gae_lambda * running[t] * following
        advantages[t] = following
    return advantages


def _loss(
    recipe: Recipe,
    actor: nn.Module,
    critic: nn.Module,
    observation: Tensor,
    action: Tensor,
    old_log_prob: Tensor,
    advantage: Tensor,
    target: Tensor,
) -> Tensor:
    log_p = actor(observation).log_softmax(-1)
    ratio = (log_p.gather(1, action[:, None])[:, 0] - old_log_prob).exp()
    advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    surrogate = torch.minimum(ratio * advantage, ratio.clamp(1 - recipe.clip, 1 + recipe.clip) * advantage)
    entropy = -(log_p.exp() * log_p).sum(-1)
    value_error = (critic(observation)[:, 0] - target).square()
    loss: Tensor = (-surrogate - recipe.entropy * entropy + 0.5 * value_error).mean()
    return loss


def _value_network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))


def _initialise(network: nn.Sequential, generator: torch.Generator, last_gain: float) -> None:
    layers = [m for m in network if isinstance(m, nn.Linear)]
    for layer in layers:
        nn.init.orthogonal_(layer.weight, last_gain if layer is layers[-1] else 2**0.5, generator=generator)
        nn.init.zeros_(layer.bias)


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
        versions = {"torch": torch.__version__, "gymnasium": gymnasium.__version__}
        training = json.dumps({"recipe": asdict(recipe), "versions": versions})  # one entry: their order is not kept
        chosen.out.write_bytes(save(actor.state_dict(), metadata={"training": training}))
    print(json.dumps({**result, "written": str(chosen.out) if solved else None}))  # noqa: T201  the command's answer
    return 0 if solved else 1


if __name__ == "__main__":
    raise SystemExit(main())
