from __future__ import annotations

import numpy as np
import pytest

from interlatent_live.explainer.differing import compare, extremes
from interlatent_live.explainer.table import Features, Table
from interlatent_live.stream.errors import PredicateError


def table(episodes: int = 20, steps: int = 50, seed: int = 0) -> Table:
    """In the second half of every episode x is 1 higher and feature 0 twice as frequent; y and feature 1 are noise."""
    rng = np.random.default_rng(seed)
    n = episodes * steps
    episode, step = np.repeat(np.arange(episodes), steps), np.tile(np.arange(steps), episodes)
    late = step >= steps // 2
    by_episode = rng.normal(size=episodes)[episode]
    numbers = {
        "x": rng.normal(size=n) + late + by_episode, "y": rng.normal(size=n) + by_episode, "reward": np.ones(n) * (episode + 1.0),
        "terminated": step == steps - 1,
    }  # fmt: skip
    active = np.stack([rng.random(n) < np.where(late, 0.6, 0.3), rng.random(n) < 0.4], axis=1)
    return Table(numbers, episode=episode, episode_step=step, units={"x": "m"}, features=Features(active.astype(np.float32)))


def test_finds_what_differs_and_nothing_else() -> None:
    frames = table()
    late = frames.number("episode_step") >= 25
    found = {d.name: d for d in compare(frames, late, ~late, metrics=["x", "y"], features=[0, 1])}
    assert found["x"].q < 0.001
    assert found["f0"].q < 0.001
    assert found["x"].low < 1 < found["x"].high
    assert found["f0"].low < 0.35 < found["f0"].high
    assert found["f0"].a == pytest.approx(0.6, abs=0.05)
    assert found["y"].q > 0.01
    assert found["f1"].q > 0.01
    assert found["x"].unit == "m"
    assert found["x"].effect == pytest.approx(found["x"].difference / np.std(frames.number("x")), rel=1e-6)


def test_intervals_are_by_episode_not_by_frame() -> None:
    """Selections of whole episodes: y differs between episodes at random; by frames nearly every draw would be 'significant'."""
    significant = 0
    for seed in range(40):
        frames = table(12, 50, seed)
        early = frames.number("episode") < 6
        significant += next(d for d in compare(frames, early, ~early, metrics=["y"])).p < 0.05
    assert significant <= 6


def test_worst_against_best_and_what_cannot_be_compared() -> None:
    frames = table()
    worst, best = extremes(frames, 5)
    assert sorted(set(frames.episode[worst].tolist())) == [0, 1, 2, 3, 4]
    assert sorted(set(frames.episode[best].tolist())) == [15, 16, 17, 18, 19]
    with pytest.raises(PredicateError, match="20 episodes"):
        extremes(frames, 11)
    with pytest.raises(PredicateError, match="no frame is in selection a"):
        compare(frames, np.zeros(1000, bool), best, metrics=["x"])
    one = frames.number("episode") == 3
    found = compare(frames, one, ~one, metrics=["x"], without=["y"])
    assert np.isnan(found[0].p)
    assert np.isnan(found[0].low)
    assert found[0].difference == pytest.approx(found[0].a - found[0].b)
