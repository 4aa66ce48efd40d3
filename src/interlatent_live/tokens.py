"""`il.tokens`: text shaded by a feature or a neuron, inline in a notebook.

    il.tokens(tap.last, feature=1207)                     # of the dictionary that fits the model and the points
    il.tokens(tap.last, neuron=41, point="model.layers.15.mlp:out")
    il.tokens("lm.db", prompt=3, feature=7)               # of an analysed run
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from interlatent_live.stream.errors import DictionaryError, PromptError

if TYPE_CHECKING:
    from interlatent_live.agent_side.lm import Written
    from interlatent_live.analyzer.dictionary import Dictionary
    from interlatent_live.analyzer.shading import Shaded

__all__ = ["tokens"]


def tokens(
    source: Written | str | os.PathLike[str],
    feature: int | None = None,
    *,
    neuron: int | None = None,
    point: str | None = None,
    dictionary: str | os.PathLike[str] | Dictionary | None = None,
    prompt: int | None = None,
) -> Shaded:
    """The text of `source` (`tap.last`, or a database with `prompt`), shaded by `feature`, or by `neuron` of `point`.

    `dictionary`: a name, path or dictionary; None: the installed one that fits the model. Raises DictionaryError or
    PromptError.
    """
    if (feature is None) == (neuron is None):
        raise DictionaryError("give feature=… (of a dictionary) or neuron=… (of a tap point), one of them")
    if isinstance(source, (str, os.PathLike)):
        from interlatent_live.analyzer.explore import shaded

        if neuron is not None:
            raise DictionaryError("a database keeps features, of neurons too: give feature=…, and point=… of its tap point")
        assert feature is not None
        return shaded(Path(source), feature, 0 if prompt is None else prompt, point=point)
    return _live(source, feature, neuron, point, dictionary)


def _live(text: Written, feature: int | None, neuron: int | None, point: str | None, dictionary: Any) -> Shaded:
    from interlatent_live.analyzer.shading import Shaded

    notes = [f"token {token}, position {i}" for i, token in enumerate(text.tokens.tolist())]
    if neuron is not None:
        point = _known(point, text) if point else next(iter(text.activations))
        values = text.activations[point].reshape(len(text), -1)
        if not 0 <= neuron < values.shape[1]:
            raise DictionaryError(f"{point} has {values.shape[1]} neurons; {neuron} is none of them")
        return Shaded(f"neuron {neuron} of {point}", text.texts, values[:, neuron].astype(np.float64), notes, text.special)
    assert feature is not None
    chosen = _dictionary(text, dictionary, point)
    if not 0 <= feature < chosen.features:
        raise DictionaryError(f"{chosen.name} has {chosen.features} features; {feature} is none of them")
    x = text.activations[_known(chosen.cfg.input, text)].reshape(len(text), -1)
    known = np.isfinite(x).all(axis=1) & ~text.special
    shown = np.full(len(text), np.nan)
    if known.any():
        shown[known] = chosen.codes(x[known]).dense()[:, feature]
    return Shaded(f"feature {feature} of {chosen.name}", text.texts, shown, notes, text.special)


def _dictionary(text: Written, dictionary: Any, point: str | None) -> Dictionary:
    from interlatent_live.analyzer import registry

    if dictionary is not None and not isinstance(dictionary, (str, os.PathLike)):
        found: Dictionary = dictionary
        return found
    if dictionary is not None:
        return registry.find(str(dictionary))
    for one in registry.installed():
        if one.cfg.model_hash == text.model_hash and one.cfg.input in text.activations and point in (None, one.cfg.input, one.cfg.output):
            return one
    raise DictionaryError(
        f"no installed dictionary is of this model and reads {', '.join(text.activations)}; name one, train one "
        "(interlatent-live dict train), or look at a neuron: il.tokens(tap.last, neuron=0)"
    )


def _known(point: str, text: Written) -> str:
    if point not in text.activations:
        raise PromptError(f"{point} was not tapped; {', '.join(text.activations)} was")
    return point
