from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from scipy.sparse import csr_array

from interlatent_live.explainer.table import Features, Labels, Table, Vocabulary, feature_number
from interlatent_live.stream.errors import PredicateError, UnknownName
from interlatent_live.stream.manifest import ActionSpec, Manifest, MetricSpec


def two_envs() -> dict[str, npt.NDArray[np.generic]]:
    """Two environments interleaved; env 0 has episodes of 3 and 2 (running) frames, env 1 one of 5, cut off."""
    return {
        "env": np.array([0, 1, 0, 1, 0, 1, 0, 1, 0, 1]),
        "episode": np.array([0, 0, 0, 0, 0, 0, 1, 0, 1, 0]),
        "episode_step": np.array([0, 0, 1, 1, 2, 2, 0, 3, 1, 4]),
        "reward": np.array([1.0, 5, 1, 5, 1, 5, 1, 5, 1, 5]),
        "terminated": np.array([0, 0, 0, 0, 1, 0, 0, 0, 0, 0], bool),
        "truncated": np.array([0, 0, 0, 0, 0, 0, 0, 0, 0, 1], bool),
        "metrics": np.arange(10.0)[:, None],
        "action": np.array([0, 1] * 5),
    }


def manifest() -> Manifest:
    return Manifest(
        run="r", boot="b", started_wall_ns=0, started_monotonic_ns=0,
        metrics=(MetricSpec("x", "m"),), action=ActionSpec("discrete"),
    )


def test_episode_attributes_are_unknown_until_the_end() -> None:
    table = Table.of(two_envs(), manifest())
    nan = np.nan
    expected = {
        "steps_to_end": [2, 4, 1, 3, 0, 2, nan, 1, nan, 0],
        "episode_length": [3, 5, 3, 5, 3, 5, nan, 5, nan, 5],
        "episode_return": [3, 25, 3, 25, 3, 25, nan, 25, nan, 25],
        "episode_terminated": [1, 0, 1, 0, 1, 0, nan, 0, nan, 0],
        "episode": [0, 0, 0, 0, 0, 0, 1, 0, 1, 0],
        "episode_step": [0, 0, 1, 1, 2, 2, 0, 3, 1, 4],
    }
    for name, values in expected.items():
        np.testing.assert_array_equal(table.number(name), values, err_msg=name)
    assert table.episodes == 3
    assert table.groups.tolist() == [0, 1, 0, 1, 0, 1, 2, 1, 2, 1]


def test_what_is_missing_makes_the_return_unknown() -> None:
    lost = {k: v[1:] for k, v in two_envs().items()}
    np.testing.assert_array_equal(Table.of(lost, manifest()).number("episode_return")[1], np.nan)
    assert Table.of(lost, manifest()).number("steps_to_end")[1] == 1
    no_reward = two_envs() | {"reward": np.array([np.nan, 5, 1, 5, 1, 5, 1, 5, 1, 5])}
    assert np.isnan(Table.of(no_reward, manifest()).number("episode_return")[0])


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("steps", [1, 2, 7, 40])
def test_a_lag_equals_a_lookup_by_key(shuffle: bool, steps: int) -> None:
    rng = np.random.default_rng(3)
    env, episode, step = (a.reshape(-1) for a in np.meshgrid([0, 1], [0, 1, 2], range(12), indexing="ij"))
    keep = np.flatnonzero(rng.random(72) > 0.05)
    if shuffle:
        rng.shuffle(keep)
    x = rng.normal(size=72)
    table = Table({"x": x[keep]}, env=env[keep], episode=episode[keep], episode_step=step[keep])
    known = {(int(env[i]), int(episode[i]), int(step[i])): float(x[i]) for i in keep}
    for row, i in enumerate(keep):
        path = [(int(env[i]), int(episode[i]), int(step[i]) - d) for d in range(steps + 1)]
        expected = known[path[-1]] if all(k in known for k in path) else np.nan
        np.testing.assert_equal(table.lagged("x", steps)[row], expected)


def test_without_steps_rows_of_an_episode_are_consecutive() -> None:
    table = Table({"x": [1.0, 2, 3, 4]}, episode=[0, 1, 0, 1])
    assert table.episode_step.tolist() == [0, 0, 1, 1]
    np.testing.assert_array_equal(table.lagged("x", 1), [np.nan, np.nan, 1, 2])


@pytest.mark.parametrize("sparse", [False, True])
def test_features_are_numbers_and_rows_not_encoded_are_missing(sparse: bool) -> None:
    dense = np.array([[0, 2.5], [1, 0], [0, 0]], np.float32)
    encoded = np.array([True, True, False])
    features = Features(csr_array(dense) if sparse else dense, encoded)
    table = Table({"x": np.zeros(3)}, features=features)
    np.testing.assert_array_equal(table.number("f1"), [2.5, 0, np.nan])
    assert features.counts().tolist() == [1, 1]
    assert features.counts(np.array([True, False, True])).tolist() == [0, 1]
    assert features.active(0).tolist() == [False, True, False]
    with pytest.raises(UnknownName, match="f0 to f1"):
        table.number("f2")


def test_names_are_looked_up_in_a_fixed_order() -> None:
    vocabulary = Vocabulary({"f1": "m", "pole_angle": "rad"}, {"topic": ("a",)}, features=3)
    kinds = [vocabulary.kind(n) for n in ("f1", "f2", "topic", "steps_to_end")]
    assert kinds == ["number", "feature", "label", "attribute"]
    with pytest.raises(UnknownName, match="did you mean pole_angle") as caught:
        vocabulary.kind("Pole_Angel")
    assert caught.value.close == ("pole_angle",)
    with pytest.raises(UnknownName, match="known: f1, pole_angle, topic, episode"):
        vocabulary.kind("zzzzzz")
    assert vocabulary.unit("steps_to_end") == "steps"
    assert [feature_number(n) for n in ("f0", "f41", "f01", "fx", "F1")] == [0, 41, None, None, None]


def test_actions_are_named_as_the_manifest_says() -> None:
    assert "action" in Table.of(two_envs(), manifest()).numbers
    columns = two_envs() | {"action": np.zeros((10, 2), np.float32)}
    spec = Manifest(run="r", boot="b", started_wall_ns=0, started_monotonic_ns=0, action=ActionSpec("continuous", (2,)))
    assert {"action[0]", "action[1]"} <= set(Table.of(columns, spec).numbers)
    assert Vocabulary.of(spec).kind("action[1]") == "number"


def test_labels_keep_their_texts() -> None:
    labels = Labels.of(["physics", None, "art", "physics"])
    assert labels.values == ("art", "physics")
    assert labels.codes.tolist() == [1, -1, 0, 1]


def test_a_table_of_unequal_columns_is_refused() -> None:
    with pytest.raises(PredicateError, match=r"lengths \[2, 3\]"):
        Table({"x": [1.0, 2], "y": [1.0, 2, 3]})
    with pytest.raises(PredicateError, match="2 rows"):
        Table({"x": [1.0, 2]}, env=[0])
    with pytest.raises(PredicateError, match="one dimension"):
        Table({"x": np.zeros((2, 2))})
    with pytest.raises(PredicateError, match="2 rows"):
        Features(np.zeros((2, 1)), np.ones(3, bool))


def test_no_rows() -> None:
    table = Table({"x": []}, env=[], episode=[], episode_step=[])
    assert (table.rows, table.episodes) == (0, 0)
    assert table.lagged("x", 2).tolist() == table.number("steps_to_end").tolist() == []
