"""Tap points: the places of a model where activations can be read, and the one that is read if nobody chooses.

A tap point is a module's path in `model.named_modules()` and what is read there: `mlp.3:out` is what the module
returns, `mlp.3:in` its first argument; the model itself is `:out` and `:in`. A path alone means `:out`, and `*`, `?`
and `[…]` in it match as in a shell. Parts are named after that, `lstm:out[1][0]` and `conv:out:mean`: see `parts`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final, Literal

from interlatent_live.agent_side.parts import WHOLE, Part, misnamed, parse, part_of
from interlatent_live.stream.errors import TapError, UnknownTapPoint

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Point", "PointInfo", "default_point", "points", "resolve"]

Side = Literal["in", "out"]

_COMPILED: Final = "_orig_mod."  # torch.compile puts the user's module one level down
_ACTIVATIONS: Final = re.compile(
    r"(Leaky|P|R)?ReLU6?|[CSG]?ELU|GLU|SiLU|Mish|Tanh|Sigmoid|Hard(swish|tanh|sigmoid)|Softplus|Softsign|LogSigmoid"
)
_READERS: Final = re.compile(r"(Lazy)?(Linear|Conv[123]d)|Conv1D")  # modules that read a hidden layer, an output layer among them
_ASIDE: Final = re.compile(r"critic|value|vf|target|q_?net2|qf2|baseline|reward|log_std", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Point:
    """A tap point resolved to its module."""

    name: str
    side: Side
    module: nn.Module | None
    """None: arrays of that name are handed over."""
    part: Part = WHOLE


@dataclass(frozen=True, slots=True)
class PointInfo:
    """A line of the list that `il.points` gives. What a module is given, `path + ':in'`, can be read just as well."""

    name: str
    path: str
    module: str
    """Class of the module."""
    parameters: int
    """Number of weights in the module and below."""
    leaf: bool
    """Whether no module is below it."""
    default: bool
    """Whether `Tap(model)` without points reads here."""


def points(model: nn.Module) -> list[PointInfo]:
    """What every module of `model` returns, in the order of `named_modules()`, and the default point wherever it is."""
    default = default_point(model)
    found = []
    for path, module in _modules(model).items():
        names = [f"{path}:out"]
        if default is not None and default.name == f"{path}:in":
            names.insert(0, default.name)
        found += [
            PointInfo(
                name=name,
                path=path,
                module=type(module).__name__,
                parameters=_parameters(module),
                leaf=_is_leaf(module),
                default=default is not None and default.name == name,
            )
            for name in names
        ]
    return found


def default_point(model: nn.Module) -> Point | None:
    """The last hidden layer of what acts, or None where none can be made out.

    The last linear or convolutional layer gives the output, and what it reads is the last hidden layer, whatever
    activation function stands between. Critics, target networks and the like are left aside unless there is nothing
    else.
    """
    leaves = [(path, module) for path, module in _modules(model).items() if _is_leaf(module)]
    acting = [(path, module) for path, module in leaves if not _ASIDE.search(path)]
    for candidates in (acting, leaves):
        readers = [i for i, (_, module) in enumerate(candidates) if _READERS.fullmatch(type(module).__name__)]
        if len(readers) >= 2:
            last = readers[-1]
            before, reader = candidates[last - 1], candidates[last]
            if _ACTIVATIONS.fullmatch(type(before[1]).__name__):
                return Point(f"{before[0]}:out", "out", before[1])
            return Point(f"{reader[0]}:in", "in", reader[1])
        if readers and candidates is leaves:
            path, module = candidates[readers[-1]]
            return Point(f"{path}:out", "out", module)
    return None


def resolve(model: nn.Module, names: str | Iterable[str]) -> tuple[Point, ...]:
    """The points that `names` mean, each once, in order. Raises UnknownTapPoint, or TapError for an empty choice."""
    modules = _modules(model)
    found: dict[str, Point] = {}
    for name in (names,) if isinstance(names, str) else names:
        path, side, part = _split(name)
        matched = [path] if path in modules else _matching(path, modules)
        if not matched:
            shared = _modules(model, again=True)
            if path not in shared:
                raise UnknownTapPoint(_unknown(name, path, side, list(modules)))
            modules, matched = shared, [path]  # a module that stands at several paths
        ending = name[name.index(":") + 1 :] if ":" in name and part != WHOLE else side
        ending = ending if ending.startswith(side) else f"{side}:{ending}"
        for one in matched:
            found[f"{one}:{ending}"] = Point(f"{one}:{ending}", side, modules[one], part_of(modules[one], side, part))
    if not found:
        raise TapError("no tap point is named; leave `points` out for the last hidden layer, or see il.points(model) for all")
    return tuple(found.values())


def _modules(model: nn.Module, *, again: bool = False) -> dict[str, nn.Module]:
    """Path to module, the user's own paths: without the level that torch.compile adds. `again`: modules that stand at
    several paths are listed at each."""
    found: dict[str, nn.Module] = {}
    for path, module in model.named_modules(remove_duplicate=not again):
        if f"{path}.".endswith(_COMPILED):
            found.pop(path.removesuffix(_COMPILED[:-1]).removesuffix("."), None)  # the wrapper gives way to what it wraps
        found[f"{path}.".replace(_COMPILED, "").removesuffix(".")] = module
    return found


def _is_leaf(module: nn.Module) -> bool:
    return not any(True for _ in module.children())


def _parameters(module: nn.Module) -> int:
    from torch.nn.parameter import is_lazy

    return sum(p.numel() for p in module.parameters() if not is_lazy(p))


def _matching(pattern: str, paths: Iterable[str]) -> list[str]:
    return [p for p in paths if p and fnmatchcase(p, pattern)] if any(c in pattern for c in "*?[") else []


def _split(name: str) -> tuple[str, Side, Part]:
    path, colon, rest = name.partition(":")
    if not colon:
        return name, "out", WHOLE
    parsed = parse(rest)
    if parsed is None or not rest:
        raise misnamed(name, rest)
    side, part = parsed
    return path, "in" if side == "in" else "out", part


def _unknown(name: str, path: str, side: str, paths: Sequence[str]) -> str:
    named = [p for p in paths if p]
    close = difflib.get_close_matches(path, named, n=5, cutoff=0.4)
    # a wrong prefix is the usual mistake: 'policy_net.1' for 'mlp_extractor.policy_net.1'
    close = list(dict.fromkeys([p for p in named if path and p.endswith(f".{path}")] + close))[:5] or named[:5]
    listed = ", ".join(f"{p}:{side}" for p in close)
    said = f"close: {listed}" if listed else "the model has no named module"
    return f"no module {path!r} for tap point {name!r}; {said}; il.points(model) lists all {len(paths)}"
