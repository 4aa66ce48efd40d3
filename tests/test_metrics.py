"""Metrics: what may be declared, and what a wrong declaration says."""

from __future__ import annotations

import pytest

from interlatent_live.agent_side import metrics
from interlatent_live.agent_side.metrics import MAX_ELEMENTS, Metric, Transition, as_metrics, elements, terms
from interlatent_live.stream.errors import TapError
from interlatent_live.stream.manifest import MetricSpec


def test_mapping_of_functions_is_of_scope_transition() -> None:
    (metric,) = as_metrics({"gain": lambda t: t.reward})
    assert metric.spec == MetricSpec("gain", "", "transition", "")


def test_repeated_names_are_named() -> None:
    with pytest.raises(TapError, match=r"repeat: a\b"):
        as_metrics((Metric("a", 0), Metric("a", 1), Metric("b", 2)))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"name": ""}, "not empty"),
        ({"name": "a", "source": -1}, "must be 0 or more"),
        ({"name": "a", "source": "x"}, "type str"),
        ({"name": "a", "source": 0, "scope": "transition"}, "element of the observation"),
        ({"name": "a", "scope": "later"}, "'observation' and 'transition' exist"),
    ],
)
def test_wrong_declarations_are_refused(fields: dict[str, object], says: str) -> None:
    with pytest.raises(TapError, match=says):
        Metric(**fields)  # type: ignore[arg-type]


def test_elements_are_bounded_and_named_where_names_fit() -> None:
    assert [m.name for m in elements(2, ("x", "y"))] == ["x", "y"]
    assert [m.name for m in elements(2, ("x",))] == ["obs[0]", "obs[1]"]
    assert len(elements(1000)) == MAX_ELEMENTS


def test_cartpole_terms_have_units() -> None:
    found = terms("CartPole-v1")
    assert found is not None
    assert [(m.name, m.unit, m.source) for m in found] == [
        ("cart_position", "m", 0),
        ("cart_velocity", "m/s", 1),
        ("pole_angle", "rad", 2),
        ("pole_angular_velocity", "rad/s", 3),
    ]
    assert terms("Nobody-v0") is None


def test_registered_terms_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_TERMS", {})
    metrics.register_terms("Mine-v0", [Metric("x", 0, unit="m")])
    assert terms("Mine-v0") == (Metric("x", 0, unit="m"),)


def test_transition_defaults_say_nothing() -> None:
    transition = Transition([1.0])
    assert transition.reward != transition.reward
    assert transition.next_observation is None
