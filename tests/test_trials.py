"""Trials of real agents: together is the same as one by one, luck is common, and a no-op changes nothing."""

from dataclasses import replace

import numpy as np
import pytest

from interlatent_live.agent_side.agents import AGENTS
from interlatent_live.analyzer.candidates import splice_of_edit
from interlatent_live.analyzer.causal import effects_of
from interlatent_live.analyzer.edit import Edit
from interlatent_live.analyzer.registry import find
from interlatent_live.experiments import affordable, prepare
from interlatent_live.stream.errors import AgentError, DictionaryError
from interlatent_live.trials import AgentTrials

AGENT = AGENTS["cartpole-reinforce"]


def test_many_at_once_are_the_same_episodes_as_one_by_one() -> None:
    dictionary = find("cartpole-reinforce-8")
    together = AgentTrials(AGENT, "1:out", "3:out", "pole_angle")
    alone = AgentTrials(replace(AGENT, make_batch=None), "1:out", "3:out", "pole_angle")
    assert (together.together, alone.together) == (True, False)
    for splice in (None, splice_of_edit(dictionary, Edit("scale", 2.0, feature=6))):
        a, b = (t.trial(splice, range(5, 9), max_steps=60, keep=True) for t in (together, alone))
        assert np.array_equal(a.total, b.total)
        assert np.array_equal(a.steps, b.steps)
        assert np.array_equal(a.fell, b.fell)
        assert np.array_equal(a.episode, b.episode)
        assert np.allclose(a.value, b.value, atol=1e-7)
        assert a.x.shape == (a.steps.sum(), 32)
        assert np.allclose(a.x, b.x, atol=1e-5)
        assert np.allclose(a.y, b.y, atol=1e-5)


def test_a_no_op_lives_the_same_life_bit_for_bit() -> None:
    dictionary = find("cartpole-reinforce-4")
    trials = AgentTrials(AGENT, "1:out", "3:out")
    base = trials.trial(None, range(50), keep=True)
    same = trials.trial(splice_of_edit(dictionary, Edit("scale", 1.0, feature=0)), range(50), keep=True)
    assert base.steps.sum() > 10_000
    assert np.array_equal(base.total, same.total)
    assert np.array_equal(base.y, same.y)
    other = trials.trial(splice_of_edit(dictionary, Edit("ablate", feature=0)), range(50))
    assert not np.array_equal(base.total, other.total)


def test_outcomes_are_named() -> None:
    speed = AgentTrials("humanoid", "1:out", "3:out", "speed")
    assert (speed.outcome.unit, speed.outcome.element, speed.together) == ("m/s", 3, False)
    assert affordable(speed)["max_falls"] == 0.05
    heading = AgentTrials("humanoid", "1:out", "3:out", "heading").outcome
    assert heading.read is not None
    observation = np.zeros(44)
    observation[1] = observation[2] = 0.5
    assert heading.read(observation, {}) == pytest.approx(45.0)
    assert heading.whole == 180.0
    with pytest.raises(AgentError, match=r"no outcome 'sped'; there are: return, steps, cart_position"):
        AgentTrials(AGENT, "1:out", "3:out", "sped")


def test_neurons_stand_in_for_a_dictionary() -> None:
    _, trials, neurons = prepare("cartpole-reinforce", "neurons", "return")
    assert (neurons.cfg.input, neurons.cfg.output, neurons.features) == ("3:out", "3:out", 32)
    base = trials.trial(None, range(3), keep=True)
    codes = neurons.codes(base.y)
    assert np.array_equal(codes.dense(), base.y)
    silenced = trials.trial(splice_of_edit(neurons, Edit("ablate", feature=int(base.y.mean(0).argmax()))), range(3))
    assert not np.array_equal(base.total, silenced.total)
    with pytest.raises(DictionaryError, match="no dictionary of 'lunarlander' is installed"):
        prepare("lunarlander", None, "return")


@pytest.mark.parametrize("latents", ["", "-2", "-4", "-8"])
def test_effects_ship_with_the_dictionaries(latents: str) -> None:
    dictionary = find(f"cartpole-reinforce{latents}")
    assert dictionary.cfg.model_hash == AgentTrials(AGENT, "1:out", "3:out").model_hash
    found = effects_of(dictionary)
    assert found is not None, f"make them: interlatent-live experiment ablate --dictionary cartpole-reinforce{latents}"
    assert found.weights_hash == dictionary.cfg.model_hash
    for effect in found.features.values():
        assert effect.outcome is not None
        assert effect.outcome.n == 500
        assert effect.outcome.low <= effect.outcome.mean <= effect.outcome.high
        assert effect.toward in AGENT.action_names


@pytest.mark.slow
def test_an_agent_steered_over_its_control_channel_lives_the_episodes_that_confirmed_the_effect() -> None:
    from interlatent_live.live_trial import compare, steered_over_control

    dictionary, seeds = find("cartpole-reinforce-8"), range(900, 920)
    trials = AgentTrials(AGENT, "1:out", "3:out")
    best = {"operation": "scale", "strength": 5.0, "feature": 6}
    returns, started = steered_over_control(AGENT.name, dictionary, best, seeds)
    base, arm = trials.trial(None, seeds), trials.trial(splice_of_edit(dictionary, Edit("scale", 5.0, feature=6)), seeds)
    assert (started["feature"], started["dictionary_hash"]) == (6, dictionary.hash)
    found = compare(base, {"low": -1e9, "high": 1e9}, returns, arm, None)
    assert found["episodes_equal"] >= 19  # a matmul of another height may move a chance by its last bit
    assert returns != base.total.tolist()


@pytest.mark.slow
def test_the_headline() -> None:
    """One feature, 500 fresh pairs: the mean return up by 24 % or more, and a random direction by less than a third of that."""
    from interlatent_live.analyzer.experiment import SteerOptions, steer

    _, trials, dictionary = prepare("cartpole-reinforce", "cartpole-reinforce-8", "return")
    found = steer(trials, dictionary, SteerOptions(episodes=500))
    effect = found["effect_percent"]
    assert effect["mean"] >= 24
    assert effect["low"] >= 15
    assert effect["n"] == 500
    assert abs(found["controls"]["random"]["mean"]) < effect["mean"] / 3
