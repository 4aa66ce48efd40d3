"""What all reference agents promise: names for everything, light listing, clean standard output."""

import subprocess
import sys
from importlib.util import find_spec

import gymnasium
import numpy as np
import pytest
import torch

from interlatent_live.agent_side.agents import AGENTS, ReferenceAgent, agent_named
from interlatent_live.agent_side.agents.reference import require
from interlatent_live.stream.errors import AgentError

everyone = pytest.mark.parametrize("agent", AGENTS.values(), ids=AGENTS)
without_g1 = not all(find_spec(name) for name in ("mujoco", "onnx", "onnxruntime", "holosoma", "holosoma_inference"))


def _skip_what_is_missing(agent: ReferenceAgent) -> None:
    if agent.name == "g1" and without_g1:
        pytest.skip("the extra g1 and the wheels of holosoma are not installed")


def _run(code: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own, with warnings as errors and no display."""
    command = [sys.executable, "-W", "error", "-c", code]
    return subprocess.run(command, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"}, check=True)


def test_listing_the_agents_imports_neither_torch_nor_gymnasium() -> None:
    heavy = "{'torch', 'gymnasium', 'pybullet', 'pygame', 'ale_py', 'cv2', 'Box2D', 'mujoco', 'onnxruntime'}"
    done = _run(f"import sys, interlatent_live.agent_side.agents; print({heavy} & set(sys.modules))")
    assert done.stdout.strip() == "set()"


@everyone
def test_names_cover_observation_action_and_tap_points(agent: ReferenceAgent) -> None:
    _skip_what_is_missing(agent)
    env = agent.make_env()
    policy = agent.make_policy() if agent.make_actor is None else agent.make_actor()
    observation, _ = env.reset(seed=0, options=None if agent.reset_options is None else dict(agent.reset_options))
    named = {metric.source: metric.name for metric in agent.metrics if isinstance(metric.source, int)}
    assert named == dict(enumerate(agent.observation_names))
    if agent.observation_names:
        assert observation.shape == (len(agent.observation_names),)
        assert observation.dtype == np.float32
    read = {} if agent.read is None else agent.read(env)
    assert list(read) == [metric.name for metric in agent.metrics if metric.source is None]
    action = agent.act(policy, observation)
    assert env.action_space.contains(action) or env.action_space.contains(np.int64(action))
    actions = env.action_space.n if isinstance(env.action_space, gymnasium.spaces.Discrete) else len(action)
    assert len(agent.action_names) == actions
    if isinstance(policy, torch.nn.Module):
        modules = dict(policy.named_modules())
        assert all(point.split(":")[0] in modules for point in agent.tap_points)
        assert all(p.dtype == torch.float32 for p in policy.parameters())
        assert not policy.training
    else:
        assert tuple(policy.activations) == agent.tap_points
    env.close()


@everyone
def test_pictures_without_a_display_and_nothing_on_standard_output(agent: ReferenceAgent) -> None:
    if agent.name == "g1":
        pytest.skip("MuJoCo needs OpenGL; see test_g1")
    code = f"""
from interlatent_live.agent_side.agents import AGENTS
agent = AGENTS[{agent.name!r}]
env, policy = agent.make_env(render=True), agent.make_policy()
observation, _ = env.reset(seed=0)
first = env.render()
for _ in range(20):
    observation, *_ = env.step(agent.act(policy, observation))
second = env.render()
assert first.dtype == 'uint8' and first.shape == second.shape and first.ndim == 3 and first.shape[2] == 3, first.shape
assert (first != second).any(), 'nothing moves'
env.close()
"""
    done = _run(code)
    assert done.stdout == ""
    assert "error" not in done.stderr.lower()
    assert "warn" not in done.stderr.lower()


def test_a_wrong_name_lists_the_right_ones() -> None:
    assert agent_named("cartpole") is AGENTS["cartpole"]
    there_are = "there are: cartpole, cartpole-reinforce, g1, humanoid, lunarlander, mspacman"
    with pytest.raises(AgentError, match=rf"'cartpol' \(did you mean 'cartpole'\?\); {there_are}"):
        agent_named("cartpol")


def test_a_missing_package_says_how_to_install_it() -> None:
    with pytest.raises(AgentError, match=r"pip install 'interlatent-live\[agents\]'"):
        require("humanoid", "a_package_that_nobody_has")
