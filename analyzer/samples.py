"""Frames to learn from: pairs of activations with the episode each belongs to.

From arrays, or from a recording in one pass, bounded by MAX_FRAMES and MAX_BYTES (256 -> 128 wide: 1.5 KB a frame).
Split by whole episodes: frames of one episode resemble each other, so a split by frame would flatter the dictionary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from interlatent_live.analyzer.features import activations_of
from interlatent_live.analyzer.prompts import without_special
from interlatent_live.stream.errors import DictionaryError
from interlatent_live.stream.frames import FrameBatch

if TYPE_CHECKING:
    from interlatent_live.stream.reading import Recording

__all__ = ["MAX_FRAMES", "Samples", "samples_of"]

MAX_FRAMES: Final = 1_000_000
MAX_BYTES: Final = 2 << 30
"""Of activations held in memory."""
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """(n, d_in) inputs, (n, d_out) outputs and (n,) episode numbers, in the order of time."""

    x: Floats
    y: Floats
    episode: npt.NDArray[np.int64]
    input: str
    output: str
    model_hash: str = ""
    """The manifest's weights_hash."""
    step_period_s: float | None = None
    """Nominal time between the frames of one environment, in seconds."""
    num_envs: int = 1
    source: str = ""
    """Name of the recording."""
    unused: int = 0
    """Frames beyond the bound, left out."""
    step: npt.NDArray[np.int32] | None = None
    """(n,) steps within their episodes; None: whole episodes, from their first step on."""

    def __post_init__(self) -> None:
        if self.x.ndim != 2 or self.y.ndim != 2 or not len(self.x) == len(self.y) == len(self.episode):
            shapes = f"{self.x.shape}, {self.y.shape} and {self.episode.shape}"
            raise DictionaryError(f"inputs, outputs, episodes have shapes {shapes}; due: (n, d_in), (n, d_out), (n,)")
        if not len(self.x):
            raise DictionaryError(f"{self.source or 'the data'} has no frame with both {self.input} and {self.output}")
        for name in ("x", "y"):  # what torch takes without a copy or a warning
            object.__setattr__(self, name, np.require(getattr(self, name), np.float32, ["C", "W"]))
        for point, values in ((self.input, self.x), (self.output, self.y)):
            bad = int(np.count_nonzero(~np.isfinite(values).all(axis=1)))
            if bad:
                what = f"{bad} of {len(values)} frames at {point} hold NaN or infinity"
                raise DictionaryError(f"{what}; find out why before training on them")
            if not (values != values[0]).any():
                raise DictionaryError(f"{point} is the same in all {len(values)} frames; there is nothing to learn")

    @property
    def frames(self) -> int:
        """Number of frames."""
        return len(self.x)

    @property
    def episodes(self) -> int:
        """Number of episodes."""
        return len(np.unique(self.episode))

    @property
    def frames_a_second(self) -> int:
        """Frames in one second of frame time, for windows; 50 where the environment defines no period."""
        return max(1, round(self.num_envs / (self.step_period_s or 0.02)))

    def split(self, share: float, seed: int) -> tuple[Samples, Samples]:
        """(to fit, held out): about `share` of the episodes, chosen by `seed`, at least one on each side."""
        numbers = np.unique(self.episode)
        if len(numbers) < 2:
            raise DictionaryError(
                f"{self.source or 'the data'} has {len(numbers)} episode; at least 2 are needed, one to be held out: "
                "record longer, or over several episodes"
            )
        count = min(len(numbers) - 1, max(1, round(share * len(numbers))))
        mask = np.isin(self.episode, np.random.default_rng(seed).permutation(numbers)[:count])
        return self._where(~mask), self._where(mask)

    def _where(self, mask: npt.NDArray[np.bool_]) -> Samples:
        kept: dict[str, Any] = {name: getattr(self, name) for name in self.__slots__}
        return Samples(**(kept | {name: kept[name][mask] for name in ("x", "y", "episode", "step") if kept[name] is not None}))


def samples_of(
    recording: Recording, input_point: str, output_point: str | None = None, *, max_frames: int = MAX_FRAMES
) -> Samples:
    """All frames in which both points fired, in written order; for an SAE, one point is given."""
    output_point = output_point or input_point
    manifest = recording.manifest
    there = {p.name: math.prod(p.shape) for p in manifest.tap_points}
    for point in (input_point, output_point):
        if point not in there:
            names = ", ".join(there) or "none"
            raise DictionaryError(f"{recording.path.name} has no tap point {point!r}; it has {names}")
    max_frames = min(max_frames, MAX_BYTES // (4 * (there[input_point] + there[output_point] or 1)))
    xs: list[Floats] = []
    ys: list[Floats] = []
    keys: list[npt.NDArray[np.int64]] = []
    boots: dict[str, int] = {}
    taken = unused = 0
    for message in recording.messages():
        if not isinstance(message, FrameBatch):
            continue
        message = without_special(message)
        x, y = activations_of(message, manifest, input_point), activations_of(message, manifest, output_point)
        if x is None or y is None:
            continue
        rows, in_x, in_y = np.intersect1d(
            message.rows_of(input_point), message.rows_of(output_point), assume_unique=True, return_indices=True
        )
        room = max_frames - taken
        unused += max(0, len(rows) - room)
        rows, in_x, in_y = rows[:room], in_x[:room], in_y[:room]
        taken += len(rows)
        boot = boots.setdefault(message.boot, len(boots))
        columns = message.columns
        xs.append(x[in_x])
        ys.append(y[in_y])
        keys.append(np.stack([np.full(len(rows), boot), columns["env"][rows], columns["episode"][rows]], axis=1))
    if not taken:
        raise DictionaryError(f"{recording.path.name} has no frame with both {input_point} and {output_point}")
    _, episode = np.unique(np.concatenate(keys), axis=0, return_inverse=True)
    return Samples(
        np.concatenate(xs),
        np.concatenate(ys),
        episode.reshape(-1).astype(np.int64),
        input_point,
        output_point,
        manifest.weights_hash,
        manifest.step_period_s,
        manifest.num_envs,
        recording.path.name,
        unused,
    )
