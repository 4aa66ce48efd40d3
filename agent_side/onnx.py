"""ONNX models: give a copy of one more outputs, so that its inner activations come out with each run.

    il.onnx.expose("policy.onnx", ["/actor/4"], out="policy-tapped.onnx")
    session = onnxruntime.InferenceSession("policy-tapped.onnx")
    action, hidden = session.run(None, {"obs": observation})
    tap.step(activations={"/actor/4": hidden}, observation=observation, action=action)

The outputs that were there stay first, under their names. The runtime cannot fuse an operation with the next one across
an output, so results may differ in their last bits; where it had nothing to fuse, they do not. Needs the package onnx
(extra `onnx`), on the machine that makes the copy only: the robot needs its runtime and nothing else.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from interlatent_live.stream.errors import TapError, UnknownTapPoint

if TYPE_CHECKING:
    import onnx

__all__ = ["Exposed", "NodeInfo", "expose", "nodes"]

_CLOSE: Final = 5


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """One node of a model, in the order in which it runs."""

    name: str
    """As in the model; where it has none, the name of its first output."""
    op: str
    outputs: tuple[str, ...]
    shape: tuple[int | str | None, ...] | None
    """Of the first output, as far as it can be inferred; a name or None stands for a size that varies."""
    exposed: bool
    """Whether the first output is one of the model's."""


@dataclass(frozen=True, slots=True)
class Exposed:
    """What was asked for, and the output of the new model that gives it."""

    name: str
    """As it was asked for, or the node's where a pattern was: a good name for the tap point."""
    output: str
    """Name of the model's output."""


def nodes(model: str | os.PathLike[str]) -> list[NodeInfo]:
    """Every node of the model's graph. Those within control flow (`If`, `Loop`) cannot be exposed and are left out."""
    return _nodes(_read(Path(model)))


def expose(
    model: str | os.PathLike[str],
    names: str | Iterable[str],
    out: str | os.PathLike[str] | None = None,
    *,
    overwrite: bool = False,
) -> tuple[Exposed, ...]:
    """Write a copy of `model` whose outputs include those of `names`, and return which output is which.

    A name is a node's (its first output is meant), a tensor's, or a module's path as exporters write it, `/actor/4`: then
    what its last node gives. `*`, `?` and `[…]` match nodes as in a shell. `out`: by default `policy-tapped.onnx` beside
    `policy.onnx`. Raises UnknownTapPoint with close names, and TapError for a file that is no model or exists.
    """
    path = Path(model)
    to = path.with_name(f"{path.stem}-tapped.onnx") if out is None else Path(out)
    if to.exists() and (not overwrite or to.samefile(path)):
        remedy = "name another" if to.samefile(path) else "name another, or give overwrite=True"
        raise TapError(f"{to} exists and is not overwritten; {remedy}")
    proto = _read(path)
    found = _resolve(_nodes(proto), (names,) if isinstance(names, str) else tuple(names), path)
    known = {info.name: info for info in _inferred(proto)}
    present = {output.name for output in proto.graph.output}
    for one in found:
        if one.output not in present:
            present.add(one.output)
            proto.graph.output.append(known.get(one.output) or _untyped(one.output))
    _write(proto, path, to)
    return found


def _resolve(infos: Sequence[NodeInfo], names: Sequence[str], path: Path) -> tuple[Exposed, ...]:
    by_name = {info.name: info for info in infos}
    tensors = {output for info in infos for output in info.outputs}
    found: dict[str, Exposed] = {}
    for name in names:
        below = [info for info in infos if info.name.startswith(f"{name.rstrip('/')}/")]
        if name in by_name:
            matched = [Exposed(name, by_name[name].outputs[0])]
        elif name in tensors:
            matched = [Exposed(name, name)]
        elif below and name:
            matched = [Exposed(name, below[-1].outputs[0])]
        else:
            matched = [Exposed(info.name, info.outputs[0]) for info in infos if fnmatchcase(info.name, name)]
        if not matched:
            raise UnknownTapPoint(_unknown(name, infos, path))
        found |= {one.name: one for one in matched}
    if not found:
        raise TapError(f"no node is named; il.onnx.nodes({str(path)!r}) lists them")
    return tuple(found.values())


def _unknown(name: str, infos: Sequence[NodeInfo], path: Path) -> str:
    known = list(dict.fromkeys(known for info in infos for known in (info.name, *info.outputs)))
    last = name.rstrip("/").rpartition("/")[2].lower()
    close = difflib.get_close_matches(name, known, n=_CLOSE, cutoff=0.5)
    close = list(dict.fromkeys(close + [one for one in known if last and last in one.lower()]))[:_CLOSE] or known[:_CLOSE]
    return f"no node or tensor {name!r} in {path.name}; close: {', '.join(close)}; il.onnx.nodes({str(path)!r}) lists all {len(infos)}"


def _nodes(proto: onnx.ModelProto) -> list[NodeInfo]:
    shapes = {info.name: _shape(info) for info in _inferred(proto)}
    present = {output.name for output in proto.graph.output}
    found = []
    for node in proto.graph.node:
        outputs = tuple(output for output in node.output if output)
        if outputs:
            found.append(NodeInfo(node.name or outputs[0], node.op_type, outputs, shapes.get(outputs[0]), outputs[0] in present))
    return found


def _inferred(proto: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Types and shapes of the graph's tensors, as far as they can be told."""
    package = _onnx()
    try:
        graph = package.shape_inference.infer_shapes(proto).graph
    except (package.shape_inference.InferenceError, ValueError, RuntimeError):  # operators of its own, or weights beyond 2 GB
        graph = proto.graph
    return [info for group in (graph.value_info, graph.output, graph.input) for info in group if info.type.WhichOneof("value") is not None]


def _shape(info: onnx.ValueInfoProto) -> tuple[int | str | None, ...] | None:
    tensor = info.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    return tuple(d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in tensor.shape.dim)


def _untyped(name: str) -> onnx.ValueInfoProto:
    info: onnx.ValueInfoProto = _onnx().ValueInfoProto(name=name)  # runtimes infer the type by themselves
    return info


def _onnx() -> Any:
    try:
        import onnx
        import onnx.shape_inference
    except ImportError as error:
        raise TapError("ONNX models need the package onnx: pip install 'interlatent-live[onnx]'") from error
    return onnx


def _read(path: Path) -> onnx.ModelProto:
    package = _onnx()
    decode_error: type[Exception] = import_module("google.protobuf.message").DecodeError
    try:
        proto: onnx.ModelProto = package.load(path, load_external_data=False)  # weights stay where they are
    except OSError as error:
        raise TapError(f"model {path} cannot be read: {error.strerror}") from error
    except (decode_error, ValueError) as error:
        raise TapError(f"{path} is no ONNX model: {error}") from error
    if not proto.graph.node:
        raise TapError(f"{path} is no ONNX model: it has no nodes")
    return proto


def _write(proto: onnx.ModelProto, path: Path, to: Path) -> None:
    external = any(one.HasField("data_location") and one.data_location == one.EXTERNAL for one in proto.graph.initializer)
    if external and to.parent.resolve() != path.parent.resolve():
        raise TapError(f"the weights of {path.name} lie in files beside it; write the copy into {path.parent.resolve()} as well")
    part = to.with_name(f".{to.name}.{os.getpid()}")
    try:
        part.write_bytes(proto.SerializeToString())
        part.replace(to)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise TapError(f"model {to} cannot be written: {error.strerror}") from error
