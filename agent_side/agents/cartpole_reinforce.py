"""`cartpole-reinforce`: CartPole-v1 by a policy that was stopped half-way, so that there is something left to steer.

A policy at 500 of 500 shows nothing when one of its features is turned up. This one, 4-32-32-2 ReLU units, was trained by
REINFORCE (`train_cartpole_reinforce`) until its mean return was 261 of 500 over thousands of episodes, acting as it was
trained: actions are *drawn* from the softmax of its two scores. What is drawn depends on the observation alone: its checksum
is the uniform number, so the same observation gives the same action. An experiment hands in its own numbers (`sample`), so
that a run with an intervention and one without see the same luck. Episodes start as gymnasium starts them, within ±0.05.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from interlatent_live.agent_side.agents.cartpole import CARTPOLE
from interlatent_live.agent_side.agents.reference import require, trained

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import nn

    from interlatent_live.agent_side.agents.cartpole_batch import CartPoleBatch

__all__ = ["CARTPOLE_REINFORCE", "CHECKPOINT", "act", "make_batch", "make_policy", "policy_network", "sample", "sampled_returns"]

CHECKPOINT: Final = Path(__file__).parent / "assets" / "cartpole-reinforce.safetensors"
"""The policy: tensors '0.weight' … '4.bias', and how it was trained and judged as metadata 'training' (JSON)."""


def policy_network() -> nn.Sequential:
    """The untrained policy: (n, 4) float32 observations to (n, 2) scores; '1:out' and '3:out' are its hidden layers."""
    require("cartpole-reinforce", "torch")
    from torch import nn

    return nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2))


def make_policy() -> nn.Sequential:
    """The trained policy, from the checkpoint that ships with the package."""
    return trained("cartpole-reinforce", CHECKPOINT, policy_network())


def make_batch(seeds: Sequence[int]) -> CartPoleBatch:
    """Episodes side by side, one for each seed."""
    require("cartpole-reinforce", "gymnasium")
    from interlatent_live.agent_side.agents.cartpole_batch import CartPoleBatch

    return CartPoleBatch(seeds)


def sample(policy: nn.Module, observations: npt.NDArray[np.float32], uniforms: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """(n, 4) observations, (n,) uniform numbers -> (n,) actions: 0 where the number is below the chance of 0."""
    import torch

    with torch.inference_mode():
        scores = policy(torch.from_numpy(observations))
        left = scores.softmax(dim=1)[:, 0].numpy()
    actions: npt.NDArray[np.int64] = (uniforms >= left).astype("int64")
    return actions


def act(policy: nn.Module, observation: npt.NDArray[np.float32]) -> int:
    """0 (push left) or 1 (push right), drawn from the policy; the observation's checksum decides which."""
    import numpy as np

    drawn = zlib.crc32(np.ascontiguousarray(observation).data) / 2**32
    return int(sample(policy, observation[None], np.array([drawn]))[0])


def sampled_returns(policy: nn.Module, seeds: Sequence[int]) -> npt.NDArray[np.float64]:
    """(n,) returns of one episode for each seed; its start and its luck are the seed's."""
    import numpy as np

    batch = make_batch(seeds)
    luck = np.stack([np.random.default_rng([seed, 1]).random(500) for seed in seeds])
    step = 0
    while batch.running.any():
        batch.step(sample(policy, batch.observation, luck[:, step]))
        step += 1
    return batch.steps.astype(np.float64)


CARTPOLE_REINFORCE: Final = replace(
    CARTPOLE,
    name="cartpole-reinforce",
    description="A cart balances a pole, not well: 4-32-32-2 ReLU units, REINFORCE stopped at a mean return of 261 of 500.",
    make_policy=make_policy,
    act=act,
    dictionary="cartpole-reinforce",
    reset_options=None,
    sample=sample,
    make_batch=make_batch,
)
