"""`lunarlander`: gymnasium's LunarLander-v3, landed by a policy that `train_lunarlander` makes in a few minutes.

The policy is a `torch.nn.Sequential` of two hidden layers of 64 tanh units; it reads the eight numbers of the state and
scores the four engines' choices, of which the best-scored one is taken. 200 is what gymnasium calls solved; of 100
starts it returned 119 to 305.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from interlatent_live.agent_side.agents.reference import ReferenceAgent, episode_returns, require, trained
from interlatent_live.agent_side.metrics import Metric

if TYPE_CHECKING:
    import gymnasium
    import numpy as np
    import numpy.typing as npt
    from torch import nn

__all__ = [
    "CHECKPOINT",
    "LUNARLANDER",
    "METRICS",
    "STEP_PERIOD_S",
    "act",
    "greedy_returns",
    "make_env",
    "make_policy",
    "policy_network",
]

CHECKPOINT: Final = Path(__file__).parent / "assets" / "lunarlander.safetensors"
"""The trained policy: tensors '0.weight' … '4.bias', and the recipe of its training as metadata 'training' (JSON)."""

STEP_PERIOD_S: Final = 0.02
"""Simulated time of one step, in seconds: 50 Hz."""

METRICS: Final = (
    Metric("pad_offset", 0, unit="10 m", description="Horizontal position; the pad's middle is 0, right is positive."),
    Metric("altitude", 1, unit="20/3 m", description="Height of the body over where it rests when it has landed."),
    Metric("horizontal_velocity", 2, unit="5 m/s", description="To the right is positive."),
    Metric("vertical_velocity", 3, unit="7.5 m/s", description="Upward is positive."),
    Metric("angle", 4, unit="rad", description="From upright, counterclockwise positive."),
    Metric("angular_velocity", 5, unit="2.5 rad/s", description="Counterclockwise positive."),
    Metric("right_leg_contact", 6, description="1 where the right leg touches the ground, else 0."),
    Metric("left_leg_contact", 7, description="1 where the left leg touches the ground, else 0."),
)
"""The eight elements of the observation, in its order. A unit with a factor says what 1 stands for: 0.5 in units of
'10 m' is 5 m. Of the legs the right one comes first."""


def policy_network() -> nn.Sequential:
    """The untrained actor: (n, 8) float32 observations to (n, 4) logits; '1:out' and '3:out' are its hidden layers."""
    require("lunarlander", "torch")
    from torch import nn

    return nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 4))


def make_policy() -> nn.Sequential:
    """The trained actor, from the checkpoint that ships with the package."""
    return trained("lunarlander", CHECKPOINT, policy_network())


def make_env(render: bool = False) -> gymnasium.Env[Any, Any]:
    """LunarLander-v3; with `render` its pictures are (400, 600, 3), drawn by pygame without a window."""
    if render:
        # pygame greets on standard output, where results go; SDL complains on standard error where there is no display
        os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
        if not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
            os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
        require("lunarlander", "pygame")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Box2D's import warns, and crashes the process where warnings are errors
        require("lunarlander", "gymnasium", "Box2D")
    import gymnasium

    return gymnasium.make("LunarLander-v3", render_mode="rgb_array" if render else None)


def act(policy: nn.Module, observation: npt.NDArray[np.float32]) -> int:
    """0 (nothing), 1 (left engine), 2 (main engine) or 3 (right engine): the best-scored one."""
    import torch

    with torch.inference_mode():
        return int(policy(torch.from_numpy(observation)[None]).argmax())


def greedy_returns(policy: nn.Module, seeds: Iterable[int]) -> list[float]:
    """Return of one greedy episode per seed."""
    return episode_returns(make_env(), act, policy, seeds)


LUNARLANDER: Final = ReferenceAgent(
    name="lunarlander",
    environment="LunarLander-v3",
    description="A lander settles between two flags: 8-64-64-4 tanh units, trained by PPO.",
    step_period_s=STEP_PERIOD_S,
    make_env=make_env,
    make_policy=make_policy,
    act=act,
    tap_points=("1:out", "3:out"),
    metrics=METRICS,
    observation_names=tuple(metric.name for metric in METRICS),
    action_names=("nothing", "left_engine", "main_engine", "right_engine"),
    dictionary="lunarlander",
)
