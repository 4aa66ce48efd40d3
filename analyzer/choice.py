"""Which features a stream is shown in.

1. Dictionaries that were named: all of them, each of which must belong to the model and its tap points. One of other
   weights is refused unless it is overridden by name; one of a model whose weights are changing is taken and marked stale.
2. Else every shipped or registered dictionary whose model hash and tap points match the manifest.
3. Those adopted while the stream runs (`analyzer.following`): for each output point the newest one of these weights, in place
   of what rule 2 found for it.
4. Neurons, for every tap point that no chosen dictionary reads.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Final, TypeAlias

from interlatent_live.analyzer.features import DictionaryFeatures, FeatureSource, NeuronFeatures, use_one_thread
from interlatent_live.stream.errors import DictionaryMismatch
from interlatent_live.stream.manifest import Manifest

if TYPE_CHECKING:  # torch comes with it
    from interlatent_live.analyzer.dictionary import Dictionary

__all__ = ["MAX_NEURONS", "Choice", "Mismatch", "Overrides", "choose"]

MAX_NEURONS: Final = 1 << 15
"""Neurons of one tap point; a larger one (a picture's feature maps) is only shown through a dictionary."""
_LOG = logging.getLogger(__name__)
Overrides: TypeAlias = Mapping[str, tuple[str, str] | None]
"""Content hashes of dictionaries that are used although they do not match; with input and output point where named."""


class Mismatch(IntEnum):
    """`sections.mismatch`: how a section's dictionary stands to the stream's weights."""

    NONE = 0
    OVERRIDDEN = 1
    """It is of other weights, unknown ones, or another tap point; a person said to use it."""
    STALE = 2
    """The stream's weights are changing."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One source of features."""

    source: FeatureSource
    mismatch: Mismatch = Mismatch.NONE
    """Whether the dictionary is used although it is not known to belong to these weights."""


def choose(
    manifest: Manifest,
    dictionaries: Sequence[Dictionary] | None = None,
    *,
    neurons_only: bool = False,
    override: Overrides | None = None,
    adopted: Sequence[Dictionary] = (),
) -> list[Choice]:
    """Sources for the tap points of `manifest`: adopted, named or matching, neurons; each once. `dictionaries` None or empty: those
    that match. `adopted`: newest first; `neurons_only` does not concern them.

    Raises DictionaryMismatch for a named dictionary of other weights that is not in `override`, and for one that cannot
    be computed here at all.
    """
    chosen: list[Choice] = []
    read: set[str] = set()
    newest = _fitting(adopted, manifest)
    others: Sequence[Dictionary] = ()
    if not neurons_only:
        others = dictionaries or [d for d in _registered(manifest) if d.cfg.output not in newest]
    for dictionary in {d.hash: d for d in (*newest.values(), *others)}.values():
        at = (override or {}).get(dictionary.hash)
        mismatch = _mismatch(dictionary, manifest, override or {})
        source = DictionaryFeatures(dictionary, at)
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


def _fitting(adopted: Sequence[Dictionary], manifest: Manifest) -> dict[str, Dictionary]:
    """Of each output point the first that can be computed here and is of these weights, or of those that these began with."""
    found: dict[str, Dictionary] = {}
    for dictionary in adopted:
        from interlatent_live.analyzer.registry import check

        try:
            doubt = check(dictionary, manifest)
        except DictionaryMismatch as error:
            _LOG.warning("%s", error)
            continue
        if doubt is None or (doubt.stale and dictionary.cfg.model_hash == manifest.weights_hash):
            found.setdefault(dictionary.cfg.output, dictionary)
        else:
            _LOG.warning("%s", doubt.text)
    return found


def _mismatch(dictionary: Dictionary, manifest: Manifest, override: Overrides) -> Mismatch:
    """How a dictionary stands to the stream. Raises DictionaryMismatch where it may not be used."""
    from interlatent_live.analyzer.registry import check

    at = override.get(dictionary.hash)
    doubt = check(dictionary, manifest, at)
    if doubt is not None and doubt.stale:
        _LOG.warning("%s", doubt.text)
        return Mismatch.STALE
    if doubt is not None and dictionary.hash not in override:
        raise DictionaryMismatch(doubt.text)
    if doubt is None and at in (None, (dictionary.cfg.input, dictionary.cfg.output)):
        return Mismatch.NONE
    _LOG.warning("%r is used by override; its features are marked as mismatched", dictionary.name)
    return Mismatch.OVERRIDDEN
