"""What the callback costs a Stable-Baselines3 training: PPO on CartPole, whole `learn()` with and without.

    python -m bench.sb3 [--rounds 9] [--steps 8192] [--json] [--beside]

Pairs of trainings with the same seed run one after the other in one process, in changing order, one torch thread;
figures are medians over pairs of the ratio of the processor time of the training thread, and of the wall time. The tap
publishes and records, nobody listens. `--beside`: also with the analyzer and the page as processes on the same
machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback

from interlatent_live.sb3 import TapCallback

from .table import show

POINTS = "mlp_extractor.policy_net.*"
BUDGET = 1.05
"""Wall time with the callback against without, median of pairs."""


def learn(steps: int, callback: TapCallback | None) -> tuple[float, float, torch.nn.Module]:
    """Seconds of wall time and of this process's processor time that `learn` takes, and the policy."""
    model = PPO("MlpPolicy", "CartPole-v1", seed=0, device="cpu", verbose=0)
    model.learn(1)  # everything imported and warm: one rollout
    began, worked = time.perf_counter(), time.process_time()
    model.learn(steps, callback=callback)
    return time.perf_counter() - began, time.process_time() - worked, model.policy


def make(folder: Path, name: str, **options: Any) -> TapCallback:
    """The callback of the issue's line, on a free port."""
    return TapCallback(points=POINTS, envs=[0], run="bench", record=folder / f"{name}.mcap", endpoint="tcp://127.0.0.1:*", **options)


class _Clock(BaseCallback):
    """Times the training itself, without the start of what runs beside it. Behind the tap's callback in the list."""

    seconds = 0.0

    def _on_training_start(self) -> None:
        self._began = time.perf_counter()

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
        self.seconds = time.perf_counter() - self._began


class Listening(TapCallback):
    """With `interlatent-live watch` (analyzer and page) beside it."""

    folder: str

    def _on_training_start(self) -> None:
        super()._on_training_start()
        assert self.tap is not None
        command = [sys.executable, "-m", "interlatent_live", "watch", self.tap.endpoint, "--run", "bench", "--no-open"]
        quiet = subprocess.DEVNULL
        self.beside = subprocess.Popen(command, cwd=self.folder, stdout=quiet, stderr=quiet)
        if not self.tap.wait_subscribed(60):
            raise RuntimeError("the analyzer did not subscribe within 60 s")
        time.sleep(5)  # until both have imported what they need


def measure(rounds: int, steps: int) -> dict[str, Any]:
    """Ratios by pair, and the tap's own figures."""
    wall, work, tap_us, equal = [], [], [], True
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds):
            callback = make(Path(folder), str(number))
            order = (None, callback) if number % 2 else (callback, None)
            found = {one is None: learn(steps, one) for one in order}
            without, tapped = found[True], found[False]
            wall.append(tapped[0] / without[0])
            work.append(tapped[1] / without[1])
            assert callback.tap is not None
            tap_us.append(callback.tap.overhead()["median"])
            pairs = zip(without[2].state_dict().values(), tapped[2].state_dict().values(), strict=True)
            equal = equal and all(torch.equal(a, b) for a, b in pairs)
    return {
        "wall_ratio": statistics.median(wall),
        "wall_ratios": wall,
        "processor_ratio": statistics.median(work),
        "steps_per_s": steps / without[0],
        "overhead_us_median": statistics.median(tap_us),
        "bit_equal": equal,
    }


def beside(steps: int) -> dict[str, float]:
    """Wall time with analyzer and page running, against without anything; one pair."""
    with tempfile.TemporaryDirectory() as folder:
        without = learn(steps, None)[0]
        callback = Listening(points=POINTS, envs=[0], run="bench", record=Path(folder) / "r.mcap", endpoint="tcp://127.0.0.1:*")
        callback.folder = folder
        model = PPO("MlpPolicy", "CartPole-v1", seed=0, device="cpu", verbose=0)
        model.learn(1)
        clock = _Clock()
        model.learn(steps, callback=[callback, clock])
        callback.beside.terminate()
        callback.beside.wait(10)
        return {"wall_ratio": clock.seconds / without}


def main() -> int:
    """Measure and show; 1 if the budget is exceeded."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=8_192)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--beside", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = measure(options.rounds, options.steps)
    if options.beside:
        found["beside"] = beside(4 * options.steps)
    if options.json:
        print(json.dumps(found))
        return 0
    spread = f"{min(found['wall_ratios']):.3f} to {max(found['wall_ratios']):.3f}"
    rows = [
        ("PPO CartPole, `learn` with callback against without, wall time", f"{found['wall_ratio']:.3f} ({spread})", f"≤ {BUDGET}"),
        ("the same, processor time of the process", f"{found['processor_ratio']:.3f}", ""),
        ("the tap's own figure, µs a step (median)", f"{found['overhead_us_median']:.1f}", ""),
        ("steps a second without", f"{found['steps_per_s']:.0f}", ""),
        ("weights at the end", "bit-equal" if found["bit_equal"] else "DIFFERENT", "bit-equal"),
    ]
    if options.beside:
        rows.append(("with analyzer and page on the same machine, wall time", f"{found['beside']['wall_ratio']:.2f}", "reported"))
    show("Stable-Baselines3", rows)
    return int(found["wall_ratio"] > BUDGET or not found["bit_equal"])


if __name__ == "__main__":
    sys.exit(main())
