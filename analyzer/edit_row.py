"""The change that one edit makes, prepared once and taken every step: what `edit.edited` gives, cheaper for a single row.

A step of one agent is one row, for which a dozen small torch calls cost 50 to 100 µs; the same in numpy, on the columns
that the edit needs, costs 5 (15 for 'topk', whose features compete: all of them have to be computed). Several rows, and
tensors on a device, go through torch. Equal to `edited` up to the rounding of float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from interlatent_live.analyzer.dictionary import Dictionary
from interlatent_live.analyzer.edit import Edit, after_edit, feature_values

__all__ = ["PreparedEdit"]


class PreparedEdit:
    """One edit with a dictionary (None for a direction). For one thread."""

    def __init__(self, edit: Edit, dictionary: Dictionary | None) -> None:
        """Raises DictionaryError where the dictionary has no such feature, or the direction another width."""
        self.edit, self._dictionary = edit, dictionary
        self._moved: dict[torch.device, Dictionary] = {}
        self._direction: torch.Tensor | None = None
        self._vector: Any = None
        self._row: _Row | None = None
        if edit.direction is not None:
            self._direction = torch.tensor(edit.direction, dtype=torch.float32) * edit.strength
            self._vector = self._direction.numpy()
        elif dictionary is None:
            raise TypeError("a feature is a dictionary's")
        if dictionary is not None:
            edit.check(dictionary)
            if edit.feature is not None and dictionary.W_enc.device.type == "cpu":
                self._row = _Row(edit, edit.feature, dictionary)

    def row(self, x: Any) -> Any:
        """The same for one row in the host's memory: x (d_in,) -> (d_out,) float32 arrays, or None."""
        if self._vector is not None:
            return None if self.edit.strength == 0 else self._vector
        if self._row is not None:
            return self._row.change(x)
        found = self.change(torch.from_numpy(x)[None])
        return None if found is None else found[0].numpy()

    def change(self, x: torch.Tensor) -> torch.Tensor | None:
        """x (n, d_in) float32 -> (n, d_out) what is to be added to y; None where that is nothing.

        Rows of zeros are rows that do not change; y + 0 would lose the sign of a zero.
        """
        edit = self.edit
        if self._direction is not None:
            return None if edit.strength == 0 else self._direction.to(x.device).expand(len(x), -1)
        if self._row is not None and len(x) == 1 and x.device.type == "cpu":
            change = self._row.change(x.detach().numpy()[0])
            return None if change is None else torch.from_numpy(change)[None]
        dictionary = self._on(x.device)
        assert edit.feature is not None
        before = feature_values(dictionary, x.detach(), [edit.feature])
        delta = after_edit(edit, before) - before
        if x.device.type == "cpu" and not bool(delta.any()):  # asking a device would wait for it
            return None
        return delta @ dictionary.W_dec[[edit.feature]]

    def _on(self, device: torch.device) -> Dictionary:
        assert self._dictionary is not None
        if self._dictionary.W_enc.device == device:
            return self._dictionary
        if device not in self._moved:
            self._moved[device] = self._dictionary.to(device)
        return self._moved[device]


class _Row:
    """The same for one row in the host's memory."""

    def __init__(self, edit: Edit, feature: int, dictionary: Dictionary) -> None:
        cfg = dictionary.cfg
        self._operation, self._strength, self._feature = edit.operation, np.float32(edit.strength), feature
        self._column = np.ascontiguousarray(dictionary.W_enc.numpy()[:, feature])
        self._bias = np.float32(dictionary.b_enc[feature])
        self._decoder = np.ascontiguousarray(dictionary.W_dec.numpy()[feature])
        floor = dictionary.floor
        self._floor = np.float32(floor if floor.numel() == 1 else floor[feature])
        self._all: Any = dictionary.W_enc.numpy() if cfg.activation == "topk" else None
        self._biases, self._k = dictionary.b_enc.numpy(), cfg.k or 0

    def change(self, x: Any) -> Any:
        """x (d_in,) -> (d_out,), or None."""
        if self._all is None:
            f = np.dot(x, self._column) + self._bias
            if not f > self._floor:
                f = np.float32(0)
        else:
            pre = np.dot(x, self._all)
            pre += self._biases
            f = pre[self._feature]
            if not f > 0 or np.count_nonzero(pre > f) >= self._k:
                f = np.float32(0)
        operation = self._operation
        if operation == "scale":
            after = f * self._strength
        elif operation == "ablate":
            after = np.float32(0)
        elif operation == "clamp":
            after = self._strength
        else:
            after = max(np.float32(0), f + self._strength)
        delta = after - f
        return None if delta == 0 else delta * self._decoder
