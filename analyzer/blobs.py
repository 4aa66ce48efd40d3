"""How arrays lie in the database.

Columns of a batch: zstd (level 1) of the msgpack list `[[name, dtype, shape, bytes], …]`, little-endian, in the batch's
order. Matrices of snapshots and activity: bare little-endian bytes; their shape follows from the row they stand in.
NaN stands for "unknown" in both, as in the stream. Codes have their own form (`codes.Codes.to_blob`).
"""

from __future__ import annotations

import math
import threading
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

import msgpack
import numpy as np
import numpy.typing as npt
import zstandard

from interlatent_live.stream.errors import StoreError

__all__ = ["pack_columns", "pack_matrix", "unpack_columns", "unpack_matrix", "unpack_together"]

Array = npt.NDArray[Any]

MAX_BYTES: Final = 64 << 20
"""Decompressed size beyond which a blob is refused: no batch that came over the wire is larger."""
_contexts = threading.local()  # a zstd context serves one thread at a time


def pack_columns(columns: Mapping[str, Array]) -> bytes:
    """Columns by name, each (rows, …), as one blob."""
    items: list[list[Any]] = []
    for name, array in columns.items():
        little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        items.append([name, little.dtype.str, list(little.shape), little.tobytes()])
    compressor: zstandard.ZstdCompressor | None = getattr(_contexts, "compressor", None)
    if compressor is None:
        compressor = _contexts.compressor = zstandard.ZstdCompressor(level=1)
    return compressor.compress(msgpack.packb(items))


def _items(blob: bytes) -> list[Any]:
    """`[[name, dtype, shape, bytes], …]` of a column blob."""
    decompressor: zstandard.ZstdDecompressor | None = getattr(_contexts, "decompressor", None)
    if decompressor is None:
        decompressor = _contexts.decompressor = zstandard.ZstdDecompressor()
    size = zstandard.frame_content_size(blob)
    if not 0 <= size <= MAX_BYTES:
        raise StoreError(f"column blob of {size} bytes; at most {MAX_BYTES} are read: the database is damaged")
    items: list[Any] = msgpack.unpackb(decompressor.decompress(blob), raw=False)
    return items


def unpack_columns(blob: bytes) -> dict[str, Array]:
    """Inverse of `pack_columns`; the arrays are read-only views. Raises StoreError for anything else."""
    try:
        return {str(name): np.frombuffer(data, dtype=dtype).reshape(shape) for name, dtype, shape, data in _items(blob)}
    except (zstandard.ZstdError, ValueError, TypeError, msgpack.UnpackException) as error:
        raise StoreError(f"column blob cannot be read ({error}): the database is damaged") from error


def unpack_together(blobs: Sequence[bytes], names: Collection[str]) -> dict[str, Array] | None:
    """Some columns of many blobs, their rows one behind the other; None where the blobs do not have the same columns.

    Of batches of one frame, array by array, numpy's overhead is nearly all that decoding costs: here it is paid once. Raises
    StoreError for what cannot be read.
    """
    parts: dict[str, list[bytes]] = {}
    kinds: dict[str, tuple[str, list[int]]] | None = None
    try:
        for blob in blobs:
            found = {}
            for name, dtype, shape, data in _items(blob):
                if name in names:
                    found[name] = dtype, shape[1:]
                    parts.setdefault(name, []).append(data)
            if kinds is not None and kinds != found:
                return None
            kinds = found
        return {name: np.frombuffer(b"".join(parts[name]), dtype).reshape(-1, *rest) for name, (dtype, rest) in (kinds or {}).items()}
    except (zstandard.ZstdError, ValueError, TypeError, msgpack.UnpackException) as error:
        raise StoreError(f"column blob cannot be read ({error}): the database is damaged") from error


def pack_matrix(values: npt.ArrayLike, dtype: str = "<f4") -> bytes:
    """A vector or matrix as bare bytes of `dtype`, row by row."""
    return np.ascontiguousarray(values, dtype=dtype).tobytes()


def unpack_matrix(blob: bytes, *shape: int, dtype: str = "<f4") -> Array:
    """Inverse of `pack_matrix`, read-only; one size of `shape` may be -1. Raises StoreError where the size differs."""
    try:
        return np.frombuffer(blob, dtype=dtype).reshape(shape or (-1,))
    except ValueError as error:
        wanted = "×".join(str(s) for s in shape)
        needed = math.prod(abs(s) for s in shape) * np.dtype(dtype).itemsize
        reason = f"matrix blob holds {len(blob)} bytes, {wanted} of {dtype} needs {needed}"
        raise StoreError(f"{reason}: the database is damaged") from error
