"""Labels of a language model's frames: those of its prompts, and the text of its tokens, for predicates to ask for.

    topic == physics and token == "heat"
    token[-1] in (a, the) and next_token != ","

`token` is the token's text without spaces around it, `next_token` the model's surest guess of what comes after it; a prompt's own
label of that name comes before them. A prompt's label is the same in the whole text and has no lag.
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

__all__ = ["NEXT", "TOKEN", "labels_of"]

TOKEN = "token"
"""Name of the label that is the token's text."""
NEXT = "next_token"
"""Name of the label that is the text of the likeliest next token."""
_GUESSES = "next_tokens"
"""The row column with the likeliest next tokens, the likeliest first."""


def labels_of(reader: Reader, pieces: Sequence[Piece]) -> dict[str, Labels]:
    """By name, a label for each frame of `pieces`; nothing where they are not of a language model."""
    if not pieces or not all(name in p.columns for p in pieces for name in ("prompt", "token")):
        return {}
    boots = dict.fromkeys(p.boot for p in pieces)
    given = {(row.boot, row.prompt): row.labels for boot in boots for row in _all_prompts(reader, boot)}
    found: dict[str, Labels] = {}
    for name in sorted({name for labels in given.values() for name in labels}):
        texts = {key: labels.get(name) for key, labels in given.items()}
        codes, values = _column([p.columns["prompt"] for p in pieces], pieces, lambda boot, number, texts=texts: texts.get((boot, number)))
        found[name] = Labels(codes, values, steady=True)
    columns = {TOKEN: [p.columns["token"] for p in pieces]}
    if all(_GUESSES in p.columns for p in pieces):
        columns[NEXT] = [p.columns[_GUESSES][:, 0] for p in pieces]
    for name, tokens in columns.items():
        if name not in found:
            words = {b: _words(reader, b, [t for t, p in zip(tokens, pieces, strict=True) if p.boot == b]) for b in boots}
            found[name] = Labels(*_column(tokens, pieces, lambda boot, number, words=words: words[boot].get(number)))
    return found


def _all_prompts(reader: Reader, boot: str) -> list[Any]:
    found: list[Any] = []
    while some := reader.prompts(boot, after=found[-1].prompt if found else -1):
        found += some
    return found


def _words(reader: Reader, boot: str, numbers: Sequence[npt.NDArray[Any]]) -> dict[int, str | None]:
    tokens = np.unique(np.concatenate(numbers))
    texts = reader.words(boot, tokens.tolist())
    return {number: _printable(text.decode("utf-8", "replace")) for number, text in texts.items()}


def _printable(text: str) -> str | None:
    """As predicates can write it; None for spaces alone."""
    bare = "".join(c for c in text.strip() if c.isprintable())[:128]
    return bare or None


def _column(columns: Sequence[npt.NDArray[Any]], pieces: Sequence[Piece], text: Any) -> tuple[npt.NDArray[np.int32], tuple[str, ...]]:
    """Codes and values of one label from a column of numbers a piece, each number looked up once."""
    values: dict[str, int] = {}
    parts: list[npt.NDArray[np.int32]] = []
    for column, piece in zip(columns, pieces, strict=True):
        numbers, inverse = np.unique(column, return_inverse=True)
        codes = []
        for number in numbers.tolist():
            said = text(piece.boot, number)
            codes.append(-1 if said is None else values.setdefault(said, len(values)))
        parts.append(np.array(codes, np.int32)[inverse.reshape(-1)])
    order = sorted(values)
    place = {value: i for i, value in enumerate(order)}
    rank = np.array([place[value] for value in values] + [-1], np.int32)  # the last for code -1
    return rank[np.concatenate(parts)], tuple(order)
