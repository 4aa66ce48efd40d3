"""Linear probes: how much of a metric can be read off a layer, and off its features.

1. Frames of a recording in which the tap point fired and the metric is finite; at most MAX_FRAMES, evenly spaced.
2. A metric of two values is classified (logistic regression, balanced accuracy), any other regressed (ridge, R^2). The
   strength of the penalty is chosen within each training part.
3. Cross-validated by episode: no episode is on both sides. One score a fold; the mean and their standard deviation.
4. Control: the same with the metric rolled in time, by a random share of the recording, which keeps what it is like (its
   distribution and autocorrelation) and breaks what it goes with. (Hewitt & Liang 2019, arXiv:1909.03368, on controls.)

Features are those of a dictionary that reads or writes the point, dense, else there are none. Scores may be negative: R^2
of a prediction worse than the mean is. Costs a second for 64 wide layers, a minute for thousands of features.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from interlatent_live.analyzer.features import activations_of
from interlatent_live.analyzer.prompts import without_special
from interlatent_live.stream.errors import DictionaryError
from interlatent_live.stream.frames import FrameBatch
from interlatent_live.stream.manifest import Manifest
from interlatent_live.stream.reading import Recording

__all__ = ["MAX_FRAMES", "Frames", "Score", "frames_of", "probe", "score"]

MAX_FRAMES: Final = 50_000
FOLDS: Final = 5
CONTROLS: Final = 3
ALPHAS: Final = (1e-2, 1.0, 1e2, 1e4)
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Frames:
    """(n, d) float32 activations, (n,) float64 metric and (n,) episode numbers, in the order of time."""

    x: npt.NDArray[np.float32]
    y: Doubles
    episode: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Score:
    """Cross-validated by episode."""

    mean: float | None
    """None where no fold could be scored."""
    deviation: float | None
    """Standard deviation over the folds."""
    control: float | None
    """Mean score with the metric rolled in time."""
    width: int
    """Number of inputs."""

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {"mean": self.mean, "deviation": self.deviation, "control": self.control, "width": self.width}


def frames_of(recording: Recording, point: str, metric: str, *more: str) -> tuple[Frames, dict[str, npt.NDArray[np.float32]]]:
    """Frames with `point` and a finite `metric`, and the activations of the points `more` in the same frames."""
    manifest = recording.manifest
    _known(point, [p.name for p in manifest.tap_points], "tap point", recording.path)
    names = [m.name for m in manifest.metrics]
    _known(metric, names, "metric", recording.path)
    column = names.index(metric)
    kept: dict[str, list[npt.NDArray[Any]]] = {name: [] for name in (point, *more, "\0y", "\0key")}
    boots: dict[str, int] = {}
    for batch in recording.messages():
        if isinstance(batch, FrameBatch):
            _add(kept, without_special(batch), manifest, column, (point, *more), boots.setdefault(batch.boot, len(boots)))
    if not kept["\0y"]:
        raise DictionaryError(f"{recording.path.name} has no frame with both {point} and a finite {metric}")
    values = {name: np.concatenate(parts) for name, parts in kept.items()}
    chosen = slice(None, None, -(-len(values["\0y"]) // MAX_FRAMES))
    _, episode = np.unique(values["\0key"], axis=0, return_inverse=True)
    frames = Frames(values[point][chosen], values["\0y"][chosen], episode.reshape(-1).astype(np.int64)[chosen])
    return frames, {name: values[name][chosen] for name in more}


def _add(
    kept: dict[str, list[npt.NDArray[Any]]], batch: FrameBatch, manifest: Manifest, column: int, points: tuple[str, ...], boot: int
) -> None:
    metrics = batch.columns.get("metrics")
    found = {name: activations_of(batch, manifest, name) for name in points}
    if metrics is None or any(values is None for values in found.values()):
        return
    rows = np.flatnonzero(np.isfinite(metrics[:, column]))
    for name in points:
        rows = np.intersect1d(rows, batch.rows_of(name), assume_unique=True)
    for name, values in found.items():
        assert values is not None
        part = values[np.searchsorted(batch.rows_of(name), rows)]
        kept[name].append(part)
    if len(rows):
        finite = np.logical_and.reduce([np.isfinite(kept[name][-1]).all(axis=1) for name in points])
        for name in points:
            kept[name][-1] = kept[name][-1][finite]
        rows = rows[finite]
    columns = batch.columns
    kept["\0y"].append(metrics[rows, column].astype(np.float64))
    kept["\0key"].append(np.stack([np.full(len(rows), boot), columns["env"][rows], columns["episode"][rows]], axis=1))


def score(x: npt.NDArray[np.float32], y: Doubles, episode: npt.NDArray[np.int64], seed: int = 0) -> Score:
    """How well a linear map of `x` gives `y` in episodes that it was not fitted to."""
    from sklearn.model_selection import GroupKFold

    folds = list(GroupKFold(n_splits=min(FOLDS, len(np.unique(episode)))).split(x, y, episode))
    scores = [_fold(x, y, fit, held) for fit, held in folds]
    generator = np.random.default_rng(seed)
    controls = []
    for _ in range(CONTROLS):
        rolled = np.roll(y, int(generator.integers(len(y) // 10, max(len(y) // 10 + 1, 9 * len(y) // 10))))
        controls += [_fold(x, rolled, fit, held) for fit, held in folds]
    found = np.array([s for s in scores if s is not None])
    chance = np.array([s for s in controls if s is not None])
    return Score(
        float(found.mean()) if len(found) else None,
        float(found.std()) if len(found) else None,
        float(chance.mean()) if len(chance) else None,
        x.shape[1],
    )


def probe(recording: str | Path, point: str, metric: str, dictionary: str | None = None, seed: int = 0) -> dict[str, Any]:
    """Probe activations at `point`, and the features of `dictionary` (a name or path; None: one that fits; 'none': none)."""
    from interlatent_live.analyzer import registry

    opened = Recording(Path(recording))
    chosen = registry.at_point(opened.manifest, point, dictionary)
    more = () if chosen is None or chosen.cfg.input == point else (chosen.cfg.input,)
    frames, others = frames_of(opened, point, metric, *more)
    episodes = len(np.unique(frames.episode))
    if episodes < 2:
        raise DictionaryError(f"{opened.path.name} has {episodes} episode with {metric}; at least 2 are needed, one to be held out")
    values = np.unique(frames.y)
    if len(values) < 2:
        raise DictionaryError(f"{metric} is {values[0]:g} in all {len(frames.y)} frames of {opened.path.name}; there is nothing to predict")
    features = None
    if chosen is not None:
        codes = chosen.codes(others[chosen.cfg.input] if more else frames.x)
        features = score(codes.dense(), frames.y, frames.episode, seed)
    return {
        "recording": opened.path.name,
        "point": point,
        "metric": metric,
        "frames": len(frames.y),
        "episodes": episodes,
        "measure": "balanced accuracy" if len(values) == 2 else "R2",
        "activations": score(frames.x, frames.y, frames.episode, seed).to_dict(),
        "dictionary": None if chosen is None else {"name": chosen.name, "hash": chosen.hash},
        "features": None if features is None else features.to_dict(),
    }


def _fold(x: npt.NDArray[np.float32], y: Doubles, fit: npt.NDArray[Any], held: npt.NDArray[Any]) -> float | None:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression, RidgeCV
    from sklearn.metrics import balanced_accuracy_score, r2_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if len(np.unique(y[fit])) < 2 or len(np.unique(y[held])) < 2:
        return None
    scaler = StandardScaler()
    if len(np.unique(y)) == 2:
        model = make_pipeline(scaler, LogisticRegression(class_weight="balanced", max_iter=300))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            classes = (y == y.max()).astype(int)
            model.fit(x[fit], classes[fit])
        value = float(balanced_accuracy_score(classes[held], model.predict(x[held])))
    else:
        model = make_pipeline(scaler, RidgeCV(alphas=ALPHAS))
        model.fit(x[fit].astype(np.float64), y[fit])
        value = float(r2_score(y[held], model.predict(x[held].astype(np.float64))))
    return value if math.isfinite(value) else None


def _known(name: str, names: list[str], what: str, path: Path) -> None:
    if name not in names:
        raise DictionaryError(f"{path.name} has no {what} {name!r}; it has {', '.join(names) or 'none'}")
