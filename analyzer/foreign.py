"""Dictionaries that others trained: sparsify and SAELens files as the native type, on torch and safetensors alone.

    sparsify        cfg.json + sae.safetensors: encoder.weight (features, d), encoder.bias, W_dec (features, d), b_dec,
                    W_skip (d, d), applied as x @ W_skip.T
    SAELens >= 6    cfg.json + sae_weights.safetensors: W_enc (d_in, features), b_enc, W_dec (features, d_out), b_dec,
                    threshold, W_skip (d_out, d_in), applied as x @ W_skip.T
    SAELens < 6     the same tensors; a flat cfg.json, TopK named by activation_fn_str and activation_fn_kwargs

What they do to the input is folded in: pre = (x - b_dec) @ W_enc + b_enc becomes b_enc' = b_enc - b_dec @ W_enc, and
`rescale_acts_by_decoder_norm` moves the norm of a decoder row into its encoder. What the native type cannot compute is
refused by name: gated, temporal, matching-pursuit and signed TopK architectures, groupmax, and layer or constant norms of
the input, which are no linear maps. sparsify's transcoders do not subtract b_dec; those saved before February 2025 did,
which their files do not say. Parity with the packages: tests/golden/dictionaries, made by `make goldens`.

Neither format says which model it is of, in our terms: the model hash is '', so the analyzer takes such a dictionary by
name only and marks it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import torch

from interlatent_live.analyzer.artifact import read_json, read_tensors
from interlatent_live.analyzer.dictionary import CFG, Activation, Dictionary, DictionaryConfig
from interlatent_live.stream.errors import DictionaryError

__all__ = ["SAELENS_TENSORS", "SPARSIFY_TENSORS", "is_foreign", "load_foreign"]

SPARSIFY_TENSORS: Final = "sae.safetensors"
SAELENS_TENSORS: Final = "sae_weights.safetensors"
Shapes = dict[str, tuple[int, ...]]

_SAELENS: Final[dict[str, tuple[Activation, bool, bool]]] = {
    # architecture: activation, transcoder, skip
    "standard": ("relu", False, False),
    "topk": ("topk", False, False),
    "jumprelu": ("jumprelu", False, False),
    "transcoder": ("relu", True, False),
    "skip_transcoder": ("relu", True, True),
    "jumprelu_transcoder": ("jumprelu", True, False),
    "jumprelu_skip_transcoder": ("jumprelu", True, True),
}


def is_foreign(directory: Path) -> bool:
    """Whether the folder is laid out as one of theirs."""
    return (directory / CFG).is_file() and ((directory / SPARSIFY_TENSORS).is_file() or (directory / SAELENS_TENSORS).is_file())


def load_foreign(directory: Path) -> Dictionary:
    """The native dictionary that computes what theirs does; DictionaryError where there is none, or a file lies."""
    cfg = read_json(directory / CFG)
    if not isinstance(cfg, dict):
        raise DictionaryError(f"{directory / CFG} holds {type(cfg).__name__}, not an object")
    if (directory / SPARSIFY_TENSORS).is_file():
        return _sparsify(directory, cfg)
    return _saelens(directory, cfg)


def _sparsify(directory: Path, cfg: Mapping[str, Any]) -> Dictionary:
    activation = cfg.get("activation", "topk")
    if activation != "topk":
        raise DictionaryError(f"{directory} has activation {activation!r} (sparsify); of sparsify's only topk can be computed")
    d = _whole(directory, cfg, "d_in")
    features = cfg.get("num_latents") or d * _whole(directory, cfg, "expansion_factor")
    skip, transcode = bool(cfg.get("skip_connection", False)), bool(cfg.get("transcode", False))
    wanted: Shapes = {"encoder.weight": (features, d), "encoder.bias": (features,), "W_dec": (features, d), "b_dec": (d,)}
    if skip:
        wanted["W_skip"] = (d, d)
    found = _tensors(directory / SPARSIFY_TENSORS, wanted)
    tensors = {
        "W_enc": found["encoder.weight"].T,
        "b_enc": found["encoder.bias"] if transcode else _shifted(found["encoder.bias"], found["b_dec"], found["encoder.weight"].T),
        "W_dec": found["W_dec"],
        "b_dec": found["b_dec"],
    }
    if skip:
        tensors["W_skip"] = found["W_skip"].T  # of the input as it came, before b_dec is subtracted
    hook = directory.name
    native = DictionaryConfig(
        name=hook, activation="topk", d_in=d, d_out=d, features=features, k=_whole(directory, cfg, "k"), skip=skip,
        input=f"{hook}:in" if transcode else f"{hook}:out", output=f"{hook}:out",
        provenance={"format": "sparsify", "transcode": transcode},
    )  # fmt: skip
    return Dictionary(native, tensors, path=directory)


def _saelens(directory: Path, cfg: Mapping[str, Any]) -> Dictionary:
    metadata = cfg.get("metadata")
    about: Mapping[str, Any] = metadata if isinstance(metadata, dict) else {}
    version = cfg.get("sae_lens_version") or about.get("sae_lens_version")
    flat = not (isinstance(version, str) and version.partition(".")[0].isdigit() and int(version.partition(".")[0]) >= 6)
    architecture, k = cfg.get("architecture", "standard"), cfg.get("k")
    names = cfg if flat else about
    if flat:
        function = cfg.get("activation_fn", cfg.get("activation_fn_str", "relu"))
        if function == "topk":
            architecture, k = "topk", (cfg.get("activation_fn_kwargs") or {}).get("k")
        elif function != "relu":
            raise DictionaryError(f"{directory} has activation_fn {function!r} (SAELens before 6); relu and topk can be computed")
        if cfg.get("finetuning_scaling_factor"):
            raise DictionaryError(f"{directory} has a finetuning_scaling_factor (SAELens before 6), which cannot be computed; fold it in")
    if architecture not in _SAELENS:
        allowed = ", ".join(_SAELENS)
        raise DictionaryError(f"{directory} has architecture {architecture!r} (SAELens); of SAELens's these can be computed: {allowed}")
    norm = cfg.get("normalize_activations") or "none"
    if norm not in ("none", True, "expected_average_only_in"):  # the latter is a factor that SAELens folds in as it saves
        raise DictionaryError(f"{directory} has normalize_activations {norm!r} (SAELens), which is no linear map; it cannot be computed")
    activation, transcoder, skip = _SAELENS[architecture]
    d_in, features = _whole(directory, cfg, "d_in"), _whole(directory, cfg, "d_sae")
    d_out = _whole(directory, cfg, "d_out") if transcoder else d_in
    wanted: Shapes = {"W_enc": (d_in, features), "b_enc": (features,), "W_dec": (features, d_out), "b_dec": (d_out,)}
    if activation == "jumprelu":
        wanted["threshold"] = (features,)
    if skip:
        wanted["W_skip"] = (d_out, d_in)
    tensors = _tensors(directory / SAELENS_TENSORS, wanted)
    if not transcoder and cfg.get("apply_b_dec_to_input", True):
        tensors["b_enc"] = _shifted(tensors["b_enc"], tensors["b_dec"], tensors["W_enc"])
    if cfg.get("rescale_acts_by_decoder_norm", False):
        norms = tensors["W_dec"].norm(dim=1).clamp(min=1e-8)
        tensors["W_enc"], tensors["b_enc"] = tensors["W_enc"] * norms, tensors["b_enc"] * norms
        tensors["W_dec"] = tensors["W_dec"] / norms[:, None]
    if skip:
        tensors["W_skip"] = tensors["W_skip"].T
    hook, hook_out = str(names.get("hook_name") or names.get("hook_point") or directory.name), names.get("hook_name_out")
    native = DictionaryConfig(
        name=directory.name, activation=activation, d_in=d_in, d_out=d_out, features=features, skip=skip,
        k=k if activation == "topk" else None, output=f"{hook_out or hook}:out",
        input=f"{hook}:in" if transcoder and not hook_out else f"{hook}:out",  # one name for both: what the module is given
        provenance={"format": f"SAELens {version or 'before 6'}", "architecture": architecture},
    )  # fmt: skip
    return Dictionary(native, tensors, path=directory)


def _shifted(b_enc: torch.Tensor, b_dec: torch.Tensor, encoder: torch.Tensor) -> torch.Tensor:
    return (b_enc.double() - b_dec.double() @ encoder.double()).float()


def _whole(directory: Path, cfg: Mapping[str, Any], key: str) -> int:
    value = cfg.get(key)
    if type(value) is not int or not 1 <= value <= 1 << 24:
        raise DictionaryError(f"{directory / CFG} has {key} {value!r}; it must be a whole number from 1 to {1 << 24}")
    return value


def _tensors(path: Path, wanted: Shapes) -> dict[str, torch.Tensor]:
    """The tensors of the file, float32; names and shapes are as `wanted`, or it is refused before anything is read."""
    return {name: tensor.float() for name, tensor in read_tensors(path, _checked(path, wanted)).items()}


def _checked(path: Path, wanted: Shapes) -> Callable[[Mapping[str, tuple[int, ...]]], None]:
    def check(found: Mapping[str, tuple[int, ...]]) -> None:
        missing, unknown = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
        if missing or unknown:
            what = f"lacks {', '.join(missing)}" if missing else f"has {', '.join(unknown)}, which its cfg does not speak of"
            raise DictionaryError(f"{path} {what}; file and {CFG} do not belong together, or it is of another format")
        for name, shape in wanted.items():
            if found[name] != shape:
                raise DictionaryError(f"{path}: {name} has shape {found[name]}, but {CFG} says {shape}; they do not belong together")

    return check
