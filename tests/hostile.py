"""Messages that nobody should send: every kind, mutated, truncated, swollen and made up, from a seed."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from typing import Any

import msgpack
import zmq
from tests.stream_samples import every_kind

from interlatent_live.stream.wire import Bye, encode

__all__ = ["Hostile", "hostile_messages"]

_TOPICS = [b"v9/agent/frames/", b"v1/agent/nothing/", b"v1/agent/frames", b"v1/../frames/", b"v1/agent/\xff/", b"v1//frames/"]
_CLOCKS = ("monotonic_ns", "wall_ns", "produced", "queue_dropped")


def hostile_messages(n: int, seed: int = 0) -> Iterator[list[bytes]]:
    """`n` multipart messages under topics of run 'agent', boot 'b0'; a few of them may be valid by chance."""
    rng = random.Random(seed)
    # no farewell: a subscriber rightly ignores its repetitions, and an analyzer leaves
    good = [encode(message) for message in every_kind().values() if not isinstance(message, Bye)]
    swollen = bytes(2 << 20)
    nested = msgpack.packb(0)
    for _ in range(600):
        nested = b"\x91" + nested
    for i in range(n):
        parts = list(rng.choice(good))
        how = i % 12
        if how == 0:
            parts = parts[: rng.randrange(3)] or [b""]
        elif how == 1:
            parts[1] = rng.randbytes(rng.randrange(64))
        elif how == 2:
            parts[1] = parts[1][: rng.randrange(len(parts[1]))]
        elif how == 3:
            at = rng.randrange(1, len(parts))
            raw = bytearray(parts[at] or b"\0")
            for _ in range(rng.randrange(1, 4)):
                raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
            parts[at] = bytes(raw)
        elif how == 4:
            parts[0] = rng.choice(_TOPICS)
        elif how == 5:
            parts[2] = rng.choice([b"nan", b"inf", b"-1", b"1e9", b"", b"9" * 40, b"\xff"])
        elif how == 6:
            parts.append(rng.randbytes(8))
        elif how == 7:
            parts = [b"v1/agent/frames/", msgpack.packb(_claims(rng)), b"1.5", rng.randbytes(8)]
        elif how == 8:
            parts[1] = nested
        elif how == 9:
            parts[1] = swollen if i % 5_000 == 9 else msgpack.packb([1, 2, 3])
        elif how == 10:
            parts = [b"v1/agent/heartbeat/", msgpack.packb(_accounts(rng)), b"1.5"]
        else:
            parts = [rng.randbytes(rng.randrange(16)) for _ in range(rng.randrange(1, 9))]
        yield parts


def _claims(rng: random.Random) -> dict[str, Any]:
    """A batch that promises more than it holds."""
    shape = [rng.choice([0, -1, 1, 1 << 20, 1 << 40, 1 << 63, 1.5, None, "a"]) for _ in range(rng.randrange(9))]
    rows: Any = rng.choice([0, 1, 65_536, 65_537, 1 << 40, -1, float("nan")])
    names = ["step", "act:", "rows:1:out", "act:1:out", "metrics", 5]
    buffers = [[rng.choice(names), rng.choice(["<f4", "<i8", "O", "|S9", 7]), shape]]
    seq = rng.choice([0, 1 << 61])
    return {"v": 1, "run": "agent", "boot": "b0", "manifest": "m", "seq": seq, "rows": rows, "queue_dropped": 0, "buffers": buffers}


def _accounts(rng: random.Random) -> dict[str, Any]:
    wrong: list[Any] = [float("nan"), -1, 1 << 62, "7", None, True, [1], 1e300]
    return {"v": 1, "run": "agent", "boot": "b0", **{name: rng.choice(wrong) for name in _CLOCKS}}


class Hostile:
    """Sends them from a thread, as fast as they are taken; nothing is dropped on the way."""

    def __init__(self, n: int, *, last: list[bytes], seed: int = 0, endpoint: str = "tcp://127.0.0.1:*") -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.XPUB)
        self._socket.linger = 10_000
        self._socket.setsockopt(zmq.XPUB_NODROP, 1)
        self._socket.bind(endpoint)
        bound: Any = self._socket.last_endpoint
        self.endpoint: str = bound.decode()
        self.sent = 0
        self._thread = threading.Thread(target=self._send, args=(n, seed, last), daemon=True)

    def _send(self, n: int, seed: int, last: list[bytes]) -> None:
        self._socket.recv()  # somebody subscribed
        for parts in hostile_messages(n, seed):
            self._socket.send_multipart(parts, copy=True)
            self.sent += 1
        self._socket.send_multipart(last)

    def __enter__(self) -> Hostile:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join(60)
        self._socket.close()
        self._context.term()


