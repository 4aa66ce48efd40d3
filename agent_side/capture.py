"""The hooks: what keeps a copy of a layer's last activation until the step is sealed.

Cost per layer and forward pass, on the agent's thread: torch's own dispatch of a hook (about 1.6 µs) and about 0.7 µs
here, of which `Tensor.numpy()` is 0.55. A copy of the bytes is taken at once, since the next module may work in place;
everything else (dtypes, shapes, stacking) is the sender thread's. Overriding `forward` instead would save the dispatch,
but breaks what users know of hooks.

A hook returns None always and raises never. What it cannot keep is counted, and told once per tap point by the sender's
thread.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np

from interlatent_live.agent_side.hooks import hook_on
from interlatent_live.agent_side.parts import addresses
from interlatent_live.agent_side.points import Point
from interlatent_live.stream.errors import TapError
from interlatent_live.stream.manifest import TapPointSpec
from interlatent_live.stream.wire import MAX_FRAME_BYTES, MAX_MESSAGE_BYTES, MAX_NDIM

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor
    from torch.utils.hooks import RemovableHandle

    from interlatent_live.agent_side.steering import Steering

__all__ = ["MAX_POINTS", "Capture", "Chosen", "Kept", "Layout"]

Kept: TypeAlias = "bytes | Tensor"
"""One activation of all environments, C order: bytes, or a copy on its device where that is not the host's memory."""

_MAX_REPORTS: Final = 64
MAX_POINTS: Final = 100
"""Tap points of one tap: a message has room for so many, each with the indices of its rows."""
_MAX_NAME: Final = 200
"""Characters in the name of an array's tap point."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How the bytes of one tap point are to be read; fixed by its first activation."""

    spec: TapPointSpec
    raw: np.dtype[Any]
    """Dtype of the bytes; the wire's is float32, float16, or uint16 for bfloat16."""

    @property
    def wire(self) -> np.dtype[Any]:
        """Dtype that travels."""
        return np.dtype({"float16": "<f2", "bfloat16": "<u2"}.get(self.spec.dtype, "<f4"))

    @property
    def frame_bytes(self) -> int:
        """Bytes of one environment's activation, as kept."""
        return math.prod(self.spec.shape) * self.raw.itemsize


@dataclass(frozen=True, slots=True)
class Chosen:
    """Which rows of a forward pass belong to the tap's environments."""

    batch: int
    """Rows of a forward pass that acts; others are another batch."""
    index: slice | list[int]


class Capture:
    """The hooks of one tap and what they have kept since the last step.

    Written by the agent's thread alone; the sender's thread reads counts and layouts, and takes from `reports`.
    """

    def __init__(self, points: Sequence[Point], num_envs: int) -> None:
        if len(points) > MAX_POINTS:
            raise TapError(f"{len(points)} tap points; at most {MAX_POINTS} fit a message: choose fewer, or open several taps")
        self.points = tuple(points)
        self.num_envs = num_envs
        self._given: dict[str, int] = {}
        """Index of the points that `take` was given arrays of."""
        self._given_shapes: dict[int, tuple[int, ...]] = {}
        self.slots: list[Kept | None] = [None] * len(points)
        """By tap point: the last activation since the slots were cleared."""
        self.gate: list[int] = []
        """Empty in most steps; else hooks look whether to rest or to time themselves."""
        self.resting = True
        self.chosen: Chosen | None = None
        """Set where a forward pass has more rows than the tap has environments."""
        self.fewer = False
        """Whether a forward pass may act for some of the environments only; `place` says for which, and the adapter when to
        `wake`."""
        self.steering: Steering | None = None
        """Set before `attach` where what passes may be changed."""
        self._timing = False
        self.untraced = False
        """Set where torch.compile was applied: then hooks are kept out of its graphs."""
        self.hook_ns = 0
        """Time spent in hooks while timed, in ns."""
        self.layouts: list[Layout | None] = [None] * len(points)
        self.extra_forwards = 0
        """Activations that were replaced by a later one of the same step."""
        self.failures = 0
        self.other_forwards = 0
        """Activations whose leading dimension is not the number of environments: another batch, of a training phase
        perhaps."""
        self.other_shape: tuple[int, ...] = ()
        self.reports: deque[str] = deque(maxlen=_MAX_REPORTS)
        """What is to be logged, each once."""
        self.on_layout: Callable[[], None] = lambda: None
        """Called when a layout becomes known, in a hook."""
        self._reported: set[tuple[int, str]] = set()
        self._refused: set[str] = set()
        self._handles: list[RemovableHandle] = []

    def attach(self) -> None:
        """Put the hooks on. Raises TapError for modules that take none."""
        for i, point in enumerate(self.points):
            if point.module is None:
                continue
            try:
                self._handles.append(hook_on(self, i, point, point.module))
            except RuntimeError as error:  # scripted modules
                self.detach()
                kind = type(point.module).__name__
                raise TapError(f"{point.name!r} is a {kind}, which takes no hooks ({error}); tap the eager model") from error
        if self.fewer:
            self.rest()
        else:
            self.wake()

    def own_hook(self, side: str) -> Any:
        """The hook for a side where the usual ones do not fit."""
        return None

    def detach(self) -> None:
        """Take the hooks off. Twice is once."""
        self.rest()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def rest(self) -> None:
        """Keep nothing from now on."""
        if not self.resting:
            self._timing = bool(self.gate)
        self.resting = True
        self.gate[:] = [1]
        self.slots[:] = [None] * len(self.slots)

    def wake(self) -> None:
        """Keep activations again; a step that was to be timed still is."""
        self.resting = False
        self.gate[:] = [1] if self._timing else []

    @property
    def silent(self) -> list[str]:
        """Names of the points of which nothing was ever kept."""
        return [point.name for point, layout in zip(self.points, self.layouts, strict=False) if layout is None]

    def row_bytes(self) -> int:
        """Bytes kept per step, as far as known."""
        return self.num_envs * sum(layout.frame_bytes for layout in self.layouts if layout is not None)

    def fail(self, index: int, message: str) -> None:
        """Count a failure; it is reported once per tap point and kind."""
        self.failures += 1
        self.report(index, message)

    def report(self, index: int, message: str) -> None:
        """Have `message` logged, once per tap point and beginning of the message."""
        key = (index, message[:40])
        if key not in self._reported and len(self._reported) < _MAX_REPORTS:
            self._reported.add(key)
            self.reports.append(f"{self.points[index].name}: {message}")

    def plain(self, index: int, value: Any) -> Tensor | None:
        """The tensor in what a module returned or was given: itself, or the first one in a tuple, list or dict."""
        from torch import Tensor

        if isinstance(value, Tensor):
            return value
        if isinstance(value, dict):
            items = [(repr(key), item) for key, item in value.items()]
        elif isinstance(value, (tuple, list)):
            items = [(str(i), item) for i, item in enumerate(value)]
        else:
            items = []
        for key, item in items:
            if isinstance(item, Tensor):
                others = [address for address in addresses(value) if address != f"[{key}]"]
                more = f"; {self.points[index].name}{others[0]} would be another" if others else ""
                self.report(index, f"a {type(value).__name__} of {len(items)} passes here; its first tensor, [{key}], is kept{more}")
                return item
        inside = addresses(value)
        remedy = f"name what is in it, such as {self.points[index].name}{inside[0]}" if inside else "tap a module that returns one"
        self.fail(index, f"a {type(value).__name__} passes here, and no tensor is directly in it; {remedy}")
        return None

    def keep(self, index: int, value: Any) -> tuple[Kept, tuple[int, ...]] | None:
        """The way for all that the fast one of `_Hook` does not take: first activations, other shapes, dtypes and
        devices.

        Returns the copy and the full shape that the fast way may expect from now on, or None if there is nothing to
        keep.
        """
        tensor = self.plain(index, value)
        if tensor is None:
            return None
        shape = tuple(tensor.shape)
        if self.num_envs == 1 and len(shape) <= 1:
            frame = shape or (1,)  # one environment, unbatched
        elif shape and (shape[0] == self.num_envs or (self.fewer and 0 < shape[0] < self.num_envs)):
            frame = shape[1:] or (1,)
        else:
            self.other_forwards += 1
            self.other_shape = shape
            return None
        kept, dtype, raw = _copy(tensor)
        return (kept, shape) if self._fits(index, frame, dtype, raw) else None

    def place(self, rows: Sequence[int]) -> None:
        """Put what was kept, one row for each environment of `rows` in that order, where those environments are. The
        others' rows mean nothing: they have no frame.

        What has another number of rows came from another batch, and is given up.
        """
        in_order = list(rows) == list(range(self.num_envs))
        for i, (kept, layout) in enumerate(zip(self.slots, self.layouts, strict=True)):
            if kept is None or layout is None:
                continue
            count = len(kept) // layout.frame_bytes if isinstance(kept, bytes) else len(kept)
            if count != len(rows):
                self.other_forwards += 1
                self.slots[i] = None
            elif in_order:
                continue
            elif isinstance(kept, bytes):
                placed = np.zeros((self.num_envs, *layout.spec.shape), layout.raw)
                placed[list(rows)] = np.frombuffer(kept, layout.raw).reshape(count, *layout.spec.shape)
                self.slots[i] = placed.tobytes()
            else:
                wide = kept.new_zeros((self.num_envs, *layout.spec.shape))
                wide[list(rows)] = kept.reshape(count, *layout.spec.shape)
                self.slots[i] = wide

    def take(self, activations: Mapping[str, Any]) -> None:
        """Keep arrays that were handed over by name, as a hook keeps what passes; for agents without a torch model."""
        for name, value in activations.items():
            index = self._given.get(name, -1)
            if index < 0:
                index = self._add(name)
                if index < 0:
                    continue
            layout = self.layouts[index]
            if type(value) is np.ndarray and layout is not None and value.dtype == layout.raw and value.shape == self._given_shapes[index]:
                self.slots[index] = value.tobytes()
                continue
            try:
                kept = self._taken(index, value)
            except Exception as error:  # noqa: BLE001 - the agent goes on, whatever it was given
                self.fail(index, f"{type(error).__name__}: {error}")
                continue
            if kept is not None:
                self.slots[index] = kept

    def _add(self, name: Any) -> int:
        """A new tap point for arrays; -1 if there can be none of that name."""
        why = ""
        if not isinstance(name, str) or not 0 < len(name) <= _MAX_NAME:
            why = f"activations are named by 1 to {_MAX_NAME} characters, not by {str(name)[:40]!r}"
        elif any(point.name == name for point in self.points):
            why = f"{name!r} is a tap point of the model; give an array of that name another one"
        elif len(self.points) >= MAX_POINTS:
            why = f"{name!r} is one tap point too many; {MAX_POINTS} fit a message: choose"
        if why:
            self.failures += 1
            if why not in self._refused and len(self._refused) < _MAX_REPORTS:
                self._refused.add(why)
                self.reports.append(why)
            return -1
        self.points = (*self.points, Point(name, "out", None))  # first: the sender's thread looks names up by index
        self.layouts.append(None)
        self.slots.append(None)
        self._given[name] = len(self.points) - 1
        return self._given[name]

    def _taken(self, index: int, value: Any) -> Kept | None:
        if hasattr(value, "detach"):
            found = self.keep(index, value)
            return None if found is None else found[0]
        array = np.asarray(value)
        shape, envs = array.shape, self.num_envs
        if envs > 1 and (not shape or shape[0] != envs):
            self.fail(index, f"an array of shape {shape} was given; the first dimension must be that of {envs} environments")
            return None
        frame = (shape[1:] if len(shape) > 1 and shape[0] == 1 else shape) if envs == 1 else shape[1:]
        if array.dtype.name == "bfloat16":  # of ml_dtypes, as JAX gives it
            dtype, array = "bfloat16", array.view(np.int16)
        else:
            dtype = "float16" if array.dtype == np.float16 else "float32"
            array = array.astype(array.dtype.newbyteorder("="), copy=False)
        if not self._fits(index, frame or (1,), dtype, array.dtype):
            return None
        self._given_shapes[index] = shape
        return array.tobytes()

    def _fits(self, index: int, frame: tuple[int, ...], dtype: str, raw: np.dtype[Any]) -> bool:
        """Whether an activation is like the first of its point, which fixes the layout."""
        layout = self.layouts[index]
        if layout is None:
            layout = self._learn(index, frame, dtype, raw)
            if layout is None:
                return False
        if frame != layout.spec.shape or dtype != layout.spec.dtype or raw != layout.raw:
            self.fail(
                index,
                f"the activation changed: {dtype} {frame} instead of {layout.spec.dtype} {layout.spec.shape}; such frames are "
                "kept without it",
            )
            return False
        return True

    def rows(self, index: int, value: Any) -> Tensor | None:
        """Of what passes, the rows that belong to the tap's environments; None if this is another batch."""
        assert self.chosen is not None
        tensor = self.plain(index, value)
        if tensor is None:
            return None
        shape = tuple(tensor.shape)
        if not shape or shape[0] != self.chosen.batch:
            self.other_forwards += 1
            self.other_shape = shape
            return None
        return tensor[self.chosen.index]

    def _learn(self, index: int, frame: tuple[int, ...], dtype: str, raw: np.dtype[Any]) -> Layout | None:
        point = self.points[index]
        kind = "array" if point.module is None else type(point.module).__name__ + point.part.spoken
        layout = Layout(TapPointSpec(point.name, dtype, frame, kind), raw)
        size = math.prod(frame) * layout.wire.itemsize
        others = sum(math.prod(known.spec.shape) * known.wire.itemsize for known in self.layouts if known is not None)
        if not size:
            self.fail(index, f"an activation of shape {frame} holds no numbers")
            return None
        if size > MAX_FRAME_BYTES or len(frame) >= MAX_NDIM:
            self.fail(
                index,
                f"an activation of shape {frame} has {size} bytes a frame and {len(frame)} dimensions; at most {MAX_FRAME_BYTES} bytes and "
                f"{MAX_NDIM - 1} dimensions are taken: choose another layer, pool or subsample (':mean' or ':max' after a name pools)",
            )
            return None
        if size + others > MAX_MESSAGE_BYTES // 2:
            self.fail(
                index,
                f"with the {others} bytes a frame of the points before it, an activation of shape {frame} makes more than "
                f"{MAX_MESSAGE_BYTES // 2}: choose fewer points, or pool",
            )
            return None
        if raw.kind not in "fiub":
            self.fail(index, f"values of dtype {raw} are not real numbers")
            return None
        self.layouts[index] = layout
        self.on_layout()
        return layout


def _copy(tensor: Tensor) -> tuple[Kept, str, np.dtype[Any]]:
    """A copy, the dtype as the manifest names it, and the dtype of its bytes."""
    import torch

    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:
        dtype, tensor = "bfloat16", tensor.view(torch.int16)
    else:
        dtype = "float16" if tensor.dtype == torch.float16 else "float32"
    raw = np.dtype(str(tensor.dtype).removeprefix("torch."))
    if tensor.device.type == "cpu":
        return tensor.numpy().tobytes(), dtype, raw
    return tensor.clone(), dtype, raw  # brought home by the sender's thread: waiting for the device is not the agent's
