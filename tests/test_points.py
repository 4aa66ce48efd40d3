"""Tap points: which exist, which is taken, and what a wrong name says."""

from __future__ import annotations

import pytest
import torch
from tests.tap_samples import mlp
from torch import nn
from torch.nn import functional

from interlatent_live.agent_side.points import default_point, points, resolve
from interlatent_live.stream.errors import TapError, UnknownTapPoint


class Functional(nn.Module):
    """Activation functions without modules, a critic defined last."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 8)
        self.head = nn.Linear(8, 2)
        self.critic = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(functional.relu(self.body(x)))
        return out


def test_every_module_is_listed_with_the_default_marked() -> None:
    listed = points(mlp())
    assert [p.name for p in listed] == [":out", "0:out", "1:out", "2:out", "3:out", "4:out"]
    assert [p.name for p in listed if p.default] == ["3:out"]
    assert [p.leaf for p in listed] == [False, True, True, True, True, True]
    assert listed[1].parameters == 4 * 8 + 8


def test_the_input_of_the_output_layer_is_the_default_where_functions_stand_between() -> None:
    model = Functional()
    point = default_point(model)
    assert point is not None
    assert point.name == "head:in"
    assert [p.name for p in points(model) if p.default] == ["head:in"]


def test_a_single_layer_gives_what_it_returns() -> None:
    point = default_point(nn.Sequential(nn.Linear(4, 2)))
    assert point is not None
    assert point.name == "0:out"


def test_nothing_is_recognised_in_what_has_no_layers() -> None:
    assert default_point(nn.Sequential(nn.Tanh(), nn.Identity())) is None


def test_the_last_hidden_layer_of_stable_baselines_policies_is_the_actors() -> None:
    model = nn.Module()
    extractor = nn.Module()
    extractor.policy_net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh())
    extractor.value_net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh())
    model.mlp_extractor = extractor
    model.action_net = nn.Linear(8, 2)
    model.value_net = nn.Linear(8, 1)
    point = default_point(model)
    assert point is not None
    assert point.name == "mlp_extractor.policy_net.3:out"


def test_names_patterns_and_sides_are_resolved_in_order_and_once() -> None:
    names = [p.name for p in resolve(mlp(), ["3:in", "1", "[13]:out", ":out"])]
    assert names == ["3:in", "1:out", "3:out", ":out"]
    assert [p.name for p in resolve(mlp(), "1")] == ["1:out"]


def test_an_unknown_path_lists_close_names() -> None:
    model = Functional()
    with pytest.raises(UnknownTapPoint, match=r"no module 'hed'.*close: head:out.*lists all 7"):
        resolve(model, ["hed"])
    with pytest.raises(UnknownTapPoint, match=r"close: critic\.2:in"):  # the prefix is missing
        resolve(model, ["2:in"])
    with pytest.raises(UnknownTapPoint, match="ends in 'output'"):
        resolve(model, ["head:output"])
    with pytest.raises(UnknownTapPoint, match="the model has no named module"):
        resolve(nn.Tanh(), ["a"])


def test_an_empty_choice_is_refused() -> None:
    with pytest.raises(TapError, match="no tap point is named"):
        resolve(mlp(), [])


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
def test_compiled_models_keep_the_users_paths() -> None:
    compiled = torch.compile(mlp())
    assert isinstance(compiled, nn.Module)
    assert [p.name for p in points(compiled)] == [p.name for p in points(mlp())]
    (point,) = resolve(compiled, ["1:out"])
    assert isinstance(point.module, nn.Tanh)
