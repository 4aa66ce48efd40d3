"""Scores of a frame's actions, and the gradient of each at a tap point: three ways, by what is known of what follows the point.

1. `beside`: from copies of the layers that follow, on another thread than the agent's. The weights are frozen, the layers torch's own.
2. `here`: through those layers themselves, from the activation that the hooks kept.
3. `again`: the module that the agent called is run again on a copy of what it was called with, without leaving a trace.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from interlatent_live.agent_side.heads import ancestors, follows, kind_of, leaves_of, plain, tail_of
from interlatent_live.agent_side.scores import NotPossible, picks, row_of, scores_of
from interlatent_live.agent_side.undisturbed import undisturbed
from interlatent_live.stream.attribution import MAX_ACTIONS

if TYPE_CHECKING:
    from torch import Tensor, nn

    from interlatent_live.agent_side.capture import Capture, Kept
    from interlatent_live.stream.manifest import Manifest

__all__ = ["ExplainedFrame", "Gradients"]

Doubles = npt.NDArray[np.float64]


@dataclass(slots=True)
class ExplainedFrame:
    """A frame that is to be explained, and what the agent's thread found out about it."""

    seq: int
    step: int
    clock_ns: int
    stamp_ns: int
    chosen: int
    x: Kept
    y: Kept
    scores: Doubles | None = None
    """(actions,); None: not computed yet."""
    picked: tuple[int, ...] = ()
    gradients: Doubles | None = None
    """(picked, d_out)"""


class Gradients:
    """Of one tap's model at one point. Raises NotPossible where there are none, now or later."""

    def __init__(
        self, model: nn.Module, capture: Capture, output: int, env: int, *, frozen: bool,
        scores: Callable[[Any], Tensor] | None, manifest: Callable[[], Manifest | None],
    ) -> None:
        """`output`: index of the point. `scores`: from what the model returns to (n, actions), where it returns something else."""
        self._model, self._capture, self._output, self._env = model, capture, output, env
        self._scores_of, self._manifest = scores, manifest
        self._tail = None if scores is not None else tail_of(model, capture.points[output].name)
        known = self._tail is not None and plain(self._tail.stages)
        self._leaves = leaves_of(self._tail.stages) if self._tail is not None and known else ()
        """The tail's layers, where each one's `forward` does what calling it does: without hooks, counters or draws."""
        self._stages = _copies(self._leaves) if known and frozen else None
        self._width = 0
        """Actions that the policy scores, once known."""

    @property
    def kind(self) -> str:
        """Of the scores: 'logits', 'means', 'q', or '' where the classes do not tell."""
        return (self._tail.kind if self._tail else "") or kind_of(self._model)

    @property
    def follows(self) -> bool:
        """Whether it is known what follows the point, so that nothing has to run again."""
        return self._tail is not None

    @property
    def are_beside(self) -> bool:
        """Whether another thread than the agent's can do all of it."""
        return self._stages is not None

    def here(self, frame: ExplainedFrame) -> None:
        """Through the layers that follow, which draw nothing; in the thread that trains them."""
        self._solve(frame, lambda: self._from_tail(frame))

    def again(self, frame: ExplainedFrame, held: dict[str, tuple[Any, Any]]) -> None:
        """Through the outermost module of which `held` has the arguments. ValueError: it then gives another activation."""
        self._solve(frame, lambda: self._rerun(frame, held))

    def beside(self, frame: ExplainedFrame) -> None:
        """Through the copies: a row for each action, so that one pass back gives all gradients."""
        import torch

        assert self._stages is not None
        y = self.tensor(self._output, frame.y)
        with torch.inference_mode(False):
            if not self._width:
                with torch.no_grad():
                    self._width = row_of(_through(self._stages, y), 0).numel()
            count = self._width
            if count > MAX_ACTIONS:
                with torch.no_grad():
                    scores = row_of(_through(self._stages, y), 0)
                frame.scores = scores.double().cpu().numpy()
                frame.picked = picks(frame.scores, frame.chosen)
            else:
                frame.picked = tuple(range(count))
            with torch.enable_grad():
                leaf = y.expand(len(frame.picked), *y.shape[1:]).clone().requires_grad_()
                each = _through(self._stages, leaf).reshape(len(frame.picked), -1)
                own = each.gather(1, torch.tensor(frame.picked, device=each.device)[:, None]).sum()
                if not own.requires_grad:
                    raise NotPossible("the scores do not follow from the activation by differentiable steps")
                (gradients,) = torch.autograd.grad(own, leaf)
            if frame.scores is None:
                frame.scores = each[0].detach().double().cpu().numpy()
            frame.gradients = gradients.flatten(1).double().cpu().numpy()

    def _solve(self, frame: ExplainedFrame, run: Callable[[], tuple[Tensor, Tensor, int]]) -> None:
        """Scores and gradients of one frame. `run`: (n, actions) scores, the leaf that they come from, and the frame's row."""
        import torch

        trace = nullcontext() if self._leaves else undisturbed(self._model)
        with trace, torch.inference_mode(False), torch.no_grad():
            scores, leaf, row = run()
            mine = row_of(scores, row)
            frame.scores = mine.detach().double().cpu().numpy()
            frame.picked = picks(frame.scores, frame.chosen)
            if not mine.requires_grad:
                raise NotPossible("the scores do not follow from the activation by differentiable steps")
            found = []
            for action in frame.picked:
                (gradient,) = torch.autograd.grad(mine[action], leaf, retain_graph=True, allow_unused=True)
                if gradient is None:
                    raise NotPossible("the scores do not depend on the activation at this point")
                found.append((gradient[row] if leaf.ndim > 1 else gradient).flatten())
            frame.gradients = torch.stack(found).double().cpu().numpy()

    def _from_tail(self, frame: ExplainedFrame) -> tuple[Tensor, Tensor, int]:
        import torch

        assert self._tail is not None
        torch.set_grad_enabled(True)
        leaf = self.tensor(self._output, frame.y).clone().requires_grad_()
        if not self._leaves:
            return _through(self._tail.stages, leaf), leaf, 0
        value = leaf
        for layer in self._leaves:
            value = layer.forward(value)
        return value, leaf, 0

    def _rerun(self, frame: ExplainedFrame, held: dict[str, tuple[Any, Any]]) -> tuple[Tensor, Tensor, int]:
        import torch

        path = next(p for p in ancestors(self._capture.points[self._output].name.partition(":")[0]) if p in held)
        after = follows(self._model, path)
        point = self._capture.points[self._output]
        assert point.module is not None
        leaves: list[Tensor] = []

        def replace(value: Any) -> Any:
            if isinstance(value, tuple) and value and isinstance(value[0], torch.Tensor):
                return (replace(value[0]), *value[1:])
            if not isinstance(value, torch.Tensor) or not value.is_floating_point():
                raise NotPossible(f"{point.name} gives a {type(value).__name__}; a tensor of numbers can be explained")
            torch.set_grad_enabled(True)
            leaves.append(value.detach().clone().requires_grad_())
            return leaves[-1]

        if point.side == "out":
            point.module.register_forward_hook(lambda _m, _args, output: replace(output))
        else:
            point.module.register_forward_pre_hook(lambda _m, args: (replace(args[0]), *args[1:]))
        args, kwargs = held[path]
        output = self._model.get_submodule(path)(*args, **kwargs)
        if not leaves:
            raise NotPossible(f"{point.name} did not run when the policy ran again")
        chosen = self._capture.chosen
        index = None if chosen is None else chosen.index
        row = self._env if index is None else index[self._env] if isinstance(index, list) else index.start + self._env
        leaf = leaves[-1]
        self._compare(frame, leaf, row)
        if self._scores_of is not None:
            return self._scores_of(output), leaf, row
        scores = scores_of(_through(after.stages, output) if after is not None and after.stages else output)
        if after is None and path and not self._is_known(row_of(scores, row)):
            raise NotPossible(f"what {path!r} returns is not known to be the actions' scores; give Why(scores=…)")
        return scores, leaf, row

    def _is_known(self, scores: Tensor) -> bool:
        """Whether there are as many scores as the manifest names actions, or a continuous action has components."""
        manifest = self._manifest()
        assert manifest is not None
        action = manifest.action
        count = math.prod(action.shape) if action.kind == "continuous" else len(action.names)
        return count == scores.numel()

    def _compare(self, frame: ExplainedFrame, leaf: Tensor, row: int) -> None:
        """Raise ValueError where running again gave another activation than the agent's own pass, so that it explains nothing."""
        import torch

        there = self.tensor(self._output, frame.y).flatten().float()
        again = (leaf.detach()[row] if leaf.ndim and leaf.numel() != there.numel() else leaf.detach()).flatten().float()
        if there.shape != again.shape or not torch.allclose(there, again, rtol=1e-3, atol=1e-4):
            raise ValueError("run again on the same input, the policy gives another activation: it draws at random, or has a state")

    def tensor(self, index: int, kept: Kept) -> Tensor:
        """(1, …) of the explained environment, in the dtype of the model."""
        import torch

        layout = self._capture.layouts[index]
        assert layout is not None
        shape, env = layout.spec.shape, self._env
        if isinstance(kept, bytes):
            value = torch.from_numpy(np.frombuffer(kept, layout.raw).reshape(-1, *shape)[env : env + 1].copy())
        else:
            value = kept.reshape(-1, *shape)[env : env + 1]
        return value.view(torch.bfloat16) if layout.spec.dtype == "bfloat16" else value


def _copies(layers: tuple[nn.Module, ...]) -> tuple[nn.Module, ...] | None:
    """Copies without hooks; None where a tensor is the result of a computation, as of weight_norm, and cannot be copied."""
    try:
        copies = tuple(copy.deepcopy(layer) for layer in layers)
    except RuntimeError:
        return None
    for module in (module for stage in copies for module in stage.modules()):
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    return copies


def _through(stages: tuple[nn.Module, ...], value: Any) -> Any:
    for stage in stages:
        value = stage(value)
    return value
