"""From what the points of a language model kept to one array of rows for each of them, on the sender's thread.

Points whose tensors are alike come home together: one concatenation for all layers of a model costs about what a single
layer's does, and a model of thirty layers has sixty ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import Tensor

    from interlatent_live.agent_side.capture import Layout
    from interlatent_live.agent_side.lm_passes import Pass

__all__ = ["activations_of", "home", "host"]

Array = npt.NDArray[Any]


def activations_of(
    layouts: Sequence[Layout | None], passes: Sequence[Pass], widths: Sequence[int], row: Array, column: Array
) -> tuple[dict[str, Array], dict[str, Array]]:
    """(n, *shape) activations of the rows by tap point, in the order of `layouts`, and the (m,) rows that have them where not
    all do.

    `widths`: columns that count of each pass. `row`, `column`: (n,) where each row stands in the passes laid side by side.
    """
    known = [index for index, layout in enumerate(layouts) if layout is not None]
    groups = [known] if _alike(layouts, passes) else _grouped(layouts, known, passes)
    found: dict[int, tuple[Array, Array | None]] = {}
    for group in groups:
        found |= _together(group, layouts, passes, widths, row, column)
    activations: dict[str, Array] = {}
    present: dict[str, Array] = {}
    for index, layout in enumerate(layouts):
        if index in found and layout is not None:
            activations[layout.spec.name], fired = found[index]
            if fired is not None:
                present[layout.spec.name] = fired
    return activations, present


def _alike(layouts: Sequence[Layout | None], passes: Sequence[Pass]) -> bool:
    """Whether all points kept tensors of one shape, dtype and device in every pass: the usual case, and quickly seen."""
    if None in layouts or len({(layout.spec.shape, layout.spec.dtype, layout.raw) for layout in layouts if layout is not None}) != 1:
        return False
    return all(one.kept is not None and len({None if t is None else (t.shape, t.device) for t in one.kept}) == 1 for one in passes)


def _grouped(layouts: Sequence[Layout | None], known: Sequence[int], passes: Sequence[Pass]) -> list[list[int]]:
    """Points whose tensors are alike in every pass, each with its like."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for index in known:
        layout = layouts[index]
        assert layout is not None
        tensors = [None if one.kept is None else one.kept[index] for one in passes]
        seen = tuple(None if tensor is None else (tensor.shape[1], tensor.device) for tensor in tensors)
        groups.setdefault((layout.spec.dtype, layout.raw, layout.spec.shape, seen), []).append(index)
    return list(groups.values())


def _together(
    group: Sequence[int], layouts: Sequence[Layout | None], passes: Sequence[Pass], widths: Sequence[int], row: Array, column: Array
) -> dict[int, tuple[Array, Array | None]]:
    """Of points whose tensors have the same shapes, dtype and device in every pass."""
    layout = layouts[group[0]]
    assert layout is not None
    cuts: list[tuple[Pass, slice | None]] = []
    places: list[Array] = []
    begin = 0
    for one, wide in zip(passes, widths, strict=True):
        tensor = None if one.kept is None else one.kept[group[0]]
        if tensor is not None:
            offset = one.width - tensor.shape[1]  # of the pass: what passed were its last columns
            first = max(offset, one.skip)
            if one.keep > first:
                whole = first == offset and one.keep == one.width
                cuts.append((one, None if whole else slice(first - offset, one.keep - offset)))
                places.append(np.arange(begin + first - one.skip, begin + one.keep - one.skip))
        begin += wide
    if not cuts:
        return {}
    pieces: list[Any] = []
    for index in group:
        for one, cut in cuts:
            tensor = one.kept[index]  # type: ignore[index]
            pieces.append(tensor if cut is None else tensor[:, cut])  # type: ignore[index]
    covered = np.concatenate(places)
    values = home(pieces, layout.spec.dtype == "bfloat16")
    values = values.reshape(values.shape[0], len(group), len(covered), *values.shape[2:])
    place = np.full(begin, -1)
    place[covered] = np.arange(len(covered))
    held = place[column]
    fired = held >= 0
    which: Array | None = None
    if not fired.all():
        row, held = row[fired], held[fired]
        which = np.flatnonzero(fired).astype(np.int32)
    everything = which is None and values.shape[0] == 1 and len(held) == len(covered)
    shape, wire = (len(held), *layout.spec.shape), layout.wire
    return {
        index: ((values[0, i] if everything else values[row, i, held]).reshape(shape).astype(wire, copy=False), which)
        for i, index in enumerate(group)
    }


def home(tensors: Sequence[Tensor], bits: bool = False) -> Array:
    """Tensors side by side along the tokens, on the host in one transfer; `bits`: bfloat16 as uint16."""
    import torch

    joined = tensors[0] if len(tensors) == 1 else torch.cat(list(tensors), 1)
    if bits:
        return host(joined.contiguous().view(torch.int16)).view(np.uint16)
    return host(joined)


def host(tensor: Tensor) -> Array:
    """An array of a tensor anywhere; of one in the host's memory, of the same memory."""
    found: Array = tensor.cpu().numpy()
    return found
