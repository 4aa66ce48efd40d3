"""Interventions in process: what they change, what they leave bit for bit, and how they end."""

from __future__ import annotations

import copy
import math
import pickle
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.steering_samples import OBSERVATION, dictionary_of, drive, make, quiet
from tests.tap_samples import Recorded, mlp
from torch import nn

import interlatent_live as il
from interlatent_live.analyzer.dictionary import Activation
from interlatent_live.analyzer.digest import verify
from interlatent_live.analyzer.edit import Edit, edited
from interlatent_live.analyzer.edit_row import PreparedEdit
from interlatent_live.analyzer.queries import Reader
from interlatent_live.analyzer.service import analyze_recording
from interlatent_live.stream.errors import DictionaryError, InterlatentError, PredicateError, SteeringError, TapError
from interlatent_live.stream.intervention import Intervention
from interlatent_live.stream.reading import Recording


def told(path: Path) -> list[Intervention]:
    return [m for m in Recording(path).messages() if isinstance(m, Intervention)]


def by_hand(model: nn.Sequential, dictionary: Any, edit: Edit, observation: Any = OBSERVATION) -> torch.Tensor:
    with torch.inference_mode():
        x = model[:2](torch.from_numpy(observation)[None])
        output: torch.Tensor = model[4:](edited(dictionary, [edit], x, model[2:4](x)))
        return output


@pytest.mark.parametrize("activation", ["relu", "topk", "jumprelu", "batchtopk"])
def test_one_row_prepared_equals_the_edit_of_many(activation: Activation) -> None:
    model = mlp()
    dictionary = dictionary_of(model, activation=activation)
    x, y = torch.randn(200, 8), torch.randn(200, 8)
    changed = 0
    for edit in (
        Edit("ablate", feature=2), Edit("scale", 1.5, feature=2), Edit("clamp", 3.0, feature=1), Edit("add", -0.7, feature=0),
        Edit("add", 0.5, direction=tuple(range(8))),
    ):  # fmt: skip
        want = edited(dictionary, [edit], x, y)
        many = PreparedEdit(edit, dictionary)
        change = many.change(x)
        assert change is not None
        assert torch.allclose(y + change, want, atol=1e-5)
        for i in range(len(x)):
            single = many.change(x[i : i + 1])
            if single is None:
                assert torch.equal(want[i], y[i])
            else:
                changed += 1
                assert torch.allclose(y[i] + single[0], want[i], atol=1e-5)
    assert changed > 200


def test_an_intervention_changes_the_action_by_the_edit_and_nothing_before_it() -> None:
    model, dictionary, tap = make()
    with tap:
        plain = drive(model, tap)
        with tap.steer(4, scale=0) as act:
            assert act.active
            steered = drive(model, tap)
        after = drive(model, tap)
    assert torch.allclose(steered, by_hand(model, dictionary, Edit("ablate", feature=4)), atol=1e-5)
    assert not torch.equal(steered, plain)
    assert torch.equal(after, plain)


@pytest.mark.parametrize("how", [{"scale": 1.0}, {"add": 0.0}])
def test_a_no_op_leaves_actions_bit_for_bit_over_10_000_steps(how: dict[str, Any]) -> None:
    torch.manual_seed(5)
    observations = np.random.default_rng(1).normal(size=(10_000, 4)).astype(np.float32)
    model, dictionary, tap = make()
    bare = copy.deepcopy(model)
    same = active = 0
    with tap, torch.inference_mode():
        acts = [tap.steer(feature, **how) for feature in range(dictionary.features)]
        for observation in observations:
            batch = torch.from_numpy(observation)[None]
            output = model(batch)
            tap.step(observation=observation, action=int(output.argmax()))
            same += output.numpy().tobytes() == bare(batch).numpy().tobytes()
            active += all(act.active for act in acts)
    assert same == active == 10_000


def test_frames_hold_what_was_computed_before_the_edit_and_say_what_acted(tmp_path: Path) -> None:
    model, _, tap = make(points=("1:out", "3:out", "4:out"), record=tmp_path / "r.mcap")
    with tap:
        drive(model, tap, 3)
        with tap.steer(4, clamp=5.0, reason="to see", author="me"):
            drive(model, tap, 4)
            with tap.steer(2, scale=0):
                drive(model, tap, 2)
        drive(model, tap, 3)
    back = Recorded(tmp_path / "r.mcap")
    acted = [
        [int(n) for n in row if n >= 0]
        for batch in back.batches
        for row in batch.columns.get("intervention", np.full((batch.rows, 1), -1, np.int32))
    ]
    assert acted == [[]] * 3 + [[0]] * 4 + [[0, 1]] * 2 + [[]] * 3
    site, after = back.activations("3:out"), back.activations("4:out")
    assert len({row.tobytes() for row in site}) == 1
    assert len({row.tobytes() for row in after}) == 3
    events = [(m.event, m.number, m.frame, m.cause) for m in told(tmp_path / "r.mcap")]
    assert events == [("start", 0, 3, ""), ("start", 1, 7, ""), ("end", 0, 9, "released"), ("end", 1, 9, "released")]
    start = told(tmp_path / "r.mcap")[0].told
    assert (start["author"], start["reason"], start["operation"], start["strength"], start["feature"]) == ("me", "to see", "clamp", 5.0, 4)


def test_an_idle_tap_that_allows_steering_changes_nothing(tmp_path: Path) -> None:
    model, _, tap = make(record=tmp_path / "r.mcap")
    with tap:
        steered_hooks = drive(model, tap, 5)
    assert torch.equal(steered_hooks, drive(mlp().eval(), il.Tap(mlp(), "3:out", endpoint=""), 1))
    assert all("intervention" not in batch.columns for batch in Recorded(tmp_path / "r.mcap").batches)


def test_it_ends_at_its_time_by_the_hook_itself_and_with_the_tap(tmp_path: Path) -> None:
    model, _, tap = make(record=tmp_path / "r.mcap")
    with tap:
        plain = drive(model, tap)
        act = tap.steer(4, scale=0, ttl_s=0.2)
        assert not torch.equal(drive(model, tap), plain)
        deadline = time.monotonic() + 20
        while act.active and time.monotonic() < deadline:
            time.sleep(0.01)
        assert torch.equal(drive(model, tap), plain)
        tap.steer(3, scale=0)
        drive(model, tap)
    assert [(m.event, m.cause) for m in told(tmp_path / "r.mcap")] == [("start", ""), ("end", "expired"), ("start", ""), ("end", "closed")]


def test_several_environments_are_steered_all_or_one(tmp_path: Path) -> None:
    model, dictionary, tap = make(num_envs=3, record=tmp_path / "r.mcap")
    batch = torch.from_numpy(np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32))
    with tap, torch.inference_mode():
        plain = model(batch)
        tap.step(observation=batch.numpy(), action=np.zeros(3, np.int64))
        with tap.steer(4, clamp=4.0, env=1):
            one = model(batch)
            tap.step(observation=batch.numpy(), action=np.zeros(3, np.int64))
        with tap.steer(4, clamp=4.0):
            other_batch = model(batch[:2])
            every = model(batch)
            tap.step(observation=batch.numpy(), action=np.zeros(3, np.int64))
    assert torch.equal(one[[0, 2]], plain[[0, 2]])
    assert torch.allclose(one[1], by_hand(model, dictionary, Edit("clamp", 4.0, feature=4), batch[1].numpy())[0], atol=1e-5)
    assert not torch.isclose(every, plain).all(1).any()
    assert torch.equal(other_batch, mlp()(batch[:2]))  # another batch is not the agent's
    batches = Recorded(tmp_path / "r.mcap").batches
    column = [row for b in batches for row in b.columns.get("intervention", np.full((b.rows, 1), -1)).tolist()]
    assert column == [[-1]] * 3 + [[-1], [0], [-1]] + [[1]] * 3


def test_dtype_shape_and_graph_are_kept() -> None:
    model = mlp().to(torch.bfloat16)
    dictionary = dictionary_of(model)
    tap = il.Tap(model, ["1:out", "3:out"], run="b", endpoint="", steering=quiet(dictionaries=[dictionary]))
    with tap, tap.steer(1, clamp=3.0):
        single = model(torch.randn(4, dtype=torch.bfloat16))  # unbatched, part of a graph
        assert (single.dtype, single.shape) == (torch.bfloat16, (2,))
        single.sum().backward()
        assert next(model.parameters()).grad is not None
        tap.step(action=0)


def test_a_direction_is_added_at_a_point_and_an_input_can_be_changed() -> None:
    model, _, tap = make(points=("4:in",))
    direction = [1.0] + [0.0] * 7
    with tap:
        plain = drive(model, tap)
        with tap.steer(direction=direction, add=0.5, point="4:in"):
            steered = drive(model, tap)
    last = model[4]
    assert isinstance(last, nn.Linear)
    assert torch.allclose(steered - plain, 0.5 * last.weight[:, 0].detach(), atol=1e-5)


def test_a_change_is_bounded_by_the_policy() -> None:
    model = mlp().eval()
    dictionary = dictionary_of(model)
    tap = il.Tap(model, ["1:out", "3:out", "4:in"], run="b", endpoint="", steering=quiet(dictionaries=[dictionary], max_change=0.1))
    with tap, torch.inference_mode():
        x = torch.from_numpy(OBSERVATION)[None]
        y = model[:4](x)
        tap.steer(1, clamp=1e6)
        moved: list[torch.Tensor] = []
        handle = model[4].register_forward_pre_hook(lambda module, args: moved.append(args[0]))
        drive(model, tap)
        handle.remove()
        share = float((moved[0] - y).norm() / y.norm())
    assert share == pytest.approx(0.1, rel=1e-4)


def test_actions_stay_within_the_limits_and_that_is_counted() -> None:
    model = mlp().eval()
    dictionary = dictionary_of(model)
    limits = [(-0.3, 0.3), (-0.3, 0.3)]
    tap = il.Tap(model, ["1:out", "3:out"], run="b", endpoint="", steering=quiet(dictionaries=[dictionary], action_limits=limits))
    with tap:
        with tap.steer(1, clamp=500.0):
            steered = drive(model, tap)
            assert tap.status()["steering_actions_clipped"] == 2
        assert steered.abs().tolist() == [[pytest.approx(0.3)] * 2]
        with tap.steer(1, scale=1.0):
            assert torch.equal(drive(model, tap), mlp().eval()(torch.from_numpy(OBSERVATION)[None]))  # nothing changed, nothing clipped


def test_a_condition_is_judged_on_each_frame_and_acts_on_the_next() -> None:
    model, _, tap = make(metrics=[il.Metric("angle", 2), il.Metric("speed", lambda t: float(t.observation[1]))])
    with tap:
        plain = {}
        for angle in (-0.5, 0.5):
            plain[angle] = drive(model, tap, observation=np.array([0.3, -0.2, angle, 0.1], np.float32))
        deadline = time.monotonic() + 20
        while not tap.manifest or not tap.manifest.metrics:  # names are known once a row was stacked
            assert time.monotonic() < deadline
            time.sleep(0.01)
        with tap.steer(4, clamp=9.0, when="angle > 0 and speed < 0"):
            seen = []
            for angle in (-0.5, 0.5, 0.5, -0.5, -0.5):
                output = drive(model, tap, observation=np.array([0.3, -0.2, angle, 0.1], np.float32))
                seen.append(not torch.equal(output, plain[angle]))
        assert seen == [False, False, True, True, False]
        with tap.steer(4, clamp=9.0, when="f4 > -1 and change(angle, 1) == 0"):
            seen = []
            for angle in (-0.5, -0.5, 0.5, 0.5, 0.5):
                output = drive(model, tap, observation=np.array([0.3, -0.2, angle, 0.1], np.float32))
                seen.append(not torch.equal(output, plain[angle]))
        assert seen == [False, False, True, False, True]
        with pytest.raises(PredicateError, match="knows no 'angel' while it acts; it knows angle"):
            tap.steer(4, scale=0, when="angel > 0")


def test_what_fails_ends_the_intervention_and_not_the_agent() -> None:
    model, dictionary, tap = make()
    with tap:
        plain = drive(model, tap)
        act = tap.steer(4, clamp=3.0)
        torch.manual_seed(0)
        model[1] = nn.Sequential(nn.Tanh(), nn.Linear(8, 5), nn.Linear(5, 8)).eval()  # not the tapped module any more
        drive(model, tap)
        assert act.active  # its input never comes: nothing is changed, nothing fails
        tap._capture.steering.touch(0, "not a tensor")  # type: ignore[union-attr]
        assert not act.active
        assert tap.status()["steering_failed"] == 1
    assert plain.shape == (1, 2)
    assert dictionary.features == 6


def test_a_pause_suspends_it() -> None:
    model, _, tap = make()
    with tap:
        plain = drive(model, tap)
        with tap.steer(4, clamp=9.0):
            with tap.pause(), torch.inference_mode():
                assert torch.equal(model(torch.from_numpy(OBSERVATION)[None]), plain)
            assert not torch.equal(drive(model, tap), plain)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        ({"feature": 4, "scale": math.nan}, "strength is 'nan'; a finite number"),
        ({"feature": 4, "scale": 1.0, "add": 1.0}, "exactly one of"),
        ({"feature": 9, "scale": 1.0}, "feature 9 is not of 'small', which has 0 to 5"),
        ({"feature": 4, "scale": 1.0, "ttl_s": 1e9}, "at most 300 s"),
        ({"feature": 4, "scale": 1.0, "dictionary": "humanoid"}, "no dictionary 'humanoid' is allowed"),
        ({"feature": 4, "scale": 1.0, "dictionary": "../x"}, "never by path"),
        ({"feature": 4, "scale": 1.0, "env": 3}, "the tap has 0 to 0"),
        ({"feature": 4, "add": 1.0, "unit": "typical"}, "typical maximum of feature 4 is not known"),
        ({"direction": [1.0, math.inf, *[0.0] * 6], "add": 1.0, "point": "3:out"}, "a finite number"),
        ({"direction": [1.0], "add": 1.0, "point": "9:out"}, "there is no tap point '9:out'"),
        ({"direction": [1.0], "add": 1.0, "point": "1:out"}, "may not be changed"),
        ({"feature": 4, "scale": 1.0, "max_effect": 1.0}, "does not measure it"),
    ],
)
def test_what_makes_no_sense_or_is_not_allowed_is_refused_with_the_reason(ask: dict[str, Any], message: str) -> None:
    model = mlp()
    policy = quiet(dictionaries=[dictionary_of(model)], points=["3:out"])
    with il.Tap(model, ["1:out", "3:out"], run="r", endpoint="", steering=policy) as tap:
        drive(model, tap)
        with pytest.raises(InterlatentError, match=message):
            tap.steer(**ask)
        assert tap.status()["steering_active"] == 0


def test_a_feature_is_steered_once_and_only_so_many_at_once() -> None:
    model = mlp()
    policy = quiet(dictionaries=[dictionary_of(model)], max_active=2)
    with il.Tap(model, ["1:out", "3:out"], run="r", endpoint="", steering=policy) as tap:
        tap.steer(1, scale=2)
        with pytest.raises(SteeringError, match="feature 1 is steered already"):
            tap.steer(1, scale=0)
        tap.steer(2, scale=2)
        with pytest.raises(SteeringError, match="2 interventions are in force"):
            tap.steer(3, scale=2)


def test_nothing_steers_unless_asked() -> None:
    model = mlp()
    with il.Tap(model, "3:out", run="r", endpoint="") as tap, pytest.raises(SteeringError, match="not allowed") as refused:
        tap.steer(1, scale=0)
    assert refused.value.reason == "not_allowed"
    assert tap.manifest is not None
    assert tap.manifest.control is None
    with pytest.raises(TapError, match="no model"):
        il.Tap(None, run="r", endpoint="", steering=quiet())


def test_another_models_dictionary_and_points_that_are_not_tapped_are_refused_before_anything_is_opened() -> None:
    model, other = mlp(), mlp(8)
    with torch.no_grad():
        next(other.parameters()).add_(1)
    for policy, message in (
        (quiet(dictionaries=[dictionary_of(other)]), "is of the weights"),
        (quiet(points=["7:out"]), "steering allows '7:out', but the tap reads"),
    ):
        tap = il.Tap(model, ["1:out", "3:out"], run="r", endpoint="tcp://127.0.0.1:*", steering=policy)
        with pytest.raises((SteeringError, DictionaryError), match=message):
            tap.open()


def test_a_policy_that_makes_no_sense_is_refused() -> None:
    for options, message in (
        ({"max_ttl_s": math.inf}, "every intervention ends by itself"),
        ({"max_change": -1}, "a number above 0"),
        ({"operations": ["double"]}, "there are ablate"),
        ({"action_limits": [(1, 0)]}, "the first number must be the lower"),
        ({"control": "tcp://0.0.0.0:*"}, "needs keys"),
        ({"effect_share": 0.9}, "at most 0.5"),
    ):
        with pytest.raises(SteeringError, match=message):
            il.SteeringPolicy(**options)


def test_the_store_and_a_replay_hold_the_same_interventions(tmp_path: Path) -> None:
    model, _, tap = make(record=tmp_path / "r.mcap", metrics=[il.Metric("angle", 2)])
    with tap:
        drive(model, tap, 3)
        with tap.steer(4, scale=0.5, reason="why not", shadow=False):
            drive(model, tap, 4)
        tap.steer(2, add=1.0)
        drive(model, tap, 2)
    for name in ("a.db", "b.db"):
        analyze_recording(tmp_path / "r.mcap", tmp_path / name, neurons_only=True)
    analyze_recording(tmp_path / "r.mcap", tmp_path / "b.db", neurons_only=True)  # twice is once
    with Reader(tmp_path / "a.db") as reader:
        first, second = reader.interventions(tap.boot)
        columns = [batch.columns.get("intervention") for batch in reader.batches(tap.boot, 0)]
    assert (first.first_seq, first.next_seq, first.cause, first.reason, first.author) == (3, 7, "released", "why not", "in process")
    assert (first.edit["operation"], first.edit["strength"], first.edit["feature"]) == ("scale", 0.5, 4)
    assert (second.first_seq, second.next_seq, second.cause) == (7, 9, "closed")
    assert any(column is not None for column in columns)
    assert verify(tmp_path / "a.db", tmp_path / "b.db") is None


def test_a_copy_of_a_steered_model_is_not_steered() -> None:
    model = mlp().eval()
    policy = il.SteeringPolicy(control="", dictionaries=[dictionary_of(model)], action_limits=[(-1, 1)] * 2)
    with il.Tap(model, ["1:out", "3:out"], run="c", endpoint="", steering=policy) as tap:
        plain = drive(model, tap)
        tap.steer(4, clamp=9.0)
        assert not torch.equal(drive(model, tap), plain)
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            with torch.inference_mode():
                assert torch.equal(other(torch.from_numpy(OBSERVATION)[None]), plain)


def test_a_compiled_model_is_steered() -> None:
    model = mlp().eval()
    dictionary = dictionary_of(model)
    compiled: Any = torch.compile(model, backend="eager")
    with il.Tap(compiled, ["1:out", "3:out"], run="c", endpoint="", steering=quiet(dictionaries=[dictionary], allow_mismatch=True)) as tap:
        plain = drive(compiled, tap, 2)
        with tap.steer(4, clamp=9.0):
            steered = drive(compiled, tap)
        assert torch.allclose(steered, by_hand(mlp().eval(), dictionary, Edit("clamp", 9.0, feature=4)), atol=1e-5)
        assert torch.equal(drive(compiled, tap), plain)
