"""A hypothesis: prose about a feature plus a predicate that can be false.

`Proposal` is what a language model is asked to fill in (`Proposal.model_json_schema()`), and `read_proposal` is the
only way its answer gets in: data of the right form, prose of a bounded length without markup or control characters, a
predicate over names that exist and values that are possible. Everything else is a HypothesisError with a reason, and
never becomes an explanation. Who shows prose escapes it all the same.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Set
from typing import Annotated, Protocol

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator, model_validator

from interlatent_live.explainer.predicate import Predicate
from interlatent_live.explainer.rules import Fitted
from interlatent_live.explainer.table import Vocabulary
from interlatent_live.explainer.wording import LABEL_WORDS, Wording
from interlatent_live.stream.errors import HypothesisError, PredicateError, UnknownName

__all__ = [
    "DESCRIPTION_WORDS", "LABEL_WORDS", "Hypothesis", "Proposal", "ProseProposal", "from_rule", "plain_prose", "read_proposal", "said_of",
]

DESCRIPTION_WORDS = 40
_MARKUP = re.compile(r"<\s*[/!?A-Za-z]|\]\s*\(|https?:|javascript:|&#?\w+;|```", re.IGNORECASE)


def plain_prose(text: str, words: int) -> str:
    """The text with single spaces, or a ValueError: markup, links, characters that are not seen, more than `words` words."""
    text = re.sub(" +", " ", text).strip()
    bad = next((c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")), None)
    if bad is not None:
        raise ValueError(f"contains the invisible character U+{ord(bad):04X}")
    if _MARKUP.search(text):
        raise ValueError("contains markup or a link; plain words only")
    if len(text.split()) > words:
        raise ValueError(f"has {len(text.split())} words; at most {words}")
    return text


class Proposal(BaseModel):
    """An explanation of one feature, as it is proposed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    label: Annotated[str, StringConstraints(min_length=1, max_length=80)] = Field(
        description=f"What the feature stands for, in at most {LABEL_WORDS} plain words.")
    description: Annotated[str, StringConstraints(max_length=400)] = Field(
        description=f"One sentence, at most {DESCRIPTION_WORDS} plain words: when the feature is active.")
    predicate: Predicate = Field(description="When the feature is active, as a condition that can be checked.")

    @field_validator("label")
    @classmethod
    def _label(cls, text: str) -> str:
        text = plain_prose(text, LABEL_WORDS)
        if not text:
            raise ValueError("is empty")
        return text

    @field_validator("description")
    @classmethod
    def _description(cls, text: str) -> str:
        return plain_prose(text, DESCRIPTION_WORDS)


class ProseProposal(Proposal):
    """An explanation of a feature of text, where a judge scores sentences: the predicate may be left out."""

    predicate: Predicate | None = Field(  # type: ignore[assignment]
        default=None, description="When the feature is active, as a condition that can be checked; null where only words say it.")


class Hypothesis(BaseModel):
    """An explanation of one feature, with who made it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    label: str
    description: str
    predicate: Predicate | None
    """None for a name that a user gave, which cannot be scored, and for a language model's sentence about text, which a judge scores."""
    source: Annotated[str, StringConstraints(pattern=r"^(rules|user|llm:[^\s\x00-\x1f]{1,128})$")]
    """'rules', 'user' or 'llm:<model>'."""

    @field_validator("label")
    @classmethod
    def _label(cls, text: str) -> str:
        text = plain_prose(text, LABEL_WORDS)
        if not 0 < len(text) <= 80:
            raise ValueError(f"has {len(text)} characters; 1 to 80")
        return text

    @field_validator("description")
    @classmethod
    def _description(cls, text: str) -> str:
        text = plain_prose(text, DESCRIPTION_WORDS)
        if len(text) > 400:
            raise ValueError(f"has {len(text)} characters; at most 400")
        return text

    @model_validator(mode="after")
    def _can_be_false(self) -> Hypothesis:
        if self.predicate is None and self.source == "rules":
            raise ValueError("a rule needs a predicate; only a user's name and a language model's sentence may go without")
        return self


class Explained(Protocol):
    """What has a sentence."""

    @property
    def label(self) -> str:
        """In a few words."""

    @property
    def description(self) -> str:
        """In a sentence, or ''."""


def said_of(explained: Explained) -> str:
    """The sentence of an explanation, as a judge is given it."""
    return f"{explained.label}. {explained.description}".strip()


def read_proposal(text: str | bytes, vocabulary: Vocabulary, *, source: str, prose: bool = False) -> Hypothesis:
    """The hypothesis in a model's answer (JSON of `Proposal`), or a HypothesisError that says what was wrong with it. `prose`: it may
    be without a predicate, but not without a description."""
    try:
        proposal = (ProseProposal if prose else Proposal).model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        head = place.split(".")[0]
        reason = "prose" if head in ("label", "description") else "predicate" if head == "predicate" else "unreadable"
        if first["type"] == "missing":
            reason = "unreadable"
        raise HypothesisError(f"{place or 'the answer'}: {first['msg']}", reason=reason) from None
    if proposal.predicate is None:
        if not proposal.description:
            raise HypothesisError("description: is empty, and there is no predicate", reason="prose")
        return Hypothesis(label=proposal.label, description=proposal.description, predicate=None, source=source)
    try:
        proposal.predicate.check(vocabulary)
    except UnknownName as error:
        raise HypothesisError(str(error), reason="unknown_name") from error
    except PredicateError as error:
        raise HypothesisError(str(error), reason="predicate") from error
    if proposal.predicate.impossible:
        raise HypothesisError(f"nothing can satisfy {proposal.predicate}", reason="impossible")
    return Hypothesis(
        label=proposal.label, description=proposal.description, predicate=proposal.predicate, source=source)


def from_rule(rule: Fitted, wording: Wording, taken: Set[str] = frozenset()) -> Hypothesis:
    """The rule in words. `taken`: labels of other features, which its own should not repeat."""
    description = f"Active when {wording.describe(rule.predicate)}."
    words = description.split()
    if len(words) > DESCRIPTION_WORDS:
        description = " ".join([*words[: DESCRIPTION_WORDS - 1], "…"])
    return Hypothesis(
        label=wording.distinct(rule.predicate, taken), description=description[:400], predicate=rule.predicate, source="rules")
