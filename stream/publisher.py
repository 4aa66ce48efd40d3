"""The publishing socket. Sending never blocks: a subscriber that cannot keep up loses messages, the agent loses
nothing.

At its high-water mark a PUB socket drops the newest messages of that subscriber without telling, so nobody counts loss
here;
the subscriber finds it in the sequence numbers. `offer` is for replay, which may wait where an agent may not.
Costs about 20 µs a message; the caller is the sender's thread, never the agent's.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from typing import Final

import zmq

from interlatent_live.stream.endpoint import bind_address, holder, ipc_answers, is_loopback, keep_alive
from interlatent_live.stream.errors import EndpointError, EndpointInUse
from interlatent_live.stream.wire import VERSION, Message, encode

__all__ = ["Publisher"]

_LOG = logging.getLogger(__name__)
_LINGER_S: Final = 0.5
_MAX_TOPIC_BYTES: Final = 128


class Publisher:
    """An XPUB socket bound to an endpoint.

    Made on one thread, it may be handed to another before the first use there; it is not safe on two at once. After a
    fork it is inert in the child.
    """

    def __init__(self, endpoint: str, *, hwm: int = 1000) -> None:
        """Bind `endpoint`; `hwm` messages wait for each subscriber. Raises EndpointInUse or another EndpointError."""
        address = bind_address(endpoint)
        self._pid = os.getpid()
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.XPUB)
        self._subscriptions: Counter[bytes] = Counter()
        self._patient = False
        # linger before bind: a socket that fails later must not hang the process at exit
        self._socket.linger = int(_LINGER_S * 1e3)
        self._socket.sndhwm = hwm
        # every subscription and its end, repeated ones too: they are counted
        self._socket.setsockopt(zmq.XPUB_VERBOSER, 1)
        keep_alive(self._socket)
        self._socket.setsockopt(zmq.MAXMSGSIZE, 1 << 16)  # what subscribers send is short
        if "[" in address:
            self._socket.setsockopt(zmq.IPV6, 1)
        try:
            if address.startswith("ipc://") and ipc_answers(address.removeprefix("ipc://")):
                raise _in_use(address)
            self._socket.bind(address)
        except zmq.ZMQError as error:
            self.close()
            if error.errno == zmq.EADDRINUSE:
                raise _in_use(address) from error
            raise EndpointError(
                f"cannot bind {address}: {error.strerror}; choose an address of this machine"
            ) from error
        except EndpointInUse:
            self.close()
            raise
        self.endpoint = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        """The real address: `tcp://127.0.0.1:*` has become a port."""
        if not is_loopback(self.endpoint):
            _LOG.warning("%s is reachable from other machines, and whoever connects can read the stream", self.endpoint)

    def send(self, message: Message) -> None:
        """Send to whoever has room, at once. Raises OversizedMessage for what could not be received."""
        self._be_patient(False)
        parts = encode(message)
        if self._usable():
            self._socket.send_multipart(parts, zmq.DONTWAIT)

    def offer(self, message: Message) -> bool:
        """Send to all subscribers, or to none and return False while one of them has no room.

        Not to be mixed with `send`: ZeroMQ takes one that `send` found full for absent until it has made room, and tells neither.
        """
        self._be_patient(True)
        parts = encode(message)
        if not self._usable():
            return True
        try:
            self._socket.send_multipart(parts, zmq.DONTWAIT)
        except zmq.Again:
            return False
        return True

    def poll(self) -> int:
        """Take note of subscriptions and their ends, without waiting; return how many are new since the last call."""
        new = 0
        while self._usable():
            try:
                event = self._socket.recv(zmq.DONTWAIT)
            except zmq.Again:
                break
            topic = event[1:]
            if len(topic) > _MAX_TOPIC_BYTES:
                continue
            if event[:1] == b"\x01":
                new += 1
                self._subscriptions[topic] += 1
            elif event[:1] == b"\x00":
                self._subscriptions[topic] -= 1
                if self._subscriptions[topic] <= 0:
                    del self._subscriptions[topic]
        return new

    @property
    def subscribers(self) -> int:
        """Current subscriptions through which frames of some run can pass, as of the last `poll`."""
        return sum(n for topic, n in self._subscriptions.items() if _reaches_frames(topic))

    def subscribed(self, topic: bytes) -> int:
        """Current subscriptions that match `topic`, as of the last `poll`."""
        return sum(n for prefix, n in self._subscriptions.items() if topic.startswith(prefix))

    def close(self, linger_s: float = _LINGER_S) -> None:
        """Close, waiting up to `linger_s` for what subscribers have not fetched yet. Twice is once."""
        if self._usable():
            self._socket.close(linger=int(linger_s * 1e3))
            self._context.term()

    def _usable(self) -> bool:
        return self._pid == os.getpid() and not self._socket.closed

    def _be_patient(self, patient: bool) -> None:
        if patient != self._patient and self._usable():
            self._socket.setsockopt(zmq.XPUB_NODROP, int(patient))
            self._patient = patient


def _reaches_frames(prefix: bytes) -> bool:
    """Whether the topic of some run's frames begins with `prefix`."""
    version, kind = f"v{VERSION}/".encode(), b"frames/"
    if len(prefix) <= len(version):
        return version.startswith(prefix)
    _, slash, rest = prefix.removeprefix(version).partition(b"/")
    return prefix.startswith(version) and (not slash or kind.startswith(rest))


def _in_use(address: str) -> EndpointInUse:
    who = holder(address) or "another process"
    return EndpointInUse(
        f"{address} is taken by {who}; stop it, or choose another endpoint (tcp://127.0.0.1:* takes a free port)"
    )
