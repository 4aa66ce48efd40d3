"""What a reference agent is: an environment, a policy, and the names of everything in them.

Making the list of agents imports neither torch nor gymnasium; `make_env` and `make_policy` do, and raise AgentError
with the remedy where a package is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

from interlatent_live.agent_side.metrics import Metric
from interlatent_live.stream.errors import AgentError

if TYPE_CHECKING:
    import gymnasium
    import numpy as np
    import numpy.typing as npt
    from torch import nn

__all__ = ["MakeEnv", "ReferenceAgent", "require"]


class MakeEnv(Protocol):
    """Makes one environment; with `render` its `render()` returns a (height, width, 3) uint8 picture."""

    def __call__(self, render: bool = False) -> gymnasium.Env[Any, Any]:
        """Make it."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceAgent:
    """A trained policy in its environment."""

    name: str
    """What `run` and `demo` call it."""
    environment: str
    """Gymnasium's name of the environment."""
    description: str
    """One sentence for lists."""
    step_period_s: float
    """Time that one step stands for, in seconds."""
    make_env: MakeEnv
    make_policy: Callable[[], nn.Sequential]
    """The policy alone, in float32 and evaluation mode; the tap hooks this module."""
    act: Callable[[nn.Module, npt.NDArray[np.float32]], Any]
    """(policy, one observation) to the greedy action that the environment's `step` takes; one forward pass."""
    tap_points: tuple[str, ...]
    """Names within the module of `make_policy`."""
    metrics: tuple[Metric, ...]
    observation_names: tuple[str, ...]
    """Of the components of the observation as the environment gives it, in order."""
    action_names: tuple[str, ...]
    """Of the choices (discrete) or the components (continuous)."""
    dictionary: str
    """Name of the shipped dictionary for this policy."""
    reset_options: Mapping[str, Any] | None = None
    """Given to every `reset` of the environment."""


def require(agent: str, *modules: str) -> None:
    """Import `modules`, or raise AgentError that says how to install what `agent` needs."""
    for module in modules:
        try:
            import_module(module)
        except ImportError as error:
            raise AgentError(
                f"the reference agent {agent!r} needs the package {module.partition('.')[0]!r}, which cannot be "
                f"imported ({error}); install it with: pip install 'interlatent-live[agents]'"
            ) from error
