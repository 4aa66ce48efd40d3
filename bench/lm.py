"""What a tap costs a language model that writes: each of its MLPs tapped on both sides, the same run without it.

    python -m bench.lm [--tokens 64] [--rounds 5] [--peers] [--tiny-only]

1. SmolLM2 decodes greedily, token by token with a cache. Rounds with and without the tap alternate, and so do their orders;
   figures are medians over rounds of the differences. *wall* and *thread* are of the median decoding pass: by the clock, and of
   the agent's thread's own CPU. *process* is the CPU of the whole process a token, the sender's thread until it has nothing
   left included: what the machine pays in all.
2. A tiny model with random weights, where the tap's own cost shows; with `--peers` also TransformerLens's run_with_cache and
   nnsight's trace of the same two activations of the same one-token pass, in this process. All are counted alike: CPU of the
   whole process a pass, less that of the same blocks of passes without, in turns. The tap is counted twice: reading these
   activations and nothing else, as the peers do (a plain tap, one step a pass), and with all that it keeps of a token
   (its text and place, log-probability, entropy, likeliest tokens).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

import interlatent_live as il

_SETTLE_S = 0.1
"""For the sender's thread to take what waits; sleeping costs no CPU."""
_BLOCK = 400
"""Passes of the tiny model that are counted together."""


def passes(model: Any, ids: Any, tokens: int) -> tuple[float, float]:
    """Seconds of the median decoding pass after the prompt's: by the clock, and of this thread's own CPU."""
    spent = []
    with torch.inference_mode():
        out = model(ids, use_cache=True)
        cache, following = out.past_key_values, out.logits[:, -1:].argmax(-1)
        for _ in range(tokens):
            began, worked = time.perf_counter(), time.thread_time()
            out = model(following, past_key_values=cache, use_cache=True)
            spent.append((time.perf_counter() - began, time.thread_time() - worked))
            following = out.logits[:, -1:].argmax(-1)
    walls, works = zip(*spent, strict=True)
    return statistics.median(walls), statistics.median(works)


def counted(run: Callable[[], object], times: int) -> float:
    """Seconds of the process's CPU a time, of `run` which does something so many times, and of what it leaves the sender."""
    began = time.process_time()
    run()
    time.sleep(_SETTLE_S)
    return (time.process_time() - began) / times


def compared(model: Any, tokenizer: Any, points: list[str], ids: Any, tokens: int, rounds: int) -> dict[str, Any]:
    """Medians without and with a tap, and of their differences by round."""
    found: dict[bool, list[tuple[float, float, float]]] = {False: [], True: []}
    own = []

    def once() -> tuple[float, float, float]:
        seen: list[tuple[float, float]] = []
        process = counted(lambda: seen.append(passes(model, ids, tokens)), tokens)
        return (*seen[0], process)

    for round_ in range(rounds):
        for with_tap in [False, True] if round_ % 2 == 0 else [True, False]:
            if with_tap:
                tap = il.Tap(model, points, run=f"bench-{round_}", endpoint="", tokenizer=tokenizer)
                with tap, tap.prompt(labels={"round": round_}):
                    passes(model, ids, 4)
                    found[True].append(once())
                own.append(tap.overhead()["median"])
            else:
                found[False].append(once())
    out: dict[str, Any] = {"by_the_tap_us": statistics.median(own)}
    for place, name in enumerate(("wall", "thread", "process")):
        pairs = [(p[place], t[place]) for p, t in zip(found[False], found[True], strict=True)]
        out |= {
            f"plain_{name}_us": 1e6 * statistics.median(p for p, _ in pairs),
            f"added_{name}_us": 1e6 * statistics.median(t - p for p, t in pairs),
            f"added_{name}_percent": 100 * statistics.median(t / p - 1 for p, t in pairs),
            f"added_{name}_percent_rounds": [round(100 * (t / p - 1), 2) for p, t in pairs],
        }
    return out


def smollm2(tokens: int, rounds: int) -> dict[str, Any]:
    """SmolLM2 with all 30 MLPs tapped."""
    from interlatent_live.prompting import load

    loaded = load()
    ids = loaded.tokenizer("The force of gravity pulls", return_tensors="pt").input_ids
    points = [f"model.layers.{i}.mlp" for i in range(loaded.model.config.num_hidden_layers)]
    passes(loaded.model, ids, 4)
    return {"model": loaded.name, "points": 2 * len(points)} | compared(loaded.model, loaded.tokenizer, points, ids, tokens, rounds)


def tiny(tokens: int, rounds: int, peers: bool) -> dict[str, Any]:
    """A small model, and others that read the same activations of it."""
    from tests.tiny_lm import model, tokenizer

    made, text = model("gpt2"), tokenizer()
    one = torch.tensor([[4]])
    points = [f"transformer.h.{i}.mlp:out" for i in range(2)]
    ways: dict[str, tuple[Callable[[], float], Callable[[], float]]] = {}

    def plain() -> float:
        return _block(lambda: made(one))

    def activations() -> float:
        with il.Tap(made, points, run="bench", endpoint="") as tap:

            def call() -> None:
                made(one)
                tap.step()

            return _block(call)

    def written() -> float:
        ids = torch.tensor([[4, 6, 8, 9, 4, 10]])
        return counted(lambda: [passes(made, ids, tokens) for _ in range(_BLOCK // tokens)], _BLOCK)

    def read() -> float:
        with il.Tap(made, points, run="bench", endpoint="", tokenizer=text):
            passes(made, torch.tensor([[4, 6]]), 4)
            return written()

    ways["tap_activations"] = plain, activations
    ways["tap_tokens"] = written, read
    others = {"transformer_lens": _lens(), "nnsight": _nnsight(model("gpt2"), one)} if peers else {}
    ways |= {name: way for name, way in others.items() if way is not None}
    added: dict[str, list[float]] = {name: [] for name in ways}
    with torch.inference_mode():
        for round_ in range(rounds + 1):
            for name, (without, with_) in ways.items():
                before = without()
                difference = with_() - before
                if round_:  # the first warms up
                    added[name].append(1e6 * difference)
    medians = {name: statistics.median(values) for name, values in added.items()}
    return {
        "model": "tiny GPT-2, 3 layers of 32",
        "points": 2,
        "added_process_us": medians,
        "added_process_us_rounds": {name: [round(value, 1) for value in values] for name, values in added.items()},
        "times_the_tap": {
            name: {own: round(medians[name] / medians[own], 2) for own in ("tap_activations", "tap_tokens")}
            for name in medians
            if not name.startswith("tap")
        },
    }


def _block(call: Callable[[], object]) -> float:
    for _ in range(10):
        call()
    return counted(lambda: [call() for _ in range(_BLOCK)], _BLOCK)


def _lens() -> tuple[Callable[[], float], Callable[[], float]] | None:
    try:
        from transformer_lens import HookedTransformer, HookedTransformerConfig
    except ImportError:
        return None
    torch.manual_seed(0)
    shape = {"n_layers": 3, "d_model": 32, "n_ctx": 128, "d_head": 8, "n_heads": 4, "d_mlp": 128, "d_vocab": 64, "act_fn": "gelu"}
    lens = HookedTransformer(HookedTransformerConfig(**shape))
    names = [f"blocks.{i}.hook_mlp_out" for i in range(2)]
    ids = torch.tensor([[4]])
    return lambda: _block(lambda: lens(ids)), lambda: _block(lambda: lens.run_with_cache(ids, names_filter=names))


def _nnsight(made: Any, one: Any) -> tuple[Callable[[], float], Callable[[], float]] | None:
    try:
        from nnsight import NNsight
    except ImportError:
        return None
    wrapped = NNsight(made)

    def traced() -> object:
        with wrapped.trace(one):
            first = wrapped.transformer.h[0].mlp.output.save()
            second = wrapped.transformer.h[1].mlp.output.save()
        return first, second

    return lambda: _block(lambda: made(one)), lambda: _block(traced)


def main() -> None:
    """Print both as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peers", action="store_true")
    parser.add_argument("--tiny-only", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    found = {"tiny": tiny(100, 2 * given.rounds, given.peers)}
    if not given.tiny_only:
        found["smollm2"] = smollm2(given.tokens, given.rounds)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
