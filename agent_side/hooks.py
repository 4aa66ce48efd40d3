"""The hooks themselves, as torch calls them: plain ones, ones that keep some rows of a batch, ones that keep a part.

They raise never, and return None unless steering changes what passes (`Steering.touch`);
what they keep goes into the slots of their `Capture`.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import cache
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn
    from torch.utils.hooks import RemovableHandle

    from interlatent_live.agent_side.capture import Capture, Kept
    from interlatent_live.agent_side.parts import Part
    from interlatent_live.agent_side.points import Point

__all__ = ["Unkept", "dispatch_ns", "hook_on"]


def hook_on(capture: Capture, index: int, point: Point, module: nn.Module) -> RemovableHandle:
    """Put the hook on that `point` needs. Raises RuntimeError for modules that take none."""
    out, some = point.side == "out", capture.chosen is not None
    own = capture.own_hook(point.side)
    kind: Any
    if own is not None:
        kind = own
    elif not point.part.plain:
        kind = _PartOutputHook if out else _PartInputHook
    elif some:
        kind = _ChosenOutputHook if out else _ChosenInputHook
    else:
        kind = _OutputHook if out else _InputHook
    if capture.steering is not None and capture.steering.steerable(index):
        kind = _steered(kind, out)
    if capture.untraced:
        kind = _untraced(kind)
    hook: Any = kind(capture, index)
    if isinstance(hook, _PartHook):
        hook.part = point.part
    return module.register_forward_hook(hook) if out else module.register_forward_pre_hook(hook, with_kwargs=True)


@cache
def _untraced(kind: type[_Hook]) -> type[_Hook]:
    """The hook that torch.compile leaves alone: it ends its graph there, and neither traces nor guards what the hook does.
    Costs about 3 µs a call."""
    import torch

    disable: Any = torch.compiler.disable
    return type(f"{kind.__name__}Untraced", (kind,), {"__slots__": (), "__call__": disable(kind.__call__)})


@cache
def _steered(kind: Any, out: bool) -> type[_Hook]:
    """The hook that lets interventions change what passes, after it was kept: one call and one look more while there are
    none, and then it returns None as every hook."""
    keep: Any = kind.__call__

    def output(self: _Hook, module: Any, args: Any, output: Any) -> Any:
        keep(self, module, args, output)
        steering = self.capture.steering
        return None if steering.wanted is None else steering.touch(self.index, output)  # type: ignore[union-attr]

    def input(self: _Hook, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        keep(self, module, args, kwargs)
        steering = self.capture.steering
        if steering.wanted is None or not (args or kwargs):  # type: ignore[union-attr]
            return None
        name = None if args else next(iter(kwargs))
        changed = steering.touch(self.index, args[0] if name is None else kwargs[name])  # type: ignore[union-attr]
        if changed is None:
            return None
        return ((changed, *args[1:]), kwargs) if name is None else (args, kwargs | {name: changed})

    return type(f"{kind.__name__}Steered", (kind,), {"__slots__": (), "__call__": output if out else input})


class Unkept:
    """A function as a hook that is not copied, pickled or deep-copied with its module: there, it does nothing."""

    __slots__ = ("_called",)

    def __init__(self, called: Any) -> None:
        self._called = called

    def __call__(self, *args: Any) -> Any:
        """What the function gives."""
        return self._called(*args)

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (nullcontext(), "__exit__")


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


class _PartHook(_Hook):
    """Keeps a part of what passes, see `parts`; about 2 µs more; a mean or maximum over 32 maps of 20 × 20 costs 5 µs."""

    __slots__ = ("part",)
    part: Part

    def take(self, module: Any, passing: Any) -> None:
        """Keep the part of `passing`, in the way of the plain hooks."""
        capture = self.capture
        if capture.resting:
            return
        began = perf_counter_ns() if self.gate else 0
        try:
            if not self.part.items:
                passing = capture.plain(self.index, passing)
                if passing is None:
                    return
            tensor = self.part.of(passing, capture.num_envs)
        except Exception as error:  # noqa: BLE001 - nothing may be raised into the user's forward pass
            capture.fail(self.index, str(error) if isinstance(error, LookupError) else f"{type(error).__name__}: {error}")
            return
        if began:
            capture.hook_ns += perf_counter_ns() - began
        if capture.chosen is None:
            _OutputHook.__call__(self, module, (), tensor)  # type: ignore[arg-type]
        else:
            _ChosenOutputHook.__call__(self, module, (), tensor)  # type: ignore[arg-type]


class _PartOutputHook(_PartHook):
    """Of what the module returns."""

    __slots__ = ()

    def __call__(self, module: Any, args: Any, output: Any) -> None:
        self.take(module, output)


class _PartInputHook(_PartHook):
    """Of what the module is given: the first item says which argument, by position or keyword."""

    __slots__ = ()

    def __call__(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.part.items:
            self.take(module, {**{str(i): value for i, value in enumerate(args)}, **kwargs})
        else:
            self.take(module, args[0] if args else next(iter(kwargs.values()), None))


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
