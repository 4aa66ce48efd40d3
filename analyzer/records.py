"""What the store's tables hold, as plain rows; one class per table, its fields the columns that a reader is given.

Times are the agent's clocks unless named otherwise; what could not be computed is None, or NaN in a matrix. No torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from interlatent_live.analyzer.codes import Codes

__all__ = [
    "Activity",
    "BatchRow",
    "Boot",
    "CodesRow",
    "DictionaryRow",
    "Drift",
    "Episode",
    "Event",
    "GapRow",
    "LedgerRow",
    "Peak",
    "PictureRow",
    "Quality",
    "ScalarRow",
    "Section",
    "Snapshot",
    "TopCorrelation",
]

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Boot:
    """One process of the agent."""

    run: str
    boot: str
    manifest_hash: str | None
    started_wall_ns: int | None
    ended: int
    """1 once the agent has said goodbye."""


@dataclass(frozen=True, slots=True)
class DictionaryRow:
    """What gives features."""

    hash: str
    name: str
    kind: str
    """'neurons', 'topk', 'relu', 'jumprelu'."""
    point: str
    features: int
    cfg: Mapping[str, Any]
    card: Mapping[str, Any] | None
    path: str | None


@dataclass(frozen=True, slots=True)
class Section:
    """A stretch of one boot analysed by one dictionary without interruption; frames [first_seq, next_seq)."""

    id: int
    run: str
    boot: str
    point: str
    dictionary_hash: str
    manifest_hash: str
    first_seq: int
    next_seq: int
    reason: str
    mismatch: int


@dataclass(frozen=True, slots=True)
class BatchRow:
    """One FrameBatch as committed; times on the agent's clocks."""

    id: int
    run: str
    boot: str
    first_seq: int
    rows: int
    manifest_hash: str
    first_step: int
    last_step: int
    first_monotonic_ns: int
    last_monotonic_ns: int
    first_wall_ns: int
    last_wall_ns: int
    columns: Mapping[str, Array]
    """(rows, …) by name, see stream.frames."""


@dataclass(frozen=True, slots=True)
class CodesRow:
    """Active features of the encoded rows of a batch."""

    batch_id: int
    section_id: int
    active: int
    encoded: int
    non_finite: int
    sse: float | None
    sst: float | None
    rows: Array
    """(encoded,) int32: the rows of the batch that `codes` holds, rising; the others are missing, not inactive."""
    codes: Codes


@dataclass(frozen=True, slots=True)
class Episode:
    """One episode of one environment; `return_` NULL where it cannot be known."""

    env: int
    episode: int
    first_seq: int
    last_seq: int
    steps: int
    return_: float | None
    complete: int
    terminated: int
    truncated: int


@dataclass(frozen=True, slots=True)
class Event:
    """A contiguous span in which a feature was active."""

    id: int
    section_id: int
    feature: int
    env: int
    episode: int
    first_seq: int
    last_seq: int
    first_step: int
    last_step: int
    frames: int
    peak: float
    peak_seq: int
    mean: float
    ended_by: str


@dataclass(frozen=True, slots=True)
class Peak:
    """A kept window around a feature's strong activity."""

    section_id: int
    feature: int
    seq: int
    env: int
    episode: int
    step: int
    value: float
    window_first_seq: int
    window_next_seq: int


@dataclass(frozen=True, slots=True)
class Quality:
    """One second of frame time."""

    section_id: int
    first_seq: int
    next_seq: int
    frames: int
    fvu: float | None
    l0: float | None


@dataclass(frozen=True, slots=True)
class Drift:
    """An alarm."""

    id: int
    section_id: int
    kind: str
    measure: str
    first_seq: int
    last_seq: int
    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class GapRow:
    """Frames [first_seq, next_seq) of which `lost` are missing for `reason`."""

    first_seq: int
    next_seq: int
    reason: str
    lost: int


@dataclass(frozen=True, slots=True)
class LedgerRow:
    """The accounts of one boot."""

    run: str
    boot: str
    next_seq: int
    queue_dropped_seen: int
    produced: int
    queue_dropped: int
    recorded: int | None
    record_failed: int | None
    subscriber_queue_dropped: int
    not_subscribed: int
    wire_lost: int
    received: int
    analyzed: int
    refused: Mapping[str, int]
    """Messages refused, by reason."""
    status: Mapping[str, float]
    """The agent's own numbers: overhead_us_median, steps_per_s, …"""
    latency_p50_ms: float | None
    latency_p99_ms: float | None
    updated_wall_ns: int
    """The analyzer's clock."""


@dataclass(frozen=True, slots=True)
class PictureRow:
    """What environment `env` looked like when frame `seq` was acted on; JPEG."""

    env: int
    seq: int
    wall_ns: int
    width: int
    height: int
    data: bytes


@dataclass(frozen=True, slots=True)
class ScalarRow:
    """What the training loop logged before step `step`, under weights of `policy_version`."""

    name: str
    seq: int
    """Number among the boot's rows of scalars."""
    step: int
    monotonic_ns: int
    wall_ns: int
    policy_version: int
    value: float | None
    """None: NaN was logged."""


@dataclass(frozen=True, slots=True)
class TopCorrelation:
    """One of the strongest pairs of a snapshot."""

    feature: int
    metric: str
    r: float | None
    n: int | None
    n_eff: float | None
    low: float | None
    high: float | None
    q: float | None
    significant: int | None
    observed: float


@dataclass(frozen=True, slots=True, eq=False)
class Activity:
    """How often and how strongly each feature was active since the section began."""

    section_id: int
    next_seq: int
    frames: int
    active: npt.NDArray[np.uint32]
    """(features,) frames in which it was active."""
    maximum: npt.NDArray[np.float32]
    """(features,)"""
    total: npt.NDArray[np.float64]
    """(features,) sum of its activations."""


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """Every live feature with every metric; matrices (f, m) float32, NaN where undefined."""

    id: int
    section_id: int
    span: str
    """'rolling' (the last minute) or 'start' (since the section began)."""
    next_seq: int
    frames: int
    metrics: tuple[str, ...]
    features: npt.NDArray[np.uint32]
    """(f,) feature numbers, rising."""
    r: npt.NDArray[np.float32]
    n: npt.NDArray[np.float32]
    n_eff: npt.NDArray[np.float32]
    low: npt.NDArray[np.float32]
    high: npt.NDArray[np.float32]
    q: npt.NDArray[np.float32]
