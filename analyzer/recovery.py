"""Can the agent live on its dictionary? Return recovery, by splicing the reconstruction into the policy.

    recovery = (R_spliced - R_mean) / (R_clean - R_mean)

R_clean: the policy as it is; R_mean: its output at the tap point replaced by the mean output; both of the same seeds as
R_spliced. 1: nothing is lost; 0: no better than the mean; above 1: luck, or an error that helps. The interval is the
2.5th to 97.5th percentile of 10,000 paired bootstrap resamples of episodes (Efron 1979); it is null where fewer than 2
episodes were run, and so is the mean where the mean output does as well as the policy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from interlatent_live.analyzer.baselines import baselines
from interlatent_live.analyzer.card import judge
from interlatent_live.analyzer.dictionary import Dictionary
from interlatent_live.analyzer.rollout import CARD_SEED, TRAINING_SEED, Episode, Rollouts, splice_of
from interlatent_live.analyzer.samples import Samples
from interlatent_live.stream.errors import DictionaryMismatch

__all__ = ["RESAMPLES", "judge_in_life", "recovery_of", "samples_of_episodes"]

RESAMPLES: Final = 10_000
_FIT_EPISODES: Final = 20
Doubles = npt.NDArray[np.float64]


def recovery_of(spliced: Doubles, clean: Doubles, ablated: Doubles) -> dict[str, Any]:
    """`{mean, low, high, episodes}` of returns (n,) paired by seed."""
    n = len(clean)
    if n and clean.mean() - ablated.mean() > 0:
        mean: float | None = float((spliced.mean() - ablated.mean()) / (clean.mean() - ablated.mean()))
    else:
        mean = None
    low = high = None
    if mean is not None and n >= 2:
        drawn = np.random.default_rng(0).integers(0, n, (RESAMPLES, n))
        s, c, a = (values[drawn].mean(axis=1) for values in (spliced, clean, ablated))
        usable = c > a
        ratio = (s[usable] - a[usable]) / (c[usable] - a[usable])
        low, high = (float(v) for v in np.quantile(ratio, [0.025, 0.975]))
    return {"mean": mean, "low": low, "high": high, "episodes": n}


def judge_in_life(
    dictionary: Dictionary,
    rollouts: Rollouts,
    *,
    episodes: int = 100,
    held: Samples | None = None,
    fit: Samples | None = None,
    note: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """The whole card. `held` and `fit` come from a recording; where None, from clean episodes of unused and used seeds."""
    cfg = dictionary.cfg
    if cfg.model_hash and cfg.model_hash != rollouts.model_hash:
        raise DictionaryMismatch(
            f"{cfg.name!r} is of the weights {cfg.model_hash[:12]}, the agent {rollouts.agent!r} has {rollouts.model_hash[:12]}"
        )
    seeds = range(CARD_SEED, CARD_SEED + episodes)
    note(f"{episodes} clean episodes")
    clean = rollouts.run(None, seeds, keep=held is None)
    if held is None or fit is None:
        source = f"{episodes} episodes of {rollouts.agent}, seeds {seeds[0]} to {seeds[-1]}"
        held = samples_of_episodes(clean, dictionary, rollouts, source)
        more = range(TRAINING_SEED, TRAINING_SEED + min(_FIT_EPISODES, max(2, episodes)))
        note(f"{len(more)} clean episodes for the baselines")
        fit = samples_of_episodes(rollouts.run(None, more, keep=True), dictionary, rollouts, "")
    card = judge(dictionary, held, fit, rollouts.effect)
    returns: dict[str, Doubles] = {"clean": _returns(clean)}
    compared = baselines(fit, dictionary.features, max(1, round(card["l0"])))
    for name, splice in {"mean": compared.pop("mean"), "dictionary": splice_of(dictionary), **compared}.items():
        note(f"{episodes} episodes on {name}")
        returns[name] = _returns(rollouts.run(splice, seeds))
    recovered = {name: recovery_of(values, returns["clean"], returns["mean"]) for name, values in returns.items()}
    card["return_recovery"] = recovered["dictionary"]
    for name, baseline in card["baselines"].items():
        baseline["return_recovery"] = recovered[name]["mean"]
    card["returns"] = {name: float(values.mean()) for name, values in returns.items()}
    card["episode_returns"] = {name: [round(float(v), 3) for v in returns[name]] for name in ("clean", "dictionary")}
    card["agent"] = rollouts.agent
    return card


def samples_of_episodes(episodes: list[Episode], dictionary: Dictionary, rollouts: Rollouts, source: str) -> Samples:
    """What the episodes met, as frames."""
    return Samples(
        np.concatenate([e.x for e in episodes]),
        np.concatenate([e.y for e in episodes]),
        np.repeat(np.arange(len(episodes)), [e.steps for e in episodes]),
        dictionary.cfg.input,
        dictionary.cfg.output,
        rollouts.model_hash,
        rollouts.step_period_s,
        source=source,
    )


def _returns(episodes: list[Episode]) -> Doubles:
    return np.array([e.total for e in episodes], np.float64)
