"""The confirmed effect once more, in another process: a running agent, steered over its control channel.

    this process ──steer, renew, release──▶ the agent's control socket
                 ◀──returns, a line an episode── the agent's standard output

The agent (this module run as a program) lives through the confirmation's seeds with the same luck, one episode after the
other, in gymnasium's own environment, tapped and with steering allowed; it begins once the intervention is in force. Edits
are applied by its tap, not by the experiment's hooks, so what agrees was done twice in different ways. Episodes without
intervention need no second run: they are the confirmation's, of the same seeds.
"""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import IO, Any, Final

import numpy as np

from interlatent_live.analyzer.dictionary import Dictionary
from interlatent_live.analyzer.paired import change
from interlatent_live.analyzer.trial import Trial
from interlatent_live.stream.errors import AgentError, DictionaryError

__all__ = ["compare", "main", "steered_over_control"]

_TTL_S: Final = 3600.0
_ANSWER_S: Final = 20.0
"""For an answer; requests may not lie further ahead than 30 s."""
_LEASE_S: Final = 15.0
"""How long the author may be silent: a laden machine keeps either process waiting."""
_PATIENCE_S: Final = 60.0
"""For the agent's process to come up, or to end an episode."""


def steered_over_control(
    agent: str,
    dictionary: Dictionary,
    best: dict[str, Any],
    seeds: range,
    max_steps: int | None = None,
) -> tuple[list[float], dict[str, Any]]:
    """Returns of one steered episode for each seed, and what the agent says of the intervention.

    AgentError where the agent's process ends early or the intervention does.
    """
    from interlatent_live.stream.control import ControlClient, find_agent

    if dictionary.path is None:
        raise DictionaryError(f"{dictionary.name} stand in no folder that another process could read; steer a dictionary live")
    words = [agent, str(dictionary.path), str(seeds.start), str(len(seeds)), str(max_steps or 0)]
    child = subprocess.Popen([sys.executable, "-m", __name__, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdin is not None
    assert child.stdout is not None
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(child.stdout, lines), daemon=True).start()
    try:
        endpoint = _line(lines)["endpoint"]
        manifest = find_agent(endpoint, timeout_s=_PATIENCE_S)
        if manifest.control is None:
            raise AgentError(f"{agent!r} at {endpoint} takes no requests")
        with ControlClient(manifest.control, heard_at=endpoint, timeout_s=_ANSWER_S) as client:
            pause = float(client.hello()["lease_s"]) / 5
            started = client.steer(
                operation=best["operation"], strength=best["strength"], feature=best["feature"], dictionary=dictionary.hash,
                ttl_s=_TTL_S, reason="the confirmed effect of an experiment, over the control channel",
            )  # fmt: skip
            child.stdin.write("go\n")
            child.stdin.flush()
            returns: list[float] = []
            while len(returns) < len(seeds):
                returns += _arrived(lines, pause, len(seeds) - len(returns))
                active, ended = client.renew([str(started["id"])])
                if not active and len(returns) < len(seeds):
                    raise AgentError(f"the intervention ended after {len(returns)} episodes: {ended}")
            client.release_quietly(str(started["id"]))
        child.stdin.close()
        child.wait(_PATIENCE_S)
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()
        child.stdout.close()
    return returns, started


def compare(base: Trial, confirmed: dict[str, Any], steered: Sequence[float], arm: Trial, whole: float | None) -> dict[str, Any]:
    """How the steered returns of another process stand to those that confirmed the effect, on the same seeds."""
    found = change(base.total, np.array(steered, np.float64), whole)
    equal = int((np.array(steered) == arm.total).sum())
    within = confirmed["low"] <= found.mean <= confirmed["high"]
    return {"effect_percent": found.plain(), "within": bool(within), "episodes_equal": equal, "of": len(steered)}


def _arrived(lines: queue.SimpleQueue[str | None], pause: float, wanted: int) -> list[float]:
    """Returns that came within `pause` seconds."""
    found: list[float] = []
    while len(found) < wanted:
        try:
            line = lines.get(timeout=pause)
        except queue.Empty:
            break
        if line is None:
            raise AgentError("the agent's process ended before its episodes did")
        found.append(float(json.loads(line)["return"]))
        if len(found) >= 10:  # a quick agent must not keep the author from being heard
            break
    return found


def _line(lines: queue.SimpleQueue[str | None]) -> dict[str, Any]:
    try:
        line = lines.get(timeout=_PATIENCE_S)
    except queue.Empty:
        line = None
    if line is None:
        raise AgentError("the agent's process did not come up")
    found: dict[str, Any] = json.loads(line)
    return found


def _read(stream: IO[str], lines: queue.SimpleQueue[str | None]) -> None:
    for line in stream:
        lines.put(line)
    lines.put(None)


def main(arguments: Sequence[str]) -> int:
    """The agent's process: NAME DICTIONARY FIRST_SEED EPISODES MAX_STEPS (0: whole episodes)."""
    import torch

    from interlatent_live.agent_side.agents import agent_named
    from interlatent_live.agent_side.policy import SteeringPolicy
    from interlatent_live.agent_side.rollout import make_tap
    from interlatent_live.agent_side.watch import watch
    from interlatent_live.trials import luck

    torch.set_num_threads(1)
    name, path, *numbers = arguments
    first, count, max_steps = (int(n) for n in numbers)
    agent = agent_named(name)
    # the experiment bounds the change and measures its effect; a second forward pass would only cost time
    policy = SteeringPolicy(dictionaries=(path,), max_change=1e6, max_ttl_s=_TTL_S, effect_hz=0, lease_s=_LEASE_S)
    options = None if agent.reset_options is None else dict(agent.reset_options)
    with make_tap(agent, run=f"{name}-live", endpoint="tcp://127.0.0.1:*", steering=policy) as tap:
        model: Any = tap.model

        def episode(seed: int) -> float:
            env: Any = watch(agent.make_env(), tap, agent.read)
            try:
                observation, _ = env.reset(seed=seed, options=options)
                drawn, total, steps, over = luck(seed), 0.0, 0, False
                while not over and (not max_steps or steps < max_steps):
                    if agent.sample is None:
                        action: Any = agent.act(model, observation)
                    else:
                        action = int(agent.sample(model, np.asarray(observation)[None], np.array([drawn.random()]))[0])
                    observation, reward, terminated, truncated, _ = env.step(action)
                    total, steps, over = total + float(reward), steps + 1, bool(terminated or truncated)
            finally:
                env.close()
            return total

        episode(first)  # the manifest, which says where requests go, needs to have seen a step
        print(json.dumps({"endpoint": tap.endpoint}), flush=True)  # noqa: T201 - to the process that steers
        sys.stdin.readline()
        episode(first)  # in whose course the intervention is taken over
        for seed in range(first, first + count):
            print(json.dumps({"seed": seed, "return": episode(seed)}), flush=True)  # noqa: T201 - likewise
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
