from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from interlatent_live.analyzer.drift import Alarm, DriftMonitor
from interlatent_live.analyzer.quality import Quality

Values = Sequence[float | None]
CARD: dict[str, Any] = {"quantiles": {
    "fvu": {"q001": 0.01, "q01": 0.02, "q50": 0.05, "q99": 0.08, "q999": 0.1},
    "l0": {"q001": 6.0, "q01": 7.0, "q50": 8.0, "q99": 9.0, "q999": 10.0},
}}  # fmt: skip


def feed(monitor: DriftMonitor, fvu: Values, l0: Values | None = None) -> list[Alarm]:
    alarms = []
    for i, value in enumerate(fvu):
        alarms += monitor.update(Quality(50 * i, 50 * (i + 1), 50, value, 8.0 if l0 is None else l0[i]))
    return alarms


def test_three_seconds_beyond_the_card_are_one_alarm() -> None:
    monitor = DriftMonitor(64, CARD)
    assert feed(monitor, [0.05, 0.2, 0.2, 0.05, 0.2]) == []
    assert monitor.outside == ()
    monitor = DriftMonitor(64, CARD)
    (alarm,) = feed(monitor, [0.05, 0.2, 0.3, 0.4, 0.5, 0.6])
    assert (alarm.kind, alarm.measure, alarm.first_seq, alarm.last_seq) == ("gate", "fvu", 50, 199)
    assert alarm.value == pytest.approx(0.3)
    assert (alarm.low, alarm.high) == (None, 0.1)
    assert monitor.outside == ("fvu",)


def test_the_gate_shuts_after_three_seconds_inside_and_opens_again() -> None:
    monitor = DriftMonitor(64, CARD)
    feed(monitor, [0.2] * 3 + [0.05] * 2)
    assert monitor.outside == ("fvu",)
    feed(monitor, [0.05])
    assert not monitor.outside
    assert len([a for a in feed(monitor, [0.2] * 3) if a.kind == "gate"]) == 1


def test_less_error_is_no_alarm_but_both_sides_of_l0_are() -> None:
    assert feed(DriftMonitor(64, CARD), [0.001] * 5) == []
    for value in (5.0, 11.0):
        (alarm,) = feed(DriftMonitor(64, CARD), [None] * 4, [value] * 4)
        assert (alarm.measure, alarm.low, alarm.high) == ("l0", 6.0, 10.0)


def test_unknown_values_neither_open_nor_shut() -> None:
    assert len(feed(DriftMonitor(64, CARD), [0.2, None, 0.2, float("nan"), 0.2])) == 1


def test_constant_l0_at_the_cards_own_value_is_inside() -> None:
    card = {"quantiles": {"l0": dict.fromkeys(("q001", "q01", "q50", "q99", "q999"), 16.0)}}
    assert feed(DriftMonitor(512, card), [None] * 200, [16.0] * 200) == []


def test_adwin_sees_a_shift_inside_the_cards_range() -> None:
    rng = np.random.default_rng(0)
    calm, shifted = rng.normal(0.03, 0.003, 300), rng.normal(0.07, 0.003, 300)
    alarms = feed(DriftMonitor(64, CARD), [float(v) for v in np.concatenate([calm, shifted])])
    assert alarms
    assert {a.kind for a in alarms} == {"adwin"}
    first = alarms[0]
    assert 300 * 50 <= first.last_seq < 340 * 50
    assert first.low == pytest.approx(0.03, abs=0.01)


def test_adwin_is_quiet_on_autocorrelated_seconds_without_a_shift() -> None:
    rng = np.random.default_rng(1)
    noise, value = [], 0.0
    for _ in range(3600):
        value = 0.7 * value + rng.normal(0, 0.007)
        noise.append(float(np.clip(0.05 + value, 0.012, 0.098)))
    assert feed(DriftMonitor(64, CARD), noise, [8.0] * 3600) == []


def test_without_a_card_only_the_share_of_active_features_is_watched() -> None:
    alarms = feed(DriftMonitor(100), [0.9] * 400, [10.0] * 200 + [60.0] * 200)
    assert {(a.kind, a.measure) for a in alarms} == {("adwin", "l0")}
    assert DriftMonitor(100).outside == ()
    assert feed(DriftMonitor(100, {"quantiles": {"fvu": {"q001": None}}}), [9.0] * 10) == []
