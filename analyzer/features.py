"""Where features come from: a dictionary's latents, or the neurons of a tap point where there is none.

Both turn a FrameBatch into `Codes` and carry what the store keeps of them. Deterministic for the same batches, provided
that torch runs on one thread (`use_one_thread`; one against two threads changes bits). Costs: bench/encode.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from interlatent_live.analyzer.codes import Codes
from interlatent_live.stream.errors import DictionaryError
from interlatent_live.stream.frames import FrameBatch
from interlatent_live.stream.manifest import Manifest

if TYPE_CHECKING:  # torch comes with it
    from interlatent_live.analyzer.dictionary import Dictionary

__all__ = [
    "DictionaryFeatures",
    "Encoded",
    "FeatureSource",
    "NeuronFeatures",
    "activations_of",
    "use_one_thread",
]

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """The features of one batch. Rows that are not listed are missing, not inactive."""

    rows: npt.NDArray[np.int32]
    """(m,) rising row indices of the batch: those that ran a forward and were finite."""
    codes: Codes
    """m rows."""
    non_finite: int
    """Rows refused because an activation was NaN or infinite."""
    sse: float | None
    """Sum over the m rows of |y - y^|^2; None for neurons, or where the output was not tapped."""
    sst: float | None
    """Sum over the m rows of |y - mean of the training frames|^2; None where that is unknown."""


class FeatureSource(Protocol):
    """What the analyzer needs of a dictionary or of a layer's neurons."""

    @property
    def point(self) -> str:
        """Tap point under which the features are shown."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """Tap points that are read; the first one is indispensable."""

    @property
    def hash(self) -> str:
        """SHA-256 (hex) of everything that determines the features."""

    @property
    def name(self) -> str:
        """For people."""

    @property
    def kind(self) -> str:
        """'neurons', or the dictionary's activation: 'topk', 'batchtopk', 'relu', 'jumprelu'."""

    @property
    def features(self) -> int:
        """Number of features."""

    @property
    def cfg(self) -> Mapping[str, Any]:
        """Plain data for the store."""

    @property
    def card(self) -> Mapping[str, Any] | None:
        """The quality report, where there is one."""

    @property
    def path(self) -> str | None:
        """Where the artifact lies, if it is one."""

    def encode(self, batch: FrameBatch, manifest: Manifest) -> Encoded | None:
        """Features of a batch; None where the batch carries nothing of this tap point. Call once a batch, in order."""


def use_one_thread() -> None:
    """Make torch deterministic in this process. The analyzer calls it when it starts; importing never does."""
    import torch

    torch.set_num_threads(1)


class DictionaryFeatures:
    """The latents of a frozen dictionary."""

    def __init__(self, dictionary: Dictionary, at: tuple[str, str] | None = None) -> None:
        """`at`: input and output tap points, where the stream has other names for them."""
        self.dictionary = dictionary
        self._input, self._output = at or (dictionary.cfg.input, dictionary.cfg.output)

    @property
    def point(self) -> str:
        """The tap point that is explained: the dictionary's output."""
        return self._output

    @property
    def inputs(self) -> tuple[str, ...]:
        """Input, and output where it is another."""
        return (self._input,) if self._input == self._output else (self._input, self._output)

    @property
    def hash(self) -> str:
        """The dictionary's content hash."""
        return self.dictionary.hash

    @property
    def name(self) -> str:
        """The dictionary's name."""
        return self.dictionary.name

    @property
    def kind(self) -> str:
        """The dictionary's activation function."""
        return self.dictionary.cfg.activation

    @property
    def features(self) -> int:
        """Number of latents."""
        return self.dictionary.features

    @property
    def cfg(self) -> Mapping[str, Any]:
        """What cfg.json says."""
        return self.dictionary.cfg.to_dict()

    @property
    def card(self) -> Mapping[str, Any] | None:
        """What card.json says."""
        return self.dictionary.card

    @property
    def path(self) -> str | None:
        """Directory of the artifact."""
        return None if self.dictionary.path is None else str(self.dictionary.path)

    def encode(self, batch: FrameBatch, manifest: Manifest) -> Encoded | None:
        """Latents of the rows in which the input was captured; errors where the output was as well."""
        source, target = self._input, self._output
        x = activations_of(batch, manifest, source)
        if x is None:
            return None
        rows = batch.rows_of(source)
        y = x if source == target else activations_of(batch, manifest, target)
        if y is not None and source != target:
            # One forward fires both; where a module was skipped, only rows with both can be judged and shown together.
            at_target = batch.rows_of(target)
            if len(at_target) != len(rows) or not np.array_equal(at_target, rows):
                rows, in_x, in_y = np.intersect1d(rows, at_target, assume_unique=True, return_indices=True)
                x, y = x[in_x], y[in_y]
        finite = _finite_rows(x) if y is None or y is x else _finite_rows(x) & _finite_rows(y)
        bad = len(finite) - int(np.count_nonzero(finite))
        if bad:
            x, rows, y = x[finite], rows[finite], None if y is None else y[finite]
        if y is None:
            return Encoded(rows, self.dictionary.codes(x), bad, None, None)
        codes, sse, sst = self.dictionary.measure(x, y)
        return Encoded(rows, codes, bad, sse, sst)


class NeuronFeatures:
    """The neurons of a tap point: z = (x - running median) / sigma, active where |z| > 1.5.

    Median and standard deviation come from a sample of at most 512 finite rows: every `stride`-th one. When it is full,
    every second row is dropped and the stride doubles, so that it spans the past evenly; from stride 32 on (16,384
    rows) the oldest are replaced instead. Both are computed again, between batches, once the sample gained a quarter.
    Before row 64 there are no features (missing, not inactive). A neuron that did not change, to 1e-6 of its size, is
    never active; z is cut at 1e6. Everything counts rows, never time: the same batches give the same codes.
    """

    SIGMAS: Final = 1.5
    WARM_UP: Final = 64
    SAMPLE: Final = 512
    MAX_STRIDE: Final = 32
    MAX_SIZE: Final = 1 << 16
    """Neurons; their sample takes 2 KiB each."""

    def __init__(self, point: str, size: int) -> None:
        if not 1 <= size <= self.MAX_SIZE:
            raise DictionaryError(
                f"{point!r} has {size} values a frame; from 1 to {self.MAX_SIZE} can be watched as neurons: "
                "tap a narrower layer, or train a dictionary"
            )
        self._point, self._size = point, size
        self._sample = np.empty((size, self.SAMPLE), np.float32)  # a neuron's values lie together: medians run along
        self._held = 0
        self._next = 0  # where the ring goes on, once the stride has its limit
        self._stride = 1
        self._seen = 0  # finite rows so far
        self._gained = 0  # sampled rows since the last refresh
        self._median: Floats | None = None
        self._scale = np.zeros(size, np.float32)  # 1 / sigma; 0 for a constant neuron

    @property
    def point(self) -> str:
        """The tap point."""
        return self._point

    @property
    def inputs(self) -> tuple[str, ...]:
        """The tap point."""
        return (self._point,)

    @property
    def hash(self) -> str:
        """Of the definition; the median is no part of it, because it follows from the batches."""
        rule = f"neurons/1 {self._point} {self._size} {self.SIGMAS} {self.WARM_UP} {self.SAMPLE} {self.MAX_STRIDE}"
        return hashlib.sha256(rule.encode()).hexdigest()

    @property
    def name(self) -> str:
        """'neurons of POINT'."""
        return f"neurons of {self._point}"

    @property
    def kind(self) -> str:
        """'neurons'."""
        return "neurons"

    @property
    def features(self) -> int:
        """Number of neurons."""
        return self._size

    @property
    def cfg(self) -> Mapping[str, Any]:
        """The definition's numbers."""
        return {
            "input": self._point, "output": self._point, "features": self._size, "sigmas": self.SIGMAS,
            "warm_up": self.WARM_UP, "sample": self.SAMPLE, "max_stride": self.MAX_STRIDE,
        }  # fmt: skip

    @property
    def card(self) -> None:
        """Neurons have none."""
        return None

    @property
    def path(self) -> None:
        """Neurons have none."""
        return None

    def encode(self, batch: FrameBatch, manifest: Manifest) -> Encoded | None:
        """Signed z of the active neurons, by the median of the batches before; then take the batch into the sample."""
        x = activations_of(batch, manifest, self._point)
        if x is None:
            return None
        if x.shape[1] != self._size:
            raise DictionaryError(f"{self._point!r} has {x.shape[1]} values a frame; these neurons are {self._size}")
        rows, finite = batch.rows_of(self._point), _finite_rows(x)
        bad = len(finite) - int(np.count_nonzero(finite))
        if bad:
            x, rows = x[finite], rows[finite]
        if self._median is None:
            encoded = Encoded(rows[:0], Codes.empty(0, self._size), bad, None, None)
        else:
            with np.errstate(over="ignore", invalid="ignore"):  # near the end of float32; a NaN of it stays inactive
                z = (x - self._median) * self._scale
            np.clip(z, -1e6, 1e6, out=z)
            encoded = Encoded(rows, Codes.where(z, np.abs(z) > self.SIGMAS), bad, None, None)
        self._take(x)
        return encoded

    def _take(self, x: Floats) -> None:
        begin, end = self._seen, self._seen + len(x)
        self._seen = end
        at = begin
        while at < end:
            first = -(-at // self._stride) * self._stride  # the next row whose number is a multiple of the stride
            chosen = x[first - begin : end - begin : self._stride]
            if not len(chosen):
                break
            room = self.SAMPLE - (self._held if self._held < self.SAMPLE else self._next)
            chosen = chosen[:room]
            at = first + self._stride * (len(chosen) - 1) + 1
            self._put(chosen)
        if self._seen >= self.WARM_UP and (self._median is None or self._gained >= max(16, self._held // 4)):
            self._refresh()

    def _put(self, chosen: Floats) -> None:
        self._gained += len(chosen)
        if self._held < self.SAMPLE:
            self._sample[:, self._held : self._held + len(chosen)] = chosen.T
            self._held += len(chosen)
            if self._held == self.SAMPLE and self._stride < self.MAX_STRIDE:
                self._held //= 2
                self._sample[:, : self._held] = self._sample[:, ::2].copy()
                self._stride *= 2
        else:
            self._sample[:, self._next : self._next + len(chosen)] = chosen.T
            self._next = (self._next + len(chosen)) % self.SAMPLE

    def _refresh(self) -> None:
        held = self._sample[:, : self._held]
        middle = self._held // 2
        self._median = np.partition(held, middle, axis=1)[:, middle].copy()  # the upper median: a value that occurred
        sigma = np.std(held, axis=1, dtype=np.float64)
        size = np.abs(held).max(axis=1).astype(np.float64)
        moves = sigma > 1e-6 * size
        scale = np.zeros(self._size)
        np.divide(1.0, sigma, out=scale, where=moves)
        self._scale = np.minimum(scale, np.finfo(np.float32).max).astype(np.float32)
        self._gained = 0


def activations_of(batch: FrameBatch, manifest: Manifest, point: str) -> Floats | None:
    """(m, width) float32 of a tap point, flattened; bfloat16 travels as the upper half of a float32."""
    values = batch.activations.get(point)
    if values is None:
        return None
    flat = values.reshape(len(values), -1)
    if flat.dtype == np.float32:
        return flat
    if flat.dtype == np.uint16:
        if not any(p.name == point and p.dtype == "bfloat16" for p in manifest.tap_points):
            raise DictionaryError(f"activations of {point!r} are uint16, but the manifest does not call them bfloat16")
        return (flat.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return flat.astype(np.float32)


def _finite_rows(x: Floats) -> npt.NDArray[np.bool_]:
    """(m,) whether a row has neither NaN nor infinity. One pass where all is well, as nearly always."""
    finite = np.isfinite(x)
    if finite.all():
        return np.ones(len(x), np.bool_)
    whole: npt.NDArray[np.bool_] = np.logical_and.reduce(finite, axis=1)
    return whole
