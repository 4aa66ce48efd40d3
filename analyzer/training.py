"""Training a dictionary: plain torch, deterministic for a seed on one machine, a few lines per recipe.

1. Whole episodes are held out. Inputs and outputs are centred and divided by one scalar each.
2. Start: decoder rows are random unit vectors, the encoder is the least-squares map from input to output seen along
   them; the output bias is the mean output (0 once centred).
3. Adam; learning rate 1e-3 / sqrt(features / 2^14), at most 5e-3, decayed linearly to 0 over the last 80 % of the
   steps. (The usual 2e-4 is for tens of thousands of latents: on the humanoid's 512 it left an FVU of 0.058 where
   five times as much left 0.046; on CartPole's 32, 0.01 and more did worse.)
   'topk': the k largest, error alone, and AuxK: latents that were silent for a while predict the residual with
   coefficient 1/32, so that they come back (Gao et al. 2024, arXiv:2406.04093).
   'relu-l1': error plus l1 * sum of latents (Bricken et al. 2023).
4. Decoder rows are kept at unit norm (along which no gradient flows): L1 cannot be gamed, and an activation is the
   length of what it adds to the output.
5. The normalisation is folded into the tensors, so that the artifact takes raw activations.

CPU, one thread: 256 -> 512 -> 128, k 16, batches of 256: 7 ms a step.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, get_args

import torch

from interlatent_live.analyzer.card import judge
from interlatent_live.analyzer.dictionary import Activation, Dictionary, DictionaryConfig
from interlatent_live.analyzer.samples import Samples, samples_of
from interlatent_live.stream.errors import DictionaryError
from interlatent_live.stream.reading import Recording

__all__ = ["Progress", "Recipe", "TrainOptions", "train", "train_recording"]

Recipe: TypeAlias = Literal["topk", "relu-l1"]
_ACTIVATION: Final[dict[str, Activation]] = {"topk": "topk", "relu-l1": "relu"}
AUXK_COEFFICIENT: Final = 1 / 32
REPORTS: Final = 100
"""Reports of progress in a run."""


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """How to train."""

    recipe: Recipe = "topk"
    features: int = 256
    """Number of latents."""
    k: int = 8
    """Latents kept a frame ('topk')."""
    l1: float = 1e-3
    """Weight of the latents' sum against the error's variance share ('relu-l1')."""
    steps: int = 6000
    """Optimiser steps."""
    batch: int = 256
    """Frames a step."""
    lr: float | None = None
    """Learning rate at the beginning; None: 1e-3 / sqrt(features / 2^14), at most 5e-3."""
    held_out: float = 0.2
    """Share of the episodes that only judge."""
    dead_steps: int = 200
    """Steps without activity after which a latent counts as dead for AuxK."""
    seed: int = 0
    """Of the split, the start and the batches."""

    def __post_init__(self) -> None:
        if self.recipe not in get_args(Recipe):
            raise DictionaryError(f"recipe is {self.recipe!r}; there are {', '.join(get_args(Recipe))}")
        for name in ("features", "k", "steps", "batch", "dead_steps"):
            if getattr(self, name) < 1:
                raise DictionaryError(f"{name} is {getattr(self, name)}; it must be 1 or more")
        if self.recipe == "topk" and self.k > self.features:
            raise DictionaryError(f"k is {self.k}, more than the {self.features} features; lower k")
        if not 0 < self.held_out < 1:
            raise DictionaryError(f"held_out is {self.held_out}; it is a share of the episodes, between 0 and 1")
        if not (math.isfinite(self.l1) and self.l1 >= 0) or (self.lr is not None and not 0 < self.lr <= 1):
            raise DictionaryError(f"l1 is {self.l1}, lr is {self.lr}; l1 must be finite and >= 0, lr within (0, 1]")


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a training run is. FVU and L0 are of at most 4,096 held-out frames."""

    step: int
    steps: int
    loss: float
    fvu: float
    l0: float
    dead: float
    """Share of latents silent for `dead_steps` steps."""


class _Transcoder:
    """The tensors being trained, in normalised units."""

    def __init__(self, x: torch.Tensor, y: torch.Tensor, options: TrainOptions) -> None:
        self.options = options
        generator = torch.Generator().manual_seed(options.seed)
        decoder = torch.randn(options.features, y.shape[1], generator=generator)
        decoder /= decoder.norm(dim=1, keepdim=True)
        gram = (x.T @ x).double()
        gram += 1e-6 * gram.diagonal().mean().clamp(min=1e-30) * torch.eye(len(gram), dtype=torch.float64)
        linear = torch.linalg.solve(gram, (x.T @ y).double()).float()
        self.W_enc = (linear @ decoder.T).requires_grad_()
        self.b_enc = torch.zeros(options.features, requires_grad=True)
        self.W_dec = decoder.requires_grad_()
        self.b_dec = torch.zeros(y.shape[1], requires_grad=True)
        self.silent = torch.zeros(options.features, dtype=torch.int64)

    @property
    def parameters(self) -> list[torch.Tensor]:
        return [self.W_enc, self.b_enc, self.W_dec, self.b_dec]

    def encode(self, pre: torch.Tensor) -> torch.Tensor:
        f = torch.relu(pre)
        if self.options.recipe != "topk":
            return f
        values, indices = torch.topk(f, self.options.k, dim=1, sorted=False)
        return torch.zeros_like(f).scatter(1, indices, values)

    def loss(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        pre = torch.addmm(self.b_enc, x, self.W_enc)
        f = self.encode(pre)
        error = y - torch.addmm(self.b_dec, f, self.W_dec)
        variance = y.square().mean()
        loss = error.square().mean() / variance
        with torch.no_grad():
            self.silent = torch.where((f > 0).any(dim=0), 0, self.silent + 1)
        if self.options.recipe == "relu-l1":
            return loss + self.options.l1 * f.sum(dim=1).mean()
        dead = self.silent > self.options.dead_steps
        count = int(dead.sum())
        return loss + AUXK_COEFFICIENT * self._auxk(pre, error.detach(), dead, count) if count else loss

    def _auxk(self, pre: torch.Tensor, residual: torch.Tensor, dead: torch.Tensor, count: int) -> torch.Tensor:
        k = min(max(1, residual.shape[1] // 2), count)
        values, indices = torch.topk(torch.where(dead, pre, -torch.inf), k, dim=1, sorted=False)
        # Without the relu: a latent that is negative everywhere would get no gradient and never come back.
        f = torch.zeros_like(pre).scatter(1, indices, values)
        return (residual - f @ self.W_dec).square().mean() / residual.square().mean().clamp(min=1e-30)

    def hold_unit_norm(self) -> None:
        with torch.no_grad():
            self.W_dec /= self.W_dec.norm(dim=1, keepdim=True).clamp(min=1e-12)

    def drop_radial_gradient(self) -> None:
        with torch.no_grad():
            if self.W_dec.grad is not None:
                self.W_dec.grad -= (self.W_dec.grad * self.W_dec).sum(dim=1, keepdim=True) * self.W_dec


def train(
    samples: Samples,
    options: TrainOptions | None = None,
    *,
    name: str = "dictionary",
    command: str = "",
    progress: Callable[[Progress], None] | None = None,
) -> Dictionary:
    """Train on `samples` and judge on the held-out episodes; the dictionary carries its card.

    Bit for bit the same for the same samples and options on one machine (one torch thread while it runs).
    """
    options = options or TrainOptions()
    fit, held = samples.split(options.held_out, options.seed)
    with _one_thread():
        x_mean, x_scale = _normalisation(fit.x)
        y_mean, y_scale = _normalisation(fit.y)

        def normalised(part: Samples) -> tuple[torch.Tensor, torch.Tensor]:
            x, y = torch.from_numpy(part.x), torch.from_numpy(part.y)
            return (x - x_mean) / x_scale, (y - y_mean) / y_scale

        x, y = normalised(fit)
        model = _Transcoder(x, y, options)
        _optimise(model, x, y, normalised(held), options, progress)
        with torch.no_grad():
            # Latents in units of the output: f' = y_scale * f, so that rows of W_dec stay at unit norm. One factor for
            # all leaves the order of the pre-activations, and with it the k largest, as trained.
            encoder = model.W_enc * (y_scale / x_scale)
            tensors = {
                "W_enc": encoder,
                "b_enc": model.b_enc * y_scale - x_mean @ encoder,
                "W_dec": model.W_dec,
                "b_dec": model.b_dec * y_scale + y_mean,
                "mean_out": y_mean,
            }
        provenance: dict[str, Any] = {
            "recipe": options.recipe, "seed": options.seed, "steps": options.steps, "batch": options.batch,
            "lr": _lr(options), "held_out": options.held_out, "l1": options.l1 if options.recipe == "relu-l1" else None,
            "recording": samples.source, "frames": samples.frames, "episodes": samples.episodes, "command": command,
        }  # fmt: skip
        cfg = DictionaryConfig(
            name=name, activation=_ACTIVATION[options.recipe], d_in=fit.x.shape[1], d_out=fit.y.shape[1],
            features=options.features, input=fit.input, output=fit.output,
            k=options.k if options.recipe == "topk" else None, model_hash=samples.model_hash, provenance=provenance,
        )  # fmt: skip
        dictionary = Dictionary(cfg, tensors)
        return dictionary.with_card(judge(dictionary, held, fit))


def train_recording(
    recording: str | Path,
    to: str | Path,
    *,
    input_point: str,
    output_point: str | None = None,
    recipe: str = "topk",
    features: int = 256,
    k: int = 8,
    steps: int = 6000,
    seed: int = 0,
    name: str | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> dict[str, Any]:
    """Train on a recording, write the artifact to `to` (which must not exist) and return its card."""
    target, source = Path(to), Path(recording)
    if target.exists():
        raise DictionaryError(f"{target} exists; choose another folder for the dictionary")
    if recipe not in _ACTIVATION:
        raise DictionaryError(f"recipe is {recipe!r}; there are {', '.join(_ACTIVATION)}")
    chosen: Recipe = "topk" if recipe == "topk" else "relu-l1"
    options = TrainOptions(recipe=chosen, features=features, k=k, steps=steps, seed=seed)
    samples = samples_of(Recording(source), input_point, output_point)
    settings = {
        "input": samples.input, "output": samples.output, "recipe": recipe, "features": features, "k": k,
        "steps": steps, "seed": seed, "out": target.name,
    }  # fmt: skip
    words = ["interlatent-live", "dict", "train", source.name]
    command = shlex.join([*words, *(part for key, value in settings.items() for part in (f"--{key}", str(value)))])
    dictionary = train(samples, options, name=name or target.name, command=command, progress=progress)
    dictionary.save(target)
    return dict(dictionary.card or {})


def _optimise(
    model: _Transcoder,
    x: torch.Tensor,
    y: torch.Tensor,
    held: tuple[torch.Tensor, torch.Tensor],
    options: TrainOptions,
    progress: Callable[[Progress], None] | None,
) -> None:
    optimiser = torch.optim.Adam(model.parameters, lr=_lr(options))
    decay = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: min(1.0, (1 - step / options.steps) / 0.8))
    generator = torch.Generator().manual_seed(options.seed + 1)
    every = max(1, options.steps // REPORTS)
    for step in range(1, options.steps + 1):
        chosen = torch.randint(len(x), (options.batch,), generator=generator)
        loss = model.loss(x[chosen], y[chosen])
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        model.drop_radial_gradient()
        optimiser.step()
        decay.step()
        model.hold_unit_norm()
        if progress is not None and (step % every == 0 or step == options.steps):
            progress(_report(model, step, float(loss.detach()), *held, options))
    if not all(bool(torch.isfinite(p).all()) for p in model.parameters):
        raise DictionaryError(f"training diverged at learning rate {_lr(options):g}, l1 {options.l1:g}; lower them")


def _report(
    model: _Transcoder, step: int, loss: float, x: torch.Tensor, y: torch.Tensor, options: TrainOptions
) -> Progress:
    stride = -(-len(x) // 4096)
    x, y = x[::stride], y[::stride]
    with torch.no_grad():
        f = model.encode(torch.addmm(model.b_enc, x, model.W_enc))
        error = (y - torch.addmm(model.b_dec, f, model.W_dec)).square().sum(dtype=torch.float64)
        total = (y - y.mean(dim=0)).square().sum(dtype=torch.float64)
        dead = float((model.silent > options.dead_steps).double().mean())
        fvu = float(error / total) if total > 0 else math.nan
        return Progress(step, options.steps, loss, fvu, float((f > 0).sum() / len(x)), dead)


def _lr(options: TrainOptions) -> float:
    return options.lr if options.lr is not None else min(5e-3, 1e-3 / math.sqrt(options.features / (1 << 14)))


def _normalisation(values: Any) -> tuple[torch.Tensor, float]:
    """(d,) mean and one scale: the root mean square of what is left."""
    tensor = torch.from_numpy(values)
    mean = tensor.mean(dim=0, dtype=torch.float64)
    scale = float((tensor - mean).square().mean().sqrt())
    if not (math.isfinite(scale) and scale > 1e-12 * float(mean.abs().max())):
        around = float(mean.abs().max())
        raise DictionaryError(f"the activations to fit vary by {scale:g} around {around:g}; there is nothing to learn")
    return mean.float(), scale


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
