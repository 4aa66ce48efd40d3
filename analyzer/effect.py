"""What an error in a layer does to the action.

An `Effect` is made of the rest of the policy behind a tap point, `head`: (n, d_out) activations to (n, actions) torques
or scores. It weighs the error of a dictionary in training and measures it on a card. Continuous actions are clipped to
`low`..`high` by the environment, so an error beyond the same bound does nothing: it counts 0. Where only the true
action is within bounds, or they are beyond opposite ones, it counts in full; clipping both would leave no gradient there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

__all__ = ["Effect"]


@dataclass(frozen=True, slots=True)
class Effect:
    """The way from an activation to an action."""

    head: Callable[[torch.Tensor], torch.Tensor]
    """(n, d_out) to (n, actions), differentiable; before any clipping."""
    kind: Literal["continuous", "discrete"]
    low: float = -float("inf")
    """Bounds of a continuous action."""
    high: float = float("inf")
    value: Callable[[torch.Tensor], torch.Tensor] | None = None
    """(n, d_out) to (n,) values, where a critic reads the same layer."""

    def scale(self, y: torch.Tensor) -> float:
        """Variance of the (clipped) actions, mean over their components; 1 for discrete ones."""
        if self.kind == "discrete":
            return 1.0
        with torch.no_grad():
            actions = self.head(y).clamp(self.low, self.high)
            return max(1e-12, float(actions.double().var(dim=0).mean()))

    def penalty(self, y: torch.Tensor, y_hat: torch.Tensor, scale: float) -> torch.Tensor:
        """Mean squared error of the action in units of its variance, or KL(true | reconstructed) of its distribution."""
        with torch.no_grad():
            true = self.head(y)
        found = self.head(y_hat)
        if self.kind == "discrete":
            log_true, log_found = true.log_softmax(dim=1), found.log_softmax(dim=1)
            return (log_true.exp() * (log_true - log_found)).sum(dim=1).mean()
        return self._difference(true, found).square().mean() / scale

    def agreement(self, y: torch.Tensor, y_hat: torch.Tensor) -> dict[str, float | None]:
        """Action agreement, action error, KL, value error, as a card gives them; null where one does not apply.

        Discrete: share of frames with the same best action, and KL in nats. Continuous: agreement is the share of
        components within a tenth of a standard deviation, the error the root mean square in standard deviations.
        With a critic: mean |V(y) - V(y_hat)|, and the standard deviation of V, both in the critic's units.
        """
        value_error, deviation = None, None
        with torch.no_grad():
            if self.value is not None:
                value = self.value(y).double()
                value_error, deviation = float((value - self.value(y_hat)).abs().mean()), float(value.std(correction=0))
            return self._of_actions(y, y_hat) | {"value_error": value_error, "value_deviation": deviation}

    def _of_actions(self, y: torch.Tensor, y_hat: torch.Tensor) -> dict[str, float | None]:
        with torch.no_grad():
            true, found = self.head(y), self.head(y_hat)
            if self.kind == "discrete":
                same = float((true.argmax(dim=1) == found.argmax(dim=1)).double().mean())
                log_true, log_found = true.double().log_softmax(dim=1), found.double().log_softmax(dim=1)
                kl = float((log_true.exp() * (log_true - log_found)).sum(dim=1).mean())
                return {"action_agreement": same, "action_error": None, "action_kl": kl}
            true, found = true.double().clamp(self.low, self.high), found.double().clamp(self.low, self.high)
            deviation = true.std(dim=0).clamp(min=1e-12)
            error = (true - found) / deviation
            close = float((error.abs() <= 0.1).double().mean())
            return {"action_agreement": close, "action_error": float(error.square().mean().sqrt()), "action_kl": None}

    def _difference(self, true: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
        same_bound = ((true >= self.high) & (found >= self.high)) | ((true <= self.low) & (found <= self.low))
        return torch.where(same_bound, 0.0, found - true.clamp(self.low, self.high))
