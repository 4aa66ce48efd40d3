"""Train the Ms. Pac-Man policy: proximal policy optimisation (`ppo`) from pixels, in ALE's own vector environment.

    python -m interlatent_live.agent_side.agents.train_mspacman --device cuda --autocast --out mspacman.safetensors

The recipe is that of the committed checkpoint, which took 11 M steps: two runs of eight minutes on one H100 and 16
cores, the second from the first's weights (`--init`). Of 32 full games, actions drawn, it scored 2746 on average. On
two CPU cores the same would take days; what runs there is the beginning.

256 games, a lost life ends an episode, four stacked frames, rewards sign(r)·log(1 + |r|/10)·0.7. One difference: the
checkpoint's games were reset in the step that ended them, here in the next one, as `ppo` wants it.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from gymnasium.vector import VectorEnv
from torch import Tensor, nn

from interlatent_live.agent_side.agents import ppo
from interlatent_live.agent_side.agents.mspacman import FRAME_SKIP, STICKY, policy_network
from interlatent_live.agent_side.agents.reference import load_weights, require

__all__ = ["RECIPE", "PixelPolicy", "main", "make_games", "shape_reward"]

RECIPE: Final = ppo.Recipe(
    seed=1,
    steps=5_500_000,
    envs=256,
    horizon=64,
    epochs=3,
    minibatch=2048,
    learning_rate=5e-4,
    gamma=0.99,
    gae_lambda=0.95,
    clip=0.1,
    entropy=0.01,
)
"""Of one of the two runs: a rollout is 16,384 rows, eight minibatches."""


class PixelPolicy(nn.Module):
    """(n, 4, 84, 84) uint8 pictures to (n, 9) logits and (n,) values; actor and value share the body."""

    def __init__(self) -> None:
        super().__init__()
        actor = policy_network()
        self.body, self.pi = (part for _, part in actor.named_children())
        self.v = nn.Linear(256, 1)

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and values."""
        hidden = self.body(pictures.float() / 255)
        logits: Tensor = self.pi(hidden)
        return logits, self.v(hidden)[:, 0]


def make_games(number: int) -> VectorEnv[Any, Any, Any]:
    """`number` games stepped together by ALE's threads; a lost life ends an episode, the next step begins another."""
    require("mspacman", "ale_py")
    import ale_py
    from ale_py.vector_env import AtariVectorEnv

    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    games: VectorEnv[Any, Any, Any] = AtariVectorEnv(
        "ms_pacman",
        number,
        repeat_action_probability=STICKY,
        frameskip=FRAME_SKIP,
        episodic_life=True,
        reward_clipping=False,
        use_fire_reset=False,
    )
    return games


def shape_reward(reward: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """sign(r)·log(1 + |r|/10)·0.7: a pellet counts 0.49, a ghost of 1600 points 3.6."""
    shaped: npt.NDArray[np.float64] = np.sign(reward) * np.log1p(np.abs(reward) / 10) * 0.7
    return shaped


def main(arguments: Sequence[str] | None = None) -> int:
    """Train and write, in float16; progress goes to standard error, one line of JSON to standard output."""
    parser = argparse.ArgumentParser(description="Train the Ms. Pac-Man policy and write its checkpoint.")
    parser.add_argument("--seed", type=int, default=RECIPE.seed)
    parser.add_argument("--steps", type=int, default=RECIPE.steps, help="steps of all games together")
    parser.add_argument("--envs", type=int, default=RECIPE.envs, help="games played together")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--autocast", action="store_true", help="forward passes in bfloat16")
    parser.add_argument("--init", type=Path, help="go on from this checkpoint's weights")
    parser.add_argument("--out", type=Path, required=True, help="where the safetensors checkpoint goes; must not exist")
    chosen = parser.parse_args(arguments)
    if chosen.out.exists():
        parser.error(f"{chosen.out} exists; a checkpoint that may have taken hours is not overwritten: name another")
    minibatch = RECIPE.minibatch * chosen.envs // RECIPE.envs  # eight of them, as in the recipe
    recipe = replace(RECIPE, seed=chosen.seed, steps=chosen.steps, envs=chosen.envs, minibatch=max(1, minibatch))
    policy = PixelPolicy()
    drawn = torch.Generator().manual_seed(recipe.seed)
    ppo.initialise(policy.body, drawn, last_gain=2**0.5)
    ppo.initialise(policy.pi, drawn, last_gain=0.01)
    ppo.initialise(policy.v, drawn, last_gain=1.0)
    if chosen.init is not None:
        policy.load_state_dict(load_weights("mspacman", chosen.init, policy.state_dict()))
    policy.to(chosen.device)
    generator = torch.Generator(chosen.device).manual_seed(recipe.seed)
    begun = time.perf_counter()
    done = None
    for done in ppo.learn(
        recipe,
        policy,
        make_games(recipe.envs),
        generator,
        shape_reward=shape_reward,
        device=chosen.device,
        autocast=chosen.autocast,
    ):
        rate = done.steps / (time.perf_counter() - begun)
        line = f"update {done.update}/{done.updates}: {done.steps} steps, {rate:.0f}/s, points a life {done.episode_return:.0f}"
        print(line, file=sys.stderr)  # noqa: T201  progress
    assert done is not None
    weights = {name: tensor.detach().half().cpu().contiguous() for name, tensor in policy.state_dict().items()}
    ppo.write_checkpoint(chosen.out, weights, recipe, packages=("torch", "gymnasium", "ale-py"))
    result = {
        "seconds": round(time.perf_counter() - begun, 1),
        "steps": done.steps,
        "updates": done.updates,
        "points_per_life": done.episode_return if np.isfinite(done.episode_return) else None,
        "written": str(chosen.out),
    }
    print(json.dumps(result))  # noqa: T201  the command's answer
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
