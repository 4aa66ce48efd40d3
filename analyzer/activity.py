"""How often and how strongly each feature has been active since its section began: exact, without a window."""

from __future__ import annotations

import numpy as np

from interlatent_live.analyzer.codes import Codes

__all__ = ["Activity"]


class Activity:
    """Sums over the frames of one section. `maximum` and `total` are of |value|: neurons are active on either side."""

    def __init__(self, features: int) -> None:
        self.frames = 0
        self.active = np.zeros(features, np.uint32)
        self.maximum = np.zeros(features, np.float32)
        self.total = np.zeros(features, np.float64)

    def update(self, codes: Codes) -> None:
        """Add the rows of a batch."""
        self.frames += codes.rows
        if not codes.active:
            return
        strength = np.abs(codes.values)
        features = len(self.active)
        indices = codes.indices.astype(np.intp)
        self.active += np.bincount(indices, minlength=features).astype(np.uint32)
        self.total += np.bincount(indices, weights=strength, minlength=features)
        np.maximum.at(self.maximum, indices, strength)

    @property
    def alive(self) -> int:
        """Features active at least once."""
        return int(np.count_nonzero(self.active))
