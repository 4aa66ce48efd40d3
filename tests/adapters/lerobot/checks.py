"""LeRobot, the real library. Run by tests/test_adapters.py in an environment of its own."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.act.configuration_act import ACTConfig
from lerobot.policies.act.modeling_act import ACTPolicy
from lerobot.scripts.lerobot_eval import rollout
from tests.adapters.numbered import LENGTHS, Numbered, Shared, run_snippet, snippet
from tests.tap_samples import Recorded

import interlatent_live as il

CHUNK = 3
POINT = "model.action_head:in"


def policy_of(size: int = 3, actions: int = 2) -> ACTPolicy:
    torch.manual_seed(0)
    return ACTPolicy(
        ACTConfig(
            input_features={
                "observation.state": PolicyFeature(FeatureType.STATE, (size,)),
                "observation.environment_state": PolicyFeature(FeatureType.ENV, (size,)),
            },
            output_features={"action": PolicyFeature(FeatureType.ACTION, (actions,))},
            chunk_size=CHUNK, n_action_steps=CHUNK, dim_model=16, n_heads=2, dim_feedforward=16, n_encoder_layers=1, device="cpu",
        )
    )  # fmt: skip


@pytest.mark.parametrize("envs", [1, 3])
def test_chunks_pair_and_match(envs: int, tmp_path: Path) -> None:
    policy, shared = policy_of(), Shared()
    tap = il.Tap(policy, POINT, record=tmp_path / "r.mcap", endpoint="")
    venv = il.watch(gym.vector.SyncVectorEnv([partial(Numbered, env, shared, True) for env in range(envs)]), tap)
    direct: list[torch.Tensor] = []
    policy.model.action_head.register_forward_pre_hook(lambda module, args: direct.append(args[0].clone()))
    steps, state = 30, venv.reset()[0]
    with tap:
        for _ in range(steps):
            given = torch.as_tensor(state)
            state, *_ = venv.step(policy.select_action({"observation.state": given, "observation.environment_state": given}).numpy())
    recorded = Recorded(tmp_path / "r.mcap")
    observation = recorded.column("observation")
    assert np.array_equal(recorded.column("reward"), observation[:, 0])
    assert np.array_equal(recorded.column("episode_step"), observation[:, 2])
    assert np.array_equal(recorded.column("forward_age"), recorded.column("step") % CHUNK)
    step, env = recorded.column("step"), recorded.column("env")
    fired = recorded.fired(POINT)
    assert [recorded.seq[i] for i in range(len(step)) if step[i] % CHUNK == 0] == fired
    for seq, activation in zip(fired, recorded.activations(POINT), strict=True):
        assert activation.tobytes() == direct[step[seq] // CHUNK][env[seq]].numpy().tobytes()
    assert len(direct) == steps // CHUNK


class Armed(gym.Env[dict[str, Any], Any]):
    """What LeRobot's environments are like: a mapping, a task, a longest episode."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012 - gymnasium's own declaration
    task = task_description = "count"
    _max_episode_steps = sum(LENGTHS)

    def __init__(self, env: int) -> None:
        self.inner = Numbered(env, continuous=True)
        space = self.inner.observation_space
        self.observation_space = gym.spaces.Dict({"agent_pos": space, "environment_state": space})
        self.action_space = self.inner.action_space

    def reset(self, **kwargs: Any) -> Any:
        found, info = self.inner.reset(**kwargs)
        return {"agent_pos": found, "environment_state": found}, info

    def step(self, action: Any) -> Any:
        found, reward, *_ = self.inner.step(action)
        return {"agent_pos": found, "environment_state": found}, reward, False, False, {}


def test_the_library_s_own_rollout(tmp_path: Path) -> None:
    policy = policy_of()
    number = il.Metric("number", lambda t: t.observation["agent_pos"][0])
    tap = il.Tap(policy, POINT, record=tmp_path / "r.mcap", endpoint="", metrics=[number])
    env = il.watch(gym.vector.SyncVectorEnv([partial(Armed, env) for env in range(2)]), tap)

    def same(given: Any) -> Any:
        return given

    with tap:
        rollout(env, policy, same, same, same, same)
    recorded = Recorded(tmp_path / "r.mcap")
    assert len(recorded.seq) == 2 * sum(LENGTHS)
    assert np.array_equal(recorded.metric("number"), recorded.column("reward"))
    assert set(recorded.column("forward_age")) == set(range(CHUNK))


def test_the_snippets_of_the_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_snippet("lerobot", tmp_path)
    recorded = Recorded(tmp_path / "act.mcap")
    assert len(recorded.seq) == 200
    assert len(recorded.fired("model.action_head:in")) == 2 * 13


def test_the_robot_s_loop_of_the_page_runs(tmp_path: Path) -> None:
    class Robot:
        """Numbers and a camera, as LeRobot's robots give them."""

        def get_observation(self) -> dict[str, Any]:
            return {"shoulder_pan.pos": 1.5, "camera": np.zeros((4, 4, 3), np.uint8)}

        def send_action(self, action: dict[str, float]) -> dict[str, float]:
            return action

    page = (Path(__file__).parents[3] / "docs" / "adapters" / "lerobot.md").read_text("utf-8")
    code = re.findall(r"```python\n(.*?)```", page, re.DOTALL)[1]
    assert code != snippet("lerobot")
    policy = policy_of(1, 1)

    def act(observation: dict[str, Any]) -> dict[str, float]:
        state = torch.tensor([[observation["shoulder_pan.pos"]]])
        action = policy.select_action({"observation.state": state, "observation.environment_state": state})
        return {"shoulder_pan.pos": action.item()}

    tap = il.Tap(policy, POINT, record=tmp_path / "r.mcap", endpoint="")
    exec(compile(code, "lerobot.md", "exec"), {"tap": tap, "robot": Robot(), "act": act})
    recorded = Recorded(tmp_path / "r.mcap")
    assert (recorded.metric("shoulder_pan.pos") == 1.5).all()
    assert len(recorded.fired(POINT)) == 34
