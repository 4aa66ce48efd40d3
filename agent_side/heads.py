"""What lies between a tap point and the action: the rest of a policy, as modules in order.

1. A point inside a `torch.nn.Sequential` is followed by what follows there, and so on outwards to the model itself.
2. Stable-Baselines3's policies are known by their classes' names (nothing is imported): PPO and A2C go on with `action_net`, DQN
   with `q_net`, SAC with `mu` and tanh, TD3 and DDPG with `mu`.
3. Anything else has no such list; `attribution` then runs the module again that the agent called.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Tail", "ancestors", "follows", "kind_of", "leaves_of", "plain", "tail_of"]


@dataclass(frozen=True)
class Tail:
    """The modules that turn an activation into scores."""

    stages: tuple[nn.Module, ...]
    kind: str
    """'logits', 'means', 'q', or '' where the class does not tell."""


def tail_of(model: nn.Module, point: str) -> Tail | None:
    """What lies behind a tap point `path:side`; None where the classes on the way do not tell."""
    path, _, side = point.partition(":")
    found = follows(model, path)
    if found is None:
        return None
    own = (model.get_submodule(path),) if side == "in" else ()
    return Tail((*own, *found.stages), found.kind)


def follows(model: nn.Module, path: str) -> Tail | None:
    """What comes after the module at `path`, up to the scores."""
    from torch import nn

    stages: list[nn.Module] = []
    while path:
        outer, _, name = path.rpartition(".")
        parent = model.get_submodule(outer)
        if isinstance(parent, nn.Sequential) and type(parent).forward is nn.Sequential.forward:
            names = list(parent._modules)
            stages += [parent.get_submodule(n) for n in names[names.index(name) + 1 :]]
        else:
            known = _known(model, outer, parent, name)
            return None if known is None else Tail((*stages, *known.stages), known.kind)
        path = outer
    return Tail(tuple(stages), kind_of(model))


def kind_of(model: nn.Module) -> str:
    """'q' for what its class calls a Q-network, else ''."""
    return "q" if any("qnet" in name.lower() or "dqn" in name.lower() for name in _classes(model)) else ""


def leaves_of(stages: tuple[nn.Module, ...]) -> tuple[nn.Module, ...]:
    """The stages with what is inside of Sequentials taken out."""
    from torch import nn

    found: list[nn.Module] = []
    for stage in stages:
        found += leaves_of(tuple(stage)) if type(stage) is nn.Sequential else [stage]
    return tuple(found)


def ancestors(path: str) -> list[str]:
    """The modules around a path, the outermost first, itself last."""
    parts = path.split(".") if path else []
    return ["", *(".".join(parts[: i + 1]) for i in range(len(parts)))]


def plain(stages: tuple[nn.Module, ...]) -> bool:
    """Whether a copy of the stages, run elsewhere, does what they do: torch's own modules, none drawing or counting as in training."""
    from torch import nn

    drawing = (nn.modules.dropout._DropoutNd, nn.modules.batchnorm._NormBase, nn.RReLU)
    inside = [module for stage in stages for module in stage.modules()]
    simple = all(not list(leaf.children()) for leaf in leaves_of(stages))
    return simple and all(
        type(module).__module__.startswith("torch.nn.") and not (module.training and isinstance(module, drawing)) for module in inside
    )


def _classes(module: nn.Module) -> set[str]:
    return {kind.__name__ for kind in type(module).__mro__}


def _known(model: nn.Module, outer: str, parent: Any, name: str) -> Tail | None:
    """What follows the child `name` of a module of Stable-Baselines3."""
    from torch import nn

    classes = _classes(parent)
    if "MlpExtractor" in classes and name == "policy_net":
        owner: Any = model.get_submodule(outer.rpartition(".")[0])
        return _actor_critic(owner, ()) if "ActorCriticPolicy" in _classes(owner) else None
    if "ActorCriticPolicy" in classes and name in ("features_extractor", "pi_features_extractor"):
        return _actor_critic(parent, (parent.mlp_extractor.policy_net,))
    if "ActorCriticPolicy" in classes and name == "action_net":
        return Tail((), _actor_critic(parent, ()).kind)
    if "QNetwork" in classes and hasattr(parent, "q_net"):
        return {"q_net": Tail((), "q"), "features_extractor": Tail((parent.q_net,), "q")}.get(name)
    if "Actor" in classes and hasattr(parent, "latent_pi") and hasattr(parent, "mu"):  # SAC: the mean is squashed
        after = {"features_extractor": (parent.latent_pi, parent.mu), "latent_pi": (parent.mu,), "mu": ()}.get(name)
        return None if after is None else Tail((*after, nn.Tanh()), "means")
    if "Actor" in classes and hasattr(parent, "mu"):  # TD3 and DDPG
        return {"mu": Tail((), "means"), "features_extractor": Tail((parent.mu,), "means")}.get(name)
    return None


def _actor_critic(policy: Any, before: tuple[nn.Module, ...]) -> Tail:
    kind = {"CategoricalDistribution": "logits", "DiagGaussianDistribution": "means"}.get(type(policy.action_dist).__name__, "scores")
    return Tail((*before, policy.action_net), kind)
