"""Labels of a language model's frames: those of its prompts, and the text of its tokens, for predicates to ask for.

    topic == physics and token == "heat"

`token` is the token's text without spaces around it; a prompt's own label of that name comes before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from interlatent_live.explainer.table import Labels

if TYPE_CHECKING:
    from interlatent_live.analyzer.queries import Reader
    from interlatent_live.explainer.source import Piece

__all__ = ["TOKEN", "labels_of"]

TOKEN = "token"
"""Name of the label that is the token's text."""


def labels_of(reader: Reader, pieces: Sequence[Piece]) -> dict[str, Labels]:
    """By name, a label for each frame of `pieces`; nothing where they are not of a language model."""
    if not pieces or not all(name in p.columns for p in pieces for name in ("prompt", "token")):
        return {}
    boots = dict.fromkeys(p.boot for p in pieces)
    given = {(row.boot, row.prompt): row.labels for boot in boots for row in _all_prompts(reader, boot)}
    found: dict[str, Labels] = {}
    for name in sorted({name for labels in given.values() for name in labels}):
        texts = {key: labels.get(name) for key, labels in given.items()}
        found[name] = _column(pieces, "prompt", lambda boot, number, texts=texts: texts.get((boot, number)))
    if TOKEN not in found:
        words = {boot: _words(reader, boot, [p for p in pieces if p.boot == boot]) for boot in boots}
        found[TOKEN] = _column(pieces, "token", lambda boot, number: words[boot].get(number))
    return found


def _all_prompts(reader: Reader, boot: str) -> list[Any]:
    found: list[Any] = []
    while some := reader.prompts(boot, after=found[-1].prompt if found else -1):
        found += some
    return found


def _words(reader: Reader, boot: str, pieces: Sequence[Piece]) -> dict[int, str | None]:
    tokens = np.unique(np.concatenate([p.columns["token"] for p in pieces]))
    texts = reader.words(boot, tokens.tolist())
    return {number: _printable(text.decode("utf-8", "replace")) for number, text in texts.items()}


def _printable(text: str) -> str | None:
    """As predicates can write it; None for spaces alone."""
    bare = "".join(c for c in text.strip() if c.isprintable())[:128]
    return bare or None


def _column(pieces: Sequence[Piece], name: str, text: Any) -> Labels:
    """One label from a column of numbers, each number looked up once."""
    values: dict[str, int] = {}
    parts: list[npt.NDArray[np.int32]] = []
    for piece in pieces:
        numbers, inverse = np.unique(piece.columns[name], return_inverse=True)
        codes = []
        for number in numbers.tolist():
            said = text(piece.boot, number)
            codes.append(-1 if said is None else values.setdefault(said, len(values)))
        parts.append(np.array(codes, np.int32)[inverse.reshape(-1)])
    order = sorted(values)
    place = {value: i for i, value in enumerate(order)}
    rank = np.array([place[value] for value in values] + [-1], np.int32)  # the last for code -1
    return Labels(rank[np.concatenate(parts)], tuple(order))
