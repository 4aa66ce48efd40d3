"""The hooks of a tap on a language model: what passes is (batch, tokens, …), and is kept whole until its pass is over.

A copy by `clone`, on the tensor's own device and in its own dtype: about 2 µs a layer and token on the host, no waiting for
a device. Which of it is data, and which padding or rejected, is decided on the sender's thread.
"""

from __future__ import annotations

from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

import numpy as np

from interlatent_live.agent_side.capture import Capture, Layout
from interlatent_live.agent_side.hooks import _Hook

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from interlatent_live.agent_side.points import Point

__all__ = ["TokenCapture"]


class TokenCapture(Capture):
    """Keeps what passes in the pass under way, whose shape the model's own hook tells."""

    def __init__(self, points: Sequence[Point]) -> None:
        super().__init__(points, 1)
        self.batch = self.tokens = 0
        """Shape of the pass under way, or the last one; tokens are 0 outside of one."""
        self.token_bytes = 0
        """Kept of one token, as far as known."""
        self.before = 0
        """Columns that the cache held before it."""

    def own_hook(self, side: str) -> Any:
        """The hook for a side."""
        return _TokenOutputHook if side == "out" else _TokenInputHook

    def held(self, index: int, value: Any) -> Tensor | None:
        """A copy of (batch, tokens, …), or of fewer tokens, the last ones; None for what is not of this pass."""
        tensor = self.plain(index, value)
        if tensor is None:
            return None
        shape = tuple(tensor.shape)
        if len(shape) >= 2 and shape[0] == self.batch * self.tokens and shape[1] != self.tokens:
            tensor = tensor.reshape(self.batch, self.tokens, *shape[1:])  # experts see tokens in one row
        elif len(shape) < 2 or shape[0] != self.batch or not 0 < shape[1] <= self.tokens:
            self.other_forwards += 1
            self.other_shape = shape
            return None
        frame = tuple(tensor.shape[2:]) or (1,)
        name = str(tensor.dtype).removeprefix("torch.")
        if name == "bfloat16":
            dtype, raw = "bfloat16", np.dtype(np.int16)
        else:
            dtype, raw = ("float16" if name == "float16" else "float32"), np.dtype(name)
        return tensor.detach().clone() if self._fits(index, frame, dtype, raw) else None

    def _learn(self, index: int, frame: tuple[int, ...], dtype: str, raw: np.dtype[Any]) -> Layout | None:
        layout = super()._learn(index, frame, dtype, raw)
        if layout is not None:
            self.token_bytes += layout.frame_bytes
        return layout


class _TokenOutputHook(_Hook):
    """Called by torch after the module's forward."""

    __slots__ = ("dtype", "tensor", "width")

    def __init__(self, capture: Capture, index: int) -> None:
        from torch import Tensor

        super().__init__(capture, index)
        self.tensor = Tensor
        self.dtype: Any = None
        """With `width`, that of the last tensor that was looked at closely."""
        self.width = 0

    def __call__(self, module: Any, args: Any, output: Any) -> None:
        capture: Any = self.capture
        tokens = capture.tokens
        if capture.resting or not tokens:
            return
        began = perf_counter_ns() if self.gate else 0
        try:
            if type(output) is self.tensor and output.dtype is self.dtype and output.shape == (capture.batch, tokens, self.width):
                kept = output.detach().clone() if output.requires_grad else output.clone()
            else:
                kept = capture.held(self.index, output)
                if kept is not None and kept.ndim == 3:
                    self.dtype, self.width = kept.dtype, kept.shape[2]
        except Exception as error:  # noqa: BLE001 - nothing may be raised into the user's forward pass
            capture.fail(self.index, f"{type(error).__name__}: {error}")
            return
        if kept is not None:
            index, slots = self.index, self.slots
            if slots[index] is not None:
                capture.extra_forwards += 1
            slots[index] = kept
        if began:
            capture.hook_ns += perf_counter_ns() - began


class _TokenInputHook(_TokenOutputHook):
    """Called by torch before the module's forward; sees the input before the module can change it in place."""

    __slots__ = ()

    def __call__(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        value = args[0] if args else kwargs.get("hidden_states", next(iter(kwargs.values()), None))
        _TokenOutputHook.__call__(self, module, args, value)
