"""A predicate as somebody types it: what it scores, on which features it fits best, or what is wrong with it.

Reads a database and writes nothing; for the page and the command line. `Trier` keeps the newest frames between tries and
reads on only what is new, so that a try costs the scoring alone: about 0.2 s for 30,000 frames and 300 live features on
one core. For one thread at a time; hand it to a worker where a page must not wait.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from interlatent_live.explainer.grammar import parse
from interlatent_live.explainer.predicate import Predicate
from interlatent_live.explainer.reading import Pages
from interlatent_live.explainer.scoring import Score, live, score
from interlatent_live.explainer.source import Frames, Source, Subject
from interlatent_live.explainer.table import Vocabulary, feature_number
from interlatent_live.stream.errors import PredicateError, StoreError

__all__ = ["FRAMES", "Fit", "Trial", "Trier", "fits", "suggest"]

FRAMES: Final = 30_000
"""Newest frames that a try looks at."""
_RESAMPLES: Final = 500


@dataclass(frozen=True, slots=True)
class Fit:
    """One feature under the predicate; NaN is None."""

    feature: int
    name: str
    """'f41', or 'n41' for a neuron."""
    label: str | None
    balanced_accuracy: float | None
    low: float | None
    high: float | None
    sensitivity: float | None
    specificity: float | None
    positives: int
    """Held-out frames in which the feature is active."""


@dataclass(frozen=True, slots=True)
class Trial:
    """What came of a try."""

    text: str
    """The predicate as it was understood; what was typed where it was not."""
    error: str | None
    """What is wrong with it, None where nothing is; then everything below is empty."""
    position: int | None
    """Character of the text, from 0, at which it is wrong, where that is known."""
    close: tuple[str, ...]
    """Known names that resemble the unknown one."""
    frames: int
    """Held-out frames that it was scored on."""
    holds: float | None
    """Share of them in which it is true."""
    undefined: float | None
    """Share in which it is neither true nor false."""
    fits: tuple[Fit, ...]
    """The features that it says most of, the best first; one alone where one was asked for."""


class Trier:
    """Tries predicates on the newest frames of one database."""

    def __init__(self, path: Path | str, *, max_frames: int = FRAMES, point: str | None = None) -> None:
        """`point`: the tap point whose features are meant; None: the analyzer's own preference."""
        self._path = Path(path)
        self._source = Source(self._path, max_frames=max_frames, point=point)
        self._frames: Frames | None = None
        self._live: list[int] = []

    def close(self) -> None:
        """Let go of the file."""
        self._source.close()

    def refresh(self) -> Subject:
        """Read what is new; StoreError where there is nothing to try on yet."""
        grown = False
        while self._source.pull():
            grown = True
        if grown or self._frames is None:
            self._frames = self._source.kept()
            self._live = [] if self._frames is None else [int(f) for f in live(self._frames.table, self._frames.held_out)]
        if self._frames is None or self._source.subject is None:
            raise StoreError(f"{self._path} holds no frames with features; `interlatent-live analyze` makes them")
        return self._source.subject

    @property
    def frames(self) -> Frames:
        """What is kept, the newest frames; StoreError where there is nothing yet."""
        self.refresh()
        assert self._frames is not None
        return self._frames

    @property
    def vocabulary(self) -> Vocabulary:
        """What a predicate may name here, with units."""
        return self.frames.table.vocabulary

    def names(self) -> tuple[str, ...]:
        """The same as names alone."""
        known = self.vocabulary
        return (*known.units, *known.labels, *known.attributes)

    def attempt(self, text: str, *, feature: int | None = None, top: int = 10) -> Trial:
        """Score what was typed. A mistake in it is no exception but `error`; StoreError where there is no data."""
        subject = self.refresh()
        assert self._frames is not None
        try:
            predicate = parse(text, self._frames.table.vocabulary)
            if predicate.impossible:
                raise PredicateError(f"nothing can satisfy {predicate}")
            if feature is not None and not 0 <= feature < subject.dictionary.features:
                raise PredicateError(f"there is no feature {feature}; they go from 0 to {subject.dictionary.features - 1}")
        except PredicateError as error:
            position = getattr(error, "position", None)
            return Trial(text[:500], str(error), position, tuple(getattr(error, "close", ())), 0, None, None, ())
        frames = self._frames
        found = fits(predicate, frames, self._live if feature is None else [feature])
        with Pages(self._path) as pages:
            labels = {e.feature: e.label for e in pages.explanations(subject.dictionary.hash, everything=True)}
        truth = predicate.evaluate(frames.table)
        assert frames.table.features is not None
        held = frames.held_out & frames.table.features.encoded
        return Trial(
            str(predicate), None, None, (), int(held.sum()), _share(truth.holds, held), _share(~truth.defined, held),
            tuple(_fit(s, subject.name(s.feature), labels.get(s.feature)) for s in found[:top]),
        )  # fmt: skip


def fits(predicate: Predicate, frames: Frames, features: Sequence[int]) -> list[Score]:
    """The score of a predicate for each of `features` but those that it names itself, the best first, on held-out episodes."""
    own = {feature_number(name) for name in predicate.names}
    numbers = [f for f in features if f not in own]
    scores = score([predicate] * len(numbers), numbers, frames.table, frames.held_out, resamples=_RESAMPLES)
    return sorted(scores, key=lambda s: (-_or_zero(s.balanced_accuracy.mean), s.feature))


def suggest(text: str, names: Sequence[str], limit: int = 12) -> list[str]:
    """Names that the word being typed at the end of `text` may become, those that begin with it first."""
    word = ""
    for character in reversed(text):
        if not (character.isalnum() or character in "_[]"):
            break
        word = character + word
    low = word.lower()
    if not low:
        return list(names[:limit])
    begin = [n for n in names if n.lower().startswith(low)]
    return [*begin, *(n for n in names if low in n.lower() and n not in begin)][:limit]


def _share(mask: npt.NDArray[np.bool_], rows: npt.NDArray[np.bool_]) -> float | None:
    return float(np.mean(mask[rows])) if rows.any() else None


def _fit(found: Score, name: str, label: str | None) -> Fit:
    known: dict[str, Any] = {
        "balanced_accuracy": found.balanced_accuracy.mean, "low": found.balanced_accuracy.low, "high": found.balanced_accuracy.high,
        "sensitivity": found.sensitivity, "specificity": found.specificity,
    }  # fmt: skip
    numbers = {k: float(v) if math.isfinite(v) else None for k, v in known.items()}
    return Fit(found.feature, name, label, positives=found.positives, **numbers)


def _or_zero(value: float) -> float:
    return value if math.isfinite(value) else 0.0
