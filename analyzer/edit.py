"""An edit of one feature, or along a direction, of an activation: what steering, experiments and "why" have in common.

With f = the features of x, y the model's own activation at the dictionary's output point, W the decoder, and f' the
features after the operation:

    y' = y + (f' - f) W_dec          'ablate', 'scale', 'clamp', 'add' of a feature
    y' = y + strength * direction    'add' of a direction

The error term y - y^ stays in place, and a row in which f' = f is given back bit for bit, so that a no-op is exactly a
no-op (clamping with the error term kept: Templeton et al. 2024, Scaling Monosemanticity). Torch only, for the agent's side
imports it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, get_args

import torch

from interlatent_live.analyzer.dictionary import Dictionary
from interlatent_live.stream.errors import DictionaryError

__all__ = ["Edit", "Operation", "after_edit", "edited", "feature_values"]

Operation: TypeAlias = Literal["ablate", "scale", "clamp", "add"]
OPERATIONS: Final[tuple[Operation, ...]] = get_args(Operation)


@dataclass(frozen=True, slots=True)
class Edit:
    """What is done to an activation. Exactly one of `feature` and `direction` is given."""

    operation: Operation
    """'ablate': f' = 0. 'scale': f' = strength f. 'clamp': f' = strength. 'add': f' = max(0, f + strength), or along the direction."""
    strength: float = 0.0
    """A factor ('scale'), or in the activation's units; ignored by 'ablate'."""
    feature: int | None = None
    direction: tuple[float, ...] | None = None
    """(d_out,) for 'add'."""

    def __post_init__(self) -> None:
        if self.operation not in OPERATIONS:
            raise DictionaryError(f"operation is {self.operation!r}; it must be one of {', '.join(OPERATIONS)}")
        if not math.isfinite(self.strength):
            raise DictionaryError(f"strength is {self.strength}; it must be a finite number")
        if (self.feature is None) == (self.direction is None):
            raise DictionaryError("an edit is of a feature or along a direction, one of the two")
        if self.direction is not None and (self.operation != "add" or not all(map(math.isfinite, self.direction))):
            raise DictionaryError("a direction is finite numbers, and can only be added")

    def check(self, dictionary: Dictionary) -> None:
        """Raise DictionaryError where the dictionary has no such feature or the direction another width."""
        if self.feature is not None and not 0 <= self.feature < dictionary.features:
            raise DictionaryError(f"feature {self.feature} is not of {dictionary.name!r}, which has 0 to {dictionary.features - 1}")
        if self.direction is not None and len(self.direction) != dictionary.cfg.d_out:
            raise DictionaryError(f"the direction has {len(self.direction)} numbers, but {dictionary.cfg.output} {dictionary.cfg.d_out}")


def feature_values(dictionary: Dictionary, x: torch.Tensor, features: Sequence[int]) -> torch.Tensor:
    """(n, d_in) -> (n, len(features)): their values after the activation function."""
    if dictionary.cfg.activation == "topk":
        return dictionary.encode_dense(x)[:, list(features)]
    columns = list(features)
    pre = torch.addmm(dictionary.b_enc[columns], x, dictionary.W_enc[:, columns])
    floor = dictionary.floor[columns] if dictionary.floor.numel() > 1 else dictionary.floor
    return torch.where(pre > floor, pre, 0.0)


def edited(dictionary: Dictionary, edits: Sequence[Edit], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """x (n, d_in), y (n, d_out) float32 -> y' (n, d_out); y itself where nothing changes.

    Edits of one feature apply in their order. The features are those of x, the unedited input.
    """
    names = list(dict.fromkeys(e.feature for e in edits if e.feature is not None))
    change: torch.Tensor | None = None
    if names:
        before = feature_values(dictionary, x, names)
        after = before.clone()
        for edit in edits:
            if edit.feature is not None:
                column = names.index(edit.feature)
                after[:, column] = after_edit(edit, after[:, column])
        delta = after - before
        if bool(delta.any()):
            moved = delta.any(dim=1, keepdim=True)
            change = torch.where(moved, y + delta @ dictionary.W_dec[names], y)
    result = y if change is None else change
    for edit in edits:
        if edit.direction is not None and edit.strength != 0:
            result = result + edit.strength * torch.tensor(edit.direction, dtype=y.dtype, device=y.device)
    return result


def after_edit(edit: Edit, f: torch.Tensor) -> torch.Tensor:
    """Values of the edited feature, from its values f."""
    if edit.operation == "ablate":
        return torch.zeros_like(f)
    if edit.operation == "scale":
        return f * edit.strength
    if edit.operation == "clamp":
        return torch.full_like(f, edit.strength)
    return (f + edit.strength).clamp(min=0)
