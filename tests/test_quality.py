from __future__ import annotations

import numpy as np
import pytest

from interlatent_live.analyzer.codes import Codes
from interlatent_live.analyzer.features import Encoded
from interlatent_live.analyzer.quality import Quality, QualityWindow, fvu
from interlatent_live.stream.frames import BASE_COLUMNS, FrameBatch


def batch(first_seq: int, rows: int, at_s: float) -> FrameBatch:
    columns = {name: np.zeros(rows, dtype) for name, dtype in BASE_COLUMNS.items()}
    columns["monotonic_ns"] = (np.arange(rows) * 1000 + round(at_s * 1e9)).astype(np.int64)
    return FrameBatch("r", "b", "m", first_seq, 0, columns)


def encoded(rows: int, active: int, sse: float | None = 1.0, sst: float | None = 4.0) -> Encoded:
    dense = np.zeros((rows, 10), np.float32)
    dense[:, :active] = 1
    return Encoded(np.arange(rows, dtype=np.int32), Codes.from_dense(dense), 0, sse, sst)


def test_windows_are_whole_batches_and_pool_their_sums() -> None:
    window = QualityWindow()
    assert window.update(encoded(2, 3, 1, 10), batch(0, 2, 5.0)) is None
    assert window.update(encoded(6, 1, 5, 20), batch(2, 6, 5.9)) is None
    assert window.update(encoded(1, 2), batch(8, 1, 6.0)) == Quality(0, 8, 8, 6 / 30, 12 / 8)
    assert window.close() == Quality(8, 9, 1, 0.25, 2.0)
    assert window.close() is None


def test_one_batch_longer_than_a_second_is_one_window() -> None:
    window = QualityWindow()
    assert window.update(encoded(4, 1), batch(0, 4, 0.0)) is None
    assert window.update(encoded(4, 1), batch(4, 4, 10.0)) is not None


def test_a_clock_that_goes_back_closes_the_window() -> None:
    window = QualityWindow()
    window.update(encoded(1, 1), batch(0, 1, 100.0))
    assert window.update(encoded(1, 1), batch(0, 1, 1.0)) is not None


def test_what_cannot_be_computed_is_none() -> None:
    window = QualityWindow()
    window.update(None, batch(0, 3, 0.0))
    assert window.close() == Quality(0, 3, 0, None, None)
    window.update(encoded(2, 1, None, None), batch(3, 2, 0.0))
    window.update(encoded(2, 1), batch(5, 2, 0.1))
    assert window.close() == Quality(3, 7, 4, None, 1.0)
    window.update(encoded(2, 1, 0.0, 0.0), batch(7, 2, 0.0))
    assert window.close() == Quality(7, 9, 2, None, 1.0)
    assert fvu(1.0, None) is None
    assert fvu(1.0, 4.0) == pytest.approx(0.25)
