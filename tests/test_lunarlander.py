"""The lander lands, and the names of its observation are true."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from interlatent_live.agent_side.agents.lunarlander import (
    CHECKPOINT,
    METRICS,
    STEP_PERIOD_S,
    act,
    greedy_returns,
    make_env,
    make_policy,
)
from interlatent_live.agent_side.agents.ppo import Recipe
from interlatent_live.agent_side.agents.train_lunarlander import RECIPE, main


def test_lands_from_most_starts() -> None:
    assert np.mean(greedy_returns(make_policy(), seeds=range(8))) >= 200


@pytest.mark.slow
def test_its_mean_return_over_many_starts_counts_as_solved() -> None:
    assert np.mean(greedy_returns(make_policy(), seeds=range(1000, 1100))) >= 200


def test_the_checkpoint_is_small_and_carries_its_recipe() -> None:
    assert CHECKPOINT.stat().st_size <= 200_000
    with safe_open(CHECKPOINT, framework="numpy") as file:
        training = json.loads(file.metadata()["training"])
    assert Recipe(**training["recipe"]) == RECIPE


def test_every_observation_term_is_what_its_name_and_unit_say() -> None:
    env, policy = make_env(), make_policy()
    observation, _ = env.reset(seed=1)
    game = env.unwrapped
    factors = [10, 20 / 3, 5, 7.5, 1, 2.5, 1, 1]
    assert [metric.unit for metric in METRICS] == ["10 m", "20/3 m", "5 m/s", "7.5 m/s", "rad", "2.5 rad/s", "", ""]
    touched, positions = set(), []
    for _ in range(400):
        observation, _, terminated, truncated, _ = env.step(act(policy, observation))
        body, legs = game.lander, game.legs  # type: ignore[attr-defined]
        value = dict(zip([metric.name for metric in METRICS], observation * factors, strict=True))
        assert value["pad_offset"] == pytest.approx(body.position.x - 10, abs=1e-4)
        assert value["horizontal_velocity"] == pytest.approx(body.linearVelocity.x, abs=1e-4)
        assert value["vertical_velocity"] == pytest.approx(body.linearVelocity.y, abs=1e-4)
        assert value["angle"] == pytest.approx(body.angle, abs=1e-5)
        assert value["angular_velocity"] == pytest.approx(body.angularVelocity, abs=1e-4)
        # the legs' names: which of the two is on the left of an upright lander
        left = min(legs, key=lambda leg: leg.position.x)
        if abs(body.angle) < 0.3:
            assert value["left_leg_contact"] == left.ground_contact
        touched.add((value["left_leg_contact"], value["right_leg_contact"]))
        positions.append((value["altitude"], value["vertical_velocity"]))
        if terminated or truncated:
            break
    env.close()
    assert len(touched) > 1
    rest, _ = positions[-1]
    assert abs(rest) < 0.5  # it stands, or lies flat: altitude is counted from there
    risen = np.diff([altitude for altitude, _ in positions])
    fallen = np.array([velocity for _, velocity in positions[1:]]) * STEP_PERIOD_S
    np.testing.assert_allclose(risen, fallen, atol=0.05)


@pytest.mark.slow
def test_the_trainer_begins_and_writes_nothing_that_falls_short(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    try:
        assert main(["--steps", "16384", "--episodes", "3", "--out", str(tmp_path / "weak.safetensors")]) == 1
    finally:
        torch.set_num_threads(threads)
    assert json.loads(capsys.readouterr().out)["written"] is None
    assert list(tmp_path.iterdir()) == []
