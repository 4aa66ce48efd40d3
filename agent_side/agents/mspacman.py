"""`mspacman`: Ms. Pac-Man from pixels, by a convolutional policy that took a GPU a quarter of an hour.

The environment is gymnasium's `ALE/MsPacman-v5` as the policy was trained: nine actions, four frames a step (15 steps a
second), sticky actions (an action is repeated with probability 0.25), the last four frames in grey at 84×84. An
observation is (4, 84, 84) uint8, too large to travel with every frame; what happens in the game is read from the
machine's memory instead (`mspacman_ram`), before each step. The same memory is no input of the policy.

The policy's body ends in a layer of 256 units (ReLU), 'body.8:out', from which nine logits are read. Actions are drawn
from them, as in training, and not the best one taken: greedily the policy plays the same game again and again. What is
drawn depends on the observation alone: its checksum is the seed, so the same observation gives the same action.

Pictures are the game's own screen, (210, 160, 3), which cost next to nothing.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from interlatent_live.agent_side.agents.mspacman_ram import METRICS, read
from interlatent_live.agent_side.agents.reference import ReferenceAgent, require, trained

if TYPE_CHECKING:
    import gymnasium
    import numpy as np
    import numpy.typing as npt
    from torch import nn

__all__ = [
    "ACTIONS",
    "CHECKPOINT",
    "FRAME_SKIP",
    "MSPACMAN",
    "STEP_PERIOD_S",
    "STICKY",
    "act",
    "make_critic",
    "make_env",
    "make_policy",
    "policy_network",
]

CHECKPOINT: Final = Path(__file__).parent / "assets" / "mspacman.safetensors"
"""The trained policy in float16: tensors 'body.0.weight' … 'pi.bias', and 'v.…' of the value."""

FRAME_SKIP: Final = 4
"""Frames that one action lasts, of 60 a second."""

STICKY: Final = 0.25
"""Probability that the machine repeats the last action instead of taking the new one."""

STEP_PERIOD_S: Final = FRAME_SKIP / 60
"""Time of one step, in seconds: 15 a second."""

ACTIONS: Final = ("nothing", "up", "right", "left", "down", "up_right", "up_left", "down_right", "down_left")
"""Of the joystick, in the environment's order."""


def policy_network() -> nn.Sequential:
    """The untrained actor: (n, 4, 84, 84) float32 within 0 and 1 to (n, 9) logits; 'body.8:out' is (n, 256)."""
    require("mspacman", "torch")
    from collections import OrderedDict

    from torch import nn

    body = nn.Sequential(
        nn.Conv2d(4, 32, 8, 4),
        nn.ReLU(),
        nn.Conv2d(32, 64, 4, 2),
        nn.ReLU(),
        nn.Conv2d(64, 64, 3, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(3136, 256),
        nn.ReLU(),
    )
    return nn.Sequential(OrderedDict(body=body, pi=nn.Linear(256, len(ACTIONS))))


def make_policy() -> nn.Sequential:
    """The trained actor, from the checkpoint that ships with the package."""
    return trained("mspacman", CHECKPOINT, policy_network())


def make_critic() -> nn.Sequential:
    """The value that training learned, on the policy's own body: (n, 4, 84, 84) to (n, 1), discounted and clipped rewards."""
    require("mspacman", "torch")
    from collections import OrderedDict

    from torch import nn

    return trained("mspacman", CHECKPOINT, nn.Sequential(OrderedDict(body=policy_network()[0], v=nn.Linear(256, 1))))


def make_env(render: bool = False) -> gymnasium.Env[Any, Any]:
    """The game; with `render` its pictures are (210, 160, 3), without a display."""
    require("mspacman", "gymnasium", "ale_py", "cv2")
    import ale_py
    import gymnasium
    from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation

    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)  # it greets on standard error
    gymnasium.register_envs(ale_py)
    game = gymnasium.make(
        "ALE/MsPacman-v5",
        frameskip=1,  # AtariPreprocessing skips
        repeat_action_probability=STICKY,
        full_action_space=False,
        render_mode="rgb_array" if render else None,
    )
    return FrameStackObservation(AtariPreprocessing(game, frame_skip=FRAME_SKIP), 4)


def act(policy: nn.Module, observation: npt.NDArray[np.uint8]) -> int:
    """An action drawn from the policy, 0 to 8; the observation's checksum decides which."""
    import numpy as np
    import torch

    pixels = np.ascontiguousarray(observation)
    with torch.inference_mode():
        chances = policy(torch.from_numpy(pixels)[None].float() / 255)[0].softmax(-1).cumsum(-1)
    drawn = zlib.crc32(pixels.data) / 2**32
    return min(int((chances <= drawn).sum()), len(ACTIONS) - 1)


MSPACMAN: Final = ReferenceAgent(
    name="mspacman",
    environment="ALE/MsPacman-v5",
    description="Ms. Pac-Man from pixels: a convolutional policy whose last layer has 256 units, trained by PPO.",
    step_period_s=STEP_PERIOD_S,
    make_env=make_env,
    make_policy=make_policy,
    make_critic=make_critic,
    act=act,
    tap_points=("body.8:out",),
    metrics=METRICS,
    observation_names=(),
    action_names=ACTIONS,
    dictionary="mspacman",
    read=read,
)
