"""Real modules of every kind: what is kept equals a direct forward hook's, bit for bit, or it is said why nothing is."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.tap_samples import Recorded, mlp
from torch import nn

from interlatent_live.agent_side.points import resolve
from interlatent_live.agent_side.tap import Tap
from interlatent_live.stream.errors import TapError, UnknownTapPoint

Take = Callable[[Any], torch.Tensor]


def run_and_compare(
    model: nn.Module,
    points: dict[str, tuple[str, Take]],
    inputs: Sequence[tuple[Any, ...]],
    path: Path,
    *,
    call: Callable[..., Any] | None = None,
    **options: Any,
) -> Recorded:
    """Tap `points`, name → (module's path, what a direct hook takes of its output), and compare; return the recording."""
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in points}
    for name, (module, take) in points.items():
        model.get_submodule(module).register_forward_hook(
            lambda m, a, output, name=name, take=take: seen[name].append(take(output).detach().clone())
        )
    tap = Tap(model, list(points), run="modules", endpoint="", record=path / "run.mcap", **options)
    with tap:
        for given in inputs:
            (call or model)(*given)
            tap.step(reward=1.0)
    assert tap.status()["hook_failures"] == 0
    assert tap.status()["silent_points"] == 0
    recorded = Recorded(path / "run.mcap")
    for name in points:
        kept, direct = recorded.activations(name), torch.cat(seen[name])
        assert kept.shape == tuple(direct.shape), name
        assert kept.tobytes() == direct.numpy().tobytes(), name
    return recorded


def noise(*shape: int, n: int = 5) -> list[tuple[torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(shape, generator=generator),) for _ in range(n)]


def whole(output: Any) -> torch.Tensor:
    found: torch.Tensor = output
    return found


def test_convolutions_whole_or_by_mean_or_maximum_over_space(tmp_path: Path) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8 * 7 * 7, 2)
    ).eval()
    points: dict[str, tuple[str, Take]] = {
        "0:out": ("0", whole),
        "0:out:mean": ("0", lambda o: o.detach().mean((2, 3))),
        "0:out:max": ("0", lambda o: o.amax((2, 3))),
        "3:out:mean": ("3", lambda o: o.detach().mean((2, 3))),
        "5:out": ("5", whole),
    }
    recorded = run_and_compare(model, points, noise(4, 3, 16, 16), tmp_path, num_envs=4)
    told = {p.name: (p.module, p.shape) for p in recorded.manifest.tap_points}
    assert told["0:out"] == ("Conv2d", (8, 14, 14))
    assert told["0:out:mean"] == ("Conv2d, mean per channel", (8,))
    assert told["0:out:max"] == ("Conv2d, max per channel", (8,))


@pytest.mark.parametrize(
    ("make", "shape", "space"),
    [
        (lambda: nn.Conv1d(3, 8, 3), (1, 3, 9), (2,)),
        (lambda: nn.Conv3d(3, 8, 2), (1, 3, 4, 4, 4), (2, 3, 4)),
        (lambda: nn.ConvTranspose2d(3, 8, 2), (1, 3, 4, 4), (2, 3)),
        (lambda: nn.AdaptiveAvgPool1d(4), (1, 3, 9), (2,)),
        (lambda: nn.Linear(6, 8), (1, 9, 6), (1,)),  # a sequence: channels last
        (lambda: nn.LayerNorm(6), (1, 3, 9, 6), (1, 2)),
        (lambda: nn.Tanh(), (1, 9, 6), (1,)),
        (lambda: nn.Tanh(), (1, 3, 9, 6), (2, 3)),
    ],
)
def test_space_is_every_dimension_but_environments_and_channels(
    tmp_path: Path, make: Callable[[], nn.Module], shape: tuple[int, ...], space: tuple[int, ...]
) -> None:
    run_and_compare(nn.Sequential(make()), {"0:out:mean": ("0", lambda o: o.detach().mean(space))}, noise(*shape), tmp_path)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("batch_first", [True, False])
def test_recurrent_modules(tmp_path: Path, kind: Any, batch_first: bool) -> None:
    model = nn.ModuleDict({"core": kind(4, 8, num_layers=2, batch_first=batch_first)})
    turn: Take = (lambda o: o) if batch_first else (lambda o: o.movedim(1, 0))
    points: dict[str, tuple[str, Take]] = {
        "core:out": ("core", lambda o: turn(o[0])),
        "core:out:mean": ("core", lambda o: turn(o[0]).mean(1)),
    }
    if kind is nn.LSTM:
        points |= {
            "core:out[1][0]": ("core", lambda o: o[1][0].movedim(1, 0)),
            "core:out[1][1]": ("core", lambda o: o[1][1].movedim(1, 0)),
        }
    else:
        points["core:out[1]"] = ("core", lambda o: o[1].movedim(1, 0))
    inputs = noise(3, 5, 4) if batch_first else noise(5, 3, 4)
    with torch.no_grad():
        run_and_compare(model, points, inputs, tmp_path, call=model["core"], num_envs=3)


def test_recurrent_cells_and_unbatched_recurrence(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    cell = nn.ModuleDict({"cell": nn.LSTMCell(4, 8)})
    points: dict[str, tuple[str, Take]] = {"cell:out[0]": ("cell", lambda o: o[0]), "cell:out[1]": ("cell", lambda o: o[1])}
    run_and_compare(cell, points, noise(2, 4), tmp_path / "a", call=cell["cell"], num_envs=2)
    gru = nn.ModuleDict({"gru": nn.GRU(4, 8)})
    run_and_compare(gru, {"gru:out": ("gru", lambda o: o[0][None])}, noise(7, 4), tmp_path / "b", call=gru["gru"])


def test_attention_and_its_weights(tmp_path: Path) -> None:
    for batch_first in (True, False):
        folder = tmp_path / str(batch_first)
        folder.mkdir()
        model = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2, batch_first=batch_first)})
        turn: Take = (lambda o: o) if batch_first else (lambda o: o.movedim(1, 0))
        points: dict[str, tuple[str, Take]] = {
            "attention:out[0]": ("attention", lambda o, turn=turn: turn(o[0])),  # type: ignore[misc]
            "attention:out[1]": ("attention", lambda o: o[1]),
            "attention:out": ("attention", lambda o, turn=turn: turn(o[0])),  # type: ignore[misc]
        }
        inputs = [(x, x, x) for (x,) in (noise(3, 5, 8) if batch_first else noise(5, 3, 8))]
        run_and_compare(model, points, inputs, folder, call=model["attention"], num_envs=3)


def test_the_fast_path_of_transformer_layers_gives_way_to_hooks(tmp_path: Path) -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    model = nn.ModuleDict({"encoder": nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)}).eval()
    with torch.inference_mode():
        fast = model["encoder"](noise(1, 5, 8)[0][0])
        recorded = run_and_compare(
            model,
            {"encoder.layers.0.linear1:out": ("encoder.layers.0.linear1", whole), "encoder:out": ("encoder", whole)},
            noise(1, 5, 8),
            tmp_path,
            call=model["encoder"],
        )
    np.testing.assert_allclose(recorded.activations("encoder:out")[0], fast[0].numpy(), atol=1e-5)


def test_mappings_by_key_and_named_tuples_by_name(tmp_path: Path) -> None:
    class Policy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(4, 8)

        def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> dict[str, Any]:
            hidden = self.body(x)
            return {"logits": hidden[:, :2], "memory": {"hidden": hidden, "best": torch.max(hidden, dim=1)}}

    points: dict[str, tuple[str, Take]] = {
        ":out": ("", lambda o: o["logits"]),
        ":out[memory][hidden]": ("", lambda o: o["memory"]["hidden"]),
        ":out['memory'][best][values]": ("", lambda o: o["memory"]["best"].values[:, None]),
    }
    run_and_compare(Policy(), points, noise(1, 4), tmp_path)


def test_arguments_by_position_and_keyword(tmp_path: Path) -> None:
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    model = nn.ModuleDict({"attention": attention})
    ((q,), (k,)) = noise(1, 5, 8, n=2)
    with Tap(model, ["attention:in", "attention:in[1]", "attention:in[value]"], run="in", endpoint="", record=tmp_path / "run.mcap") as tap:
        attention(q, k, value=k * 2)
        tap.step()
    recorded = Recorded(tmp_path / "run.mcap")
    for name, expected in (("attention:in", q), ("attention:in[1]", k), ("attention:in[value]", k * 2)):
        assert np.array_equal(recorded.activations(name), expected.numpy()), name


def test_a_part_that_is_not_there_is_counted_and_the_message_lists_those_that_are(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lstm = nn.LSTM(4, 8, batch_first=True)
    model = nn.ModuleDict({"lstm": lstm, "fc": nn.Linear(4, 8)})
    points = ["lstm:out[2]", "lstm:out[1]", "fc:out:mean", "lstm:out"]
    with Tap(model, points, run="parts", endpoint="", record=tmp_path / "run.mcap") as tap:
        for (x,) in noise(1, 3, 4, n=3):
            lstm(x)
            model["fc"](x[:, 0])
            tap.step(reward=1.0)
    recorded = Recorded(tmp_path / "run.mcap")
    assert recorded.column("reward").tolist() == [1.0] * 3
    assert [p.name for p in recorded.manifest.tap_points] == ["lstm:out"]
    assert tap.status()["hook_failures"] == 9
    assert "no [2] in the tuple that passes; tensors are at [0], [1][0], [1][1]" in caplog.text
    assert "a tuple is at [1], no tensor; tensors are at [1][0], [1][1]" in caplog.text
    assert "has no space to take the mean of" in caplog.text
    assert "its first tensor, [0], is kept; lstm:out[1][0] would be another" in caplog.text


def test_names_of_parts() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.LSTM(4, 8))
    names = [p.name for p in resolve(model, ["0:mean", "0:out:mean", "0:in:max", "1:out[0]", "[01]:out[1]", ":out[0]:max"])]
    assert names == ["0:out:mean", "0:in:max", "1:out[0]", "0:out[1]", "1:out[1]", ":out[0]:max"]
    for wrong in ("0:out:median", "0:outmean", "0:", "0:out[", "0:out:", "0:mean:out"):
        with pytest.raises(UnknownTapPoint, match="':out:mean'"):
            resolve(model, [wrong])


def test_a_module_called_twice_keeps_its_last_call_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shared = nn.Linear(4, 4)
            self.again = self.shared

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.again(self.shared(x))
            return found

    model = Twice()
    with Tap(model, ["shared:out", "again:out", "again:in"], run="twice", endpoint="", record=tmp_path / "run.mcap") as tap:
        for (x,) in noise(1, 4):
            model(x)
            tap.step()
    recorded = Recorded(tmp_path / "run.mcap")
    with torch.no_grad():
        first = torch.cat([model.shared(x) for (x,) in noise(1, 4)])
        second = torch.cat([model(x) for (x,) in noise(1, 4)])
    assert np.array_equal(recorded.activations("shared:out"), second.numpy())
    assert np.array_equal(recorded.activations("again:out"), second.numpy())
    assert np.array_equal(recorded.activations("again:in"), first.numpy())  # so the first call can be read after all
    assert "several times within one step; the last run counts" in caplog.text


def test_operations_in_place_on_a_part_are_not_seen(tmp_path: Path) -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.core = nn.GRU(4, 8, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.core(x)[0]
            return found.mul_(0)

    with torch.inference_mode():
        points: dict[str, tuple[str, Take]] = {"core:out": ("core", lambda o: o[0]), "core:out[0]:max": ("core", lambda o: o[0].amax(1))}
        recorded = run_and_compare(InPlace(), points, noise(1, 3, 4), tmp_path)
    assert np.abs(recorded.activations("core:out")).min() > 0


def test_rows_of_a_batch_are_chosen_of_parts_too(tmp_path: Path) -> None:
    conv = nn.Sequential(nn.Conv2d(1, 4, 2))
    tap = Tap(conv, ["0:out:max"], run="some", endpoint="", record=tmp_path / "run.mcap", num_envs=2)
    tap.choose([0, 3], 5)
    ((x,),) = noise(5, 1, 4, 4, n=1)
    with tap:
        for _ in range(3):
            conv(x)
            tap.step()
    with torch.no_grad():
        expected = conv(x).amax((2, 3))[[0, 3]].repeat(3, 1)
    assert np.array_equal(Recorded(tmp_path / "run.mcap").activations("0:out:max"), expected.numpy())


@pytest.mark.parametrize("how", ["function", "method"])
@pytest.mark.parametrize("points", [["1:out", "3:out"], ["3:in"], [":out"]])
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_compiled_before_the_tap_but_not_yet_called(tmp_path: Path, how: str, points: list[str]) -> None:
    torch._dynamo.reset()
    model = mlp()
    expected = copy.deepcopy(model)
    act: Any = model
    if how == "function":
        act = torch.compile(model, backend="eager")
    else:
        model.compile(backend="eager")
    with torch.inference_mode(), Tap(act, points, run="compiled", endpoint="", record=tmp_path / "run.mcap") as tap:
        for i in range(40):  # long enough for steps that are timed and steps that are not
            act(torch.full((1, 4), float(i)))
            tap.step()
    recorded = Recorded(tmp_path / "run.mcap")
    assert tap.status()["hook_failures"] == 0
    with torch.inference_mode():
        for name in points:
            (point,) = resolve(expected, [name])
            seen: list[torch.Tensor] = []
            assert point.module is not None
            if point.side == "out":
                handle = point.module.register_forward_hook(lambda m, a, o, seen=seen: seen.append(o))
            else:
                handle = point.module.register_forward_pre_hook(lambda m, a, seen=seen: seen.append(a[0]))
            for i in range(40):
                expected(torch.full((1, 4), float(i)))
            handle.remove()
            assert recorded.activations(name).tobytes() == torch.cat(seen).numpy().tobytes()
    assert torch._dynamo.utils.counters["frames"]["total"] < 10  # hooks are not traced, and do not make it compile again


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_compiled_and_called_before_the_tap_is_said_and_its_remedy_works(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch._dynamo.reset()
    act: Any = torch.compile(mlp(), backend="eager")
    x = torch.ones(1, 4)
    with torch.inference_mode():
        act(x)
    tap = Tap(act, ["1:out"], run="late", endpoint="", record=tmp_path / "run.mcap")
    with caplog.at_level(logging.WARNING), torch.inference_mode(), tap:
        for i in range(120):
            if i == 105:
                time.sleep(0.1)  # the sender's thread tells what it sees
            if i == 110:
                torch.compiler.reset()
            act(x)
            tap.step()
    recorded = Recorded(tmp_path / "run.mcap")
    assert recorded.fired("1:out") in (list(range(110, 120)), list(range(120)))  # torch may come to see such hooks one day
    if len(recorded.fired("1:out")) == 10:
        assert "call torch.compiler.reset() once the tap is open" in caplog.text


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:Converting a tensor:torch.jit.TracerWarning")
def test_traced_programs_give_what_they_return_and_say_why_nothing_else(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trace: Any = torch.jit.trace
    traced = trace(mlp(), torch.ones(1, 4))
    with Tap(traced, [":out", "1:out"], run="traced", endpoint="", record=tmp_path / "run.mcap") as tap:
        for (x,) in noise(1, 4, n=120):
            traced(x)
            tap.step()
    recorded = Recorded(tmp_path / "run.mcap")
    with torch.no_grad():
        expected = torch.cat([traced(x) for (x,) in noise(1, 4, n=120)])
    assert recorded.activations(":out").tobytes() == expected.numpy().tobytes()
    assert "1:out: nothing was kept in 120 steps. a traced or scripted program calls no modules inside it" in caplog.text


def test_exported_programs_give_what_they_return_and_say_why_nothing_else(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    program = torch.export.export(mlp(), (torch.ones(1, 4),)).module()
    with Tap(program, [":out", "0:out"], run="exported", endpoint="", record=tmp_path / "run.mcap") as tap:
        for (x,) in noise(1, 4, n=120):
            program(x)
            tap.step()
    assert Recorded(tmp_path / "run.mcap").fired(":out") == list(range(120))
    assert "an exported program calls no modules inside it" in caplog.text


def test_modules_that_are_never_called_are_explained(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    model = nn.ModuleDict({"attention": attention, "others": nn.ModuleList([nn.Linear(1, 1)])})
    ((x,),) = noise(1, 5, 8, n=1)
    with Tap(model, ["attention.out_proj", "others"], run="never", endpoint="") as tap:
        for _ in range(120):
            attention(x, x, x)
            tap.step()
    assert "uses its out_proj's weights without calling it: tap the attention itself" in caplog.text
    assert "a ModuleList only holds modules and is never called" in caplog.text


def test_more_points_than_a_message_has_room_for_are_refused() -> None:
    with pytest.raises(TapError, match="120 tap points; at most 100 fit a message: choose fewer"):
        Tap(nn.Sequential(*[nn.Tanh() for _ in range(120)]), "*", run="many", endpoint="")
