"""The page's hand in an agent: it asks in a thread of its own, measures before it changes, lives by beats, and says what is refused."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from bokeh.models import ColumnDataSource
from tests.store_builder import StoreBuilder
from tests.test_control import Agent, until
from tornado.httputil import HTTPHeaders, HTTPServerRequest, RequestStartLine
from tornado.web import create_signed_value

from interlatent_live.stream.errors import EndpointError, PredicateError
from interlatent_live.stream.manifest import ControlSpec
from interlatent_live.viewer.access import COOKIE, Access, let_in
from interlatent_live.viewer.drawer import Drawer
from interlatent_live.viewer.feed import Feed
from interlatent_live.viewer.hand import Asked, Hand, Reach
from interlatent_live.viewer.reach import blocked, form, in_force
from interlatent_live.viewer.view import View, reach_of


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


@contextmanager
def hand_in(agent: Agent) -> Iterator[Hand]:
    hand = Hand(Reach())
    hand.aim(agent.tap.boot, agent.control)
    yield hand
    hand.close()


@contextmanager
def beating(hand: Hand) -> Iterator[None]:
    """As a browser does."""
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(0.1):
            hand.beat()

    thread = threading.Thread(target=beat)
    thread.start()
    yield
    stop.set()
    thread.join()


def asked(agent: Agent, **more: Any) -> Asked:
    given = {"feature": 4, "operation": "clamp", "strength": 6.0, "ttl_s": 60} | more
    return Asked.of(given, agent.dictionary.hash)


def said(hand: Hand, n: int) -> dict[str, Any]:
    until(lambda: any(s["n"] == n for s in hand.told.said))
    return dict(next(s for s in hand.told.said if s["n"] == n))


def test_a_shadow_is_measured_then_applied_and_released() -> None:
    with Agent(effect_hz=50, effect_share=0.5, lease_s=30.0) as agent, hand_in(agent) as hand:
        plain = agent.last
        hand.look(True)
        until(lambda: hand.told.boot == agent.tap.boot)
        assert hand.told.policy["operations"] == ["ablate", "scale", "clamp", "add"]
        wanted = asked(agent, reason="why not")
        hand.steer(wanted, True, 1)
        until(lambda: wanted.key in hand.told.trials)
        assert agent.last == plain, "nothing was applied"
        trial = hand.told.trials[wanted.key]
        assert trial.kind == "kl"
        assert 0 < trial.least <= trial.median <= trial.most
        assert trial.outcome is not None
        measure, actions, steered, unsteered = trial.outcome
        assert (measure, actions) == ("share", [0, 1])
        assert steered != unsteered
        assert sum(steered) == pytest.approx(1, abs=1e-3)
        hand.steer(wanted, False, 2)  # its own shadow gives way
        assert said(hand, 2)["ok"]
        until(lambda: agent.last != plain)
        until(lambda: [bool(item["shadow"]) for item in hand.told.active] == [False])
        (item,) = hand.told.active
        assert (item["author"], item["reason"], hand.told.mine) == (hand.name, "why not", frozenset({item["id"]}))
        hand.release(str(item["id"]), 3)
        until(lambda: agent.last == plain)
        until(lambda: not hand.told.active and not hand.told.mine)


def test_it_lives_by_beats_alone() -> None:
    with Agent(lease_s=1.0) as agent, hand_in(agent) as hand:
        plain = agent.last
        with beating(hand):
            hand.steer(asked(agent), False, 1)
            until(lambda: agent.last != plain)
            until(lambda: bool(hand.told.mine))
            first = agent.tap.status()["steering_started"]
            until(lambda: hand.told.active[:1] != () and hand.told.active[0]["left_s"] < 58)  # more than one lease later
            assert agent.last != plain
            assert agent.tap.status()["steering_started"] == first == 1
        until(lambda: agent.last == plain)  # and the hand still looks, which says nothing of its browser
        until(lambda: hand.told.mine == frozenset())


def test_what_is_refused_is_said_and_nothing_is_lost() -> None:
    with Agent(max_ttl_s=10, operations=("clamp", "scale")) as agent, hand_in(agent) as hand, beating(hand):
        plain = agent.last
        refusals: list[tuple[dict[str, Any], str]] = [
            ({"operation": "ablate"}, "'ablate' is not allowed; clamp, scale are"), ({"ttl_s": 11}, "at most 10 s are allowed"),
            ({"when": "nothing > 1"}, "knows no 'nothing'"), ({"feature": 99}, "99"),
        ]  # fmt: skip
        for n, (more, words) in enumerate(refusals, 1):
            wanted: dict[str, Any] = {"ttl_s": 10, **more}
            hand.steer(asked(agent, **wanted), False, n)
            answer = said(hand, n)
            assert not answer["ok"]
            assert words in answer["text"], answer
        hand.steer(asked(agent, ttl_s=10), False, 5)
        until(lambda: agent.last != plain)
        agent.tap.steer(3, scale=2.0)
        hand.steer(asked(agent, ttl_s=10, feature=3), False, 6)  # another's does not give way
        assert "steered already" in said(hand, 6)["text"]
        hand.steer(asked(agent, ttl_s=10, strength=7.0, when="nothing > 1"), False, 7)
        assert not said(hand, 7)["ok"]
        assert agent.last != plain, "what was in force before a refusal still is"
        hand.release("ffff" * 4, 8)
        assert "no intervention" in said(hand, 8)["text"]
    with pytest.raises(PredicateError):
        Asked.of({"feature": 1, "operation": "ablate", "ttl_s": 1, "when": "pole_angle >"}, "")


def test_all_is_released_though_the_hand_itself_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    with Agent(lease_s=30.0) as agent, hand_in(agent) as hand:
        plain = agent.last
        hand.look(True)
        hand.steer(asked(agent), False, 1)
        agent.tap.steer(2, scale=3.0, reason="another's")
        until(lambda: len(hand.told.active) == 2)
        stuck = threading.Event()
        monkeypatch.setattr(hand, "_look", lambda: stuck.wait(60))
        hand.release_all(2)
        answer = said(hand, 2)
        stuck.set()
        assert answer["text"] in ("Released 2: f4 held at 6, f2 × 3", "Released 2: f2 × 3, f4 held at 6")
        until(lambda: agent.last == plain)
        with agent.client() as other:
            assert other.list() == []


def test_an_agent_that_is_gone_another_start_and_one_without_control_are_said() -> None:
    with Agent() as agent, hand_in(agent) as hand:
        hand.look(True)
        until(lambda: hand.told.boot != "")
        hand.aim("another", agent.control)
        until(lambda: "started again" in hand.told.problem)
        assert hand.told.boot == ""
        hand.aim(agent.tap.boot, None)
        until(lambda: "takes no requests" in hand.told.problem)
        hand.release_all(1)
        assert not said(hand, 1)["ok"]
        hand.aim(agent.tap.boot, agent.control)
        until(lambda: hand.told.boot != "" and hand.told.problem == "")
        agent.tap.close()
        until(lambda: hand.told.problem != "")
        hand.steer(asked(agent), False, 2)
        assert not said(hand, 2)["ok"]
        hand.release_all(3)
        assert not said(hand, 3)["ok"]


class Browser:
    """What a browser does to a drawer, and what it is told."""

    def __init__(self, feed: Feed, reach: Reach | None, allowed: bool = True) -> None:
        self.feed = feed
        self.told: dict[str, Any] = {"reach": {}, "reached": []}
        self.asks = ColumnDataSource(data={"json": [""]})
        self.drawer = Drawer(self.asks, self._tell, reach, allowed)
        self.n = 0

    def _tell(self, what: str, **columns: str) -> None:
        self.told[what] = json.loads(columns["json"])

    def ask(self, op: str, **more: Any) -> int:
        self.n += 1
        self.asks.data = {"json": [json.dumps([{"op": op, "n": self.n, **more}])]}
        self.show()
        return self.n

    def show(self) -> dict[str, Any]:
        self.feed.pull()
        self.drawer.show(self.feed, None)
        return dict(self.told["reach"])

    def until(self, condition: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
        until(lambda: bool(condition(self.show())))
        return self.show()


@pytest.fixture
def db(tmp_path: Path) -> Path:
    made = StoreBuilder(tmp_path / "run.db")
    made.frames(300)
    made.snapshot()
    made.accounts()
    made.close()
    return tmp_path / "run.db"


def test_without_a_hand_the_drawer_says_why_and_what_would_help(db: Path) -> None:
    feed = Feed(db)
    page = Browser(feed, None)
    page.ask("open", on=True)
    shown = page.until(lambda d: d.get("why"))
    assert "without steering" in shown["why"]
    assert shown["command"] == "interlatent-live demo --agent cartpole --steerable"
    assert (shown["may"], shown["usable"], shown["stop"]) == (False, False, False)
    page.ask("apply", feature=1, operation="ablate", ttl_s=5, unmeasured=True)
    page.ask("all")
    assert page.show()["said"] == []
    assert feed.manifest is not None
    object.__setattr__(feed.manifest, "control", ControlSpec("tcp://127.0.0.1:9", True, "/nowhere/x.token"))
    why = blocked(feed, reached=False, allowed=False, told=None)
    assert why is not None
    assert "only looks" in why[0]
    assert "--control" in why[1]
    why = blocked(feed, reached=True, allowed=False, told=None)
    assert why is not None
    assert "another user" in why[0]
    feed.origin = {"recording": "r.mcap"}
    why = blocked(feed, reached=True, allowed=True, told=None)
    assert why is not None
    assert "a recording" in why[0]
    feed.reader.close()


def test_the_form_is_judged_as_it_is_written(db: Path) -> None:
    feed = Feed(db)
    feed.pull()
    assert feed.dictionary is not None
    good = form(feed, None, {"f": 3, "feature": 1, "operation": "scale", "strength": 2, "ttl_s": 5})
    assert (good["f"], good["problem"], good["trial"], good["about"]["known"]) == (3, "", None, True)
    assert "There is no feature 123456" in form(feed, None, {"feature": 123456})["about"]["text"]
    assert form(feed, None, {"feature": None})["about"]["text"] == "Give the number of a feature."
    bad = form(feed, None, {"feature": 1, "operation": "scale", "strength": 2, "ttl_s": 5, "when": "pole_angle >"})
    assert bad["problem"]
    assert form(feed, None, {"feature": 1, "operation": "scale", "strength": None, "ttl_s": 5})["problem"] == ""
    assert in_force(feed, None) == (0, 0)
    feed.reader.close()


def test_nonsense_from_a_browser_does_nothing(db: Path) -> None:
    page = Browser(Feed(db), Reach())
    page.show()
    for text in ("", "{", "[1]", "[[]]", '[{"op": 5}]', '[{"op": "apply", "n": "x"}]', '[{"op": "release", "n": 9}]', "7"):
        page.asks.data = {"json": [text]}
    page.asks.data = {"other": []}
    page.n = 20
    page.ask("try", feature="x", operation="ablate", ttl_s=1)
    assert page.show()["said"][-1]["ok"] is False
    page.drawer.close()
    page.feed.reader.close()


def test_applying_waits_for_a_measurement_or_a_second_word(db: Path) -> None:
    page = Browser(Feed(db), Reach())
    page.show()
    assert page.feed.dictionary is not None
    page.ask("apply", feature=1, operation="scale", strength=2, ttl_s=5)
    assert "try it in shadow first" in page.show()["said"][-1]["text"]
    n = page.ask("apply", feature=1, operation="scale", strength=2, ttl_s=5, unmeasured=True)
    shown = page.until(lambda d: d["said"][-1]["n"] == n)
    assert "takes no requests" in shown["said"][-1]["text"], "that word was enough: it was asked, and this agent refuses"
    page.drawer.close()
    page.feed.reader.close()


@pytest.mark.parametrize("text", ["", "4", "4,ablate", "12,scale,0.5", "3,add,-1.25"])
def test_an_address_fills_the_form_in(text: str) -> None:
    view = View.read({"reach": [text.encode()]})
    assert view.reach == text
    assert ("reach", text) in view.query()


@pytest.mark.parametrize("text", ["x", "4,apply", "4,scale,1e9", "4,scale,0.5,go", "-1", "4 "])
def test_an_address_that_is_none_is_left(text: str) -> None:
    assert reach_of(text) is None
    assert View.read({"reach": [text.encode()]}).reach is None


class Told:
    """A connection's other end, as tornado hands it over."""

    def __init__(self, stream: Any = None) -> None:
        self.stream = stream


def request(uri: str = "/", headers: dict[str, str] | None = None) -> HTTPServerRequest:
    told = HTTPHeaders({"Host": "127.0.0.1", **(headers or {})})
    made = HTTPServerRequest(start_line=RequestStartLine("GET", uri, "HTTP/1.1"), headers=told)
    made.connection = Told()  # type: ignore[assignment]
    return made


def test_who_may_steer(tmp_path: Path) -> None:
    import socket

    access = Access.decide("127.0.0.1", 0, None, ())
    assert access.payload(request()) == {"steers": False}, "nobody says who is there"
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        accepted, _ = server.accept()
        with accepted:
            for uri, headers, may in (("/", {}, True), ("/?bokeh-session-id=x", {}, False), ("/", {"Bokeh-Session-Id": "x"}, False)):
                mine = request(uri, headers)
                mine.connection = Told(type("Stream", (), {"socket": accepted}))  # type: ignore[assignment]
                assert access.payload(mine) == {"steers": may}, uri
        assert client.fileno() > 0
    assert access.options() == {}
    assert access.options(steers=True)["sign_sessions"] is True
    assert not let_in(None)


def test_a_token_for_looking_lets_nobody_steer(tmp_path: Path) -> None:
    for name in ("page", "look"):
        (tmp_path / name).write_text(f"{name}-{'x' * 20}")
        (tmp_path / name).chmod(0o600)
    with pytest.raises(EndpointError, match="stands beside another"):
        Access.decide("127.0.0.1", 0, None, (), tmp_path / "look")
    access = Access.decide("127.0.0.1", 0, tmp_path / "page", (), tmp_path / "look")
    assert access.payload(request()) == {"steers": False}
    for said, secret, may in (("1", access.secret, True), ("look", access.secret, False), ("1", "another server's", False)):
        cookie = create_signed_value(secret, COOKIE, said).decode()
        assert access.payload(request(headers={"Cookie": f"{COOKIE}={cookie}"})) == {"steers": may}
