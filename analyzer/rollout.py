"""What judging a dictionary in its agent's life needs: episodes with something spliced into the policy.

Services never import the agent's side, so rollouts are handed in; `interlatent_live.rollouts` makes them of a reference
agent. Seeds are kept apart: those of training, of choice among rounds, and of cards never meet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from interlatent_live.analyzer.dictionary import Dictionary
from interlatent_live.analyzer.effect import Effect

__all__ = ["CARD_SEED", "FRONTIER_SEED", "TRAINING_SEED", "VALIDATION_SEED", "Acting", "Episode", "Rollouts", "Splice", "splice_of"]

TRAINING_SEED: Final = 10_000_000
"""First seed of episodes that are trained on; also of none of a recording's, which are seeded once, from below."""
VALIDATION_SEED: Final = 20_000_000
"""First seed of the episodes that choose among rounds."""
CARD_SEED: Final = 30_000_000
"""First seed of the episodes that a card reports: used in no training and no choice."""
FRONTIER_SEED: Final = 60_000_000
"""First seed of the episodes of `analyzer.frontier`."""

Splice: TypeAlias = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(x (1, d_in), true y (1, d_out)) to what the policy gets instead of y."""


@dataclass(frozen=True, slots=True, eq=False)
class Episode:
    """One episode from its seed."""

    seed: int
    total: float
    """Sum of rewards."""
    steps: int
    over: bool
    """It ended by itself or by its time limit, not because no more steps were asked for."""
    x: npt.NDArray[np.float32]
    """(steps, d_in) inputs met; (0, d_in) where they were not asked for."""
    y: npt.NDArray[np.float32]
    """(steps, d_out) outputs as the policy computed them, before they were replaced."""


class Acting(Protocol):
    """A policy in its environment, with an input and an output tap point."""

    agent: str
    input: str
    output: str
    model_hash: str
    step_period_s: float
    effect: Effect


class Rollouts(Acting, Protocol):
    """One that runs single episodes."""

    def run(
        self, splice: Splice | None, seeds: Iterable[int], *, max_steps: int | None = None, keep: bool = False
    ) -> list[Episode]:
        """One episode for each seed, of at most `max_steps`; `keep`: with the activations met."""
        ...


def splice_of(dictionary: Dictionary) -> Splice:
    """Its reconstruction instead of the output."""

    def splice(x: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return dictionary.decode_sparse(*dictionary.encode(x), x)

    return splice
