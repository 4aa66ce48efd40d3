"""Publisher and subscriber over real loopback sockets."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import zmq
from tests.stream_samples import ANY_PORT, Agent, Listener, account, batch, heartbeat, manifest

from interlatent_live.stream.endpoint import DEFAULT_ENDPOINT, bind_address, connect_address, is_loopback
from interlatent_live.stream.errors import EndpointError, EndpointInUse
from interlatent_live.stream.frames import FrameBatch
from interlatent_live.stream.ledger import SubscriberLedger
from interlatent_live.stream.publisher import Publisher
from interlatent_live.stream.reading import Recording
from interlatent_live.stream.subscriber import Subscriber
from interlatent_live.stream.wire import Bye, encode, topic


def until(publisher: Publisher, count: int, timeout_s: float = 5.0) -> None:
    deadline = time.monotonic() + timeout_s
    publisher.poll()
    while publisher.subscribers != count and time.monotonic() < deadline:
        time.sleep(0.005)
        publisher.poll()
    assert publisher.subscribers == count


@pytest.mark.parametrize(
    ("written", "bound", "connected"),
    [
        ("5570", "tcp://127.0.0.1:5570", "tcp://127.0.0.1:5570"),
        (":5570", "tcp://127.0.0.1:5570", "tcp://127.0.0.1:5570"),
        ("robot:5570", "tcp://robot:5570", "tcp://robot:5570"),
        ("tcp://*:5570", "tcp://*:5570", "tcp://127.0.0.1:5570"),
        ("tcp://0.0.0.0:5570", "tcp://0.0.0.0:5570", "tcp://127.0.0.1:5570"),
        ("tcp://[::1]:5570", "tcp://[::1]:5570", "tcp://[::1]:5570"),
        ("ipc:///tmp/a.sock", "ipc:///tmp/a.sock", "ipc:///tmp/a.sock"),
    ],
)
def test_addresses(written: str, bound: str, connected: str) -> None:
    assert bind_address(written) == bound
    assert connect_address(written) == connected


@pytest.mark.parametrize("written", ["", "tcp://", "tcp://a:b", "http://a:1", "tcp://a:0", "tcp://a:65536", "ipc://", "inproc://a"])
def test_what_is_no_address(written: str) -> None:
    with pytest.raises(EndpointError, match="endpoint"):
        bind_address(written)
    with pytest.raises(EndpointError):
        Subscriber(written)


def test_the_loopback_is_the_default() -> None:
    assert is_loopback(DEFAULT_ENDPOINT)
    assert is_loopback("5570")
    assert not is_loopback("tcp://*:5570")
    with pytest.raises(EndpointError, match="no port"):
        connect_address("tcp://127.0.0.1:*")


def test_a_taken_address_names_its_holder() -> None:
    first = Publisher(ANY_PORT)
    with pytest.raises(EndpointInUse, match=r"taken by \S+.* \(pid \d+\)"):
        Publisher(first.endpoint)
    first.close()
    Publisher(first.endpoint).close()


def test_a_taken_path_is_not_stolen(tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/s"
    first = Publisher(endpoint)
    with pytest.raises(EndpointInUse):
        Publisher(endpoint)
    with Subscriber(endpoint) as subscriber:
        until(first, 1)
        first.send(heartbeat())
        assert subscriber.receive(5) == heartbeat()
    first.close()


def test_an_address_of_another_machine_cannot_be_bound() -> None:
    with pytest.raises(EndpointError, match="cannot bind"):
        Publisher("tcp://192.0.2.1:5999")


def test_subscriptions_are_counted() -> None:
    publisher = Publisher(ANY_PORT)
    first, second = Subscriber(publisher.endpoint, run="agent"), Subscriber(publisher.endpoint)
    until(publisher, 2)
    assert publisher.subscribed(topic("agent", "frames")) == 2
    assert publisher.subscribed(topic("other", "frames")) == 1
    assert publisher.poll() == 0
    first.close()
    until(publisher, 1)
    second.close()
    until(publisher, 0)
    publisher.close()
    publisher.close()


def test_subscriptions_to_other_kinds_are_no_audience() -> None:
    publisher = Publisher(ANY_PORT)
    context = zmq.Context()
    socket = context.socket(zmq.SUB)
    socket.linger = 0
    for prefix in (b"v1/agent/picture/", b"v2/", b"v1/agent/frames/x", b"x" * 500):
        socket.subscribe(prefix)
    socket.subscribe(b"v1/agent/fr")
    socket.connect(publisher.endpoint)
    until(publisher, 1)
    socket.close()
    context.term()
    publisher.close()


def test_bad_messages_are_counted_and_never_end_the_subscriber() -> None:
    context = zmq.Context()
    hostile = context.socket(zmq.XPUB)
    hostile.linger = 0
    port = hostile.bind_to_random_port("tcp://127.0.0.1")
    with Subscriber(f"tcp://127.0.0.1:{port}") as subscriber:
        assert hostile.recv() == b"\x01"
        good = encode(heartbeat())
        for parts in (
            [b""],
            [b"garbage"] * 5,
            good[:2],
            [b"v9/agent/heartbeat/", *good[1:]],
            [good[0], good[1], b"nan"],
            [*encode(batch())[:-1], b""],
            [b"v1/agent/signals/", bytes(2 << 20), b"1"],
            good,
        ):
            hostile.send_multipart(parts)
        assert subscriber.receive(5) == heartbeat()
        assert subscriber.receive(0) is None
        assert subscriber.refused == {
            "truncated": 3,
            "malformed": 1,
            "unsupported_version": 1,
            "non_finite": 1,
            "oversized": 1,
        }
        assert subscriber.silence_s < 5
    hostile.close()
    context.term()


def test_a_part_beyond_the_limit_costs_the_connection_only() -> None:
    context = zmq.Context()
    hostile = context.socket(zmq.XPUB)
    hostile.linger = 0
    port = hostile.bind_to_random_port("tcp://127.0.0.1")
    with Subscriber(f"tcp://127.0.0.1:{port}") as subscriber:
        assert hostile.recv() == b"\x01"
        hostile.send_multipart([*encode(heartbeat()), bytes((64 << 20) + 1)])
        assert hostile.recv() == b"\x00"
        deadline = time.monotonic() + 10
        while not hostile.poll(0) and time.monotonic() < deadline:
            assert subscriber.receive(0.3) is None
        assert hostile.recv(zmq.DONTWAIT) == b"\x01", "it comes back, which ZeroMQ alone does not"
        assert subscriber.refused == {"oversized": 1}
        hostile.send_multipart(encode(heartbeat()))
        assert subscriber.receive(5) == heartbeat()
    hostile.close()
    context.term()


def test_receive_returns_none_in_time_and_says_when_closed() -> None:
    subscriber = Subscriber("tcp://127.0.0.1:9")
    assert subscriber.receive(0.05) is None
    assert subscriber.silence_s >= 0.05
    subscriber.close()
    subscriber.close()
    with pytest.raises(EndpointError, match="closed"):
        subscriber.receive(0.05)


def test_it_may_start_before_the_agent_and_see_it_restart() -> None:
    first = Agent()
    endpoint = first.endpoint
    first.sender.close()
    listener = Listener(endpoint, until=lambda m: isinstance(m, Bye) and m.boot == "b2")
    for boot, rows in (("b1", 3), ("b2", 2)):
        with Agent(endpoint=endpoint, boot=boot) as agent:
            assert agent.sender.wait_subscribed(10)
            agent.produce(rows)
    listener.wait()
    assert [(m.boot, m.first_seq, m.rows) for m in listener.batches] == [("b1", 0, 3), ("b2", 0, 2)]
    assert len([m for m in listener.messages if isinstance(m, Bye)]) == 2


def test_a_subscriber_that_comes_late_gets_the_manifest_first() -> None:
    with Agent() as agent:
        agent.produce(5)
        agent.settle()
        listener = Listener(agent.endpoint)
        assert agent.sender.wait_subscribed(5)
        agent.produce(4)
    listener.wait()
    kinds = [type(m).__name__ for m in listener.messages]
    assert kinds.index("Manifest") < kinds.index("FrameBatch")
    assert listener.messages[kinds.index("Manifest")] == manifest()
    assert (listener.ledger.not_subscribed, listener.ledger.received, listener.ledger.wire_lost) == (5, 4, 0)
    assert listener.ledger.produced == 9


def test_accounts_hold_when_queue_and_wire_lose(tmp_path: Path) -> None:
    """The subscriber sleeps while more is sent than sockets and queues hold, and the agent's own queue drops as well."""
    wide = {"1:out": np.zeros((50, 4096), "<f4")}
    accounts = SubscriberLedger()
    agent = Agent(hwm=5, record=tmp_path / "run.mcap")
    with agent, Subscriber(agent.endpoint, run="agent", hwm=5) as subscriber:
        agent.produce(10)
        agent.settle()
        assert agent.sender.wait_subscribed(5)
        for number in range(100):  # 50 x 16 KiB each, 82 MB in all
            agent.produce(50, activations=wide)
            agent.settle()
            if number % 10 == 9:
                agent.lose(7)
        closing = threading.Thread(target=agent.sender.close)
        closing.start()
        while not isinstance(message := subscriber.receive(10), Bye):
            assert message is not None
            account(accounts, message)
        account(accounts, message)
        closing.join()
    assert agent.next_seq == 10 + 100 * 50 + 10 * 7 == accounts.produced
    assert accounts.queue_dropped == agent.queue_dropped == 70
    assert accounts.wire_lost > 0
    assert accounts.not_subscribed + accounts.wire_lost + accounts.received == 10 + 100 * 50
    assert message.produced == message.queue_dropped + message.recorded + message.record_failed
    assert message.record_failed == 0, "a slow network costs the recording nothing"
    frames = [m for m in Recording(tmp_path / "run.mcap").messages() if isinstance(m, FrameBatch)]
    assert sum(m.rows for m in frames) == message.recorded


STALLED = """
import sys, time
from interlatent_live.stream.subscriber import Subscriber
subscriber = Subscriber(sys.argv[1], run="agent", hwm=1)
print("ready", flush=True)
time.sleep(60)
"""


def test_a_stalled_subscriber_holds_up_neither_the_agent_nor_another() -> None:
    agent = Agent(hwm=3)
    stalled = subprocess.Popen([sys.executable, "-c", STALLED, agent.endpoint], stdout=subprocess.PIPE, text=True)
    try:
        assert stalled.stdout is not None
        assert stalled.stdout.readline() == "ready\n"
        with agent:
            assert agent.sender.wait_subscribed(5)
            listener = Listener(agent.endpoint)
            deadline = time.monotonic() + 5
            while agent.sender.subscribers < 2 and time.monotonic() < deadline:
                time.sleep(0.005)
            for _ in range(300):
                agent.produce(64)
                agent.settle()
            agent.sender.close()
        listener.wait()
    finally:
        stalled.kill()
        stalled.wait()
        if stalled.stdout is not None:
            stalled.stdout.close()
    ledger = listener.ledger
    assert ledger.produced == agent.next_seq
    assert ledger.received + ledger.wire_lost + ledger.not_subscribed == agent.next_seq
    assert ledger.received > 0
