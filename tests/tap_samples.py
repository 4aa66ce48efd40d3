"""What the tests of the tap share: small policies, and reading back what a tap recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from interlatent_live.stream.frames import FrameBatch
from interlatent_live.stream.manifest import Manifest
from interlatent_live.stream.reading import Recording
from interlatent_live.stream.wire import Bye, Picture

__all__ = ["Recorded", "mlp"]


def mlp(width: int = 8, inputs: int = 4) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(inputs, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 2))


class Recorded:
    """A closed recording, all batches joined."""

    def __init__(self, path: Path) -> None:
        messages = list(Recording(path).messages())
        self.manifest = [m for m in messages if isinstance(m, Manifest)][-1]
        self.batches = [m for m in messages if isinstance(m, FrameBatch)]
        self.pictures = [m for m in messages if isinstance(m, Picture)]
        (self.bye,) = [m for m in messages if isinstance(m, Bye)]

    @property
    def seq(self) -> list[int]:
        return [int(n) for batch in self.batches for n in batch.seq]

    def column(self, name: str) -> np.ndarray[Any, Any]:
        return np.concatenate([batch.columns[name] for batch in self.batches])

    def metric(self, name: str) -> np.ndarray[Any, Any]:
        return self.column("metrics")[:, self.manifest.metric_names.index(name)]

    def fired(self, point: str) -> list[int]:
        """Sequence numbers of the frames that have an activation of `point`."""
        return [batch.first_seq + int(row) for batch in self.batches if point in batch.activations for row in batch.rows_of(point)]

    def activations(self, point: str) -> np.ndarray[Any, Any]:
        return np.concatenate([batch.activations[point] for batch in self.batches if point in batch.activations])
