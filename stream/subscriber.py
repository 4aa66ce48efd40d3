"""The receiving socket: reconnects by itself, and refuses what is not a valid message without ever failing for it."""

from __future__ import annotations

import time
from collections import Counter
from types import TracebackType
from typing import Final

import zmq

from interlatent_live.stream.endpoint import connect_address, keep_alive
from interlatent_live.stream.errors import EndpointError, WireError
from interlatent_live.stream.wire import MAX_MESSAGE_BYTES, Message, decode, topic

__all__ = ["Subscriber"]

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
                if not self._socket.poll(max(0, int((deadline - time.monotonic()) * 1e3))):
                    return None
                parts = self._socket.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                continue
            except zmq.ZMQError as error:
                raise EndpointError(f"receiving from {self.endpoint} failed: {error.strerror}") from error
            self._last = time.monotonic()
            try:
                return decode(parts)
            except WireError as error:
                self.refused[error.reason] += 1
                if time.monotonic() >= deadline:
                    return None
        raise EndpointError(f"the subscriber of {self.endpoint} is closed")

    @property
    def silence_s(self) -> float:
        """Seconds since anything arrived, or since this subscriber was made."""
        return time.monotonic() - self._last

    def close(self) -> None:
        """Disconnect. Twice is once."""
        if not self._socket.closed:
            self._socket.close()
            self._context.term()

    def __enter__(self) -> Subscriber:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
