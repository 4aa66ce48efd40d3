"""Which part of what passes a tap point is kept: an item of a tuple or mapping, a mean or maximum over space.

    lstm:out             the first tensor in it
    lstm:out[1][0]       of a tuple's second item the first; of a mapping `:out[hidden]`; of arguments `:in[1]`, `:in[mask]`
    features.0:out:mean  per channel, the mean over space; `:max` likewise. `features.0:out` is all of it

Space is every dimension but the environments' and the channels'. Channels come first in what convolutions give (and in
four dimensions or more), last in sequences. Recurrent and attention modules of torch that were made with
`batch_first=False` have the environments in the second dimension, and so has every recurrent module's state: such
tensors are turned, so that the first dimension is the environments' everywhere downstream.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from interlatent_live.stream.errors import UnknownTapPoint

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["WHOLE", "Part", "addresses", "misnamed", "parse", "part_of"]

_REST: Final = re.compile(r"(?:(?P<side>in|out)(?P<items>(?:\[[^\[\]]+\])*))?(?P<colon>:)?(?P<pool>mean|max)?")
_ITEM: Final = re.compile(r"\[([^\[\]]+)\]")
_LAST: Final = re.compile(r"(Lazy)?(Linear|Bilinear|Embedding)|LayerNorm|RMSNorm|RNN|LSTM|GRU|MultiheadAttention|Transformer\w*")
_FIRST: Final = re.compile(r"(Lazy)?(Conv|ConvTranspose|BatchNorm|InstanceNorm)[123]d|(Adaptive)?\w+Pool[123]d|GroupNorm")
_RECURRENT: Final = frozenset({"RNN", "LSTM", "GRU"})
_DEEPEST: Final = 4


@dataclass(frozen=True, slots=True)
class Part:
    """What is kept of what passes."""

    items: tuple[str, ...] = ()
    """Where in tuples, lists and mappings, from outside in."""
    pool: str = ""
    """'mean' or 'max' over space; '': all of it."""
    axis: int = 0
    """Dimension of the environments."""
    channels: str = ""
    """'first', 'last', or '': first in four dimensions and more."""
    recurrent: bool = False
    """Whether one environment may come without a dimension of its own."""

    @property
    def plain(self) -> bool:
        """Whether all of what passes is kept, as it is."""
        return not (self.items or self.pool or self.axis or self.recurrent)

    @property
    def spoken(self) -> str:
        """For display, after the module's class."""
        return f", {self.pool} per channel" if self.pool else ""

    def of(self, value: Any, num_envs: int) -> Tensor:
        """The part of `value`, environments first. Raises LookupError where there is none such."""
        from torch import Tensor

        for depth, item in enumerate(self.items):
            value = _item(value, item, self.items[: depth + 1])
        if not isinstance(value, Tensor):
            where = _written(self.items)
            raise LookupError(f"a {type(value).__name__} is at {where}, no tensor{_listed(addresses(value), where)}")
        found: Tensor = value.detach()
        if self.recurrent and found.ndim == 2 and num_envs == 1:
            found = found[None]  # neither the sequence's nor the layers' dimension is the environments'
        elif self.axis and found.ndim > self.axis:
            found = found.movedim(self.axis, 0)
        return self._pooled(found) if self.pool else found

    def _pooled(self, found: Tensor) -> Tensor:
        last = self.channels == "last" or (not self.channels and found.ndim < 4)
        space = tuple(range(1, found.ndim - 1)) if last else tuple(range(2, found.ndim))
        if not space:
            raise LookupError(f"shape {tuple(found.shape)} has no space to take the {self.pool} of; name it without ':{self.pool}'")
        if self.pool == "max":
            return found.amax(space)
        return (found if found.is_floating_point() else found.float()).mean(space)


WHOLE: Final = Part()


def parse(rest: str) -> tuple[str, Part] | None:
    """Side and part of what follows the first colon of a tap point's name; None if it is not understood."""
    match = _REST.fullmatch(rest)
    if match is None or bool(match["colon"]) != bool(match["side"] and match["pool"]):
        return None
    items = tuple(item.strip("'\"") for item in _ITEM.findall(match["items"] or ""))
    return match["side"] or "out", Part(items, match["pool"] or "")


def part_of(module: nn.Module, side: str, part: Part) -> Part:
    """`part` with what the module's kind tells: where environments and channels are."""
    kind = _torch_kind(module)
    channels = "first" if _FIRST.fullmatch(kind) else "last" if _LAST.fullmatch(kind) else ""
    axis, first, recurrent = 0, part.items[0] if part.items else "0", kind in _RECURRENT
    if recurrent:
        axis = 1 if first != "0" or not module.batch_first else 0
    elif kind == "MultiheadAttention" or kind.startswith("Transformer"):
        turned = not _batch_first(module)
        axis = int(turned and (side == "in" or kind != "MultiheadAttention" or first == "0"))
    if not (axis or recurrent or part.items or part.pool):
        return part
    return Part(part.items, part.pool, axis, channels, recurrent)


def addresses(value: Any, depth: int = _DEEPEST) -> list[str]:
    """Where tensors are in nested tuples, lists and mappings: `[0]`, `[1][0]`, `['hidden']`."""
    from torch import Tensor

    if isinstance(value, Mapping):
        items = [(repr(key), item) for key, item in value.items()]
    elif isinstance(value, (tuple, list)):
        items = [(str(i), item) for i, item in enumerate(value)]
    else:
        return []
    found = [f"[{key}]" for key, item in items if isinstance(item, Tensor)]
    if depth > 1:
        found += [f"[{key}]{inner}" for key, item in items for inner in addresses(item, depth - 1)]
    return sorted(found) if not isinstance(value, Mapping) else found


def misnamed(name: str, rest: str) -> UnknownTapPoint:
    """The error for a name whose end is not understood."""
    return UnknownTapPoint(
        f"tap point {name!r} ends in {rest!r}; ':in' (what goes in) and ':out' (what comes out) exist, an item of it as "
        "':out[1]', and ':mean' or ':max' over space as ':out:mean'"
    )


def _item(value: Any, item: str, path: tuple[str, ...]) -> Any:
    if isinstance(value, Mapping):
        keys = {str(key): key for key in value}
        if item in keys:
            return value[keys[item]]
    elif isinstance(value, (tuple, list)) and item.lstrip("-").isdigit() and -len(value) <= int(item) < len(value):
        return value[int(item)]
    if item.isidentifier() and not item.startswith("_") and hasattr(value, item):
        return getattr(value, item)  # named tuples, and the outputs of many libraries
    raise LookupError(f"no {_written(path)} in the {type(value).__name__} that passes{_listed(addresses(value), _written(path[:-1]))}")


def _written(items: tuple[str, ...]) -> str:
    return "".join(f"[{item}]" for item in items)


def _listed(inside: list[str], where: str) -> str:
    return f"; tensors are at {', '.join(where + address for address in inside[:8])}" if inside else ""


def _torch_kind(module: nn.Module) -> str:
    """Name of the torch class that `module` is, or is derived from; '' for the user's own."""
    for kind in type(module).__mro__:
        if kind.__module__.startswith("torch.nn.modules") and kind.__name__ != "Module":
            return kind.__name__
    return ""


def _batch_first(module: nn.Module) -> bool:
    for one in module.modules():
        if hasattr(one, "batch_first"):
            return bool(one.batch_first)
    return True
