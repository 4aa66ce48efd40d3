"""What does each feature cause? All of them ablated, one at a time, and ranked; and how well correlation would have known.

1. Clean episodes give the states that the policy meets by itself. At each, the feature is taken out (error term kept) and the
   rest of the policy says what the action would have been: KL of the distributions, or the distance in standard deviations.
   Means are over episodes, so that frames of one episode are not taken for independent.
2. The return: paired episodes lived through with the feature taken out, on fresh seeds, with common random numbers.
3. What correlation would have said: for the action, the largest |r| of the feature with the probability (or value) of an
   action over the clean frames; for the return, |r| of its mean activity in an episode with the episode's return. Spearman's
   rank correlation of that with the measured effects, over features.

p-values by sign flips over episodes, q by Benjamini-Hochberg over features (`analyzer.paired`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from interlatent_live.analyzer.candidates import Activity, activity_of, check_agent, splice_of_edit
from interlatent_live.analyzer.dictionary import Dictionary
from interlatent_live.analyzer.edit import Edit
from interlatent_live.analyzer.effect import Effect
from interlatent_live.analyzer.paired import Interval, benjamini_hochberg, change, mean, p_of_difference, rank_correlation
from interlatent_live.analyzer.trial import ABLATION_SEED, LOOK_SEED, Memory, Trials
from interlatent_live.stream.errors import DictionaryError

__all__ = ["AblateOptions", "ablate"]

_RESAMPLES: Final = 2000
"""Per feature: there are many."""
_DIGITS: Final = 5
_SEEDS: Final = 50_000
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class AblateOptions:
    """How much to run."""

    episodes: int = 500
    """Paired episodes of each feature for the return; 0: the action only."""
    look: int = 100
    """Clean episodes for the action."""
    most: int | None = None
    """Measure the return of so many features only, those that move the action most; None: of all that are live."""
    top: int | None = None
    """Tell only of so many features, those that move the action most (all are tested); None: of all."""
    seed: int = 0
    """Which seeds: experiments of different numbers share none."""
    max_steps: int | None = None
    """Length of an episode, at most."""

    def __post_init__(self) -> None:
        if self.look < 2 or self.episodes < 0 or min(self.most or 1, self.top or 1) < 1 or 0 in (self.most, self.top):
            given = f"look is {self.look}, episodes {self.episodes}, most {self.most}, top {self.top}"
            raise DictionaryError(f"{given}; due: 2, 0, 1 and 1 or more")
        if not 0 <= self.seed < 200 or max(self.look, self.episodes) > _SEEDS:
            raise DictionaryError(f"seed is {self.seed}; it must be 0 to 199, and there are at most {_SEEDS} episodes")

    def seeds(self, first: int, count: int) -> range:
        """Of one purpose."""
        return range(first + self.seed * _SEEDS, first + self.seed * _SEEDS + count)


def ablate(
    trials: Trials,
    dictionary: Dictionary,
    options: AblateOptions,
    *,
    action_names: Sequence[str] = (),
    command: str = "",
    state: Path | None = None,
    tick: Callable[[int], None] = lambda _: None,
    note: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """What `analyzer.causal` writes, as plain data; features in the order of their effect on the action."""
    check_agent(dictionary, trials)
    memory = Memory.of("ablate", trials, dictionary, "return", asdict(options), state, tick)
    note(f"{options.look} clean episodes")
    activity = activity_of(trials, dictionary, options.seeds(LOOK_SEED, options.look), options.max_steps)
    live = activity.live
    if not live:
        raise DictionaryError(f"no feature of {dictionary.name!r} is active in {options.look} episodes; there is nothing to ablate")
    note(f"the action without each of {len(live)} features")
    codes = dictionary.codes(activity.seen.x).to_scipy().tocsc()

    def values_of(feature: int) -> Doubles:
        return np.asarray(codes[:, [feature]].todense(), np.float64).ravel()

    rows = _actions(trials.effect, dictionary, activity, live, values_of, action_names)
    ranked = sorted(live, key=lambda f: -rows[f]["action"]["mean"])
    if options.episodes:
        measured = ranked[: options.most]
        note(f"the return without each of {len(measured)} features, {options.episodes} pairs each")
        seeds = options.seeds(ABLATION_SEED, options.episodes)
        base = memory.trial("base", None, seeds, options.max_steps)
        for f in measured:
            arm = memory.trial(f"{f} ablate", splice_of_edit(dictionary, Edit("ablate", feature=f)), seeds, options.max_steps)
            rows[f]["return"] = {
                **_plain(change(base.total, arm.total, resamples=_RESAMPLES)), "p": p_of_difference(base.total, arm.total),
                "falls": int(arm.fell.sum()), "r": _number(_episode_correlation(values_of(f), activity)),
            }  # fmt: skip
        baseline = {**mean(base.total).plain(), "falls": int(base.fell.sum())}
    else:
        measured, baseline = [], None
    for key, features in (("action", ranked), ("return", measured)):
        q = benjamini_hochberg(np.array([rows[f][key]["p"] for f in features], np.float64))
        for f, value in zip(features, q, strict=True):
            rows[f][key]["q"] = _number(float(value))
    return {
        "dictionary": dictionary.name, "dictionary_hash": dictionary.hash, "weights_hash": trials.model_hash, "agent": trials.agent,
        "command": command, "action_unit": "kl" if trials.effect.kind == "discrete" else "sd",
        "seeds": {"action": _ends(options.seeds(LOOK_SEED, options.look)), "return": _ends(options.seeds(ABLATION_SEED, options.episodes))},
        "baseline": baseline, "live": len(live), "of": dictionary.features, "measured_return": len(measured),
        "prediction": {key: interval.plain() for key, interval in _predictions(rows, ranked, measured).items()},
        "found": {key: sum(rows[f][key]["q"] < 0.05 for f in which) for key, which in (("action", ranked), ("return", measured))},
        "features": {str(f): rows[f] for f in ranked[: options.top]},
    }  # fmt: skip


def _actions(
    effect: Effect, dictionary: Dictionary, activity: Activity, live: Sequence[int], values_of: Callable[[int], Doubles],
    names: Sequence[str],
) -> dict[int, dict[str, Any]]:  # fmt: skip
    seen = activity.seen
    x, y = torch.from_numpy(seen.x), torch.from_numpy(seen.y)
    episodes = len(seen.seeds)
    counts = np.bincount(seen.episode, minlength=episodes).astype(np.float64)
    rows: dict[int, dict[str, Any]] = {}
    with torch.inference_mode():
        true = effect.head(y).double()
        chances = true.softmax(dim=1) if effect.kind == "discrete" else true.clamp(effect.low, effect.high)
        deviation = chances.std(dim=0).clamp(min=1e-12)
        for f in live:
            found = effect.head(splice_of_edit(dictionary, Edit("ablate", feature=f))(x, y)).double()
            if effect.kind == "discrete":
                log_true, log_found = true.log_softmax(dim=1), found.log_softmax(dim=1)
                moved = (log_true.exp() * (log_true - log_found)).sum(dim=1).clamp(min=0).numpy()
                signed = (log_found.exp() - chances).numpy()
            else:
                difference = (found.clamp(effect.low, effect.high) - chances) / deviation
                moved, signed = difference.square().mean(dim=1).sqrt().numpy(), difference.numpy()
            values = values_of(f)
            which = int(np.abs(signed.mean(axis=0)).argmax())
            per_episode = np.bincount(seen.episode, moved, minlength=episodes) / counts
            toward = np.bincount(seen.episode, signed[:, which], minlength=episodes) / counts
            active = values > 0
            firing = float(moved[active].mean()) if active.any() else math.nan
            rows[f] = {
                "operation": "ablate", "strength": 0.0, "active_share": round(float(activity.share[f]), _DIGITS),
                "action": {
                    **_plain(mean(per_episode, _RESAMPLES)), "when_active": _number(firing),
                    "toward": names[which] if which < len(names) else str(which), "change": _plain(mean(toward, _RESAMPLES)),
                    "p": p_of_difference(np.zeros(episodes), toward), "r": _number(_strongest(values, chances.numpy())),
                },
                "return": None,
            }  # fmt: skip
    return rows


def _strongest(values: Doubles, actions: Doubles) -> float:
    """The correlation of (n,) with a column of (n, actions) that is largest in size."""
    found = [_correlation(values, column) for column in actions.T]
    known = [r for r in found if math.isfinite(r)]
    return max(known, key=abs) if known else math.nan


def _episode_correlation(values: Doubles, activity: Activity) -> float:
    seen = activity.seen
    n = len(seen.seeds)
    means = np.bincount(seen.episode, values, minlength=n) / np.bincount(seen.episode, minlength=n)
    return _correlation(means, seen.total)


def _correlation(a: Doubles, b: Doubles) -> float:
    a, b = a - a.mean(), b - b.mean()
    size = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / size if size > 0 else math.nan


def _predictions(rows: dict[int, dict[str, Any]], ranked: Sequence[int], measured: Sequence[int]) -> dict[str, Interval]:
    def column(features: Sequence[int], key: str, name: str) -> Doubles:
        return np.array([math.nan if rows[f][key][name] is None else abs(rows[f][key][name]) for f in features], np.float64)

    return {
        "action": rank_correlation(column(ranked, "action", "r"), column(ranked, "action", "mean")),
        "return": rank_correlation(column(measured, "return", "r"), column(measured, "return", "mean")),
        "return_by_action": rank_correlation(column(measured, "action", "mean"), column(measured, "return", "mean")),
    }


def _plain(interval: Interval) -> dict[str, Any]:
    return {k: round(v, _DIGITS) if isinstance(v, float) else v for k, v in interval.plain().items()}


def _number(value: float) -> float | None:
    return round(value, _DIGITS) if math.isfinite(value) else None


def _ends(seeds: range) -> list[int]:
    return [seeds.start, seeds.stop - 1] if len(seeds) else []
