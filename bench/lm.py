"""What a tap costs a language model that writes: each of its MLPs tapped on both sides, the same run without it.

    python -m bench.lm [--tokens 64] [--rounds 5] [--peers]

1. SmolLM2 decodes greedily, token by token with a cache. Rounds with and without the tap alternate, and so do their orders;
   times are medians over a round's decoding steps of each kind, ratios are of neighbouring rounds.
2. A tiny model with random weights, where the tap's own cost shows: median time of a decoding pass, plain and tapped; with
   `--peers` also TransformerLens's run_with_cache and nnsight's trace of the same activations, in this process.
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


def passes(model: Any, ids: Any, tokens: int) -> list[tuple[float, float]]:
    """Seconds of each decoding pass after the prompt's: by the clock, and of this thread's own CPU."""
    spent = []
    with torch.inference_mode():
        out = model(ids, use_cache=True)
        cache, following = out.past_key_values, out.logits[:, -1:].argmax(-1)
        for _ in range(tokens):
            began, worked = time.perf_counter(), time.thread_time()
            out = model(following, past_key_values=cache, use_cache=True)
            spent.append((time.perf_counter() - began, time.thread_time() - worked))
            following = out.logits[:, -1:].argmax(-1)
    return spent


def compared(model: Any, tokenizer: Any, points: list[str], ids: Any, tokens: int, rounds: int) -> dict[str, Any]:
    """Medians without and with a tap, and their difference by round; by the clock, and of the agent's thread's own CPU, which a
    busy machine does not change."""
    plain, tapped, own = [], [], []
    for round_ in range(rounds):
        for with_tap in [False, True] if round_ % 2 == 0 else [True, False]:
            if with_tap:
                tap = il.Tap(model, points, run=f"bench-{round_}", endpoint="", tokenizer=tokenizer)
                with tap, tap.prompt(labels={"round": round_}):
                    tapped.append(_medians(passes(model, ids, tokens)))
                own.append(tap.overhead()["median"])
            else:
                plain.append(_medians(passes(model, ids, tokens)))
    found: dict[str, Any] = {"by_the_tap_us": statistics.median(own)}
    for place, name in enumerate(("wall", "cpu")):
        pairs = [(p[place], t[place]) for p, t in zip(plain, tapped, strict=True)]
        found |= {
            f"plain_{name}_us": 1e6 * statistics.median(p for p, _ in pairs),
            f"added_{name}_us": 1e6 * statistics.median(t - p for p, t in pairs),
            f"added_{name}_percent": 100 * statistics.median(t / p - 1 for p, t in pairs),
            f"added_{name}_percent_rounds": [round(100 * (t / p - 1), 2) for p, t in pairs],
        }
    return found


def _medians(spent: list[tuple[float, float]]) -> tuple[float, float]:
    walls, works = zip(*spent, strict=True)
    return statistics.median(walls), statistics.median(works)


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

    made = model("gpt2")
    ids = torch.tensor([[4, 6, 8, 9, 4, 10]])
    points = [f"transformer.h.{i}.mlp:out" for i in range(2)]
    passes(made, ids, 8)
    found = {"model": "tiny GPT-2, 3 layers of 32", "points": 2} | compared(made, tokenizer(), points, ids, tokens, rounds)
    if peers:
        found["peers_added_cpu_us"] = {
            name: added for name, added in (("transformer_lens", _lens(rounds)), ("nnsight", _nnsight(made, ids, rounds))) if added
        }
        for name, added in found["peers_added_cpu_us"].items():
            found[f"{name}_over_ours"] = added / max(found["added_cpu_us"], 1e-9)
    return found


def _timed(call: Callable[[], object], rounds: int) -> float:
    for _ in range(10):
        call()
    spent = []
    for _ in range(60 * rounds):
        began = time.thread_time()
        call()
        spent.append(time.thread_time() - began)
    return 1e6 * statistics.median(spent)


def _lens(rounds: int) -> float | None:
    try:
        from transformer_lens import HookedTransformer, HookedTransformerConfig
    except ImportError:
        return None
    torch.manual_seed(0)
    shape = {"n_layers": 3, "d_model": 32, "n_ctx": 128, "d_head": 8, "n_heads": 4, "d_mlp": 128, "d_vocab": 64, "act_fn": "gelu"}
    lens = HookedTransformer(HookedTransformerConfig(**shape))
    names = [f"blocks.{i}.hook_mlp_out" for i in range(2)]
    ids = torch.tensor([[4]])
    with torch.inference_mode():
        return _timed(lambda: lens.run_with_cache(ids, names_filter=names), rounds) - _timed(lambda: lens(ids), rounds)


def _nnsight(made: Any, ids: Any, rounds: int) -> float | None:
    try:
        from nnsight import NNsight
    except ImportError:
        return None
    wrapped = NNsight(made)
    one = ids[:, :1]

    def traced() -> object:
        with wrapped.trace(one):
            first = wrapped.transformer.h[0].mlp.output.save()
            second = wrapped.transformer.h[1].mlp.output.save()
        return first, second

    with torch.inference_mode():
        return _timed(traced, rounds) - _timed(lambda: made(one), rounds)


def main() -> None:
    """Print both as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peers", action="store_true")
    parser.add_argument("--tiny-only", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    found = {"tiny": tiny(min(110, given.tokens * 2), 4 * given.rounds, given.peers)}
    if not given.tiny_only:
        found["smollm2"] = smollm2(given.tokens, given.rounds)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
