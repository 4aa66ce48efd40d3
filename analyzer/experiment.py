"""Which feature, changed how, moves what an agent achieves? A search, and a confirmation on episodes that it never saw.

1. Clean episodes tell how often each feature is active and its typical maximum (99th percentile where it is active).
2. Candidates are all live features x operations x strengths. Sequential halving (Karnin, Koren & Somekh 2013; Jamieson &
   Talwalkar 2016): all are tried on a few episodes, the best share of them on twice as many more, and so on; a candidate is
   judged by the mean difference from the policy alone on the same seeds, start and luck alike.
3. The finalists are run on fresh paired seeds. The best *of the search* is the result: its interval needs no correction, for
   nothing was chosen on these episodes. The finalists' p-values are adjusted by Holm.
4. Controls of the best: random directions of its decoder row's norm in that row's place, moved by the same amount at the
   same steps; its own direction with the wrong sign; the same operation on other features.
5. The dose-response curve of the best on the confirmation's seeds: descriptive.

Statistics: `analyzer.paired`. Episodes come from `analyzer.trial`, with common random numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch

from interlatent_live.analyzer.candidates import (
    ADDS,
    CLAMPS,
    SCALES,
    Activity,
    Candidate,
    activity_of,
    candidates_of,
    check_agent,
    of_dose,
    splice_of_edit,
)
from interlatent_live.analyzer.dictionary import Dictionary
from interlatent_live.analyzer.edit import OPERATIONS, Edit, Operation
from interlatent_live.analyzer.paired import Interval, change, change_over_arms, holm, mean, p_of_difference
from interlatent_live.analyzer.rollout import Splice
from interlatent_live.analyzer.trial import CONFIRM_SEED, LOOK_SEED, SEARCH_SEED, Memory, Trial, Trials
from interlatent_live.stream.errors import DictionaryError

__all__ = ["Goal", "SteerOptions", "planned", "steer"]

Goal = Literal["raise", "lower", "change"]
Doubles = npt.NDArray[np.float64]
_SEEDS: Final = 50_000
"""Of one purpose and one experiment, at most."""
_DOSES: Final[dict[str, tuple[float, ...]]] = {
    "scale": (0.0, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0, 5.0),
    "clamp": (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0),
    "add": (-1.0, -0.5, -0.2, 0.0, 0.2, 0.5, 1.0, 1.5),
}


@dataclass(frozen=True, slots=True)
class SteerOptions:
    """How much to try."""

    episodes: int = 500
    """Paired episodes of the confirmation."""
    seed: int = 0
    """Which seeds: experiments of different numbers share none."""
    goal: Goal = "raise"
    """What to do to the outcome."""
    look: int = 50
    """Clean episodes for the features' activity."""
    first: int = 64
    """Paired episodes of the search's first round; each later round adds twice as many."""
    rounds: int = 3
    """Rounds of the search."""
    keep: float = 0.25
    """Share of the candidates that goes on to the next round."""
    finalists: int = 4
    """Candidates that are confirmed."""
    screen: int | None = None
    """Try only so many features, those that move the action most when ablated; None: all that are live."""
    features: tuple[int, ...] | None = None
    """Try only these."""
    tries: tuple[tuple[Operation, float], ...] | None = None
    """Try only these operations and doses, as `Candidate` has them; None: all."""
    directions: int = 20
    """Random directions of the control."""
    others: int = 20
    """Other features of the control, at most."""
    doses: int | None = None
    """Points of the dose-response curve, at most; None: all."""
    search_steps: int | None = None
    """Length of an episode of the search, at most; None: whole episodes."""
    max_steps: int | None = None
    """Length of an episode of the confirmation, at most."""
    max_falls: float | None = None
    """Share of episodes that may end by themselves beyond the policy's own; candidates above are dropped. None: no matter."""

    def __post_init__(self) -> None:
        for name, least in (("episodes", 2), ("look", 1), ("first", 2), ("rounds", 1), ("finalists", 1), ("directions", 1), ("others", 0)):
            if getattr(self, name) < least:
                raise DictionaryError(f"{name} is {getattr(self, name)}; it must be {least} or more")
        if not 0 < self.keep < 1:
            raise DictionaryError(f"keep is {self.keep}; it is a share of the candidates, between 0 and 1")
        for operation, dose in self.tries or ():
            if operation not in OPERATIONS or not math.isfinite(dose):
                there = ", ".join(OPERATIONS)
                raise DictionaryError(f"{operation}:{dose} cannot be tried; write one of {there} and a number, such as scale:1.5")
        if self.goal not in get_args(Goal):
            raise DictionaryError(f"goal is {self.goal!r}; there are {', '.join(get_args(Goal))}")
        if not 0 <= self.seed < 200 or max(self.episodes, self.look, self.searched) > _SEEDS:
            raise DictionaryError(f"seed is {self.seed}, episodes {self.episodes}; seed must be 0 to 199, and episodes at most {_SEEDS}")

    @property
    def searched(self) -> int:
        """Episodes of a candidate that reaches the last round."""
        return int(sum(self.first * 2**i for i in range(self.rounds)))

    def seeds(self, first: int, count: int, begin: int = 0) -> range:
        """`count` seeds of one purpose, from the `begin`-th."""
        begin += first + self.seed * _SEEDS
        return range(begin, begin + count)


def planned(options: SteerOptions, features: int) -> int:
    """Episodes that `steer` runs at most, the look apart: what a progress bar counts."""
    candidates = features * (1 + len(SCALES) + len(CLAMPS) + len(ADDS) if options.tries is None else len(options.tries))
    total, left = 0, candidates
    for i in range(options.rounds):
        total += (left + 1) * options.first * 2**i
        left = max(options.finalists, math.ceil(left * options.keep))
    controls = options.directions + 1 + options.others
    doses = options.doses or max(map(len, _DOSES.values()))
    return total + (1 + options.finalists + controls + doses) * options.episodes


def steer(
    trials: Trials,
    dictionary: Dictionary,
    options: SteerOptions,
    *,
    state: Path | None = None,
    tick: Callable[[int], None] = lambda _: None,
    note: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """The whole experiment as plain data. `state`: where an interrupted one goes on; `tick` is told episodes done, `note` stages."""
    check_agent(dictionary, trials)
    memory = Memory.of("steer", trials, dictionary, trials.outcome.name, asdict(options), state, tick)
    note(f"{options.look} clean episodes")
    activity = activity_of(trials, dictionary, options.seeds(LOOK_SEED, options.look), options.max_steps)
    features = _features(trials, dictionary, activity, options)
    if not features:
        raise DictionaryError(f"no feature of {dictionary.name!r} is active in {options.look} episodes; there is nothing to steer")
    candidates = candidates_of(features, activity, options.tries)
    found = _search(memory, dictionary, candidates, options, note)
    if not found:
        raise DictionaryError("every candidate made the agent fall in the search; allow more falls, or search with milder strengths")
    note(f"{len(found)} finalists on {options.episodes} fresh pairs")
    confirm = options.seeds(CONFIRM_SEED, options.episodes)
    whole = trials.outcome.whole

    def run(label: str, splice: Splice | None) -> Trial:
        return memory.trial(label, splice, confirm, options.max_steps)

    base = run("base", None)
    arms = [run(c.label, splice_of_edit(dictionary, c.edit)) for c, _ in found]
    p = np.array([p_of_difference(base.value, arm.value) for arm in arms])
    effects = [change(base.value, arm.value, whole) for arm in arms]
    falls = [int(arm.fell.sum()) for arm in arms]
    rows = [
        {
            **c.told, "searched_percent": searched, "effect_percent": effect.plain(), "p": float(one), "p_holm": float(adjusted),
            "falls": fell,
        }
        for (c, searched), effect, one, adjusted, fell in zip(found, effects, p, holm(p), falls, strict=True)
    ]  # fmt: skip
    best, arm, effect = found[0][0], arms[0], effects[0]
    note("controls")
    controls = _controls(run, dictionary, best, activity, options, base, whole)
    note("dose-response")
    curve = _curve(run, dictionary, best, activity, options, base, whole)
    random_mean = abs(controls["random"]["mean"])
    return {
        "agent": trials.agent, "dictionary": dictionary.name, "dictionary_hash": dictionary.hash, "weights_hash": trials.model_hash,
        "outcome": {"name": trials.outcome.name, "unit": trials.outcome.unit, "description": trials.outcome.description},
        "baseline": mean(base.value).plain(), "steered": mean(arm.value).plain(), "best": best.told,
        "effect_percent": effect.plain(), "effect": _absolute(base, arm).plain(), "p": rows[0]["p"], "p_holm": rows[0]["p_holm"],
        "falls": {"baseline": int(base.fell.sum()), "steered": int(arm.fell.sum()), "of": len(base.fell)},
        "controls": controls, "random_share": random_mean / abs(effect.mean) if effect.mean else None,
        "dose_response": curve, "finalists": rows, "search": {
            "features": len(features), "live": len(activity.live), "of": dictionary.features,
            "candidates": len(candidates),
            "seeds": _told_seeds(options.seeds(SEARCH_SEED, options.searched)), "rounds": options.rounds,
        },
        "confirmation": {"seeds": _told_seeds(confirm), "pairs": options.episodes},
        "multiple_comparisons": "the best was chosen on the search's seeds alone; p_holm: Holm over the finalists on the confirmation's",
        "intervals": "95 %; paired BCa bootstrap of 10,000 resamples; over directions and episodes for random and other",
        "options": asdict(options),
    }  # fmt: skip


def _features(trials: Trials, dictionary: Dictionary, activity: Activity, options: SteerOptions) -> list[int]:
    live = activity.live
    if options.features is not None:
        for f in options.features:
            Edit("ablate", feature=f).check(dictionary)
        return [f for f in options.features if activity.maximum[f] > 0]
    if options.screen is None or len(live) <= options.screen:
        return live
    stride = -(-len(activity.seen.x) // 2000)
    x, y = torch.from_numpy(activity.seen.x[::stride].copy()), torch.from_numpy(activity.seen.y[::stride].copy())
    with torch.inference_mode():
        scale = trials.effect.scale(y)
        moved = [float(trials.effect.penalty(y, splice_of_edit(dictionary, Edit("ablate", feature=f))(x, y), scale)) for f in live]
    order = np.argsort(moved, kind="stable")[::-1]
    return sorted(live[int(i)] for i in order[: options.screen])


def _search(
    memory: Memory, dictionary: Dictionary, candidates: list[Candidate], options: SteerOptions, note: Callable[[str], None]
) -> list[tuple[Candidate, float]]:
    """Step 2: at most `finalists`, best first, each with its change in the search in percent of the policy's own."""
    base_value, base_fell = np.empty(0), np.empty(0, np.bool_)
    values: dict[Candidate, Doubles] = {c: np.empty(0) for c in candidates}
    fell: dict[Candidate, npt.NDArray[np.bool_]] = {c: np.empty(0, np.bool_) for c in candidates}
    left = list(candidates)
    sign = -1.0 if options.goal == "lower" else 1.0

    def score(c: Candidate) -> float:
        if options.max_falls is not None and fell[c].mean() > base_fell.mean() + options.max_falls:
            return -math.inf
        difference = float((values[c] - base_value).mean())
        return abs(difference) if options.goal == "change" else sign * difference

    begin = 0
    for number in range(options.rounds):
        count = options.first * 2**number
        seeds = options.seeds(SEARCH_SEED, count, begin)
        note(f"search, round {number + 1} of {options.rounds}: {len(left)} candidates, {count} more episodes each")
        base = memory.trial("base", None, seeds, options.search_steps)
        base_value, base_fell = np.concatenate([base_value, base.value]), np.concatenate([base_fell, base.fell])
        for c in left:
            arm = memory.trial(c.label, splice_of_edit(dictionary, c.edit), seeds, options.search_steps)
            values[c], fell[c] = np.concatenate([values[c], arm.value]), np.concatenate([fell[c], arm.fell])
        begin += count
        last = number == options.rounds - 1
        size = options.finalists if last else max(options.finalists, math.ceil(len(left) * options.keep))
        left = [c for c in sorted(left, key=score, reverse=True) if score(c) > -math.inf][:size]
    whole = abs(float(base_value.mean()))
    return [(c, 100 * float((values[c] - base_value).mean()) / whole if whole else math.nan) for c in left]


def _controls(
    run: Callable[[str, Splice | None], Trial], dictionary: Dictionary, best: Candidate, activity: Activity,
    options: SteerOptions, base: Trial, whole: float | None,
) -> dict[str, Any]:  # fmt: skip
    generator = torch.Generator().manual_seed(options.seed)
    row = dictionary.W_dec[best.feature]
    random = []
    for i in range(options.directions):
        direction = torch.randn(row.shape, generator=generator)
        direction *= row.norm() / direction.norm()
        random.append(run(f"{best.label} random {i}", splice_of_edit(_with_row(dictionary, best.feature, direction), best.edit)))
    wrong = run(f"{best.label} wrong sign", splice_of_edit(_with_row(dictionary, best.feature, -row), best.edit))
    rest = [f for f in activity.live if f != best.feature]
    chosen = sorted(np.random.default_rng(options.seed).permutation(rest)[: options.others].tolist())
    same = [of_dose(f, best.operation, best.dose, activity) for f in chosen]
    others = [run(c.label, splice_of_edit(dictionary, c.edit)) for c in same]
    return {
        "random": _over(base, random, whole), "wrong_sign": change(base.value, wrong.value, whole).plain(),
        "other": _over(base, others, whole) | {"features": chosen},
    }  # fmt: skip


def _over(base: Trial, arms: list[Trial], whole: float | None) -> dict[str, Any]:
    if not arms:
        return Interval(math.nan, math.nan, math.nan, 0).plain() | {"arms": 0, "each": []}
    values = np.stack([arm.value for arm in arms])
    scale = abs(float(base.value.mean())) if whole is None else whole
    each = [100 * float((v - base.value).mean()) / scale if scale else None for v in values]
    return change_over_arms(base.value, values, whole).plain() | {"arms": len(arms), "each": each}


def _curve(
    run: Callable[[str, Splice | None], Trial], dictionary: Dictionary, best: Candidate, activity: Activity, options: SteerOptions,
    base: Trial, whole: float | None,
) -> list[dict[str, Any]]:  # fmt: skip
    operation = "scale" if best.operation == "ablate" else best.operation
    doses = list(_DOSES[operation])
    if options.doses is not None and len(doses) > options.doses:
        doses = [doses[round(i)] for i in np.linspace(0, len(doses) - 1, options.doses)]
    curve = []
    for dose in sorted({*doses, best.dose}):
        c = of_dose(best.feature, operation, dose, activity)
        c = best if c.operation == best.operation and c.strength == best.strength else c
        arm = run(c.label, splice_of_edit(dictionary, c.edit))
        curve.append({
            "operation": operation, "strength": c.strength, "dose": dose, "effect_percent": change(base.value, arm.value, whole).plain(),
            "falls": int(arm.fell.sum()),
        })  # fmt: skip
    return curve


def _with_row(dictionary: Dictionary, feature: int, row: torch.Tensor) -> Dictionary:
    """The same features, one of which writes along another direction."""
    decoder = dictionary.W_dec.clone()
    decoder[feature] = row
    return Dictionary(dictionary.cfg, {**dictionary.tensors, "W_dec": decoder})


def _absolute(base: Trial, arm: Trial) -> Interval:
    return mean(arm.value - base.value)


def _told_seeds(seeds: range) -> list[int]:
    return [seeds.start, seeds.stop - 1]
