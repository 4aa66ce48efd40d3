"""Watched environments: rows pair with the observation acted on, in single and vector environments of every autoreset mode."""

from __future__ import annotations

import itertools
import time
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from tests.tap_samples import Recorded, mlp
from torch import nn

from interlatent_live.agent_side.metrics import Metric
from interlatent_live.agent_side.pictures import Pictures
from interlatent_live.agent_side.tap import Tap
from interlatent_live.agent_side.watch import WatchedEnv, WatchedVectorEnv, watch
from interlatent_live.stream.errors import TapError

LENGTH = 5


class Numbered(gymnasium.Env[np.ndarray[Any, Any], np.int64]):
    """The observation is (episode, number of the step); every step writes into the array that was given out before."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012 - gymnasium's convention

    def __init__(self, render_mode: str | None = None, length: int = LENGTH, cost_s: float = 0.0) -> None:
        self.observation_space = gymnasium.spaces.Box(0, np.inf, (2,), np.float32)
        self.action_space = gymnasium.spaces.Discrete(3)
        self.render_mode = render_mode
        self._length, self._cost_s = length, cost_s
        self._state = np.array([-1, 0], np.float32)
        self.renders = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray[Any, Any], dict[str, Any]]:
        # a new array after a reset: gymnasium itself keeps the last observation for `final_obs` without a copy
        self._state = np.array([self._state[0] + 1, 0], np.float32)
        return self._state, {}

    def step(self, action: np.int64) -> tuple[np.ndarray[Any, Any], float, bool, bool, dict[str, Any]]:
        self._state[1] += 1
        return self._state, float(self._state[1]), bool(self._state[1] >= self._length), False, {"number": int(self._state[1])}

    def render(self) -> Any:
        self.renders += 1
        time.sleep(self._cost_s)
        return np.full((16, 24, 3), 10 * self._state[1], np.uint8)


METRICS = [
    Metric("episode", 0),
    Metric("number", 1),
    Metric("function", lambda t: t.observation[1]),
    Metric("next", lambda t: t.next_observation[1], scope="transition"),
]


def policy() -> nn.Sequential:
    return nn.Sequential(nn.Identity(), nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 3))


def make_tap(path: Path, model: nn.Module, **options: Any) -> Tap:
    return Tap(model, ["0:out"], run="test", endpoint="", record=path / "run.mcap", **({"metrics": METRICS} | options))


def test_rows_pair_with_the_observation_acted_on(tmp_path: Path) -> None:
    model = policy()
    tap = make_tap(tmp_path, model)
    env = watch(Numbered(), tap)
    assert isinstance(env, WatchedEnv)
    assert isinstance(env, gymnasium.Wrapper)
    with tap, torch.inference_mode():
        for _ in range(3):
            observation, _ = env.reset()
            over = False
            while not over:
                action = int(model(torch.from_numpy(observation.copy())[None]).argmax())
                observation, _, terminated, truncated, _ = env.step(action)
                over = terminated or truncated
    run = Recorded(tmp_path / "run.mcap")
    expected = [[episode, number] for episode in range(3) for number in range(LENGTH)]
    assert run.column("observation").tolist() == expected
    assert run.activations("0:out").tolist() == expected  # the same step as the observation
    assert run.column("metrics").tolist() == [[e, n, n, n + 1] for e, n in expected]
    assert run.column("episode").tolist() == [e for e, _ in expected]
    assert run.column("episode_step").tolist() == [n for _, n in expected]
    assert run.column("reward").tolist() == [n + 1 for _, n in expected]
    assert run.manifest.environment == "Numbered"
    assert run.manifest.action.kind == "discrete"


def test_a_reset_in_mid_episode_begins_a_new_one(tmp_path: Path) -> None:
    tap = make_tap(tmp_path, policy())
    env = watch(Numbered(), tap)
    with tap:
        env.reset()
        env.reset()
        for _ in range(2):
            env.step(0)
        env.reset()
        env.step(0)
    run = Recorded(tmp_path / "run.mcap")
    assert run.column("episode").tolist() == [0, 0, 1]
    assert run.column("episode_step").tolist() == [0, 1, 0]
    assert run.column("observation").tolist() == [[1, 0], [1, 1], [2, 0]]


def vector(mode: AutoresetMode) -> Any:
    return SyncVectorEnv([partial(Numbered, length=length) for length in (3, 4)], autoreset_mode=mode)


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_vector_environments_in_every_autoreset_mode(tmp_path: Path, mode: AutoresetMode) -> None:
    model = policy()
    tap = make_tap(tmp_path, model)
    env = watch(vector(mode), tap)
    assert isinstance(env, WatchedVectorEnv)
    steps = 12
    with tap, torch.inference_mode():
        observation, _ = env.reset()
        for _ in range(steps):
            action = model(torch.from_numpy(observation)).argmax(-1).numpy()
            observation, _, terminated, truncated, _ = env.step(action)
            over = terminated | truncated
            if mode is AutoresetMode.DISABLED and over.any():
                observation, _ = env.reset(options={"reset_mask": over})
    env.close()
    run = Recorded(tmp_path / "run.mcap")
    for e, length in ((0, 3), (1, 4)):
        of = run.column("env") == e
        wanted = [[episode, number] for episode in range(steps) for number in range(length)][: of.sum()]
        assert run.column("observation")[of].tolist() == wanted
        assert run.activations("0:out")[of].tolist() == wanted
        assert run.column("metrics")[of].tolist() == [[ep, n, n, n + 1] for ep, n in wanted]
        assert run.column("reward")[of].tolist() == [n + 1 for _, n in wanted]
        assert run.column("episode")[of].tolist() == [ep for ep, _ in wanted]
        assert run.column("episode_step")[of].tolist() == [n for _, n in wanted]
        assert run.column("terminated")[of].tolist() == [n == length - 1 for _, n in wanted]
    resets = {AutoresetMode.NEXT_STEP: 3 + 2}.get(mode, 0)
    assert run.bye.status["autoreset_rows"] == resets
    assert tap.frames == 2 * steps - resets
    assert run.manifest.num_envs == 2


def test_a_vector_of_one_environment(tmp_path: Path) -> None:
    model = policy()
    tap = make_tap(tmp_path, model)
    env = watch(SyncVectorEnv([Numbered]), tap)
    with tap:
        observation, _ = env.reset()
        for _ in range(8):
            model(torch.from_numpy(observation))
            observation, *_ = env.step(np.array([0]))
    run = Recorded(tmp_path / "run.mcap")
    expected = [(0, n) for n in range(5)] + [(1, 0), (1, 1)]
    assert run.column("metrics").tolist() == [[e, n, n, n + 1] for e, n in expected]
    assert run.activations("0:out").tolist() == [list(pair) for pair in expected]
    assert run.column("episode_step").tolist() == [n for _, n in expected]
    assert run.column("step").tolist() == [0, 1, 2, 3, 4, 6, 7]


def test_gymnasiums_vector_cartpole_has_named_metrics(tmp_path: Path) -> None:
    model = mlp()
    tap = Tap(model, run="test", endpoint="", record=tmp_path / "run.mcap")
    env = watch(gymnasium.make_vec("CartPole-v1", num_envs=4, vectorization_mode="vector_entry_point"), tap)
    with tap, torch.inference_mode():
        observation, _ = env.reset(seed=0)
        for _ in range(60):
            observation, *_ = env.step(model(torch.from_numpy(observation)).argmax(-1).numpy())
    run = Recorded(tmp_path / "run.mcap")
    assert run.manifest.environment == "CartPole-v1"
    assert run.manifest.step_period_s == 0.02
    assert np.array_equal(run.metric("pole_angle").astype(np.float32), run.column("observation")[:, 2])
    assert len(run.seq) + run.bye.status["autoreset_rows"] == 240
    with torch.no_grad():
        expected = model[:4](torch.from_numpy(run.column("observation").copy()))
    np.testing.assert_allclose(run.activations("3:out"), expected.numpy(), atol=1e-6)


def test_watching_leaves_what_the_environment_returns_alone(tmp_path: Path) -> None:
    tap = Tap(policy(), ["0:out"], run="test", endpoint="")
    plain, watched = gymnasium.make("CartPole-v1"), watch(gymnasium.make("CartPole-v1"), tap)
    with tap:
        for env in (plain, watched):
            env.action_space.seed(0)
        ours, _ = watched.reset(seed=3)
        theirs, _ = plain.reset(seed=3)
        for _ in range(10):
            assert np.array_equal(ours, theirs)
            ours, *rest = watched.step(1)
            theirs, *others = plain.step(1)
            assert rest == others


def test_another_number_of_environments_comes_too_late_after_the_first_step(tmp_path: Path) -> None:
    model = policy()
    with Tap(model, ["0:out"], run="test", endpoint="") as tap:
        model(torch.zeros(1, 2))
        tap.step()
        with pytest.raises(TapError, match="call watch before the first step"):
            watch(vector(AutoresetMode.NEXT_STEP), tap)


def test_what_is_no_environment_is_refused() -> None:
    with pytest.raises(TapError, match=r"object is neither .* call tap\.step"):
        watch(object(), Tap(None, run="test"))


def test_pictures_show_what_was_acted_on(tmp_path: Path) -> None:
    tap = make_tap(tmp_path, policy())
    inner = Numbered("rgb_array", length=20)
    env = watch(inner, tap)
    tap.pictures = Pictures(period_ns=0, share=1.0)
    with tap:
        env.reset()
        for _ in range(3):
            env.step(0)
            time.sleep(0.05)  # the sender makes one picture a turn
    run = Recorded(tmp_path / "run.mcap")
    assert [(p.seq, p.step, p.env, p.width, p.height) for p in run.pictures] == [(i, i, 0, 24, 16) for i in range(3)]
    for picture in run.pictures:
        assert picture.data[:3] == b"\xff\xd8\xff"
        assert abs(_brightness(picture.data) - 10 * picture.seq) < 3
    assert run.bye.status["picture_us_median"] > 0


def _brightness(jpeg: bytes) -> float:
    import io

    from PIL import Image

    return float(np.asarray(Image.open(io.BytesIO(jpeg))).mean())


def test_an_environment_that_cannot_render_is_told_once_and_steps_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Blind(Numbered):
        def render(self) -> Any:
            self.renders += 1
            raise RuntimeError("no display")

    inner = Blind("rgb_array", length=20)
    tap = Tap(mlp(), run="t", record=tmp_path / "run.mcap", endpoint="")
    env = watch(inner, tap)
    with tap:
        env.reset()
        for _ in range(10):
            env.step(0)
    assert (tap.frames, inner.renders) == (10, 1)
    assert [r.getMessage() for r in caplog.records if "no more pictures" in r.getMessage()] == [
        "no more pictures: the environment does not render (RuntimeError: no display)"
    ]


def test_rendering_is_bounded_by_rate_and_by_share() -> None:
    pictures = Pictures()
    assert pictures.due(0)
    pictures.rendered(0, 1_000_000)
    assert not pictures.due(99_999_999)
    assert pictures.due(100_000_000)
    pictures.rendered(100_000_000, 50_000_000)  # 50 ms: a fifth of the time is one in 250 ms
    assert not pictures.due(349_999_999)
    assert pictures.due(350_000_000)
    assert pictures.median_us == 25_500.0


def test_only_the_first_environment_of_a_vector_is_rendered(tmp_path: Path) -> None:
    envs = [Numbered("rgb_array"), Numbered("rgb_array")]
    serial = itertools.count()
    tap = make_tap(tmp_path, policy())
    env = watch(SyncVectorEnv([lambda: envs[next(serial) % 2]] * 2), tap)
    with tap:
        env.reset()
        env.step(np.array([0, 0]))
    assert [e.renders for e in envs] == [1, 0]
    assert len(Recorded(tmp_path / "run.mcap").pictures) == 1


@pytest.mark.parametrize("image", [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 1), np.uint8), np.zeros((8, 8, 4), np.uint8)])
def test_pictures_of_other_shapes(tmp_path: Path, image: Any) -> None:
    with Tap(None, run="test", endpoint="", record=tmp_path / "run.mcap") as tap:
        tap.step(reward=0.0, image=image)
    assert len(Recorded(tmp_path / "run.mcap").pictures) == 1


def test_a_reader_sees_the_environment_before_it_moves(tmp_path: Path) -> None:
    model = policy()
    metrics = [Metric("number", 1), Metric("shown", unit="steps")]
    tap = make_tap(tmp_path, model, metrics=metrics)
    env = watch(Numbered(), tap, read=lambda inner: {"shown": inner.unwrapped._state[1]})
    with tap, torch.inference_mode():
        for _ in range(2):
            observation, _ = env.reset()
            over = False
            while not over:
                model(torch.from_numpy(observation)[None])
                observation, _, over, _, _ = env.step(0)
    recorded = Recorded(tmp_path / "run.mcap")
    spec = recorded.manifest.metrics[1]
    assert (spec.name, spec.unit, spec.scope) == ("shown", "steps", "observation")
    values = recorded.column("metrics")
    assert values[:, 0].tolist() == [*range(LENGTH)] * 2
    np.testing.assert_array_equal(values[:, 0], values[:, 1])


def test_a_reader_that_fails_is_counted_and_the_agent_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = policy()
    tap = make_tap(tmp_path, model, metrics=[Metric("shown")])
    env = watch(Numbered(), tap, read=lambda inner: {"shown": inner.unwrapped.nothing})
    env.reset()
    with tap:
        for _ in range(3):
            env.step(0)
    assert tap.status()["metric_failures"] == 3
    assert [record.message for record in caplog.records if "reader" in record.message] == [
        "run test: the reader of the environment failed: AttributeError: 'Numbered' object has no attribute 'nothing'"
    ]
    assert np.isnan(Recorded(tmp_path / "run.mcap").column("metrics")).all()


def test_a_vector_environment_is_read_as_a_whole(tmp_path: Path) -> None:
    model = policy()
    tap = make_tap(tmp_path, model, metrics=[Metric("number", 1), Metric("shown")])
    vector = SyncVectorEnv([Numbered, partial(Numbered, length=3)])
    env = watch(vector, tap, read=lambda inner: {"shown": np.array([one.unwrapped._state[1] for one in inner.envs])})
    env.reset()
    with tap:
        for _ in range(4):
            env.step(np.zeros(2, np.int64))
    values = Recorded(tmp_path / "run.mcap").column("metrics")
    assert len(values) == 7
    np.testing.assert_array_equal(values[:, 0], values[:, 1])


def test_pictures_as_observations_are_left_out_and_nothing_is_said_where_metrics_are_given(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Pixels(gymnasium.ObservationWrapper[np.ndarray[Any, Any], np.int64, np.ndarray[Any, Any]]):
        def __init__(self) -> None:
            super().__init__(Numbered())
            self.observation_space = gymnasium.spaces.Box(0, 255, (4, 84, 84), np.uint8)

        def observation(self, observation: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
            return np.full((4, 84, 84), observation[1], np.uint8)

    model = policy()
    tap = make_tap(tmp_path, model, metrics=[Metric("first", lambda t: float(t.observation[0, 0, 0]))])
    env = watch(Pixels(), tap)
    env.reset()
    with tap:
        for _ in range(4):
            env.step(0)
    recorded = Recorded(tmp_path / "run.mcap")
    assert recorded.column("metrics")[:, 0].tolist() == [0, 1, 2, 3]
    assert recorded.manifest.observation_shape == ()
    assert all("observation" not in batch.columns for batch in recorded.batches)
    assert not caplog.records
