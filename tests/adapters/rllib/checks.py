"""RLlib, the real library, new API stack. Run by tests/test_adapters.py in an environment of its own."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.rllib.algorithms.dqn import DQNConfig
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.tune.registry import register_env
from tests.adapters.numbered import Direct, Numbered, Shared, check, run_snippet
from tests.tap_samples import Recorded

from interlatent_live.rllib import TapCallback
from interlatent_live.stream.reading import Recording
from interlatent_live.stream.wire import Scalars

POINT = "encoder.actor_encoder.net.mlp.3:out"
SHARED = Shared()


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


class Compared(RLlibCallback):  # type: ignore[misc] # RLlib is not installed where types are checked
    """Puts a plain hook on the runner's module, beside ours."""

    def on_episode_created(self, *, env_runner: Any = None, env_index: int = 0, **kwargs: Any) -> None:
        if SHARED.direct is None:
            mlp = env_runner.module.encoder.actor_encoder.net.mlp
            SHARED.direct = Direct(mlp[0], mlp[3])


MADE: list[int] = []


def numbered(context: Any) -> Numbered:
    MADE.append(len(MADE))
    return Numbered(MADE[-1], SHARED)


register_env("numbered", numbered)


def config_of(kind: type[PPOConfig], record: Path, envs: int = 3) -> Any:
    global SHARED
    SHARED = Shared()
    MADE.clear()
    tapped = functools.partial(TapCallback, points="encoder.actor_encoder.net.mlp.*", endpoint="", record=record)
    return (
        kind()
        .environment("numbered")
        .env_runners(num_env_runners=0, num_envs_per_env_runner=envs)
        .training(train_batch_size_per_learner=60, minibatch_size=3, num_epochs=1)
        .callbacks([tapped, Compared])
    )


def test_training_pairs_and_matches(tmp_path: Path) -> None:
    algorithm = config_of(PPOConfig, tmp_path / "r.mcap").build_algo()
    for _ in range(3):
        algorithm.train()
    tap = algorithm.env_runner.env.tap
    algorithm.stop()
    recorded = Recorded(tmp_path / "r.mcap")
    check(recorded, SHARED, POINT)
    versions = sorted(set(recorded.column("policy_version")))
    assert len(versions) == 3
    status = tap.status()
    assert status["extra_forwards"] == status["other_forwards"] == status["step_failures"] == status["hook_failures"] == 0
    names = {name for m in Recording(tmp_path / "r.mcap").messages() if isinstance(m, Scalars) for name in m.names}
    assert "learners/default_policy/vf_loss" in names


def test_one_environment(tmp_path: Path) -> None:
    algorithm = config_of(PPOConfig, tmp_path / "r.mcap", envs=1).build_algo()
    algorithm.train()
    algorithm.stop()
    check(Recorded(tmp_path / "r.mcap"), SHARED, POINT)


def test_a_runner_in_another_process(tmp_path: Path) -> None:
    tapped = functools.partial(TapCallback, points="encoder.actor_encoder.net.mlp.3", endpoint="", record=tmp_path / "r.mcap")
    algorithm = (
        PPOConfig()
        .environment("CartPole-v1")
        .env_runners(num_env_runners=2, num_envs_per_env_runner=2)
        .training(train_batch_size_per_learner=200)
        .callbacks(tapped)
        .build_algo()
    )
    algorithm.train()
    algorithm.env_runner_group.foreach_env_runner(lambda runner: runner.stop(), local_env_runner=False)
    algorithm.stop()
    recorded = Recorded(tmp_path / "r.mcap")
    assert len(recorded.seq) == len(recorded.fired(POINT)) > 90
    assert recorded.manifest.environment == "CartPole-v1"


def test_dqn_and_its_default_point(tmp_path: Path) -> None:
    tapped = functools.partial(TapCallback, endpoint="", record=tmp_path / "r.mcap")
    algorithm = (
        DQNConfig()
        .environment("CartPole-v1")
        .env_runners(num_env_runners=0)
        .training(num_steps_sampled_before_learning_starts=20)
        .reporting(min_sample_timesteps_per_iteration=40, min_time_s_per_iteration=0)
        .callbacks(tapped)
        .build_algo()
    )
    algorithm.train()
    algorithm.stop()
    recorded = Recorded(tmp_path / "r.mcap")
    (point,) = [spec.name for spec in recorded.manifest.tap_points]
    assert len(recorded.fired(point)) == len(recorded.seq) > 10


def test_the_snippet_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_snippet("rllib", tmp_path)
    recorded = Recorded(tmp_path / "rllib.mcap")
    assert len(recorded.seq) == len(recorded.fired(POINT)) >= 3_000
    assert "pole_angle" in recorded.manifest.metric_names
