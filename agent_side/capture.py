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
from contextlib import nullcontext
from dataclasses import dataclass
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np

from interlatent_live.stream.errors import TapError
from interlatent_live.stream.manifest import TapPointSpec
from interlatent_live.stream.wire import MAX_FRAME_BYTES, MAX_NDIM

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor
    from torch.utils.hooks import RemovableHandle

    from interlatent_live.agent_side.points import Point

__all__ = ["Capture", "Chosen", "Kept", "Layout", "dispatch_ns"]

Kept: TypeAlias = "bytes | Tensor"
"""One activation of all environments, C order: bytes, or a copy on its device where that is not the host's memory."""

_MAX_REPORTS: Final = 64


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
        self.points = tuple(points)
        self.num_envs = num_envs
        self.slots: list[Kept | None] = [None] * len(points)
        """By tap point: the last activation since the slots were cleared."""
        self.gate: list[int] = []
        """Empty in most steps; else hooks look whether to rest or to time themselves."""
        self.resting = True
        self.chosen: Chosen | None = None
        """Set where a forward pass has more rows than the tap has environments."""
        self._timing = False
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
        self._handles: list[RemovableHandle] = []

    def attach(self) -> None:
        """Put the hooks on. Raises TapError for modules that take none."""
        for i, point in enumerate(self.points):
            try:
                if point.side == "out":
                    hook = _OutputHook(self, i) if self.chosen is None else _ChosenOutputHook(self, i)
                    handle = point.module.register_forward_hook(hook)
                else:
                    before = _InputHook(self, i) if self.chosen is None else _ChosenInputHook(self, i)
                    handle = point.module.register_forward_pre_hook(before, with_kwargs=True)
            except RuntimeError as error:  # scripted and traced modules
                self.detach()
                kind = type(point.module).__name__
                raise TapError(f"{point.name!r} is a {kind}, which takes no hooks ({error}); tap the eager model") from error
            self._handles.append(handle)
        self.wake()

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
        return [point.name for point, layout in zip(self.points, self.layouts, strict=True) if layout is None]

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
                self.report(index, f"a {type(value).__name__} of {len(items)} passes here; its first tensor, [{key}], is kept")
                return item
        self.fail(index, f"a {type(value).__name__} passes here, and no tensor is directly in it; tap a module that returns one")
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
        elif shape and shape[0] == self.num_envs:
            frame = shape[1:] or (1,)
        else:
            self.other_forwards += 1
            self.other_shape = shape
            return None
        kept, dtype, raw = _copy(tensor)
        layout = self.layouts[index]
        if layout is None:
            layout = self._learn(index, frame, dtype, raw)
            if layout is None:
                return None
        if frame != layout.spec.shape or dtype != layout.spec.dtype or raw != layout.raw:
            self.fail(
                index,
                f"the activation changed: {dtype} {frame} instead of {layout.spec.dtype} {layout.spec.shape}; such frames are "
                "kept without it",
            )
            return None
        return kept, shape

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
        layout = Layout(TapPointSpec(point.name, dtype, frame, type(point.module).__name__), raw)
        size = math.prod(frame) * layout.wire.itemsize
        if size > MAX_FRAME_BYTES or len(frame) >= MAX_NDIM:
            self.fail(
                index,
                f"an activation of shape {frame} has {size} bytes a frame and {len(frame)} dimensions; at most {MAX_FRAME_BYTES} bytes and "
                f"{MAX_NDIM - 1} dimensions are taken: tap another layer, pool or subsample",
            )
            return None
        if raw.kind not in "fiub":
            self.fail(index, f"values of dtype {raw} are not real numbers")
            return None
        self.layouts[index] = layout
        self.on_layout()
        return layout


class _Hook:
    """A hook that copies, pickles and deep-copies as one that does nothing: a copy of a tapped model does not
    publish."""

    __slots__ = ("capture", "gate", "graph", "index", "shape", "slots")

    def __init__(self, capture: Capture, index: int) -> None:
        self.capture = capture
        self.index = index
        self.gate = capture.gate
        self.slots = capture.slots
        self.shape: tuple[int, ...] | None = None
        self.graph = False
        """Whether the last tensor seen in the slow way was part of a graph; asking every one costs 40 ns."""

    def __reduce__(self) -> tuple[Any, ...]:
        # the standard library's, so that a saved model loads where this package is not installed
        return getattr, (nullcontext(), "__exit__")


class _OutputHook(_Hook):
    """Called by torch after the module's forward."""

    __slots__ = ()

    def __call__(self, module: Any, args: Any, output: Any) -> None:
        began = 0
        if self.gate:
            if self.capture.resting:
                return
            began = perf_counter_ns()
        try:
            array = output.detach().numpy() if self.graph else output.numpy()
            kept = array.tobytes() if array.shape == self.shape else None
        except (RuntimeError, TypeError, AttributeError):  # part of a graph, on a device, bfloat16, or no tensor at all
            kept = None
        if kept is None:
            kept = _slowly(self, output)
        if kept is not None:
            index, slots = self.index, self.slots
            if slots[index] is not None:
                self.capture.extra_forwards += 1
            slots[index] = kept
        if began:
            self.capture.hook_ns += perf_counter_ns() - began


class _InputHook(_Hook):
    """Called by torch before the module's forward; sees the input before the module can change it in place."""

    __slots__ = ()

    def __call__(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        value = args[0] if args else next(iter(kwargs.values()), None)
        _OutputHook.__call__(self, module, args, value)  # type: ignore[arg-type]


class _ChosenOutputHook(_Hook):
    """Keeps some rows of what the module returns; about 0.3 µs more."""

    __slots__ = ()

    def __call__(self, module: Any, args: Any, output: Any) -> None:
        capture = self.capture
        if capture.resting:
            return
        began = perf_counter_ns() if self.gate else 0
        chosen = capture.chosen
        assert chosen is not None
        kept: Kept | None = None
        try:
            array = output.numpy()
            if array.shape == self.shape:
                kept = array[chosen.index].tobytes()
        except (RuntimeError, TypeError, AttributeError):
            pass
        if kept is None:
            try:
                rows = capture.rows(self.index, output)
            except Exception as error:  # noqa: BLE001 - nothing may be raised into the user's forward pass
                capture.fail(self.index, f"{type(error).__name__}: {error}")
                return
            kept = None if rows is None else _slowly(self, rows)
            if kept is None:
                return
            self.shape = tuple(output.shape) if hasattr(output, "shape") else None
        if self.slots[self.index] is not None:
            capture.extra_forwards += 1
        self.slots[self.index] = kept
        if began:
            capture.hook_ns += perf_counter_ns() - began


class _ChosenInputHook(_Hook):
    """As `_InputHook`, of some rows."""

    __slots__ = ()

    def __call__(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        value = args[0] if args else next(iter(kwargs.values()), None)
        _ChosenOutputHook.__call__(self, module, args, value)  # type: ignore[arg-type]


def _slowly(hook: _Hook, value: Any) -> Kept | None:
    capture = hook.capture
    try:
        found = capture.keep(hook.index, value)
    except Exception as error:  # noqa: BLE001 - nothing may be raised into the user's forward pass
        capture.fail(hook.index, f"{type(error).__name__}: {error}")
        return None
    if found is None:
        return None
    kept, hook.shape = found
    hook.graph = bool(getattr(value, "requires_grad", False))
    return kept


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


def dispatch_ns() -> int:
    """What torch itself spends on calling one empty forward hook here, in ns: median of 9 rounds of 50 calls."""
    import torch

    bare, hooked = torch.nn.Identity(), torch.nn.Identity()
    hooked.register_forward_hook(lambda module, args, output: None)
    value = torch.zeros(1)
    costs = []
    for _ in range(9):
        spans = []
        for module in (bare, hooked):
            began = perf_counter_ns()
            for _ in range(50):
                module(value)
            spans.append(perf_counter_ns() - began)
        costs.append((spans[1] - spans[0]) // 50)
    return max(0, sorted(costs)[4])
