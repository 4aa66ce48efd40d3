"""Dictionaries: trained transcoders and SAEs as frozen artifacts.

An artifact is a directory: `cfg.json`, `dictionary.safetensors`, and a `card.json` once it was judged.
With x (n, d_in) float32:

    pre = x @ W_enc + b_enc                              (n, features)
    f   = the k largest of relu(pre)                      'topk'       (Gao et al. 2024, arXiv:2406.04093)
        = relu(pre)                                       'relu'       (Bricken et al. 2023, Towards Monosemanticity)
        = relu(pre) where pre > threshold                 'jumprelu'   (Rajamanoharan et al. 2024, arXiv:2407.14435)
        = the same, threshold from training               'batchtopk'  (Bussmann et al. 2024, arXiv:2412.06410)
    y^  = f @ W_dec + b_dec [+ x @ W_skip]                (n, d_out)   (skip: Paulo et al. 2025, arXiv:2501.18823)

Nothing is subtracted or scaled apart from that: training folds its normalisation into the tensors. Light on purpose
(torch, safetensors, numpy): the agent's side imports it to steer. A batch of 32 rows, 256 -> 2048, k 32, costs little
more than its matmul and topk (bench/encode.py); decoding is sparse (`embedding_bag`). Content hash: SHA-256 of cfg and
tensors.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, cast, get_args

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save as pack_tensors

from interlatent_live.analyzer.artifact import pack_json, read_json, read_tensors, write_whole
from interlatent_live.analyzer.codes import Codes
from interlatent_live.stream.errors import DictionaryError

__all__ = ["Activation", "Dictionary", "DictionaryConfig", "load"]

Activation: TypeAlias = Literal["topk", "batchtopk", "relu", "jumprelu"]
CFG, TENSORS, CARD = "cfg.json", "dictionary.safetensors", "card.json"
FORMAT: Final = "interlatent-dictionary/1"
MAX_FEATURES: Final = 1 << 22
MAX_WIDTH: Final = 1 << 18
_PICKLES: Final = (".pt", ".pth", ".pkl", ".pickle", ".bin", ".ckpt")


@dataclass(frozen=True, slots=True)
class DictionaryConfig:
    """What cfg.json says; every field is part of the content hash."""

    name: str
    activation: Activation
    d_in: int
    """Width of the input activation, flattened."""
    d_out: int
    """Width of the output activation, flattened; equal to d_in for an SAE."""
    features: int
    """Number of latents."""
    input: str
    """Tap point the latents are computed from."""
    output: str
    """Tap point that is reconstructed; equal to `input` for an SAE."""
    k: int | None = None
    """Latents kept a frame ('topk'), or on average ('batchtopk'); None for the others."""
    skip: bool = False
    """Whether W_skip adds a linear path."""
    model_hash: str = ""
    """The manifest's weights_hash of the model it was trained on; '' where unknown."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """How it was made: recipe, seed, command, recording, package versions."""

    def __post_init__(self) -> None:
        if self.activation not in get_args(Activation):
            allowed = ", ".join(get_args(Activation))
            raise DictionaryError(f"activation is {self.activation!r}; it must be one of {allowed}")
        for key, limit in (("d_in", MAX_WIDTH), ("d_out", MAX_WIDTH), ("features", MAX_FEATURES)):
            value = getattr(self, key)
            if type(value) is not int or not 1 <= value <= limit:
                raise DictionaryError(f"{key} is {value!r}; it must be a whole number from 1 to {limit}")
        if self.activation == "topk" and self.k is None:
            raise DictionaryError("activation 'topk' needs k, the number of latents kept a frame; cfg.json has none")
        if self.k is not None and (type(self.k) is not int or not 1 <= self.k <= self.features):
            raise DictionaryError(f"k is {self.k!r}; it must be a whole number from 1 to the {self.features} features")
        if type(self.skip) is not bool:
            raise DictionaryError(f"skip is {self.skip!r}; it must be true or false")
        for key in ("name", "input", "output", "model_hash"):
            if not isinstance(getattr(self, key), str):
                raise DictionaryError(f"{key} is {getattr(self, key)!r}; it must be a string")
        if not self.input or not self.output:
            raise DictionaryError("input and output must name tap points, such as '2:in' and '2:out'")
        if not isinstance(self.provenance, Mapping):
            raise DictionaryError(f"provenance is {self.provenance!r}; it must be an object")

    def to_dict(self) -> dict[str, Any]:
        """Plain data for cfg.json."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {"format": FORMAT, **values, "provenance": dict(self.provenance)}

    @classmethod
    def from_dict(cls, data: Any) -> DictionaryConfig:
        """Inverse of `to_dict`; whatever it does not know is refused, because it might change the meaning."""
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            found = data.get("format") if isinstance(data, dict) else type(data).__name__
            raise DictionaryError(f"cfg.json has format {found!r}; this build reads {FORMAT!r}")
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(data) - known - {"format"})
        missing = sorted({"name", "activation", "d_in", "d_out", "features", "input", "output"} - set(data))
        if unknown or missing:
            what = f"lacks {', '.join(missing)}" if missing else f"has unknown key(s) {', '.join(unknown)}"
            raise DictionaryError(f"cfg.json {what}; free notes belong below 'provenance'")
        return cls(**{key: value for key, value in data.items() if key in known})

    def shapes(self) -> dict[str, tuple[tuple[int, ...], ...]]:
        """Allowed shapes of every tensor; the first is the usual one."""
        wanted: dict[str, tuple[tuple[int, ...], ...]] = {
            "W_enc": ((self.d_in, self.features),),
            "b_enc": ((self.features,),),
            "W_dec": ((self.features, self.d_out),),
            "b_dec": ((self.d_out,),),
        }
        if self.skip:
            wanted["W_skip"] = ((self.d_in, self.d_out),)
        if self.activation in ("jumprelu", "batchtopk"):
            wanted["threshold"] = ((self.features,), (1,), ())
        return wanted

    def optional_shapes(self) -> dict[str, tuple[tuple[int, ...], ...]]:
        """Shapes of the tensors that may be missing: `mean_out`, the mean output of the training frames."""
        return {"mean_out": ((self.d_out,),)}


class Dictionary:
    """A frozen transcoder (or SAE, where input = output). Tensors are float32 and never change."""

    def __init__(
        self,
        cfg: DictionaryConfig,
        tensors: Mapping[str, torch.Tensor],
        card: Mapping[str, Any] | None = None,
        path: Path | None = None,
    ) -> None:
        _check_tensors(cfg, {name: tuple(t.shape) for name, t in tensors.items()})
        self.cfg = cfg
        self.path = path
        self.card = None if card is None else dict(card)
        self.tensors = {n: t.detach().to(torch.float32, copy=True).contiguous() for n, t in sorted(tensors.items())}
        for name, tensor in self.tensors.items():
            bad = tensor.numel() - int(torch.isfinite(tensor).sum())
            if bad:
                raise DictionaryError(f"{name} has {bad} NaN or infinite of {tensor.numel()} values; train it again")
        self.W_enc, self.b_enc = self.tensors["W_enc"], self.tensors["b_enc"]
        self.W_dec, self.b_dec = self.tensors["W_dec"], self.tensors["b_dec"]
        self.W_skip = self.tensors.get("W_skip")
        self.mean_out = self.tensors.get("mean_out")
        threshold = self.tensors.get("threshold")
        # A feature is active where pre > floor: below 0 a threshold has no effect, so one comparison does both.
        self.floor = torch.zeros(()) if threshold is None else threshold.clamp(min=0)
        self.hash = _content_hash(cfg, self.tensors)
        if self.card is not None and self.card.get("hash") != self.hash:
            raise DictionaryError(
                f"the card beside {cfg.name!r} is of {str(self.card.get('hash'))[:16]!r}, but the dictionary is "
                f"{self.hash[:16]!r}: one of the two was changed; judge it again, or remove {CARD}"
            )

    def __repr__(self) -> str:
        c = self.cfg
        shape = f"{c.input} {c.d_in} -> {c.features} -> {c.output} {c.d_out}"
        return f"Dictionary({c.name!r}, {c.activation}, {shape}, {self.hash[:12]})"

    @property
    def name(self) -> str:
        """Its name, for people; the hash identifies it."""
        return self.cfg.name

    @property
    def features(self) -> int:
        """Number of latents."""
        return self.cfg.features

    def pre(self, x: torch.Tensor) -> torch.Tensor:
        """(n, d_in) -> (n, features) before the activation function."""
        return torch.addmm(self.b_enc, x, self.W_enc)

    def encode(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(n, d_in) -> indices (n, m) int64 and values (n, m); m = k for TopK, else the most that any row has.

        A value of 0 is an unused place. The order within a row is not defined; `codes` sorts by feature.
        """
        pre = self.pre(x)
        if self.cfg.activation == "topk":
            values, indices = torch.topk(pre, cast(int, self.cfg.k), dim=1, sorted=False)
            return indices, torch.relu(values)
        active = pre > self.floor
        most = int(active.sum(dim=1).max()) if len(x) else 0
        values, indices = torch.topk(torch.where(active, pre, 0.0), most, dim=1, sorted=False)
        return indices, values

    def encode_dense(self, x: torch.Tensor) -> torch.Tensor:
        """(n, d_in) -> (n, features); dearer than `encode`, and differentiable."""
        pre = self.pre(x)
        if self.cfg.activation == "topk":
            values, indices = torch.topk(pre, cast(int, self.cfg.k), dim=1, sorted=False)
            return torch.zeros_like(pre).scatter(1, indices, torch.relu(values))
        return torch.where(pre > self.floor, pre, 0.0)

    def decode(self, f: torch.Tensor, x: torch.Tensor | None = None) -> torch.Tensor:
        """Dense (n, features) -> (n, d_out). `x` is needed where there is a skip connection."""
        return self._with_skip(torch.addmm(self.b_dec, f, self.W_dec), x)

    def decode_sparse(self, indices: torch.Tensor, values: torch.Tensor, x: torch.Tensor | None = None) -> torch.Tensor:
        """What `encode` gave -> (n, d_out); equal to `decode` of the same features."""
        if indices.shape[1] == 0:
            return self._with_skip(self.b_dec.expand(len(indices), -1), x)
        out = torch.nn.functional.embedding_bag(indices, self.W_dec, per_sample_weights=values, mode="sum")
        return self._with_skip(out + self.b_dec, x)

    def decode_codes(self, codes: Codes, x: torch.Tensor | None = None) -> torch.Tensor:
        """Codes of n rows -> (n, d_out)."""
        return self._with_skip(self._bags(codes) + self.b_dec, x)

    def codes(self, x: npt.NDArray[np.float32] | torch.Tensor) -> Codes:
        """Finite (n, d_in) -> the active features, sorted."""
        with torch.inference_mode():
            return self._codes(self._input(x, self.cfg.d_in, self.cfg.input))

    def measure(
        self, x: npt.NDArray[np.float32] | torch.Tensor, y: npt.NDArray[np.float32] | torch.Tensor
    ) -> tuple[Codes, float, float | None]:
        """Codes, sum |y - y^|^2, and sum |y - mean_out|^2 (None without a mean) of finite x (n, d_in), y (n, d_out).

        Both sums are over rows and components and added up in float64, so that batches of one row pool exactly.
        """
        with torch.inference_mode():
            inputs = self._input(x, self.cfg.d_in, self.cfg.input)
            target = self._input(y, self.cfg.d_out, self.cfg.output)
            codes = self._codes(inputs)
            error = target - self.decode_codes(codes, inputs)
            sse = float(error.square_().sum(dtype=torch.float64))
            if self.mean_out is None:
                return codes, sse, None
            return codes, sse, float((target - self.mean_out).square_().sum(dtype=torch.float64))

    def to(self, device: torch.device | str) -> Dictionary:
        """The same dictionary with its tensors on another device."""
        return Dictionary(self.cfg, {n: t.to(device) for n, t in self.tensors.items()}, self.card, self.path)

    def with_card(self, card: Mapping[str, Any]) -> Dictionary:
        """The same dictionary with its quality report, whose 'hash' must be this one's."""
        return Dictionary(self.cfg, self.tensors, card, self.path)

    def save(self, directory: str | Path, *, overwrite: bool = False) -> Path:
        """Write the artifact whole or not at all; an existing one is replaced only with `overwrite`."""
        target = Path(directory)
        if target.exists() and not overwrite:
            raise DictionaryError(f"{target} exists; choose another name, or ask for it to be overwritten")
        tensors = pack_tensors({name: t.cpu() for name, t in self.tensors.items()})
        contents = {CFG: pack_json(self.cfg.to_dict()), TENSORS: tensors}
        if self.card is not None:
            contents[CARD] = pack_json(self.card)
        write_whole(target, contents)
        self.path = target
        return target

    def _input(self, x: npt.NDArray[np.float32] | torch.Tensor, width: int, point: str) -> torch.Tensor:
        if isinstance(x, np.ndarray):
            # Received arrays are read-only views, of which torch would warn; a copy of a few KiB costs little.
            x = torch.from_numpy(x if x.flags.writeable else x.copy())
        if x.ndim != 2 or x.shape[1] != width:
            raise DictionaryError(
                f"{self.name!r} expects rows of width {width} at {point}, but got shape {tuple(x.shape)}; "
                "it belongs to another model or tap point"
            )
        return x.to(self.W_enc.dtype)

    def _codes(self, x: torch.Tensor) -> Codes:
        if self.cfg.activation == "topk":
            indices, values = self.encode(x)
            return Codes.from_padded(indices.cpu().numpy(), values.cpu().numpy(), self.features)
        pre = self.pre(x)
        return Codes.where(pre.cpu().numpy(), (pre > self.floor).cpu().numpy())

    def _bags(self, codes: Codes) -> torch.Tensor:
        device = self.W_dec.device
        return torch.nn.functional.embedding_bag(
            torch.from_numpy(codes.indices.astype(np.int32)).to(device),
            self.W_dec,
            torch.from_numpy(codes.indptr).to(device),
            mode="sum",
            per_sample_weights=torch.from_numpy(codes.values).to(device),
            include_last_offset=True,
        )

    def _with_skip(self, y: torch.Tensor, x: torch.Tensor | None) -> torch.Tensor:
        if self.W_skip is None:
            return y
        if x is None:
            raise DictionaryError(f"{self.name!r} has a skip connection: decoding needs the input x as well")
        return y + x @ self.W_skip


def load(path: str | Path) -> Dictionary:
    """Read an artifact, or a folder that sparsify or SAELens wrote (`analyzer.foreign`).

    Whatever is wrong with it is a DictionaryError. No pickle is ever opened.
    """
    where = Path(path)
    if where.suffix.lower() in _PICKLES:
        raise DictionaryError(f"{where} is a pickle, which could run code when opened; convert it to safetensors")
    directory = where if where.is_dir() else where.parent
    if not where.exists() or not (directory / CFG).is_file():
        raise DictionaryError(f"no dictionary at {where}: there must be a directory with {CFG} and {TENSORS}")
    if not (directory / TENSORS).is_file():
        from interlatent_live.analyzer.foreign import is_foreign, load_foreign

        if is_foreign(directory):
            loaded = load_foreign(directory)
            card = _card(directory)
            return loaded if card is None else Dictionary(loaded.cfg, loaded.tensors, card, directory)
        pickles = sorted(p.name for p in directory.iterdir() if p.suffix.lower() in _PICKLES)
        if pickles:
            raise DictionaryError(f"{directory} holds pickles ({', '.join(pickles)}), which could run code when opened; convert them")
    cfg = DictionaryConfig.from_dict(read_json(directory / CFG))
    tensors = read_tensors(directory / TENSORS, lambda shapes: _check_tensors(cfg, shapes))
    return Dictionary(cfg, tensors, _card(directory), directory)


def _card(directory: Path) -> dict[str, Any] | None:
    card = read_json(directory / CARD) if (directory / CARD).is_file() else None
    if card is not None and not isinstance(card, dict):
        raise DictionaryError(f"{directory / CARD} holds {type(card).__name__}, not an object; judge it again")
    return card


def _check_tensors(cfg: DictionaryConfig, found: Mapping[str, tuple[int, ...]]) -> None:
    wanted, optional = cfg.shapes(), cfg.optional_shapes()
    missing = sorted(set(wanted) - set(found))
    unknown = sorted(set(found) - set(wanted) - set(optional))
    if missing:
        raise DictionaryError(f"{cfg.name!r} lacks tensor(s) {', '.join(missing)}; its cfg ({cfg.activation}) asks")
    if unknown:
        raise DictionaryError(f"{cfg.name!r} has tensor(s) {', '.join(unknown)}; its cfg ({cfg.activation}) has none")
    for name, shape in found.items():
        allowed = (wanted | optional)[name]
        if shape not in allowed:
            raise DictionaryError(
                f"{cfg.name!r}: {name} has shape {shape}, but its cfg says {allowed[0]}; they do not belong together"
            )


def _content_hash(cfg: DictionaryConfig, tensors: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256(pack_json(cfg.to_dict(), canonical=True))
    for name, tensor in tensors.items():
        digest.update(f"\0{name} float32 {tuple(tensor.shape)}\0".encode())
        digest.update(tensor.cpu().numpy().astype("<f4", copy=False).tobytes())
    return digest.hexdigest()
