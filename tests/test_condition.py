"""Conditions on the agent's side mean what the explainer's predicates mean, clause by clause."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import interlatent_live as il
from interlatent_live.agent_side.intervention import History, is_feature
from interlatent_live.explainer.predicate import Clause, Predicate
from interlatent_live.explainer.table import Table
from interlatent_live.stream.condition import Condition
from interlatent_live.stream.errors import PredicateError

NUMBERS = st.sampled_from([-1.0, -0.5, 0.0, 0.5, 1.0, math.nan])


@st.composite
def clauses(draw: st.DrawFn) -> Clause:
    lag, change = draw(st.sampled_from([(0, 0), (0, 0), (1, 0), (3, 0), (0, 1), (0, 2)]))
    comparison: Any = draw(st.sampled_from([">", ">=", "<", "<=", "==", "!="]))
    return Clause(metric=draw(st.sampled_from(["a", "b"])), comparison=comparison, value=draw(st.sampled_from([-0.5, 0.0, 0.5])), lag=lag,
                  change=change)  # fmt: skip


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.lists(clauses(), min_size=1, max_size=2), min_size=1, max_size=2),
    st.sampled_from(["and", "or"]),
    st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=12),
    st.integers(1, 6),
)
def test_a_condition_holds_where_the_predicate_holds(
    groups: list[list[Clause]], join: Any, rows: list[tuple[float, float]], cut: int
) -> None:
    predicate = Predicate(join=join, groups=tuple(tuple(group) for group in groups))
    condition = Condition.from_data(predicate.model_dump())
    assert condition.text == str(predicate)
    episode = [int(i >= cut) for i in range(len(rows))]
    table = Table({"a": [a for a, _ in rows], "b": [b for _, b in rows]}, episode=episode)
    history = History(condition, 1)
    held = []
    for i, (a, b) in enumerate(rows):
        if i == cut:
            history.clear(0)
        held.append(history.add(0, {"a": a, "b": b}))
    assert held == predicate.holds(table).tolist()


def test_the_text_of_a_condition_is_that_of_the_one_grammar() -> None:
    assert il.Tap.parse_condition is not None
    condition = il.Tap.parse_condition("pole_angle>.1 and (f4 > 1)")
    assert condition.text == "pole_angle > 0.1 and f4 > 1"
    assert condition.names == ("pole_angle", "f4")
    assert condition.reach == 0
    assert il.Tap.parse_condition("change(x, 7) > 0").reach == 7
    for text in ("`and` > 1 or obs[3][-2] <= -0.5", "(a > 1 or b.c != 1e-09) and `two words` == 3", "x >= 1e+22"):
        assert il.Tap.parse_condition(text).text == text
    numbers = "compares numbers with finite numbers"
    for text, message in (("x >", "expected a number"), ("topic == physics", numbers), ("token in (heat, fuel)", numbers)):
        with pytest.raises(PredicateError, match=message):
            il.Tap.parse_condition(text)


@pytest.mark.parametrize(
    "data",
    [
        None, [], {}, {"groups": []}, {"groups": [[]]}, {"groups": [[1]]}, {"groups": "abc"}, {"join": "xor", "groups": [[{}]]},
        {"groups": [[{"metric": "a", "comparison": ">", "value": math.inf}]]},
        {"groups": [[{"metric": "a", "comparison": ">", "value": True}]]},
        {"groups": [[{"metric": "a", "comparison": ">", "value": 1, "lag": -1}]]},
        {"groups": [[{"metric": "a", "comparison": ">", "value": 1, "lag": 1, "change": 1}]]},
        {"groups": [[{"metric": "a", "comparison": ">", "value": 1, "lag": 1 << 40}]]},
        {"groups": [[{"metric": "a" * 200, "comparison": ">", "value": 1}]]},
        {"groups": [[{"metric": "a", "comparison": "~", "value": 1}]]},
        {"groups": [[{"metric": "a", "comparison": ">", "value": 1}]] * 5},
    ],
)  # fmt: skip
def test_what_is_no_condition_is_refused(data: Any) -> None:
    with pytest.raises(PredicateError):
        Condition.from_data(data)


def test_names_of_features() -> None:
    assert [name for name in ("f0", "f41", "f", "f01", "fx", "f-1", "foo", "F4", 4) if is_feature(name)] == ["f0", "f41"]
