from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from interlatent_live.explainer.grammar import parse, to_text
from interlatent_live.explainer.predicate import MAX_CLAUSES, Clause, Predicate
from interlatent_live.explainer.table import Features, Labels, Table, Vocabulary
from interlatent_live.stream.errors import PredicateError, UnknownName

finite = st.floats(allow_nan=False, allow_infinity=False)
plain = st.characters(exclude_categories=("Cc", "Cs"), exclude_characters="`")
names = st.sampled_from(["x", "pole_angle", "obs[3]", "f41", "and", "left foot force", "a.b", "été"]) | st.text(
    plain, min_size=1, max_size=8)
numbers = st.builds(
    lambda metric, comparison, value, lag, change, which: Clause(
        metric=metric, comparison=comparison, value=value, lag=lag * (which == 1), change=change * (which == 2)),
    names, st.sampled_from([">", ">=", "<", "<=", "==", "!="]), finite,
    st.integers(1, 10_000), st.integers(1, 10_000), st.integers(0, 2),
)
texts = st.builds(lambda m, c, v: Clause(metric=m, comparison=c, value=v), names, st.sampled_from(["==", "!="]),
                  st.text(plain, min_size=1, max_size=8).filter(lambda t: "\x7f" not in t))
sets = st.builds(
    lambda m, c, v, lag: Clause(metric=m, comparison=c, value=tuple(v), lag=lag), names, st.sampled_from(["in", "not in"]),
    st.lists(st.text(plain, min_size=1, max_size=8).filter(lambda t: "\x7f" not in t), min_size=1, max_size=32, unique=True),
    st.integers(0, 10_000),
)
clauses = numbers | texts | sets


@st.composite
def predicates(draw: st.DrawFn, clause: st.SearchStrategy[Clause] = clauses) -> Predicate:
    sizes = draw(st.sampled_from([(1,), (2,), (3,), (4,), (1, 1), (2, 1), (1, 3), (2, 2), (1, 1, 2), (1, 1, 1, 1)]))
    groups = tuple(tuple(draw(clause) for _ in range(n)) for n in sizes)
    return Predicate(join=draw(st.sampled_from(["and", "or"])), groups=groups)


@settings(max_examples=300, deadline=None)
@given(predicates())
def test_text_and_json_round_trip(predicate: Predicate) -> None:
    assert parse(to_text(predicate)) == predicate
    assert to_text(parse(to_text(predicate))) == str(predicate)
    assert Predicate.model_validate_json(predicate.model_dump_json()) == predicate


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("pole_angle > 0.1 and f41 > 0.8", None),
        ("pole_angle[-5] > 0", None),
        ("change(pole_angle, 10) > 0.1", None),
        ("obs[3] > 0 and obs[3][-1] <= 0", None),
        ("steps_to_end < 100 and episode_terminated > 0", None),
        ("topic == physics or topic != \"rocket science\"", None),
        ("topic == \"3\"", None),
        ("`left foot` >= 1e-07", None),
        ("(a > 0 or b > 0) and c > 0", None),
        ("a > 0 and b > 0 or c > 0 and d > 0", None),
        ("a>+.5 AND(b<=-3.00)", "a > 0.5 and b <= -3"),
        ("((a > 0) and (b > 0 and c > 0))", "a > 0 and b > 0 and c > 0"),
        ("(a > 0 or (b > 0 or c > 0))", "a > 0 or b > 0 or c > 0"),
        ("x == -0", "x == 0"),
        ("x > 12345678901234567890", "x > 1.2345678901234567e+19"),
        ("topic == \"physics\"", "topic == physics"),
        ("token in (heat, \",\", \"and\", in) and token[-1] not in (\"3\")", None),
        ("token IN (heat) or token NOT IN (a,b)", "token in (heat) or token not in (a, b)"),
        ("token[-1] == the and in > 3", None),
    ],
)
def test_canonical_text(text: str, canonical: str | None) -> None:
    assert str(parse(text)) == (canonical or text)


@pytest.mark.parametrize(
    ("text", "position", "message"),
    [
        ("", 0, "expected a name, not the end"),
        ("x", 1, "expected a comparison"),
        ("x >", 3, "expected a number or a label, not the end"),
        ("x > 1 y", 6, "expected and, or, or the end, not 'y'"),
        ("0 < x", 0, "begins with a name"),
        ("x > 0 < 1", 6, "one comparison a clause"),
        ("x = 1", 2, "write =="),
        ("x > 1 & y > 1", 6, "write and"),
        ("x ≥ 1", 2, "write >="),
        ("not x > 1", 0, "turn the comparison round"),
        ("(x > 1", 6, r"expected '\)', not the end"),
        ("x > 1)", 5, r"not '\)'"),
        ("x[5] > 1 and x[--5] > 1", 15, "unexpected '-'"),
        ("x[-0] > 1", 2, "steps go from 1 to 10000"),
        ("x[-1.5] > 1", 2, "expected a lag of steps"),
        ("x[+5] > 1", 2, "expected a lag of steps"),
        ("change(x) > 1", 8, "as in change"),
        ("change(x, -3) > 1", 10, "a number of steps"),
        ("change(x, 99999) > 1", 10, "steps go from 1"),
        ("change > 1", 7, r"expected '\(' after change"),
        ("x > y[-1]", 4, "compares with a constant"),
        ("x > y(1)", 4, "compares with a constant"),
        ("topic > physics", 8, "compared by == or !="),
        ("change(topic, 1) == physics", 20, "a label has no change"),
        ("topic in physics", 9, r"expected '\(' and texts"),
        ("topic in ()", 10, "expected a number or a label"),
        ("topic in (3)", 10, "put it in double quotes"),
        ("topic in (a, a)", 9, "each once"),
        ("topic in (a b)", 12, r"expected ',' or '\)'"),
        ("topic not (a)", 6, "expected a comparison"),
        ("topic in (" + ", ".join(f"w{i}" for i in range(33)) + ")", 9, "at most 32 values"),
        ("topic in (" + ", ".join("x" * 100 + str(i) for i in range(5)) + ")", 9, "of 400 characters"),
        ("x > 1e999", 4, "finite"),
        ("x == \"abc", 5, "not closed"),
        ("x == \"\\q\"", 5, "rules of JSON"),
        ("x == \"\"", 5, "a label has 1 to 128"),
        ("x > 0.1rad", 4, "numbers look like"),
        ("`` > 1", 0, "1 to 128 characters"),
        ("a>1 and b>1 and c>1 and d>1 and e>1", 32, "at most 4 clauses"),
        ("a > 0 and (b > 0 or c > 0 and d > 0)", 0, "nests too deeply"),
        ("(" * 9 + "a > 1" + ")" * 9, 8, "at most 8 deep"),
        ("x > 1" + " " * 5000, 5000, "at most 5000 characters"),
        ("<script>", 0, "expected a name"),
    ],
)
def test_errors_point_at_the_character(text: str, position: int, message: str) -> None:
    with pytest.raises(PredicateError, match=message) as caught:
        parse(text)
    assert caught.value.position == position
    assert caught.value.pointer == f"{text}\n{' ' * position}^"


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from(list("xyf0123.-+e[]()><=!\"`\\ andorchge,\n\x00é")), max_size=40) | st.text(max_size=40))
def test_garbage_only_raises_our_error(text: str) -> None:
    try:
        predicate = parse(text)
    except PredicateError:
        return
    assert parse(str(predicate)) == predicate


def test_unknown_names_list_close_ones_and_their_place() -> None:
    vocabulary = Vocabulary({"pole_angle": "rad", "cart_position": "m"}, {"topic": ("physics",)}, features=64)
    with pytest.raises(UnknownName, match=r"did you mean pole_angle\? \(character 9\)") as caught:
        parse("f3>0 or pole_angel > 0", vocabulary)
    assert (caught.value.position, caught.value.close) == (8, ("pole_angle",))
    with pytest.raises(UnknownName, match="f0 to f63"):
        parse("f64 > 0", vocabulary)
    with pytest.raises(PredicateError, match="is a number: 'physics' is text") as wrong:
        parse("pole_angle == physics", vocabulary)
    assert wrong.value.position == 14
    with pytest.raises(PredicateError, match='topic == "3"'):
        parse("topic == 3", vocabulary)
    assert parse("topic == art", vocabulary)


def test_data_is_checked_like_text() -> None:
    clause = {"metric": "x", "comparison": ">", "value": 1}
    bad = [
        {"groups": []}, {"groups": [[]]}, {"groups": [[clause] * 5]}, {"groups": [[clause] * 3, [clause] * 2]},
        {"groups": [[clause | {"value": math.nan}]]}, {"groups": [[clause | {"value": math.inf}]]},
        {"groups": [[clause | {"lag": 1, "change": 1}]]}, {"groups": [[clause | {"lag": -1}]]},
        {"groups": [[clause | {"metric": ""}]]}, {"groups": [[clause | {"metric": "a\nb"}]]},
        {"groups": [[clause | {"comparison": "~"}]]}, {"groups": [[clause]], "extra": 1},
        {"groups": [[clause | {"value": "text"}]]}, {"join": "xor", "groups": [[clause]]},
    ]
    for data in bad:
        with pytest.raises(ValidationError):
            Predicate.model_validate(data)
    good = Predicate.model_validate_json(json.dumps({"join": "and", "groups": [[clause], [clause]]}))
    assert (good.join, len(good.groups), len(good.clauses)) == ("or", 1, 2)


def test_the_schema_is_closed_and_does_not_refer_to_itself() -> None:
    schema = json.dumps(Predicate.model_json_schema())
    assert schema.count('"additionalProperties": false') == 2
    assert len(schema) < 3000
    assert '"$ref": "#/$defs/Predicate"' not in schema


def random_table(seed: int, rows: int = 60) -> Table:
    rng = np.random.default_rng(seed)
    columns = {n: np.where(rng.random(rows) < 0.2, np.nan, rng.integers(-2, 3, rows)) for n in ("a", "b")}
    topics = [None if u < 0.2 else "physics" if u < 0.6 else "art" for u in rng.random(rows)]
    order = rng.permutation(rows)
    features = Features(rng.integers(0, 3, (rows, 2)).astype(np.float32), rng.random(rows) > 0.2)
    return Table({n: v[order] for n, v in columns.items()}, episode=(np.arange(rows) // 17)[order],
                 episode_step=(np.arange(rows) % 17)[order], labels={"topic": Labels.of(topics)}, features=features)


def by_hand(predicate: Predicate, table: Table, row: int) -> bool | None:
    """Kleene's logic, one row at a time, looking earlier rows up by episode and step."""
    keys = {(int(e), int(s)): i for i, (e, s) in enumerate(zip(table.episode, table.episode_step, strict=True))}
    operators: dict[str, Callable[[Any, Any], bool]] = {
        "in": lambda x, y: x in y, "not in": lambda x, y: x not in y,
        ">": lambda x, y: x > y, ">=": lambda x, y: x >= y, "<": lambda x, y: x < y,
        "<=": lambda x, y: x <= y, "==": lambda x, y: x == y, "!=": lambda x, y: x != y,
    }

    def at(metric: str, i: int | None) -> float | str | None:
        if i is None:
            return None
        if metric == "topic":
            code = int(table.labels["topic"].codes[i])
            return None if code < 0 else table.labels["topic"].values[code]
        value = float(table.number(metric)[i])
        return None if math.isnan(value) else value

    def truth(clause: Clause) -> bool | None:
        now = at(clause.metric, row)
        if clause.lag or clause.change:
            key = (int(table.episode[row]), int(table.episode_step[row]) - (clause.lag or clause.change))
            then = at(clause.metric, keys.get(key))
            if clause.change:
                now = now - then if isinstance(now, float) and isinstance(then, float) else None
            else:
                now = then
        return None if now is None else operators[clause.comparison](now, clause.value)

    def combine(values: list[bool | None], word: str) -> bool | None:
        dominant = word == "or"
        if dominant in values:
            return dominant
        return None if None in values else not dominant

    inner = "and" if predicate.join == "or" else "or"
    return combine([combine([truth(c) for c in group], inner) for group in predicate.groups], predicate.join)


small = st.builds(
    lambda m, c, v, n, which: Clause(metric=m, comparison=c, value=v, lag=n * (which == 1), change=n * (which == 2)),
    st.sampled_from(["a", "b", "f1"]), st.sampled_from([">", ">=", "<", "<=", "==", "!="]), st.integers(-2, 2),
    st.integers(1, 6), st.integers(0, 2),
) | st.builds(lambda c, v, n: Clause(metric="topic", comparison=c, value=v, lag=n), st.sampled_from(["==", "!="]),
              st.sampled_from(["physics", "art", "music"]), st.integers(0, 3)
) | st.builds(lambda c, v, n: Clause(metric="topic", comparison=c, value=tuple(v), lag=n), st.sampled_from(["in", "not in"]),
              st.lists(st.sampled_from(["physics", "art", "music"]), min_size=1, unique=True), st.integers(0, 3))


@settings(max_examples=80, deadline=None)
@given(predicates(small), st.integers(0, 5))
def test_evaluation_equals_kleene_logic_row_by_row(predicate: Predicate, seed: int) -> None:
    table = random_table(seed)
    holds, defined = predicate.evaluate(table)
    expected = [by_hand(predicate, table, i) for i in range(table.rows)]
    assert holds.tolist() == [e is True for e in expected]
    assert defined.tolist() == [e is not None for e in expected]
    np.testing.assert_array_equal(predicate.holds(table), holds)


@settings(max_examples=80, deadline=None)
@given(predicates(small), st.integers(0, 5))
def test_alternatives_and_impossibility_agree_with_evaluation(predicate: Predicate, seed: int) -> None:
    table = random_table(seed)
    any_of = [Predicate(groups=(tuple(clauses),)).holds(table) for clauses in predicate.alternatives()
              if len(clauses) <= MAX_CLAUSES]
    np.testing.assert_array_equal(np.any(any_of, axis=0), predicate.holds(table))
    if predicate.impossible:
        assert not predicate.holds(table).any()


@pytest.mark.parametrize(
    ("text", "impossible"),
    [
        ("x > 5 and x < 3", True), ("x > 3 and x < 5", False), ("x >= 3 and x <= 3", False), ("x > 3 and x <= 3", True),
        ("x == 3 and x != 3", True), ("x == 3 and x == 4", True), ("x > 5 and x[-1] < 3", False),
        ("x > 5 and x < 3 or y > 0", False), ("(x > 5 or x > 6) and x < 3", True), ("t == a and t == b", True),
        ("t == a and t != a", True), ("t == a and t != b", False), ("x >= 3 and x > 3 and x < 4", False),
        ("x == 3 and x > 3", True), ("x == 3 and x >= 3", False), ("t in (a, b) and t in (c, d)", True),
        ("t in (a, b) and t != a and t != b", True), ("t in (a, b) and t not in (a, c)", False), ("t[-1] == a and t == b", False),
    ],
)
def test_contradictions_are_seen(text: str, impossible: bool) -> None:
    assert parse(text).impossible is impossible


def test_unknown_is_not_false() -> None:
    table = Table({"x": [np.nan, 1.0, -1.0]})
    for text, holds, defined in [
        ("x > 0", [0, 1, 0], [0, 1, 1]), ("x <= 0", [0, 0, 1], [0, 1, 1]), ("x != 1", [0, 0, 1], [0, 1, 1]),
        ("x[-1] > 0", [0, 0, 1], [0, 0, 1]), ("change(x, 1) < 0", [0, 0, 1], [0, 0, 1]),
        ("x > 0 or episode_step == 0", [1, 1, 0], [1, 1, 1]), ("x > 0 and episode_step > 0", [0, 1, 0], [1, 1, 1]),
        ("steps_to_end < 5", [0, 0, 0], [0, 0, 0]),
    ]:
        truth = parse(text).evaluate(table)
        assert truth.holds.astype(int).tolist() == holds, text
        assert truth.defined.astype(int).tolist() == defined, text


def test_a_label_of_a_whole_text_has_no_lag() -> None:
    topic, token = Labels.of(["art", "art", "art"]), Labels.of(["a", "b", "a"])
    table = Table({"x": [1.0, 2.0, 3.0]}, labels={"topic": Labels(topic.codes, topic.values, steady=True), "token": token})
    assert parse("token[-1] == a", table.vocabulary).holds(table).tolist() == [False, True, False]
    assert parse("token[-1] not in (a)", table.vocabulary).evaluate(table).defined.tolist() == [False, True, True]
    with pytest.raises(PredicateError, match=r"topic is said of a whole text, so it has no lag: leave \[-1\] out"):
        parse("topic[-1] == art", table.vocabulary)
    with pytest.raises(PredicateError, match="x is a number: 'a' is text"):
        parse("x in (a, b)", table.vocabulary)
