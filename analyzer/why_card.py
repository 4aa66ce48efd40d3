"""Does "why this action" say what a feature does? Its prediction against ablation, over frames (docs/why-this-action.md).

1. Of each frame, the contribution c = f_i W_i . ds_a/dy of every active feature i to the score of every action a predicts that
   ablating the feature moves the score by -c (gradient times activation: Nanda 2023; Syed et al. 2023, arXiv:2310.10348).
2. The feature is ablated (`analyzer.edit`, the error term kept), and the rest of the policy is run on what results.
3. Spearman's rank correlation of predicted and measured over the frame's (feature, action) pairs, its mean over frames, and the
   2.5th to 97.5th percentile of 2,000 bootstrap resamples of whole episodes (Efron 1979): frames of one episode are alike.

Scores are logits or means, which are what is explained; `of_action` asks the same of what is done: probabilities, or the action as
the environment clips it. Where only a linear layer follows, the scores' correlation is 1 by construction, and `of_action` is the
test. Costs a pass of the rest of the policy for each active feature of each frame.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import rankdata

from interlatent_live.analyzer.dictionary import Dictionary
from interlatent_live.analyzer.edit import Edit, edited
from interlatent_live.analyzer.effect import Effect
from interlatent_live.analyzer.samples import Samples

__all__ = ["FRAMES", "agreement_with_ablation", "lines", "mean_by_episode"]

FRAMES: Final = 1_000
RESAMPLES: Final = 2_000
_FEWEST: Final = 3
"""Pairs without which a rank correlation says nothing."""
Doubles = npt.NDArray[np.float64]


def agreement_with_ablation(
    dictionary: Dictionary, effect: Effect, held: Samples, *, frames: int = FRAMES, seed: int = 0
) -> dict[str, Any]:
    """`rank_correlation` and `of_action`, each `{mean, low, high, frames}`, of `frames` frames drawn from the held-out ones."""
    drawn = np.sort(np.random.default_rng(seed).permutation(held.frames)[:frames])
    x, y = torch.from_numpy(held.x[drawn].copy()), torch.from_numpy(held.y[drawn].copy())
    before, gradients = _gradients(effect, y)
    codes = dictionary.codes(x)
    row = np.repeat(np.arange(len(drawn)), codes.counts)
    feature, value = codes.indices.astype(np.int64), codes.values
    with torch.no_grad():
        directions = dictionary.W_dec[torch.from_numpy(feature)]
        predicted = -torch.einsum("pd,pad->pa", directions * torch.from_numpy(value)[:, None], gradients[torch.from_numpy(row)]).double()
        measured, done = torch.empty_like(predicted), torch.empty_like(predicted)
        for number in np.unique(feature):
            mine = np.flatnonzero(feature == number)
            rows = torch.from_numpy(row[mine])
            after = effect.head(edited(dictionary, [Edit("ablate", feature=int(number))], x[rows], y[rows])).double()
            measured[torch.from_numpy(mine)] = after - before[rows]
            done[torch.from_numpy(mine)] = _done(effect, after) - _done(effect, before[rows])
        foreseen = _foreseen(effect, before[torch.from_numpy(row)], predicted)
    episode = held.episode[drawn]
    return {
        "rank_correlation": mean_by_episode(_spearman(row, predicted.numpy(), measured.numpy(), len(drawn)), episode, seed),
        "of_action": mean_by_episode(_spearman(row, foreseen.numpy(), done.numpy(), len(drawn)), episode, seed),
        "episodes": len(np.unique(episode)),
        "method": "gradient x activation, to first order, against ablation of each active feature; Spearman within a frame",
    }


def mean_by_episode(values: Doubles, episode: npt.NDArray[np.int64], seed: int) -> dict[str, float | int | None]:
    """Mean of the finite `values` (n,) with its bootstrap interval by episode; null where there is none."""
    known = np.isfinite(values)
    _, place = np.unique(episode[known], return_inverse=True)
    found: dict[str, float | int | None] = {"mean": None, "low": None, "high": None, "frames": int(known.sum())}
    if not known.any():
        return found
    sums, counts = np.bincount(place, values[known]), np.bincount(place)
    found["mean"] = float(sums.sum() / counts.sum())
    if len(sums) >= 2:
        drawn = np.random.default_rng(seed).integers(0, len(sums), (RESAMPLES, len(sums)))
        means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
        found["low"], found["high"] = (float(v) for v in np.quantile(means, [0.025, 0.975]))
    return found


def _gradients(effect: Effect, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(n, a) scores in float64 and (n, a, d) gradients; frames do not meet in the rest of a policy."""
    with torch.inference_mode(False), torch.enable_grad():
        leaf = y.clone().requires_grad_()
        scores = effect.head(leaf)
        found = [torch.autograd.grad(scores[:, a].sum(), leaf, retain_graph=True)[0] for a in range(scores.shape[1])]
    return scores.detach().double(), torch.stack(found, dim=1)


def _done(effect: Effect, scores: torch.Tensor) -> torch.Tensor:
    """What comes of scores: probabilities, or the clipped action."""
    return scores.softmax(dim=1) if effect.kind == "discrete" else scores.clamp(effect.low, effect.high)


def _foreseen(effect: Effect, scores: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
    """A change of scores as a change of what comes of them, to first order."""
    if effect.kind == "discrete":
        p = scores.softmax(dim=1)
        return p * (change - (p * change).sum(dim=1, keepdim=True))
    return torch.where((scores > effect.low) & (scores < effect.high), change, 0.0)


def _spearman(row: npt.NDArray[np.int64], predicted: Doubles, measured: Doubles, frames: int) -> Doubles:
    """(frames,) rank correlation over the pairs of each frame; NaN where one side is the same everywhere, or of fewer than 3 pairs."""
    ends = np.searchsorted(row, np.arange(frames + 1))
    found = np.full(frames, np.nan)
    for i in range(frames):
        a, b = predicted[ends[i] : ends[i + 1]].ravel(), measured[ends[i] : ends[i + 1]].ravel()
        if len(a) < _FEWEST:
            continue
        ranks = rankdata(a), rankdata(b)
        if all(np.ptp(r) > 0 for r in ranks):
            found[i] = np.corrcoef(*ranks)[0, 1]
    return found


def lines(card: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a card for people says of it."""
    found = card.get("attribution") or {}

    def text(name: str) -> str:
        part = found.get(name) or {}
        if part.get("mean") is None:
            return "–"
        interval = "" if part["low"] is None else f" (95 %: {part['low']:.3f} to {part['high']:.3f})"
        return f"{part['mean']:.3f}{interval}, {part['frames']} frames"

    return [("why: rank correlation with ablation, scores", text("rank_correlation")), ("the same, of the action", text("of_action"))]
