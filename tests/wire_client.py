"""A client written from docs/wire.md alone, sharing no code with the product.

Prints what it receives, one JSON object a line, until the farewell:

    python tests/wire_client.py ENDPOINT RUN SECONDS
"""

import json
import math
import struct
import sys
import time
from typing import Any

import msgpack
import zmq

CODES = {"<f2": "e", "<f4": "f", "<f8": "d", "<i4": "i", "<i8": "q", "<u2": "H", "|u1": "B", "|b1": "?"}


def array(part: bytes, dtype: str, shape: list[int]) -> list[Any]:
    count = math.prod(shape)
    values: list[Any] = list(struct.unpack(f"<{count}{CODES[dtype]}", part))
    for size in reversed(shape[1:]):
        values = [list(values[i : i + size]) for i in range(0, len(values), size)] if size else []
    return values


def finite(value: Any) -> Any:
    if isinstance(value, list):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read(parts: list[bytes]) -> dict[str, Any]:
    version, run, kind, end = parts[0].decode("ascii").split("/")
    assert version == "v1"
    assert end == ""
    header = msgpack.unpackb(parts[1])
    seconds = float(parts[2])
    if kind == "signals":
        return {"kind": kind, "seconds": seconds, "values": {k: finite(v) for k, v in header.items()}}
    assert header["v"] == 1
    assert header["run"] == run
    out = {"kind": kind, "seconds": seconds, **{k: v for k, v in header.items() if k != "buffers"}}
    if kind == "frames":
        out["columns"] = {
            name: finite(array(part, dtype, shape))
            for (name, dtype, shape), part in zip(header["buffers"], parts[3:], strict=True)
        }
    if kind == "picture":
        out["jpeg"] = parts[3].hex()
    return out


def main(endpoint: str, run: str, seconds: str) -> None:
    context = zmq.Context()
    socket = context.socket(zmq.SUB)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.MAXMSGSIZE, 64 << 20)
    socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
    socket.setsockopt(zmq.SUBSCRIBE, f"v1/{run}/".encode())
    socket.connect(endpoint)
    deadline = time.monotonic() + float(seconds)
    while socket.poll(max(0, int((deadline - time.monotonic()) * 1000))):
        message = read(socket.recv_multipart())
        print(json.dumps(message), flush=True)
        if message["kind"] == "bye":
            break
    socket.close()
    context.term()


if __name__ == "__main__":
    main(*sys.argv[1:])
