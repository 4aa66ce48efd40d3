"""The tap's life and accounts: rows, metrics, episodes, the bounded queue, endings."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.tap_samples import Recorded, mlp

from interlatent_live.agent_side.metrics import Metric, Transition
from interlatent_live.agent_side.tap import Tap
from interlatent_live.stream.errors import EndpointInUse, MalformedMessage, RecordingExists, TapError, UnknownTapPoint
from interlatent_live.stream.frames import FrameBatch
from interlatent_live.stream.ledger import SubscriberLedger
from interlatent_live.stream.manifest import ActionSpec
from interlatent_live.stream.subscriber import Subscriber
from interlatent_live.stream.wire import Bye

X = torch.ones(1, 4)


def tapped(path: Path, model: Any = None, points: Any = None, **options: Any) -> Tap:
    chosen: dict[str, Any] = {"endpoint": "", "record": path / "run.mcap"} | options
    return Tap(model, points, run="test", **chosen)


def recorded(path: Path) -> Recorded:
    return Recorded(path / "run.mcap")


def test_a_row_holds_what_step_was_given(tmp_path: Path) -> None:
    names = ("x", "y")
    with tapped(tmp_path, observation_names=names, action_names=("left", "right"), environment="Mine-v0", step_period_s=0.1) as tap:
        observation = np.zeros(2, np.float32)
        for i in range(5):
            observation[:] = i, -i  # the same array each time: a copy is kept
            tap.step(observation=observation, action=i % 2, reward=0.5 * i, terminated=i == 2, truncated=False, metrics={"value": 10 * i})
            tap.policy_version += i == 3
    run = recorded(tmp_path)
    assert run.seq == list(range(5))
    assert run.column("step").tolist() == list(range(5))
    assert run.column("observation").tolist() == [[i, -i] for i in range(5)]
    assert run.column("observation").dtype == np.float32
    assert run.column("action").tolist() == [[0], [1], [0], [1], [0]]
    assert run.column("reward").tolist() == [0.0, 0.5, 1.0, 1.5, 2.0]
    assert run.column("terminated").tolist() == [False, False, True, False, False]
    assert run.column("episode").tolist() == [0, 0, 0, 1, 1]
    assert run.column("episode_step").tolist() == [0, 1, 2, 0, 1]
    assert run.column("policy_version").tolist() == [0, 0, 0, 0, 1]
    assert run.column("env").tolist() == [0] * 5
    assert run.metric("x").tolist() == [0, 1, 2, 3, 4]
    assert run.metric("value").tolist() == [0, 10, 20, 30, 40]
    assert [(m.name, m.scope) for m in run.manifest.metrics] == [("x", "observation"), ("y", "observation"), ("value", "transition")]
    assert run.manifest.action == ActionSpec("discrete", (), ("left", "right"))
    assert run.manifest.observation_names == names
    assert (run.manifest.environment, run.manifest.step_period_s, run.manifest.weights) == ("Mine-v0", 0.1, "none")
    assert np.all(np.diff(run.column("monotonic_ns")) > 0)
    assert run.bye.produced == run.bye.recorded == 5


def test_values_that_are_missing_are_nan_or_absent(tmp_path: Path) -> None:
    with tapped(tmp_path) as tap:
        tap.step(observation=[1.0, 2.0], metrics={"a": 1.0})
        tap.step(reward=3.0)
        tap.step(observation=np.ones(3, np.float32), metrics={"a": None, "b": 2.0})  # another size than before
    run = recorded(tmp_path)
    assert np.array_equal(run.column("observation"), np.array([[1, 2], [np.nan] * 2, [np.nan] * 2]), equal_nan=True)
    assert np.array_equal(run.column("reward"), [np.nan, 3, np.nan], equal_nan=True)
    assert np.array_equal(run.metric("a"), [1, np.nan, np.nan], equal_nan=True)
    assert np.array_equal(run.metric("b"), [np.nan, np.nan, 2], equal_nan=True)
    assert np.array_equal(run.metric("obs[1]"), [2, np.nan, np.nan], equal_nan=True)
    assert "action" not in run.batches[0].columns
    assert "terminated" not in run.batches[0].columns


def test_observations_of_changing_dtype_are_kept(tmp_path: Path) -> None:
    with tapped(tmp_path) as tap:
        tap.step(observation=np.array([1, 2], np.float64))
        tap.step(observation=np.array([3, 4], np.float32))
        tap.step(observation=torch.tensor([5.0, 6.0]))
        tap.step(observation=(7, 8))
    assert recorded(tmp_path).column("observation").tolist() == [[1, 2], [3, 4], [5, 6], [7, 8]]


@pytest.mark.parametrize("observation", [np.zeros((84, 84, 3), np.uint8), {"image": np.zeros(3)}, object(), np.array(["a"])])
def test_observations_that_do_not_travel_are_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture, observation: Any) -> None:
    with tapped(tmp_path) as tap:
        for _ in range(3):
            tap.step(observation=observation, reward=1.0)
    run = recorded(tmp_path)
    assert "observation" not in run.batches[0].columns
    assert len(run.seq) == 3
    assert caplog.text.count("are not kept") == 1


def test_continuous_actions_and_vectors_of_choices(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    action = np.zeros(3, np.float64)
    with tapped(tmp_path / "a", action_names=("i", "j", "k")) as tap:
        for i in range(3):
            action[:] = i
            tap.step(action=action)
    with tapped(tmp_path / "b") as tap:
        tap.step(action=torch.tensor([1, 2]))
    one, two = recorded(tmp_path / "a"), recorded(tmp_path / "b")
    assert one.column("action").tolist() == [[0, 0, 0], [1, 1, 1], [2, 2, 2]]
    assert one.manifest.action == ActionSpec("continuous", (3,), ("i", "j", "k"))
    assert two.column("action").tolist() == [[1, 2]]
    assert two.manifest.action == ActionSpec("discrete", (2,))


def test_functions_see_what_their_scope_allows(tmp_path: Path) -> None:
    seen: list[Transition] = []

    def before(transition: Transition) -> float:
        seen.append(transition)
        return float(transition.observation[0])

    metrics = [
        Metric("first", 0, unit="m"),
        Metric("double", lambda t: 2 * before(t)),
        Metric("gain", lambda t: t.next_observation[0] - t.observation[0] + t.reward, scope="transition"),
        Metric("lives", lambda t: t.info["lives"], scope="transition"),
        Metric("value"),
    ]
    with tapped(tmp_path, metrics=metrics) as tap:
        for i in range(3):
            tap.step(
                observation=np.array([i], np.float32),
                action=1,
                reward=0.5,
                next_observation=np.array([i + 1.0]),
                info={"lives": 3 - i},
                metrics={"value": i},
            )
    run = recorded(tmp_path)
    assert run.manifest.metric_names == ("first", "double", "gain", "lives", "value")
    assert run.column("metrics").tolist() == [[i, 2 * i, 1.5, 3 - i, i] for i in range(3)]
    assert all(t.next_observation is None and t.reward != t.reward and t.info == {} and t.action == 1 for t in seen)
    assert [t.step for t in seen] == [0, 1, 2]


def test_a_failing_metric_is_counted_and_reported_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    metrics: dict[str, Any] = {"bad": lambda t: 1 / 0, "good": lambda t: 1.0, "text": lambda t: "a"}
    with tapped(tmp_path, metrics=metrics) as tap:
        for _ in range(5):
            tap.step(reward=1.0)
        assert tap.status()["metric_failures"] == 10
    run = recorded(tmp_path)
    assert np.isnan(run.metric("bad")).all()
    assert np.isnan(run.metric("text")).all()
    assert run.metric("good").tolist() == [1.0] * 5
    assert caplog.text.count("metric 'bad' failed: ZeroDivisionError") == 1


def test_step_never_raises(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Hostile:
        def __bool__(self) -> bool:
            raise RuntimeError("no truth")

    with tapped(tmp_path) as tap:
        tap.step(terminated=Hostile())
        tap.step(metrics=5)  # type: ignore[arg-type]
        tap.step(reward="much", metrics={"a": "b"})
        tap.step(reward=1.0)
    run = recorded(tmp_path)
    assert tap.status()["step_failures"] == 2
    assert "a step was not kept: RuntimeError: no truth" in caplog.text
    assert "could not be stacked" in caplog.text
    assert run.bye.produced == tap.frames == run.bye.queue_dropped + run.bye.recorded


def test_metric_elements_beyond_the_observation_are_nan(tmp_path: Path) -> None:
    with tapped(tmp_path, metrics=[Metric("there", 1), Metric("beyond", 7)]) as tap:
        tap.step(observation=np.ones(2, np.float32))
    run = recorded(tmp_path)
    assert run.metric("there").tolist() == [1.0]
    assert np.isnan(run.metric("beyond")).all()


def test_float64_observations_lose_nothing_in_the_metrics(tmp_path: Path) -> None:
    with tapped(tmp_path) as tap:
        tap.step(observation=np.array([1 / 3, 1e6 + 1e-6]))
    assert recorded(tmp_path).column("metrics").tolist() == [[1 / 3, 1e6 + 1e-6]]


def test_the_environments_own_terms_are_the_default_metrics(tmp_path: Path) -> None:
    with tapped(tmp_path, environment="CartPole-v1") as tap:
        tap.step(observation=np.arange(4.0))
    run = recorded(tmp_path)
    assert run.manifest.metric_names == ("cart_position", "cart_velocity", "pole_angle", "pole_angular_velocity")
    assert run.metric("pole_angle").tolist() == [2.0]


def test_vector_rows_have_their_own_numbers_and_autoreset_rows_are_no_frames(tmp_path: Path) -> None:
    model = mlp()
    with tapped(tmp_path, model, ["3:out"], num_envs=3) as tap:
        for i in range(4):
            model(torch.full((3, 4), float(i)) * torch.tensor([[1.0], [2.0], [3.0]]))
            valid = np.array([True, i != 2, True])
            tap.step(
                observation=np.array([[i, e] for e in range(3)], np.float32),
                action=np.array([0, 1, 2]),
                reward=np.array([1.0, 2.0, 3.0]),
                terminated=np.array([False, i == 1, False]),
                truncated=np.array([False, False, i == 0]),
                metrics={"value": np.array([0.0, 1.0, 2.0]), "shared": 7.0},
                valid=valid,
            )
    run = recorded(tmp_path)
    frames = [(i, e) for i in range(4) for e in range(3) if (i, e) != (2, 1)]
    assert run.seq == list(range(11))
    assert list(zip(run.column("step").tolist(), run.column("env").tolist(), strict=True)) == frames
    assert run.column("observation").tolist() == [[i, e] for i, e in frames]
    assert run.column("reward").tolist() == [e + 1.0 for _, e in frames]
    assert run.metric("value").tolist() == [float(e) for _, e in frames]
    assert run.metric("shared").tolist() == [7.0] * 11
    where = list(zip(run.column("env"), run.column("episode"), run.column("episode_step"), strict=True))
    of = {e: [(episode, step) for env, episode, step in where if env == e] for e in range(3)}
    assert of == {0: [(0, 0), (0, 1), (0, 2), (0, 3)], 1: [(0, 0), (0, 1), (1, 0)], 2: [(0, 0), (1, 0), (1, 1), (1, 2)]}
    with torch.no_grad():
        expected = torch.stack([model[:4](torch.full((4,), float(i * (e + 1)))) for i, e in frames]).numpy()
    np.testing.assert_allclose(run.activations("3:out"), expected, rtol=1e-5)
    assert tap.frames == run.bye.produced == 11
    assert run.bye.status["autoreset_rows"] == 1
    assert run.manifest.num_envs == 3


def test_functions_get_one_environments_part_of_a_vector(tmp_path: Path) -> None:
    metrics = [
        Metric("x", lambda t: t.observation[0] + 100 * t.env),
        Metric("gain", lambda t: t.next_observation[0] - t.observation[0] + t.reward + t.info["bonus"], scope="transition"),
    ]
    with tapped(tmp_path, num_envs=2, metrics=metrics) as tap:
        tap.step(
            observation=np.array([[1.0], [2.0]]),
            next_observation=np.array([[2.0], [4.0]]),
            reward=np.array([10.0, 20.0]),
            info={"bonus": np.array([0.5, 0.25]), "_bonus": np.array([True, True])},
        )
    assert recorded(tmp_path).column("metrics").tolist() == [[1.0, 11.5], [102.0, 22.25]]


def test_a_step_without_any_valid_row_makes_no_frame(tmp_path: Path) -> None:
    with tapped(tmp_path) as tap:
        tap.step(reward=1.0, terminated=True, valid=np.array([True]))
        tap.step(reward=0.0, valid=np.array([False]))
        tap.step(reward=2.0, valid=np.array([True]))
    run = recorded(tmp_path)
    assert run.column("step").tolist() == [0, 2]
    assert run.column("episode").tolist() == [0, 1]
    assert run.column("episode_step").tolist() == [0, 0]


def test_pause_ignores_forwards_and_steps(tmp_path: Path) -> None:
    model = mlp()
    with tapped(tmp_path, model, ["3:out"]) as tap:
        model(X)
        tap.step()
        with tap.pause(), tap.pause():
            model(X * 5)
            tap.step()
        tap.step()
    run = recorded(tmp_path)
    assert run.column("forward_age").tolist() == [0, 1]
    assert tap.status()["extra_forwards"] == 0


class Stalled:
    """A recorder's thread that is held up: nothing is drained until `release`."""

    def __init__(self, tap: Tap, monkeypatch: pytest.MonkeyPatch) -> None:
        self.release = threading.Event()
        drain = tap._drain

        def held() -> Iterator[FrameBatch]:
            self.release.wait(30)
            return drain()

        monkeypatch.setattr(tap, "_drain", held)


@pytest.mark.parametrize("envs", [1, 3])
def test_a_stalled_sender_loses_the_oldest_rows_and_all_is_accounted_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, envs: int
) -> None:
    model = mlp()
    tap = tapped(tmp_path, model, ["3:out"], num_envs=envs, queue_bytes=100_000)
    stalled = Stalled(tap, monkeypatch)
    with tap:
        for i in range(1000):
            model(torch.full((envs, 4), float(i)))
            valid = np.arange(envs) != 1 if i % 7 == 0 and envs > 1 else None
            tap.step(reward=np.full(envs, i), terminated=np.full(envs, i % 10 == 9), valid=valid)
        waiting = len(tap._queue)
        stalled.release.set()
    run = recorded(tmp_path)
    assert 50 < waiting < 200
    assert run.bye.produced == tap.frames == 1000 * envs - (143 if envs > 1 else 0)
    assert run.bye.queue_dropped == tap.frames - len(run.seq) > 0
    assert run.bye.produced == run.bye.queue_dropped + run.bye.recorded + run.bye.record_failed
    steps = run.column("step")
    assert steps[-1] == 999
    assert run.column("reward").tolist() == steps.astype(float).tolist()
    ended = {env: np.cumsum([0] + [i % 10 == 9 and not (env == 1 and i % 7 == 0) for i in range(999)]) for env in range(envs)}
    episodes = [ended[env][step] for env, step in zip(run.column("env"), steps, strict=True)]
    assert run.column("episode").tolist() == episodes  # exact though the ends of episodes were dropped
    assert run.batches[0].queue_dropped == run.batches[0].first_seq


@pytest.mark.parametrize("envs", [1, 2])
def test_rows_dropped_while_they_are_drained_cut_the_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, envs: int) -> None:
    tap = tapped(tmp_path, num_envs=envs)
    stalled = Stalled(tap, monkeypatch)
    with tap:
        for i in range(50):
            tap.step(reward=np.full(envs, i))
        del tap._queue[20]
        stalled.release.set()
    run = recorded(tmp_path)
    assert [(b.first_seq, b.rows, b.queue_dropped) for b in run.batches if b.first_seq > 0][-1] == (21 * envs, 29 * envs, envs)
    assert run.column("reward")[::envs].tolist() == [i for i in range(50) if i != 20]
    assert (run.bye.produced, run.bye.queue_dropped, run.bye.recorded) == (50 * envs, envs, 49 * envs)


def test_the_ledger_of_a_subscriber_closes(tmp_path: Path) -> None:
    model = mlp()
    tap = tapped(tmp_path, model, ["3:out"], endpoint="tcp://127.0.0.1:*")
    assert tap.manifest is None
    ledger = SubscriberLedger()
    with tap, Subscriber(tap.endpoint) as subscriber:
        assert not tap.endpoint.endswith("*")
        assert tap.wait_subscribed(10)
        for i in range(200):
            model(X)
            tap.step(reward=i)
        tap.close()
        while True:
            message = subscriber.receive(10)
            assert message is not None
            if isinstance(message, FrameBatch):
                ledger.batch(message)
            if isinstance(message, Bye):
                ledger.bound(message)
                break
    assert ledger.produced == ledger.received == tap.frames == 200


def test_closing_twice_or_before_opening_is_harmless_and_opening_twice_is_refused(tmp_path: Path) -> None:
    tap = tapped(tmp_path, mlp(), ["3:out"])
    tap.close()
    tap = Tap(mlp(), ["3:out"], run="other", endpoint="")
    with tap:
        tap.close()
    tap.close()
    tap.step(reward=1.0)
    assert tap.frames == 0
    with pytest.raises(TapError, match="opened once"):
        tap.open()


def test_a_tap_that_never_stepped_leaves_a_readable_recording(tmp_path: Path) -> None:
    with tapped(tmp_path, mlp(), ["3:out"]):
        pass
    run = recorded(tmp_path)
    assert run.batches == []
    assert run.bye.produced == 0


def test_step_before_opening_says_what_to_do(caplog: pytest.LogCaptureFixture) -> None:
    tap = Tap(None, run="test", endpoint="")
    tap.step()
    tap.step()
    assert caplog.text.count("use `with tap:`") == 1


def test_what_cannot_be_opened_is_told_and_nothing_stays_open(tmp_path: Path) -> None:
    (tmp_path / "run.mcap").write_bytes(b"mine")
    model = mlp()
    with pytest.raises(RecordingExists):
        tapped(tmp_path, model, ["3:out"], endpoint="tcp://127.0.0.1:*").open()
    assert not any(m._forward_hooks for m in model.modules())
    with Tap(mlp(), ["3:out"], run="a", endpoint="tcp://127.0.0.1:*") as tap, pytest.raises(EndpointInUse, match=str(os.getpid())):
        Tap(mlp(), ["3:out"], run="b", endpoint=tap.endpoint).open()


def test_wrong_arguments_are_refused_when_the_tap_is_made() -> None:
    with pytest.raises(UnknownTapPoint):
        Tap(mlp(), ["nowhere"])
    with pytest.raises(TapError, match="num_envs is 0"):
        Tap(mlp(), num_envs=0)
    with pytest.raises(TapError, match="queue_bytes is 0"):
        Tap(mlp(), queue_bytes=0)
    with pytest.raises(TapError, match="no hidden layer is recognised"):
        Tap(torch.nn.Tanh())
    with pytest.raises(TapError, match="no model"):
        Tap(None, ["1:out"])
    with pytest.raises(MalformedMessage, match="run name"):
        Tap(mlp(), run="a/b")


def test_the_default_point_is_said(caplog: pytest.LogCaptureFixture) -> None:
    assert Tap(mlp()).points == ("3:out",)
    assert "no tap points given: 3:out (Tanh) is read" in caplog.text


def test_overhead_is_measured_and_travels(tmp_path: Path) -> None:
    model = mlp()
    with tapped(tmp_path, model, ["3:out"]) as tap:
        assert np.isnan(tap.overhead()["median"])
        for _ in range(200):
            model(X)
            tap.step()
        assert len(tap._overheads) == 13
    overhead = tap.overhead()
    assert 0 < overhead["median"] <= overhead["p99"]
    status = recorded(tmp_path).bye.status
    assert status["overhead_us_median"] == overhead["median"]
    assert "picture_us_median" not in status  # unknown is left out


def test_view_needs_an_endpoint_and_ends_with_the_tap(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[str] = []
    monkeypatch.setattr(Tap, "viewer", lambda tap: lambda: ended.append(tap.endpoint))
    with pytest.raises(TapError, match="needs an endpoint"):
        Tap(None, run="test", endpoint="", view=True).open()
    with Tap(None, run="test", endpoint="tcp://127.0.0.1:*", view=True) as tap:
        assert ended == []
    assert ended == [tap.endpoint]
    monkeypatch.setattr(Tap, "viewer", None)
    with pytest.raises(TapError, match="take Tap from interlatent_live"):
        Tap(None, run="test", endpoint="tcp://127.0.0.1:*", view=True).open()


def test_the_manifest_knows_weights_host_and_software(tmp_path: Path) -> None:
    from interlatent_live.agent_side.weights import weights_hash

    model = mlp()
    with tapped(tmp_path, model, ["3:out"], agent="cartpole", weights="changing") as tap:
        model(X)
        tap.step()
    manifest = recorded(tmp_path).manifest
    assert manifest.weights_hash == weights_hash(mlp())
    assert (manifest.run, manifest.boot, manifest.pid) == ("test", tap.boot, os.getpid())
    assert (manifest.agent, manifest.weights) == ("cartpole", "changing")
    assert manifest.software["torch"] == torch.__version__
    with torch.no_grad():
        next(model.parameters())[0, 0] += 1e-6
    assert weights_hash(model) != manifest.weights_hash


def test_the_child_of_a_fork_neither_publishes_nor_records(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = mlp()
    caplog.set_level(logging.CRITICAL)
    with tapped(tmp_path, model, ["3:out"], endpoint="tcp://127.0.0.1:*") as tap:
        model(X)
        tap.step(reward=1.0)
        pid = os.fork()
        if pid == 0:
            hooked = any(m._forward_hooks for m in model.modules())
            tap.step(reward=2.0)
            tap.close()
            os._exit(1 if hooked or tap.frames != 1 else 0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        model(X)
        tap.step(reward=3.0)
    assert recorded(tmp_path).column("reward").tolist() == [1.0, 3.0]
