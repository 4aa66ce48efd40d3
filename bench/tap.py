"""What the tap costs the agent: µs added per step, and the tail of a paced loop.

    python -m bench.tap [--rounds 60] [--json]

Everything is measured in one process, side by side, in interleaved rounds. The policy is an MLP 2×64 on the 4 terms of CartPole, one
thread, inference mode, with two tap points; a recording is written where named. While µs are counted a subscriber in a process of its own
receives everything; while tails are, there is none, since on few cores its process would disturb the tapped rounds alone.
Added µs are differences of lower quartiles over rounds: other processes only ever add to a round. A ratio of tails is the median of the
rounds' ratios. Absolute times drift with the machine, ratios hold better, and neither means much while other work fills the cores.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import interlatent_live as il
from bench.table import show
from interlatent_live.agent_side.metrics import terms

POINTS = ("1:out", "3:out")
BUDGET_RATIO = 2.5
"""Tap against empty hooks plus the same metrics, added µs."""
TAIL_RATIO = 1.4
"""Tapped against un-tapped, p99 of a step at 1 kHz."""


def make_policy() -> nn.Sequential:
    """MLP 2×64, in evaluation mode."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 2)).eval()


def make_tap(policy: nn.Module, record: Path | None = None) -> il.Tap:
    """A tap with CartPole's four terms as metrics, on a free port."""
    return il.Tap(
        policy,
        POINTS,
        run="bench",
        endpoint="tcp://127.0.0.1:*",
        record=record,
        metrics=terms("CartPole-v1"),
        environment="CartPole-v1",
    )


def receive(endpoint: str, stop: Any) -> None:
    """Subscribe and read, until told to stop: the process beside the agent."""
    from interlatent_live.stream.subscriber import Subscriber

    with Subscriber(endpoint) as subscriber:
        while not stop.is_set():
            subscriber.receive(0.1)


class Listening:
    """A subscriber in a process of its own for as long as the block lasts."""

    def __init__(self, tap: il.Tap) -> None:
        context = multiprocessing.get_context("spawn")
        self._stop = context.Event()
        self._process = context.Process(target=receive, args=(tap.endpoint, self._stop), daemon=True)
        self._tap = tap

    def __enter__(self) -> None:
        self._process.start()
        if not self._tap.wait_subscribed(30):
            raise RuntimeError("the subscriber did not come within 30 s")

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._process.join(10)


def added_us(rounds: int, steps: int, record: Path | None) -> dict[str, Any]:
    """µs that empty hooks, hooks with metrics, and the tap add to a step."""
    observation = np.array([0.01, -0.2, 0.03, 0.4], np.float32)
    batch = torch.from_numpy(observation)[None]
    names = [metric.name for metric in terms("CartPole-v1") or ()]
    bare, hooked, tapped = make_policy(), make_policy(), make_policy()
    for name in POINTS:
        hooked[int(name[0])].register_forward_hook(lambda module, args, output: None)
    tap = make_tap(tapped, record)

    def run_bare() -> None:
        for _ in range(steps):
            bare(batch)

    def run_hooked() -> None:
        for _ in range(steps):
            hooked(batch)

    def run_metrics() -> None:
        for _ in range(steps):
            hooked(batch)
            dict(zip(names, observation.tolist(), strict=True))

    def run_tapped() -> None:
        step = tap.step
        for _ in range(steps):
            tapped(batch)
            step(observation=observation, action=1, reward=1.0, terminated=False, truncated=False)

    ways: dict[str, Callable[[], None]] = {"bare": run_bare, "hooks": run_hooked, "hooks+metrics": run_metrics, "tap": run_tapped}
    times: dict[str, list[float]] = {name: [] for name in ways}
    with torch.inference_mode(), tap, Listening(tap):
        for i in range(rounds + 2):
            for name, way in ways.items():
                began = time.perf_counter()
                way()
                if i >= 2:  # the first rounds warm up
                    times[name].append((time.perf_counter() - began) / steps * 1e6)
                time.sleep(0.02)  # let the sender finish what this way left it
        own = tap.overhead()
        status = tap.status()
    quiet = {name: float(np.percentile(values, 25)) for name, values in times.items()}
    added = {name: value - quiet["bare"] for name, value in quiet.items() if name != "bare"}
    return {
        "step_us": quiet["bare"],
        **{f"{name}_us": value for name, value in added.items()},
        "ratio": added["tap"] / added["hooks+metrics"],
        "ratio_to_bare_hooks": added["tap"] / added["hooks"],
        "self_measured_us": own,
        "failures": status["hook_failures"] + status["step_failures"],
    }


def paced_us(rounds: int, hertz: float, seconds: float, record: Callable[[], Path | None]) -> dict[str, Any]:
    """Percentiles of forward pass and step in a loop paced at `hertz`, in µs, un-tapped and tapped."""
    policy = make_policy()
    observation = np.array([0.01, -0.2, 0.03, 0.4], np.float32)
    batch = torch.from_numpy(observation)[None]
    count = int(seconds * hertz)

    def loop(step: Callable[..., None] | None) -> list[float]:
        spans = []
        due = time.perf_counter()
        for _ in range(count):
            due += 1 / hertz
            while (left := due - time.perf_counter()) > 0:
                time.sleep(left)
            began = time.perf_counter()
            policy(batch)
            if step is not None:
                step(observation=observation, action=1, reward=1.0, terminated=False, truncated=False)
            spans.append((time.perf_counter() - began) * 1e6)
        return spans

    found: dict[str, list[tuple[float, float]]] = {"untapped": [], "tapped": []}
    with torch.inference_mode():
        loop(None)
        for i in range(rounds):
            for name in ("untapped", "tapped") if i % 2 else ("tapped", "untapped"):
                if name == "tapped":
                    tap = make_tap(policy, record())
                    with tap:
                        spans = loop(tap.step)
                else:
                    spans = loop(None)
                found[name].append((statistics.median(spans), float(np.percentile(spans, 99))))
    p99 = {name: [tail for _, tail in values] for name, values in found.items()}
    return {
        **{f"{name}_median_us": statistics.median(m for m, _ in values) for name, values in found.items()},
        **{f"{name}_p99_us": statistics.median(values) for name, values in p99.items()},
        "p99_ratio": statistics.median(a / b for a, b in zip(p99["tapped"], p99["untapped"], strict=True)),
    }


def main(arguments: list[str] | None = None) -> int:
    """Measure and print; 1 if a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--steps", type=int, default=1000, help="steps of a round, as fast as they go")
    parser.add_argument("--paced-rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=2.0, help="of a paced round")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        serial = iter(range(1 << 30))

        def recording() -> Path:
            return Path(folder) / f"{next(serial)}.mcap"

        added = added_us(options.rounds, options.steps, None)
        added_recording = added_us(options.rounds, options.steps, recording())
        paced = paced_us(options.paced_rounds, 1000.0, options.seconds, lambda: None)
        paced_recording = paced_us(options.paced_rounds, 1000.0, options.seconds, recording)
    if options.json:
        print(json.dumps({"added": added, "added_recording": added_recording, "paced": paced, "paced_recording": paced_recording}))
    else:
        rows = [("step of an MLP 2×64, un-tapped", f"{added['step_us']:.1f} µs", "")]
        rows += [(f"+ {name}", f"{added[f'{name}_us']:.1f} µs", "") for name in ("hooks", "hooks+metrics", "tap")]
        rows += [
            ("tap against hooks and metrics", f"{added['ratio']:.2f}×", f"≤ {BUDGET_RATIO}×"),
            ("the same while recording", f"{added_recording['ratio']:.2f}×", ""),
            ("overhead as the tap measures it", f"{added['self_measured_us']['median']:.1f} µs", ""),
        ]
        for name, figures, limit in (("", paced, f"≤ {TAIL_RATIO}×"), (", recording", paced_recording, "")):
            spans = f"{figures['tapped_p99_us']:.0f} / {figures['untapped_p99_us']:.0f} µs"
            rows.append((f"p99 of a step at 1 kHz{name}, tapped / un-tapped", f"{figures['p99_ratio']:.2f}× ({spans})", limit))
        show("The tap: what it adds to a step (two points)", rows)
    return 0 if added["ratio"] <= BUDGET_RATIO and paced["p99_ratio"] <= TAIL_RATIO else 1


if __name__ == "__main__":
    raise SystemExit(main())
