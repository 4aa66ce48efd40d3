"""What changing a feature does: `effects.json` beside a dictionary, the causal half of what is said of its features.

    {"format": "interlatent-effects/1", "dictionary_hash": …, "weights_hash": …, "agent": …, "command": …,
     "action_unit": "kl" | "sd", "seeds": …, "prediction": {"action": Interval, "return": Interval},
     "features": {"4": {"operation": "ablate", "strength": 0.0, "active_share": …,
                        "action": {mean, low, high, n, when_active, toward, change: {mean, low, high, n}, p, q, r},
                        "return": {mean, low, high, n, p, q, r} | null}}}

'action' is how far the action moves at the states that the policy met by itself: 'kl' is KL(without | with the operation) in
nats, 'sd' the root mean square over components in their standard deviations; `toward` names the action whose probability, or
the component whose value, moves most, and `change` is by how much (probability, or standard deviations), up being positive.
'return' is the change of the mean return in percent, of paired episodes; null where it was not measured. `r` is the
correlation that would have predicted it. All means are with 95 % intervals over n episodes; q is Benjamini-Hochberg's over
the features. The file counts for exactly the dictionary and weights that it names.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from interlatent_live.analyzer.paired import Interval
from interlatent_live.analyzer.sidecar import read_sidecar
from interlatent_live.stream.errors import DictionaryError

if TYPE_CHECKING:  # the explainer reads the file without torch
    from interlatent_live.analyzer.dictionary import Dictionary

__all__ = ["FILE", "CausalEffects", "FeatureEffect", "effects_of", "load_effects", "save_effects"]

log = logging.getLogger(__name__)
FILE: Final = "effects.json"
FORMAT: Final = "interlatent-effects/1"
_MAX_BYTES: Final = 16 << 20


@dataclass(frozen=True, slots=True)
class FeatureEffect:
    """What one operation on one feature does."""

    feature: int
    operation: str
    strength: float
    action: Interval
    """In `CausalEffects.action_unit`, over all frames."""
    when_active: float
    """The same over the frames in which the feature is active; NaN where there is none."""
    toward: str
    """The action, or its component, that moves most."""
    change: Interval
    """How far: in probability, or in standard deviations; positive is up."""
    q_action: float
    """That `change` is not 0, among all features."""
    outcome: Interval | None
    """Change of the mean return in percent; None where it was not measured."""
    q_outcome: float
    """NaN where it was not measured."""


@dataclass(frozen=True, slots=True)
class CausalEffects:
    """What one file holds."""

    dictionary_hash: str
    weights_hash: str
    agent: str
    command: str
    action_unit: str
    """'kl' (nats) or 'sd'."""
    features: Mapping[int, FeatureEffect]


def effects_of(dictionary: Dictionary) -> CausalEffects | None:
    """Those beside the dictionary, of exactly its hash; None where there are none. A damaged file is logged and passed over."""
    path = None if dictionary.path is None else Path(dictionary.path) / FILE
    if path is None or not path.is_file():
        return None
    try:
        found = load_effects(path)
    except DictionaryError as error:
        log.warning("effects left out: %s", error)
        return None
    return found if found.dictionary_hash == dictionary.hash else None


def load_effects(path: Path) -> CausalEffects:
    """Read one file; DictionaryError for anything that is not what it should be."""
    data = read_sidecar(path, FORMAT, _MAX_BYTES)
    try:
        return CausalEffects(
            str(data["dictionary_hash"]), str(data["weights_hash"]), str(data["agent"]), str(data["command"]), str(data["action_unit"]),
            {int(f): _effect(int(f), row) for f, row in data["features"].items()},
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        remedy = "make it again with `interlatent-live experiment ablate`"
        raise DictionaryError(f"{path}: {type(error).__name__}: {error}; {remedy}") from error


def save_effects(path: Path, found: Mapping[str, Any]) -> None:
    """Write what `ablation.ablate` found."""
    head = {"format": FORMAT, **{key: value for key, value in found.items() if key != "features"}}
    rows = {f: json.dumps(row, allow_nan=False, separators=(",", ":")) for f, row in found["features"].items()}
    body = ",\n".join(f'  "{f}": {row}' for f, row in rows.items())
    start = json.dumps(head, indent=1, ensure_ascii=False, allow_nan=False).removesuffix("\n}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'{start},\n "features": {{\n{body}\n}}}}\n', encoding="utf-8")


def _effect(feature: int, row: Mapping[str, Any]) -> FeatureEffect:
    action, outcome = row["action"], row["return"]
    return FeatureEffect(
        feature, str(row["operation"]), float(row["strength"]), _interval(action), _number(action["when_active"]), str(action["toward"]),
        _interval(action["change"]), _number(action["q"]), None if outcome is None else _interval(outcome),
        math.nan if outcome is None else _number(outcome["q"]),
    )  # fmt: skip


def _interval(row: Mapping[str, Any]) -> Interval:
    return Interval(_number(row["mean"]), _number(row["low"]), _number(row["high"]), int(row["n"]))


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
