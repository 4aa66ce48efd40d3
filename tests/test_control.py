"""Steering from another process: the socket, the token, what is refused, and that no flood keeps a release out."""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import torch
import zmq
from tests.steering_samples import OBSERVATION, dictionary_of
from tests.tap_samples import mlp

import interlatent_live as il
from interlatent_live.agent_side.tap import Tap
from interlatent_live.stream.control import USER, ControlClient, Reply, Request, find_agent
from interlatent_live.stream.errors import SteeringError
from interlatent_live.stream.keys import KeyRing, read_token, write_token
from interlatent_live.stream.manifest import ControlSpec


class Agent:
    """A steerable agent that acts on a thread of its own."""

    def __init__(self, pause_s: float = 0.002, endpoint: str = "", **options: Any) -> None:
        self.model = mlp().eval()
        self.dictionary = dictionary_of(self.model)
        policy = il.SteeringPolicy(**{"dictionaries": [self.dictionary], "effect_hz": 0, "max_change": 1e9, **options})
        self.tap = il.Tap(self.model, ["1:out", "3:out"], run="controlled", endpoint=endpoint, steering=policy)
        self.outputs: set[bytes] = set()
        self.last = b""
        self.errors: list[BaseException] = []
        self.pause_s = pause_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._act)

    def _act(self) -> None:
        try:
            with torch.inference_mode():
                while not self._stop.is_set():
                    output = self.model(torch.from_numpy(OBSERVATION)[None])
                    self.tap.step(observation=OBSERVATION, action=int(output.argmax()), reward=1.0)
                    self.last = output.numpy().tobytes()
                    self.outputs.add(self.last)
                    time.sleep(self.pause_s)
        except BaseException as error:
            self.errors.append(error)
            raise

    def __enter__(self) -> Agent:
        self.tap.open()
        self._thread.start()
        until(lambda: bool(self.last))
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()
        self.tap.close()
        assert not self.errors

    @property
    def control(self) -> ControlSpec:
        assert self.tap.manifest is not None
        assert self.tap.manifest.control is not None
        return self.tap.manifest.control

    def client(self, **options: Any) -> ControlClient:
        return ControlClient(self.control, **{"timeout_s": 20.0, **options})

    def refused(self, reason: str) -> float:
        return self.tap.status().get(f"control_refused_{reason}", 0)


def until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@contextlib.contextmanager
def peer(agent: Agent, password: str | None = None) -> Iterator[zmq.Socket[bytes]]:
    """A socket that says whatever it likes."""
    context = zmq.Context()
    dealer = context.socket(zmq.DEALER)
    dealer.linger = 0
    dealer.plain_username = USER
    dealer.plain_password = (read_token(agent.control.token_file)[0] if password is None else password).encode()
    dealer.connect(agent.control.endpoint)
    try:
        yield dealer
    finally:
        dealer.close()
        context.term()


def ask(dealer: zmq.Socket[bytes], request: Request) -> Reply:
    dealer.send(request.pack())
    assert dealer.poll(20_000)
    return Reply.unpack(dealer.recv())


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def test_a_client_steers_renews_and_releases() -> None:
    with Agent() as agent, agent.client(client="me") as client:
        plain = agent.last
        hello = client.hello()
        assert (hello["run"], hello["boot"]) == ("controlled", agent.tap.boot)
        assert (hello["operations"], hello["max_ttl_s"]) == (["ablate", "scale", "clamp", "add"], 300.0)  # what a client may offer
        started = client.steer(operation="scale", strength=0.0, feature=4, ttl_s=60, reason="why not")
        assert (started["author"], started["reason"], started["feature"], started["left_s"] > 50) == ("me", "why not", 4, True)
        until(lambda: agent.last != plain)
        assert [item["id"] for item in client.list()] == [started["id"]]
        active, ended = client.renew([started["id"], "unknown"])
        assert ([item["id"] for item in active], ended) == ([started["id"]], {})
        assert client.release(started["id"]) == [started["id"]]
        until(lambda: agent.last == plain)
        assert client.renew([started["id"]]) == ([], {started["id"]: "released"})
        client.steer(operation="add", strength=1.0, direction=[1.0] + [0.0] * 7, point="3:out")
        until(lambda: agent.last != plain)
        client.steer(operation="clamp", strength=1.0, feature=1, when={"groups": [[{"metric": "reward", "comparison": ">", "value": 0}]]})
        assert len(client.release_all()) == 2
        until(lambda: agent.last == plain)


def test_it_ends_when_its_author_is_not_heard_of_any_more() -> None:
    with Agent(lease_s=0.4) as agent:
        with agent.client() as client:
            plain = agent.last
            id = client.steer(operation="ablate", feature=4)["id"]
            until(lambda: agent.last != plain)
        began = time.monotonic()
        until(lambda: agent.last == plain)
        assert time.monotonic() - began < 20
        with agent.client() as client:
            until(lambda: client.renew([id]) == ([], {id: "author_gone"}))


def test_the_token_is_private_and_goes_with_the_agent() -> None:
    with Agent() as agent:
        path = Path(agent.control.token_file)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        token, endpoint = read_token(path)
        assert len(token) > 40
        assert endpoint == agent.control.endpoint
        path.chmod(0o644)
        with pytest.raises(SteeringError, match="others may read it"):
            agent.client()
        spec = agent.control
    assert not path.exists()
    with pytest.raises(SteeringError, match="is not there: the agent has ended"):
        ControlClient(spec)


def test_a_manifest_that_lies_gets_neither_a_file_nor_the_token(tmp_path: Path) -> None:
    secret = tmp_path / "id_ed25519"
    secret.write_text("private")
    secret.chmod(0o600)
    for named in (str(secret), str(tmp_path / "state" / "interlatent-live" / ".." / ".." / "id_ed25519"), "\0", "/dev/zero"):
        with pytest.raises(SteeringError, match=r"no token of yours|cannot be looked at"):
            ControlClient(ControlSpec("tcp://127.0.0.1:9", True, named))
    with Agent() as agent, pytest.raises(SteeringError, match="the token is not sent"):
        ControlClient(ControlSpec("tcp://127.0.0.1:9", True, agent.control.token_file))  # a trap, with the true token's file


def test_tokens_of_agents_that_were_killed_are_swept(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        write_token("killed", "b", "tcp://127.0.0.1:9")
        os._exit(0)
    os.waitpid(child, 0)
    left = tmp_path / "state" / "interlatent-live" / "killed-b.token"
    assert left.exists()
    with Agent() as agent:
        assert not left.exists()
        with Agent() as other:
            assert Path(agent.control.token_file).exists()
            assert Path(other.control.token_file).exists()


def test_who_does_not_have_the_token_is_not_even_read() -> None:
    with Agent() as agent:
        with agent.client(token="stale") as client, pytest.raises(SteeringError, match="the token or the key is stale"):
            client.hello()
        assert agent.refused("token") >= 1
        context = zmq.Context()
        with context.socket(zmq.DEALER) as naked:  # no PLAIN at all
            naked.linger = 0
            naked.connect(agent.control.endpoint)
            naked.send(Request("release_all", "x" * 16, "nobody", read_token(agent.control.token_file)[0]).pack())
            until(lambda: agent.refused("handshake") > 0)
            assert not naked.poll(0)
        context.term()


def test_what_is_late_replayed_too_frequent_or_makes_no_sense_is_refused_with_a_counted_reason() -> None:
    with Agent(requests_per_s=20) as agent, peer(agent) as dealer:
        token, _ = read_token(agent.control.token_file)
        now = int(ask(dealer, Request("hello", "h" * 16, "me", token)).result["monotonic_ns"])

        def request(op: str, deadline_s: float = 10, id: str = "", token: str = token, **args: Any) -> Reply:
            time.sleep(0.06)  # not more often than is allowed
            return ask(dealer, Request(op, id or secrets.token_hex(8), "me", token, now + int(deadline_s * 1e9), args))

        for reply, reason, message in (
            (request("list", deadline_s=-1), "late", "after its deadline"),
            (request("list", deadline_s=1e5), "late", "more than 30 s ahead"),
            (request("list", token="stale"), "token", "the token is not that of this agent"),
            (request("steer", operation="scale", strength=float("nan"), feature=4), "bad_request", "finite"),
            (request("steer", operation="scale", strength=1.0, feature=99), "bad_request", "has 0 to 5"),
            (request("steer", operation="scale", strength=1.0, feature=True), "bad_request", "int is needed"),
            (request("steer", operation="scale", strength=1.0, feature=4, dictionary="cartpole"), "mismatch", "is allowed here"),
            (request("steer", operation="add", strength=1.0, direction=b"\0" * 32, point="0:out"), "not_allowed", "no tap point"),
            (request("steer", operation="explode", feature=4), "not_allowed", "'explode' is not allowed"),
            (request("steer", operation="scale", strength=1.0, feature=4, when={"groups": []}), "bad_request", "1 to 4 lists"),
            (request("steer", operation="scale", strength=1.0, feature=4, weights="x"), "bad_request", "knows no 'weights'"),
            (request("release", intervention="f" * 16), "bad_request", "is in force"),
        ):
            assert (reply.ok, reply.reason) == (False, reason)
            assert message in reply.message
            assert agent.refused(reason) > 0
        assert request("list", id="r" * 16).ok
        assert request("list", id="r" * 16).reason == "replayed"
        replies = [ask(dealer, Request("list", secrets.token_hex(8), "me", token, now + int(20e9))) for _ in range(200)]
        assert sum(reply.reason == "rate" for reply in replies) > 50
        assert ask(dealer, Request("release_all", "z" * 16, "me", token)).ok
        assert agent.tap.status()["steering_active"] == 0


def hostile(rng: random.Random) -> bytes:
    """Something that is no request, in one of many ways."""
    kind = rng.randrange(6)
    if kind == 0:
        return rng.randbytes(rng.randrange(200))
    if kind == 1:
        return b"\x91" * rng.randrange(1, 3000)  # lists in lists
    if kind == 2:
        return bytes(msgpack.packb([rng.random()] * rng.randrange(300)))
    fair = {"v": 1, "op": "steer", "id": "a" * 16, "client": "c", "token": "t" * 43, "deadline_ns": 1, "args": {"feature": 4}}
    if kind == 3:
        del fair[rng.choice(list(fair))]
    elif kind == 4:
        fair[rng.choice(list(fair))] = rng.choice([None, -1, 1 << 63, "x" * 500, b"", [], {}, float("nan"), {"a": {"b": 1}}, True])
    raw = bytearray(msgpack.packb(fair))
    if kind == 5:
        raw[rng.randrange(len(raw))] = rng.randrange(256)
    return bytes(raw)


def flood(agent: Agent, messages: int) -> int:
    """Send so many hostile messages, some over raw TCP; how many the agent read."""
    rng = random.Random(7)
    sent = 0
    port = int(agent.control.endpoint.rpartition(":")[2])
    with peer(agent) as dealer:
        while sent < messages:
            with contextlib.suppress(zmq.Again):
                if sent % 50 == 7:
                    dealer.send_multipart([hostile(rng)] * rng.randrange(2, 6), zmq.DONTWAIT)
                else:
                    dealer.send(hostile(rng), zmq.DONTWAIT)
                sent += 1
                if sent % 1000 == 1:
                    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5) as raw:
                        raw.sendall(rng.randbytes(500))
                continue
            while dealer.poll(1):
                dealer.recv()
        until(lambda: sum(v for k, v in agent.tap.status().items() if k.startswith("control_refused")) >= messages // 2, 240)
    return sent


def survives(messages: int) -> None:
    with Agent() as agent:
        plain = agent.last
        with agent.client() as client:
            client.steer(operation="ablate", feature=4, ttl_s=290)
        with peer(agent) as dealer:
            token, _ = read_token(agent.control.token_file)
            id = secrets.token_hex(8)
            now = int(ask(dealer, Request("hello", "h" * 16, "me", token)).result["monotonic_ns"])
            assert ask(dealer, Request("steer", id, "me", token, now + int(9e9), {"operation": "ablate", "feature": 3})).ok
            until(lambda: agent.last != plain)
            released: list[float] = []

            def release() -> None:
                time.sleep(0.3)
                began = time.monotonic()
                with agent.client(timeout_s=60) as other:
                    other.release_all()
                released.append(time.monotonic() - began)

            thread = threading.Thread(target=release)
            thread.start()
            assert flood(agent, messages) == messages
            thread.join()
        assert released
        until(lambda: agent.last == plain)
        status = agent.tap.status()
        assert status["steering_active"] == status["step_failures"] == status["hook_failures"] == 0
        assert agent.refused("malformed") > messages / 4


def test_a_flood_of_hostile_requests_leaves_the_agent_alone_and_lets_a_release_through() -> None:
    survives(3_000)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_flood_of_100_000_hostile_requests() -> None:
    survives(100_000)


def test_a_file_releases_everything_without_any_socket() -> None:
    with Agent() as agent, agent.client() as client:
        plain = agent.last
        client.steer(operation="ablate", feature=4)
        until(lambda: agent.last != plain)
        Path(agent.control.token_file).with_suffix(".release").touch()
        until(lambda: agent.last == plain)


def test_an_agent_without_steering_answers_not_allowed() -> None:
    model = mlp()
    with il.Tap(model, "3:out", run="readonly", endpoint="tcp://127.0.0.1:*") as tap:
        with torch.inference_mode():
            model(torch.zeros(1, 4))
        tap.step(observation=np.zeros(4))
        with pytest.raises(SteeringError, match="not allowed: the agent of run 'readonly'") as refused:
            find_agent(tap.endpoint, timeout_s=20)
    assert refused.value.reason == "not_allowed"


def test_the_manifest_says_where_requests_are_taken() -> None:
    with Agent(endpoint="tcp://127.0.0.1:*") as agent:
        found = find_agent(agent.tap.endpoint, timeout_s=20)
        assert found.control == agent.control
        assert found.control is not None
        assert found.control.endpoint.startswith("tcp://127.0.0.1:")
        assert found.control.steerable
    assert read_only_hash_is_as_before()


def read_only_hash_is_as_before() -> bool:
    """A manifest without control has no such key, so that its hash is what it was."""
    tap = Tap(mlp(), "3:out", run="r", endpoint="")
    with tap:
        assert tap.manifest is not None
        return "control" not in tap.manifest.to_dict()


def test_beyond_the_loopback_keys_are_needed_on_both_sides(tmp_path: Path) -> None:
    robot, desk, stranger = (KeyRing(tmp_path / name) for name in ("robot", "desk", "stranger"))
    with pytest.raises(SteeringError, match="make keys: interlatent-live keys make"):
        robot.pair("server")
    made = robot.make()
    assert robot.make() == made
    assert stat.S_IMODE((robot.folder / "server.key_secret").stat().st_mode) == 0o600
    options: dict[str, Any] = {"control": "tcp://0.0.0.0:*", "keys": robot.folder}
    with pytest.raises(SteeringError, match="clients is empty"), Agent(**options):
        pass
    robot.allow("clients", "desk", desk.make()["client"])
    with pytest.raises(SteeringError, match="is there already"):
        robot.allow("clients", "desk", desk.make()["client"])
    for name, key, message in (("../x", "k" * 40, "no name of a key"), ("x", "short", "40 characters"), ("x", "~" * 40, "no public key")):
        with pytest.raises(SteeringError, match=message):
            robot.allow("clients", name, key)
    with Agent(**options) as agent:
        spec = agent.control
        assert spec.server_key == made["server"]
        with pytest.raises(SteeringError, match="which is not known here"):
            agent.client(keys=desk)
        desk.allow("servers", "robot", spec.server_key)
        stranger.make()
        stranger.allow("servers", "robot", spec.server_key)
        with agent.client(keys=desk) as client:
            plain = agent.last
            client.steer(operation="ablate", feature=4)
            until(lambda: agent.last != plain)
            assert client.release_all()
        with agent.client(keys=stranger) as client, pytest.raises(SteeringError, match="the key is stale"):
            client.hello()
        assert agent.refused("keys") > 0
        with agent.client(keys=desk, token="stale") as client, pytest.raises(SteeringError, match="not that of this agent"):
            client.hello()
        with pytest.raises(SteeringError, match="not sent in the clear"):
            ControlClient(ControlSpec("tcp://192.0.2.1:5", True), token="t")


def test_after_a_fork_the_child_neither_steers_nor_takes_the_token_away() -> None:
    with Agent() as agent:
        token = Path(agent.control.token_file)
        child = os.fork()
        if child == 0:
            code = 1
            with contextlib.suppress(BaseException):
                agent.tap.close()
                code = int(agent.tap._steering is not None)
            os._exit(code)
        assert os.waitpid(child, 0)[1] == 0
        assert token.exists()
        with agent.client() as client:
            assert client.list() == []
