"""Rows of a language model equal what plain hooks see and what the model itself gives, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.tiny_lm import Rows, bits, layers, model, plain_hooks, tokenizer, torch

import interlatent_live as il

TEXTS = ["the cat sat on the mat", "a dog", "the rocket flies and burns"]


def points(kind: str) -> list[str]:
    parts = ["mlp", "self_attn", "input_layernorm"] if kind == "llama" else ["mlp", "attn", "ln_1"]
    paths = [f"{layers(kind)}.{i}{part}" for i in range(3) for part in ("", *(f".{p}" for p in parts))]
    return [f"{path}:{side}" for path in paths for side in ("in", "out")]


def inputs(side: str = "left", texts: list[str] = TEXTS) -> dict[str, Any]:
    found = tokenizer()(texts, return_tensors="pt", padding=True, padding_side=side)
    return {name: found[name] for name in ("input_ids", "attention_mask")}


def check(made: Any, kind: str, path: Path, run: Any, *, padded: bool = True) -> Rows:
    """Run with a tap and plain hooks; every row equals what the hooks saw of that token."""
    names = points(kind)
    tap = il.Tap(made, names, run="parity", record=path, endpoint="", tokenizer=tokenizer())
    with plain_hooks(made, names) as seen, tap:
        run()
    rows = Rows(path)
    for name in names:
        together = torch.cat(seen[name], 1)  # (batch, columns, …)
        mine = rows.activations(name)
        for prompt in np.unique(rows["prompt"]):
            of = rows.of(int(prompt))
            env = int(rows["env"][of[0]])
            theirs = bits(together[env])
            wanted = theirs[theirs.shape[0] - len(of) :] if padded else theirs[: len(of)]
            assert np.array_equal(mine[of], wanted), name
    return rows


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_generation_of_a_left_padded_batch(kind: str, dtype: str, tmp_path: Path) -> None:
    made, given = model(kind, dtype=dtype), inputs()
    out: list[Any] = []
    run = lambda: out.append(made.generate(**given, max_new_tokens=6, min_new_tokens=6, do_sample=False))  # noqa: E731
    rows = check(made, kind, tmp_path / "r.mcap", run)
    for prompt, written in enumerate(out[0].tolist()):
        of = rows.of(prompt)
        real = [t for t, m in zip(given["input_ids"][prompt], given["attention_mask"][prompt], strict=True) if m]
        assert rows["token"][of].tolist() == [int(t) for t in real] + written[-6:-1], "the last token has no row"
        assert rows["position"][of].tolist() == list(range(len(of)))
        assert rows["generated"][of].tolist() == [False] * len(real) + [True] * 5
        assert rows["truncated"][of].tolist() == [False] * (len(of) - 1) + [True]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_plain_pass_equals_hidden_states(kind: str, side: str, tmp_path: Path) -> None:
    made, given = model(kind), inputs(side)
    out: list[Any] = []

    def run() -> None:
        with torch.no_grad():
            out.append(made(**given, output_hidden_states=True))

    rows = check(made, kind, tmp_path / "r.mcap", run, padded=side == "left")
    mask = given["attention_mask"].bool().numpy()
    states = out[0].hidden_states
    assert len(rows["token"]) == mask.sum()
    for env in range(3):
        of = rows.of(env)
        for i in range(3):
            mine = {end: rows.activations(f"{layers(kind)}.{i}:{end}")[of] for end in ("in", "out")}
            assert np.array_equal(mine["in"], states[i][env].numpy()[mask[env]])
            if i < 2:  # the last of hidden_states is what comes after the final norm
                assert np.array_equal(mine["out"], states[i + 1][env].numpy()[mask[env]])
    final = made.model.norm if kind == "llama" else made.transformer.ln_f
    with torch.no_grad():
        normed = final(torch.from_numpy(rows.activations(f"{layers(kind)}.2:out")[rows.of(0)]))
    assert torch.allclose(normed, states[3][0][torch.from_numpy(mask[0])], atol=1e-6)


def test_log_probabilities_are_the_models(tmp_path: Path) -> None:
    made, given = model(), inputs()
    tap = il.Tap(made, "model.layers.1.mlp", run="lp", record=tmp_path / "r.mcap", endpoint="", tokenizer=tokenizer())
    with tap:
        made.generate(**given, max_new_tokens=8, min_new_tokens=8, do_sample=True)
    rows = Rows(tmp_path / "r.mcap")
    for prompt in range(3):
        of = rows.of(prompt)
        ids = torch.from_numpy(rows["token"][of].astype(np.int64))[None]
        with torch.no_grad():
            logp = torch.log_softmax(made(ids).logits[0], -1)
        wanted = logp[:-1].gather(1, ids[0, 1:, None])[:, 0].numpy()
        assert np.isnan(rows["logprob"][of][0])
        assert np.allclose(rows["logprob"][of][1:], wanted, atol=1e-4)
        assert np.allclose(rows["next_entropy"][of], -(logp.exp() * logp).sum(-1).numpy(), atol=1e-4)
        top = logp.exp().topk(5, -1)
        assert np.allclose(rows["next_probs"][of], top.values.numpy(), atol=1e-4)
        assert np.array_equal(rows["next_tokens"][of], top.indices.numpy())
        assert np.allclose(rows["next_top"][of], top.values[:, 0].numpy(), atol=1e-4)


def test_prompts_of_a_model_that_scales_its_logits_stay_unknown(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = model(fresh=True)
    head = made.lm_head.forward
    made.lm_head.forward = lambda x: 0.5 * head(x)
    with il.Tap(made, "model.layers.1.mlp", run="s", record=tmp_path / "r.mcap", endpoint="", tokenizer=tokenizer()):
        made.generate(**inputs(texts=["the cat sat on"]), max_new_tokens=3, min_new_tokens=3, do_sample=False)
    rows = Rows(tmp_path / "r.mcap")
    assert np.isnan(rows["logprob"]).tolist() == [True] * 4 + [False] * 2
    assert "log-probabilities of prompts are unknown" in caplog.text


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_rejected_tokens_are_dropped_and_counted(kind: str, tmp_path: Path) -> None:
    made = model(kind)
    given = inputs(texts=["the cat sat on the cat sat on the cat"])
    tap = il.Tap(made, f"{layers(kind)}.1.mlp", run="lookup", record=tmp_path / "r.mcap", endpoint="", tokenizer=tokenizer())
    with tap:
        written = made.generate(**given, max_new_tokens=12, min_new_tokens=12, do_sample=False, prompt_lookup_num_tokens=4)
        plainly = made.generate(**given, max_new_tokens=12, min_new_tokens=12, do_sample=False)
    assert written.tolist() == plainly.tolist()
    rows = Rows(tmp_path / "r.mcap")
    first, second = rows.of(0), rows.of(1)
    assert rows["token"][first].tolist() == written[0, :-1].tolist()
    assert rows["generated"][first].tolist() == rows["generated"][second].tolist() == [False] * 10 + [True] * 11
    assert tap.status()["rejected_tokens"] > 0
    point = f"{layers(kind)}.1.mlp:out"
    assert np.allclose(rows.activations(point)[first], rows.activations(point)[second], atol=1e-5)
    assert np.allclose(rows["logprob"][first], rows["logprob"][second], atol=1e-4, equal_nan=True)


def test_the_other_ways_to_generate_give_the_same_rows(tmp_path: Path) -> None:
    made, given = model(), inputs()
    ways: list[dict[str, Any]] = [{}, {"use_cache": False}, {"cache_implementation": "static"}, {"prefill_chunk_size": 2}]
    tap = il.Tap(made, "model.layers.1.mlp:out", run="ways", record=tmp_path / "r.mcap", endpoint="", tokenizer=tokenizer())
    with tap:
        for way in ways:
            made.generate(**given, max_new_tokens=5, min_new_tokens=5, do_sample=False, **way)
    rows = Rows(tmp_path / "r.mcap")
    assert len(rows.prompts) == 3 * len(ways)
    for prompt in range(3):
        for number, way in enumerate(ways[1:], 1):
            one, other = rows.of(prompt), rows.of(3 * number + prompt)
            assert rows["token"][one].tolist() == rows["token"][other].tolist(), way
            assert np.allclose(rows["logprob"][one], rows["logprob"][other], atol=1e-4, equal_nan=True), way
            points_ = rows.activations("model.layers.1.mlp:out")
            assert np.allclose(points_[one], points_[other], atol=1e-5), way


@pytest.mark.slow
def test_a_compiled_model_is_read_where_its_graph_is_cut(tmp_path: Path) -> None:
    made, given = model(fresh=True), inputs(texts=TEXTS[:1])
    compiled = torch.compile(made, backend="eager")
    tap = il.Tap(compiled, "model.layers.1.mlp", run="compiled", record=tmp_path / "r.mcap", endpoint="", tokenizer=tokenizer())
    with tap, torch.no_grad():
        logits = compiled(**given).logits
    rows = Rows(tmp_path / "r.mcap")
    with plain_hooks(made, ["model.layers.1.mlp:out"]) as seen, torch.no_grad():
        again = made(**given).logits
    assert torch.allclose(logits, again)
    assert np.array_equal(rows.activations("model.layers.1.mlp:out"), seen["model.layers.1.mlp:out"][-1][0].numpy())
    torch.compiler.reset()


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_what_is_patched_is_what_is_captured(kind: str, tmp_path: Path) -> None:
    made, given = model(kind, fresh=True), inputs(texts=TEXTS[:1])
    place = f"{layers(kind)}.1.mlp"
    mlp = dict(made.named_modules())[place]
    handle = mlp.register_forward_hook(lambda m, a, o: torch.zeros_like(o))
    read = [f"{place}:out", f"{layers(kind)}.2:in"]
    tap = il.Tap(made, read, run="patch", record=tmp_path / "r.mcap", endpoint="", tokenizer=tokenizer())
    with tap, torch.no_grad():
        patched = made(**given).logits
    handle.remove()
    last = mlp.down_proj if kind == "llama" else mlp.c_proj
    with torch.no_grad():
        for parameter in last.parameters():
            parameter.zero_()
        ablated = made(**given, output_hidden_states=True)
    rows = Rows(tmp_path / "r.mcap")
    assert not rows.activations(f"{place}:out").any()
    assert torch.equal(patched, ablated.logits)
    assert np.array_equal(rows.activations(f"{layers(kind)}.2:in"), ablated.hidden_states[2][0].numpy())
