"""A rollout keeps its pace and its limits, and its report says what happened."""

import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from interlatent_live.agent_side.agents import AGENTS
from interlatent_live.agent_side.rollout import MAX_LAG_S, load_policy, make_tap, run, wait_for_subscriber
from interlatent_live.stream.errors import AgentError
from interlatent_live.stream.frames import FrameBatch
from interlatent_live.stream.reading import Recording
from interlatent_live.stream.subscriber import Subscriber
from interlatent_live.stream.wire import Picture

CARTPOLE = AGENTS["cartpole"]


def _after(calls: int) -> Callable[[], bool]:
    """Says stop once it has been asked `calls` times."""
    asked = iter(range(calls))
    return lambda: next(asked, None) is None


def test_episodes_end_a_run_and_are_all_counted() -> None:
    report = run(CARTPOLE, None, episodes=2, fast=True)
    assert (report.steps, report.episodes, report.returns, report.lags) == (1000, 2, (500.0, 500.0), 0)


def test_stop_is_asked_before_every_step() -> None:
    report = run(CARTPOLE, None, fast=True, stop=_after(7))
    assert (report.steps, report.returns) == (7, ())


def test_zero_seconds_take_no_step() -> None:
    assert run(CARTPOLE, None, seconds=0, fast=True).steps == 0
    with pytest.raises(AgentError, match="seconds is nan"):
        run(CARTPOLE, None, seconds=math.nan)


def test_a_paced_run_is_never_ahead_of_the_clock() -> None:
    ages = []
    begun = None

    def stop() -> bool:
        nonlocal begun
        begun = begun or time.monotonic()
        ages.append(time.monotonic() - begun)
        return False

    report = run(CARTPOLE, None, seconds=0.4, stop=stop)
    assert report.steps <= 0.4 / CARTPOLE.step_period_s + 1
    # asked once before each step, right after the one before it: step k − 1 was not taken early
    assert all(age >= (k - 1) * CARTPOLE.step_period_s - 1e-3 for k, age in enumerate(ages[:-1]))


def test_a_long_stop_is_not_caught_up() -> None:
    slept = False

    def act(policy: torch.nn.Module, observation: Any) -> int:
        nonlocal slept
        if not slept:
            time.sleep(MAX_LAG_S + 0.2)
            slept = True
        return int(CARTPOLE.act(policy, observation))

    agent = dataclasses.replace(CARTPOLE, act=act, step_period_s=0.1)
    report = run(agent, None, stop=_after(4))
    assert report.lags >= 1
    assert report.steps == 4


def test_the_same_seed_gives_the_same_run() -> None:
    seen: list[list[bytes]] = [[], []]

    def act(policy: torch.nn.Module, observation: Any) -> int:
        seen[turn].append(observation.tobytes())
        return int(CARTPOLE.act(policy, observation))

    agent = dataclasses.replace(CARTPOLE, act=act)
    for turn in range(2):  # noqa: B007 - read by act
        run(agent, None, fast=True, seed=5, stop=_after(600))
    assert seen[0] == seen[1]


def test_policies_are_loaded_by_agent_and_by_callable() -> None:
    assert load_policy("cartpole")[0].in_features == 4  # type: ignore[index]
    assert isinstance(load_policy("torch.nn:Identity"), torch.nn.Identity)
    with pytest.raises(AgentError, match="did you mean 'humanoid'"):
        load_policy("humanoids")
    with pytest.raises(AgentError, match="module:callable"):
        load_policy("nothing_of_that_name:make")
    with pytest.raises(AgentError, match="gives OrderedDict"):
        load_policy("collections:OrderedDict")


def _batches(path: Path) -> list[FrameBatch]:
    return [message for message in Recording(path).messages() if isinstance(message, FrameBatch)]


def test_a_tapped_run_records_every_step_as_the_policy_saw_it(tmp_path: Path) -> None:
    path = tmp_path / "run.mcap"
    with make_tap(CARTPOLE, endpoint="", record=path) as tap:
        report = run(CARTPOLE, tap, fast=True, seed=2, stop=_after(700))
    manifest = Recording(path).manifest
    assert manifest is not None
    assert (manifest.run, manifest.agent, manifest.environment) == ("cartpole", "cartpole", "CartPole-v1")
    assert manifest.action.names == ("left", "right")
    assert manifest.metric_names == tuple(metric.name for metric in CARTPOLE.metrics)
    batches = _batches(path)
    assert sum(batch.rows for batch in batches) == report.steps == 700

    def column(name: str) -> np.ndarray[Any, Any]:
        return np.concatenate([batch.columns[name] for batch in batches])

    observation, metrics = column("observation"), column("metrics")
    assert column("episode").tolist() == [0] * 500 + [1] * 200
    assert column("episode_step").tolist() == [*range(500), *range(200)]
    np.testing.assert_array_equal(metrics[:, :4], observation)
    change = (observation[1:, 3] - observation[:-1, 3]) / CARTPOLE.step_period_s
    same_episode = column("episode")[1:] == column("episode")[:-1]
    np.testing.assert_allclose(metrics[:-1, 4][same_episode], change[same_episode], rtol=1e-5)
    policy = CARTPOLE.make_policy()
    assert isinstance(policy, torch.nn.Sequential)
    with torch.inference_mode():
        expected = policy[:4](torch.from_numpy(observation)).numpy()
    found = np.concatenate([batch.activations["3:out"] for batch in batches])
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_tapped_humanoid_names_its_44_terms(tmp_path: Path) -> None:
    agent = AGENTS["humanoid"]
    path = tmp_path / "run.mcap"
    with make_tap(agent, endpoint="", record=path, run="walk") as tap:
        run(agent, tap, fast=True, stop=_after(30), render=True)
    recording = Recording(path)
    assert recording.manifest is not None
    assert recording.manifest.run == "walk"
    assert recording.manifest.metric_names == agent.observation_names
    batches = _batches(path)
    assert sum(batch.rows for batch in batches) == 30
    assert {point: a.shape[1:] for point, a in batches[0].activations.items()} == {"1:out": (256,), "3:out": (128,)}
    pictures = [message for message in recording.messages() if isinstance(message, Picture)]
    assert pictures
    assert pictures[0].step == 0


def test_waiting_for_a_subscriber_ends_when_it_comes_or_when_told() -> None:
    with make_tap(CARTPOLE, endpoint="tcp://127.0.0.1:*") as tap:
        assert not wait_for_subscriber(tap, 0.05)
        assert not wait_for_subscriber(tap, 60, stop=_after(2))
        with Subscriber(tap.endpoint):
            assert wait_for_subscriber(tap, 60)
