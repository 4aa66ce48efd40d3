"""The causal half of a sentence: what suppressing a feature does to the action, where that has been measured.

Read from `effects.json` beside the dictionary (analyzer.causal), for exactly that dictionary over exactly those weights. A
score says that a rule tells active from inactive frames; this says whether anything follows from the feature.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Final

from interlatent_live.explainer.source import Subject
from interlatent_live.explainer.wording import spoken

if TYPE_CHECKING:
    from interlatent_live.analyzer.causal import FeatureEffect

__all__ = ["SURE", "causes"]

SURE: Final = 0.05
"""False discovery rate below which an effect is told as one."""
_DOING: Final = {"ablate": "suppressing it", "scale": "scaling it", "clamp": "clamping it", "add": "adding to it"}
_LARGEST: Final = 100_000


def causes(subject: Subject) -> dict[int, str]:
    """Feature to what changing it does, in words; {} where nothing was measured. A damaged file is passed over."""
    if not subject.dictionary.path:
        return {}
    folder = Path(subject.dictionary.path)
    from interlatent_live.analyzer.causal import FILE, load_effects
    from interlatent_live.stream.errors import DictionaryError

    if not (folder / FILE).is_file():
        return {}
    try:
        found = load_effects(folder / FILE)
    except DictionaryError:
        return {}  # whoever loads the dictionary tells of it
    if (found.dictionary_hash, found.weights_hash) != (subject.dictionary.hash, subject.manifest.weights_hash):
        return {}
    unit = "in probability" if found.action_unit == "kl" else "standard deviations"
    told = {feature: _told(effect, unit) for feature, effect in found.features.items() if len(found.features) <= _LARGEST}
    return {feature: text for feature, text in told.items() if text}


def _told(effect: FeatureEffect, unit: str) -> str:
    doing = _DOING.get(effect.operation, "changing it")
    if effect.operation != "ablate":
        doing += f" ({effect.strength:g})"
    change = effect.change
    if not all(map(math.isfinite, (change.mean, change.low, change.high))):
        return ""
    if not effect.q_action < SURE:  # NaN is not sure either
        return f"{doing} has no effect on the action that could be told from chance"
    figure = f"{change.mean:+.2g} {unit} ({change.low:+.2g} to {change.high:+.2g})"
    return f"{doing} moves the action {spoken(effect.toward)} by {figure}".replace("-", "−")
