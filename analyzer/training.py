"""Training a dictionary: plain torch, deterministic for a seed on one machine.

1. Whole episodes are held out to judge, and of the others some to decide when to stop. Inputs and outputs are centred
   and divided by one scalar each.
2. The recipe (`analyzer.recipes`) says what is sparse and what the loss is.
3. Adam; learning rate 1e-3 / sqrt(features / 2^14), at most 5e-3, decayed linearly to 0 over the last 80 % of the
   steps. (The usual 2e-4 is for tens of thousands of latents: on the humanoid's 512 it left an FVU of 0.058 where
   five times as much left 0.046; on CartPole's 32, 0.01 and more did worse.)
4. A hundred times in a run the loss is measured on the validation episodes; after `patience` times without a new best
   training stops. The best tensors are kept.
5. The normalisation is folded into the tensors, so that the artifact takes raw activations.

Ctrl-C leaves a checkpoint (safetensors) beside the artifact's name; the same command goes on from there and ends with
the same bits. CPU, one thread: 256 -> 512 -> 128, k 16, batches of 256: 7 ms a step.
"""

from __future__ import annotations

import hashlib
import json
import math
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, cast, get_args

import numpy as np
import torch

from interlatent_live.analyzer.card import judge
from interlatent_live.analyzer.checkpoint import Checkpoint
from interlatent_live.analyzer.dictionary import Dictionary, DictionaryConfig
from interlatent_live.analyzer.effect import Effect
from interlatent_live.analyzer.recipes import Model, Penalty, Recipe, make_model
from interlatent_live.analyzer.samples import Samples, samples_of
from interlatent_live.stream.errors import DictionaryError
from interlatent_live.stream.reading import Recording

__all__ = [
    "Progress", "Recipe", "TrainOptions", "Trainer", "checkpoint_path", "command_of", "fingerprint", "one_thread",
    "pack_state", "restore_state", "settings", "train", "train_recording",
]  # fmt: skip

REPORTS: Final = 100
"""Reports of progress in a run, at which the validation episodes are looked at."""
VALIDATION_SHARE: Final = 0.1
_VALIDATION_FRAMES: Final = 8192
_CHECKPOINT_REPORTS: Final = 10


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """How to train."""

    recipe: Recipe = "topk"
    features: int = 256
    """Number of latents."""
    k: int = 8
    """Latents kept a frame ('topk'), on average ('batchtopk'), or aimed at ('jumprelu')."""
    l1: float = 1e-3
    """Weight of the latents' sum against the error's variance share ('relu-l1')."""
    skip: bool = False
    """Add a linear path beside the latents."""
    bandwidth: float = 0.3
    """Width of the strip around a threshold in which it feels a gradient ('jumprelu'), in root-mean-square outputs."""
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
    patience: int = 25
    """Reports (hundredths of the steps) without a new best after which training stops; 0: never."""
    action_weight: float = 0.0
    """Weight of the action's error, where its effect on the action is known."""
    seed: int = 0
    """Of the split, the start and the batches."""
    device: str = "cpu"
    """Where to compute: 'cpu' or 'cuda'."""

    def __post_init__(self) -> None:
        if self.recipe not in get_args(Recipe):
            raise DictionaryError(f"recipe is {self.recipe!r}; there are {', '.join(get_args(Recipe))}")
        for name in ("features", "k", "steps", "batch", "dead_steps"):
            if getattr(self, name) < 1:
                raise DictionaryError(f"{name} is {getattr(self, name)}; it must be 1 or more")
        if self.recipe != "relu-l1" and self.k > self.features:
            raise DictionaryError(f"k is {self.k}, more than the {self.features} features; lower k")
        if not 0 < self.held_out < 1:
            raise DictionaryError(f"held_out is {self.held_out}; it is a share of the episodes, between 0 and 1")
        if not (math.isfinite(self.l1) and self.l1 >= 0) or (self.lr is not None and not 0 < self.lr <= 1):
            raise DictionaryError(f"l1 is {self.l1}, lr is {self.lr}; l1 must be finite and >= 0, lr within (0, 1]")
        if not (math.isfinite(self.bandwidth) and self.bandwidth > 0):
            raise DictionaryError(f"bandwidth is {self.bandwidth}; it must be finite and > 0")
        if not (math.isfinite(self.action_weight) and self.action_weight >= 0):
            raise DictionaryError(f"action_weight is {self.action_weight}; it must be finite and >= 0")
        if self.patience < 0:
            raise DictionaryError(f"patience is {self.patience}; it must be 0 (never stop early) or more")
        try:
            kind = torch.device(self.device).type
        except RuntimeError as error:
            raise DictionaryError(f"device is {self.device!r}; it must be cpu or cuda") from error
        if kind == "cuda" and not torch.cuda.is_available():
            raise DictionaryError(f"device is {self.device!r}, but this machine has no CUDA device that torch can use; use cpu")

    @property
    def rate(self) -> float:
        """The learning rate at the beginning."""
        return self.lr if self.lr is not None else min(5e-3, 1e-3 / math.sqrt(self.features / (1 << 14)))


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a training run is. FVU and L0 are of at most 8,192 validation frames."""

    step: int
    steps: int
    loss: float
    fvu: float
    l0: float
    dead: float
    """Share of latents silent for `dead_steps` steps."""


class Trainer:
    """A model in training, with the normalisation of the frames it began with; `run` may be called again on more."""

    def __init__(self, fit: Samples, options: TrainOptions, effect: Effect | None = None) -> None:
        self.options = options
        self.device = torch.device(options.device)
        self.x_mean, self.x_scale = _normalisation(fit.x)
        self.y_mean, self.y_scale = _normalisation(fit.y)
        self.model = make_model(*self._normalised(fit), options)
        self.stopped_at: int | None = None
        """The step at which the last run stopped early."""
        self._effect = effect if options.action_weight > 0 else None
        self._action_scale = 1.0 if self._effect is None else self._effect.scale(torch.from_numpy(fit.y).to(self.device))

    def run(
        self,
        fit: Samples,
        validation: Samples | None,
        *,
        progress: Callable[[Progress], None] | None = None,
        checkpoint: Checkpoint | None = None,
        seed: int | None = None,
        rate: float | None = None,
        steps: int | None = None,
    ) -> None:
        """Train on `fit`, watching `validation` (None: no early stopping, the last tensors are kept)."""
        options, model = self.options, self.model
        steps = steps or options.steps
        x, y = self._normalised(fit)
        watched = self._normalised(fit if validation is None else validation)
        stride = -(-len(watched[0]) // _VALIDATION_FRAMES)
        watched = (watched[0][::stride], watched[1][::stride])
        penalty = self._penalty()
        optimiser = torch.optim.Adam(model.parameters, lr=options.rate if rate is None else rate)
        decay = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: min(1.0, (1 - step / steps) / 0.8))
        generator = torch.Generator().manual_seed((options.seed if seed is None else seed) + 1)
        every = max(1, steps // REPORTS)
        best, best_tensors, since = math.inf, _copy(model), 0
        self.stopped_at = None
        begin = 0
        if checkpoint is not None and (found := checkpoint.read()) is not None:
            begin, best, since = found.step, found.best, found.since
            best_tensors = restore_state(model, optimiser, generator, found.tensors)
            for _ in range(begin):  # a LambdaLR is a function of its count
                decay.last_epoch += 1
            for group in optimiser.param_groups:
                group["lr"] = group["initial_lr"] * min(1.0, (1 - begin / steps) / 0.8)
        step = begin
        try:
            for step in range(begin + 1, steps + 1):
                chosen = torch.randint(len(x), (options.batch,), generator=generator).to(self.device)
                loss = model.loss(x[chosen], y[chosen], penalty)
                optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                model.drop_radial_gradient()
                optimiser.step()
                decay.step()
                model.hold_unit_norm()
                if step % every and step != steps:
                    continue
                report, objective = self._report(step, steps, float(loss.detach()), *watched, penalty)
                if not math.isfinite(objective):
                    raise DictionaryError(f"training diverged at learning rate {options.rate:g}, l1 {options.l1:g}; lower them")
                if progress is not None:
                    progress(report)
                if objective < best or validation is None:
                    best, best_tensors, since = objective, _copy(model), 0
                else:
                    since += 1
                if options.patience and since >= options.patience:
                    self.stopped_at = step
                    break
                if checkpoint is not None and (step // every) % _CHECKPOINT_REPORTS == 0:
                    checkpoint.write(step, best, since, pack_state(model, optimiser, generator, best_tensors))
        except KeyboardInterrupt:
            # Steps since the last report are done again: an interrupt may fall between any two lines above.
            if checkpoint is not None:
                checkpoint.interrupted = step
            raise
        with torch.no_grad():
            for name, tensor in model.tensors.items():
                tensor.copy_(best_tensors[name])

    def restore(self, tensors: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor]) -> None:
        """Set the model's tensors and counters to those of a trainer that began with the same frames and options."""
        with torch.no_grad():
            for key, tensor in self.model.tensors.items():
                tensor.copy_(tensors[key])
        self.model.load_state(dict(state))

    def dictionary(self, fit: Samples, *, name: str, provenance: dict[str, Any]) -> Dictionary:
        """The artifact as it is now, normalisation folded in; `fit` gives the mean output and a threshold."""
        options, model = self.options, self.model
        with torch.no_grad():
            # Latents in units of the output: f' = y_scale * f, so that rows of W_dec stay at unit norm. One factor for
            # all leaves the order of the pre-activations, and with it the k largest, as trained.
            t = {key: value.detach().cpu() for key, value in model.tensors.items()}
            encoder = t["W_enc"] * (self.y_scale / self.x_scale)
            tensors = {
                "W_enc": encoder,
                "b_enc": t["b_enc"] * self.y_scale - self.x_mean @ encoder,
                "W_dec": t["W_dec"],
                "b_dec": t["b_dec"] * self.y_scale + self.y_mean,
                "mean_out": torch.from_numpy(fit.y.mean(axis=0, dtype=np.float64).astype(np.float32)),
            }
            if options.skip:
                tensors["W_skip"] = t["W_skip"] * (self.y_scale / self.x_scale)
                tensors["b_dec"] -= self.x_mean @ tensors["W_skip"]
            threshold = model.threshold(self._normalised(fit)[0])
            if threshold is not None:
                tensors["threshold"] = threshold.cpu() * self.y_scale
        cfg = DictionaryConfig(
            name=name, activation=model.activation, d_in=fit.x.shape[1], d_out=fit.y.shape[1],
            features=options.features, input=fit.input, output=fit.output, skip=options.skip,
            k=options.k if options.recipe in ("topk", "batchtopk") else None, model_hash=fit.model_hash,
            provenance=provenance,
        )  # fmt: skip
        return Dictionary(cfg, tensors)

    def _normalised(self, part: Samples) -> tuple[torch.Tensor, torch.Tensor]:
        x, y = torch.from_numpy(part.x), torch.from_numpy(part.y)
        return ((x - self.x_mean) / self.x_scale).to(self.device), ((y - self.y_mean) / self.y_scale).to(self.device)

    def _penalty(self) -> Penalty | None:
        effect = self._effect
        if effect is None:
            return None
        mean, scale, weight = self.y_mean.to(self.device), self.y_scale, self.options.action_weight

        def penalty(y: torch.Tensor, y_hat: torch.Tensor) -> torch.Tensor:
            return weight * effect.penalty(y * scale + mean, y_hat * scale + mean, self._action_scale)

        return penalty

    def _report(
        self, step: int, steps: int, loss: float, x: torch.Tensor, y: torch.Tensor, penalty: Penalty | None
    ) -> tuple[Progress, float]:
        model = self.model
        with torch.no_grad():
            objective = float(model.objective(x, y, penalty))
            f = model.encode(model.pre(x))
            error = (y - model.decode(f, x)).square().sum(dtype=torch.float64)
            total = (y - y.mean(dim=0)).square().sum(dtype=torch.float64)
            dead = float((model.silent > self.options.dead_steps).double().mean())
            fvu = float(error / total) if total > 0 else math.nan
            return Progress(step, steps, loss, fvu, float((f > 0).sum() / len(x)), dead), objective


def train(
    samples: Samples,
    options: TrainOptions | None = None,
    *,
    name: str = "dictionary",
    command: str = "",
    progress: Callable[[Progress], None] | None = None,
    checkpoint: Path | None = None,
    effect: Effect | None = None,
) -> Dictionary:
    """Train on `samples` and judge on the held-out episodes; the dictionary carries its card.

    Bit for bit the same for the same samples and options on one machine (one torch thread while it runs), interrupted
    or not: `checkpoint` is where an interrupted run is kept.
    """
    options = options or TrainOptions()
    fit, held = samples.split(options.held_out, options.seed)
    watch: Samples | None = None
    if fit.episodes > 2:
        fit, watch = fit.split(VALIDATION_SHARE, options.seed)
    with one_thread():
        trainer = Trainer(fit, options, effect)
        kept = None if checkpoint is None else Checkpoint(checkpoint, fingerprint(samples, options))
        trainer.run(fit, watch, progress=progress, checkpoint=kept)
        provenance = settings(options) | {
            "recording": samples.source, "frames": samples.frames, "episodes": samples.episodes, "command": command,
            "stopped_at": trainer.stopped_at,
        }  # fmt: skip
        dictionary = trainer.dictionary(fit, name=name, provenance=provenance)
        dictionary = dictionary.with_card(judge(dictionary, held, fit))
    if kept is not None:
        kept.remove()
    return dictionary


def settings(options: TrainOptions) -> dict[str, Any]:
    """What a cfg's provenance says of the options."""
    return {
        "recipe": options.recipe, "seed": options.seed, "steps": options.steps, "batch": options.batch,
        "lr": options.rate, "held_out": options.held_out, "l1": options.l1 if options.recipe == "relu-l1" else None,
        "bandwidth": options.bandwidth if options.recipe == "jumprelu" else None, "patience": options.patience,
        "target_l0": options.k if options.recipe == "jumprelu" else None, "action_weight": options.action_weight,
    }  # fmt: skip


def command_of(source: str, to: str, samples: Samples, options: TrainOptions, *more: str) -> str:
    """The command that makes it, with its seed."""
    words = ["interlatent-live", "dict", "train", source, "--input", samples.input, "--output", samples.output]
    words += ["--recipe", options.recipe, "--features", str(options.features), "--k", str(options.k)]
    words += ["--steps", str(options.steps), "--seed", str(options.seed), *(["--skip"] if options.skip else [])]
    words += ["--l1", f"{options.l1:g}"] if options.recipe == "relu-l1" else []
    return shlex.join([*words, *more, "--out", to])


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
    skip: bool = False,
    l1: float = 1e-3,
    device: str = "cpu",
    name: str | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> dict[str, Any]:
    """Train on a recording, write the artifact to `to` (which must not exist) and return its card.

    An interrupted run (KeyboardInterrupt) leaves `checkpoint_path(to)`; calling again with the same arguments goes on.
    """
    target, source = Path(to), Path(recording)
    if target.exists():
        raise DictionaryError(f"{target} exists; choose another folder for the dictionary")
    options = TrainOptions(
        recipe=cast(Recipe, recipe), features=features, k=k, steps=steps, seed=seed, skip=skip, l1=l1, device=device
    )
    samples = samples_of(Recording(source), input_point, output_point)
    command = command_of(source.name, target.name, samples, options)
    dictionary = train(
        samples, options, name=name or target.name, command=command, progress=progress, checkpoint=checkpoint_path(target)
    )
    dictionary.save(target)
    return dict(dictionary.card or {})


def checkpoint_path(target: str | Path) -> Path:
    """Where an interrupted run towards the artifact `target` is kept."""
    target = Path(target)
    return target.with_name(f".{target.name}.training.safetensors")


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread: with more, sums come out in another order, and so other bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def fingerprint(samples: Samples, options: TrainOptions) -> str:
    """Of everything that a run's outcome depends on."""
    digest = hashlib.sha256(json.dumps(asdict(options), sort_keys=True).encode())
    for part in (samples.x, samples.y, samples.episode):
        digest.update(part.tobytes())
    return digest.hexdigest()


def _copy(model: Model) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.tensors.items()}


def pack_state(
    model: Model, optimiser: torch.optim.Adam, generator: torch.Generator, best: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """What a checkpoint holds of a run under way."""
    tensors = {"generator": generator.get_state()}
    for name, tensor in model.tensors.items():
        moments = optimiser.state[tensor]
        tensors |= {f"now.{name}": tensor.detach(), f"best.{name}": best[name]}
        tensors |= {f"{key}.{name}": moments[key] for key in ("step", "exp_avg", "exp_avg_sq")}
    return tensors | {f"state.{name}": value for name, value in model.state.items()}


def restore_state(
    model: Model, optimiser: torch.optim.Adam, generator: torch.Generator, saved: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Inverse of `pack_state`; returns the best tensors."""
    generator.set_state(saved["generator"])
    with torch.no_grad():
        for name, tensor in model.tensors.items():
            tensor.copy_(saved[f"now.{name}"])
            moments = {key: saved[f"{key}.{name}"] for key in ("step", "exp_avg", "exp_avg_sq")}
            optimiser.state[tensor] = {key: v if key == "step" else v.to(tensor.device) for key, v in moments.items()}
    model.load_state({name: saved[f"state.{name}"] for name in model.state})
    return {name: saved[f"best.{name}"].to(tensor.device) for name, tensor in model.tensors.items()}


def _normalisation(values: Any) -> tuple[torch.Tensor, float]:
    """(d,) mean and one scale: the root mean square of what is left."""
    tensor = torch.from_numpy(values)
    mean = tensor.mean(dim=0, dtype=torch.float64)
    scale = float((tensor - mean).square().mean().sqrt())
    if not (math.isfinite(scale) and scale > 1e-12 * float(mean.abs().max())):
        around = float(mean.abs().max())
        raise DictionaryError(f"the activations to fit vary by {scale:g} around {around:g}; there is nothing to learn")
    return mean.float(), scale
