"""Why some actions were taken: rows of the table `attributions`, written once and read back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from interlatent_live.analyzer.blobs import pack_matrix, unpack_matrix
from interlatent_live.analyzer.writes import Writes
from interlatent_live.stream.attribution import Attribution

__all__ = ["AttributionRow", "attribute", "decode"]

Ints = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class AttributionRow:
    """Why the action of frame `seq`; a actions, f features. For each action, total = sum of contributions + bias + error + rest."""

    run: str
    boot: str
    env: int
    seq: int
    step: int
    monotonic_ns: int
    wall_ns: int
    dictionary_hash: str
    kind: str
    """Of the scores: 'logits', 'means', 'q', 'scores'."""
    chosen: int | None
    """Number of the discrete action that was taken."""
    action_count: int
    names: tuple[str, ...]
    """(a,) '' where an action has no name."""
    actions: Ints
    """(a,) their numbers."""
    total: Floats
    """(a,) the scores."""
    bias: Floats
    error: Floats
    rest: Floats
    features: Ints
    """(f,) rising."""
    activations: Floats
    """(f,)"""
    contributions: Floats
    """(f, a)"""


def attribute(found: Attribution, writes: Writes) -> None:
    """Keep an attribution; one of the same frame stays as it is."""
    writes.insert_once(
        "attributions",
        run=found.run,
        boot=found.boot,
        env=found.env,
        seq=found.seq,
        step=found.step,
        monotonic_ns=found.monotonic_ns,
        wall_ns=found.wall_ns,
        dictionary_hash=found.dictionary,
        kind=found.kind,
        chosen=None if found.chosen < 0 else found.chosen,
        action_count=found.action_count,
        names=json.dumps(found.names),
        actions=pack_matrix(found.actions, "<i4"),
        **{name: pack_matrix(getattr(found, name)) for name in ("total", "bias", "error", "rest")},
        features=pack_matrix(found.features, "<i4"),
        activations=pack_matrix(found.values),
        contributions=pack_matrix(found.contributions),
    )


def decode(row: tuple[Any, ...]) -> Sequence[Any]:
    """A row of the table in the types of `AttributionRow`."""
    names = tuple(json.loads(row[11]))
    actions = unpack_matrix(row[12], len(names), dtype="<i4")
    scores = (unpack_matrix(blob, len(names)) for blob in row[13:17])
    features = unpack_matrix(row[17], -1, dtype="<i4")
    parts = unpack_matrix(row[18], len(features)), unpack_matrix(row[19], len(features), len(names))
    return (*row[:11], names, actions, *scores, features, *parts)
