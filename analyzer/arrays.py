"""A run's activations and features as arrays, read when they are asked for.

Row i belongs to frame i of the run, so that they go with `run.metrics` and with each other. Memory is what is asked
for, and one chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any, Final, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from interlatent_live.analyzer.codes import Codes
from interlatent_live.analyzer.records import DictionaryRow
from interlatent_live.analyzer.selection import Selection
from interlatent_live.analyzer.sources import Stored
from interlatent_live.stream.errors import RecordingError, UnknownName
from interlatent_live.stream.frames import FrameBatch
from interlatent_live.stream.manifest import TapPointSpec

__all__ = ["Activations", "Catalogue", "Features", "encoded_rows"]

Array = npt.NDArray[Any]
Rows = npt.NDArray[np.int64]
Content = TypeVar("Content")
_BITS: Final = 16
"""A bfloat16 is the upper bits of a float32."""
_ASKED: Final = 4096
"""Frames whose codes are asked of the database at once."""


class Catalogue(Mapping[str, Content], Generic[Content]):
    """Things by name, each made when it is asked for; an unknown name lists close ones."""

    def __init__(self, names: Iterable[str], make: Callable[[str], Content], kind: str, absent: str = "") -> None:
        self._names, self._make, self._kind, self._absent = tuple(names), make, kind, absent

    def __getitem__(self, name: str) -> Content:
        if name not in self._names:
            if not self._names and self._absent:
                raise RecordingError(self._absent)
            close = tuple(get_close_matches(name, self._names, cutoff=0.4)) or self._names[:8]
            raise UnknownName(f"no {self._kind} is named {name!r}; there is {', '.join(close) or 'none'}", close=close)
        return self._make(name)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __repr__(self) -> str:
        return f"{self._kind}s: {', '.join(self._names) or 'none'}"


class _Lazy:
    """What activations and features have in common: which frames."""

    def __init__(self, selection: Selection) -> None:
        self._selection = selection

    def __len__(self) -> int:
        return self._selection.frames

    def _range(self, key: slice) -> tuple[int, int, int]:
        start, stop, step = key.indices(len(self))
        if step < 1:
            raise IndexError(f"step {step} is below 1; read forward and turn the result")
        return start, max(start, stop), step

    def _position(self, key: int) -> int:
        position = key + len(self) if key < 0 else key
        if not 0 <= position < len(self):
            raise IndexError(f"frame {key} of {len(self)}")
        return position


class Activations(_Lazy):
    """(frames, *shape) activations of a tap point: `[:]`, `[100:200]`, `[7]`, `.episode(7)`, `.steps(100, 200)`,
    `numpy.asarray(…)` give arrays; `.blocks()` a chunk after the other.

    float32 or float16 as recorded; bfloat16 as float32, which holds it exactly. A row is NaN where no forward pass ran.
    """

    def __init__(self, selection: Selection, spec: TapPointSpec) -> None:
        super().__init__(selection)
        self.point = spec.name
        """Name of the tap point."""
        self._spec = spec
        self.dtype: np.dtype[Any] = np.dtype(np.float16 if spec.dtype == "float16" else np.float32)

    @property
    def shape(self) -> tuple[int, ...]:
        """(frames, *shape of one activation)."""
        return (len(self), *self._spec.shape)

    def __repr__(self) -> str:
        return f"<activations of {self.point}: {self.shape} {self.dtype}, {self._selection.where}>"

    def __getitem__(self, key: int | slice) -> Array:
        if isinstance(key, slice):
            start, stop, step = self._range(key)
            found = self._read(self._selection.between(start, stop), stop - start)
            return found[::step]
        start = self._position(key)
        one: Array = self._read(self._selection.between(start, start + 1), 1)[0]
        return one

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return self[:].astype(dtype or self.dtype, copy=False)

    def episode(self, episode: int, env: int | None = None) -> Array:
        """(steps, *shape) of one episode; of every environment that has one of that number, unless `env` is given."""
        return Activations(self._selection.narrowed(episode=episode, env=env), self._spec)._all()

    def steps(self, first: int, after: int) -> Array:
        """(frames, *shape) of the agent's steps [first, after)."""
        return Activations(self._selection.narrowed(steps=(first, after)), self._spec)._all()

    def blocks(self) -> Iterator[tuple[FrameBatch, Rows, Array]]:
        """A batch, the rows of it that are meant, and (rows, *shape) their activations, one after the other."""
        for batch, rows in self._selection:
            yield batch, rows, self.of(batch, rows)

    def _all(self) -> Array:
        pieces = [values for _, _, values in self.blocks()]
        return np.concatenate(pieces) if pieces else np.empty((0, *self._spec.shape), self.dtype)

    def _read(self, batches: Iterator[tuple[FrameBatch, Rows]], frames: int) -> Array:
        found = np.empty((frames, *self._spec.shape), self.dtype)
        filled = 0
        for batch, rows in batches:
            found[filled : filled + len(rows)] = self.of(batch, rows)
            filled += len(rows)
        return found[:filled]  # fewer where a chunk that the index knows cannot be read

    def of(self, batch: FrameBatch, rows: Rows) -> Array:
        """(rows, *shape) of some rows of a batch."""
        out = np.full((len(rows), *self._spec.shape), np.nan, self.dtype)
        values = batch.activations.get(self.point)
        if values is None or values.shape[1:] != self._spec.shape:
            return out
        values = _float(values)
        present = batch.present.get(self.point)
        if present is None:
            return values[rows].astype(self.dtype, copy=False)
        place = np.full(batch.rows, -1, np.int64)
        place[present] = np.arange(len(present))
        held = place[rows]
        out[held >= 0] = values[held[held >= 0]]
        return out


class Features(_Lazy):
    """(frames, features) what a dictionary makes of a run, as scipy.sparse.csr_array: `[:]`, `[100:200]`, `[7]`,
    `.episode(7)`, `.steps(100, 200)`.

    A row is empty where nothing was active, and also where a frame was not encoded (no forward pass, NaN among its
    activations, not analysed): `.encoded()` tells which are which.
    """

    def __init__(self, selection: Selection, stored: Stored, dictionary: DictionaryRow) -> None:
        super().__init__(selection)
        self._stored = stored
        self.dictionary = dictionary
        """Name, hash, kind, point, card."""

    @property
    def shape(self) -> tuple[int, int]:
        """(frames, features)."""
        return len(self), self.dictionary.features

    def __repr__(self) -> str:
        return f"<features of {self.dictionary.name}: {self.shape} sparse, {self._selection.where}>"

    def __getitem__(self, key: int | slice) -> Any:
        if isinstance(key, slice):
            start, stop, step = self._range(key)
            return _joined((c for _, _, c, _ in self._coded(self._selection.between(start, stop))), self.dictionary.features)[::step]
        start = self._position(key)
        return self[start : start + 1]

    def episode(self, episode: int, env: int | None = None) -> Any:
        """(steps, features) of one episode."""
        return Features(self._selection.narrowed(episode=episode, env=env), self._stored, self.dictionary)[:]

    def steps(self, first: int, after: int) -> Any:
        """(frames, features) of the agent's steps [first, after)."""
        return Features(self._selection.narrowed(steps=(first, after)), self._stored, self.dictionary)[:]

    def encoded(self) -> npt.NDArray[np.bool_]:
        """(frames,) whether a frame was encoded, so that what is not active in it is known to be inactive."""
        pieces = [mask for _, _, _, mask in self._coded(iter(self._selection))]
        return np.concatenate(pieces) if pieces else np.zeros(0, np.bool_)

    def row(self, batch: FrameBatch, row: int) -> Any:
        """(1, features) of one row of a batch."""
        codes = self._stored.reader.coded(self.dictionary.hash, batch.boot, batch.first_seq, batch.first_seq + 1)
        return self._of(batch, np.array([row]), codes.get(batch.first_seq))[2]

    def blocks(self) -> Iterator[tuple[FrameBatch, Rows, Any]]:
        """A batch, the rows of it that are meant, and (rows, features) their features, one after the other."""
        for batch, rows, codes, _ in self._coded(iter(self._selection)):
            yield batch, rows, codes

    def _coded(self, batches: Iterator[tuple[FrameBatch, Rows]]) -> Iterator[tuple[FrameBatch, Rows, Any, npt.NDArray[np.bool_]]]:
        codes: dict[int, Codes] = {}
        boot, begin, until = "", 0, 0
        for batch, rows in batches:
            if batch.boot != boot or not begin <= batch.first_seq < until:
                boot, begin, until = batch.boot, batch.first_seq, batch.first_seq + _ASKED
                codes = self._stored.reader.coded(self.dictionary.hash, boot, begin, until)
            yield self._of(batch, rows, codes.pop(batch.first_seq, None))

    def _of(self, batch: FrameBatch, rows: Rows, codes: Codes | None) -> tuple[FrameBatch, Rows, Any, npt.NDArray[np.bool_]]:
        from scipy.sparse import csr_array

        place = encoded_rows(batch, codes, self.dictionary.point)[rows]
        mask = place >= 0
        if codes is None or not mask.any():
            return batch, rows, csr_array((len(rows), self.dictionary.features), dtype=np.float32), np.zeros(len(rows), np.bool_)
        held = codes.to_scipy()[np.maximum(place, 0)]
        return batch, rows, held if mask.all() else _blank(held, mask), mask


def encoded_rows(batch: FrameBatch, codes: Codes | None, point: str = "") -> Rows:
    """(rows,) the row of `codes` that holds each frame of a batch; -1 where it was not encoded.

    What was encoded is what the tap point has finite activations for. Without activations (a database) it is taken from
    `forward_age`, and where that does not fit, it is not known.
    """
    rows = np.full(batch.rows, -1, np.int64)
    if codes is None:
        return rows
    encoded = np.arange(batch.rows)
    if codes.rows != batch.rows:
        encoded = np.flatnonzero(batch.columns["forward_age"] == 0)
        values = batch.activations.get(point)
        if values is not None:
            finite = np.isfinite(_float(values).reshape(len(values), -1)).all(axis=1)
            encoded = batch.rows_of(point)[finite].astype(np.int64)
    if len(encoded) == codes.rows:
        rows[encoded] = np.arange(codes.rows)
    return rows


def _float(values: Array) -> Array:
    """bfloat16 bits as float32; anything else as it is."""
    return (values.astype(np.uint32) << _BITS).view(np.float32) if values.dtype == np.uint16 else values


def _blank(rows: Any, mask: npt.NDArray[np.bool_]) -> Any:
    """Empty the rows that are not in `mask`."""
    from scipy.sparse import diags_array

    return (diags_array(mask.astype(np.float32)) @ rows).tocsr()


def _joined(pieces: Iterable[Any], features: int) -> Any:
    from scipy.sparse import csr_array, vstack

    found = list(pieces)
    return csr_array(vstack(found)) if found else csr_array((0, features), dtype=np.float32)
