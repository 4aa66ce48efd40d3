"""The whole chain without a language model, on the real agent: rules, held-out scores, words, evidence."""

from __future__ import annotations

import numpy as np
import pytest

from interlatent_live.agent_side.agents import AGENTS
from interlatent_live.explainer.evidence import gather
from interlatent_live.explainer.grammar import parse
from interlatent_live.explainer.hypothesis import from_rule
from interlatent_live.explainer.rules import fit
from interlatent_live.explainer.scoring import live, score, split
from interlatent_live.explainer.table import Features, Table
from interlatent_live.explainer.wording import Wording

torch = pytest.importorskip("torch")
EPISODES = 16
STEPS = 120


@pytest.fixture(scope="module")
def cartpole() -> Table:
    """The first steps of 16 episodes; feature j is a unit of the second layer beyond 1 standard deviation."""
    torch.set_num_threads(1)
    agent = AGENTS["cartpole"]
    env, policy = agent.make_env(), agent.make_policy()
    hidden: list[np.ndarray] = []
    policy.get_submodule("3").register_forward_hook(lambda module, inputs, output: hidden.append(output.detach().numpy().reshape(-1)))
    observations, actions, episodes, steps = [], [], [], []
    for episode in range(EPISODES):
        observation, _ = env.reset(seed=episode, options={"low": -0.2, "high": 0.2})
        for step in range(STEPS):
            with torch.inference_mode():
                action = agent.act(policy, observation)
            observations.append(observation)
            actions.append(action)
            episodes.append(episode)
            steps.append(step)
            observation, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                break
    env.close()
    units = np.array(hidden)
    z = (units - np.median(units, axis=0)) / units.std(axis=0)
    columns = np.array(observations)
    numbers = {m.name: columns[:, i] for i, m in enumerate(agent.metrics[:4])}
    return Table(numbers | {"action": np.array(actions)}, episode=episodes, episode_step=steps,
                 units={m.name: m.unit for m in agent.metrics}, features=Features(np.where(z > 1, z, 0)))


def test_rules_explain_cartpole(cartpole: Table) -> None:
    metrics = [m.name for m in AGENTS["cartpole"].metrics[:4]]
    train, test = split(cartpole)
    features = live(cartpole, test)
    assert len(features) >= 30
    rules = fit(cartpole, features, train, metrics=metrics)
    scores = score([r.predicate for r in rules], [r.feature for r in rules], cartpole, test)
    accuracy = np.array([s.balanced_accuracy.mean for s in scores])
    assert np.median(accuracy) >= 0.90
    assert np.mean(accuracy >= 0.80) >= 0.95
    wording = Wording.of(cartpole, train, metrics)
    for rule in rules:
        assert len(rule.predicate.clauses) <= 4
        assert parse(str(rule.predicate), cartpole.vocabulary) == rule.predicate
        hypothesis = from_rule(rule, wording)
        assert hypothesis.label
        assert hypothesis.description.startswith("Active when")


def test_evidence_of_cartpole_names_the_action(cartpole: Table) -> None:
    metrics = [m.name for m in AGENTS["cartpole"].metrics[:4]]
    train, test = split(cartpole)
    feature = int(live(cartpole, test)[0])
    got = gather(feature, cartpole, train, metrics=metrics, action_names=AGENTS["cartpole"].action_names)
    assert {a.action for a in got.actions} <= set(AGENTS["cartpole"].action_names)
    assert len(got.peaks) >= 1
    assert got.hash == gather(
        feature, cartpole, train, metrics=metrics, action_names=AGENTS["cartpole"].action_names).hash
