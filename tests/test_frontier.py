"""The frontier of L0 and recovery, on CartPole, whose episodes are quick."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from interlatent_live.analyzer.dictionary import Dictionary
from interlatent_live.analyzer.frontier import at_l0, frontier
from interlatent_live.analyzer.recovery import samples_of_episodes
from interlatent_live.analyzer.registry import find
from interlatent_live.analyzer.samples import Samples
from interlatent_live.rollouts import AgentRollouts
from interlatent_live.stream.errors import DictionaryError, DictionaryMismatch


@pytest.fixture(scope="module")
def rollouts() -> AgentRollouts:
    return AgentRollouts("cartpole", "1:out", "3:out")


@pytest.fixture(scope="module")
def samples(rollouts: AgentRollouts) -> Samples:
    return samples_of_episodes(rollouts.run(None, range(2), max_steps=60, keep=True), find("cartpole"), rollouts, "")


def batchtopk() -> Dictionary:
    own = find("cartpole")
    return Dictionary(replace(own.cfg, activation="batchtopk"), {**own.tensors, "threshold": torch.tensor(0.0)})


@pytest.mark.parametrize(("dictionary", "tolerance"), [(find("cartpole"), 1e-9), (batchtopk(), 0.1)])
def test_a_dictionary_is_set_to_an_l0(dictionary: Dictionary, tolerance: float, samples: Samples) -> None:
    for l0 in (1, 3):
        found = at_l0(dictionary, samples, l0)
        assert found.codes(samples.x).counts.mean() == pytest.approx(l0, abs=tolerance)
        assert found.hash != dictionary.hash


def test_what_has_no_such_knob_is_refused(samples: Samples) -> None:
    own = find("cartpole")
    with pytest.raises(DictionaryError, match=r"l0 is 2.5; 'cartpole' is topk"):
        at_l0(own, samples, 2.5)
    with pytest.raises(DictionaryError, match="only batchtopk"):
        at_l0(Dictionary(replace(own.cfg, activation="relu", k=None), dict(own.tensors)), samples, 2)


def test_a_row_for_each_l0_on_paired_episodes(rollouts: AgentRollouts) -> None:
    own = find("cartpole")
    rows = frontier(own, rollouts, [4, 1], episodes=3, max_steps=80)
    assert [row["l0"] for row in rows] == [4, 1]
    assert [row["l0_found"] for row in rows] == [4, 1]
    assert rows[0]["fvu"] < rows[1]["fvu"]
    assert rows[0]["return_recovery"] == {"mean": 1.0, "low": 1.0, "high": 1.0, "episodes": 3}
    assert rows[0]["standing"] == 1.0
    with pytest.raises(DictionaryMismatch, match="the agent 'cartpole' has"):
        frontier(Dictionary(replace(own.cfg, model_hash="f" * 64), dict(own.tensors)), rollouts, [4])
