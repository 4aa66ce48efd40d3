"""Episodes of a reference agent with and without an intervention, under the same luck: what experiments are made of.

An episode is its seed's: the start of the environment, and the uniform numbers by which actions are drawn, the t-th number
for the t-th step whatever was done before (common random numbers: Glasserman & Yao 1992, Management Science 38). Two arms
of one seed therefore differ by the intervention and by what follows from it. Where an agent has `make_batch`, all episodes
of an arm are stepped together: 500 of CartPole in 0.2 s; else one after the other, each in an environment of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from interlatent_live.agent_side.agents import ReferenceAgent, agent_named
from interlatent_live.agent_side.agents.cartpole_batch import LIMIT
from interlatent_live.agent_side.metrics import Transition
from interlatent_live.analyzer.rollout import Splice
from interlatent_live.analyzer.trial import Trial
from interlatent_live.rollouts import AgentRollouts
from interlatent_live.stream.errors import AgentError

__all__ = ["AgentTrials", "Outcome", "luck", "outcome_of"]

Doubles = npt.NDArray[np.float64]
_HALF_TURN: Final = 180.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an episode is judged by: one number."""

    name: str
    unit: str
    description: str
    read: Callable[[Any, dict[str, float]], float] | None = None
    """(observation, what the agent's `read` gives) to a number whose mean over the episode's steps counts; None: return or steps."""
    element: int | None = None
    """The same, where it is an element of the observation times `factor`."""
    factor: float = 1.0
    whole: float | None = None
    """What 100 % is; None: the mean without intervention."""


def luck(seed: int) -> np.random.Generator:
    """The uniform numbers of an episode, in the order of its steps."""
    return np.random.default_rng([seed, 1])


def outcome_of(agent: ReferenceAgent, name: str) -> Outcome:
    """'return', 'steps', 'speed' and 'heading' of the humanoid, or one of the agent's metrics; AgentError names them."""
    if name == "return":
        return Outcome(name, "", "sum of the rewards of an episode")
    if name == "steps":
        return Outcome(name, "steps", "length of an episode")
    places = {metric.name: metric for metric in agent.metrics}
    if name == "speed" and "forward_velocity" in places:
        element = _index(places["forward_velocity"].source)
        return Outcome(name, "m/s", "mean velocity of the torso along its heading", element=element, factor=10 / 3)
    if name == "heading" and {"target_sine", "target_cosine"} <= set(places):
        sine, cosine = (_index(places[f"target_{part}"].source) for part in ("sine", "cosine"))
        text = "mean angle from the torso's heading to the target, left positive; 100 % is a half turn"
        return Outcome(name, "°", text, lambda o, _: math.degrees(math.atan2(o[sine], o[cosine])), whole=_HALF_TURN)
    metric = places.get(name)
    if metric is None or metric.scope != "observation":
        there = [m.name for m in agent.metrics if m.scope == "observation"]
        extra = [n for n, needed in (("speed", "forward_velocity"), ("heading", "target_sine")) if needed in places]
        raise AgentError(f"{agent.name!r} has no outcome {name!r}; there are: {', '.join(['return', 'steps', *extra, *there])}")
    text = f"mean of {name} over an episode"
    source = metric.source
    if isinstance(source, int):
        return Outcome(name, metric.unit, text, element=source)
    if source is None:
        return Outcome(name, metric.unit, text, lambda _, read: float(read[name]))
    function = source
    return Outcome(name, metric.unit, text, lambda o, _: float(function(Transition(o))))


def _index(source: object) -> int:
    assert isinstance(source, int)
    return source


class AgentTrials(AgentRollouts):
    """`analyzer.trial.Trials` of a reference agent, on one torch thread; its actions are drawn where it draws them."""

    def __init__(self, agent: str | ReferenceAgent, input_point: str, output_point: str, outcome: str = "return") -> None:
        chosen = agent_named(agent) if isinstance(agent, str) else agent
        if chosen.make_actor is not None:
            raise AgentError(f"{chosen.name!r} acts by no torch module, so nothing can be changed in it; experiment on another agent")
        self.outcome = outcome_of(chosen, outcome)
        super().__init__(chosen, input_point, output_point)

    @property
    def together(self) -> bool:
        """Whether all episodes of an arm are stepped at once."""
        return self._agent.make_batch is not None and self._agent.sample is not None and self.outcome.read is None

    def trial(self, splice: Splice | None, seeds: Sequence[int], *, max_steps: int | None = None, keep: bool = False) -> Trial:
        """One episode for each seed, of at most `max_steps`; `keep`: with the activations met."""
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        self._splice = splice
        try:
            if self.together:
                return self._together(seeds, max_steps or LIMIT, keep)
            return self._one_by_one(seeds, max_steps, keep)
        finally:
            self._splice = None
            torch.set_num_threads(before)

    def _together(self, seeds: Sequence[int], max_steps: int, keep: bool) -> Trial:
        assert self._agent.make_batch is not None
        assert self._agent.sample is not None
        batch = self._agent.make_batch(seeds)
        numbers = np.stack([luck(seed).random(max_steps) for seed in seeds])
        xs, ys, rows, sums = [], [], [], np.zeros(len(seeds))
        total = np.zeros(len(seeds))
        for step in range(max_steps):
            running = batch.running
            if not running.any():
                break
            # every row goes through the policy at every step: a matmul of another height may give other bits
            observation = batch.observation
            actions = self._agent.sample(self._policy, observation, numbers[:, step])
            if keep:
                alive = torch.from_numpy(running.copy())
                x, y = self._met()
                xs.append(x[alive])
                ys.append(y[alive])
                rows.append(np.flatnonzero(running))
            if self.outcome.element is not None:
                sums += np.where(running, observation[:, self.outcome.element].astype(np.float64), 0.0)
            total += batch.step(actions)
        episode = np.concatenate(rows) if keep else np.empty(0, np.int64)
        order = np.argsort(episode, kind="stable")
        return Trial(
            np.array(seeds), self._values(total, batch.steps, sums), total, batch.steps.copy(), batch.terminated.copy(),
            _stacked(xs)[order] if keep else _stacked([]), _stacked(ys)[order] if keep else _stacked([]), episode[order],
        )  # fmt: skip

    def _one_by_one(self, seeds: Sequence[int], max_steps: int | None, keep: bool) -> Trial:
        n = len(seeds)
        total, sums, steps, fell = np.zeros(n), np.zeros(n), np.zeros(n, np.int64), np.zeros(n, np.bool_)
        xs: list[torch.Tensor] = []
        ys: list[torch.Tensor] = []
        agent = self._agent
        for i, seed in enumerate(seeds):
            env: Any = agent.make_env()
            try:
                options = None if agent.reset_options is None else dict(agent.reset_options)
                observation, _ = env.reset(seed=seed, options=options)
                numbers, over = luck(seed), False
                while not over and (max_steps is None or steps[i] < max_steps):
                    if self.outcome.element is not None:
                        sums[i] += float(observation[self.outcome.element])
                    elif self.outcome.read is not None:
                        sums[i] += self.outcome.read(observation, {} if agent.read is None else dict(agent.read(env)))
                    if agent.sample is None:
                        action: Any = agent.act(self._policy, observation)
                    else:
                        action = int(agent.sample(self._policy, np.asarray(observation)[None], np.array([numbers.random()]))[0])
                    if keep:
                        x, y = self._met()
                        xs.append(x)
                        ys.append(y)
                    observation, reward, terminated, truncated, _ = env.step(action)
                    total[i] += float(reward)
                    steps[i] += 1
                    fell[i] = bool(terminated)
                    over = bool(terminated or truncated)
            finally:
                env.close()
        episode = np.repeat(np.arange(n), steps) if keep else np.empty(0, np.int64)
        return Trial(np.array(seeds), self._values(total, steps, sums), total, steps, fell, _stacked(xs), _stacked(ys), episode)

    def _values(self, total: Doubles, steps: npt.NDArray[np.int64], sums: Doubles) -> Doubles:
        if self.outcome.name == "return":
            return total.copy()
        if self.outcome.name == "steps":
            return steps.astype(np.float64)
        return sums / np.maximum(steps, 1) * self.outcome.factor

    def _met(self) -> tuple[torch.Tensor, torch.Tensor]:
        if self._x is None or self._y is None:
            raise AgentError(f"{self.agent!r} acted without a forward through {self.input} and {self.output}")
        return self._x, self._y


def _stacked(kept: list[torch.Tensor]) -> npt.NDArray[np.float32]:
    return torch.cat(kept).float().numpy().copy() if kept else np.empty((0, 0), np.float32)
