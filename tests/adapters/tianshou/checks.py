"""Tianshou, the real library. Run by tests/test_adapters.py in an environment of its own."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from tests.adapters.numbered import Direct, Numbered, Shared, check, run_snippet
from tests.tap_samples import Recorded
from tianshou.algorithm import DQN, PPO, Reinforce
from tianshou.algorithm.modelfree.dqn import DiscreteQLearningPolicy
from tianshou.algorithm.modelfree.reinforce import ProbabilisticActorPolicy
from tianshou.algorithm.optim import AdamOptimizerFactory
from tianshou.data import Collector, CollectStats, VectorReplayBuffer
from tianshou.env import DummyVectorEnv, SubprocVectorEnv
from tianshou.trainer import OffPolicyTrainerParams, OnPolicyTrainerParams
from tianshou.utils.net.common import Net
from tianshou.utils.net.discrete import DiscreteActor, DiscreteCritic

import interlatent_live as il
from interlatent_live.stream.errors import TapError
from interlatent_live.tianshou import watch

SPACE = gym.spaces.Discrete(3)
POINT = "actor.preprocess.model.model.3:out"


def venv_of(shared: Shared, envs: int) -> DummyVectorEnv:
    return DummyVectorEnv([partial(Numbered, env, shared) for env in range(envs)])


def policy_of(shared: Shared) -> Any:
    net = Net(state_shape=(3,), hidden_sizes=[8, 8])
    actor = DiscreteActor(preprocess_net=net, action_shape=3, softmax_output=False)
    shared.direct = Direct(net.model.model[0], net.model.model[3])
    return ProbabilisticActorPolicy(
        actor=actor, dist_fn=lambda logits: torch.distributions.Categorical(logits=logits), action_space=SPACE, action_scaling=False
    )


def collector_of(algorithm: Any, shared: Shared, envs: int) -> Any:
    return Collector[CollectStats](algorithm, venv_of(shared, envs), VectorReplayBuffer(2_000, envs))


@pytest.mark.parametrize("name", ["reinforce", "ppo"])
def test_training_pairs_and_matches(name: str, tmp_path: Path) -> None:
    shared = Shared()
    policy = policy_of(shared)
    optim = AdamOptimizerFactory(lr=1e-3)
    if name == "ppo":
        critic = DiscreteCritic(preprocess_net=Net(state_shape=(3,), hidden_sizes=[8, 8]))
        algorithm: Any = PPO(policy=policy, critic=critic, optim=optim)
    else:
        algorithm = Reinforce(policy=policy, optim=optim)
    collector, tester = collector_of(algorithm, shared, 4), collector_of(algorithm, Shared(), 4)
    tap = il.Tap(algorithm.policy, POINT, record=tmp_path / "r.mcap", endpoint="", weights="changing")
    watch(collector, tap)
    with tap:
        algorithm.run_training(
            OnPolicyTrainerParams(
                training_collector=collector, test_collector=tester, max_epochs=1, epoch_num_steps=120, collection_step_num_env_steps=40,
                batch_size=4, update_step_num_repetitions=2, test_step_num_episodes=4, verbose=False, show_progress=False,
            )
        )  # fmt: skip
    recorded = Recorded(tmp_path / "r.mcap")
    check(recorded, shared, POINT)
    assert sorted(set(recorded.column("policy_version"))) == [0, 1, 2]
    status = tap.status()
    assert status["extra_forwards"] == status["other_forwards"] == status["step_failures"] == status["hook_failures"] == 0


def test_episodes_leave_fewer_and_fewer_environments(tmp_path: Path) -> None:
    shared = Shared()
    algorithm = Reinforce(policy=policy_of(shared), optim=AdamOptimizerFactory(lr=1e-3))
    collector = collector_of(algorithm, shared, 4)
    collector.reset()  # before it is watched
    tap = il.Tap(algorithm.policy, POINT, record=tmp_path / "r.mcap", endpoint="")
    watch(collector, tap)
    with tap:
        collector.collect(n_episode=6)
        collector.collect(n_episode=2)
    recorded = Recorded(tmp_path / "r.mcap")
    check(recorded, shared, POINT)
    rows = np.unique(recorded.column("step"), return_counts=True)[1]
    assert set(rows) == {2, 4}
    assert not tap.status()["other_forwards"]


def test_random_actions_run_no_forward(tmp_path: Path) -> None:
    shared = Shared()
    net = Net(state_shape=(3,), action_shape=3, hidden_sizes=[8, 8])
    shared.direct = Direct(net.model.model[0], net.model.model[3])
    algorithm = DQN(
        policy=DiscreteQLearningPolicy(model=net, action_space=SPACE, eps_training=0.3), optim=AdamOptimizerFactory(lr=1e-3),
        target_update_freq=10,
    )  # fmt: skip
    collector = Collector[CollectStats](algorithm, venv_of(shared, 2), VectorReplayBuffer(500, 2), exploration_noise=True)
    tap = il.Tap(algorithm.policy, "model.model.model.3:out", record=tmp_path / "r.mcap", endpoint="", weights="changing")
    watch(collector, tap)
    with tap:
        collector.reset()
        collector.collect(n_step=20, random=True)
        algorithm.run_training(
            OffPolicyTrainerParams(
                training_collector=collector, max_epochs=1, epoch_num_steps=60, collection_step_num_env_steps=6, batch_size=2,
                verbose=False, show_progress=False,
            )
        )  # fmt: skip
    recorded = Recorded(tmp_path / "r.mcap")
    check(recorded, shared, "model.model.model.3:out", without=20)
    assert (recorded.column("forward_age")[:20] == -1).all()


def test_environments_in_processes(tmp_path: Path) -> None:
    algorithm = Reinforce(policy=policy_of(Shared()), optim=AdamOptimizerFactory(lr=1e-3))
    venv = SubprocVectorEnv([partial(Numbered, env) for env in range(2)])
    collector = Collector[CollectStats](algorithm, venv, VectorReplayBuffer(100, 2))
    tap = il.Tap(algorithm.policy, POINT, record=tmp_path / "r.mcap", endpoint="")
    watch(collector, tap)
    with tap:
        collector.reset()
        collector.collect(n_step=20)
    venv.close()
    recorded = Recorded(tmp_path / "r.mcap")
    assert len(recorded.seq) == 20
    assert (recorded.column("reward") == recorded.column("observation")[:, 0]).all()


def test_asynchronous_environments_are_refused() -> None:
    algorithm = Reinforce(policy=policy_of(Shared()), optim=AdamOptimizerFactory(lr=1e-3))
    collector = collector_of(algorithm, Shared(), 2)
    collector.env.is_async = True
    with pytest.raises(TapError, match="asynchronous"):
        watch(collector, il.Tap(algorithm.policy, POINT, endpoint=""))


def test_the_snippet_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_snippet("tianshou", tmp_path)
    recorded = Recorded(tmp_path / "tianshou.mcap")
    assert len(recorded.seq) == len(recorded.fired(POINT)) == 2_000
    assert "pole_angle" in recorded.manifest.metric_names
