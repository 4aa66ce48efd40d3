"""A dictionary's card: what it is worth, measured on episodes that it was not trained on.

    fvu        = sum |y - y^|^2 / sum |y - mean(y)|^2 over all held-out frames, in float64
    l0         = mean number of active latents a frame
    dead_share = latents active in no frame at all, held-out or not
    quantiles  of fvu and l0 over windows of one second, as `analyzer.quality` measures them live (around
               `mean_out`); windows overlap by three quarters: a recording has few seconds

Baselines at the same number of active terms, k = round(l0): PCA (the first k components of the output), the k outputs
furthest from their mean ('neurons'), random directions with a fitted decoder ('random'), the mean. What this card
cannot know (return recovery and what the action does) is null.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from interlatent_live.analyzer.dictionary import Dictionary
from interlatent_live.analyzer.samples import Samples

__all__ = ["QUANTILES", "judge", "quantiles"]

QUANTILES: Final = {"q001": 0.001, "q01": 0.01, "q50": 0.5, "q99": 0.99, "q999": 0.999}
WINDOW_S: Final = 1.0
_CHUNK: Final = 4096
Doubles = npt.NDArray[np.float64]


def judge(dictionary: Dictionary, held: Samples, fit: Samples) -> dict[str, Any]:
    """The card, as plain data: `held` judges, `fit` serves the baselines and counts what is alive."""
    sse, l0_of, alive = _by_frame(dictionary, held)
    fit_mean = fit.y.mean(axis=0, dtype=np.float64)
    mean = fit_mean if dictionary.mean_out is None else dictionary.mean_out.double().numpy()
    around_mean = ((held.y - mean) ** 2).sum(axis=1)
    total = _total(held.y)
    alive = alive | _by_frame(dictionary, fit)[2]
    l0 = float(l0_of.mean())
    k = max(1, round(l0))
    provenance = dictionary.cfg.provenance

    def share(errors: float) -> float | None:
        return errors / total if total > 0 else None

    def baseline(errors: float) -> dict[str, Any]:
        return {"fvu": share(errors), "return_recovery": None}

    return {
        "hash": dictionary.hash,
        "name": dictionary.name,
        "recipe": provenance.get("recipe"),
        "features": dictionary.features,
        "k": dictionary.cfg.k,
        "l0": l0,
        "fvu": share(float(sse.sum())),
        "dead_share": float(1 - alive.mean()),
        "action_agreement": None,
        "action_error": None,
        "return_recovery": None,
        "baselines": {
            "pca": baseline(_pca(fit, held, k)),
            "random": baseline(_random(fit, held, dictionary.features, k)),
            "neurons": baseline(_neurons(fit, held, k)),
            "mean": baseline(float(((held.y - fit_mean) ** 2).sum())),
        },
        "quantiles": _windows(sse, around_mean, l0_of, held.frames_a_second),
        "window_s": WINDOW_S,
        "output_variance": float(around_mean.mean()),
        "frames": {"fit": fit.frames, "held_out": held.frames, "unused": held.unused},
        "episodes": {"fit": fit.episodes, "held_out": held.episodes},
        "tap_points": [dictionary.cfg.input, dictionary.cfg.output],
        "model_hash": dictionary.cfg.model_hash,
        "recording": held.source,
        "seed": provenance.get("seed"),
        "command": provenance.get("command"),
    }


def quantiles(values: Doubles) -> dict[str, float | None]:
    """q001 to q999 of the finite values; None where there are none."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return dict.fromkeys(QUANTILES)
    return {name: float(v) for name, v in zip(QUANTILES, np.quantile(finite, list(QUANTILES.values())), strict=True)}


def _by_frame(dictionary: Dictionary, samples: Samples) -> tuple[Doubles, Doubles, npt.NDArray[np.bool_]]:
    """(n,) squared error, (n,) active latents, (features,) whether ever active."""
    errors, active = np.empty(samples.frames), np.empty(samples.frames)
    alive = np.zeros(dictionary.features, np.bool_)
    with torch.inference_mode():
        for begin in range(0, samples.frames, _CHUNK):
            part = slice(begin, begin + _CHUNK)
            x, y = torch.from_numpy(samples.x[part]), torch.from_numpy(samples.y[part])
            codes = dictionary.codes(x)
            error = (y - dictionary.decode_codes(codes, x)).double()
            errors[part] = error.square().sum(dim=1).numpy()
            active[part] = codes.counts
            alive[codes.indices] = True
    return errors, active, alive


def _windows(sse: Doubles, sst: Doubles, l0: Doubles, frames: int) -> dict[str, dict[str, float | None]]:
    frames = min(frames, len(sse))
    begins = np.arange(0, len(sse) - frames + 1, max(1, frames // 4))

    def sums(values: Doubles) -> Doubles:
        running = np.concatenate([[0.0], np.cumsum(values)])
        return np.asarray(running[begins + frames] - running[begins])

    with np.errstate(divide="ignore", invalid="ignore"):
        fvu = np.where(sums(sst) > 0, sums(sse) / sums(sst), math.nan)
    return {"fvu": quantiles(fvu), "l0": quantiles(sums(l0) / frames)}


def _total(y: npt.NDArray[np.float32]) -> float:
    return float(((y - y.mean(axis=0, dtype=np.float64)) ** 2).sum())


def _pca(fit: Samples, held: Samples, k: int) -> float:
    """Squared error of the mean plus the first k principal components of the fitted frames' output."""
    mean = fit.y.mean(axis=0, dtype=np.float64)
    centred = fit.y - mean
    _, vectors = np.linalg.eigh(centred.T @ centred)
    first = vectors[:, ::-1][:, :k]
    rest = held.y - mean
    return float((rest**2).sum() - ((rest @ first) ** 2).sum())


def _neurons(fit: Samples, held: Samples, k: int) -> float:
    """Squared error of keeping, in each frame, the k outputs furthest from their mean, and the others at it."""
    squares = (held.y - fit.y.mean(axis=0, dtype=np.float64)) ** 2
    left = max(0, squares.shape[1] - k)
    return float(np.sort(squares, axis=1)[:, :left].sum())


def _random(fit: Samples, held: Samples, features: int, k: int) -> float:
    """Squared error of the k largest of as many random directions of the input, with a least-squares decoder."""
    generator = torch.Generator().manual_seed(0)
    mean = torch.from_numpy(fit.x).mean(dim=0)
    encoder = torch.nn.functional.normalize(torch.randn(fit.x.shape[1], features, generator=generator), dim=0)
    k = min(k, features)

    def encode(x: torch.Tensor) -> torch.Tensor:
        values, indices = torch.topk((x - mean) @ encoder, k, dim=1)
        dense = torch.zeros(len(x), features + 1).scatter(1, indices, torch.relu(values))
        dense[:, -1] = 1  # the bias
        return dense

    gram = torch.zeros(features + 1, features + 1, dtype=torch.float64)
    cross = torch.zeros(features + 1, fit.y.shape[1], dtype=torch.float64)
    for begin in range(0, fit.frames, _CHUNK):
        f = encode(torch.from_numpy(fit.x[begin : begin + _CHUNK]))
        gram += (f.T @ f).double()
        cross += (f.T @ torch.from_numpy(fit.y[begin : begin + _CHUNK])).double()
    gram += 1e-6 * gram.diagonal().mean() * torch.eye(features + 1, dtype=torch.float64)
    decoder = torch.linalg.solve(gram, cross).float()
    error = 0.0
    for begin in range(0, held.frames, _CHUNK):
        x, y = (torch.from_numpy(part[begin : begin + _CHUNK]) for part in (held.x, held.y))
        error += float((y - encode(x) @ decoder).double().square().sum())
    return error
