"""What the hooks keep: the last fitting forward of the step, copied at once, equal to a direct hook's bit for bit."""

from __future__ import annotations

import copy
import io
import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.tap_samples import Recorded, mlp
from torch import nn

from interlatent_live.agent_side.tap import Tap
from interlatent_live.stream.errors import TapError
from interlatent_live.stream.wire import MAX_FRAME_BYTES

X = torch.linspace(-1, 1, 4)[None]


def record(model: nn.Module, points: Any, path: Path, use: Callable[[Tap], None], **options: Any) -> tuple[Tap, Recorded]:
    """Tap `model`, let `use` run it, return the closed tap and what was recorded."""
    file = path / "run.mcap"
    tap = Tap(model, points, run="test", endpoint="", record=file, **options)
    with tap:
        use(tap)
    return tap, Recorded(file)


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_activations_equal_a_direct_hooks_bit_for_bit(tmp_path: Path, mode: Callable[[], Any]) -> None:
    model = mlp()
    direct: list[torch.Tensor] = []
    model[3].register_forward_hook(lambda module, args, output: direct.append(output.detach().clone()))

    def use(tap: Tap) -> None:
        with mode():
            for i in range(20):
                model(X * i)
                tap.step(reward=1.0)

    _, recorded = record(model, ["1:out", "3:out"], tmp_path, use)
    assert recorded.activations("3:out").tobytes() == torch.cat(direct).numpy().tobytes()
    assert recorded.column("forward_age").tolist() == [0] * 20
    assert [p.shape for p in recorded.manifest.tap_points] == [(8,), (8,)]


def test_a_grad_mode_that_changes_under_way_changes_nothing(tmp_path: Path) -> None:
    model = mlp()

    def use(tap: Tap) -> None:
        for i in range(6):
            with torch.set_grad_enabled(i % 2 == 0):
                model(X * i)
            tap.step()

    tap, recorded = record(model, ["3:out"], tmp_path, use)
    with torch.no_grad():
        expected = torch.cat([model[:4](X * i) for i in range(6)])
    assert np.array_equal(recorded.activations("3:out"), expected.numpy())
    assert tap.status()["hook_failures"] == 0


def test_in_place_operations_after_the_tapped_module_are_not_seen(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(inplace=True), nn.Linear(8, 2))
    with torch.inference_mode():
        before, after = model[0](X).clone(), model[:2](X).clone()

    def use(tap: Tap) -> None:
        with torch.inference_mode():
            model(X)
        tap.step()

    _, recorded = record(model, ["0:out", "1:in", "1:out"], tmp_path, use)
    assert (before < 0).any()
    assert np.array_equal(recorded.activations("0:out"), before.numpy())
    assert np.array_equal(recorded.activations("1:in"), before.numpy())
    assert np.array_equal(recorded.activations("1:out"), after.numpy())


@pytest.mark.parametrize(
    ("dtype", "name", "wire"), [(torch.float16, "float16", "<f2"), (torch.bfloat16, "bfloat16", "<u2"), (torch.float64, "float32", "<f4")]
)
def test_dtypes(tmp_path: Path, dtype: torch.dtype, name: str, wire: str) -> None:
    model = mlp().to(dtype)
    with torch.no_grad():
        expected = model[:2](X.to(dtype))

    def use(tap: Tap) -> None:
        for _ in range(3):
            model(X.to(dtype))
            tap.step()

    tap, recorded = record(model, ["1:out"], tmp_path, use)
    got = recorded.activations("1:out")
    assert recorded.manifest.tap_points[0].dtype == name
    assert got.dtype == np.dtype(wire)
    if name == "bfloat16":
        assert np.array_equal(got[0], expected[0].view(torch.int16).numpy().view(np.uint16))
    else:
        assert np.array_equal(got[0], expected[0].numpy().astype(wire))
    assert tap.status()["hook_failures"] == 0


def test_a_dtype_that_changes_under_way_is_counted_and_the_frames_stay(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = mlp()

    def use(tap: Tap) -> None:
        for i in range(4):
            model.to(torch.float64 if i == 2 else torch.float32)
            with torch.inference_mode():
                model(X.to(torch.float64 if i == 2 else torch.float32))
            tap.step()

    tap, recorded = record(model, ["1:out"], tmp_path, use)
    assert recorded.fired("1:out") == [0, 1, 3]
    assert recorded.seq == [0, 1, 2, 3]
    assert tap.status()["hook_failures"] == 1
    assert "dtype changed" in caplog.text


@pytest.mark.parametrize("shape", [(4,), (1, 4)])
def test_one_environment_may_come_without_a_leading_dimension(tmp_path: Path, shape: tuple[int, ...]) -> None:
    model = mlp()

    def use(tap: Tap) -> None:
        model(torch.zeros(shape))
        tap.step()
        model(torch.ones(1, 4))
        tap.step()
        model(torch.ones(4))
        tap.step()

    _, recorded = record(model, ["3:out"], tmp_path, use)
    got = recorded.activations("3:out")
    assert got.shape == (3, 8)
    assert np.array_equal(got[1], got[2])


def test_another_batch_between_acting_and_step_is_not_mistaken_for_it(tmp_path: Path) -> None:
    model = mlp()

    def use(tap: Tap) -> None:
        for i in range(5):
            model(X * i)
            model(torch.zeros(32, 4))  # a training batch
            tap.step()

    tap, recorded = record(model, ["3:out"], tmp_path, use)
    with torch.no_grad():
        expected = torch.cat([model[:4](X * i) for i in range(5)])
    assert np.array_equal(recorded.activations("3:out"), expected.numpy())
    assert tap.status()["other_forwards"] == 5
    assert tap.status()["extra_forwards"] == 0


def test_of_several_forwards_in_a_step_the_last_counts_and_it_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = mlp()

    def use(tap: Tap) -> None:
        for i in range(5):
            model(X * 100)
            model(X * i)
            tap.step()

    tap, recorded = record(model, ["1:out", "3:out"], tmp_path, use)
    with torch.no_grad():
        expected = torch.cat([model[:4](X * i) for i in range(5)])
    assert np.array_equal(recorded.activations("3:out"), expected.numpy())
    assert recorded.bye.status["extra_forwards"] == tap.status()["extra_forwards"] == 10
    assert caplog.text.count("several times within one step") == 1


def test_two_layers_always_come_from_the_same_step(tmp_path: Path) -> None:
    class Numbered(nn.Module):
        """Both layers return the number that goes in."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Identity(), nn.Identity()

        def forward(self, x: torch.Tensor, both: bool) -> torch.Tensor:
            x = self.a(x)
            return self.b(x) if both else x

    model = Numbered()

    def use(tap: Tap) -> None:
        for i in range(300):
            if i % 3:
                model(torch.full((1, 1), float(i)), both=i % 5 != 0)
            tap.step(metrics={"number": i})

    _, recorded = record(model, ["a:out", "b:out"], tmp_path, use)
    for point in ("a:out", "b:out"):
        fired = recorded.fired(point)
        assert recorded.activations(point)[:, 0].tolist() == [float(i) for i in fired]
        assert recorded.metric("number")[fired].tolist() == [float(i) for i in fired]
    assert recorded.fired("b:out") == [i for i in range(300) if i % 3 and i % 5]


def test_steps_without_forward_keep_their_row_and_say_how_old_the_last_is(tmp_path: Path) -> None:
    model = mlp()

    def use(tap: Tap) -> None:
        for i in range(7):
            if i in (2, 5):
                model(X)
            tap.step(action=i % 2)

    _, recorded = record(model, ["3:out"], tmp_path, use)
    assert recorded.column("forward_age").tolist() == [-1, -1, 0, 1, 2, 0, 1]
    assert recorded.fired("3:out") == [2, 5]
    assert len(recorded.seq) == 7


def test_first_tensor_of_tuples_and_dicts_is_kept_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Dictionary(nn.Module):
        def forward(self, x: torch.Tensor) -> dict[str, Any]:
            return {"name": "x", "hidden": x * 2}

    lstm = nn.LSTM(4, 8, batch_first=True)
    model = nn.ModuleDict({"lstm": lstm, "dictionary": Dictionary()})

    def use(tap: Tap) -> None:
        lstm(X[None])
        model["dictionary"](X)
        tap.step()

    tap, recorded = record(model, ["lstm", "dictionary"], tmp_path, use)
    assert recorded.activations("lstm:out").shape == (1, 1, 8)
    assert np.array_equal(recorded.activations("dictionary:out"), (X * 2).numpy())
    assert "lstm:out: a tuple of 2 passes here; its first tensor, [0], is kept" in caplog.text
    assert "its first tensor, ['hidden'], is kept" in caplog.text
    assert tap.status()["hook_failures"] == 0


def test_what_cannot_be_kept_is_counted_and_reported_once_and_the_agent_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Text(nn.Module):
        def forward(self, x: torch.Tensor) -> str:
            return "no tensor"

    model = nn.ModuleDict({"text": Text(), "sparse": nn.Identity(), "complex": nn.Identity(), "huge": nn.Identity()})

    def use(tap: Tap) -> None:
        for _ in range(3):
            assert model["text"](X) == "no tensor"
            model["sparse"](torch.eye(1, 4).to_sparse())
            model["complex"](torch.zeros(1, 4, dtype=torch.complex64))
            model["huge"](torch.zeros(1, MAX_FRAME_BYTES // 4 + 1))
            tap.step(reward=1.0)

    tap, recorded = record(model, ["text", "sparse", "complex", "huge"], tmp_path, use)
    assert recorded.column("reward").tolist() == [1.0, 1.0, 1.0]
    assert recorded.manifest.tap_points == ()
    assert tap.status()["hook_failures"] == 12
    for name in model:
        assert caplog.text.count(f"{name}:out:") == 1
    assert f"at most {MAX_FRAME_BYTES} bytes" in caplog.text
    assert "pool or subsample" in caplog.text


def test_keyword_arguments_are_inputs_too(tmp_path: Path) -> None:
    layer = nn.Linear(4, 8)

    def use(tap: Tap) -> None:
        layer(input=X)
        tap.step()

    _, recorded = record(layer, [":in"], tmp_path, use)
    assert np.array_equal(recorded.activations(":in"), X.numpy())


def test_non_finite_activations_are_kept(tmp_path: Path) -> None:
    layer = nn.Identity()

    def use(tap: Tap) -> None:
        layer(torch.tensor([[torch.nan, torch.inf]]))
        tap.step()

    _, recorded = record(layer, [":out"], tmp_path, use)
    assert np.array_equal(recorded.activations(":out"), [[np.nan, np.inf]], equal_nan=True)


def test_copies_of_a_tapped_model_carry_inert_hooks(tmp_path: Path) -> None:
    model = mlp()
    saved = io.BytesIO()

    def use(tap: Tap) -> None:
        torch.save(model, saved)
        saved.seek(0)
        copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(saved, weights_only=False)]
        for other in copies:
            assert torch.equal(other(X), model(X))
            tap.step()  # takes what `model` did
            other(X)
            tap.step()

    _, recorded = record(model, ["1:in", "3:out"], tmp_path, use)
    assert recorded.fired("3:out") == recorded.fired("1:in") == [0, 2, 4]
    pickled = pickle.dumps(model)
    assert b"interlatent" not in pickled


def test_a_saved_model_loads_without_this_package(tmp_path: Path) -> None:
    model = mlp()
    with Tap(model, ["3:out", "1:in"], run="test", endpoint=""):
        assert b"interlatent" not in pickle.dumps(model)


def test_hooks_are_off_after_the_tap(tmp_path: Path) -> None:
    model = mlp()
    tap, _ = record(model, ["1:in", "3:out"], tmp_path, lambda tap: None)
    tap.close()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_scripted_modules_are_refused_with_the_remedy_or_tapped(caplog: pytest.LogCaptureFixture) -> None:
    scripted = torch.jit.script(mlp())
    tap = Tap(scripted, ["1:out"], run="test", endpoint="")
    with pytest.raises(TapError, match="tap the eager model"):
        tap.open()
    tap.close()


def test_a_silent_point_is_reported_once_with_likely_causes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def use(tap: Tap) -> None:
        for _ in range(150):
            tap.step()

    with caplog.at_level(logging.WARNING):
        _, recorded = record(mlp(), ["1:out", "3:out"], tmp_path, use)
    assert caplog.text.count("nothing was kept in 150 steps") == 1
    for cause in ("predict()", "get_action_and_value()", "compiled", "random warm-up", "a copy of those tapped"):
        assert cause in caplog.text
    assert recorded.bye.status["silent_points"] == 2


def test_a_wrong_number_of_environments_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = mlp()

    def use(tap: Tap) -> None:
        for _ in range(120):
            model(torch.zeros(8, 4))
            tap.step()

    record(model, ["3:out"], tmp_path, use)
    assert "had shape (8, 8), but the leading dimension must be num_envs = 1" in caplog.text
