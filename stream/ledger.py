"""The accounts of frames: at every stage, in = out + dropped, with a reason per drop.

    produced = queue_dropped + recorded + record_failed                        where a recording is made
    produced = queue_dropped + not_subscribed + wire_lost + received           for each subscriber

A PUB socket at its high-water mark drops without telling, so loss on the wire is what the subscriber finds missing from the sequence numbers; the heartbeat bounds the tail.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from .frames import FrameBatch
from .wire import Heartbeat

__all__ = ["Gap", "SubscriberLedger"]


@dataclass(frozen=True, slots=True)
class Gap:
    """Frames [first_seq, next_seq) that did not arrive; `lost` of them for `reason`."""

    first_seq: int
    next_seq: int
    reason: str
    """'queue_dropped', 'not_subscribed' or 'wire_lost'."""
    lost: int


@dataclass(slots=True)
class SubscriberLedger:
    """Accounts of one boot of one run, kept by its subscriber. `next_seq` says where the stream goes on.

    `resume_from`: where an earlier subscriber's committed rows end; what lies between is not_subscribed.
    """

    resume_from: int = 0
    queue_dropped: int = 0
    not_subscribed: int = 0
    wire_lost: int = 0
    received: int = 0
    duplicate: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    """Messages refused, by the WireError's reason."""
    _next_seq: int = -1
    _queue_dropped_seen: int = 0

    @property
    def produced(self) -> int:
        """Frames accounted for since frame 0 of the boot, or since `resume_from`."""
        return self.queue_dropped + self.not_subscribed + self.wire_lost + self.received

    @property
    def next_seq(self) -> int:
        """The sequence number that is due."""
        return max(self._next_seq, self.resume_from)

    def batch(self, batch: FrameBatch) -> list[Gap] | None:
        """Account for an arrived batch; return the gaps before it, or None if it was seen before (and must be ignored)."""
        if batch.first_seq < self.next_seq:
            self.duplicate += batch.rows
            return None
        gaps = self._gap(batch.first_seq, batch.queue_dropped)
        self.received += batch.rows
        self._next_seq = batch.next_seq
        return gaps

    def bound(self, accounts: Heartbeat) -> list[Gap]:
        """Account for the tail that a heartbeat or a farewell announces."""
        if accounts.produced <= self.next_seq:
            return []
        if self._next_seq < 0 and type(accounts) is Heartbeat:
            return []  # nothing received yet: the first batch will say what was missed
        gaps = self._gap(accounts.produced, accounts.queue_dropped)
        self._next_seq = accounts.produced
        return gaps

    def _gap(self, until: int, queue_dropped: int) -> list[Gap]:
        begin = self.next_seq
        missing = until - begin
        first = self._next_seq < 0
        dropped = min(missing, max(0, queue_dropped - self._queue_dropped_seen)) if missing else 0
        self._queue_dropped_seen = max(queue_dropped, self._queue_dropped_seen)
        rest = missing - dropped
        self.queue_dropped += dropped
        reason = "not_subscribed" if first else "wire_lost"
        if first:
            self.not_subscribed += rest
        else:
            self.wire_lost += rest
        named = (Gap(begin, until, "queue_dropped", dropped), Gap(begin, until, reason, rest))
        return [gap for gap in named if gap.lost]
