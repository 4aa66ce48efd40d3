"""The CartPole policy balances, from gymnasium's start and from the wide one; its trainer makes such a policy."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from interlatent_live.agent_side.agents import AGENTS
from interlatent_live.agent_side.agents.cartpole import (
    CHECKPOINT,
    RESET_OPTIONS,
    STEP_PERIOD_S,
    greedy_returns,
    make_env,
    make_policy,
)
from interlatent_live.agent_side.agents.train_cartpole import Recipe, main
from interlatent_live.agent_side.metrics import Transition
from interlatent_live.stream.errors import AgentError


def test_returns_500_from_the_standard_start() -> None:
    assert greedy_returns(make_policy(), seeds=range(3)) == [500.0] * 3


def test_returns_500_from_the_wide_start_of_the_agent() -> None:
    assert greedy_returns(make_policy(), seeds=range(3), start=RESET_OPTIONS["high"]) == [500.0] * 3


@pytest.mark.slow
@pytest.mark.parametrize("start", [0.05, RESET_OPTIONS["high"]])
def test_returns_500_on_many_seeds(start: float) -> None:
    assert set(greedy_returns(make_policy(), seeds=range(100), start=start)) == {500.0}


def test_the_checkpoint_is_small_and_carries_its_recipe() -> None:
    assert CHECKPOINT.stat().st_size <= 100_000
    with safe_open(CHECKPOINT, framework="numpy") as file:
        training = json.loads(file.metadata()["training"])
    assert Recipe(**training["recipe"]) == Recipe()


def test_the_period_is_the_environments_own() -> None:
    assert make_env().unwrapped.tau == STEP_PERIOD_S  # type: ignore[attr-defined]


def test_the_transition_metric_is_the_change_of_the_angular_velocity() -> None:
    metric = next(m for m in AGENTS["cartpole"].metrics if m.scope == "transition")
    assert callable(metric.source)
    now, then = np.array([0, 0, 0, 0.5], np.float32), np.array([0, 0, 0, 0.25], np.float32)
    assert metric.source(Transition(now, next_observation=then)) == pytest.approx(-0.25 / STEP_PERIOD_S)


def test_a_policy_that_falls_short_is_not_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    try:
        assert main(["--seed", "0", "--steps", "4096", "--out", str(tmp_path / "weak.safetensors")]) == 1
    finally:
        torch.set_num_threads(threads)
    answer = json.loads(capsys.readouterr().out)
    assert answer["min_return"] < 500
    assert answer["written"] is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_trainer_makes_a_policy_that_returns_500(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    try:
        assert main(["--seed", "3", "--out", str(tmp_path / "policy.safetensors")]) == 0
    finally:
        torch.set_num_threads(threads)
    assert json.loads(capsys.readouterr().out)["min_return"] == 500


def test_a_recipe_without_one_update_is_refused() -> None:
    with pytest.raises(ValueError, match="less than one update"):
        Recipe(steps=100)


def test_a_damaged_checkpoint_names_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torn = tmp_path / "torn.safetensors"
    torn.write_bytes(CHECKPOINT.read_bytes()[:1000])
    monkeypatch.setattr("interlatent_live.agent_side.agents.cartpole.CHECKPOINT", torn)
    with pytest.raises(AgentError, match="train_cartpole"):
        make_policy()
