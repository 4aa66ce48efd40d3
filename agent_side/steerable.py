"""Which dictionaries may be steered: those of the policy, or those installed, and only of the weights that the agent has."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any, Final

from interlatent_live.agent_side.policy import SteeringPolicy
from interlatent_live.analyzer.dictionary import Dictionary, load
from interlatent_live.stream.errors import DictionaryError, SteeringError

__all__ = ["Finder", "Steerable", "typical_maximum"]

Finder = Callable[[str | None], Sequence[Dictionary]]
"""Installed dictionaries: that of a name, or all of them."""
_MAX_TEXT: Final = 200


class Steerable:
    """The dictionaries of one tap's steering."""

    def __init__(self, policy: SteeringPolicy, points: Collection[str], weights: str, weights_hash: str, find: Finder | None) -> None:
        """`points`: names that the tap reads. Raises DictionaryError or SteeringError for what the policy names in vain."""
        self._policy, self._points, self._weights, self._weights_hash, self._find = policy, points, weights, weights_hash, find
        self._known: dict[str, Dictionary] = {}
        for given in policy.dictionaries:
            dictionary = given if isinstance(given, Dictionary) else self._load(given)
            self._check_model(dictionary)
            self._known[dictionary.hash] = dictionary

    def _load(self, given: Any) -> Dictionary:
        if isinstance(given, str) and self._find is not None:
            return self._find(given)[0]
        return load(given)

    def _check_model(self, dictionary: Dictionary) -> None:
        if self._policy.allow_mismatch:
            return
        ours, theirs = self._weights_hash[:12], dictionary.cfg.model_hash[:12]
        if not dictionary.cfg.model_hash or not self._weights_hash or dictionary.cfg.model_hash != self._weights_hash:
            what = f"is of the weights {theirs or 'unknown'}, the agent has {ours or 'none'}"
            raise SteeringError(f"dictionary {dictionary.name!r} {what}: train one for these", reason="mismatch")
        if self._weights == "changing":
            raise SteeringError(f"the agent's weights are changing; {dictionary.name!r} is of those it began with", reason="mismatch")

    def named(self, wanted: str | Dictionary | None) -> Dictionary:
        """That of a name, of the first 8 or more digits of a hash, or the one that fits. Raises SteeringError."""
        if isinstance(wanted, Dictionary):
            self._check_model(wanted)
            return wanted
        known = list(self._known.values())
        if wanted is not None and (not isinstance(wanted, str) or not wanted or "/" in wanted or "\\" in wanted or len(wanted) > _MAX_TEXT):
            raise SteeringError("a dictionary is asked for by name or hash, never by path", reason="bad_request")
        if wanted is not None:
            known = [d for d in known if d.name == wanted or (len(wanted) >= 8 and d.hash.startswith(wanted))]
        if not known and not self._policy.dictionaries and self._find is not None:
            try:
                known = list(self._find(wanted))
            except DictionaryError as error:
                raise SteeringError(str(error), reason="mismatch") from error
        if wanted is None and len(known) > 1:
            known = [d for d in known if d.cfg.model_hash == self._weights_hash and {d.cfg.input, d.cfg.output} <= set(self._points)]
        if not known:
            raise SteeringError(f"no dictionary {wanted or ''!r} is allowed here: name one of the policy's", reason="mismatch")
        if len(known) > 1:
            raise SteeringError(f"several dictionaries fit ({', '.join(d.name for d in known)}): name one", reason="bad_request")
        self._check_model(known[0])
        return self._known.setdefault(known[0].hash, known[0])


def typical_maximum(dictionary: Dictionary | None, feature: int, given: float | None) -> float:
    """Of a feature: the card's, else what was `given`; SteeringError where neither is known."""
    typical = (dictionary.card or {}).get("typical_max") if dictionary is not None else None
    found = typical[feature] if isinstance(typical, list) and 0 <= feature < len(typical) else given
    if found is None or not math.isfinite(float(found)) or not float(found) > 0:
        raise SteeringError(
            f"the typical maximum of feature {feature} is not known: its card has none; give one (`--db` finds it), or a "
            "strength in units of the activation",
            reason="bad_request",
        )
    return float(found)
