"""Rows become batches here, on the sender's thread: the agent hands over plain tuples, and all conversion waits until
now.

A row is one step of all environments. Rows are transposed in one go (`zip`), their bytes joined and read as one array;
that costs about 1 µs a frame, which matters because the agent cannot run Python meanwhile.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from operator import countOf, itemgetter
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from interlatent_live.agent_side.capture import Capture, Kept, Layout
from interlatent_live.agent_side.metrics import Metric, elements, terms
from interlatent_live.stream.frames import FrameBatch
from interlatent_live.stream.manifest import ActionSpec, Manifest
from interlatent_live.stream.wire import MAX_MESSAGE_BYTES

__all__ = ["Row", "Stacker", "acting", "hand_over"]

MAX_METRICS: Final = 256
_NONE: Final = type(None)
_HANDED: Final = itemgetter(12)
_NUMBERS: Final = frozenset({bool, int, float, np.bool_, np.int64, np.int32, np.float64, np.float32})
_MAX_BATCH_FRAMES: Final = 4096
_MAX_BATCH_BYTES: Final = 16 << 20

Array: TypeAlias = npt.NDArray[Any]
Applied: TypeAlias = "tuple[tuple[int, tuple[bool, ...] | None], ...]"
"""Numbers of interventions, and the environments on which they acted (None: all)."""

Row: TypeAlias = tuple[
    int,  # sequence number of its first frame
    int,  # step
    int,  # CLOCK_MONOTONIC, ns
    "tuple[Kept | None, ...]",  # by tap point: the activations of all environments
    Any,  # observation of all environments: bytes of an array, something to be converted, or None
    "np.dtype[Any] | None",  # of those bytes
    Any,  # action, likewise
    "np.dtype[Any] | None",
    Any,  # reward: a number, (num_envs,) or None
    Any,  # terminated, likewise
    Any,  # truncated, likewise
    "Array | None",  # values of the metrics that are functions, (num_envs, functions)
    "Mapping[str, Any] | None",  # metrics handed to step: a number or (num_envs,) each
    Any,  # episode: a number or (num_envs,)
    Any,  # step in which that episode began, likewise
    int,  # forward_age
    int,  # policy_version
    "int | None",  # the time by the caller's own clock, ns; None: it gave none
    "Applied | None",  # interventions that acted on the step's forward pass
    "Array | None",  # (num_envs,) bool: which environments have a frame; None: all
]
"""One step of all environments, as it waits in the queue."""


def hand_over(value: Any) -> tuple[Any, np.dtype[Any] | None]:
    """A copy of an observation or action that the caller may overwrite: bytes and their dtype, or what the sender's
    thread converts.

    What is no array of numbers (a mapping, an object) gives None.
    """
    if isinstance(value, np.ndarray):
        return (value.tobytes(), value.dtype) if value.dtype.kind in "fiub" else (None, None)
    if isinstance(value, (bool, int, float, np.generic)) or value is None:
        return value, None
    if hasattr(value, "detach"):
        return value.detach().clone(), None  # stays on its device: waiting for it is the sender's
    if isinstance(value, (list, tuple)):
        return hand_over(np.asarray(value))
    return None, None


class Stacker:
    """Makes batches and the manifest that describes them; for the sender's thread alone."""

    def __init__(
        self,
        capture: Capture,
        manifest: Manifest,
        metrics: Sequence[Metric] | None,
        complain: Callable[[str], None],
    ) -> None:
        """`manifest`: all that is known before the first row. `metrics`: None takes those of the environment or of its
        observation."""
        self.next_seq = 0
        self.queue_dropped = 0
        self.stacked: Manifest | None = None
        """The manifest of the last batch."""
        self._capture, self._base, self._complain = capture, manifest, complain
        self._declared = metrics
        self._metrics: tuple[Metric, ...] = tuple(metrics or ())
        self._functions = [m.name for m in self._metrics if callable(m.source)]
        self._handed: list[str] = []
        self._columns: dict[str, int] = {}
        self._observation = -1
        """Elements of an observation; -1: none seen."""
        self._action = manifest.action
        self._known: tuple[Any, ...] = ()
        self._own_clock = False

    def batches(self, rows: Sequence[Row]) -> Iterator[FrameBatch]:
        """Batches of consecutive frames, all under one manifest; rows that the queue dropped before or between are
        counted."""
        self._learn(rows)
        envs, row_bytes = self._capture.num_envs, self._capture.row_bytes()
        most = max(1, min(_MAX_BATCH_FRAMES // envs, _MAX_BATCH_BYTES // max(1, row_bytes)))
        begin = 0
        for end in (*_cuts(rows, envs), len(rows)):
            for first in range(begin, end, most):
                yield from self._stack(rows[first : min(first + most, end)])
            begin = end

    @property
    def sources(self) -> Mapping[str, Any]:
        """Where the number of each metric comes from, by name: an index of the observation, (index,) among the metrics that
        are functions, or None: it is handed to `step`."""
        found: dict[str, Any] = {
            metric.name: metric.source if isinstance(metric.source, int) else None for metric in self._metrics
        }  # fmt: skip
        return found | {name: (i,) for i, name in enumerate(self._functions)} | dict.fromkeys(self._handed)

    def _stack(self, rows: Sequence[Row]) -> Iterator[FrameBatch]:
        first_seq = rows[0][0]
        self.queue_dropped += first_seq - self.next_seq
        last = rows[-1]
        self.next_seq = last[0] + _frames(last, self._capture.num_envs)
        try:
            batch = self._batch(rows, first_seq)
        except (ValueError, TypeError, RuntimeError, OverflowError) as error:
            # such frames are lost, and the ledger has one place for what the agent's side loses
            self.queue_dropped += self.next_seq - first_seq
            self._complain(f"{self.next_seq - first_seq} frames could not be stacked ({type(error).__name__}: {error})")
            return
        yield from _bounded(batch)

    def _batch(self, rows: Sequence[Row], first_seq: int) -> FrameBatch:
        manifest = self.stacked
        assert manifest is not None
        n, envs = len(rows), self._capture.num_envs
        (_, steps, clocks, kept, observed, observed_dtypes, acted, acted_dtypes, rewards, terminated, truncated, functions, handed,
         episodes, begins, ages, versions, stamps, applied, valid) = zip(*rows, strict=True)  # fmt: skip
        select: Array | None = None
        if not _all_none(valid):
            select = np.concatenate([np.ones(envs, bool) if mask is None else mask for mask in valid])
        pick = _Pick(n, envs, select)
        step, clock = np.array(steps, np.int64), np.array(clocks, np.int64)
        columns: dict[str, Array] = {
            "step": pick.steps(step),
            "env": pick.environments(),
            "episode": pick.each(episodes, np.int32),
            "monotonic_ns": pick.steps(clock if _all_none(stamps) else _stamped(clock, stamps)),
            "wall_ns": pick.steps(clock + (time.time_ns() - time.monotonic_ns())),
            "policy_version": pick.steps(np.array(versions, np.int32)),
            "forward_age": pick.steps(np.array(ages, np.int32)),
        }
        columns["episode_step"] = (columns["step"] - pick.each(begins, np.int64)).astype(np.int32)
        observation = self._matrix(observed, observed_dtypes, envs, self._observation) if self._observation >= 0 else None
        if observation is not None:
            columns["observation"] = pick.rows(observation).astype(np.float32, copy=False)
        if manifest.metrics:
            columns["metrics"] = pick.rows(self._values(n, envs, observation, functions, handed))
        if manifest.action.kind != "unknown":
            wide = max(1, math.prod(manifest.action.shape))
            action = self._matrix(acted, acted_dtypes, envs, wide)
            if action is not None:
                columns["action"] = pick.rows(action).astype(np.int64 if action.dtype.kind in "iub" else np.float32, copy=False)
        outcomes = (("reward", rewards, np.float64), ("terminated", terminated, np.bool_), ("truncated", truncated, np.bool_))
        for name, items, dtype in outcomes:
            if not _all_none(items):
                absent = math.nan if name == "reward" else False
                given = [absent if item is None else item for item in items] if _NONE in map(type, items) else items
                columns[name] = pick.each(given, dtype)
        if not _all_none(applied):
            columns["intervention"] = pick.rows(acting(applied, envs))
        activations, present = self._activations(kept, pick)
        return FrameBatch(manifest.run, manifest.boot, manifest.hash, first_seq, self.queue_dropped, columns, activations, present)

    def _activations(self, kept: Sequence[tuple[Kept | None, ...]], pick: _Pick) -> tuple[dict[str, Array], dict[str, Array]]:
        activations: dict[str, Array] = {}
        present: dict[str, Array] = {}
        points = len(self._layouts)  # arrays may have added some since the first row
        alike = all(len(row) == points for row in kept)
        columns = zip(*(kept if alike else [(*row, *[None] * (points - len(row))) for row in kept]), strict=True)
        for i, (layout, items) in enumerate(zip(self._layouts, columns, strict=True)):
            if layout is None:
                continue
            good: Sequence[Kept] = [item for item in items if item is not None]
            values = _join(good, layout, pick.envs)
            if values is None:
                wanted = layout.frame_bytes * pick.envs
                items = tuple(item if item is not None and _size(item) == wanted else None for item in items)
                good = [item for item in items if item is not None]
                self._capture.fail(i, "the dtype changed under way; such frames are kept without it")
                values = _join(good, layout, pick.envs)
                assert values is not None
            name = layout.spec.name
            if len(good) == len(items):
                activations[name] = pick.rows(values)
            else:
                fired = np.array([item is not None for item in items])
                activations[name] = values if pick.select is None else values[pick.select[np.repeat(fired, pick.envs)]]
                present[name] = np.nonzero(pick.steps(fired))[0].astype(np.int32)
        return activations, present

    def _values(
        self, n: int, envs: int, observation: Array | None, functions: Sequence[Array | None], handed: Sequence[Mapping[str, Any] | None]
    ) -> Array:
        """(n * envs, metrics) float64, NaN where unknown."""
        values = np.full((n * envs, len(self._columns)), np.nan)
        for metric in self._metrics:
            if isinstance(metric.source, int) and observation is not None and metric.source < observation.shape[1]:
                values[:, self._columns[metric.name]] = observation[:, metric.source]
        if self._functions:
            at = [self._columns[name] for name in self._functions]
            for i, evaluated in enumerate(functions):
                if evaluated is not None:
                    values[i * envs : (i + 1) * envs, at] = evaluated
        rows = () if _all_none(handed) else handed
        if envs == 1 and rows and (columns := _plain(rows)):
            for name, numbers in columns.items():
                if name in self._columns:
                    values[:, self._columns[name]] = numbers
            return values
        for i, given in enumerate(rows):
            for name, value in (given or {}).items():
                column = self._columns.get(name)
                if column is not None and value is not None:
                    values[i * envs : (i + 1) * envs, column] = _numbers(value)
        return values

    def _matrix(self, items: Sequence[Any], dtypes: Sequence[Any], envs: int, wide: int) -> Array | None:
        """(n * envs, wide) array of what was handed over; rows without, or of another size, are NaN. None if there is
        nothing."""
        n, dtype = len(items), dtypes[0]
        if dtype is not None and dtypes.count(dtype) == n:
            joined = b"".join(items)
            if len(joined) == n * envs * wide * dtype.itemsize:
                return np.frombuffer(joined, dtype).reshape(n * envs, wide)
        elif envs * wide == 1 and set(map(type, items)) <= _NUMBERS:
            return np.array(items).reshape(n, 1)
        parts: list[Array] = []
        for item, kind in zip(items, dtypes, strict=True):
            part = np.frombuffer(item, kind) if kind is not None else np.asarray(math.nan if item is None else _numbers(item))
            if part.size != envs * wide:
                if item is not None:
                    self._complain(f"an observation or action has {part.size} elements instead of {envs * wide}; it is left out")
                part = np.full(envs * wide, np.nan)
            parts.append(part.reshape(envs, wide))
        found = np.concatenate(parts)
        return None if found.dtype.kind == "f" and all(item is None for item in items) else found

    def _learn(self, rows: Sequence[Row]) -> None:
        """Extend the manifest by what these rows show for the first time."""
        self._layouts: tuple[Layout | None, ...] = tuple(self._capture.layouts)
        envs = self._capture.num_envs
        if not self._own_clock and rows[-1][17] is not None:  # after the first stamp, every row has a time by that clock
            ahead = next((row[17] - row[2] for row in rows if row[17] is not None), None)
            if ahead is not None:  # the caller's clock is none of this host's, so nobody may compare the two
                self._own_clock = True
                started = max(0, self._base.started_monotonic_ns + ahead)
                self._base, self.stacked = replace(self._base, host_boot="", started_monotonic_ns=started), None
        if self._observation < 0:
            item, dtype = next(((row[4], row[5]) for row in rows if row[4] is not None), (None, None))
            if item is not None:
                size = len(item) // dtype.itemsize if dtype is not None else int(np.asarray(_numbers(item)).size)
                self._observation = size // envs
                if self._declared is None:
                    named = terms(self._base.environment)
                    self._metrics = named or elements(self._observation, self._base.observation_names)
        if self._action.kind == "unknown":
            item, dtype = next(((row[6], row[7]) for row in rows if row[6] is not None), (None, None))
            if item is not None:
                self._action = _action_spec(item, dtype, envs, self._action.names)
        known = set(self._columns) | {m.name for m in self._metrics}
        for given in filter(None, map(_HANDED, rows)):
            if not known.issuperset(given):
                for name in given:
                    if name not in known and len(known) < MAX_METRICS:
                        known.add(name)
                        self._handed.append(name)
        metrics = (*self._metrics, *(Metric(name, scope="transition") for name in self._handed))
        found = (self._layouts, self._observation, self._action, metrics)
        if found != self._known or self.stacked is None:
            self._known = found
            self._columns = {metric.name: i for i, metric in enumerate(metrics)}
            self.stacked = replace(
                self._base,
                num_envs=envs,
                tap_points=tuple(layout.spec for layout in self._layouts if layout is not None),
                metrics=tuple(metric.spec for metric in metrics),
                observation_shape=(self._observation,) if self._observation >= 0 else (),
                observation_names=self._base.observation_names if len(self._base.observation_names) == self._observation else (),
                action=self._action,
            )


class _Pick:
    """From steps × environments to frames: all of them, or those that are valid."""

    def __init__(self, n: int, envs: int, select: Array | None) -> None:
        self.n, self.envs, self.select = n, envs, select

    def rows(self, values: Array) -> Array:
        """Of one value per step and environment, (n * envs, …)."""
        return values if self.select is None else values[self.select]

    def steps(self, values: Array) -> Array:
        """Of one value per step, (n,)."""
        return self.rows(values if self.envs == 1 else np.repeat(values, self.envs))

    def environments(self) -> Array:
        return self.rows(np.zeros(self.n, np.int32) if self.envs == 1 else np.tile(np.arange(self.envs, dtype=np.int32), self.n))

    def each(self, items: Sequence[Any], dtype: npt.DTypeLike) -> Array:
        """Of one number, or one (envs,) array, per step."""
        if self.envs == 1:
            try:
                return self.rows(np.array(items, dtype).reshape(self.n))
            except (TypeError, ValueError):  # tensors, or arrays of one element beside numbers
                return self.rows(np.array([float(_numbers(item).reshape(-1)[0]) for item in items]).astype(dtype))
        return self.rows(np.concatenate([np.broadcast_to(_numbers(item), (self.envs,)) for item in items]).astype(dtype))


def acting(applied: Sequence[Applied | None], envs: int) -> Array:
    """(n * envs, m) int32 numbers, rising, then -1."""
    most = max(len(acts) for acts in applied if acts is not None)
    found = np.full((len(applied), envs, most), -1, np.int32)
    for step, acts in enumerate(applied):
        for env in range(envs if acts else 0):
            numbers = [number for number, where in acts or () if where is None or where[env]]
            found[step, env, : len(numbers)] = sorted(numbers)
    return found.reshape(len(applied) * envs, most)


def _stamped(clock: Array, stamps: Sequence[int | None]) -> Array:
    return np.array([at if stamp is None else stamp for at, stamp in zip(clock, stamps, strict=True)], np.int64)


def _all_none(items: Sequence[Any]) -> bool:
    return items[0] is None and countOf(map(type, items), _NONE) == len(items)  # comparing would ask arrays for their truth


def _plain(rows: Sequence[Mapping[str, Any] | None]) -> dict[str, list[float]]:
    """Columns of rows that all hold floats under the same names, as adapters hand over; {} if they are not so."""
    first = rows[0]
    if not first or any(row is None or row.keys() != first.keys() for row in rows):
        return {}
    found = {name: [row[name] for row in rows if row is not None] for name in first}
    return found if all(type(value) is float for column in found.values() for value in column) else {}


def _numbers(value: Any) -> Array:
    """An array of anything that holds numbers; waits for a device."""
    if hasattr(value, "detach"):
        tensor = value.detach().cpu()
        value = tensor.float().numpy() if tensor.is_floating_point() else tensor.numpy()
    return np.asarray(value)


def _action_spec(item: Any, dtype: np.dtype[Any] | None, envs: int, names: tuple[str, ...]) -> ActionSpec:
    values = _numbers(item) if dtype is None else np.frombuffer(item, dtype)
    wide = values.size // envs
    if values.dtype.kind in "iub":
        return ActionSpec("discrete", () if wide == 1 else (wide,), names)
    return ActionSpec("continuous", (wide,), names)


def _size(item: Kept) -> int:
    return len(item) if isinstance(item, bytes) else item.numel() * item.element_size()


def _join(items: Sequence[Kept], layout: Layout, envs: int) -> Array | None:
    """(items * envs, *shape) in the wire's dtype, or None if the bytes are not those of the layout."""
    of_bytes: list[Any] = list(items)
    joined = b"".join(of_bytes) if set(map(type, items)) <= {bytes} else _bring(items)
    if len(joined) != len(items) * envs * layout.frame_bytes:
        return None
    values = np.frombuffer(joined, layout.raw).reshape(len(items) * envs, *layout.spec.shape)
    return values.view(layout.wire) if layout.spec.dtype == "bfloat16" else values.astype(layout.wire, copy=False)


def _bring(items: Sequence[Any]) -> bytes:
    """The bytes of tensors on a device, in one transfer where they are alike."""
    import torch

    if len({(item.device, item.dtype, item.shape) for item in items if not isinstance(item, bytes)}) == 1 and not any(
        isinstance(item, bytes) for item in items
    ):
        together: bytes = torch.stack(list(items)).cpu().numpy().tobytes()
        return together
    return b"".join(item if isinstance(item, bytes) else item.cpu().numpy().tobytes() for item in items)


def _frames(row: Row, envs: int) -> int:
    mask = row[-1]
    return envs if mask is None else int(mask.sum())


def _cuts(rows: Sequence[Row], envs: int) -> list[int]:
    """Where the sequence numbers jump: the queue dropped rows while it was being drained."""
    if envs == 1 and rows[-1][0] - rows[0][0] == len(rows) - 1:
        return []
    return [i for i, (a, b) in enumerate(pairwise(rows), 1) if b[0] != a[0] + _frames(a, envs)]


def _bounded(batch: FrameBatch) -> Iterator[FrameBatch]:
    """`batch`, or pieces of it that fit a message: one step of very many environments can be too large."""
    if batch.nbytes <= MAX_MESSAGE_BYTES // 2 or batch.rows == 1:
        yield batch
        return
    middle = batch.rows // 2
    for begin, end in ((0, middle), (middle, batch.rows)):
        activations: dict[str, Array] = {}
        present: dict[str, Array] = {}
        for name, values in batch.activations.items():
            index = batch.rows_of(name)
            low, high = np.searchsorted(index, (begin, end))
            activations[name] = values[low:high]
            if name in batch.present:
                present[name] = index[low:high] - np.int32(begin)
        columns = {name: column[begin:end] for name, column in batch.columns.items()}
        piece = replace(batch, first_seq=batch.first_seq + begin, columns=columns, activations=activations, present=present)
        yield from _bounded(piece)
