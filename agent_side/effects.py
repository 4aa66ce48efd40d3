"""What steering does to the action, measured while it happens: one more forward pass, at a budgeted rate.

1. Where interventions act on a pass, the model is run again on the same arguments without them; where some only measure
   (`shadow`), again with them. What the hooks keep, and torch's random numbers, are put back afterwards.
2. The effect is the KL divergence of the action distributions, steered from unsteered, in nats: of what
   `action_distribution` makes of the model's output, of logits where actions are discrete, of Gaussians where the model
   has a `log_std`. Else the distance of the outputs in standard deviations of the action (root mean square over its
   components), as the unsteered agent showed them; unknown before 64 such frames.
3. Above a limit the interventions are turned down, by the root of what is left (KL grows with the square of a small
   change), and the pass is done again, until it fits: that output is what the agent gets. A limit holds where it is
   measured; between two measurements the last factor stands.

The next measurement waits for 1/`effect_hz` seconds, and for as long as keeps it below `effect_share` of the time. Several
interventions that act together are measured together. A model with dropout or batch statistics in training mode, whose
output is no function of its arguments, is not measured.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from time import monotonic_ns, perf_counter_ns, time_ns
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import nn

from interlatent_live.agent_side.hooks import Unkept
from interlatent_live.stream.intervention import MAX_OUTCOMES, Effects, Outcome

if TYPE_CHECKING:
    import numpy.typing as npt

    from interlatent_live.agent_side.capture import Capture
    from interlatent_live.agent_side.intervention import Act
    from interlatent_live.agent_side.steering import Steering
    from interlatent_live.stream.frames import FrameBatch

__all__ = ["Gauge", "Spread"]

_FITS: Final = 12
"""Forward passes that fitting a limit may take."""
_LEAST: Final = 64
_MAX_WAITING: Final = 4096
_RANDOM = (nn.modules.dropout._DropoutNd, nn.modules.batchnorm._NormBase)


class Spread:
    """Standard deviations of the unsteered agent's continuous actions; fed by the sender's thread."""

    def __init__(self) -> None:
        self.frames = 0
        self._mean: npt.NDArray[np.float64] = np.zeros(0)
        self._m2: npt.NDArray[np.float64] = np.zeros(0)

    def add(self, batch: FrameBatch) -> None:
        """Take in the frames on which nothing acted (Chan's merge)."""
        action, steered = batch.columns.get("action"), batch.columns.get("intervention")
        if action is None or action.dtype.kind != "f":
            return
        rows = action if steered is None else action[(steered < 0).all(axis=1)]
        values = rows.reshape(len(rows), math.prod(action.shape[1:])).astype(np.float64)
        values = values[np.isfinite(values).all(axis=1)]
        if not len(values):
            return
        if self._mean.shape != values.shape[1:]:
            self.frames, self._mean, self._m2 = 0, np.zeros(values.shape[1]), np.zeros(values.shape[1])
        count, mean = len(values), values.mean(axis=0)
        both, apart = self.frames + count, mean - self._mean
        self._m2 = self._m2 + ((values - mean) ** 2).sum(axis=0) + apart**2 * self.frames * count / both
        self._mean = self._mean + apart * count / both
        self.frames = both

    def deviations(self, width: int) -> torch.Tensor | None:
        """(width,) float32, or None before 64 frames or where actions have another width."""
        if self.frames < _LEAST or len(self._m2) != width:
            return None
        return torch.from_numpy(np.sqrt(self._m2 / (self.frames - 1)).astype(np.float32))


class Gauge:
    """Measures on the agent's thread; `drain` is the sender's."""

    first = False
    """Whether it comes before the model's other hooks, which then see what a limit left."""

    def __init__(self, steering: Steering, capture: Capture, model: nn.Module, distribution: Callable[[Any], Any] | None) -> None:
        self._steering, self._capture, self._model, self._distribution = steering, capture, model, distribution
        self._handle: Any = None
        self._running = False
        self._due = 0
        self._waiting: deque[tuple[int, int, int, int, float, float, str, Outcome | None]] = deque(maxlen=_MAX_WAITING)
        self._seq = 0
        self.spread = Spread()
        self.discrete = False
        """Whether actions are whole numbers."""
        self.measured = self.failed = 0
        self.spent_ns = 0

    def attend(self, active: bool) -> None:
        """Listen to the model's passes while something is in force; between two passes, on the agent's thread."""
        if active and self._handle is None:
            self._handle = self._model.register_forward_hook(Unkept(self._passed), with_kwargs=True, prepend=self.first)
        elif not active and self._handle is not None:
            self.detach()

    @property
    def attending(self) -> bool:
        """Whether it listens."""
        return self._handle is not None

    def detach(self) -> None:
        """Listen no more."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def drain(self, run: str, boot: str) -> Effects | None:
        """What was measured since the last call, of one kind."""
        rows: list[tuple[int, int, int, int, float, float, str, Outcome | None]] = []
        while self._waiting and (not rows or self._waiting[0][6] == rows[0][6]):
            rows.append(self._waiting.popleft())
        if not rows:
            return None
        numbers, frames, monotonic, wall, values, factors, kinds, outcomes = zip(*rows, strict=True)
        first, self._seq = self._seq, self._seq + len(rows)
        return Effects(run, boot, first, kinds[0], numbers, frames, monotonic, wall, values, factors, outcomes)

    def _passed(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        """After a pass of the model: the output that fits the limits, or None for the one it has."""
        if self._running or self._capture.resting or self._steering.force is None:
            return None
        began = monotonic_ns()
        if began < self._due:
            return None
        acts = [act for act in self._steering.force.acts if act.live(began) and act.holds()]
        if not acts or any(isinstance(m, _RANDOM) and m.training for m in module.modules()):
            return None
        policy, started = self._steering.policy, perf_counter_ns()
        self._running = True
        try:
            return self._measure(module, args, kwargs, output, acts)
        except Exception as error:  # noqa: BLE001 - the user's model and function; the agent goes on
            self.failed += 1
            self._steering._complain(f"the effect could not be measured: {type(error).__name__}: {error}")
            for act in acts:
                if act.max_effect is not None and not act.shadow:
                    act.dead = "error"  # a limit that cannot be kept
            return None
        finally:
            self._running = False
            cost = perf_counter_ns() - started
            self.spent_ns += cost
            self._due = monotonic_ns() + max(int(1e9 / policy.effect_hz), int(cost / max(policy.effect_share, 1e-6)))

    def _measure(self, module: nn.Module, args: Any, kwargs: Any, output: Any, acts: Sequence[Act]) -> Any:
        acting, watching = [a for a in acts if not a.shadow], [a for a in acts if a.shadow]
        replaced: Any = None
        if acting:
            plain = self._again(module, args, kwargs, 1)
            kind, value, outcome = self._effect(output, plain)
            limits = [act.max_effect for act in acting if act.max_effect is not None]
            if limits and not math.isfinite(value):
                raise ValueError(f"a limit of {min(limits):g} is asked for, and the effect is not known")
            for _ in range(_FITS if limits else 0):
                if value <= min(limits):
                    break
                share = math.sqrt(min(limits) / value) if kind == "kl" else min(limits) / value
                for act in acting:
                    act.factor *= min(0.95, max(0.05, 0.95 * share))
                replaced = self._again(module, args, kwargs, 0)
                _, value, outcome = self._effect(replaced, plain)
            if limits and value > min(limits):
                for act in acting:
                    act.factor = 0.0
                replaced, value = plain, 0.0
                _, _, outcome = self._effect(plain, plain)
            self._note(acting, kind, value, outcome)
        if watching:
            kind, value, outcome = self._effect(self._again(module, args, kwargs, 2), output if replaced is None else replaced)
            self._note(watching, kind, value, outcome)
        return replaced

    def _note(self, acts: Sequence[Act], kind: str, value: float, outcome: Outcome | None) -> None:
        self.measured += 1
        frame, _ = self._steering._position()
        for act in acts:
            act.effect, act.kind, act.outcome = value if math.isfinite(value) else None, kind, outcome
            act.measured += 1
            self._waiting.append((act.number, frame, monotonic_ns(), time_ns(), value, act.factor, kind, outcome))

    def _again(self, module: nn.Module, args: Any, kwargs: Any, mode: int) -> Any:
        """Another pass, of which nothing is kept."""
        capture, steering = self._capture, self._steering
        slots, extra, other, spent = list(capture.slots), capture.extra_forwards, capture.other_forwards, capture.hook_ns
        applied, changed = dict(steering._applied), steering._changed
        cuda = sorted({p.device.index or 0 for p in self._model.parameters() if p.device.type == "cuda"})
        steering._mode = mode
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=cuda):
                return module(*args, **kwargs)
        finally:
            steering._mode = 0
            capture.slots[:] = slots
            capture.extra_forwards, capture.other_forwards, capture.hook_ns = extra, other, spent
            steering._applied.clear()
            steering._applied.update(applied)
            steering._changed = changed

    def _effect(self, steered: Any, plain: Any) -> tuple[str, float, Outcome | None]:
        """Kind and size, the mean over environments; what is done with and without."""
        if self._distribution is not None:
            steered, plain = self._distribution(steered), self._distribution(plain)
        if isinstance(steered, torch.distributions.Distribution):
            value = float(torch.distributions.kl_divergence(steered, plain).sum().item() / max(1, _rows(steered)))
            return "kl", value, _of_distributions(steered, plain)
        steered, plain = (value if isinstance(value, torch.Tensor) else value[0] for value in (steered, plain))
        steered, plain = (value.detach().float().reshape(-1, value.shape[-1]) for value in (steered, plain))
        if (self.discrete or self._distribution is not None) and steered.shape[1] > 1:
            p, q = torch.log_softmax(steered, 1), torch.log_softmax(plain, 1)
            return "kl", max(0.0, float((p.exp() * (p - q)).sum(1).mean())), _outcome("share", p.exp(), q.exp())
        outcome = _outcome("value", steered, plain)
        log_std = getattr(self._model, "log_std", None)
        if isinstance(log_std, torch.Tensor) and log_std.numel() == steered.shape[1]:
            deviation = log_std.detach().float().exp().reshape(-1)
            return "kl", float((((steered - plain) / deviation) ** 2).sum(1).mean() / 2), outcome
        known = self.spread.deviations(steered.shape[1])
        if known is None:
            return "sd", math.nan, outcome
        apart = (steered - plain) / known.to(steered.device).clamp(min=1e-12)
        return "sd", float(apart.square().mean(1).sqrt().mean()), outcome


def _rows(distribution: Any) -> int:
    shape = distribution.batch_shape
    return int(shape[0]) if len(shape) else 1


def _of_distributions(steered: Any, plain: Any) -> Outcome | None:
    """Probabilities of a categorical one, means of one that has them."""
    if isinstance(steered, torch.distributions.Categorical):
        return _outcome("share", steered.probs, plain.probs)
    try:
        return _outcome("value", steered.mean, plain.mean)
    except (NotImplementedError, AttributeError):
        return None


def _outcome(measure: str, steered: torch.Tensor, plain: torch.Tensor) -> Outcome | None:
    """Of the mean over rows: the likeliest actions, or the components that differ most."""
    steered, plain = (value.detach().float().reshape(-1, value.shape[-1] if value.dim() else 1).mean(0).cpu() for value in (steered, plain))
    weight = torch.maximum(steered, plain) if measure == "share" else (steered - plain).abs()
    chosen = torch.topk(weight, min(MAX_OUTCOMES, len(weight))).indices.sort().values
    if not len(chosen) or not bool(torch.isfinite(steered[chosen]).all() and torch.isfinite(plain[chosen]).all()):
        return None
    return Outcome(measure, tuple(chosen.tolist()), tuple(steered[chosen].tolist()), tuple(plain[chosen].tolist()))
