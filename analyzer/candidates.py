"""What can be done to an agent's features: how active they are, and the operations and strengths that an experiment tries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from interlatent_live.analyzer.dictionary import Dictionary, DictionaryConfig
from interlatent_live.analyzer.edit import Edit, Operation, edited
from interlatent_live.analyzer.rollout import Splice
from interlatent_live.analyzer.trial import Trial, Trials
from interlatent_live.stream.errors import DictionaryMismatch

__all__ = [
    "ADDS", "CLAMPS", "SCALES", "Activity", "Candidate", "activity_of", "candidates_of", "check_agent", "neuron_dictionary", "of_dose",
    "splice_of_edit",
]  # fmt: skip

Doubles = npt.NDArray[np.float64]
SCALES: Final = (0.5, 1.25, 1.5, 2.0, 3.0, 5.0)
CLAMPS: Final = (0.5, 1.0)
"""In units of the feature's typical maximum."""
ADDS: Final = (-0.5, -0.2, 0.2, 0.5, 1.0)
"""In units of the feature's typical maximum."""
_LIVE_SHARE: Final = 1e-3


@dataclass(frozen=True, slots=True)
class Candidate:
    """One thing to try."""

    feature: int
    operation: Operation
    dose: float
    """The factor ('scale'), or in units of the feature's typical maximum; 0 for 'ablate'."""
    strength: float
    """As an `Edit` takes it."""

    @property
    def edit(self) -> Edit:
        """What is done."""
        return Edit(self.operation, self.strength, feature=self.feature)

    @property
    def label(self) -> str:
        """Its name in a memory of trials."""
        return f"{self.feature} {self.operation} {self.strength!r}"

    @property
    def told(self) -> dict[str, Any]:
        """As data."""
        return {"feature": self.feature, "operation": self.operation, "strength": self.strength, "dose": self.dose}


@dataclass(frozen=True, slots=True, eq=False)
class Activity:
    """How features behave without intervention."""

    share: Doubles
    """(features,) of frames in which each is active."""
    maximum: Doubles
    """(features,) 99th percentile of its values where it is active; 0 where it never was."""
    seen: Trial
    """The episodes, with activations."""

    @property
    def live(self) -> list[int]:
        """Those active in at least one of a thousand frames."""
        return [int(f) for f in np.flatnonzero(self.share >= _LIVE_SHARE)]


def check_agent(dictionary: Dictionary, trials: Trials) -> None:
    """DictionaryMismatch where the dictionary is of other weights than the agent's."""
    cfg = dictionary.cfg
    if cfg.model_hash and cfg.model_hash != trials.model_hash:
        raise DictionaryMismatch(
            f"{cfg.name!r} is of the weights {cfg.model_hash[:12]}, the agent {trials.agent!r} has {trials.model_hash[:12]}; "
            "name a dictionary of its own"
        )


def neuron_dictionary(point: str, width: int, model_hash: str) -> Dictionary:
    """The neurons of a layer as a dictionary: feature i is neuron i where it is positive."""
    cfg = DictionaryConfig(f"neurons of {point}", "relu", width, width, width, point, point, model_hash=model_hash)
    eye, zeros = torch.eye(width), torch.zeros(width)
    return Dictionary(cfg, {"W_enc": eye, "b_enc": zeros, "W_dec": eye.clone(), "b_dec": zeros.clone()})


def splice_of_edit(dictionary: Dictionary, edit: Edit) -> Splice:
    """The edit at each step, the error term kept."""
    edit.check(dictionary)
    return lambda x, y: edited(dictionary, [edit], x, y)


def activity_of(trials: Trials, dictionary: Dictionary, seeds: range, max_steps: int | None = None) -> Activity:
    """Of clean episodes."""
    seen = trials.trial(None, seeds, max_steps=max_steps, keep=True)
    codes = dictionary.codes(seen.x)
    share = np.bincount(codes.indices, minlength=dictionary.features) / max(1, codes.rows)
    maximum = np.zeros(dictionary.features)
    order = np.argsort(codes.indices, kind="stable")
    ends = np.cumsum(np.bincount(codes.indices, minlength=dictionary.features))
    for feature, values in enumerate(np.split(codes.values[order], ends[:-1])):
        if len(values):
            maximum[feature] = float(np.quantile(values, 0.99))
    return Activity(share, maximum, seen)


def candidates_of(
    features: Sequence[int], activity: Activity, tries: Sequence[tuple[Operation, float]] | None = None
) -> list[Candidate]:
    """Everything that is tried of these features; `tries`: only these operations and doses."""
    if tries is not None:
        return [of_dose(f, operation, dose, activity) for f in features for operation, dose in tries]
    made = []
    for f in features:
        maximum = float(activity.maximum[f])
        made.append(Candidate(f, "ablate", 0.0, 0.0))
        made += [Candidate(f, "scale", s, s) for s in SCALES]
        made += [Candidate(f, "clamp", d, d * maximum) for d in CLAMPS]
        made += [Candidate(f, "add", d, d * maximum) for d in ADDS]
    return made


def of_dose(feature: int, operation: Operation, dose: float, activity: Activity) -> Candidate:
    """A feature changed so much."""
    strength = dose if operation == "scale" else dose * float(activity.maximum[feature])
    return Candidate(feature, operation, dose, strength)
