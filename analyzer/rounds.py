"""Rounds of closed-loop training: what each came to, and a file from which an interrupted loop goes on.

The file holds what the next round begins with: frames met so far, the model, the dictionaries made. Within a round the trainer
keeps a checkpoint of its own; rollouts are done again. Written whole or not at all, removed when the loop is done.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

import torch

from interlatent_live.analyzer.checkpoint import read_whole, write_whole
from interlatent_live.analyzer.dictionary import Dictionary, DictionaryConfig
from interlatent_live.analyzer.samples import Samples

__all__ = ["KeptRounds", "Round", "RoundsFile"]

_FORMAT: Final = "interlatent-rounds/1"


@dataclass(frozen=True, slots=True)
class Round:
    """What a round came to."""

    number: int
    """0: before any rollout."""
    frames: int
    """Trained on."""
    recovery: float
    """Mean return of the spliced validation episodes over the clean ones'."""
    survived: float
    """Share of validation episodes as long as the clean one."""
    fvu: float
    l0: float
    """Both of the recording's held-out episodes."""
    final_recovery: float | None = None
    """On twice the episodes, for finalists."""


@dataclass(frozen=True, slots=True, eq=False)
class KeptRounds:
    """Where a loop was."""

    rounds: list[Round]
    made: list[Dictionary]
    fit: Samples
    """Everything to train on next."""
    begun_with: int
    """The first frames of `fit`, with which round 0 began."""
    next_seed: int
    model: dict[str, torch.Tensor]
    state: dict[str, torch.Tensor]


class RoundsFile:
    """The file of one loop; `fingerprint` is of everything that its outcome depends on."""

    def __init__(self, path: Path, fingerprint: str) -> None:
        self.path, self.fingerprint = path, fingerprint

    def training(self, number: int) -> Path:
        """Where the trainer keeps round `number` while it is under way."""
        return self.path.with_name(f"{self.path.name}.round-{number}")

    def read(self, like: Samples) -> KeptRounds | None:
        """What was kept of this very loop, its frames as `like`; None where there is nothing, DictionaryError where it is another's."""
        found = read_whole(self.path, _FORMAT, self.fingerprint)
        if found is None:
            return None
        about, tensors = found
        data = json.loads(about["data"])
        made = []
        for number, (cfg, card) in enumerate(data["made"]):
            own = _below(tensors, f"made.{number}.")
            made.append(Dictionary(DictionaryConfig.from_dict(cfg), own).with_card(card))
        fit = replace(like, x=tensors["x"].numpy(), y=tensors["y"].numpy(), episode=tensors["episode"].numpy())
        model, state = _below(tensors, "model."), _below(tensors, "state.")
        return KeptRounds([Round(**r) for r in data["rounds"]], made, fit, data["begun_with"], data["next_seed"], model, state)

    def write(
        self, rounds: Sequence[Round], made: Sequence[Dictionary], fit: Samples, begun_with: int, next_seed: int,
        model: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor],
    ) -> None:  # fmt: skip
        """Replace what was kept; the trainer's checkpoint of the last round has done its work."""
        tensors = {"x": torch.from_numpy(fit.x), "y": torch.from_numpy(fit.y), "episode": torch.from_numpy(fit.episode)}
        for number, dictionary in enumerate(made):
            tensors |= {f"made.{number}.{name}": t for name, t in dictionary.tensors.items()}
        tensors |= {f"model.{name}": t for name, t in model.items()} | {f"state.{name}": t for name, t in state.items()}
        data = {
            "rounds": [asdict(r) for r in rounds],
            "made": [(d.cfg.to_dict(), d.card) for d in made],
            "begun_with": begun_with,
            "next_seed": next_seed,
        }
        write_whole(self.path, _FORMAT, self.fingerprint, tensors, {"data": json.dumps(data)})
        self.training(rounds[-1].number).unlink(missing_ok=True)

    def remove(self, rounds: int) -> None:
        """Done: nothing to go on with."""
        for number in range(rounds + 1):
            self.training(number).unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)


def _below(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
