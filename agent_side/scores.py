"""Scores of actions: found in what a policy returns, picked, and split into the parts that features contribute."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from interlatent_live.stream.attribution import MAX_ACTIONS, Attribution

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["NotPossible", "chosen_of", "parts_of", "picks", "row_of", "scores_of", "sum_of_parts"]

TOP: Final = 7
"""Beside the chosen one, the best-scored of more than MAX_ACTIONS actions."""
Doubles = npt.NDArray[np.float64]


class NotPossible(RuntimeError):
    """This policy cannot be explained, now or later."""


def parts_of(
    gradients: Doubles, values: Doubles, columns: Doubles, bias: Doubles, y: Doubles, scores: Doubles
) -> tuple[Doubles, Doubles, Doubles, Doubles]:
    """Contributions (f, a), and (a,) of bias, error and rest, which sum to `scores` (a,).

    `gradients` (a, d_out), `values` (f,) and decoder `columns` (f, d_out) of the active features, `bias` (d_out,) with the skip
    connection, `y` (d_out,) the activation.
    """
    contributions = values[:, None] * (columns @ gradients.T)
    error = y - values @ columns - bias
    return contributions, gradients @ bias, gradients @ error, scores - gradients @ y


def sum_of_parts(found: Attribution) -> Doubles:
    """(a,) what the parts sum to, in float64: the totals, to the rounding of float32."""
    one = found.contributions.astype(np.float64).sum(axis=0)
    return np.asarray(one + found.bias + found.error + found.rest, np.float64)


def scores_of(output: Any) -> Any:
    """Scores in what a policy returns: a tensor, a distribution's logits or mean, or the first of these in a tuple or mapping."""
    import torch

    if isinstance(output, torch.Tensor):
        return output
    if isinstance(output, torch.distributions.Distribution):
        found = getattr(output, "logits", None)
        return output.mean if found is None else found
    items = list(output.values()) if isinstance(output, dict) else list(output) if isinstance(output, (tuple, list)) else []
    for item in items:
        if isinstance(item, (torch.Tensor, torch.distributions.Distribution)):
            return scores_of(item)
    raise NotPossible(f"the policy returns a {type(output).__name__}, and no scores are recognised in it; give Why(scores=…)")


def row_of(scores: Any, row: int) -> Tensor:
    """(actions,) of one environment."""
    if scores.ndim == 1:
        mine: Tensor = scores
    elif scores.ndim == 2 and row < len(scores):
        mine = scores[row]
    else:
        raise NotPossible(f"scores of shape {tuple(scores.shape)}; (environments, actions) can be explained: give Why(scores=…)")
    if not mine.is_floating_point():
        raise NotPossible(f"the policy returns {mine.dtype}, actions and not their scores; give Why(scores=…)")
    return mine


def picks(scores: Doubles, chosen: int) -> tuple[int, ...]:
    """Which actions are explained: all, or of very many the chosen one and the best."""
    if len(scores) <= MAX_ACTIONS:
        return tuple(range(len(scores)))
    best = np.argsort(-scores, kind="stable")[:TOP].tolist()
    return tuple(sorted({*best, *([chosen] if 0 <= chosen < len(scores) else [])}))


def chosen_of(action: Any, env: int) -> int:
    """Number of the discrete action that environment `env` took; -1 for anything else."""
    found = np.asarray(action.cpu() if hasattr(action, "cpu") else action).reshape(-1) if action is not None else np.zeros(0)
    return int(found[min(env, len(found) - 1)]) if len(found) and found.dtype.kind in "iu" and (len(found) == 1 or env < len(found)) else -1
