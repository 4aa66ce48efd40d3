from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array

from interlatent_live.explainer.grammar import parse
from interlatent_live.explainer.predicate import Predicate
from interlatent_live.explainer.rules import fit
from interlatent_live.explainer.scoring import score, split
from interlatent_live.explainer.table import Features, Table
from interlatent_live.stream.errors import PredicateError

METRICS = [f"x{j}" for j in range(6)] + ["contact"]


def world(rules: list[str], *, seed: int = 0, noise: float = 0.0, episodes: int = 10, length: int = 200) -> Table:
    """Features that follow `rules`, but for a share `noise` of the frames; x5 is unknown one time in ten."""
    rng = np.random.default_rng(seed)
    n = episodes * length
    columns = {f"x{j}": rng.normal(size=n) for j in range(6)} | {"contact": (rng.random(n) < 0.5).astype(float)}
    columns["x5"][rng.random(n) < 0.1] = np.nan
    episode = np.repeat(np.arange(episodes), length)
    plain = Table(columns, episode=episode)
    active = np.stack([parse(r).holds(plain) ^ (rng.random(n) < noise) for r in rules], axis=1)
    return Table(columns, episode=episode, features=Features(csr_array(active.astype(np.float32))))


@pytest.mark.parametrize(
    ("rule", "clauses"),
    [
        ("x0 > 0.5", 1), ("x1 <= -0.3", 1), ("contact > 0.5", 1),
        ("x0 > 0.5 and x1 <= 0.7", 2), ("x0 > 1 or x1 <= -1", 2), ("x2 > 0 and contact > 0.5", 2),
        ("x0 > 0 and x0 <= 1", 2), ("x0 > 0 and x1 > 0 and x2 > 0", 3), ("x0 > 0 and (x1 > 0.5 or x2 > 0.5)", 3),
        ("x0 > 0 and x1 > 0 or x0 <= 0 and x2 > 0", 4), ("x5 > 0.5", 1),
    ],
)
def test_a_rule_that_made_the_data_is_found(rule: str, clauses: int) -> None:
    table = world([rule])
    train, test = split(table)
    (found,) = fit(table, [0], train, metrics=METRICS)
    (got,) = score([found.predicate], [0], table, test, resamples=100)
    assert got.balanced_accuracy.mean >= 0.97, str(found.predicate)
    assert len(found.predicate.clauses) <= clauses
    assert set(found.predicate.names) <= set(parse(rule).names)


@pytest.mark.parametrize("noise", [0.05, 0.2])
def test_noise_does_not_buy_clauses(noise: float) -> None:
    rules = ["x0 > 0.5", "x1 <= 0 and x2 > -0.5"]
    table = world(rules, noise=noise, seed=1)
    found = fit(table, [0, 1], split(table)[0], metrics=METRICS)
    assert [set(f.predicate.names) for f in found] == [{"x0"}, {"x1", "x2"}]


def test_no_rule_beats_chance_on_noise() -> None:
    table = world(["x0 > 0.5"], noise=0.5, seed=2)
    train, test = split(table)
    (found,) = fit(table, [0], train, metrics=METRICS)
    (got,) = score([found.predicate], [0], table, test)
    assert got.balanced_accuracy.low < 0.5 < got.balanced_accuracy.high


def test_thresholds_are_short() -> None:
    (found,) = fit(world(["x0 > 0.4837"]), [0], np.ones(2000, bool), metrics=METRICS)
    (clause,) = found.predicate.clauses
    assert abs(clause.number - 0.4837) < 0.04
    assert len(str(found.predicate)) <= len("x0 > 0.48")


def test_lags_and_changes_only_on_request() -> None:
    table = world(["x0[-3] > 0", "change(x1, 2) > 0.5"])
    train, test = split(table)
    with_time = fit(table, [0, 1], train, metrics=METRICS, lags=[3], changes=[2])
    assert [c.quantity for f in with_time for c in f.predicate.clauses] == [("x0", 3, 0), ("x1", 0, 2)]
    assert min(s.balanced_accuracy.mean for s in score([f.predicate for f in with_time], [0, 1], table, test)) > 0.97
    for plain in fit(table, [0, 1], train, metrics=METRICS):
        assert all(c.lag == c.change == 0 for c in plain.predicate.clauses)


def test_fewer_clauses_may_be_asked_for() -> None:
    table = world(["x0 > 0 and x1 > 0 and x2 > 0"])
    for most in (1, 2):
        (found,) = fit(table, [0], np.ones(2000, bool), metrics=METRICS, max_clauses=most)
        assert len(found.predicate.clauses) <= most


def test_equal_data_gives_equal_rules_whatever_else_is_fitted() -> None:
    table = world(["x0 > 0 and x1 > 0", "x2 > 1"], noise=0.1)
    rows = split(table)[0]
    both, alone = fit(table, [0, 1], rows, metrics=METRICS), fit(table, [1], rows, metrics=METRICS)
    assert both == fit(table, [0, 1], rows, metrics=METRICS)
    assert both[1] == alone[0]


def test_features_without_two_classes_get_no_rule() -> None:
    table = world(["x0 > 100", "x0 > -100", "x0 > 0"])
    assert [f.feature for f in fit(table, [0, 1, 2], np.ones(2000, bool), metrics=METRICS)] == [2]
    assert fit(table, [2], np.ones(2000, bool), metrics=[]) == []
    assert fit(table, [2], np.zeros(2000, bool), metrics=METRICS) == []
    with pytest.raises(PredicateError, match="no features"):
        fit(Table({"x": [1.0]}), [0], np.ones(1, bool), metrics=["x"])


def test_a_metric_that_is_constant_unknown_or_infinite_does_no_harm() -> None:
    table = world(["x0 > 0"])
    columns = dict(table.numbers) | {
        "same": np.ones(2000), "unknown": np.full(2000, np.nan), "wild": np.where(np.arange(2000) % 7, np.inf, -1.0)}
    more = Table(columns, episode=table.episode, features=table.features)
    (found,) = fit(more, [0], np.ones(2000, bool), metrics=[*METRICS, "same", "unknown", "wild"])
    assert found.predicate.names == ("x0",)


@settings(max_examples=15, deadline=None)
@example(860, 29, 18)
@example(468, 20, 1)
@given(st.integers(0, 1000), st.integers(20, 60), st.integers(1, 19))
def test_small_samples_always_give_a_valid_rule(seed: int, n: int, positives: int) -> None:
    rng = np.random.default_rng(seed)
    active = np.zeros((n, 1), np.float32)
    active[rng.choice(n, positives, replace=False)] = 1
    table = Table({"a": rng.integers(0, 3, n), "b": rng.normal(size=n)}, episode=np.arange(n) // 10,
                  features=Features(active))
    for found in fit(table, [0], np.ones(n, bool), metrics=["a", "b"]):
        assert parse(str(found.predicate)) == found.predicate
        assert isinstance(found.predicate, Predicate)
        assert 0.5 <= found.train_accuracy <= 1


def test_a_clause_that_never_decides_is_not_grown() -> None:
    rng = np.random.default_rng(3)
    x = np.concatenate([np.zeros(300), np.ones(300)])
    table = Table({"x": x, "y": rng.normal(size=600)}, features=Features((x > 0).astype(np.float32)[:, None]))
    rules = fit(table, [0], np.ones(600, bool), metrics=["x", "y"])
    assert [str(r.predicate) for r in rules] == ["x > 0.5"]
