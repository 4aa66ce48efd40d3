"""`cartpole`: gymnasium's CartPole-v1, balanced by a policy that `train_cartpole` makes in seconds.

The policy is a `torch.nn.Sequential` of two hidden layers of 64 tanh units; it reads the four state variables and
scores the two actions, of which the better-scored one is taken. With gymnasium's own start (each state variable
uniform within ±0.05) it returns 500 of 500, and there is little to see: the pole stands from the first step to the
last. So the reference agent starts every episode with the state variables within ±0.2 (`RESET_OPTIONS`, the `options`
of gymnasium's own `reset`; the failing angle is 0.2095 rad), the policy was trained from such starts, and the pole is
often falling when an episode begins. It returns 500 from there too. Nothing else differs from CartPole-v1.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from interlatent_live.agent_side.agents.reference import ReferenceAgent, episode_returns, require, trained
from interlatent_live.agent_side.metrics import Metric, Transition, terms

if TYPE_CHECKING:
    import gymnasium
    import numpy as np
    import numpy.typing as npt
    from torch import nn

__all__ = [
    "CARTPOLE",
    "CHECKPOINT",
    "METRICS",
    "RESET_OPTIONS",
    "STEP_PERIOD_S",
    "act",
    "greedy_returns",
    "make_env",
    "make_policy",
    "policy_network",
]

CHECKPOINT: Final = Path(__file__).parent / "assets" / "cartpole.safetensors"
"""The trained policy: tensors '0.weight' … '4.bias', and the recipe of its training as metadata 'training' (JSON)."""

RESET_OPTIONS: Final[Mapping[str, Any]] = {"low": -0.2, "high": 0.2}
"""Bounds of the uniform start of each state variable, in m, m/s, rad and rad/s."""

STEP_PERIOD_S: Final = 0.02
"""The environment's integration step, in seconds: 50 Hz."""


def policy_network() -> nn.Sequential:
    """The untrained actor: (n, 4) float32 observations to (n, 2) logits; '1:out' and '3:out' are its hidden layers."""
    require("cartpole", "torch")
    from torch import nn

    return nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 2))


def make_policy() -> nn.Sequential:
    """The trained actor, from the checkpoint that ships with the package."""
    return trained("cartpole", CHECKPOINT, policy_network())


def make_env(render: bool = False) -> gymnasium.Env[Any, Any]:
    """CartPole-v1; with `render` its pictures are (400, 600, 3), drawn by pygame without a window."""
    require("cartpole", "gymnasium")
    import gymnasium

    if render:
        # pygame greets on standard output, where results go; SDL complains on standard error where there is no display
        os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
        if not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
            os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
        require("cartpole", "pygame")
    return gymnasium.make("CartPole-v1", render_mode="rgb_array" if render else None)


def act(policy: nn.Module, observation: npt.NDArray[np.float32]) -> int:
    """0 (push left) or 1 (push right): the better-scored action."""
    import torch

    with torch.inference_mode():
        return int(policy(torch.from_numpy(observation)[None]).argmax())


def greedy_returns(policy: nn.Module, seeds: Iterable[int], start: float = 0.05) -> list[float]:
    """Return of one greedy episode per seed, each state variable starting within ±`start`; 500 is the most there is."""
    return episode_returns(make_env(), act, policy, seeds, {"low": -start, "high": start})


def _angular_acceleration(transition: Transition) -> float:
    """What the step did to the pole, in rad/s²: its mean over the step."""
    return float(transition.next_observation[3] - transition.observation[3]) / STEP_PERIOD_S


METRICS: Final = (
    *(terms("CartPole-v1") or ()),
    Metric(
        "pole_angular_acceleration",
        _angular_acceleration,
        unit="rad/s²",
        scope="transition",
        description="Change of the pole's angular velocity over the step that followed, by the step's time.",
    ),
)
"""The four state variables, which are the observation, and one number that needs the step's outcome."""

CARTPOLE: Final = ReferenceAgent(
    name="cartpole",
    environment="CartPole-v1",
    description="A cart balances a pole: 4-64-64-2 tanh units, trained by PPO to return 500 of 500.",
    step_period_s=STEP_PERIOD_S,
    make_env=make_env,
    make_policy=make_policy,
    act=act,
    tap_points=("1:out", "3:out"),
    metrics=METRICS,
    observation_names=("cart_position", "cart_velocity", "pole_angle", "pole_angular_velocity"),
    action_names=("left", "right"),
    dictionary="cartpole",
    reset_options=RESET_OPTIONS,
)
