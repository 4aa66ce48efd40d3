"""The control socket: a thread of its own takes requests, checks them, and hands them to `Steering`. The agent's thread
never hears of it.

What keeps hostile peers off, in order:

1. The connection: ZMTP PLAIN with the token as password (loopback), or CURVE with known keys. Who fails is not read.
2. A message of more than 32 KiB closes its connection in libzmq; four wait for each peer at most.
3. This thread works for a millisecond, then sleeps: a flood takes about a tenth of one core's Python, not the agent's.
4. A request: layout, token (compared in constant time), deadline, id, rate. `release_all` stops after the token; and on
   this machine a file beside the token does the same without any socket.

What is refused is counted by reason; the first of a kind is logged, and then once in ten seconds how many.
"""

from __future__ import annotations

import hmac
import logging
import os
import struct
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import zmq

from interlatent_live.agent_side.asking import Asking
from interlatent_live.agent_side.steering import Steering
from interlatent_live.stream.condition import Condition
from interlatent_live.stream.control import MAX_AHEAD_S, MAX_BYTES, USER, Reply, Request
from interlatent_live.stream.endpoint import bind_address, holder, is_loopback
from interlatent_live.stream.errors import (
    DictionaryError,
    EndpointError,
    EndpointInUse,
    InterlatentError,
    MalformedMessage,
    PredicateError,
    SteeringError,
)
from interlatent_live.stream.keys import KeyRing, release_file, remove_token, write_token
from interlatent_live.stream.manifest import ControlSpec

__all__ = ["Control"]

_LOG = logging.getLogger(__name__)
_ZAP: Final = "inproc://zeromq.zap.01"
_WORK_S: Final = 0.001
_REST_S: Final = 0.009
_LOOK_S: Final = 0.05
_LOG_S: Final = 10.0
_PEERS: Final = 256
_IDS: Final = 8_192
_ARGUMENTS: Final = frozenset(
    {"operation", "strength", "feature", "direction", "point", "dictionary", "unit", "typical", "ttl_s", "when", "env",
     "shadow", "max_effect", "reason"}
)  # fmt: skip


class Control:
    """Binds on construction, serves from `start` to `close`."""

    def __init__(self, steering: Steering, run: str, boot: str, asking: Asking | None = None) -> None:
        """`asking`: where prompts of a language model go.

        Raises EndpointError, or SteeringError where keys or the token's file cannot be had."""
        policy = steering.policy
        self._steering, self._run, self._boot, self._asking = steering, run, boot, asking
        self._pid = os.getpid()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.refused: Counter[str] = Counter()
        """By reason; see `stream.control.REASONS`."""
        self._logged: dict[str, tuple[float, int]] = {}
        self._ids: OrderedDict[str, int] = OrderedDict()
        self._buckets: OrderedDict[bytes, tuple[float, float]] = OrderedDict()
        address = bind_address(policy.control)
        self._remote = not is_loopback(address)
        self._allowed: frozenset[bytes] = frozenset()
        server: tuple[str, str] | None = None
        if self._remote:
            keys = KeyRing(policy.keys)
            server = keys.pair("server")
            self._allowed = frozenset(key.encode() for key in keys.known("clients").values())
            if not self._allowed:
                remedy = "`interlatent-live keys allow NAME KEY`"
                raise SteeringError(f"{keys.folder}/clients is empty: nobody could steer; {remedy}", reason="keys")
        self._context = zmq.Context()
        self._zap: zmq.Socket[bytes] = self._context.socket(zmq.REP)
        self._zap.linger = 0
        self._monitor: zmq.Socket[bytes] | None = None
        self._socket: zmq.Socket[bytes] = self._context.socket(zmq.ROUTER)
        self._socket.linger = 200
        self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_BYTES)
        self._socket.rcvhwm, self._socket.sndhwm = 4, 16
        self._socket.setsockopt(zmq.HANDSHAKE_IVL, 2_000)
        self._socket.setsockopt_string(zmq.ZAP_DOMAIN, "interlatent-live")
        if server is None:
            self._socket.plain_server = True
        else:
            self._socket.curve_server = True
            self._socket.curve_secretkey = server[1].encode()
        try:
            self._zap.bind(_ZAP)
            self._monitor = self._socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL)
            self._monitor.rcvhwm = 100
            self._socket.bind(address)
            self.endpoint = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
            self._token, self.token_file = write_token(run, boot, self.endpoint)
        except zmq.ZMQError as error:
            self._close_sockets()
            if error.errno == zmq.EADDRINUSE:
                who = holder(address) or "another process"
                raise EndpointInUse(f"control {address} is taken by {who}; take tcp://127.0.0.1:*") from error
            raise EndpointError(f"cannot bind control {address}: {error.strerror}; choose an address of this machine") from error
        except InterlatentError:
            self._close_sockets()
            raise
        self._secret = self._token.encode()
        self._release: Path = release_file(self.token_file)
        self.spec = ControlSpec(self.endpoint, True, str(self.token_file), "" if server is None else server[0], asking is not None)
        """What the manifest announces."""

    def start(self) -> None:
        """Begin to answer."""
        self._thread = threading.Thread(target=self._serve, name=f"interlatent-control-{self._run}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Answer no more, and take the token away. Twice is once."""
        if self._pid != os.getpid():
            return
        self._stop.set()
        if self._thread is not None:
            self._thread.join(2.0)
        if self._thread is None or not self._thread.is_alive():
            self._close_sockets()
        remove_token(self.token_file)

    def status(self) -> dict[str, float]:
        """Numbers for the heartbeat."""
        return {f"control_refused_{reason}": float(count) for reason, count in self.refused.copy().items()}

    def _close_sockets(self) -> None:
        if not self._socket.closed:
            if self._monitor is not None:
                self._socket.disable_monitor()
                self._monitor.close(linger=0)
            self._socket.close()
            self._zap.close()
            self._context.term()

    # the thread

    def _serve(self) -> None:
        poller = zmq.Poller()
        assert self._monitor is not None
        for socket in (self._socket, self._zap, self._monitor):
            poller.register(socket, zmq.POLLIN)
        while not self._stop.is_set():
            try:
                poller.poll(int(_LOOK_S * 1e3))
                if self._release.exists():
                    self._release.unlink(missing_ok=True)
                    self._log_release(self._steering.end(None, "released_all"), "its file")
                busy = self._work()
                self._steering.tend()
                if busy:
                    self._stop.wait(_REST_S)
            except Exception as error:  # noqa: BLE001 - the service loop: say it, go on
                self._refuse("refused", f"{type(error).__name__}: {error}")
                self._stop.wait(_REST_S)

    def _work(self) -> bool:
        """Take what waits, for a millisecond at most; whether more may wait. Connections first: who is let in can release."""
        until = time.monotonic() + _WORK_S
        while time.monotonic() < until:
            waits = self._let_in() | self._take() | self._hear()
            if not waits:
                return False
        return True

    def _let_in(self) -> bool:
        """Answer one request of libzmq whether a peer may connect (ZAP, RFC 27)."""
        try:
            parts = self._zap.recv_multipart(zmq.DONTWAIT)
        except zmq.Again:
            return False
        good = False
        if len(parts) >= 7 and parts[0] == b"1.0":
            if parts[5] == b"CURVE" and self._remote:
                good = any(hmac.compare_digest(zmq.utils.z85.encode(parts[6]), key) for key in self._allowed)
            elif parts[5] == b"PLAIN" and not self._remote and len(parts) == 8:
                good = hmac.compare_digest(parts[7], self._secret) and parts[6] == USER
        if not good:
            self._refuse("keys" if self._remote else "token", "a peer without the secret")
        request = parts[1] if len(parts) > 1 else b""
        self._zap.send_multipart([b"1.0", request, b"200" if good else b"400", b"OK" if good else b"refused", b"", b""])
        return True

    def _hear(self) -> bool:
        """Count a handshake that was none; what was said is never read."""
        assert self._monitor is not None
        try:
            self._monitor.recv_multipart(zmq.DONTWAIT)
        except zmq.Again:
            return False
        self._refuse("handshake", "a peer that speaks another protocol")
        return True

    def _take(self) -> bool:
        try:
            peer = self._socket.recv(zmq.DONTWAIT)
        except zmq.Again:
            return False
        parts: list[bytes] = []
        while self._socket.getsockopt(zmq.RCVMORE):
            part = self._socket.recv(zmq.DONTWAIT)
            if len(parts) < 2:
                parts.append(part)
        if len(parts) != 1:
            self._refuse("malformed", "a request of several parts")
            return True
        try:
            request = Request.unpack(parts[0])
        except MalformedMessage as error:
            self._refuse("malformed", str(error))
            self._answer(peer, Reply("", False, {}, "malformed", str(error)[:200]))
            return True
        try:
            reply = Reply(request.id, True, self._done(peer, request))
        except (SteeringError, DictionaryError, PredicateError) as error:
            reason = getattr(error, "reason", "bad_request")
            self._refuse(reason, f"{request.op} of {request.client}: {error}")
            reply = Reply(request.id, False, {}, reason, str(error)[:1000])
        self._answer(peer, reply)
        return True

    def _done(self, peer: bytes, request: Request) -> dict[str, Any]:
        if not hmac.compare_digest(request.token.encode(), self._secret):
            raise SteeringError("the token is not that of this agent: it was started again, or is another", reason="token")
        if request.op == "release_all":
            released = self._steering.end(None, "released_all")
            self._log_release(released, request.client)
            return {"released": released}
        self._admit(peer)
        now = time.monotonic_ns()
        if request.op == "hello":
            policy = self._steering.policy
            told = {name: getattr(policy, name) for name in ("max_ttl_s", "max_effect", "max_change", "max_active", "effect_hz", "lease_s")}
            return {"run": self._run, "boot": self._boot, "monotonic_ns": now, "operations": list(policy.operations), **told}
        if request.deadline_ns <= now:
            late = (now - request.deadline_ns) / 1e6
            raise SteeringError(f"the request came {late:.0f} ms after its deadline", reason="late")
        if request.deadline_ns > now + MAX_AHEAD_S * 1e9:
            raise SteeringError(f"the deadline lies more than {MAX_AHEAD_S:g} s ahead; ask the agent for its clock (hello)", reason="late")
        self._remember(request, now)
        if request.op == "list":
            return {"active": self._steering.listing()}
        if request.op == "renew":
            ids = request.args.get("ids")
            if not isinstance(ids, list) or len(ids) > 64 or not all(isinstance(id, str) for id in ids):
                raise SteeringError("renew needs the ids of interventions", reason="bad_request")
            kept = self._steering.renew(ids, request.client)
            ended = {id: self._steering.causes[id] for id in ids if id in self._steering.causes}
            return {"active": [item for item in self._steering.listing() if item["id"] in kept], "ended": ended}
        if request.op == "release":
            id = request.args.get("intervention")
            released = self._steering.end(id, "released") if isinstance(id, str) else []
            if not released:
                raise SteeringError(f"no intervention {str(id)[:40]!r} is in force", reason="bad_request")
            return {"released": released}
        if request.op in ("prompt", "written", "cancel"):
            return self._prompted(request)
        return self._steer(request)

    def _prompted(self, request: Request) -> dict[str, Any]:
        asking, args = self._asking, dict(request.args)
        if asking is None:
            raise SteeringError("no prompts are taken: SteeringPolicy(prompts=8), and a loop over tap.asked()", reason="not_allowed")
        if request.op == "written":
            return asking.written(args.get("prompt"), args.get("after"))
        if request.op == "cancel":
            return asking.cancel(args.get("prompt"))
        steer = args.pop("steer", None) or []
        if not isinstance(steer, list) or not all(isinstance(one, dict) for one in steer):
            raise SteeringError("steer is a list of interventions", reason="bad_request")
        return asking.submit(request.id, request.client, args, [_arguments(one) for one in steer])

    def _steer(self, request: Request) -> dict[str, Any]:
        args = _arguments(request.args)
        act = self._steering.start(**args, author=request.client, id=request.id, leased=True)
        _LOG.warning("run %s: intervention %s by %s: %s %s", self._run, act.id, act.author, act.edit.operation, act.reason)
        return next((item for item in self._steering.listing() if item["id"] == act.id), {"id": act.id})

    # limits

    def _admit(self, peer: bytes) -> None:
        """Token buckets: one for each connection, and one of five times the rate for all."""
        rate = self._steering.policy.requests_per_s
        for key, per_s in ((peer, rate), (b"", 5 * rate)):
            now = time.monotonic()
            left, since = self._buckets.pop(key, (2 * per_s, now))
            left = min(2 * per_s, left + (now - since) * per_s)
            self._buckets[key] = (max(0.0, left - 1), now)
            while len(self._buckets) > _PEERS:
                self._buckets.popitem(last=False)
            if left < 1:
                raise SteeringError(f"more than {per_s:g} requests a second; wait", reason="rate")

    def _remember(self, request: Request, now: int) -> None:
        while self._ids and (len(self._ids) >= _IDS or next(iter(self._ids.values())) <= now):
            self._ids.popitem(last=False)
        if request.id in self._ids:
            raise SteeringError("a request with this id was taken before", reason="replayed")
        self._ids[request.id] = request.deadline_ns

    def _answer(self, peer: bytes, reply: Reply) -> None:
        try:
            self._socket.send_multipart([peer, reply.pack()], zmq.DONTWAIT)
        except zmq.ZMQError:  # it does not read, or has gone
            self.refused["unanswered"] += 1

    def _refuse(self, reason: str, message: str) -> None:
        self.refused[reason] += 1
        now = time.monotonic()
        last, before = self._logged.get(reason, (-_LOG_S, 0))
        if now - last >= _LOG_S:
            since = self.refused[reason] - before
            self._logged[reason] = (now, self.refused[reason])
            _LOG.warning("run %s: request refused (%s, %d since the last such line): %s", self._run, reason, since, message[:300])

    def _log_release(self, released: list[str], who: str) -> None:
        if released:
            _LOG.warning("run %s: %s released by %s", self._run, ", ".join(released), who)


def _arguments(given: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `Steering.start`, from a request's. Raises SteeringError or PredicateError."""
    args = dict(given)
    if unknown := sorted(set(args) - _ARGUMENTS):
        raise SteeringError(f"steer knows no {unknown[0][:40]!r}", reason="bad_request")
    when = args.pop("when", None)
    direction = args.pop("direction", None)
    if direction is not None:
        if not isinstance(direction, bytes) or not direction or len(direction) % 4:
            raise SteeringError("a direction is float32 numbers, packed", reason="bad_request")
        args["direction"] = struct.unpack(f"<{len(direction) // 4}f", direction)
    for name, kinds in (("feature", int), ("env", int), ("shadow", bool), ("reason", str), ("point", str), ("operation", str)):
        if name in args and type(args[name]) is not kinds:
            raise SteeringError(f"{name} is {str(args[name])[:40]!r}; {kinds.__name__} is needed", reason="bad_request")
    if "operation" not in args or ("feature" in args) == ("direction" in args):
        raise SteeringError("steer needs an operation, and a feature or a direction", reason="bad_request")
    if "typical" in args and (isinstance(args["typical"], bool) or not isinstance(args["typical"], (int, float))):
        raise SteeringError("typical is a number", reason="bad_request")
    return args | {"condition": None if when is None else Condition.from_data(when)}
