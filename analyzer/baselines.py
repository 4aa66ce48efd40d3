"""What a dictionary is compared with, at the same number of active terms k = round(L0).

    pca      the mean output and its first k principal components (of the fitted frames)
    random   the k largest of as many random directions of the input, with a least-squares decoder
    neurons  the k outputs furthest from their mean; the others at it
    mean     the mean output: mean ablation

Each is a function of (x (n, d_in), y (n, d_out)) to (n, d_out), so that it can be measured and spliced like a dictionary.
'pca' and 'neurons' see the output itself, which a transcoder does not.
"""

from __future__ import annotations

import numpy as np
import torch

from interlatent_live.analyzer.rollout import Splice
from interlatent_live.analyzer.samples import Samples

__all__ = ["NAMES", "baselines"]

NAMES = ("pca", "random", "neurons", "mean")
_CHUNK = 4096


def baselines(fit: Samples, features: int, k: int) -> dict[str, Splice]:
    """By name, fitted to `fit`."""
    mean = fit.y.mean(axis=0, dtype=np.float64)
    return {
        "pca": _pca(fit, mean, k),
        "random": _random(fit, features, k),
        "neurons": _neurons(torch.from_numpy(mean.astype(np.float32)), k),
        "mean": _mean(torch.from_numpy(mean.astype(np.float32))),
    }


def _mean(mean: torch.Tensor) -> Splice:
    return lambda _, y: mean.expand(len(y), -1)


def _pca(fit: Samples, mean: np.ndarray[tuple[int, ...], np.dtype[np.float64]], k: int) -> Splice:
    centred = fit.y - mean
    _, vectors = np.linalg.eigh(centred.T @ centred)
    first = torch.from_numpy(vectors[:, ::-1][:, :k].astype(np.float32))
    centre = torch.from_numpy(mean.astype(np.float32))
    return lambda _, y: centre + (y - centre) @ first @ first.T


def _neurons(mean: torch.Tensor, k: int) -> Splice:
    def keep(_: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        rest = y - mean
        indices = rest.abs().topk(min(k, y.shape[1]), dim=1).indices
        return mean + torch.zeros_like(rest).scatter(1, indices, rest.gather(1, indices))

    return keep


def _random(fit: Samples, features: int, k: int) -> Splice:
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
    return lambda x, _: encode(x) @ decoder
