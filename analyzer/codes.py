"""Codes: the active features of a batch of rows, as CSR.

In memory: `indptr` (rows + 1,) int32, `indices` (active,) uint16 or uint32 rising within a row, `values` (active,)
float32, never 0. As a blob: 10 bytes of header, one count a row (1, 2 or 4 bytes), the indices, the values, all
little-endian: 6 bytes an active feature and 1 byte a row for up to 65,536 features. Numpy only; scipy is imported by
`to_scipy` alone.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from interlatent_live.stream.errors import StoreError

__all__ = ["Codes"]

_HEADER = struct.Struct("<BBII")  # version, width of a count in bytes, rows, features
_VERSION = 1
_COUNTS: dict[int, np.dtype[Any]] = {1: np.dtype("<u1"), 2: np.dtype("<u2"), 4: np.dtype("<u4")}


def _index_dtype(features: int) -> np.dtype[Any]:
    return np.dtype("<u2") if features <= 1 << 16 else np.dtype("<u4")


def _damaged(what: str) -> StoreError:
    return StoreError(f"a codes blob has {what}: the row is damaged; analyse the recording into a new database")


@dataclass(frozen=True, slots=True, eq=False)
class Codes:
    """Sparse (rows, features) float32; what is not stored is inactive, that is 0."""

    indptr: npt.NDArray[np.int32]
    """(rows + 1,) where each row begins in `indices` and `values`."""
    indices: npt.NDArray[np.uint16] | npt.NDArray[np.uint32]
    """(active,) feature numbers, strictly rising within a row."""
    values: npt.NDArray[np.float32]
    """(active,) activations; positive for a dictionary, signed for neurons."""
    features: int
    """Number of features, active or not."""

    @property
    def rows(self) -> int:
        """Number of rows encoded."""
        return len(self.indptr) - 1

    @property
    def active(self) -> int:
        """Number of stored values."""
        return len(self.indices)

    @property
    def counts(self) -> npt.NDArray[np.int32]:
        """(rows,) active features of each row."""
        return np.diff(self.indptr)

    @property
    def row_index(self) -> npt.NDArray[np.int32]:
        """(active,) the row of each stored value."""
        return np.repeat(np.arange(self.rows, dtype=np.int32), self.counts)

    @classmethod
    def empty(cls, rows: int, features: int) -> Codes:
        """`rows` rows in which nothing is active."""
        return cls(np.zeros(rows + 1, np.int32), np.zeros(0, _index_dtype(features)), np.zeros(0, np.float32), features)

    @classmethod
    def from_dense(cls, dense: npt.NDArray[Any]) -> Codes:
        """Keep what is not 0 of a (rows, features) array."""
        return cls.where(dense, dense != 0)

    @classmethod
    def where(cls, dense: npt.NDArray[Any], mask: npt.NDArray[np.bool_]) -> Codes:
        """Keep `dense[mask]`; both (rows, features)."""
        rows, features = dense.shape
        flat = np.flatnonzero(mask)
        indptr = np.zeros(rows + 1, np.int32)
        np.cumsum(np.count_nonzero(mask, axis=1), out=indptr[1:])
        row = np.repeat(np.arange(rows, dtype=np.int64), np.diff(indptr))
        indices = (flat - row * features).astype(_index_dtype(features))
        return cls(indptr, indices, dense.reshape(-1)[flat].astype(np.float32, copy=False), features)

    @classmethod
    def from_padded(cls, indices: npt.NDArray[Any], values: npt.NDArray[Any], features: int) -> Codes:
        """From (rows, k) arrays as `topk` gives them: any order, a value of 0 meaning inactive."""
        rows, k = indices.shape
        # Index above value in one integer: one sort of whole numbers instead of an argsort and two gathers.
        packed = indices.astype(np.uint64) << np.uint64(32)
        packed |= np.ascontiguousarray(values, np.float32).view(np.uint32)
        packed.sort(axis=1)
        kept = packed.astype(np.uint32).view(np.float32)  # the lower half
        ordered = (packed >> np.uint64(32)).astype(_index_dtype(features))
        mask = kept != 0
        if mask.all():
            indptr = np.arange(0, rows * k + 1, k, dtype=np.int32) if k else np.zeros(rows + 1, np.int32)
            return cls(indptr, ordered.reshape(-1), kept.reshape(-1), features)
        indptr = np.zeros(rows + 1, np.int32)
        np.cumsum(np.count_nonzero(mask, axis=1), out=indptr[1:])
        return cls(indptr, ordered[mask], kept[mask], features)

    def dense(self) -> npt.NDArray[np.float32]:
        """(rows, features) float32."""
        out = np.zeros((self.rows, self.features), np.float32)
        out[self.row_index, self.indices] = self.values
        return out

    def to_scipy(self) -> Any:
        """The same as a scipy.sparse.csr_array, sharing `values`."""
        from scipy.sparse import csr_array

        shape = (self.rows, self.features)
        return csr_array((self.values, self.indices.astype(np.int32), self.indptr), shape=shape, copy=False)

    def to_blob(self) -> bytes:
        """Bytes for the store; `from_blob` is the inverse, bit for bit."""
        counts = self.counts
        largest = int(counts.max(initial=0))
        width = 1 if largest < 1 << 8 else 2 if largest < 1 << 16 else 4
        return b"".join((
            _HEADER.pack(_VERSION, width, self.rows, self.features),
            counts.astype(_COUNTS[width]).tobytes(),
            self.indices.astype(_index_dtype(self.features), copy=False).tobytes(),
            self.values.astype("<f4", copy=False).tobytes(),
        ))

    @classmethod
    def joined(cls, parts: Sequence[Codes]) -> Codes:
        """The rows of several, one behind the other; at least one, all of as many features."""
        offsets = np.cumsum([0, *(c.active for c in parts)])
        ends = [c.indptr[1:].astype(np.int64) + offset for c, offset in zip(parts, offsets, strict=False)]
        indptr = np.concatenate([[0], *ends]).astype(np.int32)
        return cls(indptr, np.concatenate([c.indices for c in parts]), np.concatenate([c.values for c in parts]), parts[0].features)

    @classmethod
    def from_blobs(cls, blobs: Sequence[bytes]) -> Codes:
        """Those of many blobs, their rows one behind the other; a blob that contradicts itself raises StoreError."""
        headers = {blob[: _HEADER.size] for blob in blobs}
        if len(headers) != 1:  # the batches differ in rows: one by one
            return cls.joined([cls.from_blob(blob) for blob in blobs])
        header = headers.pop()
        if len(header) < _HEADER.size:
            raise _damaged(f"{len(header)} bytes, fewer than its header of {_HEADER.size}")
        version, width, rows, features = _HEADER.unpack(header)
        if version != _VERSION or width not in _COUNTS:
            raise _damaged(f"version {version} and count width {width}; this build reads version {_VERSION}")
        begin, middle, item = _HEADER.size, _HEADER.size + width * rows, _index_dtype(features).itemsize
        counts = np.frombuffer(b"".join([blob[begin:middle] for blob in blobs]), _COUNTS[width])
        if len(counts) != rows * len(blobs):
            raise _damaged(f"too few bytes for the counts of {rows} rows")
        each = counts.reshape(len(blobs), rows).sum(axis=1, dtype=np.int64).tolist()
        if any(len(blob) != middle + n * (item + 4) for blob, n in zip(blobs, each, strict=True)):
            raise _damaged("other bytes than its counts ask for")
        indptr = np.zeros(len(counts) + 1, np.int32)
        np.cumsum(counts, out=indptr[1:])
        pairs = list(zip(blobs, each, strict=True))
        indices = np.frombuffer(b"".join([blob[middle : middle + n * item] for blob, n in pairs]), _index_dtype(features))
        if len(indices) and int(indices.max()) >= features:
            raise _damaged(f"feature {int(indices.max())}, beyond its {features} features")
        return cls(indptr, indices, np.frombuffer(b"".join([blob[middle + n * item :] for blob, n in pairs]), "<f4"), features)

    @classmethod
    def from_blob(cls, blob: bytes) -> Codes:
        """Inverse of `to_blob`; a blob that contradicts itself raises StoreError."""
        if len(blob) < _HEADER.size:
            raise _damaged(f"{len(blob)} bytes, fewer than its header of {_HEADER.size}")
        version, width, rows, features = _HEADER.unpack_from(blob)
        if version != _VERSION or width not in _COUNTS:
            raise _damaged(f"version {version} and count width {width}; this build reads version {_VERSION}")
        begin = _HEADER.size
        if len(blob) < begin + width * rows:
            raise _damaged(f"{len(blob)} bytes, too few for the counts of {rows} rows")
        counts = np.frombuffer(blob, _COUNTS[width], rows, begin)
        active, index_dtype = int(counts.sum(dtype=np.int64)), _index_dtype(features)
        expected = begin + width * rows + active * (index_dtype.itemsize + 4)
        if len(blob) != expected:
            raise _damaged(f"{len(blob)} bytes where its counts ask for {expected}")
        indptr = np.zeros(rows + 1, np.int32)
        np.cumsum(counts, out=indptr[1:])
        indices = np.frombuffer(blob, index_dtype, active, begin + width * rows)
        if active and int(indices.max()) >= features:
            raise _damaged(f"feature {int(indices.max())}, beyond its {features} features")
        return cls(indptr, indices, np.frombuffer(blob, "<f4", active, expected - 4 * active), features)
