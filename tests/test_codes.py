from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interlatent_live.analyzer.codes import Codes
from interlatent_live.stream.errors import StoreError


def random_codes(rows: int, features: int, share: float, seed: int = 0) -> tuple[npt.NDArray[np.float32], Codes]:
    rng = np.random.default_rng(seed)
    dense = rng.normal(size=(rows, features)).astype(np.float32) * (rng.random((rows, features)) < share)
    return dense, Codes.from_dense(dense)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 40), st.sampled_from([1, 7, 256, 300, 65_536, 65_537]), st.floats(0, 0.02), st.integers(0, 9))
def test_round_trips_through_dense_and_blob(rows: int, features: int, share: float, seed: int) -> None:
    dense, codes = random_codes(rows, features, share, seed)
    again = Codes.from_blob(codes.to_blob())
    assert (again.rows, again.features) == (rows, features)
    np.testing.assert_array_equal(again.dense(), dense)
    np.testing.assert_array_equal(again.indptr, codes.indptr)
    assert again.indices.dtype == codes.indices.dtype == (np.uint16 if features <= 65_536 else np.uint32)
    assert again.to_blob() == codes.to_blob()


@pytest.mark.parametrize("count", [255, 256, 70_000])
def test_counts_of_every_width(count: int) -> None:
    codes = Codes.from_dense(np.ones((1, count), np.float32))
    assert Codes.from_blob(codes.to_blob()).active == count


def test_scipy_agrees_with_dense() -> None:
    dense, codes = random_codes(33, 500, 0.05)
    np.testing.assert_array_equal(codes.to_scipy().toarray(), dense)
    np.testing.assert_array_equal(codes.to_scipy().T @ np.eye(33, dtype=np.float32), dense.T)


def test_padded_topk_is_sorted_and_zeros_are_inactive() -> None:
    codes = Codes.from_padded(np.array([[5, 2, 0], [1, 0, 2]]), np.array([[3.0, 1.0, 0.0], [0.0, 0.0, 0.0]]), 6)
    assert codes.indices.tolist() == [2, 5]
    assert codes.values.tolist() == [1.0, 3.0]
    assert codes.indptr.tolist() == [0, 2, 2]
    assert codes.counts.tolist() == [2, 0]
    assert codes.row_index.tolist() == [0, 0]


@pytest.mark.parametrize(("rows", "active_per_row"), [(16, 1), (16, 8), (32, 32), (128, 16)])
def test_at_most_8_bytes_an_active_feature(rows: int, active_per_row: int) -> None:
    dense = np.zeros((rows, 2048), np.float32)
    dense[:, :active_per_row] = 1
    codes = Codes.from_dense(dense)
    assert len(codes.to_blob()) <= 8 * codes.active


def test_empty_rows() -> None:
    codes = Codes.empty(3, 10)
    assert Codes.from_blob(codes.to_blob()).dense().tolist() == np.zeros((3, 10)).tolist()


def damaged() -> list[bytes]:
    blob = Codes.from_dense(np.eye(4, dtype=np.float32)).to_blob()
    beyond = bytearray(blob)
    beyond[10 + 4 : 10 + 6] = (9).to_bytes(2, "little")
    return [b"", blob[:5], blob[:12], blob[:-1], blob + b"\0", b"\x07" + blob[1:], bytes(beyond)]


@pytest.mark.parametrize("blob", damaged())
def test_a_damaged_blob_is_refused(blob: bytes) -> None:
    with pytest.raises(StoreError):
        Codes.from_blob(blob)
