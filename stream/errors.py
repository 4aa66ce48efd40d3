"""Every error this product raises on purpose, as one tree.

    InterlatentError
    ├── WireError                 a message that cannot be accepted; `.reason` is the counter it falls under
    │   ├── MalformedMessage      not our layout, or a header that contradicts its buffers
    │   ├── OversizedMessage      beyond a limit of `stream.wire`
    │   ├── TruncatedMessage      fewer parts or bytes than the header promises
    │   ├── UnsupportedVersion    another major version of the wire
    │   └── NonFiniteMessage      NaN or infinity where a clock or a count belongs
    ├── EndpointError             an address that cannot be bound, reached or understood
    │   └── EndpointInUse
    ├── RecordingError
    │   ├── RecordingExists       never overwritten
    │   └── RecordingDamaged      unreadable, or its tail is missing
    ├── TapError                  a tap that cannot be built
    │   └── UnknownTapPoint       carries close names
    ├── SteeringError             an intervention that is refused; `.reason` is the counter it falls under
    ├── DictionaryError           an artifact that is not what it claims
    │   └── DictionaryMismatch    another model's, or another tap point's
    ├── StoreError
    │   ├── ForeignDatabase       a file that belongs to another run, or is not ours
    │   └── StoreFull             no room for more rows; those committed are safe
    ├── AgentError                a reference agent that cannot be made on this machine
    ├── PromptError               a prompt, or a file of them, that cannot be read or run
    ├── PredicateError            text or data that is no predicate over what is known here; `.position` in a text
    │   └── UnknownName           carries close names
    ├── HypothesisError           an explanation that is refused; `.reason` is the counter it falls under
    ├── NoteError                 a note, or a person's name for a feature, that cannot be kept
    └── LanguageModelError        a language model that cannot be asked; `.reason` as above

Messages name the value, the limit and the remedy. Foreign errors (zmq, sqlite3, mcap, safetensors, pydantic) are
translated where they enter.
"""

from __future__ import annotations

__all__ = [
    "AgentError",
    "DictionaryError",
    "DictionaryMismatch",
    "EndpointError",
    "EndpointInUse",
    "ForeignDatabase",
    "HypothesisError",
    "InterlatentError",
    "LanguageModelError",
    "MalformedMessage",
    "NonFiniteMessage",
    "NoteError",
    "OversizedMessage",
    "PredicateError",
    "PromptError",
    "RecordingDamaged",
    "RecordingError",
    "RecordingExists",
    "SteeringError",
    "StoreError",
    "StoreFull",
    "TapError",
    "TruncatedMessage",
    "UnknownName",
    "UnknownTapPoint",
    "UnsupportedVersion",
    "WireError",
]


class InterlatentError(Exception):
    """Base of every error raised on purpose."""


class WireError(InterlatentError):
    """A message that is refused. `reason` is the ledger's name for the drop."""

    reason = "malformed"


class MalformedMessage(WireError):
    """Not the layout of docs/wire.md, or a header that contradicts its buffers."""


class OversizedMessage(WireError):
    """Beyond one of the limits of docs/wire.md."""

    reason = "oversized"


class TruncatedMessage(WireError):
    """Fewer parts or bytes than the header promises."""

    reason = "truncated"


class UnsupportedVersion(WireError):
    """Another major version of the wire."""

    reason = "unsupported_version"


class NonFiniteMessage(WireError):
    """NaN or infinity where a clock or a count belongs."""

    reason = "non_finite"


class EndpointError(InterlatentError):
    """An address that cannot be bound, reached or understood."""


class EndpointInUse(EndpointError):
    """Another socket holds the address."""


class RecordingError(InterlatentError):
    """A recording that cannot be made or read."""


class RecordingExists(RecordingError):
    """The file is there already; recordings are never overwritten."""


class RecordingDamaged(RecordingError):
    """The file is not a recording of ours, or its tail is missing."""


class TapError(InterlatentError):
    """A tap that cannot be built as asked."""


class UnknownTapPoint(TapError):
    """No module of that name; the message lists close ones."""


class SteeringError(InterlatentError):
    """An intervention, or a request about one, that is refused."""

    def __init__(self, message: str, *, reason: str = "refused") -> None:
        super().__init__(message)
        self.reason = reason
        """One of `stream.control.REASONS`."""


class DictionaryError(InterlatentError):
    """A dictionary artifact that is not what it claims to be."""


class DictionaryMismatch(DictionaryError):
    """A dictionary of another model or another tap point."""


class StoreError(InterlatentError):
    """A database that cannot be opened, read or written."""


class ForeignDatabase(StoreError):
    """A file that belongs to another run, or is not ours."""


class StoreFull(StoreError):
    """No room for more rows; those committed are safe."""


class AgentError(InterlatentError):
    """A reference agent that cannot be made on this machine."""


class PromptError(InterlatentError):
    """A prompt, or a file of prompts, that cannot be read or run."""


class PredicateError(InterlatentError):
    """No predicate: it cannot be read, or it asks for what the data does not have."""

    def __init__(self, message: str, *, position: int | None = None, text: str | None = None) -> None:
        super().__init__(message)
        self.position = position
        """Offset of the offending character in `text`, from 0; None for a predicate that was not text."""
        self.text = text

    @property
    def pointer(self) -> str:
        """The text with a caret below the offending character; '' where there is no text."""
        return "" if self.text is None or self.position is None else f"{self.text}\n{' ' * self.position}^"


class UnknownName(PredicateError):
    """No metric, feature, attribute or label of that name."""

    def __init__(
        self, message: str, *, close: tuple[str, ...] = (), position: int | None = None, text: str | None = None
    ) -> None:
        super().__init__(message, position=position, text=text)
        self.close = close
        """Known names that resemble it, the closest first."""


class HypothesisError(InterlatentError):
    """An explanation that is refused."""

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason
        """'unreadable', 'prose', 'unknown_name', 'predicate' or 'impossible'."""


class NoteError(InterlatentError):
    """A note, or a person's name for a feature, that cannot be kept: empty, too long, or another's."""


class LanguageModelError(InterlatentError):
    """A language model that cannot be asked as it is configured."""

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason
        """'configuration'."""
