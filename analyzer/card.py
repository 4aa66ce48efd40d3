"""A dictionary's card: what it is worth, measured on episodes that it was not trained on.

    fvu        = sum |y - y^|^2 / sum |y - mean(y)|^2 over all held-out frames, in float64
    l0         = mean number of active latents a frame
    dead_share = latents active in no frame at all, held-out or not; `alive_after`: the same as frames go by
    cosine, norm_ratio   mean of cos(y - m, y^ - m), and |y^ - m| / |y - m| as a ratio of sums, m the mean output
    fvu_by_phase         FVU by steps into the episode, against the variance of all held-out frames
    density    of a latent: share of held-out frames in which it is active; a histogram of log10
    quantiles  of fvu and l0 over windows of one second, as `analyzer.quality` measures them live (around
               `mean_out`); windows overlap by three quarters: a recording has few seconds

Beside `analyzer.baselines` with as many active terms. With the policy behind the output point (`analyzer.effect`) also
what the error does to the action, and where a critic reads that layer to the value; return recovery needs rollouts:
`analyzer.recovery`. What is not known is null.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from interlatent_live.analyzer.baselines import baselines
from interlatent_live.analyzer.dictionary import Dictionary
from interlatent_live.analyzer.effect import Effect
from interlatent_live.analyzer.rollout import Splice
from interlatent_live.analyzer.samples import Samples
from interlatent_live.analyzer.why_card import agreement_with_ablation

__all__ = ["QUANTILES", "judge", "quantiles"]

QUANTILES: Final = {"q001": 0.001, "q01": 0.01, "q50": 0.5, "q99": 0.99, "q999": 0.999}
WINDOW_S: Final = 1.0
PHASES: Final = (0, 10, 25, 50, 100, 200, 500, 1000)
"""First steps of the phases of an episode."""
DENSITY_EDGES: Final = (-5.0, -4.5, -4.0, -3.5, -3.0, -2.5, -2.0, -1.5, -1.0, -0.5, 0.0)
"""Of the histogram of log10 density."""
_CHUNK: Final = 4096
_EFFECT_FRAMES: Final = 100_000
Doubles = npt.NDArray[np.float64]


def judge(dictionary: Dictionary, held: Samples, fit: Samples, effect: Effect | None = None) -> dict[str, Any]:
    """The card, as plain data: `held` judges, `fit` serves the baselines and counts what is alive."""
    measured = _Measured(dictionary, held)
    fit_alive = _Measured(dictionary, fit).counts > 0
    mean = fit.y.mean(axis=0, dtype=np.float64) if dictionary.mean_out is None else dictionary.mean_out.double().numpy()
    around_mean = ((held.y - mean) ** 2).sum(axis=1)
    total = float(((held.y - held.y.mean(axis=0, dtype=np.float64)) ** 2).sum())
    l0 = float(measured.active.mean())
    k = max(1, round(l0))
    provenance = dictionary.cfg.provenance

    def share(errors: float) -> float | None:
        return errors / total if total > 0 else None

    compared = {name: share(_error(splice, held)) for name, splice in baselines(fit, dictionary.features, k).items()}
    action: dict[str, float | None] = dict.fromkeys(("action_agreement", "action_error", "action_kl", "value_error", "value_deviation"))
    if effect is not None:
        action |= _action(dictionary, held, effect)
    return {
        "hash": dictionary.hash,
        "name": dictionary.name,
        "recipe": provenance.get("recipe"),
        "features": dictionary.features,
        "k": dictionary.cfg.k,
        "l0": l0,
        "fvu": share(float(measured.errors.sum())),
        "dead_share": float(1 - (fit_alive | (measured.counts > 0)).mean()),
        **action,
        "attribution": None if effect is None else agreement_with_ablation(dictionary, effect, held),
        "return_recovery": None,
        "baselines": {name: {"fvu": value, "return_recovery": None} for name, value in compared.items()},
        "cosine": measured.cosine,
        "norm_ratio": measured.norm_ratio,
        "fvu_by_phase": _by_phase(measured.errors, held, total),
        "density": _density(measured.counts / held.frames),
        "alive_after": measured.alive_after,
        "quantiles": _windows(measured.errors, around_mean, measured.active, held.frames_a_second),
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


class _Measured:
    """(n,) squared errors and active latents of frames, (features,) frames in which each was active, and directions."""

    def __init__(self, dictionary: Dictionary, samples: Samples) -> None:
        self.errors, self.active = np.empty(samples.frames), np.empty(samples.frames)
        self.counts = np.zeros(dictionary.features, np.int64)
        self.alive_after: list[list[float]] = []
        mean = torch.from_numpy(samples.y.mean(axis=0, dtype=np.float64))
        cosine, found_norm, true_norm = 0.0, 0.0, 0.0
        with torch.inference_mode():
            for begin in range(0, samples.frames, _CHUNK):
                part = slice(begin, begin + _CHUNK)
                x, y = torch.from_numpy(samples.x[part]), torch.from_numpy(samples.y[part])
                codes = dictionary.codes(x)
                y_hat = dictionary.decode_codes(codes, x).double()
                self.errors[part] = (y - y_hat).square().sum(dim=1).numpy()
                self.active[part] = codes.counts
                self.counts += np.bincount(codes.indices, minlength=dictionary.features)
                true, found = y - mean, y_hat - mean
                cosine += float(torch.nn.functional.cosine_similarity(true, found, dim=1).sum())
                true_norm += float(true.norm(dim=1).sum())
                found_norm += float(found.norm(dim=1).sum())
                self.alive_after.append([float(begin + len(x)), float((self.counts > 0).mean())])
        self.cosine = cosine / samples.frames
        self.norm_ratio = found_norm / true_norm if true_norm > 0 else None


def _error(splice: Splice, held: Samples) -> float:
    error = 0.0
    with torch.inference_mode():
        for begin in range(0, held.frames, _CHUNK):
            x, y = (torch.from_numpy(part[begin : begin + _CHUNK]) for part in (held.x, held.y))
            error += float((y.double() - splice(x, y)).square().sum())
    return error


def _action(dictionary: Dictionary, held: Samples, effect: Effect) -> dict[str, float | None]:
    stride = -(-held.frames // _EFFECT_FRAMES)
    x, y = torch.from_numpy(held.x[::stride].copy()), torch.from_numpy(held.y[::stride].copy())
    with torch.inference_mode():
        return effect.agreement(y, dictionary.decode_codes(dictionary.codes(x), x))


def _by_phase(errors: Doubles, held: Samples, total: float) -> list[dict[str, Any]]:
    """Mean error of each phase over the mean variance of all frames."""
    if held.step is None:
        order = np.argsort(held.episode, kind="stable")
        _, first, lengths = np.unique(held.episode[order], return_index=True, return_counts=True)
        step = np.empty(held.frames, np.int64)
        step[order] = np.arange(held.frames) - np.repeat(first, lengths)
    else:
        step = held.step.astype(np.int64)
    phases = []
    for begin, end in zip(PHASES, (*PHASES[1:], None), strict=True):
        chosen = (step >= begin) & (step < (end or held.frames))
        if chosen.any() and total > 0:
            fvu = float(errors[chosen].mean() / (total / held.frames))
            phases.append({"from_step": begin, "to_step": end, "frames": int(chosen.sum()), "fvu": fvu})
    return phases


def _density(density: Doubles) -> dict[str, Any]:
    """Latents by log10 of their density; those below the first edge count with it, silent ones apart."""
    alive = density[density > 0]
    counts, _ = np.histogram(np.log10(alive).clip(DENSITY_EDGES[0], 0), bins=list(DENSITY_EDGES))
    return {"log10_edges": list(DENSITY_EDGES), "latents": counts.tolist(), "silent": int((density == 0).sum())}


def _windows(sse: Doubles, sst: Doubles, l0: Doubles, frames: int) -> dict[str, dict[str, float | None]]:
    frames = min(frames, len(sse))
    begins = np.arange(0, len(sse) - frames + 1, max(1, frames // 4))

    def sums(values: Doubles) -> Doubles:
        running = np.concatenate([[0.0], np.cumsum(values)])
        return np.asarray(running[begins + frames] - running[begins])

    with np.errstate(divide="ignore", invalid="ignore"):
        fvu = np.where(sums(sst) > 0, sums(sse) / sums(sst), math.nan)
    return {"fvu": quantiles(fvu), "l0": quantiles(sums(l0) / frames)}
