"""Linear probes of a language model's labels: how well a layer, or its features, tells what a text was labelled.

1. Tokens of labelled prompts at which the tap point fired, special ones left out; at most MAX_FRAMES, evenly spaced.
2. Logistic regression of the label on one token's activations; balanced accuracy over the label's values.
3. Cross-validated by prompt: no text is on both sides.
4. Control: the same with the labels dealt out anew among the prompts, which keeps how many have which.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from interlatent_live.analyzer.features import activations_of
from interlatent_live.analyzer.probe import CONTROLS, FOLDS, MAX_FRAMES, Score
from interlatent_live.analyzer.prompts import without_special
from interlatent_live.stream.errors import DictionaryError
from interlatent_live.stream.frames import FrameBatch
from interlatent_live.stream.prompt import Prompt
from interlatent_live.stream.reading import Recording

__all__ = ["probe_label"]


def probe_label(recording: str | Path, point: str, label: str, dictionary: str | None = None, seed: int = 0) -> dict[str, Any]:
    """Probe the activations at `point`, and the features of `dictionary` (a name or path; None: one that fits; 'none': none), for
    the prompts' label `label`. Raises DictionaryError."""
    from interlatent_live.analyzer import registry

    opened = Recording(Path(recording))
    if point not in (names := [p.name for p in opened.manifest.tap_points]):
        raise DictionaryError(f"{opened.path.name} has no tap point {point!r}; it has {', '.join(names) or 'none'}")
    given, frames = _prompts(opened)
    values = {key: labels[label] for key, labels in given.items() if label in labels}
    if not values:
        known = sorted({name for labels in given.values() for name in labels})
        raise DictionaryError(f"no prompt of {opened.path.name} has a label {label!r}; there is {', '.join(known) or 'none'}")
    if len(set(values.values())) < 2:
        raise DictionaryError(f"{label} is {next(iter(values.values()))!r} in every prompt; there is nothing to tell apart")
    chosen = registry.at_point(opened.manifest, point, dictionary)
    source = point if chosen is None else chosen.cfg.input
    x, inputs, prompt, keys = _frames(opened, point, source, values, -(-frames // MAX_FRAMES))
    names_ = sorted(set(values.values()))
    classes = np.array([names_.index(values[key]) for key in keys])
    return {
        "recording": opened.path.name, "point": point, "label": label, "values": names_, "frames": len(x), "prompts": len(keys),
        "measure": "balanced accuracy", "chance": 1 / len(names_), "activations": _score(x, classes, prompt, seed).to_dict(),
        "dictionary": None if chosen is None else {"name": chosen.name, "hash": chosen.hash},
        "features": None if chosen is None else _score(chosen.codes(inputs).dense(), classes, prompt, seed).to_dict(),
    }  # fmt: skip


def _prompts(recording: Recording) -> tuple[dict[tuple[str, int], Any], int]:
    found: dict[tuple[str, int], Any] = {}
    frames = 0
    for message in recording.messages():
        if isinstance(message, Prompt):
            found[message.boot, message.prompt] = message.labels
        elif isinstance(message, FrameBatch):
            frames += message.rows
    return found, frames


def _frames(
    recording: Recording, point: str, source: str, values: dict[tuple[str, int], str], every: int
) -> tuple[Any, Any, npt.NDArray[np.int64], list[tuple[str, int]]]:
    """Activations at both points, the number of each row's prompt, and the prompts by number."""
    xs: list[Any] = []
    inputs: list[Any] = []
    prompts: list[Any] = []
    keys: dict[tuple[str, int], int] = {}
    for message in recording.messages():
        if not isinstance(message, FrameBatch) or "prompt" not in message.columns:
            continue
        batch = without_special(message)
        x, z = activations_of(batch, recording.manifest, point), activations_of(batch, recording.manifest, source)
        if x is None or z is None:
            continue
        rows, in_x, in_z = np.intersect1d(batch.rows_of(point), batch.rows_of(source), assume_unique=True, return_indices=True)
        owner = batch.columns["prompt"][rows]
        kept = ((batch.first_seq + rows) % every == 0) & np.array([(batch.boot, int(p)) in values for p in owner], bool)
        kept &= np.isfinite(x[in_x]).all(axis=1) & np.isfinite(z[in_z]).all(axis=1)
        if kept.any():
            xs.append(x[in_x][kept])
            inputs.append(z[in_z][kept])
            prompts.append(np.array([keys.setdefault((batch.boot, int(p)), len(keys)) for p in owner[kept]]))
    if not xs:
        raise DictionaryError(f"{recording.path.name} has no token with both {point} and such a label")
    return np.concatenate(xs), np.concatenate(inputs), np.concatenate(prompts), list(keys)


def _score(x: Any, classes: npt.NDArray[Any], prompt: npt.NDArray[np.int64], seed: int) -> Score:
    """Balanced accuracy of `classes` (prompts,) by the rows of prompts that were not fitted to."""
    from sklearn.model_selection import StratifiedGroupKFold

    least = int(np.bincount(classes).min())
    if least < 2:
        raise DictionaryError("a value of the label stands on one prompt only; at least 2 of each are needed, one to be held out")
    generator = np.random.default_rng(seed)

    def folds(dealt: npt.NDArray[Any]) -> list[float]:
        y = dealt[prompt]
        cut = StratifiedGroupKFold(min(FOLDS, least), shuffle=True, random_state=seed).split(x, y, prompt)
        return [value for fit, held in cut if (value := _fold(x, y, fit, held)) is not None]

    found = np.array(folds(classes))
    chance = np.array([value for _ in range(CONTROLS) for value in folds(generator.permutation(classes))])
    return Score(
        float(found.mean()) if len(found) else None, float(found.std()) if len(found) else None,
        float(chance.mean()) if len(chance) else None, x.shape[1],
    )  # fmt: skip


def _fold(x: Any, y: npt.NDArray[Any], fit: npt.NDArray[Any], held: npt.NDArray[Any]) -> float | None:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import recall_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if len(np.unique(y[fit])) < 2 or not len(held):
        return None
    model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=300))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(x[fit], y[fit])
    there = np.unique(y[held])
    return float(recall_score(y[held], model.predict(x[held]), labels=there, average="macro", zero_division=0.0))
