"""Proximal policy optimisation in plain torch, for the trainers of the reference agents.

1. `envs` copies of an environment are stepped `horizon` times with actions sampled from the policy.
2. Advantages by generalised advantage estimation (Schulman et al., arXiv:1506.02438). An episode that was truncated,
   not terminated, bootstraps from the value of its last state; the autoreset rows of gymnasium's NEXT_STEP mode are
   no transitions and are left out.
3. Some epochs of minibatches on the clipped surrogate (Schulman et al., arXiv:1707.06347), half the squared error of
   the value, an entropy bonus, gradients clipped to norm 0.5, Adam with a rate that falls linearly to zero.

The policy is any module that gives (n, actions) logits and (n,) values; discrete actions only. On one CPU thread the
result is the same, bit for bit, for the same recipe on the same machine and build.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from safetensors.torch import save
from torch import Tensor, nn

from interlatent_live.stream.errors import AgentError

__all__ = ["ActorCritic", "Progress", "Recipe", "initialise", "learn", "write_checkpoint"]


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that determines the trained policy, on one machine and build. The defaults suit CartPole."""

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

    def __post_init__(self) -> None:
        if self.steps < self.envs * self.horizon:
            least = self.envs * self.horizon
            raise ValueError(f"steps is {self.steps}, less than one update of envs × horizon = {least}; raise steps")

    @property
    def updates(self) -> int:
        """Updates in all."""
        return self.steps // (self.envs * self.horizon)


@dataclass(frozen=True, slots=True)
class Progress:
    """After one update."""

    update: int
    """Counted from 1."""
    updates: int
    steps: int
    """Environment steps so far, autoreset rows included."""
    episode_return: float
    """Mean sum of the environment's own rewards over the episodes that ended in this rollout; NaN where none did."""
    loss: float
    """Of the last minibatch."""


class ActorCritic(nn.Module):
    """Two networks side by side: (n, k) observations to (n, actions) logits and (n,) values."""

    def __init__(self, actor: nn.Module, critic: nn.Module) -> None:
        super().__init__()
        self.actor, self.critic = actor, critic

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and values."""
        return self.actor(observation), self.critic(observation)[:, 0]


def initialise(network: nn.Module, generator: torch.Generator, last_gain: float) -> None:
    """Orthogonal weights of gain √2, the last layer's `last_gain`; biases 0. `network` on the CPU."""
    layers = [m for m in network.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    for layer in layers:
        nn.init.orthogonal_(layer.weight, last_gain if layer is layers[-1] else 2**0.5, generator=generator)
        assert layer.bias is not None
        nn.init.zeros_(layer.bias)


def learn(
    recipe: Recipe,
    policy: nn.Module,
    envs: VectorEnv[Any, Any, Any],
    generator: torch.Generator,
    *,
    options: dict[str, Any] | None = None,
    shape_reward: Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]] | None = None,
    device: str = "cpu",
    autocast: bool = False,
) -> Iterator[Progress]:
    """Train `policy` in place, one update at a time; stop early by leaving the iteration. Closes `envs` at the end.

    `generator`: on `device`, draws actions and minibatches. `options`: of the first `reset`. `shape_reward`: from the
    rewards of one step, (envs,), to those learned from. `autocast`: forward passes in bfloat16.
    """
    mode = envs.metadata.get("autoreset_mode", AutoresetMode.NEXT_STEP)
    if AutoresetMode(mode) is not AutoresetMode.NEXT_STEP:
        raise AgentError(f"the vector environment resets in mode {mode}; PPO here needs NEXT_STEP")
    optimiser = torch.optim.Adam(policy.parameters(), lr=recipe.learning_rate, eps=1e-5)
    first, _ = envs.reset(seed=recipe.seed, options=options)
    observation = torch.from_numpy(np.array(first)).to(device)
    shape = (recipe.horizon, recipe.envs)
    observations = torch.zeros((recipe.horizon, *observation.shape), dtype=observation.dtype, device=device)
    actions = torch.zeros(shape, dtype=torch.int64, device=device)
    log_probs, rewards, values, next_values = (torch.zeros(shape, device=device) for _ in range(4))
    alive, running = torch.zeros(shape, device=device), torch.zeros(shape, device=device)
    # `alive`: not terminated; `running`: neither terminated nor truncated
    valid = torch.zeros(shape, dtype=torch.bool, device=device)
    ended = np.zeros(recipe.envs, dtype=bool)
    totals = np.zeros(recipe.envs)

    def lighter() -> AbstractContextManager[Any]:
        return torch.autocast(torch.device(device).type, torch.bfloat16) if autocast else nullcontext()

    def judge(seen: Tensor) -> tuple[Tensor, Tensor]:
        with lighter():
            logits, value = policy(seen)
        return logits.float().log_softmax(-1), value.float()

    for update in range(recipe.updates):
        optimiser.param_groups[0]["lr"] = recipe.learning_rate * (1 - update / recipe.updates)
        returns: list[float] = []
        with torch.inference_mode():
            for t in range(recipe.horizon):
                observations[t] = observation
                valid[t] = torch.from_numpy(~ended)
                log_p, values[t] = judge(observation)
                action = torch.multinomial(log_p.exp(), 1, generator=generator)
                actions[t], log_probs[t] = action[:, 0], log_p.gather(1, action)[:, 0]
                following, reward, terminated, truncated, _ = envs.step(action[:, 0].cpu().numpy())
                totals = np.where(ended, 0.0, totals) + reward
                ended = terminated | truncated
                returns += totals[ended].tolist()
                shaped = reward if shape_reward is None else shape_reward(reward)
                rewards[t] = torch.from_numpy(np.asarray(shaped))
                alive[t], running[t] = torch.from_numpy(~terminated), torch.from_numpy(~ended)
                observation = torch.from_numpy(np.array(following)).to(device)
            next_values[:-1] = values[1:]
            next_values[-1] = judge(observation)[1]
            advantages = _advantages(recipe, rewards, values, next_values, alive, running)
        rows = valid.reshape(-1).nonzero()[:, 0]
        columns = (observations, actions, log_probs, advantages, advantages + values)
        batch = [column.reshape(-1, *column.shape[2:])[rows].clone() for column in columns]
        loss = torch.tensor(np.nan)
        for _ in range(recipe.epochs):
            order = torch.randperm(len(rows), generator=generator, device=device)
            for begin in range(0, len(order), recipe.minibatch):
                chosen = order[begin : begin + recipe.minibatch]
                loss = _loss(recipe, judge, *(x[chosen] for x in batch))
                optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                nn.utils.clip_grad_norm_(policy.parameters(), 0.5)
                optimiser.step()
        steps = (update + 1) * recipe.envs * recipe.horizon
        mean = float(np.mean(returns)) if returns else float("nan")
        yield Progress(update + 1, recipe.updates, steps, mean, float(loss.detach()))
    envs.close()


def _advantages(
    recipe: Recipe, rewards: Tensor, values: Tensor, next_values: Tensor, alive: Tensor, running: Tensor
) -> Tensor:
    """(horizon, envs) advantage estimates; `alive` cuts the bootstrap, `running` cuts the sum at an episode's end."""
    delta = rewards + recipe.gamma * next_values * alive - values
    advantages = torch.zeros_like(delta)
    following = torch.zeros_like(delta[0])
    for t in range(len(delta) - 1, -1, -1):
        following = delta[t] + recipe.gamma * recipe.gae_lambda * running[t] * following
        advantages[t] = following
    return advantages


def _loss(
    recipe: Recipe,
    judge: Callable[[Tensor], tuple[Tensor, Tensor]],
    observation: Tensor,
    action: Tensor,
    old_log_prob: Tensor,
    advantage: Tensor,
    target: Tensor,
) -> Tensor:
    log_p, value = judge(observation)
    ratio = (log_p.gather(1, action[:, None])[:, 0] - old_log_prob).exp()
    advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    surrogate = torch.minimum(ratio * advantage, ratio.clamp(1 - recipe.clip, 1 + recipe.clip) * advantage)
    entropy = -(log_p.exp() * log_p).sum(-1)
    value_error = (value - target).square()
    loss: Tensor = (-surrogate - recipe.entropy * entropy + 0.5 * value_error).mean()
    return loss


def write_checkpoint(
    path: Path, weights: dict[str, Tensor], recipe: Recipe, packages: Sequence[str] = ("torch", "gymnasium")
) -> None:
    """Write `weights` as safetensors, with the recipe and the versions of `packages` as metadata 'training' (JSON)."""
    # one entry, since safetensors does not keep the order of several
    training = json.dumps({"recipe": asdict(recipe), "versions": {name: version(name) for name in packages}})
    path.write_bytes(save(weights, metadata={"training": training}))
