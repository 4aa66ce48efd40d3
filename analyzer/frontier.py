"""Fewer active latents against what is lost by it, without training: the frontier of a dictionary that is there.

A `batchtopk` dictionary gets the threshold at which clean episodes have so many latents active, a `topk` one a smaller k. Each
is then spliced into the policy for the same episodes, beside the clean policy and the layer's mean: recovery as in
`analyzer.recovery`. What training at that L0 would give is another question: this is what the trained dictionary has to give.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
import torch

from interlatent_live.analyzer.card import judge
from interlatent_live.analyzer.closed_loop import with_l0
from interlatent_live.analyzer.dictionary import Dictionary
from interlatent_live.analyzer.recovery import recovery_of, samples_of_episodes
from interlatent_live.analyzer.rollout import FRONTIER_SEED, Rollouts, Splice, splice_of
from interlatent_live.analyzer.samples import Samples
from interlatent_live.stream.errors import DictionaryError, DictionaryMismatch

__all__ = ["at_l0", "frontier"]

_FIT_EPISODES: Final = 8


def at_l0(dictionary: Dictionary, samples: Samples, l0: float) -> Dictionary:
    """The same dictionary with fewer (or more) latents active, on average `l0` over the whole episodes of `samples`."""
    cfg = dictionary.cfg
    if cfg.activation == "topk":
        if l0 != int(l0) or not 1 <= l0 <= dictionary.features:
            raise DictionaryError(f"l0 is {l0:g}; {cfg.name!r} is topk, so it is a whole number from 1 to {dictionary.features}")
        return Dictionary(replace(cfg, k=int(l0)), dict(dictionary.tensors))
    return with_l0(dictionary, samples, l0)


def frontier(
    dictionary: Dictionary,
    rollouts: Rollouts,
    l0s: Sequence[float],
    *,
    episodes: int = 20,
    max_steps: int | None = None,
    note: Callable[[str], None] = lambda _: None,
) -> list[dict[str, Any]]:
    """A row for each L0: `l0` asked for and found, `fvu`, action errors, `return_recovery`, `standing`: share of episodes as long as clean.

    On `episodes` paired episodes of at most `max_steps`, of seeds used for nothing else; thresholds are set on 8 more clean ones.
    """
    if dictionary.cfg.model_hash != rollouts.model_hash:
        ours, theirs = dictionary.cfg.model_hash[:12] or "unknown", rollouts.model_hash[:12]
        raise DictionaryMismatch(f"{dictionary.name!r} is of the weights {ours}, the agent {rollouts.agent!r} has {theirs}")
    seeds = range(FRONTIER_SEED, FRONTIER_SEED + episodes)
    more = range(FRONTIER_SEED + 1_000_000, FRONTIER_SEED + 1_000_000 + _FIT_EPISODES)
    note(f"{_FIT_EPISODES} clean episodes for the thresholds")
    fit = samples_of_episodes(rollouts.run(None, more, max_steps=max_steps, keep=True), dictionary, rollouts, "")
    points = [at_l0(dictionary, fit, l0) for l0 in l0s]
    note(f"{episodes} clean episodes")
    clean = rollouts.run(None, seeds, max_steps=max_steps, keep=True)
    held = samples_of_episodes(clean, dictionary, rollouts, f"{episodes} episodes of {rollouts.agent}")
    mean = torch.from_numpy(fit.y.mean(axis=0, dtype=np.float64).astype(np.float32))

    def ablate(_: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return mean.expand_as(y)

    def returns(splice: Splice) -> tuple[np.ndarray[Any, np.dtype[np.float64]], list[int]]:
        met = rollouts.run(splice, seeds, max_steps=max_steps)
        return np.array([e.total for e in met], np.float64), [e.steps for e in met]

    note(f"{episodes} episodes on the mean")
    ablated, _ = returns(ablate)
    clean_returns = np.array([e.total for e in clean], np.float64)
    rows = []
    for l0, point in zip(l0s, points, strict=True):
        note(f"{episodes} episodes at an L0 of {l0:g}")
        spliced, steps = returns(splice_of(point))
        card = judge(point, held, fit, rollouts.effect)
        rows.append({
            "l0": l0, "l0_found": card["l0"], "fvu": card["fvu"], "action_error": card["action_error"],
            "action_agreement": card["action_agreement"], "return_recovery": recovery_of(spliced, clean_returns, ablated),
            "standing": float(np.mean([s >= c.steps for s, c in zip(steps, clean, strict=True)])),
        })  # fmt: skip
    return rows
