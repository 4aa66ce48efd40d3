"""The receiving socket: reconnects by itself, and refuses what is not a valid message without ever failing for it."""

from __future__ import annotations

import contextlib
import math
import time
from collections import Counter
from types import TracebackType
from typing import Final

import zmq
from zmq.utils.monitor import recv_monitor_message

from interlatent_live.stream.endpoint import connect_address, keep_alive
from interlatent_live.stream.errors import EndpointError, WireError
from interlatent_live.stream.wire import MAX_MESSAGE_BYTES, Bye, Message, decode, topic

__all__ = ["Subscriber"]

_LOOK_S: Final = 0.25
"""Between two looks at the connection, while nothing arrives."""
_GIVEN_UP_S: Final = 1.0
_CONNECTING: Final = zmq.EVENT_CONNECTED | zmq.EVENT_CONNECT_DELAYED | zmq.EVENT_CONNECT_RETRIED
_RECONNECT_MS: Final = 100
_RECONNECT_MAX_MS: Final = 2_000


class Subscriber:
    """A SUB socket connected to an endpoint, which need not exist yet. For one thread."""

    def __init__(self, endpoint: str, *, run: str | None = None, hwm: int = 1000) -> None:
        """Connect to `endpoint` for every run, or for one; `hwm` messages wait here. Raises EndpointError for an
        address that is none.
        """
        address = connect_address(endpoint)
        self.endpoint = address
        self.refused: Counter[str] = Counter()
        """Messages refused, by the WireError's reason."""
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.SUB)
        self._socket.linger = 0
        self._socket.rcvhwm = hwm
        # a peer that sends a larger part is disconnected before it is stored
        self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
        self._socket.setsockopt(zmq.RECONNECT_IVL, _RECONNECT_MS)
        self._socket.setsockopt(zmq.RECONNECT_IVL_MAX, _RECONNECT_MAX_MS)
        keep_alive(self._socket)
        if "[" in address:
            self._socket.setsockopt(zmq.IPV6, 1)
        # all: other versions are refused and counted, not overlooked
        self._socket.subscribe(topic(run) if run is not None else b"")
        self._last = time.monotonic()
        self._broken_since: float | None = None
        self._bye: Bye | None = None
        self._monitor = self._socket.get_monitor_socket(zmq.EVENT_DISCONNECTED | _CONNECTING)
        self._monitor.linger = 0
        try:
            self._socket.connect(address)
        except zmq.ZMQError as error:
            self.close()
            raise EndpointError(f"cannot connect to {address}: {error.strerror}") from error

    def receive(self, timeout_s: float) -> Message | None:
        """The next valid message, or None after `timeout_s` seconds. Bad messages are counted in `refused` and skipped.
        """
        deadline = time.monotonic() + timeout_s
        while not self._socket.closed:
            try:
                rest_s = deadline - time.monotonic()
                if not self._socket.poll(max(0, math.ceil(min(rest_s, _LOOK_S) * 1e3))):
                    self._look_after_connection()
                    if rest_s <= _LOOK_S:
                        return None
                    continue
                parts = self._socket.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                continue
            except zmq.ZMQError as error:
                raise EndpointError(f"receiving from {self.endpoint} failed: {error.strerror}") from error
            self._last = time.monotonic()
            try:
                message = decode(parts)
            except WireError as error:
                self.refused[error.reason] += 1
            else:
                if not isinstance(message, Bye):
                    return message
                if message != self._bye:  # said more than once, in case of a full queue
                    self._bye = message
                    return message
            if time.monotonic() >= deadline:
                return None
        raise EndpointError(f"the subscriber of {self.endpoint} is closed")

    def _look_after_connection(self) -> None:
        """Connect anew where ZeroMQ gave up: after a part beyond MAXMSGSIZE, or another breach of protocol, it does not."""
        now = time.monotonic()
        while self._monitor.poll(0):
            event = recv_monitor_message(self._monitor)["event"]
            self._broken_since = now if event == zmq.EVENT_DISCONNECTED else None
        if self._broken_since is not None and now - self._broken_since > _GIVEN_UP_S:
            self._broken_since = None
            self.refused["oversized"] += 1
            with contextlib.suppress(zmq.ZMQError):  # it may have forgotten the endpoint already
                self._socket.disconnect(self.endpoint)
            self._socket.connect(self.endpoint)

    @property
    def silence_s(self) -> float:
        """Seconds since anything arrived, or since this subscriber was made."""
        return time.monotonic() - self._last

    def close(self) -> None:
        """Disconnect. Twice is once."""
        if not self._socket.closed:
            self._socket.disable_monitor()
            self._monitor.close()
            self._socket.close()
            self._context.term()

    def __enter__(self) -> Subscriber:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
