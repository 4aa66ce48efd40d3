from __future__ import annotations

import hashlib
import json

import numpy as np
import numpy.typing as npt
import pytest
from scipy.sparse import csr_array

from interlatent_live.explainer.evidence import Correlate, Evidence, gather
from interlatent_live.explainer.scoring import split
from interlatent_live.explainer.table import Features, Table
from interlatent_live.stream.errors import PredicateError


def table(seed: int = 0, episodes: int = 6, length: int = 100, sparse: bool = True) -> Table:
    """Feature 0 is active where a slow wave is high; feature 1 never; episodes end, the last is still running."""
    rng = np.random.default_rng(seed)
    n = episodes * length
    step = np.tile(np.arange(length), episodes)
    wave = np.sin(step / 8 + np.repeat(rng.uniform(0, 6, episodes), length))
    values = np.where(wave > 0.6, wave + 0.1 * rng.random(n), 0)
    dense = np.stack([values, np.zeros(n)], axis=1).astype(np.float32)
    ends = (step == length - 1) & (np.arange(n) < n - 1)
    encoded = rng.random(n) > 0.02
    numbers = {"wave": wave, "noise": rng.normal(size=n), "same": np.ones(n), "never": np.full(n, np.nan),
               "action": (wave > 0).astype(float), "reward": np.ones(n), "terminated": ends}
    return Table(numbers, episode=np.repeat(np.arange(episodes), length), episode_step=step, units={"wave": "m"},
                 features=Features(csr_array(dense) if sparse else dense, encoded))


METRICS = ["wave", "noise", "same", "never"]


def evidence(data: Table, feature: int = 0, rows: npt.NDArray[np.bool_] | None = None) -> Evidence:
    return gather(feature, data, split(data)[0] if rows is None else rows, metrics=METRICS, action_names=("left", "right"))


def test_peaks_are_the_tops_of_ten_quantiles_of_training_spans() -> None:
    data = table()
    train = split(data)[0]
    got = evidence(data)
    assert data.features is not None
    values = data.features.values(0) * data.features.encoded
    peaks, span = [], []
    for row in range(data.rows):
        if train[row] and values[row] and (row % 100 == 0 or not values[row - 1]):
            span = [row]
            peaks.append(span)
        elif train[row] and values[row]:
            span.append(row)
    tops = sorted(max(float(values[r]) for r in s) for s in peaks)
    assert got.spans == len(peaks)
    shown = [max(v for v in w.feature if v is not None) for w in got.peaks]
    assert shown[0] == pytest.approx(tops[-1], rel=1e-3)
    assert [w.quantile for w in got.peaks] == list(range(9, 9 - len(got.peaks), -1))
    for window in got.peaks:
        expected = tops[int(np.ceil((window.quantile + 1) * len(tops) / 10)) - 1]  # type: ignore[operator]
        assert window.feature[window.offsets.index(0)] == pytest.approx(expected, rel=1e-3)


def test_windows_are_consecutive_frames_of_one_episode() -> None:
    data = table()
    got = evidence(data)
    for window in (*got.peaks, *got.contrasts):
        assert window.offsets == tuple(range(window.offsets[0], window.offsets[-1] + 1))
        assert -4 <= window.offsets[0] <= 0 <= window.offsets[-1] <= 2
        rows = [window.episode * 100 + window.step + o for o in window.offsets]
        np.testing.assert_allclose(
            np.array(window.values["wave"], float), data.numbers["wave"][rows], rtol=1e-3, err_msg=str(window))
        assert {"wave", "noise", "action", "reward", "terminated"} <= set(window.values)
        assert split(data)[0][rows[0]]


def test_contrasts_are_inactive_and_half_of_them_near() -> None:
    data = table()
    got = evidence(data)
    assert [w.kind for w in got.contrasts] == ["near"] * 5 + ["random"] * 5
    assert data.features is not None
    for window in got.contrasts:
        assert window.feature[window.offsets.index(0)] == 0
        if window.kind == "near":
            assert not any(window.feature), "a near miss is quiet throughout"
    near, random = ([abs(w.values["wave"][w.offsets.index(0)] - 1)  # type: ignore[operator]
                     for w in got.contrasts if w.kind == k] for k in ("near", "random"))
    assert np.mean(near) < np.mean(random)


def test_profile_equals_plain_counting() -> None:
    data = table()
    got = evidence(data)
    assert data.features is not None
    rows = split(data)[0] & data.features.encoded
    active = data.features.active(0)
    assert (got.frames, got.episodes) == (rows.sum(), 4)
    assert got.density == pytest.approx(active[rows].mean(), rel=1e-3)
    ended = rows & (data.episode < 5)
    tenth = data.episode_step // 10
    np.testing.assert_allclose(
        np.array(got.phase, float), [active[ended & (tenth == t)].mean() for t in range(10)], atol=1e-3)
    assert [a.action for a in got.actions] == ["left", "right"]
    assert got.actions[1].active == pytest.approx(1.0)
    assert got.actions[1].inactive == pytest.approx((data.numbers["action"][rows & ~active]).mean(), rel=1e-3)
    by_name = {d.metric: d for d in got.differences}
    wave = data.numbers["wave"]
    assert got.differences[0].metric == "wave"
    assert by_name["wave"].unit == "m"
    effect = (wave[rows & active].mean() - wave[rows & ~active].mean()) / wave[rows].std()
    assert by_name["wave"].effect == pytest.approx(effect, rel=1e-3)
    assert by_name["same"].effect is None
    assert by_name["never"].active_mean is None


def test_equal_data_gives_equal_bytes_dense_or_sparse() -> None:
    one = evidence(table())
    assert one.to_json() == evidence(table()).to_json() == evidence(table(sparse=False)).to_json()
    assert one.hash == hashlib.sha256(one.to_json().encode()).hexdigest()[:16]
    assert one.hash != evidence(table(seed=1)).hash
    assert one.hash != evidence(table(), feature=1).hash
    assert json.loads(one.to_json())["feature"] == 0
    assert len(one.to_json()) < 16_000


def test_a_silent_feature_has_evidence_too() -> None:
    got = evidence(table(), feature=1)
    assert (got.peaks, got.spans, got.span_steps, got.density) == ((), 0, None, 0.0)
    assert [w.kind for w in got.contrasts] == ["random"] * 10
    nothing = evidence(table(), rows=np.zeros(600, bool))
    assert (nothing.frames, nothing.density, nothing.contrasts) == (0, None, ())
    assert nothing.phase == (None,) * 10


def test_several_environments_do_not_mix() -> None:
    n = 40
    env = np.tile([0, 1], n)
    step = np.repeat(np.arange(n), 2)
    active = ((env == 0) & (step >= 10) & (step < 20)).astype(np.float32)[:, None]
    data = Table({"x": env * 100.0 + step}, env=env, episode=np.zeros(2 * n), episode_step=step, features=Features(active))
    got = gather(0, data, np.ones(2 * n, bool), metrics=["x"], contrasts=4)
    assert (got.spans, got.span_steps) == (1, 10)
    (peak,) = got.peaks
    assert (peak.env, peak.step, peak.values["x"]) == (0, 10, (6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0))
    for window in got.contrasts:
        assert len({v // 100 for v in window.values["x"] if v is not None}) == 1


def test_a_gap_ends_a_span_and_a_window() -> None:
    step = np.array([0, 1, 2, 3, 7, 8, 9])
    data = Table({"x": step.astype(float)}, episode=np.zeros(7), episode_step=step,
                 features=Features(np.array([[0], [0], [1], [1], [2], [0], [0]], np.float32)))
    got = gather(0, data, np.ones(7, bool), metrics=["x"], contrasts=0, before=2, after=3)
    assert got.spans == 2
    assert sorted(w.offsets for w in got.peaks) == [(-2, -1, 0, 1), (0, 1, 2)]


def test_continuous_actions_and_correlations_are_carried() -> None:
    numbers = {"x": np.arange(10.0), "action[0]": np.arange(10.0), "action[1]": -np.arange(10.0)}
    data = Table(numbers, features=Features(np.repeat([0, -1], 5)[:, None].astype(np.float32)))
    got = gather(0, data, np.ones(10, bool), metrics=["x"], actions=["action[0]", "action[1]"], action_names=["hip"],
                 always=["x"], correlations=[Correlate("x", 0.123456, float("nan"), None, lag=2)])
    assert [(a.action, a.active, a.inactive) for a in got.actions] == [("hip", 7, 2), ("action[1]", -7, -2)]
    assert got.correlations == (Correlate("x", 0.1235, None, None, 2),)
    with pytest.raises(PredicateError, match="no features"):
        gather(0, Table({"x": [1.0]}), np.ones(1, bool), metrics=["x"])
