"""Addresses: the one default, what a user may write for it, and who holds one that is taken.

Accepted: `tcp://host:port`, `host:port`, `:port`, `port`, `ipc:///path`. A missing host is the loopback, so nothing is
offered to a network
unless the address says so (`tcp://*:5570`, or the address of an interface).
"""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path
from typing import Final

import zmq

from interlatent_live.stream.errors import EndpointError

__all__ = ["DEFAULT_ENDPOINT", "bind_address", "connect_address", "holder", "is_loopback"]

DEFAULT_ENDPOINT: Final = "tcp://127.0.0.1:5570"
_TCP = re.compile(r"(?:tcp://)?(?P<host>\[[0-9A-Fa-f:.%]+\]|[^\s:/\[\]]*):(?P<port>\d{1,5}|\*)")
_LISTEN: Final = "0A"
_MAX_IPC_PATH: Final = 107
"""Bytes of a Unix socket's path on Linux."""


def bind_address(endpoint: str) -> str:
    """`endpoint` as ZeroMQ binds it; raises EndpointError. The port may be `*`: any free one."""
    if endpoint.startswith("ipc://"):
        path = endpoint.removeprefix("ipc://")
        if not path or len(os.fsencode(path)) > _MAX_IPC_PATH:
            raise EndpointError(f"endpoint {endpoint!r} needs a path of 1 to {_MAX_IPC_PATH} bytes after 'ipc://'")
        return endpoint
    host, port = _split(endpoint)
    return f"tcp://{host or '127.0.0.1'}:{port}"


def connect_address(endpoint: str) -> str:
    """`endpoint` as ZeroMQ connects to it; raises EndpointError. An address bound on every interface is reached by the
    loopback.
    """
    address = bind_address(endpoint)
    if address.startswith("ipc://"):
        return address
    host, port = _split(address)
    if port == "*":
        raise EndpointError(f"endpoint {endpoint!r} has no port; write for example {DEFAULT_ENDPOINT}")
    host = {"*": "127.0.0.1", "0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(host, host)
    return f"tcp://{host}:{port}"


def is_loopback(endpoint: str) -> bool:
    """Whether only this machine reaches `endpoint`."""
    address = bind_address(endpoint)
    if address.startswith("ipc://"):
        return True
    host = _split(address)[0].strip("[]")
    return host in ("localhost", "::1") or host.startswith("127.")


def holder(endpoint: str) -> str | None:
    """The process that listens at `endpoint`, as 'name (pid N)', if this machine's /proc tells; else None."""
    address = bind_address(endpoint)
    if address.startswith("ipc://"):
        inodes = _unix_inodes(address.removeprefix("ipc://"))
    else:
        port = _split(address)[1]
        inodes = set() if port == "*" else _tcp_inodes(int(port))
    wanted = {f"socket:[{inode}]" for inode in inodes}
    return _process_with(wanted) if wanted else None


def keep_alive(socket: zmq.Socket[bytes]) -> None:
    """Let the kernel notice a peer's host that vanished, within half a minute.

    Not ZeroMQ's own heartbeats: what a subscriber writes to a publisher that has closed, be it a PING, makes the kernel
    reset the
    connection and drop what the subscriber had yet to fetch (a slow one lost 900 of 3,600 frames so); and one that is
    busy for
    longer than the timeout, its queue full, would be taken for dead.
    """
    socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
    socket.setsockopt(zmq.TCP_KEEPALIVE_IDLE, 10)
    socket.setsockopt(zmq.TCP_KEEPALIVE_INTVL, 5)
    socket.setsockopt(zmq.TCP_KEEPALIVE_CNT, 3)


def ipc_answers(path: str) -> bool:
    """Whether something accepts connections at the Unix socket `path`: ZeroMQ would unlink it and bind regardless."""
    if not Path(path).is_socket():
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(0.5)
        return probe.connect_ex(path) == 0


def _split(endpoint: str) -> tuple[str, str]:
    match = _TCP.fullmatch(endpoint if ":" in endpoint else f":{endpoint}")
    if match is None or (match["port"] != "*" and not 0 < int(match["port"]) < 65_536):
        raise EndpointError(
            f"endpoint {endpoint!r} is not an address; write 'tcp://host:port' with a port of 1 to 65535 "
            f"(the default is {DEFAULT_ENDPOINT}) or 'ipc:///path'"
        )
    return match["host"], match["port"]


def _tcp_inodes(port: int) -> set[str]:
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text("ascii").splitlines()[1:]
        except OSError:  # not Linux, or not permitted: the holder stays unnamed
            continue
        for line in lines:
            fields = line.split()
            if fields[3] == _LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
                found.add(fields[9])
    return found


def _unix_inodes(path: str) -> set[str]:
    try:
        lines = Path("/proc/net/unix").read_text("utf-8", "replace").splitlines()[1:]
    except OSError:
        return set()
    rows = (line.split(maxsplit=7) for line in lines)
    return {fields[6] for fields in rows if len(fields) == 8 and fields[7] == path}


def _process_with(wanted: set[str]) -> str | None:
    try:
        pids = [name for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return None
    for pid in pids:
        try:
            held = any(os.readlink(f"/proc/{pid}/fd/{fd}") in wanted for fd in os.listdir(f"/proc/{pid}/fd"))
            if held:
                return f"{Path(f'/proc/{pid}/comm').read_text('utf-8', 'replace').strip()} (pid {pid})"
        except OSError:  # ended meanwhile, or another user's
            continue
    return None
