"""What a dictionary learns from while its agent acts: frames of a stream in three bounded reservoirs, every one accounted for.

1. The first manifest that has both tap points says whose frames they are; frames of other weights, or of another layout, are
   refused and counted.
2. Every episode goes whole to one of three parts: to fit, to watch (the FVU that is shown meanwhile), or held out, which judges
   in the end. The second episode to appear is held out and the fourth is watched, so that there is something to judge on from
   the second on; from then on two of ten are held out and one is watched, at places drawn anew for every ten.
3. Of each part a bounded sample is kept (`analyzer.reservoir`): single frames to fit and to watch, whole seconds to judge.
   Weights that change make the sample one of recent frames.

    received = fit + watched + held_out + refused by reason           lost: by the sequence numbers, and not received
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from interlatent_live.analyzer.features import activations_of
from interlatent_live.analyzer.prompts import without_special
from interlatent_live.analyzer.reservoir import Reservoir
from interlatent_live.analyzer.samples import Samples
from interlatent_live.stream.errors import DictionaryError
from interlatent_live.stream.frames import FrameBatch
from interlatent_live.stream.ledger import SubscriberLedger
from interlatent_live.stream.manifest import Manifest
from interlatent_live.stream.wire import Bye, Heartbeat, Message

__all__ = ["MIN_FRAMES", "PARTS", "Intake", "Part", "suggested_points"]

Part = Literal["fit", "watch", "held_out"]
PARTS: Final[tuple[Part, ...]] = ("fit", "watch", "held_out")
SHARES: Final = {"fit": 0.7, "watch": 0.1, "held_out": 0.2}
"""Of the memory."""
MAX_FRAMES: Final = 200_000
MIN_FRAMES: Final = 256
"""Frames that a reservoir to fit must have room for."""
_EPISODES: Final = 1 << 16
"""Episodes whose part is remembered; older ones are over."""
_LARGEST: Final = 1e15
"""Beyond, a square leaves float32."""
_TEN: Final[tuple[Part, ...]] = ("fit", "held_out", "fit", "watch", "fit", "fit", "held_out", "fit", "fit", "fit")
"""Parts of the first ten episodes, and in another order of every ten that follow."""


def suggested_points(manifest: Manifest) -> tuple[str, str]:
    """Input and output to learn: the last tap point, predicted from the first one beside it (same parent module), else from itself.

    Raises DictionaryError for a stream without tap points.
    """
    names = [p.name for p in manifest.tap_points if math.prod(p.shape) > 0]
    if not names:
        raise DictionaryError(f"the stream of {manifest.run!r} has no tap point; tap a layer to learn from")
    parent = names[-1].partition(":")[0].rpartition(".")[0]
    return next(n for n in names if n.partition(":")[0].rpartition(".")[0] == parent), names[-1]


class Intake:
    """Takes in messages of one run; `run` None: the first one that appears. Points None: `suggested_points`."""

    def __init__(
        self, input_point: str | None = None, output_point: str | None = None, *, run: str | None = None, memory: int, seed: int = 0
    ) -> None:
        self.run, self.memory, self.seed = run, memory, seed
        self.input, self.output = input_point or "", output_point or input_point or ""
        self.manifest: Manifest | None = None
        """The first one that decided what is learned."""
        self.parts: dict[Part, Reservoir] = {}
        self.taken: Counter[str] = Counter()
        """Frames that went to each part, held there or not."""
        self.refused: Counter[str] = Counter()
        """Frames that arrived and are of no use, by reason."""
        self.episodes: Counter[str] = Counter()
        """Episodes that each part has seen."""
        self.versions: tuple[int, int] | None = None
        """Lowest and highest policy version of the frames taken."""
        self.ended = False
        """Whether the agent has said goodbye."""
        self._assigned: OrderedDict[tuple[str, int, int], tuple[int, Part]] = OrderedDict()
        self._widths = (0, 0)
        self._numbers = 0
        self._rng = np.random.default_rng([seed, 1])
        self._block: list[Part] = []
        self._manifests: dict[str, Manifest | None] = {}
        self._ledgers: dict[str, SubscriberLedger] = {}

    @property
    def received(self) -> int:
        """Frames that arrived."""
        return sum(ledger.received for ledger in self._ledgers.values())

    @property
    def lost(self) -> int:
        """Frames that did not arrive since the first one of their process did: dropped by the agent's queue, or on the wire."""
        return sum(ledger.queue_dropped + ledger.wire_lost for ledger in self._ledgers.values())

    @property
    def changing(self) -> bool:
        """Whether the weights changed, or may have, while the frames were made."""
        manifest, versions = self.manifest, self.versions
        return (manifest is not None and manifest.weights == "changing") or (versions is not None and versions[0] != versions[1])

    def take(self, message: Message) -> None:
        """Take in a message. Raises DictionaryError where the stream does not have the points asked for."""
        if not isinstance(message, (Manifest, FrameBatch, Heartbeat)):
            return
        if self.run is None:
            self.run = message.run
        if message.run != self.run:
            return
        if isinstance(message, Manifest):
            self._learn(message)
            return
        ledger = self._ledgers.setdefault(message.boot, SubscriberLedger())
        if isinstance(message, Heartbeat):
            ledger.bound(message)
            self.ended = isinstance(message, Bye) or self.ended
            return
        self.ended = False
        if ledger.batch(message) is not None:
            self._frames(message)

    def samples(self, part: Part, most: int | None = None) -> Samples:
        """Frames of a part, in the order of the stream; about `most` of them. Raises DictionaryError where there are none."""
        manifest = self.manifest
        if manifest is None or not self.parts:
            raise DictionaryError(f"no frame with both {self.input or 'an input'} and {self.output or 'an output'} has come")
        x, y, episode, step, _ = self.parts[part].columns(most)
        return Samples(
            x, y, episode, self.input, self.output, manifest.weights_hash, manifest.step_period_s, manifest.num_envs,
            f"live stream of {manifest.run}", step=step,
        )  # fmt: skip

    def _learn(self, manifest: Manifest) -> None:
        if manifest.hash in self._manifests:
            return
        if self.manifest is None:
            self._begin(manifest)
        first = self.manifest
        assert first is not None
        same = manifest.weights_hash == first.weights_hash and all(manifest.point(n) == first.point(n) for n in (self.input, self.output))
        self._manifests[manifest.hash] = manifest if same else None
        while len(self._manifests) > 64:
            del self._manifests[next(iter(self._manifests))]

    def _begin(self, manifest: Manifest) -> None:
        if not self.input:
            self.input, self.output = suggested_points(manifest)
        widths = []
        for name in (self.input, self.output):
            point = manifest.point(name)
            if point is None:
                there = ", ".join(p.name for p in manifest.tap_points) or "none"
                raise DictionaryError(f"the stream of {manifest.run!r} has no tap point {name!r}; it has {there}")
            widths.append(math.prod(point.shape))
        second = max(1, min(4096, round(manifest.num_envs / (manifest.step_period_s or 0.02))))
        lengths = {"fit": 1, "watch": 1, "held_out": second}
        parts: dict[Part, Reservoir] = {}
        for number, part in enumerate(PARTS):
            length = lengths[part]
            slots = int(min(self.memory / Reservoir.bytes_for(1, *widths), MAX_FRAMES) * SHARES[part]) // length
            if slots * length < MIN_FRAMES * SHARES[part] / SHARES["fit"]:
                raise DictionaryError(
                    f"a frame of {self.input} and {self.output} takes {4 * sum(widths)} bytes, so {self.memory >> 20} MiB hold less than "
                    f"{MIN_FRAMES} to fit and one second to judge on; give more memory, or learn a narrower layer"
                )
            changing = manifest.weights == "changing"
            parts[part] = Reservoir(slots, *widths, length=length, recent=changing, seed=self.seed * 8 + number)
        self.manifest, self.parts, self._widths = manifest, parts, (widths[0], widths[1])

    def _frames(self, batch: FrameBatch) -> None:
        manifest = self._manifests.get(batch.manifest_hash)
        if manifest is None:
            self.refused["no_manifest" if batch.manifest_hash not in self._manifests else "other_weights"] += batch.rows
            return
        found = self._activations(batch, manifest)
        if found is None:
            return
        rows, x, y = found
        columns = batch.columns
        env, episode = columns["env"][rows], columns["episode"][rows]
        pairs, inverse = np.unique(np.stack([env, episode], axis=1), axis=0, return_inverse=True)
        keys = [(batch.boot, int(e), int(n)) for e, n in pairs]
        assigned = [self._assign(key) for key in keys]
        inverse = inverse.reshape(-1)
        numbers = np.array([number for number, _ in assigned], np.int64)[inverse]
        which = np.array([PARTS.index(part) for _, part in assigned])[inverse]
        place = self.received - batch.rows + rows.astype(np.int64)
        for index, part in enumerate(PARTS):
            mine = which == index
            count = int(mine.sum())
            if count:
                self.taken[part] += count
                self.parts[part].offer(x[mine], y[mine], numbers[mine], columns["episode_step"][rows][mine], place[mine])
        versions = columns["policy_version"][rows]
        low, high = int(versions.min()), int(versions.max())
        self.versions = (low, high) if self.versions is None else (min(low, self.versions[0]), max(high, self.versions[1]))

    def _activations(self, batch: FrameBatch, manifest: Manifest) -> tuple[npt.NDArray[np.int32], Any, Any] | None:
        """Rows in which both points fired with finite values, and those; what is left out is counted."""
        parts = []
        batch = without_special(batch)
        for name, width in zip((self.input, self.output), self._widths, strict=True):
            try:
                values = activations_of(batch, manifest, name)
            except DictionaryError:  # integers that no manifest calls bfloat16
                values = np.empty((0, 0), np.float32)
            if values is None:
                self.refused["no_forward"] += batch.rows
                return None
            if values.shape[1] != width:
                self.refused["manifest_mismatch"] += batch.rows
                return None
            parts.append(values)
        x, y = parts
        rows = batch.rows_of(self.input)
        if self.input != self.output:
            at_output = batch.rows_of(self.output)
            if not np.array_equal(rows, at_output):
                rows, in_x, in_y = np.intersect1d(rows, at_output, assume_unique=True, return_indices=True)
                x, y = x[in_x], y[in_y]
        self.refused["no_forward"] += batch.rows - len(rows)
        with np.errstate(invalid="ignore"):
            good = (np.abs(x) < _LARGEST).all(axis=1) & (np.abs(y) < _LARGEST).all(axis=1)
        bad = len(rows) - int(good.sum())
        if bad:
            self.refused["non_finite"] += bad
            rows, x, y = rows[good], x[good], y[good]
        return (rows, x, y) if len(rows) else None

    def _assign(self, key: tuple[str, int, int]) -> tuple[int, Part]:
        """Number and part of an episode."""
        known = self._assigned.get(key)
        if known is not None:
            self._assigned.move_to_end(key)
            return known
        if not self._block:
            order = self._rng.permutation(len(_TEN)) if self._numbers else range(len(_TEN))
            self._block = [_TEN[i] for i in order][::-1]
        found = self._numbers, self._block.pop()
        self._numbers += 1
        self.episodes[found[1]] += 1
        self._assigned[key] = found
        if len(self._assigned) > _EPISODES:
            self._assigned.popitem(last=False)
        return found
