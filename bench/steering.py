"""What steering costs the agent: idle, with an intervention in force, and its effect measured.

    python -m bench.steering [--rounds 60] [--json]

One process, side by side, in interleaved rounds; lower quartiles over rounds, since other processes only ever add. An MLP 2×256 on the 4
terms of CartPole, one thread, inference mode, two tap points, a dictionary of 256 latents between them (256 -> 256 -> 256). Ratios: of the
µs that a tap adds to a step with steering allowed and nothing in force, to those of a read-only tap; and of the whole steps. An active
intervention is compared with the idle tap. No effect is measured but in the last line (at its default budget).
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

import interlatent_live as il
from bench.table import show
from interlatent_live.agent_side.metrics import terms
from interlatent_live.agent_side.weights import weights_hash
from interlatent_live.analyzer.dictionary import Activation, Dictionary, DictionaryConfig
from interlatent_live.stream.control import ControlClient

POINTS = ("1:out", "3:out")
IDLE_RATIO = 1.15
"""Tap with steering allowed, against the read-only tap."""
ACTIVE_US = 60.0
"""An intervention in force, µs a step."""


def make_policy() -> nn.Sequential:
    """MLP 2×256, in evaluation mode."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 256), nn.Tanh(), nn.Linear(256, 256), nn.Tanh(), nn.Linear(256, 2)).eval()


def make_dictionary(model: nn.Module, activation: Activation) -> Dictionary:
    """256 latents of its second layer, about half of them active (TopK: 16)."""
    torch.manual_seed(1)
    cfg = DictionaryConfig(
        activation, activation, 256, 256, 256, *POINTS, k=16 if activation == "topk" else None, model_hash=weights_hash(model)
    )
    weights = {"W_enc": torch.randn(256, 256) / 16, "W_dec": torch.randn(256, 256) / 16}
    return Dictionary(cfg, weights | {"b_enc": torch.zeros(256), "b_dec": torch.zeros(256)})


def make_tap(model: nn.Module, steering: il.SteeringPolicy | None) -> il.Tap:
    """A tap with CartPole's terms as metrics, on a free port."""
    return il.Tap(
        model, POINTS, run="bench", endpoint="tcp://127.0.0.1:*", metrics=terms("CartPole-v1"), environment="CartPole-v1", steering=steering
    )


def active_feature(model: nn.Sequential, dictionary: Dictionary, batch: torch.Tensor) -> int:
    """The strongest feature on the batch, so that scaling it changes something."""
    return int(dictionary.encode_dense(model[:2](batch)).argmax())


def measure(rounds: int, steps: int) -> dict[str, Any]:
    """µs a step of every way."""
    observation = np.array([0.01, -0.2, 0.03, 0.4], np.float32)
    batch = torch.from_numpy(observation)[None]
    bare, read_only = make_policy(), make_policy()
    read_tap = make_tap(read_only, None)
    ways: dict[str, Callable[[], None]] = {}

    def acting(model: nn.Module, tap: il.Tap | None) -> Callable[[], None]:
        def run() -> None:
            for _ in range(steps):
                model(batch)
                if tap is not None:
                    tap.step(observation=observation, action=1, reward=1.0, terminated=False, truncated=False)

        return run

    ways["bare"], ways["read-only"] = acting(bare, None), acting(read_only, read_tap)
    taps = [read_tap]
    acts: dict[str, Callable[[], Any]] = {}
    for name, activation, hertz in (("idle", "relu", 0), ("relu", "relu", 0), ("topk", "topk", 0), ("measured", "relu", 5)):
        model = make_policy()
        dictionary = make_dictionary(model, activation)  # type: ignore[arg-type]
        tap = make_tap(model, il.SteeringPolicy(dictionaries=[dictionary], effect_hz=hertz))
        taps.append(tap)
        ways[name] = acting(model, tap)
        if name != "idle":
            feature = active_feature(model, dictionary, batch)
            acts[name] = lambda tap=tap, feature=feature: tap.steer(feature, scale=1.5)  # type: ignore[misc]
    times: dict[str, list[float]] = {name: [] for name in ways}
    with torch.inference_mode():
        for tap in taps:
            tap.open()
        started = {name: start() for name, start in acts.items()}
        for i in range(rounds + 2):
            order = list(ways)[i % len(ways) :] + list(ways)[: i % len(ways)]  # what ran before warms or spoils the caches
            for name in order:
                way = ways[name]
                began = time.perf_counter()
                way()
                if i >= 2:  # the first rounds warm up
                    times[name].append((time.perf_counter() - began) / steps * 1e6)
                time.sleep(0.02)  # let the senders finish
        active = all(act.active for act in started.values())
        effect = started["measured"].effect
        for tap in taps:
            tap.close()
    quiet = {name: float(np.percentile(values, 25)) for name, values in times.items()}
    paired = np.array(times["idle"]) / np.array(times["read-only"])
    added = {name: value - quiet["bare"] for name, value in quiet.items() if name != "bare"}
    return {
        "step_us": quiet["bare"],
        "read_only_us": added["read-only"],
        "idle_us": added["idle"],
        "idle_ratio_of_added": added["idle"] / added["read-only"],
        "idle_ratio_of_steps": float(np.median(paired)),
        "relu_active_us": quiet["relu"] - quiet["idle"],
        "topk_active_us": quiet["topk"] - quiet["idle"],
        "measured_5_hz_us": quiet["measured"] - quiet["idle"],
        "effect": effect,
        "all_in_force": active,
    }


def no_op(steps: int) -> int:
    """Steps at scale 1 whose output is bit for bit the plain model's."""
    model, plain = make_policy(), make_policy()
    dictionary = make_dictionary(model, "relu")
    rng = np.random.default_rng(0)
    same = 0
    with make_tap(model, il.SteeringPolicy(dictionaries=[dictionary], effect_hz=0, max_active=16)) as tap, torch.inference_mode():
        for feature in range(16):
            tap.steer(feature, scale=1.0)
        for _ in range(steps):
            batch = torch.from_numpy(rng.normal(size=(1, 4)).astype(np.float32))
            same += model(batch).numpy().tobytes() == plain(batch).numpy().tobytes()
            tap.step(action=0)
    return same


def paced(tap: il.Tap, model: nn.Module, stop: threading.Event, starts: list[float]) -> None:
    """Act 50 times a second; `starts` gets the time of every forward pass that was steered."""
    observation = np.array([0.01, -0.2, 0.03, 0.4], np.float32)
    batch, steering = torch.from_numpy(observation)[None], tap._steering
    due = time.monotonic()
    with torch.inference_mode():
        while not stop.is_set():
            model(batch)
            if steering is not None and steering._applied:
                starts.append(time.monotonic())
            tap.step(observation=observation, action=1, reward=1.0)
            due += 0.02
            time.sleep(max(0.0, due - time.monotonic()))


def reach(commands: int) -> dict[str, float]:
    """ms from a request in another process' place (its own socket) to the first steered pass, and s until a silent author's ends."""
    model = make_policy()
    dictionary = make_dictionary(model, "relu")
    tap = make_tap(model, il.SteeringPolicy(dictionaries=[dictionary], effect_hz=0))
    stop, steered = threading.Event(), list[float]()
    delays = []
    with tap:
        agent = threading.Thread(target=paced, args=(tap, model, stop, steered))
        agent.start()
        while tap.manifest is None or not tap.frames:
            time.sleep(0.01)
        assert tap.manifest is not None
        assert tap.manifest.control is not None
        with ControlClient(tap.manifest.control) as client:
            client.hello()
            for i in range(commands):
                time.sleep(0.1 + 0.007 * (i % 7))
                steered.clear()
                began = time.monotonic()
                id = client.steer(operation="scale", strength=0.5, feature=1)["id"]
                while not steered:
                    time.sleep(0.001)
                delays.append((steered[0] - began) * 1e3)
                client.release(id)
            client.steer(operation="scale", strength=0.5, feature=1)
            silent = time.monotonic()
            time.sleep(0.2)
            while tap._steering is not None and tap._steering.wanted is not None:
                time.sleep(0.005)
            left = time.monotonic() - silent
        stop.set()
        agent.join()
    p50, most = np.percentile(delays, (50, 100))
    return {"reach_ms_p50": float(p50), "reach_ms_max": float(most), "author_gone_s": left}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = measure(options.rounds, options.steps) | {"no_op_equal_of_10000": no_op(10_000)} | reach(30)
    if options.json:
        print(json.dumps(found))
    else:
        show(
            "Steering: MLP 2×256, dictionary of 256 latents",
            [
                ("a step without a tap, µs", f"{found['step_us']:.1f}", ""),
                ("the read-only tap adds, µs", f"{found['read_only_us']:.1f}", ""),
                ("steering allowed, idle: of what the read-only tap adds", f"{found['idle_ratio_of_added']:.2f}", f"{IDLE_RATIO}"),
                ("the same, of whole steps", f"{found['idle_ratio_of_steps']:.2f}", ""),
                ("one intervention in force, ReLU, µs more", f"{found['relu_active_us']:.1f}", f"{ACTIVE_US:g}"),
                ("one intervention in force, TopK, µs more", f"{found['topk_active_us']:.1f}", f"{ACTIVE_US:g}"),
                ("ReLU, its effect measured 5 times a second, µs more", f"{found['measured_5_hz_us']:.1f}", ""),
                ("steps at scale 1 with the very bits of no steering", f"{found['no_op_equal_of_10000']}", "10000"),
                ("command to first steered step at 50 steps/s, ms, median", f"{found['reach_ms_p50']:.0f}", ""),
                ("the slowest of 30", f"{found['reach_ms_max']:.0f}", "50"),
                ("author silent, released after, s", f"{found['author_gone_s']:.2f}", "2"),
            ],
        )
