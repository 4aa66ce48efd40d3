"""What a language model was given: prompts with their labels, and the text of the tokens that were seen.

A prompt is one sequence of tokens, what was given and what the model wrote after it; it is one episode of one environment
(the row of its batch). Token numbers stand in the frames, their text in `Vocabulary`, once for each boot. Text is kept as
bytes, since a token may be a part of a character.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from interlatent_live.stream.errors import MalformedMessage

__all__ = [
    "MAX_LABELS", "MAX_TEXT", "MAX_TOKENS", "MAX_TOKEN_BYTES", "PLAIN", "STEERED", "Prompt", "Vocabulary", "checked_labels", "pieces",
]  # fmt: skip

MAX_TEXT: Final = 100_000
"""Characters of a prompt's text that travel; its tokens are all in the frames."""
MAX_LABELS: Final = 32
MAX_LABEL: Final = 128
"""Characters of a label's name and of its value, as predicates take them."""
MAX_TOKENS: Final = 2_048
"""Tokens in a message of the vocabulary."""
MAX_TOKEN_BYTES: Final = 256
PLAIN: Final = "plain"
STEERED: Final = "steered"
_MAX_PAIR: Final = 64


@dataclass(frozen=True, slots=True)
class Prompt:
    """One sequence, when its first pass was sealed."""

    run: str
    boot: str
    prompt: int
    """Number among the boot's prompts, from 0; stands on its frames."""
    env: int
    """Row of the batch that it ran in."""
    episode: int
    """Number of the episode in that environment."""
    wall_ns: int
    tokens: int
    """How many tokens were given; those after them the model wrote."""
    text: str
    """What was given: as handed to the tap, else as the tokens read; at most MAX_TEXT characters."""
    labels: Mapping[str, str] = field(default_factory=dict)
    pair: str = ""
    """What it has in common with the text that was written of the same prompt with an intervention, or without; '' of one alone."""
    arm: str = ""
    """'plain' or 'steered', where it was asked for so."""

    def header(self) -> dict[str, Any]:
        """What travels beside the common keys."""
        plain = {
            "boot": self.boot, "prompt": self.prompt, "env": self.env, "episode": self.episode, "wall_ns": self.wall_ns,
            "tokens": self.tokens, "text": self.text[:MAX_TEXT], "labels": dict(self.labels),
        }  # fmt: skip
        return plain | {name: value for name, value in (("pair", self.pair), ("arm", self.arm)) if value}

    @classmethod
    def read(cls, run: str, boot: str, counts: Mapping[str, int], header: Mapping[str, Any]) -> Prompt:
        """Inverse of `header`; `counts`: its whole numbers, checked. Raises MalformedMessage."""
        text, labels = header.get("text"), header.get("labels", {})
        if not isinstance(text, str) or len(text) > MAX_TEXT:
            raise MalformedMessage(f"prompt: `text` is not text of at most {MAX_TEXT} characters")
        if not isinstance(labels, dict):
            raise MalformedMessage("prompt: `labels` is not a map")
        pair, arm = header.get("pair", ""), header.get("arm", "")
        if not all(isinstance(value, str) and len(value) <= _MAX_PAIR and (not value or value.isprintable()) for value in (pair, arm)):
            raise MalformedMessage(f"prompt: `pair` and `arm` are text of at most {_MAX_PAIR} printable characters")
        return cls(run, boot, text=text, labels=checked_labels(labels), pair=pair, arm=arm, **counts)


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The text of some tokens."""

    run: str
    boot: str
    wall_ns: int
    tokens: tuple[int, ...]
    """Token numbers."""
    texts: tuple[bytes, ...]
    """By token: its text as UTF-8, or a part of a character's bytes."""

    def header(self) -> dict[str, Any]:
        """What travels beside the common keys."""
        return {"boot": self.boot, "wall_ns": self.wall_ns, "tokens": list(self.tokens), "texts": list(self.texts)}

    @classmethod
    def read(cls, run: str, boot: str, wall_ns: int, header: Mapping[str, Any]) -> Vocabulary:
        """Inverse of `header`. Raises MalformedMessage."""
        tokens, texts = header.get("tokens"), header.get("texts")
        if not isinstance(tokens, list) or not isinstance(texts, list) or not 0 < len(tokens) == len(texts) <= MAX_TOKENS:
            raise MalformedMessage(f"vocabulary: `tokens` and `texts` are not two lists of equal length, at most {MAX_TOKENS}")
        if not all(type(token) is int and 0 <= token < 1 << 31 for token in tokens):
            raise MalformedMessage("vocabulary: a token's number is not a whole number from 0 to 2^31")
        if not all(isinstance(text, bytes) and len(text) <= MAX_TOKEN_BYTES for text in texts):
            raise MalformedMessage(f"vocabulary: a token's text is not at most {MAX_TOKEN_BYTES} bytes")
        return cls(run, boot, wall_ns, tuple(tokens), tuple(texts))


def checked_labels(labels: Mapping[Any, Any] | None) -> dict[str, str]:
    """Labels as they travel: text by name. Raises MalformedMessage for what predicates could not ask for."""
    found: dict[str, str] = {}
    for name, value in (labels or {}).items():
        if value is None:
            continue
        text = str(value).lower() if isinstance(value, bool) else str(value)
        for what, part in (("name", str(name)), ("value", text)):
            if not 0 < len(part) <= MAX_LABEL or not part.isprintable() or (what == "name" and "`" in part):
                shown = part[:40] + ("…" if len(part) > 40 else "")
                raise MalformedMessage(f"label {what} {shown!r} is not usable; take 1 to {MAX_LABEL} printable characters")
        found[str(name)] = text
    if len(found) > MAX_LABELS:
        raise MalformedMessage(f"{len(found)} labels on one prompt; at most {MAX_LABELS} are kept")
    return found


def pieces(texts: Sequence[bytes]) -> list[str]:
    """Text of consecutive tokens as it is written: a character whose bytes are spread over tokens stands with the last of them."""
    from codecs import getincrementaldecoder

    decoder = getincrementaldecoder("utf-8")("replace")
    return [decoder.decode(text) for text in texts]
