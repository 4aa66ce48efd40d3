"""Explanations that come with a dictionary: `explanations.json` beside it, so that a page speaks from the first second.

The file names the dictionary's content hash and the weights' hash and is used for nothing else; it says what it was made
from. Its scores are of held-out episodes of that recording, never of the stream it is used on: that is checked live.
For features that are neurons there is no dictionary folder; the file stands in `dictionaries/<name>/` all the same.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from interlatent_live import analyzer
from interlatent_live.analyzer.sidecar import read_sidecar
from interlatent_live.explainer.explaining import Explaining
from interlatent_live.explainer.grammar import parse
from interlatent_live.explainer.hypothesis import Hypothesis
from interlatent_live.explainer.scoring import Interval, Score
from interlatent_live.explainer.source import Subject
from interlatent_live.stream.errors import DictionaryError, PredicateError

__all__ = ["FILE", "Shipped", "find_shipped", "load_shipped", "place", "save_shipped"]

log = logging.getLogger(__name__)
FILE: Final = "explanations.json"
FORMAT: Final = "interlatent-explanations/1"
_MAX_BYTES: Final = 4 << 20
_NUMBERS: Final = ("sensitivity", "specificity", "f1", "shuffled", "base_f1", "base_rate", "undefined")


@dataclass(frozen=True, slots=True)
class Shipped:
    """What one file holds."""

    dictionary_hash: str
    weights_hash: str
    made_from: str
    """How the frames were made, as a command."""
    evidence_hash: str
    """Of the frames: hash of the analysis that they were read from."""
    explanations: tuple[tuple[Hypothesis, Score], ...]


def find_shipped(subject: Subject) -> Shipped | None:
    """Explanations of exactly this dictionary over these weights, or None. A damaged file is logged and passed over."""
    for path in _candidates(subject):
        try:
            head = read_sidecar(path, FORMAT, _MAX_BYTES)
            if (head.get("dictionary_hash"), head.get("weights_hash")) == (subject.dictionary.hash, subject.manifest.weights_hash):
                return load_shipped(path)
        except DictionaryError as error:
            log.warning("explanations left out: %s", error)
    return None


def _candidates(subject: Subject) -> Iterator[Path]:
    if subject.dictionary.path:
        yield from (p for p in [Path(subject.dictionary.path) / FILE] if p.is_file())
    for root in analyzer.__path__:
        yield from sorted(Path(root, "dictionaries").glob(f"*/{FILE}"))


def place(name: str) -> Path:
    """Where the explanations of a reference agent stand; makes the folder."""
    path = Path(next(iter(analyzer.__path__)), "dictionaries", name, FILE).resolve()
    path.parent.mkdir(exist_ok=True)
    return path


def load_shipped(path: Path) -> Shipped:
    """Read one file; DictionaryError for anything that is not what it should be."""
    data = read_sidecar(path, FORMAT, _MAX_BYTES)
    try:
        return Shipped(
            str(data["dictionary_hash"]), str(data["weights_hash"]), str(data["made_from"]), str(data["evidence_hash"]),
            tuple(_explanation(row) for row in data["explanations"]),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, ValidationError, PredicateError) as error:
        raise DictionaryError(f"{path}: {type(error).__name__}: {error}; make it again with `interlatent-live explain --ship`") from error


def save_shipped(path: Path, explaining: Explaining, *, made_from: str, evidence_hash: str) -> int:
    """Write what is current, scored and above chance beside a dictionary; how many."""
    subject = explaining.subject
    rows = [
        {
            "feature": c.feature, "label": c.label, "description": c.description, "predicate": str(c.predicate), "source": c.source,
            "score": _plain(c.held_out),
        }
        for c in sorted(explaining.current.values(), key=lambda c: c.feature)
        if c.predicate is not None and c.held_out is not None and c.held_out.balanced_accuracy.mean > 0.5
    ]  # fmt: skip
    head = {
        "format": FORMAT, "dictionary_hash": subject.dictionary.hash, "weights_hash": subject.manifest.weights_hash,
        "made_from": made_from, "evidence_hash": evidence_hash,
    }  # fmt: skip
    body = ",\n".join(json.dumps(row, ensure_ascii=False, allow_nan=False) for row in rows)
    start = json.dumps(head, indent=1, ensure_ascii=False).removesuffix("\n}")
    path.write_text(f'{start},\n "explanations": [\n{body}\n]}}\n', encoding="utf-8")
    return len(rows)


def _explanation(row: Mapping[str, Any]) -> tuple[Hypothesis, Score]:
    score = row["score"]
    interval = Interval(*(_number(score["balanced_accuracy"][k]) for k in ("mean", "low", "high")))
    hypothesis = Hypothesis(
        label=row["label"], description=row["description"], predicate=parse(row["predicate"]), source=row["source"])
    numbers = {name: _number(score[name]) for name in _NUMBERS}
    counts = {name: int(score[name]) for name in ("frames", "positives", "episodes")}
    return hypothesis, Score(feature=int(row["feature"]), balanced_accuracy=interval, **numbers, **counts)  # type: ignore[arg-type]


def _plain(score: Score) -> dict[str, Any]:
    interval = score.balanced_accuracy
    return {
        "balanced_accuracy": {"mean": _short(interval.mean), "low": _short(interval.low), "high": _short(interval.high)},
        **{name: _short(getattr(score, name)) for name in _NUMBERS},
        "frames": score.frames, "positives": score.positives, "episodes": score.episodes,
    }  # fmt: skip


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _short(value: float) -> float | None:
    return round(value, 4) if math.isfinite(value) else None
