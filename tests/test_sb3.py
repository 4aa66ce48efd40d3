"""Stable-Baselines3, the real library: pairing, pauses, versions, copies, interruptions, and training left as it is."""

from __future__ import annotations

import copy
import logging
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, CheckpointCallback, EvalCallback
from stable_baselines3.common.envs import SimpleMultiObsEnv
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecFrameStack, VecNormalize
from tests.tap_samples import Recorded

import interlatent_live as il
from interlatent_live.sb3 import TapCallback
from interlatent_live.stream.errors import InterlatentError, RecordingExists, TapError, UnknownTapPoint
from interlatent_live.stream.reading import Recording
from interlatent_live.stream.wire import Scalars

SMALL = {"net_arch": [8, 8]}
LENGTHS = (7, 5)
"""Steps of even episodes, which terminate, and of odd ones, which are cut off."""


class Numbered(gym.Env[np.ndarray[Any, Any], Any]):
    """Its observation is [episode, step, last action], its reward 100 × episode + step: what belongs to what can be
    seen."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012 - gymnasium's own declaration

    def __init__(self, continuous: bool = False, render_mode: str | None = None) -> None:
        self.observation_space = gym.spaces.Box(-1e6, 1e6, (3,), np.float32)
        self.action_space = gym.spaces.Box(-2, 2, (2,), np.float32) if continuous else gym.spaces.Discrete(3)
        self.render_mode = render_mode
        self.episode = -1
        self.step_ = 0

    def _observation(self, action: float) -> np.ndarray[Any, Any]:
        return np.array([self.episode, self.step_, action], np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.episode, self.step_ = self.episode + 1, 0
        return self._observation(0.0), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        reward = 100.0 * self.episode + self.step_
        self.step_ += 1
        over = self.step_ == LENGTHS[self.episode % 2]
        odd = bool(self.episode % 2)
        taken = float(np.asarray(action).reshape(-1)[0])
        return self._observation(taken), reward, over and not odd, over and odd, {"taken": taken}

    def render(self) -> Any:
        return np.full((8, 8, 3), 10 * (self.episode % 5) + self.step_, np.uint8)


def vector(count: int, continuous: bool = False, kind: type[VecEnv] = DummyVecEnv, render_mode: str | None = None) -> VecEnv:
    made = [lambda: Monitor(Numbered(continuous, render_mode)) for _ in range(count)]
    return SubprocVecEnv(made, start_method="fork") if kind is SubprocVecEnv else DummyVecEnv(made)  # type: ignore[arg-type]


def make(algorithm: str, env: VecEnv | str, **options: Any) -> BaseAlgorithm:
    torch.set_num_threads(1)
    shared: dict[str, Any] = {"seed": 3, "device": "cpu", "policy_kwargs": dict(SMALL)} | options
    off = {"learning_starts": 20, "batch_size": 16, "buffer_size": 500}
    if algorithm == "PPO":
        return PPO("MlpPolicy", env, **({"n_steps": 32, "batch_size": 16, "n_epochs": 2} | shared))
    if algorithm == "A2C":
        return A2C("MlpPolicy", env, **shared)
    if algorithm == "DQN":
        return DQN("MlpPolicy", env, **(off | {"exploration_fraction": 0.5, "target_update_interval": 10} | shared))
    return (SAC if algorithm == "SAC" else TD3)("MlpPolicy", env, **(off | shared))


POINTS = {
    "PPO": "mlp_extractor.policy_net.*",
    "A2C": ["mlp_extractor.policy_net.1:out", "value_net:in"],
    "DQN": "q_net.q_net.1",
    "SAC": "actor.latent_pi.*",
    "TD3": "actor.mu.1:out",
}
EVERY = list(POINTS)
STEPS = 96


def tapped(path: Path, points: Any = None, **options: Any) -> TapCallback:
    return TapCallback(points, run="sb3", record=path, endpoint="", **options)


def check_pairing(recorded: Recorded) -> None:
    """Every frame pairs the observation acted on with its own reward, action and end."""
    observation, action = recorded.column("observation"), recorded.column("action")
    env = recorded.column("env")
    action = action if action.ndim == 1 else action[:, 0]
    assert recorded.column("episode_step").tolist() == observation[:, 1].tolist()
    assert recorded.column("episode").tolist() == observation[:, 0].tolist()
    assert recorded.column("reward").tolist() == (100 * observation[:, 0] + observation[:, 1]).tolist()
    odd = observation[:, 0] % 2 == 1
    last = observation[:, 1] == np.where(odd, LENGTHS[1], LENGTHS[0]) - 1
    assert recorded.column("terminated").tolist() == (last & ~odd).tolist()
    assert recorded.column("truncated").tolist() == (last & odd).tolist()
    for one in set(env.tolist()):
        rows = env == one
        within = ~last[rows][:-1]
        assert action[rows][:-1][within].tolist() == observation[rows][1:, 2][within].tolist(), "the action was what the environment got"


@pytest.mark.parametrize("algorithm", EVERY)
def test_a_row_is_one_step_acted_on(algorithm: str, tmp_path: Path) -> None:
    callback = tapped(tmp_path / "r.mcap", POINTS[algorithm])
    model = make(algorithm, vector(1, algorithm in ("SAC", "TD3")))
    model.learn(STEPS, callback=callback)
    recorded = Recorded(tmp_path / "r.mcap")
    check_pairing(recorded)
    assert recorded.bye.produced == recorded.bye.recorded == model.num_timesteps
    assert recorded.manifest.weights == "changing"
    assert recorded.manifest.agent == algorithm
    assert recorded.manifest.environment == "Numbered"
    assert recorded.manifest.software["stable-baselines3"]
    status = recorded.bye.status
    assert {n: v for n, v in status.items() if n.endswith("failures") and v} == {}
    assert status["extra_forwards"] == status["other_forwards"] == 0, "updates and bootstrapping are not taken for acting"
    versions = recorded.column("policy_version")
    assert np.all(np.diff(versions) >= 0)
    assert versions[0] == 0
    assert len(set(versions.tolist())) > 2
    if algorithm in ("PPO", "A2C"):
        assert np.isfinite(recorded.metric("value")).all()
        assert (recorded.metric("log_prob") < 0).all()
        assert {m.scope for m in recorded.manifest.metrics} == {"observation"}
        assert (recorded.column("forward_age") == 0).all()
    else:
        age = recorded.column("forward_age")
        fired = recorded.fired(recorded.manifest.tap_points[0].name)
        assert fired == np.flatnonzero(age == 0).tolist()
        assert (age[:20] == -1).all(), "random warm-up: rows without activations"
        assert 20 < len(fired) + 20 <= model.num_timesteps
        if algorithm == "DQN":
            assert (age[20:] > 0).any(), "ε-random steps say how old the last forward pass is"


@pytest.mark.parametrize("algorithm", EVERY)
def test_training_is_bit_equal_without_the_callback(algorithm: str, tmp_path: Path) -> None:
    ends = []
    for callback in (None, tapped(tmp_path / "r.mcap", POINTS[algorithm], envs=[1], metrics=None)):
        model = make(algorithm, VecNormalize(vector(2, algorithm in ("SAC", "TD3"))))
        model.learn(2 * STEPS, callback=callback)
        ends.append({k: v.clone() for k, v in model.policy.state_dict().items()})
        ends[-1]["drawn next"] = torch.rand(3)
    assert ends[0].keys() == ends[1].keys()
    for name, tensor in ends[0].items():
        assert torch.equal(tensor, ends[1][name]), name


class Evaluating(BaseCallback):
    """Runs the policy on other observations within `on_step`, as an evaluation does."""

    def _on_step(self) -> bool:
        with torch.no_grad():
            self.model.predict(np.full((self.training_env.num_envs, 3), 50 + self.n_calls, np.float32), deterministic=True)
        return True


@pytest.mark.parametrize("algorithm", ["PPO", "DQN", "SAC"])
@pytest.mark.parametrize("place", [0, 1])
def test_activations_are_those_of_acting_bit_for_bit(algorithm: str, place: int, tmp_path: Path) -> None:
    point = {"PPO": "mlp_extractor.policy_net.1", "DQN": "q_net.q_net.1", "SAC": "actor.latent_pi.1"}[algorithm]
    callbacks: list[BaseCallback] = [Evaluating()]
    callbacks.insert(place, tapped(tmp_path / "r.mcap", point))
    options: dict[str, Any] = {"n_steps": 64} if algorithm == "PPO" else {"learning_starts": 10, "gradient_steps": 0, "train_freq": 8}
    if algorithm == "DQN":
        options |= {"exploration_fraction": 1.0}
    model = make(algorithm, vector(1, algorithm == "SAC"), **options)
    before = copy.deepcopy(model.policy)
    model.learn(64, callback=callbacks)
    recorded = Recorded(tmp_path / "r.mcap")
    check_pairing(recorded)
    fired = recorded.fired(f"{point}:out")
    assert len(fired) == {"PPO": 64, "SAC": 54}.get(algorithm, len(fired))
    assert 0 < len(fired) < 60 or algorithm == "PPO"
    network: Any = before
    for name in point.split(".")[:-1]:
        network = getattr(network, name)
    observation = torch.as_tensor(recorded.column("observation")[fired])
    with torch.no_grad():
        expected = torch.cat([network[:2](row[None]) for row in observation]).numpy()
    assert recorded.activations(f"{point}:out").tobytes() == expected.tobytes()
    assert recorded.bye.status["extra_forwards"] == 0


@pytest.mark.parametrize("kind", [DummyVecEnv, SubprocVecEnv])
@pytest.mark.parametrize("envs", [None, [1], [2, 0]])
def test_vectors_and_normalised_ones(kind: type[VecEnv], envs: list[int] | None, tmp_path: Path) -> None:
    env = VecNormalize(vector(3, kind=kind))
    try:
        model = make("PPO", env)
        before = copy.deepcopy(model.policy)
        model.learn(96, callback=tapped(tmp_path / "r.mcap", "mlp_extractor.policy_net.1", envs=envs))
    finally:
        env.close()
    recorded = Recorded(tmp_path / "r.mcap")
    check_pairing(recorded)  # raw observations and rewards, not the normalised ones
    count = 3 if envs is None else len(envs)
    assert recorded.manifest.num_envs == count
    assert len(recorded.seq) == 32 * count
    assert recorded.bye.status["autoreset_rows"] == 0
    assert recorded.activations("mlp_extractor.policy_net.1:out").shape == (32 * count, 8)
    first = recorded.activations("mlp_extractor.policy_net.1:out")[0]
    extractor: Any = before.mlp_extractor
    with torch.no_grad():  # zeros, which stay zeros
        assert np.allclose(first, extractor.policy_net[:2](torch.zeros(1, 3)).numpy(), atol=1e-6)


def test_chosen_environments_keep_their_own_activations(tmp_path: Path) -> None:
    """Rows of [2, 0] hold what a tap on all three holds for them."""
    found = []
    for envs in (None, [2, 0]):
        name = f"{envs}.mcap"
        model = make("PPO", vector(3))
        points = ["mlp_extractor.policy_net.0:in", "mlp_extractor.policy_net.3:out", "value_net:out"]
        model.learn(96, callback=tapped(tmp_path / name, points, envs=envs))
        found.append(Recorded(tmp_path / name))
    everything, some = found
    for column in ("observation", "action", "reward", "metrics"):
        whole = everything.column(column).reshape(32, 3, -1)[:, [2, 0]]
        assert whole.tobytes() == some.column(column).reshape(32, 2, -1).tobytes()
    for point in some.manifest.tap_points:
        whole = everything.activations(point.name).reshape(32, 3, -1)[:, [2, 0]]
        assert whole.tobytes() == some.activations(point.name).tobytes()
    assert some.activations("mlp_extractor.policy_net.0:in")[:, :2].tolist() == some.column("observation")[:, :2].tolist()


def test_stacked_frames_and_named_environments(tmp_path: Path) -> None:
    model = make("PPO", VecFrameStack(DummyVecEnv([lambda: gym.make("CartPole-v1")]), 2))
    model.learn(32, callback=tapped(tmp_path / "r.mcap"))
    recorded = Recorded(tmp_path / "r.mcap")
    assert recorded.manifest.environment == "CartPole-v1"
    assert recorded.manifest.observation_shape == (8,)
    assert recorded.manifest.tap_points[0].name == "mlp_extractor.policy_net.3:out", "the last hidden layer by itself"


@pytest.mark.parametrize("algorithm", EVERY)
def test_the_default_point_is_the_last_hidden_layer_of_what_acts(algorithm: str) -> None:
    model = make(algorithm, vector(1, algorithm in ("SAC", "TD3")))
    (point,) = [info.name for info in il.points(model.policy) if info.default]
    expected = {"DQN": "q_net.q_net.3:out", "SAC": "actor.latent_pi.3:out", "TD3": "actor.mu.3:out"}
    assert point == expected.get(algorithm, "mlp_extractor.policy_net.3:out")


def test_observations_of_several_parts(tmp_path: Path) -> None:
    model = PPO("MultiInputPolicy", SimpleMultiObsEnv(), n_steps=16, batch_size=8, n_epochs=1, device="cpu", seed=0)
    seen: list[Any] = []
    callback = tapped(tmp_path / "r.mcap", metrics={"size": lambda t: seen.append(t.next_observation.shape) or t.observation.size})  # type: ignore[func-returns-value]
    model.learn(16, callback=callback)
    recorded = Recorded(tmp_path / "r.mcap")
    assert recorded.manifest.observation_names == ("vec[0]", "vec[1]", "vec[2]", "vec[3]", "vec[4]"), "pictures are left out"
    assert set(seen) == {(5,)}
    assert (recorded.metric("size") == 5).all()


@pytest.mark.parametrize("count", [1, 2])
def test_functions_see_where_a_step_led(count: int, tmp_path: Path) -> None:
    metrics = [
        il.Metric("ahead", lambda t: t.next_observation[1] - t.observation[1], scope="transition"),
        il.Metric("taken", lambda t: t.info["taken"], scope="transition"),
        il.Metric("broken", lambda t: 1 / 0),
    ]
    env = VecNormalize(vector(count), clip_obs=1e9)
    make("A2C", env).learn(60, callback=tapped(tmp_path / "r.mcap", metrics=metrics))
    recorded = Recorded(tmp_path / "r.mcap")
    check_pairing(recorded)
    assert np.allclose(recorded.metric("ahead"), 1, atol=1e-3), "at the end of an episode too: its own last observation"
    assert recorded.metric("taken").tolist() == recorded.column("action").reshape(-1).tolist()
    assert np.isnan(recorded.metric("broken")).all()
    assert recorded.bye.status["metric_failures"] >= 60


@pytest.mark.parametrize("algorithm", ["PPO", "DQN", "TD3"])
def test_scalars_of_each_update(algorithm: str, tmp_path: Path) -> None:
    model = make(algorithm, vector(1, algorithm == "TD3"))
    model.learn(STEPS, callback=tapped(tmp_path / "r.mcap"), log_interval=1)
    recorded = Recorded(tmp_path / "r.mcap")
    rows = [
        (version, step, dict(zip(m.names, values, strict=True)))
        for m in Recording(tmp_path / "r.mcap").messages()
        if isinstance(m, Scalars)
        for version, step, values in zip(m.policy_version, m.step, m.values, strict=True)
    ]
    updates = [row for row in rows if "train/n_updates" in row[2]]
    versions = sorted(set(recorded.column("policy_version").tolist()) - {0})
    assert [row[0] for row in updates][: len(versions)] == versions, "one row after each update"
    assert updates[-1][0] == model._n_updates, "the last one, after which no step follows, too"
    assert all(row[2]["train/n_updates"] == row[0] for row in updates)
    loss = {"PPO": "train/loss", "DQN": "train/loss", "TD3": "train/critic_loss"}[algorithm]
    assert all(np.isfinite(row[2][loss]) for row in updates)
    assert updates[-1][2][loss] == pytest.approx(float(model.logger.name_to_value[loss]), rel=1e-12)
    changed = np.flatnonzero(np.diff(recorded.column("policy_version"))) + 1
    assert [row[1] for row in updates][: len(changed)] == changed.tolist(), "under the step that came next"
    assert any("rollout/ep_rew_mean" in row[2] for row in rows)


class Interrupting(BaseCallback):
    """Ctrl-C at the 40th step."""

    def __init__(self, error: type[BaseException] = KeyboardInterrupt) -> None:
        super().__init__()
        self.error = error

    def _on_step(self) -> bool:
        if self.n_calls == 40:
            raise self.error
        return True


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def hooks(model: BaseAlgorithm) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.policy.modules())


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_training_closes_its_recording(error: type[BaseException], tmp_path: Path) -> None:
    model = make("PPO", vector(1))
    callback = tapped(tmp_path / "r.mcap")
    callbacks = CallbackList([callback, Interrupting(error)])
    with pytest.raises(error):
        model.learn(STEPS, callback=callbacks)
    until(lambda: not callback.is_open)
    until(lambda: not hooks(model))
    recorded = Recorded(tmp_path / "r.mcap")
    check_pairing(recorded)
    assert recorded.bye.produced == 40
    assert len(callbacks.callbacks) == 2
    model.learn(32)  # and goes on without


def test_the_block_closes_at_once_and_spans_several_calls(tmp_path: Path) -> None:
    model = make("PPO", vector(1))
    with tapped(tmp_path / "r.mcap") as callback:
        model.learn(64, callback=callback)
        model.learn(64, callback=callback, reset_num_timesteps=False)
        model.learn(32, callback=callback)  # the environment is reset: another episode
        with pytest.raises(KeyboardInterrupt):
            model.learn(STEPS, callback=[callback, Interrupting()])
    recorded = Recorded(tmp_path / "r.mcap")
    assert recorded.bye.produced == 64 + 64 + 32 + 40
    assert recorded.column("episode_step").tolist() == recorded.column("observation")[:, 1].tolist()
    assert recorded.column("episode").tolist() == recorded.column("observation")[:, 0].tolist()
    assert not hooks(model)


def test_a_second_training_needs_a_name_of_its_own(tmp_path: Path) -> None:
    model = make("PPO", vector(1))
    callback = tapped(tmp_path / "r.mcap")
    model.learn(32, callback=callback)
    with pytest.raises(TapError, match="with TapCallback"):
        model.learn(32, callback=callback)
    with pytest.raises(RecordingExists):
        model.learn(32, callback=tapped(tmp_path / "r.mcap"))
    silent = TapCallback(run="sb3", endpoint="")
    model.learn(32, callback=silent)
    first = silent.tap
    model.learn(32, callback=silent)  # without a recording it may be used again: another boot of the run
    assert first is not None
    assert silent.tap is not None
    assert silent.tap.boot != first.boot
    assert not hooks(model)
    model.learn(32)


def test_mistakes_are_told_before_the_first_step() -> None:
    model = make("PPO", vector(2))
    for callback, said in (
        (TapCallback("mlp_extractor.polcy_net.1", endpoint=""), "mlp_extractor.policy_net.1"),
        (TapCallback(envs=[2], endpoint=""), "environments 0 to 1"),
        (TapCallback(endpoint="tcp://nowhere"), "nowhere"),
    ):
        with pytest.raises(InterlatentError, match=said):
            model.learn(8, callback=callback)
    assert model.num_timesteps == 0
    with pytest.raises(TapError, match="at least one"):
        TapCallback(envs=[])
    assert issubclass(UnknownTapPoint, InterlatentError)


class Broken(TapCallback):
    """A defect of ours, in every step but each fourth."""

    def _estimates(self, locals_: Any) -> dict[str, Any]:
        if self.num_timesteps % 4:
            raise LookupError("a defect")
        return super()._estimates(locals_)


def test_a_defect_of_the_tap_does_not_end_the_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = make("PPO", vector(1))
    with caplog.at_level(logging.WARNING):
        model.learn(STEPS, callback=Broken(run="sb3", record=tmp_path / "r.mcap", endpoint=""))
    assert model.num_timesteps == STEPS
    assert [r.message for r in caplog.records if "a defect" in r.message] == ["the tap goes on after LookupError: a defect"]
    recorded = Recorded(tmp_path / "r.mcap")
    assert recorded.bye.status["step_failures"] == STEPS * 3 // 4
    observation = recorded.column("observation")
    assert recorded.column("reward").tolist() == (100 * observation[:, 0] + observation[:, 1]).tolist()
    assert set(np.diff(recorded.column("step")).tolist()) == {4}


def test_models_are_saved_and_loaded_while_tapped(tmp_path: Path) -> None:
    class Saving(BaseCallback):
        def _on_step(self) -> bool:
            if self.n_calls == 20:
                self.model.save(tmp_path / "model.zip")
                torch.save(self.model.policy, tmp_path / "policy.pt")
                self.copy = copy.deepcopy(self.model.policy)
                observation = np.ones((1, 3), np.float32)
                self.expected = self.model.predict(observation, deterministic=True)[0]
            return True

    saving = Saving()
    checkpoints = CheckpointCallback(10, str(tmp_path / "checkpoints"), save_vecnormalize=True)
    evaluation = EvalCallback(VecNormalize(vector(1), training=False), eval_freq=16, n_eval_episodes=1, verbose=0)
    model = make("PPO", VecNormalize(vector(1)))
    model.learn(64, callback=[checkpoints, tapped(tmp_path / "r.mcap"), saving, evaluation])
    check_pairing(Recorded(tmp_path / "r.mcap"))
    loaded = PPO.load(tmp_path / "model.zip", device="cpu")
    assert not hooks(loaded)
    policy = torch.load(tmp_path / "policy.pt", weights_only=False)
    observation = np.ones((1, 3), np.float32)
    for one in (loaded.policy, policy, saving.copy):
        assert one.predict(observation, deterministic=True)[0].tolist() == saving.expected.tolist()
    assert len(list((tmp_path / "checkpoints").glob("*vecnormalize*"))) == 6


def test_pictures_show_what_was_acted_on(tmp_path: Path) -> None:
    model = make("PPO", vector(1, render_mode="rgb_array"))
    model.learn(STEPS, callback=tapped(tmp_path / "r.mcap", pictures=True))
    recorded = Recorded(tmp_path / "r.mcap")
    assert recorded.pictures
    from io import BytesIO

    from PIL import Image

    for picture in recorded.pictures:
        episode, step, _ = recorded.column("observation")[picture.seq]
        shown = np.asarray(Image.open(BytesIO(picture.data))).mean()
        assert shown == pytest.approx(10 * (episode % 5) + step, abs=1)
    model.learn(32, callback=tapped(tmp_path / "none.mcap"))
    assert not Recorded(tmp_path / "none.mcap").pictures, "nobody watches"


@pytest.mark.parametrize("algorithm", EVERY)
def test_a_trained_policy_predicts_under_a_tap(algorithm: str, tmp_path: Path) -> None:
    model = make(algorithm, vector(1, algorithm in ("SAC", "TD3")))
    tap = il.Tap(model.policy, POINTS[algorithm] if algorithm != "A2C" else None, run="sb3", record=tmp_path / "r.mcap", endpoint="")
    env = il.watch(Numbered(algorithm in ("SAC", "TD3")), tap)
    with tap:
        observation, _ = env.reset()
        for _ in range(20):
            action, _ = model.predict(observation, deterministic=True)
            observation, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                observation, _ = env.reset()
    recorded = Recorded(tmp_path / "r.mcap")
    check_pairing(recorded)
    assert all(recorded.fired(point.name) == list(range(20)) for point in recorded.manifest.tap_points)
    assert recorded.manifest.weights == "frozen"


def test_the_page_in_the_documents_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parent.parent / "docs" / "adapters" / "sb3.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("interlatent_live.agent_side.tap.DEFAULT_ENDPOINT", "tcp://127.0.0.1:*")  # others may hold it
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(compile(block, "sb3.md", "exec"), names)
    assert [Recorded(tmp_path / f"{name}.mcap").bye.produced for name in ("ppo", "long", "trained")] == [4_096, 4_096, 500]


def test_a_policy_that_learns_says_why(tmp_path: Path) -> None:
    from interlatent_live.agent_side.scores import sum_of_parts
    from interlatent_live.analyzer.dictionary import Dictionary, DictionaryConfig
    from interlatent_live.stream.attribution import Attribution

    point = "mlp_extractor.policy_net.1:out"
    generator = torch.Generator().manual_seed(0)
    shapes = {"W_enc": (64, 32), "b_enc": (32,), "W_dec": (32, 64), "b_dec": (64,)}
    tensors = {name: torch.randn(*shape, generator=generator) * 0.2 for name, shape in shapes.items()}
    dictionary = Dictionary(DictionaryConfig("learning", "topk", 64, 64, 32, point, point, k=4), tensors)

    def learn(why: il.Why | None, name: str) -> PPO:
        model = PPO("MlpPolicy", "CartPole-v1", n_steps=64, batch_size=64, n_epochs=1, seed=0, device="cpu")
        model.learn(256, callback=TapCallback(points=[point], endpoint="", record=tmp_path / name, why=why))
        return model

    plain, told = learn(None, "plain.mcap"), learn(il.Why(dictionary, rate_hz=1e6, share=1.0), "told.mcap")
    found = [m for m in Recording(tmp_path / "told.mcap").messages() if isinstance(m, Attribution)]
    assert found
    assert {m.kind for m in found} == {"logits"}
    for m in found:
        np.testing.assert_allclose(sum_of_parts(m), m.total, atol=1e-5)
        assert m.chosen in (0, 1)
    for one, other in zip(plain.policy.parameters(), told.policy.parameters(), strict=True):
        assert torch.equal(one, other), "training is bit-equal with and without"
