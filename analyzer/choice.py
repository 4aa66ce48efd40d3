"""Which features a stream is shown in.

1. Dictionaries that were named: all of them, each of which must belong to the model and its tap points.
2. Else every shipped or registered dictionary whose model hash and tap points match the manifest.
3. Neurons, for every tap point that no chosen dictionary reads.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from interlatent_live.analyzer.features import DictionaryFeatures, FeatureSource, NeuronFeatures, use_one_thread
from interlatent_live.stream.errors import DictionaryMismatch
from interlatent_live.stream.manifest import Manifest

if TYPE_CHECKING:  # torch comes with it
    from interlatent_live.analyzer.dictionary import Dictionary

__all__ = ["MAX_NEURONS", "Choice", "choose"]

MAX_NEURONS: Final = 1 << 15
"""Neurons of one tap point; a larger one (a picture's feature maps) is only shown through a dictionary."""
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Choice:
    """One source of features."""

    source: FeatureSource
    mismatch: bool = False
    """Whether the dictionary is used although it is not known to belong to this model."""


def choose(
    manifest: Manifest,
    dictionaries: Sequence[Dictionary] | None = None,
    *,
    neurons_only: bool = False,
    allow_mismatch: bool = False,
) -> list[Choice]:
    """Sources for the tap points of `manifest`, in their order. `dictionaries` None or empty: those that match.

    Raises DictionaryMismatch for a named dictionary of another model, unless `allow_mismatch`, and for one that cannot
    be computed here at all.
    """
    chosen: list[Choice] = []
    read: set[str] = set()
    if not neurons_only:
        if dictionaries:
            matched = [(d, _mismatch(d, manifest, allow_mismatch)) for d in dictionaries]
        else:
            matched = [(d, False) for d in _registered(manifest)]
        for dictionary, mismatch in matched:
            source = DictionaryFeatures(dictionary)
            chosen.append(Choice(source, mismatch))
            read |= {source.point, *source.inputs}
    if chosen:
        use_one_thread()
    for point in manifest.tap_points:
        size = math.prod(point.shape)
        if point.name in read:
            continue
        if not 0 < size <= MAX_NEURONS:
            _LOG.warning("%s has %d values a frame; at most %d neurons are analysed", point.name, size, MAX_NEURONS)
            continue
        chosen.append(Choice(NeuronFeatures(point.name, size)))
    return chosen


def _registered(manifest: Manifest) -> list[Dictionary]:
    """The best of each output point."""
    from interlatent_live.analyzer.registry import match

    best: dict[str, Dictionary] = {}
    for dictionary in match(manifest):
        best.setdefault(dictionary.cfg.output, dictionary)
    return list(best.values())


def _mismatch(dictionary: Dictionary, manifest: Manifest, allowed: bool) -> bool:
    """Whether a named dictionary is used although it is another model's. Raises DictionaryMismatch where it may not."""
    from interlatent_live.analyzer.registry import check

    doubt = check(dictionary, manifest)
    if doubt is None:
        return False
    if not allowed:
        raise DictionaryMismatch(f"{doubt}; allow the mismatch to use it all the same, or name another dictionary")
    _LOG.warning("%s; its features are shown as mismatched", doubt)
    return True
