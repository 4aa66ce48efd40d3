"""Requests to a running agent, and the client that makes them.

    client ──DEALER── {v, id, op, client, token, deadline_ns, args} ──▶ ROUTER, a thread of its own in the agent
           ◀───────── {v, id, ok, reason, message, result} ───────────

Both are one msgpack map in one message part of at most 32 KiB. On the loopback the token is also the password of the
connection (ZMTP PLAIN), so who does not have it cannot send at all; beyond the loopback connections are CURVE, with keys
that both sides know. `deadline_ns` is the agent's own monotonic clock, which `hello` tells: a request that comes later is
refused, and one whose id was seen as well. `release_all` needs neither deadline nor a place in any limit.
"""

from __future__ import annotations

import getpass
import logging
import os
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgpack
import zmq
from zmq.utils.monitor import recv_monitor_message

from interlatent_live.stream.endpoint import connect_address, is_loopback, keep_alive
from interlatent_live.stream.errors import MalformedMessage, SteeringError
from interlatent_live.stream.keys import KeyRing, named_token, read_token, release_file
from interlatent_live.stream.manifest import ControlSpec, Manifest
from interlatent_live.stream.subscriber import Subscriber

__all__ = ["MAX_BYTES", "OPERATIONS", "REASONS", "ControlClient", "Reply", "Request", "find_agent"]

_LOG = logging.getLogger(__name__)
VERSION: Final = 1
MAX_BYTES: Final = 32 << 10
MAX_DIRECTION: Final = 6_144
"""Numbers of a direction in a request."""
MAX_AHEAD_S: Final = 30.0
"""How far ahead a deadline may lie, so that ids need not be remembered for longer."""
USER: Final = b"interlatent-live"
OPERATIONS: Final = ("hello", "steer", "renew", "release", "release_all", "list", "prompt", "written", "cancel")
REASONS: Final = (
    "malformed", "token", "late", "replayed", "rate", "not_allowed", "bad_request", "mismatch", "too_many", "handshake", "keys",
    "refused",
)  # fmt: skip
"""Counters of what is refused; the heartbeat's status has them as `control_refused_<reason>`."""
_COUNT_LIMIT: Final = 1 << 62


@dataclass(frozen=True, slots=True)
class Request:
    """What a client asks for."""

    op: str
    id: str
    client: str
    """Who asks, for people; authors of interventions."""
    token: str
    deadline_ns: int = 0
    """By the agent's monotonic clock; 0 for `hello` and `release_all`."""
    args: Mapping[str, Any] = field(default_factory=dict)

    def pack(self) -> bytes:
        """The message part."""
        plain = {name: getattr(self, name) for name in ("op", "id", "client", "token", "deadline_ns")}
        packed: bytes = msgpack.packb({"v": VERSION, **plain, "args": dict(self.args)})
        if len(packed) > MAX_BYTES:
            what = "a shorter prompt" if self.op == "prompt" else "a smaller direction"
            raise SteeringError(f"the request has {len(packed)} bytes, of {MAX_BYTES} at most: {what}", reason="malformed")
        return packed

    @classmethod
    def unpack(cls, raw: bytes) -> Request:
        """Inverse of `pack`. Raises MalformedMessage for anything else."""
        data = _map(raw)
        op, id, client, token, deadline, args = (data.get(k) for k in ("op", "id", "client", "token", "deadline_ns", "args"))
        if data.get("v") != VERSION or op not in OPERATIONS:
            raise MalformedMessage(f"request of version {str(data.get('v'))[:20]!r} for {str(op)[:40]!r}")
        if not isinstance(id, str) or not 8 <= len(id) <= 64 or not isinstance(client, str) or not 0 < len(client) <= 128:
            raise MalformedMessage("request without an id of 8 to 64 characters, or without a client")
        if not isinstance(token, str) or len(token) > 256 or not isinstance(args, dict) or not all(isinstance(k, str) for k in args):
            raise MalformedMessage("request without a token, or without a map of arguments")
        if type(deadline) is not int or not 0 <= deadline < _COUNT_LIMIT:
            raise MalformedMessage("request without a deadline")
        return cls(str(op), id, client, token, deadline, args)


@dataclass(frozen=True, slots=True)
class Reply:
    """What the agent answers."""

    id: str
    ok: bool
    result: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""
    message: str = ""

    def pack(self) -> bytes:
        """The message part."""
        plain = {"id": self.id, "ok": self.ok, "reason": self.reason, "message": self.message, "result": dict(self.result)}
        packed: bytes = msgpack.packb({"v": VERSION, **plain})
        return packed

    @classmethod
    def unpack(cls, raw: bytes) -> Reply:
        """Inverse of `pack`. Raises MalformedMessage."""
        data = _map(raw)
        id, ok, reason, message, result = (data.get(k) for k in ("id", "ok", "reason", "message", "result"))
        if not isinstance(id, str) or type(ok) is not bool or not isinstance(reason, str) or not isinstance(message, str):
            raise MalformedMessage("reply that is none of version 1")
        return cls(id, ok, result if isinstance(result, dict) else {}, reason, message)


def find_agent(endpoint: str, run: str | None = None, timeout_s: float = 5.0, *, prompts: bool = False) -> Manifest:
    """The manifest of the agent that publishes at `endpoint`. Raises SteeringError where none is heard, or it does not
    take requests; `prompts`: takes no prompts."""
    deadline = time.monotonic() + timeout_s
    with Subscriber(endpoint, run=run) as subscriber:
        while (left := deadline - time.monotonic()) > 0:
            message = subscriber.receive(min(left, 0.5))
            if isinstance(message, Manifest) and (run is None or message.run == run):
                if message.control is None or not message.control.steerable:
                    raise SteeringError(
                        f"not allowed: the agent of run {message.run!r} was started without steering "
                        "(Tap(…, steering=il.SteeringPolicy(…)), or `interlatent-live run … --steerable`)",
                        reason="not_allowed",
                    )
                if prompts and not message.control.prompts:
                    raise SteeringError(
                        f"not allowed: run {message.run!r} takes no prompts (`interlatent-live run lm --serve`, or a language model's loop "
                        "over `tap.asked()` with steering=il.SteeringPolicy(prompts=8))",
                        reason="not_allowed",
                    )
                return message
    raise SteeringError(f"no agent was heard at {endpoint} within {timeout_s:g} s; is one running there?", reason="refused")


class ControlClient:
    """A connection to an agent's control socket. For one thread; `with` closes it."""

    def __init__(
        self,
        control: ControlSpec | str,
        *,
        token: str | None = None,
        token_file: str | os.PathLike[str] | None = None,
        keys: KeyRing | None = None,
        client: str = "",
        timeout_s: float = 3.0,
        heard_at: str = "",
    ) -> None:
        """`control`: of the manifest, or an endpoint. `token`, or a file of it (default: the one that the manifest names).
        `keys`: beyond the loopback; the agent's key must be one that it knows. `heard_at`: where the manifest came from, whose
        host is the agent's where it takes requests on every interface.

        Raises SteeringError where secrets are missing.
        """
        spec = ControlSpec(control, True) if isinstance(control, str) else control
        self._file = token_file or ("" if token is not None or not spec.token_file else named_token(spec.token_file))
        self._token, meant = read_token(self._file) if token is None else (token, spec.endpoint)
        self.client = client or f"{getpass.getuser()}@{os.uname().nodename}:{os.getpid()}"
        self._timeout_s = timeout_s
        self._clock: tuple[int, int] | None = None
        address = _reachable(spec.endpoint, heard_at)
        self._context = zmq.Context()
        self._monitor: zmq.Socket[bytes] | None = None
        self._socket: zmq.Socket[bytes] = self._context.socket(zmq.DEALER)
        self._socket.linger = 500
        self._socket.setsockopt(zmq.MAXMSGSIZE, 1 << 20)
        keep_alive(self._socket)
        try:
            if spec.server_key:
                self._secure(keys or KeyRing(), spec.server_key)
            elif meant != spec.endpoint:
                raise SteeringError(
                    f"the stream takes requests at {spec.endpoint}, but the token is for {meant or 'another address'}: somebody else "
                    "publishes there, or the agent was started again; the token is not sent",
                    reason="token",
                )
            elif is_loopback(address):
                self._socket.plain_username, self._socket.plain_password = USER, self._token.encode()
            else:
                raise SteeringError(f"{address} is another machine's and shows no key: the token is not sent in the clear", reason="keys")
            self._monitor = self._socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL)
            self._socket.connect(address)
        except BaseException:
            self.close()
            raise

    def _secure(self, keys: KeyRing, server_key: str) -> None:
        known = keys.known("servers")
        if server_key not in known.values():
            raise SteeringError(
                f"the agent shows the key {server_key!r}, which is not known here: compare it with `interlatent-live keys list` on its "
                "machine, then `interlatent-live keys trust NAME KEY`",
                reason="keys",
            )
        public, secret = keys.pair("client")
        self._socket.curve_serverkey = server_key.encode()
        self._socket.curve_publickey, self._socket.curve_secretkey = public.encode(), secret.encode()

    def __enter__(self) -> ControlClient:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close. Twice is once."""
        if not self._socket.closed:
            if self._monitor is not None:
                self._socket.disable_monitor()
                self._monitor.close(linger=0)
            self._socket.close(linger=200)
            self._context.term()

    def hello(self) -> dict[str, Any]:
        """Who the agent is, and its clock."""
        before = time.monotonic_ns()
        found = self._ask("hello", {}, 0)
        self._clock = (before, int(found["monotonic_ns"]))
        return found

    def steer(self, **args: Any) -> dict[str, Any]:
        """Start an intervention: operation, strength, feature or direction and point, dictionary, unit, typical, ttl_s, when
        (a condition's data), env, shadow, max_effect, reason. What it became; renew it."""
        if args.get("direction") is not None:
            import struct

            numbers: Sequence[float] = args["direction"]
            if len(numbers) > MAX_DIRECTION:
                raise SteeringError(f"the direction has {len(numbers)} numbers; {MAX_DIRECTION} fit a request", reason="bad_request")
            args["direction"] = struct.pack(f"<{len(numbers)}f", *numbers)
        return self._ask("steer", {k: v for k, v in args.items() if v is not None})

    def renew(self, ids: Sequence[str]) -> tuple[list[dict[str, Any]], dict[str, str]]:
        """Say that the author is still there; those of `ids` that still are in force, and why others ended, by id."""
        found = self._ask("renew", {"ids": list(ids)})
        return list(found.get("active", [])), {str(k): str(v) for k, v in dict(found.get("ended", {})).items()}

    def release(self, id: str) -> list[str]:
        """End one intervention; the ids that ended."""
        return list(self._ask("release", {"intervention": id}).get("released", []))

    def release_quietly(self, id: str) -> None:
        """End it, if it is still there and the agent too."""
        try:
            self.release(id)
        except SteeringError as error:
            _LOG.debug("not released: %s", error)

    def release_all(self) -> list[str]:
        """End all; the ids that ended. Where the socket does not answer within a second, and the agent is on this machine, by
        a file beside its token: then which they were is not told."""
        whole, self._timeout_s = self._timeout_s, min(self._timeout_s, 1.0 if self._file else self._timeout_s)
        try:
            return list(self._ask("release_all", {}, 0).get("released", []))
        except SteeringError:
            if not self._file or not self._released_by_file(whole):
                raise
            return []
        finally:
            self._timeout_s = whole

    def _released_by_file(self, timeout_s: float) -> bool:
        """Put the file there, and see whether the agent takes it away."""
        file = release_file(self._file)
        try:
            file.touch(mode=0o600)
        except OSError:  # the agent is elsewhere
            return False
        end = time.monotonic() + timeout_s
        while file.exists() and time.monotonic() < end:
            time.sleep(0.01)
        return not file.exists()

    def list(self) -> list[dict[str, Any]]:
        """What is in force."""
        return [dict(item) for item in self._ask("list", {}).get("active", [])]

    def prompt(self, text: str, **args: Any) -> dict[str, Any]:
        """Ask a language model to go on with `text`: max_new_tokens, labels, steer (a list of what `steer` takes), both, chat, seed,
        temperature. Its id as `prompt`, that of the pair, and how many are `ahead`; ask `written` for what comes."""
        return self._ask("prompt", {"text": text} | {k: v for k, v in args.items() if v is not None})

    def written(self, prompt: str, after: Sequence[int] = ()) -> dict[str, Any]:
        """How far a prompt is: `state`, and for each of its texts (`arms`) the tokens after the first `after`."""
        return self._ask("written", {"prompt": prompt, "after": list(after)})

    def cancel(self, prompt: str) -> None:
        """Have it written no further."""
        self._ask("cancel", {"prompt": prompt})

    def _ask(self, op: str, args: Mapping[str, Any], deadline_ns: int | None = None) -> dict[str, Any]:
        if deadline_ns is None:
            if self._clock is None:
                self.hello()
            assert self._clock is not None
            mine, theirs = self._clock
            deadline_ns = theirs + time.monotonic_ns() - mine + int(self._timeout_s * 1e9)
        request = Request(op, secrets.token_hex(8), self.client, self._token, deadline_ns, args)
        self._socket.send(request.pack())
        end = time.monotonic() + self._timeout_s
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        assert self._monitor is not None
        poller.register(self._monitor, zmq.POLLIN)
        while (left := end - time.monotonic()) > 0:
            ready = dict(poller.poll(int(left * 1e3) + 1))
            if self._socket in ready:
                try:
                    reply = Reply.unpack(self._socket.recv())
                except MalformedMessage:
                    continue
                if reply.id == request.id:
                    if not reply.ok:
                        raise SteeringError(f"{reply.message} ({reply.reason})", reason=reply.reason)
                    return dict(reply.result)
            elif self._monitor in ready:
                recv_monitor_message(self._monitor)
                raise SteeringError("the agent refused the connection: the token or the key is stale, or another's", reason="token")
        raise SteeringError(f"the agent did not answer within {self._timeout_s:g} s; it may have ended", reason="refused")


def _reachable(endpoint: str, heard_at: str) -> str:
    match = re.fullmatch(r"tcp://(?:0\.0\.0\.0|\*|\[::\]):(\d+)", endpoint)
    heard = connect_address(heard_at) if heard_at and match else ""
    if match is None or not heard.startswith("tcp://"):
        return connect_address(endpoint)
    return connect_address(f"{heard.rpartition(':')[0]}:{match[1]}")


def _map(raw: bytes) -> dict[str, Any]:
    if len(raw) > 1 << 20:
        raise MalformedMessage(f"{len(raw)} bytes are no request")
    try:
        data = msgpack.unpackb(raw, raw=False, strict_map_key=True, max_ext_len=0)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise MalformedMessage(f"no msgpack map: {error}") from error
    if not isinstance(data, dict):
        raise MalformedMessage(f"a {type(data).__name__}, not a map")
    return data
