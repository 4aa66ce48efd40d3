"""Named numbers of a frame: what a person would plot beside the activations.

A metric is an element of the observation, a user's function of a `Transition`, or a number handed to
`Tap.step(metrics=…)`. Elements of the observation cost the agent nothing: they are cut out on the sender thread, a
whole batch at a time. A function runs on the agent's thread, once per environment and step, and costs what it costs;
where that hurts, hand numbers you already have to `step`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any, Final, NamedTuple, TypeAlias

from interlatent_live.stream.errors import TapError
from interlatent_live.stream.manifest import MetricScope, MetricSpec

__all__ = ["MAX_ELEMENTS", "Metric", "Metrics", "Transition", "as_metrics", "elements", "register_terms", "terms"]

MAX_ELEMENTS: Final = 64
"""Elements of an unnamed observation that become metrics `obs[0]`, `obs[1]`, …; all stay in the observation column."""


class Transition(NamedTuple):
    """One environment's step, as a metric's function sees it.

    Functions of scope 'observation' see only `observation`, `action`, `env` and `step`: what came after is hidden.
    """

    observation: Any
    """What was acted on: (k,) array, or whatever the environment gives. Read only."""
    action: Any = None
    reward: float = math.nan
    terminated: bool = False
    truncated: bool = False
    next_observation: Any = None
    """What the step led to; at the end of an episode its own last observation, never the next episode's first."""
    info: Mapping[str, Any] = {}
    env: int = 0
    """Index of the environment."""
    step: int = 0
    """The tap's number of the step."""


Function: TypeAlias = Callable[[Transition], float]


@dataclass(frozen=True, slots=True)
class Metric:
    """One named number.

    Metric("pole_angle", 2, unit="rad")
    Metric("kinetic", lambda t: 0.5 * t.observation[1] ** 2, unit="J/kg")
    Metric("progress", lambda t: t.next_observation[0] - t.observation[0], unit="m", scope="transition")
    Metric("value", unit="return")       # handed in: tap.step(…, metrics={"value": v})
    """

    name: str
    source: int | Function | None = None
    """Index into the flattened observation, a function of a Transition, or None: handed to `Tap.step(metrics=…)`."""
    unit: str = ""
    """SI unit, or '' for a pure number."""
    scope: MetricScope = "observation"
    """'observation': describes what was acted on. 'transition': needs what came after (reward, next observation)."""
    description: str = ""

    def __post_init__(self) -> None:
        if not self.name:
            raise TapError("a metric needs a name that is not empty")
        if self.scope not in ("observation", "transition"):
            raise TapError(f"metric {self.name!r} has scope {self.scope!r}; 'observation' and 'transition' exist")
        if isinstance(self.source, int):
            if self.source < 0:
                raise TapError(f"metric {self.name!r} reads observation[{self.source}]; the index must be 0 or more")
            if self.scope != "observation":
                raise TapError(f"metric {self.name!r} is an element of the observation, so its scope is 'observation'")
        elif self.source is not None and not callable(self.source):
            kind = type(self.source).__name__
            raise TapError(f"metric {self.name!r} has a source of type {kind}; take an index, a function or None")

    @property
    def spec(self) -> MetricSpec:
        """Its line in the manifest."""
        return MetricSpec(self.name, self.unit, self.scope, self.description)


Metrics: TypeAlias = Sequence[Metric] | Mapping[str, Function]
"""What `Tap(metrics=…)` takes: metrics, or name → function (of scope 'transition', since nothing says otherwise)."""


def as_metrics(metrics: Metrics) -> tuple[Metric, ...]:
    """The user's metrics as a tuple; names that repeat raise TapError."""
    if isinstance(metrics, Mapping):
        found = tuple(Metric(name, function, scope="transition") for name, function in metrics.items())
    else:
        found = tuple(metrics)
    names = [metric.name for metric in found]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise TapError(f"metric names repeat: {', '.join(repeated)}; give each its own")
    return found


def elements(size: int, names: Sequence[str] = ()) -> tuple[Metric, ...]:
    """One metric per element of an observation, at most MAX_ELEMENTS: named where `names` has `size`, else `obs[i]`."""
    labels: Iterable[str] = names if len(names) == size else (f"obs[{i}]" for i in range(size))
    return tuple(Metric(label, i) for i, label in zip(range(min(size, MAX_ELEMENTS)), labels, strict=False))


_CARTPOLE = (
    Metric("cart_position", 0, unit="m", description="Position on the track; the episode ends beyond ±2.4."),
    Metric("cart_velocity", 1, unit="m/s"),
    Metric("pole_angle", 2, unit="rad", description="From upright, clockwise positive; ends beyond ±0.209."),
    Metric("pole_angular_velocity", 3, unit="rad/s"),
)


def _module_attribute(module: str, attribute: str) -> tuple[Metric, ...]:
    found: tuple[Metric, ...] = getattr(import_module(module), attribute)
    return found


_TERMS: dict[str, Callable[[], tuple[Metric, ...]]] = {
    "CartPole-v0": lambda: _CARTPOLE,
    "CartPole-v1": lambda: _CARTPOLE,
    # 44 terms stand with the agent that they belong to; imported only when that environment is watched
    "HumanoidBulletEnv-v0": partial(_module_attribute, "interlatent_live.agent_side.agents.humanoid", "METRICS"),
}


def register_terms(environment: str, metrics: Iterable[Metric]) -> None:
    """Name the observation terms of an environment (its gymnasium id), for every later tap that watches it."""
    found = as_metrics(tuple(metrics))
    _TERMS[environment] = lambda: found


def terms(environment: str) -> tuple[Metric, ...] | None:
    """The named observation terms of an environment, or None where nobody named them."""
    make = _TERMS.get(environment)
    return None if make is None else make()
