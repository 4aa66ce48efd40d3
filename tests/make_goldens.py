"""Goldens of `analyzer.foreign`: a few KB each, written and computed by the packages themselves.

Run by `make goldens` in a throw-away environment that has sparsify and SAELens; the tests need neither. For each file:
the package's own files, and golden.json with inputs, its features, its outputs and its version.
"""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch

D_IN, D_OUT, FEATURES, ROWS, K = 6, 5, 16, 12, 3


def randomise(module: torch.nn.Module, seed: int) -> None:
    """Nothing zero: every tensor must matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(module.named_parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.7)
            if "threshold" in name:
                parameter.abs_().mul_(0.5)


def write(folder: Path, package: str, x: torch.Tensor, features: torch.Tensor, y: torch.Tensor) -> None:
    """What the package computed beside what it wrote."""
    data = {
        "package": package,
        "version": importlib.metadata.version(package),
        "torch": torch.__version__,
        "x": x.tolist(),
        "features": features.tolist(),
        "y": y.tolist(),
    }
    (folder / "golden.json").write_text(json.dumps(data) + "\n")


def sparsify(to: Path, x: torch.Tensor) -> None:
    """TopK SAE, transcoder, skip transcoder."""
    from sparsify import SparseCoder, SparseCoderConfig

    kinds: dict[str, dict[str, Any]] = {
        "sae": {"num_latents": FEATURES},
        "transcoder": {"num_latents": FEATURES, "transcode": True},
        "skip": {"expansion_factor": 3, "transcode": True, "skip_connection": True},
        "sae_skip": {"num_latents": FEATURES, "skip_connection": True},
    }
    for seed, (kind, options) in enumerate(kinds.items()):
        coder = SparseCoder(D_IN, SparseCoderConfig(k=K, **options))
        randomise(coder, seed)
        folder = to / f"sparsify_{kind}"
        coder.save_to_disk(folder)
        with torch.no_grad():
            acts, indices, _ = coder.encode(x)
            y = coder(x, x).sae_out
        write(folder, "eai-sparsify", x, torch.zeros(ROWS, coder.num_latents).scatter(1, indices, acts), y)


def saelens(to: Path, x: torch.Tensor) -> None:
    """Every architecture that fits, as SAELens >= 6 writes it; and the flat form of before."""
    from sae_lens import SAE
    from sae_lens.registry import get_sae_class

    kinds: dict[str, tuple[str, dict[str, Any]]] = {
        "standard": ("standard", {}),
        "standard_raw_input": ("standard", {"apply_b_dec_to_input": False}),
        "topk": ("topk", {"k": K}),
        "topk_rescaled": ("topk", {"k": K, "rescale_acts_by_decoder_norm": True}),
        "jumprelu": ("jumprelu", {}),
        "transcoder": ("transcoder", {"d_out": D_OUT, "apply_b_dec_to_input": False}),
        "skip_transcoder": ("skip_transcoder", {"d_out": D_OUT, "apply_b_dec_to_input": False}),
        "square_skip_transcoder": ("skip_transcoder", {"d_out": D_IN, "apply_b_dec_to_input": False}),
        "jumprelu_transcoder": ("jumprelu_transcoder", {"d_out": D_OUT, "apply_b_dec_to_input": False}),
        "jumprelu_skip_transcoder": ("jumprelu_skip_transcoder", {"d_out": D_OUT, "apply_b_dec_to_input": False}),
    }
    for seed, (kind, (architecture, options)) in enumerate(kinds.items()):
        sae_class, config_class = get_sae_class(architecture)
        sae = sae_class(config_class(d_in=D_IN, d_sae=FEATURES, **options))
        randomise(sae, 100 + seed)
        folder = to / f"saelens_{kind}"
        sae.save_model(folder)
        with torch.no_grad():
            features = sae.encode(x)
            write(folder, "sae-lens", x, features.to_dense() if features.is_sparse else features, sae(x))
    flat_kinds: dict[str, dict[str, Any]] = {
        "standard": {},
        "topk": {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}},
        "jumprelu": {"architecture": "jumprelu"},
    }
    for kind, changes in flat_kinds.items():
        folder = to / f"saelens_flat_{kind}"
        folder.mkdir(parents=True)
        shutil.copy(to / f"saelens_{kind}" / "sae_weights.safetensors", folder)
        flat: dict[str, Any] = {
            "architecture": "standard", "d_in": D_IN, "d_sae": FEATURES, "activation_fn_str": "relu", "activation_fn_kwargs": {},
            "apply_b_dec_to_input": True, "finetuning_scaling_factor": False, "normalize_activations": "none",
            "dtype": "float32", "device": "cpu", "hook_name": "blocks.3.hook_resid_pre", "hook_layer": 3,
            "hook_head_index": None, "model_name": "gpt2-small", "context_size": 128, "prepend_bos": True,
            "sae_lens_training_version": "3.22.0",
        }  # fmt: skip
        (folder / "cfg.json").write_text(json.dumps(flat | changes) + "\n")
        loaded = SAE.load_from_disk(folder)  # what the package makes of the flat form
        with torch.no_grad():
            features = loaded.encode(x)
            write(folder, "sae-lens", x, features.to_dense() if features.is_sparse else features, loaded(x))


if __name__ == "__main__":
    target = Path(sys.argv[1])
    shutil.rmtree(target, ignore_errors=True)
    inputs = torch.randn(ROWS, D_IN, generator=torch.Generator().manual_seed(7)) * 1.5 + 0.5
    sparsify(target, inputs)
    saelens(target, inputs)
    print(*sorted(p.name for p in target.iterdir()))
