"""A tokenizer as the tap uses it: the bytes of each token, which tokens are special, where text ends, what kind a token is.

Bytes, because a token may be a part of a character. Of tokenizers that know no bytes, a token's text is what decoding gives.
"""

from __future__ import annotations

import unicodedata
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from interlatent_live.stream.errors import TapError
from interlatent_live.stream.prompt import MAX_TOKEN_BYTES

__all__ = ["KINDS", "Text", "check_fit"]

KINDS: Final = {
    "word_start": "begins a word: a letter after a space, or after nothing",
    "capital": "its first letter is a capital",
    "digit": "holds a digit",
    "punctuation": "its first character that is no space is neither letter nor digit",
    "newline": "holds a line break",
}
"""What a token can be seen to be by itself, each a metric of 0 and 1."""
_SPARE: Final = 1024
"""Rows by which a model's embedding may exceed its tokenizer, and so may a tenth of it: they are padded to round numbers."""
_SPACE: Final = "▁"  # of SentencePiece
_BYTE_SPACE: Final = "Ġ"  # of byte-level BPE


class Text:
    """What the sender's thread asks of a tokenizer; answers are kept."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.size = len(tokenizer)
        vocabulary = tokenizer.get_vocab()
        self._names: dict[int, str] = {number: name for name, number in vocabulary.items()}
        self._alphabet = _byte_alphabet() if any(_BYTE_SPACE in name for name in vocabulary) else {}
        self._pieces = not self._alphabet and any(_SPACE in name for name in vocabulary)
        self.special = {int(i) for i in tokenizer.all_special_ids}
        self.special |= {int(i) for i, added in getattr(tokenizer, "added_tokens_decoder", {}).items() if added.special}
        self._bytes: dict[int, bytes] = {}

    def of(self, token: int) -> bytes:
        """The UTF-8 bytes of a token, which may be part of a character; at most MAX_TOKEN_BYTES."""
        found = self._bytes.get(token)
        if found is None:
            found = self._bytes[token] = self._find(token)[:MAX_TOKEN_BYTES]
        return found

    def kinds(self, tokens: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """(n, len(KINDS)) of KINDS, 0 or 1, of (n,) tokens."""
        return np.array([self._kinds(token) for token in tokens.tolist()], np.float64).reshape(len(tokens), len(KINDS))

    def is_special(self, tokens: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """(n,) whether each of (n,) tokens marks structure instead of holding text."""
        return np.array([token in self.special for token in tokens.tolist()], bool)

    @cached_property
    def _kept_kinds(self) -> dict[int, tuple[bool, ...]]:
        return {}

    def _kinds(self, token: int) -> tuple[bool, ...]:
        kept = self._kept_kinds
        if token not in kept:
            text = self.of(token).decode("utf-8", "replace")
            bare = text.strip()
            first = bare[:1]
            kept[token] = (
                first.isalpha() and text[:1].isspace(), first.isupper(), any(c.isdigit() for c in text),
                bool(first) and unicodedata.category(first)[0] in "PS", "\n" in text,
            )  # fmt: skip
        return kept[token]

    def _find(self, token: int) -> bytes:
        name = self._names.get(token)
        if name is None:
            return f"<{token}>".encode()
        if token in self.special:
            return name.encode()
        if self._alphabet:
            try:
                return bytes(self._alphabet[c] for c in name)
            except KeyError:  # a token added as plain text
                return name.encode()
        if self._pieces:
            if len(name) == 6 and name.startswith("<0x") and name.endswith(">"):
                return bytes([int(name[3:5], 16)])
            return name.replace(_SPACE, " ").encode()
        text: str = self.tokenizer.decode([token])
        return (" " + text if self._spaced else text).encode()

    @cached_property
    def _spaced(self) -> bool:
        """Whether decoding puts a space between any two tokens."""
        plain = [number for number in sorted(self._names) if number not in self.special][:2]
        if len(plain) < 2:
            return False
        one, other = (self.tokenizer.decode([number]) for number in plain)
        return bool(self.tokenizer.decode(plain) == f"{one} {other}")


def check_fit(size: int, embedding: int) -> None:
    """Raise TapError where a tokenizer of `size` tokens is not that of a model with `embedding` rows."""
    if size > embedding:
        raise TapError(
            f"the tokenizer has {size} tokens, but the model's embedding only {embedding} rows: it is another model's; "
            "load both from the same directory"
        )
    if embedding - size > max(_SPARE, embedding // 10):
        raise TapError(
            f"the tokenizer has {size} tokens and the model's embedding {embedding} rows; of the model's own at most "
            f"{max(_SPARE, embedding // 10)} are spare: it is another model's; load both from the same directory"
        )


def _byte_alphabet() -> dict[str, int]:
    """Character to byte, as byte-level BPE writes bytes (Radford et al. 2019, encoder.py of GPT-2)."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in set(plain)]
    return {chr(byte): byte for byte in plain} | {chr(256 + n): byte for n, byte in enumerate(others)}
