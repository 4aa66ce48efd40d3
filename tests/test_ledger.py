"""The subscriber's accounts: whatever is dropped wherever, produced = dropped + lost + received."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.stream_samples import batch, heartbeat

from interlatent_live.stream.ledger import SubscriberLedger
from interlatent_live.stream.wire import Bye, Heartbeat


def test_an_unbroken_stream() -> None:
    ledger = SubscriberLedger()
    assert ledger.batch(batch(0, 3)) == []
    assert ledger.batch(batch(3, 2)) == []
    assert ledger.bound(heartbeat(5)) == []
    assert (ledger.produced, ledger.received) == (5, 5)


def test_a_gap_is_named_by_its_reasons() -> None:
    ledger = SubscriberLedger()
    first = ledger.batch(batch(4, 2))
    assert first is not None
    assert [(g.reason, g.lost) for g in first] == [("not_subscribed", 4)]
    second = ledger.batch(batch(16, 2, queue_dropped=3))
    assert second is not None
    assert [(g.reason, g.first_seq, g.next_seq, g.lost) for g in second] == [
        ("queue_dropped", 6, 16, 3),
        ("wire_lost", 6, 16, 7),
    ]
    assert [(g.reason, g.lost) for g in ledger.bound(heartbeat(20, queue_dropped=3))] == [("wire_lost", 2)]
    assert ledger.produced == 20


def test_what_came_before_is_ignored() -> None:
    ledger = SubscriberLedger()
    ledger.batch(batch(0, 4))
    assert ledger.batch(batch(0, 4)) is None
    assert (ledger.received, ledger.duplicate, ledger.produced) == (4, 4, 4)


def test_a_heartbeat_alone_says_nothing_but_a_farewell_does() -> None:
    ledger = SubscriberLedger()
    assert ledger.bound(heartbeat(7)) == []
    assert [(g.reason, g.lost) for g in ledger.bound(heartbeat(7, Bye))] == [("not_subscribed", 7)]


def test_coming_back_counts_what_lies_between_as_not_subscribed() -> None:
    ledger = SubscriberLedger(next_seq=10, received=10)
    gaps = ledger.batch(batch(14, 1))
    assert gaps is not None
    assert [(g.reason, g.lost) for g in gaps] == [("not_subscribed", 4)]
    assert ledger.produced == 15


@given(st.lists(st.tuples(st.integers(1, 9), st.sampled_from(["sent", "lost", "dropped", "heartbeat"])), max_size=40))
@settings(max_examples=200, deadline=None)
def test_the_equation_holds_whatever_is_lost(steps: list[tuple[int, str]]) -> None:
    ledger, seq, dropped, received = SubscriberLedger(), 0, 0, 0
    for rows, fate in steps:
        if fate == "heartbeat":
            ledger.bound(heartbeat(seq, Heartbeat, queue_dropped=dropped))
            continue
        if fate == "sent":
            ledger.batch(batch(seq, rows, queue_dropped=dropped))
            received += rows
        seq += rows
        if fate == "dropped":
            dropped += rows
    ledger.bound(heartbeat(seq, Bye, queue_dropped=dropped))
    assert ledger.produced == seq
    assert ledger.received == received
    assert ledger.queue_dropped == dropped
    assert ledger.not_subscribed + ledger.wire_lost == seq - received - dropped
