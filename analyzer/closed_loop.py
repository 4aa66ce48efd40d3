"""Closed-loop training: a dictionary on which the agent can live.

A dictionary of recorded states is accurate where the agent was, not where it goes once it acts on the reconstruction;
its errors lead to states that it never saw (the argument of DAgger: Ross, Gordon & Bagnell 2011, arXiv:1011.0686). So:

1. Train on the recording's frames and on the first steps of many clean episodes: starts are rare in a recording and
   hardest. The loss adds the error of the action, in units of its variance, clipped as the environment clips it.
2. A round: roll out with the dictionary spliced into the policy, from many starts (the first `start_steps` steps) and
   over a few whole episodes. Keep inputs and the outputs that the policy computed for them, before they were replaced:
   those are the labels. Train on everything so far, from where training stood, at half the learning rate.
3. After each round, measure the mean return of spliced validation episodes. Rounds differ (falls are rare and chaotic),
   so the `finalists` best are measured on more validation episodes, and the best of them is kept.

After each round everything is kept, and within one the trainer's checkpoint (`analyzer.rounds`): interrupted, the loop goes on
from there and ends with the same bits.

Seeds of training, validation and cards are disjoint (`analyzer.rollout`). Costs, for the humanoid on one core: a minute
of training and a minute of rollouts a round.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import torch

from interlatent_live.analyzer.card import judge
from interlatent_live.analyzer.checkpoint import Checkpoint
from interlatent_live.analyzer.dictionary import Dictionary
from interlatent_live.analyzer.rollout import TRAINING_SEED, VALIDATION_SEED, Episode, Rollouts, splice_of
from interlatent_live.analyzer.rounds import Round, RoundsFile
from interlatent_live.analyzer.samples import Samples
from interlatent_live.analyzer.training import VALIDATION_SHARE, Progress, Trainer, TrainOptions, fingerprint, one_thread, settings
from interlatent_live.stream.errors import DictionaryError, DictionaryMismatch

__all__ = ["LoopOptions", "Round", "train_closed_loop", "with_l0"]


@dataclass(frozen=True, slots=True)
class LoopOptions:
    """How to close the loop."""

    rounds: int = 6
    """Rounds of rollouts and training."""
    clean_starts: int = 150
    """Clean starts added to the recording."""
    starts: int = 60
    """Spliced starts a round."""
    walks: int = 8
    """Whole spliced episodes a round."""
    start_steps: int = 200
    """Steps of a start."""
    round_steps: int = 4000
    """Optimiser steps a round; the first training takes the options' `steps`."""
    validation: int = 40
    """Validation episodes after each round, and as many again for each finalist."""
    validation_steps: int | None = 300
    """Steps of a validation episode; None: all."""
    finalists: int = 3


HALF: Final = 0.5


def train_closed_loop(
    samples: Samples,
    rollouts: Rollouts,
    options: TrainOptions,
    loop: LoopOptions | None = None,
    *,
    name: str = "dictionary",
    command: str = "",
    progress: Callable[[Progress], None] | None = None,
    on_round: Callable[[Round, Dictionary], None] | None = None,
    l0: float | None = None,
    checkpoint: Path | None = None,
) -> tuple[Dictionary, list[Round]]:
    """Train on `samples` and in `rollouts`; the dictionary carries a card of the recording's held-out episodes.

    `checkpoint`: where an interrupted loop is kept; rounds that are kept are not reported again.

    `l0`: at the end, set the threshold so that the recording's whole episodes have that many active latents
    (`with_l0`); starts, of which there are many among the frames trained on, take more than a walk does.
    """
    loop = loop or LoopOptions()
    if samples.model_hash and samples.model_hash != rollouts.model_hash:
        ours, theirs = samples.model_hash[:12], rollouts.model_hash[:12]
        raise DictionaryMismatch(f"{samples.source} is of the weights {ours}, the agent {rollouts.agent!r} has {theirs}")
    recorded, held = samples.split(options.held_out, options.seed)
    watch: Samples | None = None
    if recorded.episodes > 2:
        recorded, watch = recorded.split(VALIDATION_SHARE, options.seed)
    seeds = _Seeds(TRAINING_SEED)
    about = json.dumps([fingerprint(samples, options), asdict(loop), rollouts.agent, rollouts.model_hash])
    file = None if checkpoint is None else RoundsFile(checkpoint, hashlib.sha256(about.encode()).hexdigest())
    with one_thread():
        kept = None if file is None else file.read(recorded)
        rounds: list[Round] = [] if kept is None else kept.rounds
        made: list[Dictionary] = [] if kept is None else kept.made
        if kept is None:
            fit = _with(recorded, rollouts.run(None, seeds(loop.clean_starts), max_steps=loop.start_steps, keep=True))
            begun_with = fit.frames
        else:
            fit, begun_with, seeds.next = kept.fit, kept.begun_with, kept.next_seed
        clean = _Validation(rollouts, loop)
        trainer = Trainer(_first(fit, begun_with), options, rollouts.effect)
        if kept is not None:
            trainer.restore(kept.model, kept.state)
        for number in range(len(rounds), loop.rounds + 1):
            under_way = None if file is None else Checkpoint(file.training(number), file.fingerprint)
            trainer.run(
                fit, watch, progress=progress, checkpoint=under_way, seed=options.seed + number,
                rate=options.rate * (HALF if number else 1), steps=loop.round_steps if number else options.steps,
            )  # fmt: skip
            provenance = settings(options) | {
                "recording": samples.source, "episodes": samples.episodes, "frames": fit.frames, "command": command,
                "closed_loop": {**asdict(loop), "agent": rollouts.agent, "round": number},
            }  # fmt: skip
            dictionary = trainer.dictionary(fit, name=name, provenance=provenance)
            recovery, survived = clean.measure(dictionary, 0)
            card = judge(dictionary, held, recorded)
            rounds.append(Round(number, fit.frames, recovery, survived, float(card["fvu"] or math.nan), float(card["l0"])))
            made.append(dictionary.with_card(card))
            if on_round is not None:
                on_round(rounds[-1], made[-1])
            if number < loop.rounds:
                splice = splice_of(dictionary)
                met = rollouts.run(splice, seeds(loop.starts), max_steps=loop.start_steps, keep=True)
                met += rollouts.run(splice, seeds(loop.walks), keep=True)
                fit = _with(fit, met)
            if file is not None:
                file.write(rounds, made, fit, begun_with, seeds.next, trainer.model.tensors, trainer.model.state)
        chosen = made[_choose(rounds, made, clean, loop)]
        if l0 is not None:
            chosen = with_l0(chosen, recorded, l0)
            chosen = chosen.with_card(judge(chosen, held, recorded))
    if file is not None:
        file.remove(loop.rounds)
    return chosen, rounds


def with_l0(dictionary: Dictionary, samples: Samples, l0: float) -> Dictionary:
    """The same with one threshold, at which the whole episodes of `samples` (half the longest, or longer) have `l0` active."""
    if dictionary.cfg.activation != "batchtopk":
        raise DictionaryError(f"{dictionary.name!r} is {dictionary.cfg.activation}: only batchtopk has a threshold to set for an L0")
    numbers, lengths = np.unique(samples.episode, return_counts=True)
    whole = np.isin(samples.episode, numbers[2 * lengths >= lengths.max()])
    with torch.inference_mode():
        pre = torch.relu(dictionary.pre(torch.from_numpy(samples.x[whole][:: -(-int(whole.sum()) // 16_384)].copy())))
        kept = round(l0 * len(pre))
        if not 1 <= kept <= pre.numel():
            raise DictionaryError(f"l0 is {l0}; it must be above 0 and at most the {dictionary.features} features")
        threshold = torch.topk(pre.flatten(), kept, sorted=False).values.min()
    cfg = replace(dictionary.cfg, provenance={**dictionary.cfg.provenance, "threshold_l0": l0})
    return Dictionary(cfg, {**dictionary.tensors, "threshold": threshold.clone()})


class _Validation:
    """Clean returns of the validation episodes, and the spliced ones' share of them."""

    def __init__(self, rollouts: Rollouts, loop: LoopOptions) -> None:
        self._rollouts, self._loop = rollouts, loop
        self._clean: dict[int, list[Episode]] = {}

    def measure(self, dictionary: Dictionary, part: int) -> tuple[float, float]:
        first = VALIDATION_SEED + part * self._loop.validation
        seeds = range(first, first + self._loop.validation)
        if part not in self._clean:
            self._clean[part] = self._rollouts.run(None, seeds, max_steps=self._loop.validation_steps)
        clean = self._clean[part]
        found = self._rollouts.run(splice_of(dictionary), seeds, max_steps=self._loop.validation_steps)
        total = sum(e.total for e in clean)
        survived = float(np.mean([f.steps >= c.steps for f, c in zip(found, clean, strict=True)]))
        return (sum(e.total for e in found) / total if total else math.nan), survived


def _choose(rounds: list[Round], made: Sequence[Dictionary], clean: _Validation, loop: LoopOptions) -> int:
    order = sorted(range(len(rounds)), key=lambda i: (-rounds[i].recovery, rounds[i].fvu))[: max(1, loop.finalists)]
    for i in order:
        more, _ = clean.measure(made[i], 1)
        rounds[i] = replace(rounds[i], final_recovery=(rounds[i].recovery + more) / 2)
    return max(order, key=lambda i: (rounds[i].final_recovery or -math.inf, -rounds[i].fvu))


def _with(samples: Samples, episodes: Iterable[Episode]) -> Samples:
    episodes = [e for e in episodes if e.steps]
    first = int(samples.episode.max()) + 1
    numbers = np.repeat(np.arange(first, first + len(episodes)), [e.steps for e in episodes])
    return replace(
        samples,
        x=np.concatenate([samples.x, *(e.x for e in episodes)]),
        y=np.concatenate([samples.y, *(e.y for e in episodes)]),
        episode=np.concatenate([samples.episode, numbers]),
    )


def _first(samples: Samples, frames: int) -> Samples:
    return replace(samples, x=samples.x[:frames], y=samples.y[:frames], episode=samples.episode[:frames])


class _Seeds:
    """Seeds that were not used before."""

    def __init__(self, first: int) -> None:
        self.next = first

    def __call__(self, count: int) -> range:
        self.next += count
        return range(self.next - count, self.next)
