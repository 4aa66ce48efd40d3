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
    ├── DictionaryError           an artifact that is not what it claims
    │   └── DictionaryMismatch    another model's, or another tap point's
    ├── StoreError
    │   ├── ForeignDatabase       a file that belongs to another run, or is not ours
    │   └── StoreFull             no room for more rows; those committed are safe
    └── AgentError                a reference agent that cannot be made on this machine

Messages name the value, the limit and the remedy. Foreign errors (zmq, sqlite3, mcap, safetensors) are translated where they enter.
"""

from __future__ import annotations

__all__ = [
    "AgentError",
    "DictionaryError",
    "DictionaryMismatch",
    "EndpointError",
    "EndpointInUse",
    "ForeignDatabase",
    "InterlatentError",
    "MalformedMessage",
    "NonFiniteMessage",
    "OversizedMessage",
    "RecordingDamaged",
    "RecordingError",
    "RecordingExists",
    "StoreError",
    "StoreFull",
    "TapError",
    "TruncatedMessage",
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
