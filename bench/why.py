"""What "why this action" costs: µs an attribution, its share of the time, and the tail of a paced loop with and without.

    python -m bench.why [--rounds 7] [--json]

The reference agents `cartpole` and `humanoid` with their shipped dictionaries, one torch thread. Costs are CPU time of the thread that
computes (medians of repeated calls, warm), for the three ways there are: beside (from a copy of the rest of the policy, on the sender's
thread), on the agent's thread (the weights change), and running the policy again (its class does not tell what follows the layer).
Paced: the policy and `tap.step` alone at the agent's own rate, in interleaved rounds with and without attribution at the default rate
and share, no subscriber. A ratio of tails is the median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

import interlatent_live as il
from bench.table import show
from interlatent_live.agent_side.agents import ReferenceAgent, agent_named
from interlatent_live.agent_side.attribution import Attributor
from interlatent_live.agent_side.capture import Capture
from interlatent_live.agent_side.points import resolve
from interlatent_live.agent_side.weights import weights_hash
from interlatent_live.analyzer.dictionary import Dictionary
from interlatent_live.analyzer.registry import find
from interlatent_live.stream.manifest import ActionSpec, Manifest

SHARE = 0.02
"""The default budget: part of the time that attributions may take."""
TAIL_RATIO = 1.1
"""With against without, p99 of a paced step."""


class Hidden(nn.Module):
    """A policy whose class does not tell what follows its layer, so that it has to run again."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As the layers do, by steps that nobody can list."""
        scores: torch.Tensor = self.layers(x) + 0.0
        return scores


def observations(agent: ReferenceAgent) -> list[Any]:
    """Some that the agent meets."""
    env, policy, found = agent.make_env(), agent.make_policy(), []
    observation, _ = env.reset(seed=0, options=None if agent.reset_options is None else dict(agent.reset_options))
    for _ in range(64):
        found.append(np.asarray(observation, np.float32).copy())
        observation, *_ = env.step(agent.act(policy, observation))
    env.close()
    return found


def costs(agent: ReferenceAgent, dictionary: Dictionary, seen: list[Any], repeats: int) -> dict[str, float]:
    """µs of CPU time, by way and thread."""
    found: dict[str, float] = {}
    for way in ("beside", "on thread", "again"):
        model: nn.Module = agent.make_policy()
        used = dictionary
        if way == "again":
            model = Hidden(model)
            points = {"input": f"layers.{dictionary.cfg.input}", "output": f"layers.{dictionary.cfg.output}"}
            used = Dictionary(replace(dictionary.cfg, **points, model_hash=""), dictionary.tensors)
        capture = Capture(resolve(model, [used.cfg.input, used.cfg.output]), 1)
        capture.attach()
        discrete = agent.name == "cartpole"
        action = ActionSpec("discrete" if discrete else "continuous", () if discrete else (len(agent.action_names),), agent.action_names)
        manifest = Manifest(run="bench", boot="b", started_wall_ns=0, started_monotonic_ns=0, action=action)
        one = Attributor(il.Why(used, rate_hz=1e6, share=1.0), "bench", "b", capture, print)
        model_hash = weights_hash(model) if used.cfg.model_hash else ""
        one.begin(model, "frozen" if way == "beside" else "changing", model_hash, partial(_same, manifest))
        agents, senders, clock = [], [], 1 << 60
        for i in range(repeats):
            with torch.inference_mode():
                model(torch.from_numpy(seen[i % len(seen)])[None])
            kept = tuple(capture.slots)
            capture.slots[:] = [None, None]
            began = time.thread_time_ns()
            one.consider(i, i, clock, clock, kept, 0, None)
            agents.append(time.thread_time_ns() - began)
            clock = max(clock, one.due_ns) + 1
            began = time.thread_time_ns()
            if list(one.drain()):
                senders.append(time.thread_time_ns() - began)
        capture.detach()
        # running again takes two steps: one to be ready, one to do it
        spent = np.array(agents, np.float64)
        if way == "again":
            spent = spent[: len(spent) // 2 * 2].reshape(-1, 2).sum(axis=1)
        found[f"{way}, agent's thread"] = float(np.median(spent)) / 1e3
        found[f"{way}, sender's thread"] = float(np.median(senders)) / 1e3
    return found


def _same(manifest: Manifest) -> Manifest:
    return manifest


def paced(agent: ReferenceAgent, dictionary: Dictionary, seen: list[Any], rounds: int, seconds: float) -> dict[str, float]:
    """Percentiles of a step (policy and tap) at the agent's rate, and what attribution took."""
    policy = agent.make_policy()
    count = int(seconds / agent.step_period_s)

    def loop(why: il.Why | None) -> tuple[list[float], dict[str, float]]:
        spans = []
        with il.Tap(policy, list(agent.tap_points), run="bench", endpoint="", metrics=agent.metrics[:1], why=why) as tap:
            due = time.perf_counter()
            for i in range(count):
                due += agent.step_period_s
                while (left := due - time.perf_counter()) > 0:
                    time.sleep(left)
                observation = seen[i % len(seen)]
                began = time.perf_counter()
                action = agent.act(policy, observation)
                tap.step(observation=observation, action=action, reward=1.0, terminated=False, truncated=False)
                spans.append((time.perf_counter() - began) * 1e6)
            return spans, tap.status()

    found: dict[str, list[float]] = {"without": [], "with": [], "share": [], "us": []}
    for i in range(rounds):
        for name in ("without", "with") if i % 2 else ("with", "without"):
            spans, status = loop(il.Why(dictionary) if name == "with" else None)
            found[name].append(float(np.percentile(spans, 99)))
            if name == "with":
                found["share"].append(status["why_share"])
                found["us"].append(status["why_us_median"])
    return {
        "without_p99_us": statistics.median(found["without"]),
        "with_p99_us": statistics.median(found["with"]),
        "p99_ratio": statistics.median(a / b for a, b in zip(found["with"], found["without"], strict=True)),
        "share": max(found["share"]),
        "attribution_us_in_the_loop": statistics.median(found["us"]),
    }


def main(arguments: list[str] | None = None) -> int:
    """Measure and print; 1 if a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="of the paced loop, each way")
    parser.add_argument("--seconds", type=float, default=10.0, help="of a paced round")
    parser.add_argument("--repeats", type=int, default=600, help="attributions for a cost")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    result: dict[str, Any] = {}
    for name in ("cartpole", "humanoid"):
        agent, dictionary = agent_named(name), find(name)
        seen = observations(agent)
        result[name] = {
            "cost_us": costs(agent, dictionary, seen, options.repeats),
            "paced": paced(agent, dictionary, seen, options.rounds, options.seconds),
        }
    if options.json:
        print(json.dumps(result))
    else:
        for name, measured in result.items():
            rows = [(way, f"{us:.0f} µs", "") for way, us in measured["cost_us"].items()]
            p = measured["paced"]
            tails = f"{p['with_p99_us']:.0f} / {p['without_p99_us']:.0f} µs"
            rows += [
                ("an attribution in the paced loop, caches cold", f"{p['attribution_us_in_the_loop']:.0f} µs", ""),
                ("share of the time, most of all rounds", f"{100 * p['share']:.2f} %", f"≤ {100 * SHARE:.0f} %"),
                ("p99 of a step, with / without", f"{p['p99_ratio']:.2f}× ({tails})", f"≤ {TAIL_RATIO}×"),
            ]
            show(f"Why this action: {name}", rows)
    good = all(m["paced"]["share"] <= SHARE and m["paced"]["p99_ratio"] <= TAIL_RATIO for m in result.values())
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
