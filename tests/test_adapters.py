"""The adapters' pages and what they promise. Scripts in plain torch and queues of actions are tried here; each library
that pins its own versions has an environment of its own, made by the slow tests (see docs/adapters/)."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections import deque
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from tests.adapters.numbered import Direct, Numbered, Shared, check, run_snippet
from tests.tap_samples import Recorded
from torch import nn
from torch.distributions.categorical import Categorical

import interlatent_live as il

ROOT = Path(__file__).parents[1]
LARGE = {"lerobot"}
"""Environments of several GB."""


class Agent(nn.Module):
    """As CleanRL's: acts through methods of its own, never through `forward`."""

    def __init__(self) -> None:
        super().__init__()
        self.critic = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
        self.actor = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))

    def get_action_and_value(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return Categorical(logits=self.actor(x)).sample(), self.critic(x)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_a_script_in_plain_torch_pairs_and_matches(mode: AutoresetMode, tmp_path: Path) -> None:
    torch.manual_seed(0)
    agent, shared = Agent(), Shared()
    shared.direct = Direct(agent.actor[0], agent.actor[3])
    optimizer = torch.optim.SGD(agent.parameters(), lr=1e-3)
    tap = il.Tap(agent, "actor.3:out", record=tmp_path / "r.mcap", endpoint="", weights="changing")
    envs = il.watch(SyncVectorEnv([partial(Numbered, env, shared) for env in range(3)], autoreset_mode=mode), tap)
    with tap:
        seen = torch.Tensor(envs.reset(seed=0)[0])
        for _ in range(3):
            for _ in range(15):
                with torch.no_grad():
                    action, _ = agent.get_action_and_value(seen)
                seen = torch.Tensor(envs.step(action.numpy())[0])
            with tap.pause():
                for _ in range(2):
                    optimizer.zero_grad()
                    loss = agent.get_action_and_value(torch.randn(3, 3))[1].sum()  # as many rows as environments
                    loss.backward()  # type: ignore[no-untyped-call]
                    optimizer.step()
            tap.policy_version += 1
    recorded = Recorded(tmp_path / "r.mcap")
    check(recorded, shared, "actor.3:out")
    assert sorted(set(recorded.column("policy_version"))) == [0, 1, 2]
    assert tap.status()["extra_forwards"] == tap.status()["step_failures"] == 0


def test_the_page_on_cleanrl_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_snippet("cleanrl", tmp_path)
    recorded = Recorded(tmp_path / "ppo.mcap")
    assert 1_600 < len(recorded.seq) == len(recorded.fired("actor.3:out")) < 2_048
    assert recorded.manifest.environment == "CartPole-v1"
    assert "pole_angle" in recorded.manifest.metric_names


class Chunked(nn.Module):
    """As LeRobot's policies: `select_action` pops a queue of actions, and asks the network where it is empty."""

    def __init__(self, chunk: int) -> None:
        super().__init__()
        self.chunk = chunk
        self.net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2 * chunk))
        self.queue: deque[torch.Tensor] = deque()

    @torch.no_grad()
    def select_action(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        if not self.queue:
            self.queue.extend(self.net(batch["observation.state"]).unflatten(-1, (self.chunk, 2)).transpose(0, 1))
        return self.queue.popleft()


@pytest.mark.parametrize("envs", [1, 2])
def test_queued_actions_leave_rows_without_activations(envs: int, tmp_path: Path) -> None:
    policy, shared = Chunked(4), Shared()
    shared.direct = Direct(policy.net[0], policy.net[1])
    tap = il.Tap(policy, "net.1:out", record=tmp_path / "r.mcap", endpoint="")
    makers = [partial(Numbered, env, shared, True) for env in range(envs)]
    venv = il.watch(SyncVectorEnv(makers, autoreset_mode=AutoresetMode.SAME_STEP), tap)
    with tap:
        seen = venv.reset()[0]
        for _ in range(20):
            seen = venv.step(policy.select_action({"observation.state": torch.as_tensor(seen)}).numpy())[0]
    recorded = Recorded(tmp_path / "r.mcap")
    check(recorded, shared, "net.1:out", without=15 * envs)
    assert np.array_equal(recorded.column("forward_age"), recorded.column("step") % 4)


def test_a_watched_environment_shows_what_is_inside() -> None:
    tap = il.Tap(Chunked(1), "net.1:out", endpoint="")
    venv = il.watch(SyncVectorEnv([partial(Numbered, env) for env in range(2)]), tap)
    assert venv.call("step_") == (0, 0)
    assert len(venv.envs) == 2
    with pytest.raises(AttributeError, match="nothing"):
        _ = venv.nothing
    one = il.watch(Numbered(), il.Tap(Chunked(1), "net.1:out", endpoint=""))
    assert one.episode == -1


def test_an_environment_that_cannot_render_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    tap = il.Tap(Chunked(1), "net.1:out", endpoint="")

    def broken() -> None:
        raise RuntimeError("no display")

    for _ in range(3):
        assert tap.pictures.take(broken) is None
    assert len([r for r in caplog.records if "no display" in r.message]) == 1
    assert np.isnan(tap.pictures.median_us)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_pass_for_some_environments_is_put_where_they_are(dtype: torch.dtype, tmp_path: Path) -> None:
    net = nn.Linear(2, 4).to(dtype)
    tap = il.Tap(net, ":out", record=tmp_path / "r.mcap", endpoint="", num_envs=4)
    tap.expect_fewer()
    wanted = []
    with tap, torch.no_grad():
        net(torch.zeros(4, 2, dtype=dtype))  # before the adapter wakes the hooks
        for rows in ([0, 1, 2, 3], [1, 3], [2], [3, 0]):
            tap.wake()
            given = net(torch.randn(len(rows), 2, dtype=dtype))
            tap.place(rows)
            mask = np.isin(np.arange(4), rows)
            tap.step(reward=np.arange(4.0), valid=mask)
            wanted += [given[rows.index(row)] for row in range(4) if mask[row]]
        net(torch.zeros(3, 2, dtype=dtype))  # another batch
        tap.place([0, 1])
        tap.step(reward=np.arange(4.0), valid=np.array([True, True, False, False]))
    recorded = Recorded(tmp_path / "r.mcap")
    found = recorded.activations(":out")
    bits = torch.stack(wanted).view(torch.int16).numpy().view(np.uint16) if dtype is torch.bfloat16 else torch.stack(wanted).numpy()
    assert found.tobytes() == bits.tobytes()
    assert recorded.fired(":out") == list(range(9))
    assert list(recorded.column("env")) == [0, 1, 2, 3, 1, 3, 2, 0, 3, 0, 1]


@pytest.mark.parametrize("name", ["torchrl", "tianshou", "rllib", "sb3"])
def test_a_missing_library_is_said(name: str) -> None:
    package = {"rllib": "ray", "sb3": "stable_baselines3"}.get(name, name)
    code = f"""
import sys
class Absent:
    def find_spec(name, path=None, target=None):
        if name == {package!r}:
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Absent)
import interlatent_live.{name}
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert f"ModuleNotFoundError: interlatent_live.{name} needs" in done.stderr
    assert "pip install" in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(3_000)
@pytest.mark.parametrize("name", ["torchrl", "tianshou", "rllib", "lerobot"])
def test_the_real_library(name: str) -> None:
    if name in LARGE and not os.environ.get("INTERLATENT_LIVE_LARGE"):
        pytest.skip(f"{name}'s environment takes several GB: INTERLATENT_LIVE_LARGE=1 makes it")
    python = _environment(name)
    checks = f"tests/adapters/{name}/checks.py"
    # what these libraries warn of is theirs; this package's own warnings are errors in all other tests
    command = [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "filterwarnings=default", checks]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1_200, check=False)
    assert done.returncode == 0, f"{done.stdout[-6_000:]}\n{done.stderr[-2_000:]}"


def _environment(name: str) -> Path:
    """The Python of an environment with what tests/adapters/<name>/requirements.txt pins; kept for the next time."""
    base = Path(os.environ.get("INTERLATENT_LIVE_VENVS") or Path.home() / ".cache" / "interlatent-live" / "venvs")
    requirements = ROOT / "tests" / "adapters" / name / "requirements.txt"
    key = hashlib.sha256(f"{ROOT}\n{sys.version}\n{requirements.read_text('utf-8')}".encode()).hexdigest()[:12]
    folder = base / f"{name}-{key}"
    python = folder / "bin" / "python"
    stamp = folder / ".installed"
    if not stamp.exists():
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        for command in (
            [sys.executable, "-m", "venv", "--clear", str(folder)],
            [*pip, "-r", str(requirements)],
            [*pip, "--no-deps", "-e", str(ROOT)],
        ):
            subprocess.run(command, check=True, timeout=1_500)
        stamp.touch()
    return python
