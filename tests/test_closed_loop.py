"""Closing the loop on CartPole, whose episodes are quick; the humanoid's is the command in docs/closed-loop.md."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from interlatent_live.analyzer.closed_loop import LoopOptions, Round, train_closed_loop, with_l0
from interlatent_live.analyzer.dictionary import Dictionary
from interlatent_live.analyzer.rollout import CARD_SEED, TRAINING_SEED, VALIDATION_SEED, splice_of
from interlatent_live.analyzer.samples import Samples
from interlatent_live.analyzer.training import Progress, TrainOptions
from interlatent_live.rollouts import AgentRollouts
from interlatent_live.stream.errors import DictionaryError, DictionaryMismatch, UnknownTapPoint

QUICK = TrainOptions(features=16, k=3, steps=200, batch=64, action_weight=1.0)
LOOP = LoopOptions(rounds=2, clean_starts=4, starts=4, walks=1, start_steps=40, round_steps=100, validation=3, validation_steps=60)


@pytest.fixture(scope="module")
def rollouts() -> AgentRollouts:
    return AgentRollouts("cartpole", "1:out", "3:out")


def recorded(rollouts: AgentRollouts) -> Samples:
    met = rollouts.run(None, range(6), max_steps=80, keep=True)
    episode = np.repeat(np.arange(len(met)), [e.steps for e in met])
    x, y = np.concatenate([e.x for e in met]), np.concatenate([e.y for e in met])
    return Samples(x, y, episode, "1:out", "3:out", rollouts.model_hash, rollouts.step_period_s)


def test_an_episode_is_what_its_seed_says_and_a_faithful_splice_changes_nothing(rollouts: AgentRollouts) -> None:
    clean = rollouts.run(None, [3, 4], max_steps=50, keep=True)
    same = rollouts.run(lambda x, y: y.clone(), [3, 4], max_steps=50, keep=True)
    assert [e.total for e in clean] == [e.total for e in same] == [50, 50]
    np.testing.assert_array_equal(clean[1].x, same[1].x)
    assert clean[0].x.shape == (50, 64)
    # what the effect makes of the kept outputs are the policy's own scores
    scores = rollouts.effect.head(torch.from_numpy(clean[0].y))
    assert scores.shape == (50, 2)
    assert rollouts.effect.kind == "discrete"


def test_what_is_kept_is_what_the_policy_computed_not_what_replaced_it(rollouts: AgentRollouts) -> None:
    (met,) = rollouts.run(lambda x, y: torch.zeros_like(y), [5], max_steps=30, keep=True)
    assert met.steps < 30 or met.total == 30
    assert (met.y != 0).any()


def test_an_output_that_is_not_at_the_top_of_a_sequential_goes_through_hooks() -> None:
    by_slice = AgentRollouts("cartpole", "1:out", "3:out")
    by_hook = AgentRollouts("cartpole", "1:out", "4:in")
    y = torch.randn(5, 64)
    torch.testing.assert_close(by_slice.effect.head(y), by_hook.effect.head(y))
    assert by_hook.run(lambda x, y: y, [1], max_steps=20)[0].total == 20
    with pytest.raises(UnknownTapPoint, match="9"):
        AgentRollouts("cartpole", "9:out", "3:out")


def test_rounds_add_states_and_the_best_on_validation_episodes_is_kept(rollouts: AgentRollouts) -> None:
    seen: list[tuple[Round, Dictionary]] = []
    samples = recorded(rollouts)
    dictionary, rounds = train_closed_loop(
        samples, rollouts, QUICK, LOOP, name="c", command="made by a test", on_round=lambda r, d: seen.append((r, d))
    )
    assert [r.number for r in rounds] == [0, 1, 2]
    assert rounds[0].frames < rounds[1].frames < rounds[2].frames
    best = max(rounds, key=lambda r: (r.final_recovery or 0, -r.fvu))
    assert dictionary.hash == seen[best.number][1].hash
    assert dictionary.cfg.provenance["closed_loop"]["round"] == best.number
    assert dictionary.card is not None
    assert dictionary.card["fvu"] == pytest.approx(best.fvu)
    assert rollouts.run(splice_of(dictionary), [VALIDATION_SEED], max_steps=60)[0].steps > 5


def test_the_same_seed_gives_the_same_dictionary(rollouts: AgentRollouts) -> None:
    samples, loop = recorded(rollouts), replace(LOOP, rounds=1)
    first, second = (train_closed_loop(samples, rollouts, QUICK, loop)[0] for _ in range(2))
    assert first.hash == second.hash


def test_a_recording_of_other_weights_is_refused(rollouts: AgentRollouts) -> None:
    with pytest.raises(DictionaryMismatch, match="of the weights"):
        train_closed_loop(replace(recorded(rollouts), model_hash="other"), rollouts, QUICK, LOOP)


def test_seeds_of_training_choice_and_cards_are_far_apart() -> None:
    assert VALIDATION_SEED - TRAINING_SEED >= 1_000_000
    assert CARD_SEED - VALIDATION_SEED >= 1_000_000


def test_the_threshold_is_set_for_an_l0_over_whole_episodes(rollouts: AgentRollouts) -> None:
    met = rollouts.run(None, range(4), max_steps=80, keep=True) + rollouts.run(None, range(50, 70), max_steps=10, keep=True)
    episode = np.repeat(np.arange(len(met)), [e.steps for e in met])
    x, y = np.concatenate([e.x for e in met]), np.concatenate([e.y for e in met])
    samples = Samples(x, y, episode, "1:out", "3:out", rollouts.model_hash)
    batchtopk = replace(QUICK, recipe="batchtopk")
    made, _ = train_closed_loop(samples, rollouts, batchtopk, replace(LOOP, rounds=0), l0=2.5)
    whole = samples.x[episode < 4]
    assert made.codes(whole).counts.mean() == pytest.approx(2.5, abs=0.4)  # of the two to four that were fitted
    assert made.cfg.provenance["threshold_l0"] == 2.5
    with pytest.raises(DictionaryError, match="l0 is 0"):
        with_l0(made, samples, 0)
    with pytest.raises(DictionaryError, match="only batchtopk"):
        train_closed_loop(samples, rollouts, QUICK, replace(LOOP, rounds=0), l0=2.5)


def test_an_interrupted_loop_goes_on_with_the_same_bits(rollouts: AgentRollouts, tmp_path: Path) -> None:
    samples, path = recorded(rollouts), tmp_path / ".c.training.safetensors"
    whole, all_rounds = train_closed_loop(samples, rollouts, QUICK, LOOP)

    def interrupt(at: int) -> Callable[[Progress], None]:
        seen = 0

        def report(progress: Progress) -> None:
            nonlocal seen
            seen += 1
            if seen == at:
                raise KeyboardInterrupt

        return report

    reported: list[int] = []
    for at in (40, 130, 50):  # reports: 100 in round 0, 100 in each later one; within round 0, 1 and 2
        with pytest.raises(KeyboardInterrupt):
            train_closed_loop(
                samples, rollouts, QUICK, LOOP, progress=interrupt(at), on_round=lambda r, _: reported.append(r.number), checkpoint=path
            )
    assert reported == [0, 1]
    assert path.exists()
    with pytest.raises(DictionaryError, match="other options or data"):
        train_closed_loop(samples, rollouts, replace(QUICK, seed=1), LOOP, checkpoint=path)
    made, rounds = train_closed_loop(samples, rollouts, QUICK, LOOP, checkpoint=path)
    assert (made.hash, rounds) == (whole.hash, all_rounds)
    assert list(tmp_path.iterdir()) == []
