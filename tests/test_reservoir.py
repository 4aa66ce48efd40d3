from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from interlatent_live.analyzer.reservoir import Reservoir


def fill(reservoir: Reservoir, frames: int, batch: int, begin: int = 0) -> None:
    """Frames whose input, output, episode, step and place all tell their number."""
    for first in range(begin, begin + frames, batch):
        n = np.arange(first, min(first + batch, begin + frames))
        x = np.repeat(n[:, None], 3, axis=1).astype(np.float32)
        reservoir.offer(x, -x[:, :2], n // 100, n % 100, n)


@pytest.mark.parametrize(("batch", "length"), [(1, 1), (7, 1), (500, 1), (1, 5), (7, 5), (400, 5)])
def test_what_is_held_belongs_together_and_is_bounded(batch: int, length: int) -> None:
    reservoir = Reservoir(20, 3, 2, length=length, seed=1)
    fill(reservoir, 1003, batch)
    x, y, episode, step, place = reservoir.columns()
    whole = 20 * length
    assert len(place) == whole + 1003 % length
    assert reservoir.frames == whole
    assert (np.diff(place) > 0).all()
    np.testing.assert_array_equal(x, np.repeat(place[:, None], 3, axis=1))
    np.testing.assert_array_equal(y, -x[:, :2])
    np.testing.assert_array_equal(episode, place // 100)
    np.testing.assert_array_equal(step, place % 100)
    pieces = place[:whole].reshape(-1, length)
    np.testing.assert_array_equal(pieces, pieces[:, :1] + np.arange(length))  # consecutive frames
    few = reservoir.columns(most=8 * length)[4]
    assert len(few) == 8 * length
    assert set(few) <= set(place)


def held_share(recent: bool, batch: int) -> Any:
    """(400,) how often each of 400 frames is held by 50 slots, over 2,000 seeds."""
    counts = np.zeros(400)
    for seed in range(2000):
        reservoir = Reservoir(50, 3, 2, recent=recent, seed=seed)
        fill(reservoir, 400, batch)
        counts[reservoir.columns()[4]] += 1
    return counts / 2000


@pytest.mark.parametrize("batch", [23, 400])
def test_even_holds_every_frame_with_the_same_probability(batch: int) -> None:
    share = held_share(False, batch)
    # 50/400, with 2,000 draws: standard deviation 0.0074; five of them for the worst of 400 frames
    assert share.sum() == pytest.approx(50)
    assert np.abs(share - 0.125).max() < 0.037
    assert abs(share[:200].mean() - share[200:].mean()) < 0.005


def test_recent_forgets_by_1_in_e_with_every_as_many_frames_as_it_holds() -> None:
    share = held_share(True, 23)
    age = np.arange(400)[::-1]
    expected = (1 - 1 / 50) ** age
    expected[:50] = (1 - 1 / 50) ** 350  # those that filled it
    assert np.abs(share - expected).max() < 5 * np.sqrt(0.25 / 2000)


def test_the_same_seed_holds_the_same() -> None:
    apart, together = Reservoir(50, 3, 2, seed=3), Reservoir(50, 3, 2, seed=3)
    fill(apart, 300, 300)
    fill(together, 300, 300)
    np.testing.assert_array_equal(apart.columns()[4], together.columns()[4])
    assert apart.offered == 300


def test_draws_come_from_what_is_held() -> None:
    reservoir = Reservoir(10, 3, 2, length=4, seed=0)
    fill(reservoir, 500, 9)
    x, y = reservoir.draw(1000)
    assert x.shape == (1000, 3)
    assert set(x[:, 0]) == set(reservoir.columns()[4][:40].astype(np.float32))
    np.testing.assert_array_equal(y, -x[:, :2])
    assert Reservoir.bytes_for(10, 3, 2, length=4) == 10 * 4 * (5 * 4 + 20)
