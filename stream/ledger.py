"""The accounts of frames: at every stage, in = out + dropped, with a reason per drop.

    produced = queue_dropped + recorded + record_failed                        where a recording is made
    produced = queue_dropped + not_subscribed + wire_lost + received           for each subscriber

A PUB socket at its high-water mark drops without telling, so loss on the wire is what the subscriber finds missing from
the sequence numbers; the heartbeat bounds the tail.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from interlatent_live.stream.frames import FrameBatch
from interlatent_live.stream.wire import Heartbeat

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
    """Accounts of one boot of one run, kept by its subscriber.

    A subscriber that comes back builds it with the counts it had stored and `attached=False`: what lies between is
    not_subscribed.
    """

    next_seq: int = 0
    """The sequence number that is due."""
    queue_dropped_seen: int = 0
    """The publisher's cumulative count when last heard."""
    queue_dropped: int = 0
    not_subscribed: int = 0
    wire_lost: int = 0
    received: int = 0
    duplicate: int = 0
    """Frames that arrived again and were ignored; not part of the equation."""
    refused: Counter[str] = field(default_factory=Counter)
    """Messages refused, by the WireError's reason."""
    attached: bool = False
    """Whether a batch arrived since this subscription began."""

    @property
    def produced(self) -> int:
        """Frames accounted for since frame 0 of the boot."""
        return self.queue_dropped + self.not_subscribed + self.wire_lost + self.received

    def batch(self, batch: FrameBatch) -> list[Gap] | None:
        """Account for an arrived batch; return the gaps before it, or None if it was seen before (and must be ignored)."""
        if batch.first_seq < self.next_seq:
            self.duplicate += batch.rows
            return None
        gaps = self._gap(batch.first_seq, batch.queue_dropped)
        self.attached = True
        self.received += batch.rows
        self.next_seq = batch.next_seq
        return gaps

    def bound(self, accounts: Heartbeat) -> list[Gap]:
        """Account for the tail that a heartbeat or a farewell announces: a PUB socket keeps order, so what was sent
        before it is here or lost.
        """
        if accounts.produced <= self.next_seq or (not self.attached and type(accounts) is Heartbeat):
            return []  # nothing missing; or nothing received yet, and the first batch will say what was missed
        gaps = self._gap(accounts.produced, accounts.queue_dropped)
        self.next_seq = accounts.produced
        return gaps

    def _gap(self, until: int, queue_dropped: int) -> list[Gap]:
        begin, missing = self.next_seq, until - self.next_seq
        dropped = min(missing, max(0, queue_dropped - self.queue_dropped_seen))
        self.queue_dropped_seen = max(queue_dropped, self.queue_dropped_seen)
        rest = missing - dropped
        self.queue_dropped += dropped
        if self.attached:
            self.wire_lost += rest
        else:
            self.not_subscribed += rest
        named = (
            Gap(begin, until, "queue_dropped", dropped),
            Gap(begin, until, "wire_lost" if self.attached else "not_subscribed", rest),
        )
        return [gap for gap in named if gap.lost]
