"""Rollouts of a reference agent with something spliced into its policy: what closed-loop training and cards need.

A splice replaces what the output tap point gives by what it makes of the input tap point's activation. Both are read and
replaced by hooks, so any torch policy will do. An episode is set by its seed: each runs in an environment of its own,
because PyBullet's second episode in one is not quite what its seed says.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from interlatent_live.agent_side.agents import ReferenceAgent, agent_named
from interlatent_live.agent_side.weights import weights_hash
from interlatent_live.analyzer.effect import Effect
from interlatent_live.analyzer.rollout import Episode, Splice
from interlatent_live.stream.errors import AgentError, UnknownTapPoint

__all__ = ["AgentRollouts"]

_FORWARDS: Final = 1024
"""Frames that go through the whole policy at once where only its end is wanted."""


class AgentRollouts:
    """`analyzer.rollout.Rollouts` of a reference agent, greedy, on one torch thread."""

    def __init__(self, agent: str | ReferenceAgent, input_point: str, output_point: str) -> None:
        self._agent = agent_named(agent) if isinstance(agent, str) else agent
        self._policy = self._agent.make_policy().requires_grad_(False)
        self.agent = self._agent.name
        self.input, self.output = input_point, output_point
        self.model_hash = weights_hash(self._policy)
        self.step_period_s = self._agent.step_period_s
        self._splice: Splice | None = None
        self._x: torch.Tensor | None = None
        self._y: torch.Tensor | None = None
        self._given: torch.Tensor | None = None
        self._critic = None if self._agent.make_critic is None else self._agent.make_critic().requires_grad_(False)
        if self._critic is not None and output_point.partition(":")[0] not in dict(self._critic.named_modules()):
            self._critic = None
        self._hook()
        env = self._agent.make_env()
        space: Any = env.action_space
        self._observation_shape = tuple(env.observation_space.shape or ())
        env.close()
        value = None if self._critic is None else self._value
        if hasattr(space, "n"):
            self.effect = Effect(self._head, "discrete", value=value)
        else:
            self.effect = Effect(self._head, "continuous", float(np.min(space.low)), float(np.max(space.high)), value)

    def run(
        self, splice: Splice | None, seeds: Iterable[int], *, max_steps: int | None = None, keep: bool = False
    ) -> list[Episode]:
        """One episode for each seed, of at most `max_steps`; `keep`: with the activations met."""
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        self._splice = splice
        try:
            return [self._episode(seed, max_steps, keep) for seed in seeds]
        finally:
            self._splice = None
            torch.set_num_threads(before)

    def _episode(self, seed: int, max_steps: int | None, keep: bool) -> Episode:
        agent = self._agent
        env = agent.make_env()
        xs: list[torch.Tensor] = []
        ys: list[torch.Tensor] = []
        total, steps, over = 0.0, 0, False
        try:
            options = None if agent.reset_options is None else dict(agent.reset_options)
            observation, _ = env.reset(seed=seed, options=options)
            while not over and (max_steps is None or steps < max_steps):
                action = agent.act(self._policy, observation)
                if keep:
                    if self._x is None or self._y is None:
                        raise AgentError(f"{agent.name!r} acted without a forward through {self.input} and {self.output}")
                    xs.append(self._x)
                    ys.append(self._y)
                observation, reward, terminated, truncated, _ = env.step(action)
                total += float(reward)
                steps += 1
                over = bool(terminated or truncated)
        finally:
            env.close()

        def stacked(kept: list[torch.Tensor]) -> np.ndarray[Any, np.dtype[np.float32]]:
            return torch.cat(kept).float().numpy().copy() if kept else np.empty((0, 0), np.float32)

        return Episode(seed, total, steps, over, stacked(xs), stacked(ys))

    def _hook(self) -> None:
        module, side = self._module(self.input)
        if side == "in":
            module.register_forward_pre_hook(lambda _m, given: self._read(given[0]))
        else:
            module.register_forward_hook(lambda _m, _given, out: self._read(out))
        for network in (self._policy, self._critic):
            if network is None:
                continue
            module, side = self._module(self.output, network)
            if side == "in":
                module.register_forward_pre_hook(lambda _m, given: (self._replace(given[0]), *given[1:]))
            else:
                module.register_forward_hook(lambda _m, _given, out: self._replace(out))

    def _read(self, x: torch.Tensor) -> None:
        self._x = x.flatten(1).clone()

    def _replace(self, y: torch.Tensor) -> torch.Tensor:
        if self._given is not None:
            return self._given.reshape(-1, *y.shape[1:])
        self._y = y.flatten(1).clone()
        if self._splice is None or self._x is None:
            return y
        return self._splice(self._x, self._y).reshape(y.shape)

    def _head(self, y: torch.Tensor) -> torch.Tensor:
        """The rest of the policy, behind the output point; it must depend on nothing else."""
        return self._behind(self._policy, y)

    def _value(self, y: torch.Tensor) -> torch.Tensor:
        assert self._critic is not None
        return self._behind(self._critic, y)[:, 0]

    def _behind(self, network: nn.Module, y: torch.Tensor) -> torch.Tensor:
        path, _, side = self.output.partition(":")
        rest = _rest(network, path) if side in ("", "out") else None
        if rest is not None:
            found: torch.Tensor = rest(y)
            return found
        parts = []
        try:
            for begin in range(0, len(y), _FORWARDS):  # what lies before the point is computed too, for nothing
                self._given = y[begin : begin + _FORWARDS]
                parts.append(network(y.new_zeros(len(self._given), *self._observation_shape)))
        finally:
            self._given = None
        return torch.cat(parts)

    def _module(self, point: str, network: nn.Module | None = None) -> tuple[nn.Module, str]:
        path, _, side = point.partition(":")
        try:
            module = (network or self._policy).get_submodule(path)
        except AttributeError as error:
            raise UnknownTapPoint(f"{self.agent!r} has no module {path!r} for tap point {point!r}; see interlatent-live points") from error
        if side not in ("", "in", "out"):
            raise UnknownTapPoint(f"{point!r} is a part of an activation; what is spliced must be all of it: {path}:in or {path}:out")
        return module, side or "out"


def _rest(network: nn.Module, path: str) -> nn.Sequential | None:
    """What follows the module at `path` where one thing follows the other all the way, as within Sequentials; else None."""
    name, _, inner = path.partition(".")
    if not isinstance(network, nn.Sequential) or name not in (children := dict(network.named_children())):
        return None
    after = list(children.values())[list(children).index(name) + 1 :]
    before = _rest(children[name], inner) if inner else nn.Sequential()
    return None if before is None else nn.Sequential(*before, *after)
