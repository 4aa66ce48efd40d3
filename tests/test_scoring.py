from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array
from sklearn.metrics import balanced_accuracy_score, f1_score

from interlatent_live.explainer.grammar import parse
from interlatent_live.explainer.scoring import Counts, difference, frequency_weighted_f1, live, score, split
from interlatent_live.explainer.table import Features, Table
from interlatent_live.stream.errors import PredicateError


def noisy(seed: int, episodes: int = 8, length: int = 40, features: int = 4, flip: float = 0.2) -> Table:
    """Feature j follows x_j > 0, wrong in a share `flip` of the frames; one row in twenty was not encoded."""
    rng = np.random.default_rng(seed)
    n = episodes * length
    x = rng.normal(size=(n, features))
    active = (x > 0) ^ (rng.random((n, features)) < flip)
    encoded = rng.random(n) > 0.05
    return Table({f"x{j}": x[:, j] for j in range(features)}, episode=np.repeat(np.arange(episodes), length),
                 features=Features(csr_array((active * 1.5).astype(np.float32)), encoded))


def everything(table: Table) -> npt.NDArray[np.bool_]:
    return np.ones(table.rows, np.bool_)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 100))
def test_scores_equal_scikit_learn(seed: int) -> None:
    table = noisy(seed)
    _, test = split(table)
    predicates = [parse(f"x{j} > 0.2") for j in range(4)]
    assert table.features is not None
    rows = test & table.features.encoded
    for j, got in enumerate(score(predicates, range(4), table, test, resamples=50)):
        truth, said = table.features.active(j)[rows], predicates[j].holds(table)[rows]
        assert got.balanced_accuracy.mean == pytest.approx(balanced_accuracy_score(truth, said))
        assert got.f1 == pytest.approx(f1_score(truth, said))
        assert got.base_f1 == pytest.approx(f1_score(truth, np.ones_like(truth)))
        assert (got.frames, got.positives, got.episodes) == (rows.sum(), truth.sum(), 3)
        assert got.base_rate == pytest.approx(truth.mean())
        each = [balanced_accuracy_score(truth, predicates[i].holds(table)[rows]) for i in range(4)]
        assert got.shuffled == pytest.approx(np.mean(each))
        assert got.undefined == 0


def test_the_bootstrap_equals_one_resample_at_a_time() -> None:
    table = noisy(1, episodes=5)
    assert table.features is not None
    said = np.stack([parse(f"x{j} > 0").holds(table) for j in range(2)], axis=1)
    active = np.stack([table.features.active(j) for j in range(2)], axis=1)
    draws = Counts.of(said, active, table.groups).resampled(30, seed=4)
    drawn = np.random.default_rng([4, 5]).integers(0, 5, (30, 5))
    for b in range(30):
        rows = np.concatenate([np.flatnonzero(table.groups == e) for e in drawn[b]])
        for j in range(2):
            assert draws[b, j] == pytest.approx(balanced_accuracy_score(active[rows, j], said[rows, j]))


@pytest.mark.parametrize("episodes", [2, 3, 6, 12])
def test_intervals_hold_the_truth_as_often_as_they_say(episodes: int) -> None:
    rng = np.random.default_rng(0)
    hits = []
    for trial in range(200):
        rates = np.clip(rng.normal(0.8, 0.08, episodes), 0.5, 0.99)  # each has its own accuracy, 0.8 in the mean
        active = np.tile([True, False], 60)
        said = np.concatenate([active ^ (rng.random(120) > r) for r in rates])
        truth = np.tile(active, episodes)
        counts = Counts.of(said[:, None], truth[:, None], np.repeat(np.arange(episodes), 120))
        (interval,) = counts.intervals(500, seed=trial)
        hits.append(interval.low <= 0.8 <= interval.high)
    assert 0.90 <= np.mean(hits) <= 0.99


def test_what_cannot_be_computed_is_nan() -> None:
    x = np.arange(12.0)
    active = np.stack([x > 100, x >= 0, x < 3, x % 2 == 0], axis=1)
    table = Table({"x": x}, episode=np.repeat([0, 1], 6), features=Features(active.astype(np.float32)))
    never, always, once, both = score([parse("x > 2")] * 4, range(4), table, everything(table), resamples=20)
    for result in (never, always):
        assert math.isnan(result.balanced_accuracy.mean)
        assert math.isnan(result.balanced_accuracy.low)
        assert math.isnan(result.shuffled)
    assert math.isnan(never.f1)
    assert math.isnan(never.sensitivity)
    assert never.specificity == 3 / 12
    assert always.f1 == pytest.approx(2 * 9 / (9 + 12))
    assert once.balanced_accuracy.mean == 0  # both classes, but active in one episode only: no interval
    assert math.isnan(once.balanced_accuracy.high)
    assert not math.isnan(both.balanced_accuracy.low)
    (alone,) = score([parse("x > 2")], [3], table, everything(table), resamples=20)
    assert math.isnan(alone.shuffled)
    assert score([], [], table, everything(table)) == []
    (empty,) = score([parse("x > 2")], [3], table, ~everything(table), resamples=20)
    assert (empty.frames, empty.positives, empty.episodes) == (0, 0, 0)
    assert math.isnan(empty.balanced_accuracy.mean)
    assert math.isnan(frequency_weighted_f1([never, empty]))
    assert frequency_weighted_f1([never, always]) == pytest.approx(always.f1)


def test_undefined_says_no_and_is_told() -> None:
    table = noisy(2)
    (got,) = score([parse("x0[-10] > -100")], [0], table, everything(table), resamples=20)
    assert got.undefined == pytest.approx(0.25, abs=0.03)
    assert got.sensitivity == pytest.approx(0.75, abs=0.06)


def test_equal_input_gives_equal_scores() -> None:
    one, two = (score([parse("x0 > 0")], [0], noisy(3), everything(noisy(3)))[0].balanced_accuracy for _ in range(2))
    assert one == two
    assert one.low < one.mean < one.high


def test_a_better_explanation_is_better_beyond_the_interval() -> None:
    table = noisy(5, episodes=12)
    rows = everything(table)
    better = difference(parse("x0 > 0"), parse("x0 > 1"), 0, table, rows)
    assert 0 < better.low < better.mean < better.high
    same = difference(parse("x0 > 0"), parse("x0 > 0"), 0, table, rows)
    assert (same.mean, same.low, same.high) == (0, 0, 0)
    close = difference(parse("x0 > 0"), parse("x0 > 0.001"), 0, table, rows)
    assert close.low <= 0 <= close.high
    one, other = (score([parse(t)], [0], table, rows)[0].balanced_accuracy.mean for t in ("x0 > 0", "x0 > 1"))
    assert better.mean == pytest.approx(one - other)


@pytest.mark.parametrize("share", [0.2, 0.4, 0.5])
def test_the_split_keeps_episodes_whole_and_does_not_change_as_more_arrive(share: float) -> None:
    table = noisy(0, episodes=100, length=5)
    train, test = split(table, share)
    assert (train ^ test).all()
    for episode in range(100):
        assert len(set(test[table.episode == episode].tolist())) == 1
    assert test.mean() == pytest.approx(share, abs=0.02)
    fewer = noisy(0, episodes=30, length=5)
    np.testing.assert_array_equal(split(fewer, share)[1], test[: fewer.rows])


def test_the_split_does_not_fall_in_step_with_environments() -> None:
    env, episode = np.tile(np.arange(5), 20), np.repeat(np.arange(20), 5)
    test = split(Table({"x": np.zeros(100)}, env=env, episode=episode))[1]
    shares = [test[env == e].mean() for e in range(5)]
    assert min(shares) >= 0.2
    assert max(shares) <= 0.6
    two = Table({"x": np.zeros(2)}, episode=[0, 1])
    assert split(two)[1].tolist() == [False, True]
    with pytest.raises(PredicateError, match="between 0 and 1"):
        split(two, 1.5)


def test_live_features_are_neither_rare_nor_constant() -> None:
    n = 4000
    index = np.arange(n)
    active = np.stack([index % 3 == 0, index >= 0, index % 200 == 0, index < 2000, index < 0], axis=1)
    table = Table({"x": np.zeros(n)}, episode=index // 1000, features=Features(csr_array(active.astype(np.float32))))
    assert live(table, index >= 2000).tolist() == [0]


def test_without_features_there_is_nothing_to_score() -> None:
    table = Table({"x": [1.0]})
    with pytest.raises(PredicateError, match="no features"):
        score([parse("x > 0")], [0], table, np.ones(1, bool))
