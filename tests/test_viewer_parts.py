"""The page's parts without a browser: raster, lines, choices, texts. Pure functions against plain oracles."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interlatent_live.analyzer.records import Boot, LedgerRow, Snapshot
from interlatent_live.viewer.assets import read
from interlatent_live.viewer.choice import Pair, choose_metrics, choose_pairs, choose_rows
from interlatent_live.viewer.heatmap import cells
from interlatent_live.viewer.raster import Raster, levels
from interlatent_live.viewer.series import Series, bins
from interlatent_live.viewer.summary import flow, freshness
from interlatent_live.viewer.text import duration, number, plain, quantity
from interlatent_live.viewer.theme import GLYPHS

COLUMNS, ROWS = 20, 3


def oracle(t: list[float], level: npt.NDArray[np.uint8], hold: int, column_s: float) -> dict[int, npt.NDArray[Any]]:
    """What every column up to the newest must show."""
    at: dict[int, npt.NDArray[Any]] = {}
    for time, row in zip(t, level, strict=True):
        column = int(np.floor(time / column_s + 1e-9))
        at[column] = np.maximum(at[column], row) if column in at else row
    shown, last = {}, None
    for column in range(min(at), max(at) + 1):
        last = column if column in at else last
        assert last is not None
        shown[column] = at[last] if column - last < hold else np.zeros_like(level[0])
    return shown


@settings(max_examples=60, deadline=None)
@given(
    gaps=st.lists(st.sampled_from([0.01, 0.04, 0.05, 0.3, 1.4]), min_size=1, max_size=120),
    cuts=st.lists(st.integers(0, 120), max_size=6),
    seed=st.integers(0, 99),
)
def test_raster_and_what_a_page_is_sent_equal_an_oracle(gaps: list[float], cuts: list[int], seed: int) -> None:
    raster = Raster(ROWS, span_s=1.0, column_s=0.05, hold_s=0.25)
    assert raster.columns == COLUMNS
    t = np.cumsum(gaps)
    level = np.random.default_rng(seed).integers(1, 256, (len(t), ROWS)).astype(np.uint8)
    page: dict[int, npt.NDArray[Any]] = {}
    head = raster.head
    edges = sorted({0, len(t), *(c for c in cuts if c < len(t))})
    for first, last in pairwise(edges):
        raster.push(t[first:last], level[first:last])
        begin, columns = raster.since(head)
        page.update((begin + i, column) for i, column in enumerate(columns.T))
        head = raster.head
    wanted = oracle(t.tolist(), level, raster.hold, 0.05)
    assert raster.head == max(wanted)
    for column in range(max(min(wanted), raster.head - COLUMNS + 1), raster.head + 1):
        tile = column // COLUMNS % 2
        assert raster.bases[tile] == column // COLUMNS * COLUMNS
        np.testing.assert_array_equal(raster.tiles[tile][::-1, column % COLUMNS], wanted[column])
        np.testing.assert_array_equal(page[column][::-1], wanted[column])


def test_levels_tell_missing_from_inactive() -> None:
    got = levels(np.array([[np.nan, 0.0, 2.0], [1.0, -4.0, 9.0]]), np.array([2.0, 4.0, 4.0]))
    assert got.tolist() == [[0, 1, 128], [128, 255, 255]]
    assert levels(np.zeros((1, 1)), np.zeros(1)).tolist() == [[1]]


def test_lines_break_at_gaps_and_episodes_and_nowhere_else() -> None:
    series = Series(1, span_s=30, bin_s=0.02, hold_s=0.1)
    t = np.array([0.00, 0.02, 0.04, 0.50, 0.52, 0.54])
    step, episode = np.array([0, 1, 2, 25, 26, 27]), np.array([0, 0, 0, 0, 0, 1])
    series.push(t[:4], step[:4], episode[:4], np.arange(4.0)[:, None])
    seen = series.count
    series.push(t[4:], step[4:], episode[4:], np.arange(4.0, 6.0)[:, None])
    series.flush()
    value = series.table[:, 1]
    assert [None if np.isnan(v) else v for v in value] == [0, 1, 2, None, 3, 4, None, 5]
    assert (np.diff(series.table[:, 0]) >= 0).all()
    np.testing.assert_array_equal(series.since(seen), series.table[3:])
    assert len(series.since(series.count)) == 0


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-5, 5) | st.just(float("nan")), min_size=1, max_size=400), st.integers(1, 60))
def test_lines_keep_mean_and_every_extreme(values: list[float], cut: int) -> None:
    series = Series(1, span_s=30, bin_s=0.05, hold_s=1.0)
    t = np.arange(len(values), dtype=np.float64) * 0.004
    steps, table = np.arange(len(values)), np.array(values, np.float64)
    for first in range(0, len(values), cut):
        part = slice(first, first + cut)
        series.push(t[part], steps[part], 0 * steps[part], table[part, None])
    series.flush()
    number = np.floor(t / 0.05 + 1e-9)
    assert len(series.table) == len(np.unique(number))
    for row, which in zip(series.table, np.unique(number), strict=True):
        mine = table[(number == which) & ~np.isnan(table)]
        wanted = [mine.mean(), mine.min(), mine.max()] if len(mine) else [np.nan] * 3
        np.testing.assert_allclose(row[1:], wanted, atol=1e-9)


def test_bins_ignore_nan() -> None:
    table = np.array([[0.0, np.nan], [0.01, 3.0], [0.02, 1.0], [0.06, np.nan]])
    np.testing.assert_array_equal(bins(table, np.array([0, 3]))[:, 1:], [[2, 1, 3], [np.nan] * 3])


def test_rows_do_not_jump() -> None:
    active = np.array([0, 50, 100, 30, 60, 1])
    first = choose_rows(active, 100, 3)
    assert first == (1, 3, 4)
    assert choose_rows(active[::-1].copy(), 100, 3, first) == first
    assert choose_rows(active, 100, 3, first, silent={3}) == (1, 5, 4)
    assert choose_rows(active, 100, 3, first, silent={3, 5, 2}) == first, "nothing better: the row stays"
    assert choose_rows(active, 100, 6, (4,))[0] == 4
    assert choose_rows(np.zeros(4), 0, 3) == ()
    assert choose_rows(active, 100, 3, first, silent={1, 3}, changes=1) == (5, 3, 4), "one row at a time"


def snapshot(r: list[list[float]], q: list[list[float]], metrics: tuple[str, ...] = ("a", "b")) -> Snapshot:
    shape = np.array(r, np.float32)
    return Snapshot(
        1, 1, "rolling", 100, 100, metrics, np.arange(len(r), dtype=np.uint32), shape, np.full_like(shape, 100),
        np.full_like(shape, np.nan), shape - 0.1, shape + 0.1, np.array(q, np.float32),
    )  # fmt: skip


def test_pairs_are_significant_distinct_and_stay() -> None:
    nan = float("nan")
    seen = snapshot([[0.9, 0.2], [0.8, -0.7], [nan, 0.95]], [[0.01, 0.01], [0.01, 0.01], [nan, 0.5]])
    chosen = choose_pairs(seen, (0, 1, 2), 3)
    assert chosen == (Pair(0, "a"), Pair(1, "b"), Pair(2, None))
    stronger = snapshot([[0.3, 0.2], [0.8, -0.9], [0.99, 0.1]], [[0.01] * 2] * 3)
    assert choose_pairs(stronger, (0, 1, 2), 3, chosen)[:2] == chosen[:2], "a pair stays while it means something"
    lost = snapshot([[0.05, 0.2], [0.8, -0.9], [0.99, 0.1]], [[0.01] * 2] * 3)
    assert choose_pairs(lost, (0, 1, 2), 2, chosen) == (Pair(2, "a"), Pair(1, "b"))
    assert choose_pairs(None, (5, 6), 3) == (Pair(5, None), Pair(6, None))


def test_of_too_many_metrics_the_strongest_are_kept_in_order() -> None:
    seen = snapshot([[0.1, 0.9, 0.5]], [[0.1] * 3], ("a", "b", "c"))
    assert choose_metrics(seen, 2) == ("b", "c")
    assert choose_metrics(seen, 2, ("a", "c")) == ("a", "c")
    assert choose_metrics(seen, 3, ("a",)) == ("a", "b", "c")


def test_heatmap_cells_say_what_they_know() -> None:
    nan = float("nan")
    made = cells(snapshot([[0.9, nan], [-0.2, 0.1]], [[0.01, nan], [0.4, nan]]), (1, 0, 7), ("a", "b"), 32, {1: "n1"})
    assert made["feature"] == ["n1", "n1", "f0"]
    assert made["verdict"] == ["not significant, q = 0.4", "not tested", "significant, q = 0.01"]
    assert made["size"][0] < made["size"][2]
    assert made["alpha"][0] < made["alpha"][2]
    assert made["value"][0] == "−0.20"
    assert made["y"] == [31.5, 31.5, 30.5]


def ledger(**changes: Any) -> LedgerRow:
    values: dict[str, Any] = {
        "run": "r", "boot": "b", "next_seq": 100, "queue_dropped_seen": 0, "produced": 100, "queue_dropped": 0,
        "recorded": 100, "record_failed": 0, "subscriber_queue_dropped": 0, "not_subscribed": 0, "wire_lost": 0,
        "received": 100, "analyzed": 100, "refused": {}, "status": {}, "latency_p50_ms": None, "latency_p99_ms": None,
        "updated_wall_ns": 0,
    }  # fmt: skip
    return LedgerRow(**(values | changes))


def test_the_flow_balances_and_names_each_loss() -> None:
    lost = ledger(subscriber_queue_dropped=7, not_subscribed=5, wire_lost=3, received=85, analyzed=83, refused={"oversized": 2})
    stages = flow(lost)
    counts = {s["name"]: int(re.sub(r"\D", "", s["count"])) for s in stages}
    named = ("queue dropped", "not subscribed", "lost on the wire", "not analysed")
    assert counts["sealed"] == counts["analysed"] + sum(counts[n] for n in named)
    assert {s["name"] for s in stages if s["kind"] == "loss"} == {*named, "messages refused"}
    assert next(s for s in stages if s["name"] == "messages refused")["about"] == "oversized 2"
    assert not [s for s in flow(ledger()) if s["kind"] == "loss"]
    assert flow(None) == []


@pytest.mark.parametrize(
    ("ended", "frames", "silence", "analyzer", "state", "says"),
    [
        (0, False, 0.0, None, "WAITING", "first frame"),
        (0, True, 0.3, 0.2, "LIVE", ""),
        (0, True, 2.5, 0.5, "STALE", "agent is silent"),
        (0, True, 9.0, 9.0, "STALE", "is the analyzer running"),
        (1, True, 9.0, 9.0, "ENDED", "goodbye"),
    ],
)
def test_state(ended: int, frames: bool, silence: float, analyzer: float | None, state: str, says: str) -> None:
    got = freshness(Boot("r", "b", "h", 0, ended), frames, silence, analyzer)
    assert got.state == state
    assert says in got.note


def test_numbers_read_well() -> None:
    assert number(None) == number(float("nan")) == "–"
    assert [number(v) for v in (0, 1, 12345, -3, 0.0412, 8.66, 123.4, -0.5)] == [
        "0", "1", "12\u2009345", "−3", "0.0412", "8.66", "123", "−0.500"
    ]  # fmt: skip
    assert quantity(8.66, "µs") == "8.66\u202fµs"
    assert quantity(None, "µs") == "–"
    assert duration(3.21) == "3.2\u202fs"
    assert duration(75) == "1\u202fmin 15\u202fs"
    assert plain("a\nb $$x$$ " + "y" * 99).startswith("a b $ $x$ $ y")
    assert len(plain("y" * 99)) == 60


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_reaches_wcag_aa_in_both_schemes(scheme: str) -> None:
    css = read("page.css")
    light, dark = (dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", part)) for part in css.split("@media")[:2])
    colours = light if scheme == "light" else dark
    for text in ("text", "muted", "feature", "metric"):
        for ground in ("panel", "bg"):
            assert contrast(colours[text], colours[ground]) >= 4.5, (scheme, text, ground)
    for text in ("good", "warn", "bad"):
        assert contrast(colours[text], colours[f"{text}-bg"]) >= 4.5, (scheme, text)
    assert contrast(colours["text"], colours["idle-bg"]) >= 4.5
    assert contrast(colours["muted"], colours["idle-bg"]) >= 4.5
    assert GLYPHS[scheme]["feature"] == colours["feature"]
    assert GLYPHS[scheme]["metric"] == colours["metric"]
    assert GLYPHS[scheme]["panel"] == colours["panel"]
