"""Run a reference agent with a tap in it, at the pace of the real thing or as fast as it goes.

The pace is kept by absolute deadlines: step k is due at the first step's time plus k periods, so a late step does not
delay those after it and the run never drifts against the clock. Steps that are late run back to back until they have
caught up; a stop of more than MAX_LAG_S (a suspended machine) is not caught up: the deadlines move, and the report
counts it.
"""

from __future__ import annotations

import importlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from interlatent_live.agent_side.agents import AGENTS, ReferenceAgent, agent_named
from interlatent_live.agent_side.tap import Tap
from interlatent_live.agent_side.watch import watch
from interlatent_live.stream.errors import AgentError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["MAX_LAG_S", "RolloutReport", "load_policy", "make_tap", "run", "wait_for_subscriber"]

MAX_LAG_S: Final = 1.0
"""The most that a paced run catches up, in seconds."""


@dataclass(frozen=True, slots=True)
class RolloutReport:
    """What a run came to."""

    steps: int
    """Steps of the environment, the unfinished episode's included."""
    returns: tuple[float, ...]
    """Sum of rewards of each completed episode."""
    seconds: float
    """From the first step's beginning to the end of the run, on the monotonic clock."""
    lags: int
    """How often the run fell more than MAX_LAG_S behind and its deadlines were moved."""

    @property
    def episodes(self) -> int:
        """Completed episodes."""
        return len(self.returns)


def make_tap(
    agent: ReferenceAgent,
    *,
    run: str | None = None,
    record: str | Path | None = None,
    endpoint: str | None = None,
    **options: Any,
) -> Tap:
    """A tap in the agent's own policy, with its points, metrics and names; `options` go to `Tap` as they are.

    The run is named after the agent unless `run` says otherwise. Where the policy is no torch module, the tap has no
    model, and `run` hands it the activations.
    """
    model = None
    if agent.make_actor is None:
        model = agent.make_policy()
    else:
        agent.make_actor()  # what is missing is said before a socket or a recording is opened
    return Tap(
        model,
        None if model is None else list(agent.tap_points),
        run=run or agent.name,
        record=record,
        endpoint=endpoint,
        metrics=agent.metrics,
        agent=agent.name,
        environment=agent.environment,
        observation_names=agent.observation_names,
        action_names=agent.action_names,
        step_period_s=agent.step_period_s,
        **options,
    )


def wait_for_subscriber(tap: Tap, timeout_s: float, stop: Callable[[], bool] = lambda: False) -> bool:
    """Wait at most `timeout_s`, or until `stop()`, for a subscriber of the tap's frames; whether there is one."""
    deadline = time.monotonic() + timeout_s
    while not stop():
        left = deadline - time.monotonic()
        if tap.wait_subscribed(max(0.0, min(0.1, left))):
            return True
        if left <= 0:
            break
    return False


def run(
    agent: ReferenceAgent,
    tap: Tap | None,
    *,
    policy: Any = None,
    seconds: float | None = None,
    episodes: int | None = None,
    fast: bool = False,
    seed: int = 0,
    render: bool = False,
    stop: Callable[[], bool] = lambda: False,
) -> RolloutReport:
    """Step `agent` greedily until `seconds` have passed since the first step, `episodes` are complete, or `stop()`.

    `policy` is the tapped module or the actor, by default the tap's own (without a tap, the agent's). The environment is seeded
    once, with `seed`, and goes on from there. `stop` is asked before every step, on this thread, which also sleeps
    between paced steps.
    """
    if seconds is not None and not seconds >= 0:
        raise AgentError(f"seconds is {seconds}; it must be 0 or more")
    if policy is None:
        if agent.make_actor is not None:
            policy = agent.make_actor()
        else:
            policy = agent.make_policy() if tap is None else tap.model
    env: Any = agent.make_env(render=render)
    if tap is not None:
        env = watch(env, tap, agent.read, None if agent.make_actor is None else policy.activations)
    limit = math.inf if episodes is None else episodes
    options = None if agent.reset_options is None else dict(agent.reset_options)
    returns: list[float] = []
    total, steps, lags = 0.0, 0, 0
    try:
        observation, _ = env.reset(seed=seed, options=options)
        start = anchor = now = time.monotonic()
        anchored = 0  # the step that is due at `anchor`
        while len(returns) < limit and not stop():
            now = time.monotonic()
            if not fast:
                due = anchor + (steps - anchored) * agent.step_period_s
                if now < due:
                    time.sleep(due - now)
                    now = time.monotonic()
                elif now - due > MAX_LAG_S:
                    anchor, anchored, lags = now, steps, lags + 1
            if seconds is not None and now - start >= seconds:
                break
            observation, reward, terminated, truncated, _ = env.step(agent.act(policy, observation))
            steps += 1
            total += float(reward)
            now = time.monotonic()
            if terminated or truncated:
                returns.append(total)
                total = 0.0
                if len(returns) < limit:
                    observation, _ = env.reset(options=options)
    finally:
        env.close()
    return RolloutReport(steps, tuple(returns), now - start, lags)


def load_policy(name: str) -> nn.Module:
    """The policy of a reference agent, or what `module:callable` returns; AgentError where that is no torch module."""
    if name in AGENTS or ":" not in name:
        return agent_named(name).make_policy()
    module_name, _, attribute = name.partition(":")
    try:
        make = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise AgentError(
            f"{name!r} cannot be loaded ({error}); write module:callable, where the callable returns a torch module"
        ) from error
    import torch

    policy = make() if not isinstance(make, torch.nn.Module) and callable(make) else make
    if not isinstance(policy, torch.nn.Module):
        raise AgentError(f"{name!r} gives {type(policy).__name__}, not a torch.nn.Module")
    return policy
