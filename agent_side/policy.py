"""What an agent allows to be done to it: `il.Tap(…, steering=il.SteeringPolicy(…))`. Without one, nothing steers."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from interlatent_live.stream.endpoint import bind_address, is_loopback
from interlatent_live.stream.errors import SteeringError

if TYPE_CHECKING:
    from interlatent_live.analyzer.dictionary import Dictionary

__all__ = ["SteeringPolicy"]

OPERATIONS = ("ablate", "scale", "clamp", "add")


@dataclass(frozen=True, kw_only=True)
class SteeringPolicy:
    """Limits of steering; each is the agent's own, and no request can widen it."""

    points: Sequence[str] | None = None
    """Tap points that may be changed, names as `tap.points` has them; None: all that the tap reads."""
    operations: Sequence[str] = OPERATIONS
    """Of 'ablate', 'scale', 'clamp', 'add'."""
    directions: bool = True
    """Whether raw directions may be added, beside features."""
    dictionaries: Sequence[str | os.PathLike[str] | Dictionary] = ()
    """Paths or names of those whose features may be steered; (): those installed that are of this model."""
    max_change: float = 2.0
    """Largest change of an activation, as a share of its own L2 norm; what is larger is scaled down and counted."""
    max_ttl_s: float = 300.0
    """Longest time to live, in seconds."""
    max_effect: float | None = None
    """Largest effect on the action (KL in nats, or standard deviations); an intervention is turned down until it fits."""
    max_active: int = 8
    """Interventions in force at once."""
    action_limits: Sequence[tuple[float, float]] | None = None
    """Lowest and highest value of each number that the model returns; kept while steering changes it, and counted."""
    effect_hz: float = 5.0
    """How often the effect is measured at most; 0 never. Only of models whose forward pass depends on its arguments alone."""
    effect_share: float = 0.05
    """Share of the agent's time that this may take."""
    lease_s: float = 1.5
    """An author in another process who has not been heard of for so long is gone, and what he started ends."""
    requests_per_s: float = 20.0
    """Requests of one client; a release of everything is not counted."""
    control: str = "tcp://127.0.0.1:*"
    """Where requests are taken; '' takes none, only `tap.steer` in this process. Beyond the loopback needs `clients`."""
    keys: str | os.PathLike[str] | None = None
    """Directory of CURVE keys for a `control` that other machines reach: see `interlatent-live keys`."""
    prompts: int = 0
    """Prompts of other processes that may wait for a language model's loop (`tap.asked`); 0: none are taken."""
    max_new_tokens: int = 512
    """Tokens that such a prompt may ask for."""
    allow_mismatch: bool = False
    """Take dictionaries of other weights, or whose weights are not known."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.operations if name not in OPERATIONS]
        if unknown:
            raise SteeringError(f"operations has {unknown[0]!r}; there are {', '.join(OPERATIONS)}")
        positive = ("max_change", "max_ttl_s", "lease_s", "requests_per_s", "max_active")
        for name in (*positive, "effect_hz", "effect_share"):
            value: Any = getattr(self, name)
            if not isinstance(value, (int, float)) or math.isnan(value) or value < 0 or (value == 0 and name in positive):
                raise SteeringError(f"{name} is {value!r}; a number above 0 is needed")
        for name, least in (("prompts", 0), ("max_new_tokens", 1)):
            if type(getattr(self, name)) is not int or getattr(self, name) < least:
                raise SteeringError(f"{name} is {getattr(self, name)!r}; a whole number of at least {least} is needed")
        if not math.isfinite(self.max_ttl_s):
            raise SteeringError("max_ttl_s is infinite; every intervention ends by itself: give seconds")
        if self.effect_share > 0.5:
            raise SteeringError(f"effect_share is {self.effect_share}; at most 0.5 of the agent's time may go into measuring")
        if self.max_effect is not None and not (math.isfinite(self.max_effect) and self.max_effect > 0):
            raise SteeringError(f"max_effect is {self.max_effect}; a finite number above 0 is needed, or None")
        for low, high in self.action_limits or ():
            if not low < high:
                raise SteeringError(f"action_limits has {low} to {high}; the first number must be the lower")
        if self.control:
            bind_address(self.control)
            if not is_loopback(self.control) and self.keys is None:
                raise SteeringError(
                    f"control is {self.control}, which other machines reach: that needs keys (`interlatent-live keys make`, then "
                    "keys=DIRECTORY), or an address of the loopback",
                    reason="keys",
                )
