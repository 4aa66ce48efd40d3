"""Arrays in the database: round trips, and damage that is named."""

from __future__ import annotations

from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlatent_live.analyzer.blobs import pack_columns, pack_matrix, unpack_columns, unpack_matrix
from interlatent_live.stream.errors import StoreError

ARRAYS = st.sampled_from(["<f4", "<f8", "<i8", "<i4", "|b1", "|u1", "<u2"]).flatmap(
    lambda dtype: hnp.arrays(np.dtype(dtype), hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=5))
)


@given(st.dictionaries(st.text(max_size=12), ARRAYS, max_size=6))
def test_columns_come_back_bit_for_bit_and_in_order(columns: dict[str, np.ndarray[Any, Any]]) -> None:
    back = unpack_columns(pack_columns(columns))
    assert list(back) == list(columns)
    for name, array in columns.items():
        assert back[name].dtype == array.dtype
        assert back[name].shape == array.shape
        assert back[name].tobytes() == array.tobytes()


def test_nan_and_big_endian_survive() -> None:
    back = unpack_columns(pack_columns({"m": np.array([1.0, np.nan], dtype=">f8")}))
    assert back["m"].dtype.str == "<f8"
    np.testing.assert_array_equal(back["m"], [1.0, np.nan])


@given(st.binary(max_size=60))
def test_garbage_is_a_store_error(blob: bytes) -> None:
    with pytest.raises(StoreError):
        unpack_columns(blob)


def test_every_truncation_and_a_lying_size_are_store_errors() -> None:
    blob = pack_columns({"step": np.arange(100, dtype=np.int64)})
    for cut in range(len(blob)):
        with pytest.raises(StoreError):
            unpack_columns(blob[:cut])


def test_matrices_round_trip_and_a_wrong_size_is_named() -> None:
    matrix = np.array([[1.5, np.nan, -2.0]], dtype=np.float32)
    np.testing.assert_array_equal(unpack_matrix(pack_matrix(matrix), 1, 3), matrix)
    np.testing.assert_array_equal(unpack_matrix(pack_matrix([7, 8], "<u4"), dtype="<u4"), [7, 8])
    assert unpack_matrix(b"", 0, 3).shape == (0, 3)
    with pytest.raises(StoreError, match=r"12 bytes, 2×3 of <f4 needs 24"):
        unpack_matrix(pack_matrix(matrix), 2, 3)
