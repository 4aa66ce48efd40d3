"""TorchRL, the real library. Run by tests/test_adapters.py in an environment of its own."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict.nn import TensorDictModule
from tests.adapters.numbered import Direct, Numbered, Shared, check, run_snippet
from tests.tap_samples import Recorded
from torch import nn
from torchrl.collectors import Collector
from torchrl.envs import Compose, EnvBase, GymEnv, GymWrapper, ParallelEnv, RewardScaling, SerialEnv, StepCounter, TransformedEnv
from torchrl.modules import OneHotCategorical, ProbabilisticActor

import interlatent_live as il
from interlatent_live.stream.errors import TapError
from interlatent_live.torchrl import watch


def policy_of(shared: Shared) -> Any:
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))
    shared.direct = Direct(net[0], net[3])
    module = TensorDictModule(net, in_keys=["observation"], out_keys=["logits"])
    return ProbabilisticActor(module, in_keys=["logits"], distribution_class=OneHotCategorical, return_log_prob=True)


def env_of(kind: str, shared: Shared) -> EnvBase:
    one = partial(Numbered, shared=shared)
    if kind == "single":
        return GymWrapper(one(0))
    batch = SerialEnv(3, [partial(lambda env: GymWrapper(one(env)), env) for env in range(3)])
    return batch if kind == "batch" else TransformedEnv(batch, Compose(StepCounter()))


@pytest.mark.parametrize("kind", ["single", "batch", "transformed"])
def test_a_collector_pairs_and_matches(kind: str, tmp_path: Path) -> None:
    shared = Shared()
    policy = policy_of(shared)
    tap = il.Tap(policy, "module.0.module.3:out", record=tmp_path / "r.mcap", endpoint="", weights="changing")
    env = watch(env_of(kind, shared), tap)
    shared.truth.clear()
    collector = Collector(env, policy, frames_per_batch=30, total_frames=120, auto_register_policy_transforms=False)
    optimizer = torch.optim.SGD(policy.parameters(), lr=1e-3)
    with tap:
        for number, data in enumerate(collector):
            with tap.pause():
                loss = policy.get_dist(data).log_prob(data["action"]).mean()  # same modules, other batches
                policy(data[..., :1].reshape(-1))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            tap.policy_version += 1
            assert number < 4
    collector.shutdown()
    recorded = Recorded(tmp_path / "r.mcap")
    one_hot = {number: (row, action) for number, (row, action) in shared.truth.items()}
    shared.truth = one_hot
    check(recorded, shared, "module.0.module.3:out")
    assert recorded.manifest.action.kind == "discrete"
    assert sorted(set(recorded.column("policy_version"))) == [0, 1, 2, 3]
    assert (recorded.metric("log_prob") < 0).all()
    assert tap.status()["extra_forwards"] == tap.status()["step_failures"] == tap.status()["hook_failures"] == 0


def test_a_rollout_pairs_and_matches(tmp_path: Path) -> None:
    shared = Shared()
    policy = policy_of(shared)
    with il.Tap(policy, "module.0.module.3:out", record=tmp_path / "r.mcap", endpoint="") as tap:
        env = watch(env_of("batch", shared), tap)
        env.rollout(20, policy, break_when_any_done=False)
    check(Recorded(tmp_path / "r.mcap"), shared, "module.0.module.3:out")


def test_environments_in_processes(tmp_path: Path) -> None:
    policy = policy_of(Shared())
    tap = il.Tap(policy, "module.0.module.3:out", record=tmp_path / "r.mcap", endpoint="")
    env = watch(ParallelEnv(2, [partial(_made, 0), partial(_made, 1)]), tap)
    with tap:
        env.rollout(12, policy, break_when_any_done=False)
    env.close()
    recorded = Recorded(tmp_path / "r.mcap")
    assert len(recorded.seq) == 24
    assert (recorded.column("reward") == recorded.column("observation")[:, 0]).all()


def _made(env: int) -> GymWrapper:
    return GymWrapper(Numbered(env))


def test_rewards_as_the_transforms_before_give_them(tmp_path: Path) -> None:
    shared = Shared()
    policy = policy_of(shared)
    with il.Tap(policy, "module.0.module.3:out", record=tmp_path / "r.mcap", endpoint="") as tap:
        env = watch(TransformedEnv(env_of("single", shared), RewardScaling(0.0, 2.0)), tap)
        env.rollout(5, policy)
    recorded = Recorded(tmp_path / "r.mcap")
    assert (recorded.column("reward") == 2 * recorded.column("observation")[:, 0]).all()


def test_pictures_show_what_is_acted_on(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    policy = ProbabilisticActor(
        TensorDictModule(net, in_keys=["observation"], out_keys=["logits"]), in_keys=["logits"], distribution_class=OneHotCategorical
    )
    with il.Tap(policy, record=tmp_path / "r.mcap", endpoint="") as tap:
        env = watch(GymEnv("CartPole-v1", render_mode="rgb_array"), tap)
        env.rollout(5, policy)
    recorded = Recorded(tmp_path / "r.mcap")
    assert recorded.pictures
    assert recorded.pictures[0].seq == 0
    assert recorded.manifest.environment == "CartPole-v1"


def test_what_cannot_be_watched_is_refused() -> None:
    tap = il.Tap(policy_of(Shared()), "module.0.module.3:out", endpoint="")
    with pytest.raises(TapError, match="one of observation"):
        watch(env_of("single", Shared()), tap, observation="pixels")
    nested = SerialEnv(2, lambda: SerialEnv(2, lambda: GymEnv("CartPole-v1")))
    with pytest.raises(TapError, match="batches of one dimension"):
        watch(nested, tap)


def test_the_snippet_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_snippet("torchrl", tmp_path)
    recorded = Recorded(tmp_path / "torchrl.mcap")
    assert len(recorded.seq) == len(recorded.fired("module.0.module.3:out")) == 2_000
    assert "pole_angle" in recorded.manifest.metric_names
