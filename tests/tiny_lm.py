"""Small language models with random weights, and a tokenizer of whole words for them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from interlatent_live.stream.frames import FrameBatch
from interlatent_live.stream.prompt import Prompt, Vocabulary
from interlatent_live.stream.reading import Recording

torch: Any = pytest.importorskip("torch")
transformers: Any = pytest.importorskip("transformers")

WORDS = ["<pad>", "<s>", "</s>", "<unk>", "the", "a", "cat", "dog", "sat", "on", "mat", "and", "bomb", "is", "1", "2", "3", ".", ","]
WORDS += ["Physics", "rocket", "heat", "cook", "pot", "stirs", "flies", "burns", "soup", "orbit", "fuel", "engine", "salt", "pepper"]
WORDS += ["onion"]
SIZE = 64
_MODELS: dict[str, Any] = {}


def tokenizer() -> Any:
    """Words between spaces; what it does not know is <unk>."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = [*WORDS, *(f"w{i}" for i in range(SIZE - len(WORDS)))]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


def model(kind: str = "llama", *, dtype: str = "float32", fresh: bool = False) -> Any:
    """'llama' or 'gpt2', three layers of 32, context 128."""
    key = f"{kind}-{dtype}"
    if fresh or key not in _MODELS:
        torch.manual_seed(7)
        ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
        if kind == "llama":
            settings = transformers.LlamaConfig(
                vocab_size=SIZE, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
                max_position_embeddings=128, **ids,
            )  # fmt: skip
            made = transformers.LlamaForCausalLM(settings)
        else:
            settings = transformers.GPT2Config(
                vocab_size=SIZE, n_positions=128, n_embd=32, n_layer=3, n_head=4, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, **ids
            )
            made = transformers.GPT2LMHeadModel(settings)
        with torch.no_grad():  # predictions that differ from each other, as a trained model's
            made.get_output_embeddings().weight.mul_(30)
        made = made.eval().to(getattr(torch, dtype))
        if fresh:
            return made
        _MODELS[key] = made
    return _MODELS[key]


def layers(kind: str) -> str:
    """Path of the decoder layers."""
    return "model.layers" if kind == "llama" else "transformer.h"


class Rows:
    """All that a recording holds, by name."""

    def __init__(self, path: Path) -> None:
        messages = list(Recording(path).messages())
        self.batches = [m for m in messages if isinstance(m, FrameBatch)]
        self.prompts = [m for m in messages if isinstance(m, Prompt)]
        self.words: dict[int, bytes] = {}
        for message in messages:
            if isinstance(message, Vocabulary):
                self.words |= dict(zip(message.tokens, message.texts, strict=True))
        self.metrics = Recording(path).manifest.metric_names

    def __getitem__(self, name: str) -> Any:
        if name in self.metrics:
            column = self.metrics.index(name)
            return np.concatenate([b.columns["metrics"][:, column] for b in self.batches])
        return np.concatenate([b.columns[name] for b in self.batches])

    def of(self, prompt: int) -> Any:
        """(n,) rows of one prompt, by position."""
        rows = np.flatnonzero(self["prompt"] == prompt)
        return rows[np.argsort(self["position"][rows], kind="stable")]

    def activations(self, point: str) -> Any:
        """(rows, …) where all rows have them; bfloat16 as its bits."""
        assert all(point not in b.present for b in self.batches)
        return np.concatenate([b.activations[point] for b in self.batches])


@contextlib.contextmanager
def plain_hooks(made: Any, names: list[str]) -> Iterator[dict[str, list[Any]]]:
    """What plain hooks of torch see: by 'module:side', a tensor for each pass."""
    seen: dict[str, list[Any]] = {}
    modules = dict(made.named_modules())
    handles = []

    def tensor(value: Any) -> Any:
        return value[0] if isinstance(value, tuple) else value

    for name in names:
        path, _, side = name.partition(":")
        kept = seen.setdefault(name, [])
        if side == "out":
            handles.append(modules[path].register_forward_hook(lambda m, a, o, kept=kept: kept.append(tensor(o).detach().clone())))
        else:
            handles.append(
                modules[path].register_forward_pre_hook(
                    lambda m, a, k, kept=kept: kept.append((a[0] if a else k["hidden_states"]).detach().clone()), with_kwargs=True
                )
            )
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def bits(tensor: Any) -> Any:
    """As it travels."""
    return tensor.view(torch.int16).numpy().view(np.uint16) if tensor.dtype == torch.bfloat16 else tensor.numpy()
