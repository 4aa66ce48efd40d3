"""What a reference agent is: an environment, a policy, and the names of everything in them.

Making the list of agents imports neither torch nor gymnasium; `make_env` and `make_policy` do, and raise AgentError
with the remedy where a package is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from interlatent_live.agent_side.metrics import Metric
from interlatent_live.stream.errors import AgentError

if TYPE_CHECKING:
    import gymnasium
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor, nn

    from interlatent_live.agent_side.agents.cartpole_batch import CartPoleBatch

Network = TypeVar("Network", bound="nn.Module")

__all__ = ["Actor", "MakeEnv", "ReferenceAgent", "episode_returns", "load_weights", "require", "trained"]


class MakeEnv(Protocol):
    """Makes one environment; with `render` its `render()` returns a (height, width, 3) uint8 picture."""

    def __call__(self, render: bool = False) -> gymnasium.Env[Any, Any]:
        """Make it."""
        ...


class Actor(Protocol):
    """A policy that is no torch module, and so has nothing to hook."""

    @property
    def activations(self) -> Mapping[str, npt.NDArray[Any]]:
        """Of the last action, by tap point; always the same mapping, whose arrays each action replaces."""
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
    make_policy: Callable[[], nn.Module]
    """The policy alone, in float32 and evaluation mode; the tap hooks this module. AgentError where there is `make_actor` instead."""
    act: Callable[[Any, npt.NDArray[Any]], Any]
    """(policy, one observation) to the action that the environment's `step` takes: the greedy one unless the agent says
    otherwise, and always the same for the same observation; one forward pass."""
    tap_points: tuple[str, ...]
    """Names within the module of `make_policy`, or in the actor's `activations`."""
    metrics: tuple[Metric, ...]
    observation_names: tuple[str, ...]
    """Of the components of the observation as the environment gives it, in order; () where it is a picture."""
    action_names: tuple[str, ...]
    """Of the choices (discrete) or the components (continuous)."""
    dictionary: str
    """Name of the dictionary for this policy; it need not have been shipped."""
    reset_options: Mapping[str, Any] | None = None
    """Given to every `reset` of the environment."""
    read: Callable[[Any], Mapping[str, float]] | None = None
    """(environment, about to move) to the metrics that have no source, by name; see `watch`."""
    make_actor: Callable[[], Actor] | None = None
    """What acts where the policy is no torch module; the tap is handed its activations with every step."""
    make_critic: Callable[[], nn.Module] | None = None
    """The value of what is seen, (n, 1): a module with the policy's own tap points. None where no critic shares them or ships."""
    sample: Callable[[Any, npt.NDArray[Any], npt.NDArray[np.float64]], npt.NDArray[np.int64]] | None = None
    """(policy, (n, …) observations, (n,) uniform numbers below 1) to the n actions that those numbers draw from the policy's
    distribution; None where actions are not drawn. `act` draws by a number that it makes of the observation."""
    make_batch: Callable[[Sequence[int]], CartPoleBatch] | None = None
    """Episodes side by side, one for each seed, the same as `make_env` gives one by one; None where there is no such thing."""


def require(agent: str, *modules: str, extra: str = "agents") -> None:
    """Import `modules`, or raise AgentError that says how to install what `agent` needs."""
    for module in modules:
        try:
            import_module(module)
        except ImportError as error:
            raise AgentError(
                f"the reference agent {agent!r} needs the package {module.partition('.')[0]!r}, which cannot be "
                f"imported ({error}); install it with: pip install 'interlatent-live[{extra}]'"
            ) from error


def episode_returns(
    env: gymnasium.Env[Any, Any],
    act: Callable[[Any, Any], Any],
    policy: nn.Module,
    seeds: Iterable[int],
    options: dict[str, Any] | None = None,
) -> list[float]:
    """Return of one episode of `act` per seed, each reset with `options`. Closes `env`."""
    returns = []
    for seed in seeds:
        observation, _ = env.reset(seed=seed, options=options)
        total, over = 0.0, False
        while not over:
            observation, reward, terminated, truncated, _ = env.step(act(policy, observation))
            total += float(reward)
            over = terminated or truncated
        returns.append(total)
    env.close()
    return returns


def trained(agent: str, path: Path, network: Network) -> Network:
    """`network` with the weights that ship with the package, in evaluation mode. AgentError as of `load_weights`."""
    network.load_state_dict(load_weights(agent, path, network.state_dict()))
    network.eval()
    return network


def load_weights(agent: str, path: Path, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a checkpoint that ships with the package, those that `like` names, in float32.

    AgentError where the file is damaged or a tensor is missing or of another shape.
    """
    require(agent, "safetensors.torch")
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    remedy = f"reinstall, or train it anew with: python -m interlatent_live.agent_side.agents.train_{agent.replace('-', '_')}"
    try:
        found = load_file(path)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise AgentError(f"the checkpoint {path} cannot be loaded ({error}); {remedy}") from error
    shapes = {name: tuple(found[name].shape) if name in found else None for name in like}
    wanted = {name: tuple(tensor.shape) for name, tensor in like.items()}
    if shapes != wanted:
        wrong = next(name for name in wanted if shapes[name] != wanted[name])
        raise AgentError(f"the checkpoint {path} has {wrong!r} of shape {shapes[wrong]}, not {wanted[wrong]}; {remedy}")
    return {name: found[name].float() for name in like}
