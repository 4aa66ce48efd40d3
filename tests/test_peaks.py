"""Each feature keeps its strongest peaks, however the events came in."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from interlatent_live.analyzer.events import Spans
from interlatent_live.analyzer.peaks import PeakKeeper


def spans(found: Sequence[tuple[int, float, int]]) -> Spans:
    """From (feature, peak, peak_seq)."""
    feature, peak_seq = (np.array([f[i] for f in found], np.int64) for i in (0, 2))
    peak = np.array([f[1] for f in found], np.float64)
    zero = np.zeros(len(found), np.int64)
    return Spans(
        feature, zero, zero, peak_seq, peak_seq, zero, zero, zero + 2, peak, peak_seq, peak_seq, peak, zero
    )  # fmt: skip


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(-9, 9).map(lambda v: v / 2 + 0.25)), max_size=120),
    st.sets(st.integers(0, 120)),
    st.integers(1, 5),
)
@settings(max_examples=150, deadline=None)
def test_the_rows_left_are_the_strongest(found: list[tuple[int, float]], cuts: set[int], most: int) -> None:
    numbered = [(feature, value, seq) for seq, (feature, value) in enumerate(found)]
    keeper, table = PeakKeeper(3, most=most), dict[tuple[int, int], float]()
    bounds = sorted({0, len(found), *(c for c in cuts if c < len(found))})
    for begin, end in itertools.pairwise(bounds):
        inserted, evicted = keeper.update(spans(numbered[begin:end]))
        for key in evicted:
            del table[key]
        for peak in inserted:
            assert (peak.feature, peak.seq) not in table
            table[peak.feature, peak.seq] = peak.value
    for feature in range(3):
        kept = sorted(abs(v) for (f, _), v in table.items() if f == feature)
        assert kept == sorted((abs(v) for f, v, _ in numbered if f == feature), reverse=True)[:most][::-1]
    assert all(found[seq] == (feature, value) for (feature, seq), value in table.items())


def test_an_equal_value_comes_too_late() -> None:
    keeper = PeakKeeper(1, most=1)
    assert [p.seq for p in keeper.update(spans([(0, -2.0, 10)]))[0]] == [10]
    assert keeper.update(spans([(0, 2.0, 20)])) == ([], [])
    inserted, evicted = keeper.update(spans([(0, 3.0, 30), (0, 4.0, 40)]))
    assert ([p.seq for p in inserted], evicted) == ([40], [(0, 10)])


def test_the_window_spans_frames_of_its_environment() -> None:
    keeper = PeakKeeper(2, num_envs=4, first_seq=1000)
    late, early = keeper.update(spans([(0, 1.0, 5000), (1, 1.0, 1010)]))[0]
    assert (late.window_first_seq, late.window_next_seq) == (5000 - 128, 5000 + 129)
    assert (early.window_first_seq, early.window_next_seq) == (1000, 1010 + 129)
    assert keeper.update(spans([])) == ([], [])
