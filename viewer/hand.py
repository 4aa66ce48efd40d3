"""The page's hand in a running agent: one author for each browser tab, who asks in a thread of its own.

    browser ──beat, 4 a second──▶ session ──▶ Hand's thread ──renew──▶ agent
            ──what is asked────▶         ──▶              ──steer──▶

The tab is the author: each of its beats renews what it started, and nothing else does. So when the tab closes, freezes or
loses its server, or the server dies, the agent lets go when the lease runs out. The session never waits: it leaves what is
asked in a queue and reads `told`, which is replaced whole. A release of everything has a thread and a connection of its own
each time, so nothing that hangs stands in its way.
"""

from __future__ import annotations

import getpass
import json
import logging
import os
import queue
import secrets
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from interlatent_live.explainer.grammar import parse
from interlatent_live.stream.control import ControlClient
from interlatent_live.stream.errors import InterlatentError, SteeringError
from interlatent_live.stream.keys import KeyRing
from interlatent_live.stream.manifest import ControlSpec
from interlatent_live.viewer.steered import did

__all__ = ["Asked", "Hand", "Reach", "Told", "Trial"]

_LOG = logging.getLogger(__name__)
ANSWER_S: Final = 2.0
"""How long an agent may take to answer."""
LOOK_S: Final = 0.35
"""Between two looks at what is in force."""
RETRY_S: Final = 1.0
FRESH_S: Final = 0.8
"""A beat that is older was held up, and says nothing any more."""
MEASUREMENTS: Final = 200
SAID: Final = 20
TRIALS: Final = 50


@dataclass(frozen=True, slots=True)
class Reach:
    """What a page's server was given to reach an agent with. Whether there is one decides that its page may steer at all."""

    heard_at: str = ""
    """Where the agent publishes: its host is the agent's where it takes requests on every interface."""
    token_file: Path | None = None
    """None: the file that the agent names."""
    keys: Path | None = None

    def client(self, control: ControlSpec, name: str) -> ControlClient:
        """A connection. Raises SteeringError."""
        return ControlClient(
            control, token_file=self.token_file, keys=KeyRing(self.keys), client=name, timeout_s=ANSWER_S, heard_at=self.heard_at
        )


@dataclass(frozen=True, slots=True)
class Asked:
    """An intervention as the form asks for it."""

    feature: int
    operation: str
    strength: float
    ttl_s: float
    dictionary: str
    """Hash."""
    when: str = ""
    env: int | None = None
    reason: str = ""

    @classmethod
    def of(cls, data: Mapping[str, Any], dictionary: str) -> Asked:
        """From what a browser says. Raises SteeringError, KeyError, TypeError or ValueError."""
        operation, when, env = str(data["operation"]), str(data.get("when") or "").strip(), data.get("env")
        strength = 0.0 if operation == "ablate" else float(data["strength"])
        asked = cls(
            int(data["feature"]), operation, strength, float(data["ttl_s"]), dictionary, when[:1000],
            None if env is None else int(env), " ".join(str(data.get("reason") or "").split())[:200],
        )  # fmt: skip
        if asked.when:
            parse(asked.when)
        return asked

    @property
    def key(self) -> str:
        """What a measurement is of: all but how long and why."""
        return json.dumps([self.dictionary, self.feature, self.operation, self.strength, self.when, self.env])

    def request(self, shadow: bool) -> dict[str, Any]:
        """For `ControlClient.steer`."""
        when = {"when": parse(self.when).model_dump()} if self.when else {}
        return {
            "operation": self.operation, "strength": self.strength, "feature": self.feature, "dictionary": self.dictionary,
            "ttl_s": self.ttl_s, "env": self.env, "shadow": shadow or None, "reason": self.reason, **when,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Trial:
    """What a shadow measured."""

    key: str
    count: int
    kind: str
    """'kl': nats. 'sd': standard deviations of the action."""
    median: float
    least: float
    most: float
    outcome: list[Any] | None


@dataclass(frozen=True, slots=True)
class Told:
    """What a hand knows of the agent; replaced whole."""

    boot: str = ""
    """The start of the agent that answers; '' while none does."""
    policy: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""
    """Why the agent cannot be reached, in words."""
    active: tuple[Mapping[str, Any], ...] = ()
    """What is in force, whoever began it, as the agent lists it."""
    mine: frozenset[str] = frozenset()
    """Ids that this tab began."""
    at: float = 0.0
    """When `active` was listed, seconds of time.monotonic; 0: never."""
    trials: Mapping[str, Trial] = field(default_factory=dict)
    trying: frozenset[str] = frozenset()
    """Keys of shadows that are in force."""
    said: tuple[Mapping[str, Any], ...] = ()
    """Answers to what was asked: n, about ('form', 'release', 'all'), ok, text; newest last."""
    version: int = 0


class Hand:
    """One tab's. Everything but `told` is asked for and happens later."""

    def __init__(self, reach: Reach) -> None:
        self._reach = reach
        self.name = f"{getpass.getuser()}@{os.uname().nodename} page {secrets.token_hex(2)}"
        """The author, as others see him."""
        self.told = Told()
        self._lock = threading.Lock()
        self._queue: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._target: tuple[str, ControlSpec | None] = ("", None)
        self._open = False
        self._stopped = False
        # of the thread alone
        self._client: ControlClient | None = None
        self._client_of: tuple[str, ControlSpec | None] = ("", None)
        self._mine: dict[str, tuple[Asked, bool]] = {}
        self._mine_of = ""
        self._values: dict[str, deque[float]] = {}
        self._counted: dict[str, int] = {}
        self._looked = self._failed = -float("inf")

    # asked by the session; none of it waits

    def aim(self, boot: str, control: ControlSpec | None) -> None:
        """Which start of the agent is looked at, and where it takes requests."""
        self._target = (boot, control)

    def look(self, on: bool) -> None:
        """Whether somebody looks at what is in force."""
        self._open = on
        if on:
            self._put("look", None)

    def beat(self) -> None:
        """The browser is there."""
        if self._thread is not None:
            self._queue.put(("beat", time.monotonic()))

    def steer(self, asked: Asked, shadow: bool, n: int) -> None:
        """Begin an intervention. `n`: number of what was asked, for its answer."""
        self._put("steer", (asked, shadow, n))

    def release(self, id: str, n: int) -> None:
        """End one."""
        self._put("release", (id, n))

    def release_all(self, n: int) -> None:
        """End all there are, whoever began them."""
        threading.Thread(target=self._release_all, args=(n, self._target[1]), name="page-release-all", daemon=True).start()

    def close(self) -> None:
        """The tab is gone. What it began ends with its lease."""
        self._stopped = True
        if self._thread is not None:
            self._queue.put(("stop", None))

    def answer(self, n: int, about: str, ok: bool, text: str) -> None:
        """Say something to the browser."""
        self._tell(said=(*self.told.said, {"n": n, "about": about, "ok": ok, "text": text})[-SAID:])

    def _put(self, what: str, of: Any) -> None:
        self._queue.put((what, of))
        if self._thread is None and not self._stopped:
            self._thread = threading.Thread(target=self._serve, name="page-hand", daemon=True)
            self._thread.start()

    def _tell(self, **changes: Any) -> None:
        with self._lock:
            before = self.told
            fields = {name: changes.get(name, getattr(before, name)) for name in Told.__dataclass_fields__}
            if fields != {name: getattr(before, name) for name in fields}:
                self.told = Told(**{**fields, "version": before.version + 1})

    # the thread

    def _serve(self) -> None:
        beat = 0.0
        while not self._stopped:
            try:
                what, of = self._queue.get(timeout=LOOK_S / 2)
            except queue.Empty:
                what, of = "", None
            if what == "beat":
                beat = float(of)
                if not self._queue.empty():
                    continue  # what was asked since goes first; the newest beat counts
            try:
                if what == "steer":
                    self._steer(*of)
                elif what == "release":
                    self._release(*of)
                if beat and self._mine:
                    if time.monotonic() - beat < FRESH_S:
                        self._renew()
                    beat = 0.0
                if (self._open or self._mine) and time.monotonic() - self._looked >= LOOK_S:
                    self._look()
            except SteeringError as error:
                self._lost(error)
            except Exception as error:  # noqa: BLE001 - the service loop: say it, go on
                _LOG.warning("the page's hand: %s: %s", type(error).__name__, error)
                self._looked = time.monotonic()
        self._let_go()

    def _connected(self) -> ControlClient:
        """A client of the agent that is looked at. Raises SteeringError."""
        target = self._target
        if self._client is not None and self._client_of == target:
            return self._client
        self._let_go()
        boot, control = target
        if control is None:
            raise SteeringError("the agent that is shown takes no requests", reason="not_allowed")
        client = self._reach.client(control, self.name)
        try:
            policy = client.hello()
            if policy.get("boot") != boot:
                raise SteeringError("the agent was started again: wait until this page shows its new start", reason="mismatch")
        except BaseException:
            client.close()
            raise
        self._client, self._client_of = client, target
        if boot != self._mine_of:  # of another start of the agent nothing is ours
            self._mine_of = boot
            self._mine.clear()
            self._tell(mine=frozenset(), trying=frozenset(), trials={})
        self._tell(boot=boot, policy=policy, problem="")
        return client

    def _let_go(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    def _lost(self, error: SteeringError) -> None:
        """The agent does not answer: ask again after a while. Or not to us: connect again as well."""
        self._looked = time.monotonic() + RETRY_S - LOOK_S
        if error.reason in ("rate", "late"):
            return
        if error.reason != "refused":
            self._let_go()
        self._tell(boot="", problem=words(error), active=(), at=0.0)

    def _look(self) -> None:
        client = self._connected()
        active = client.list()
        self._looked = time.monotonic()
        there = {str(item["id"]) for item in active}
        for id in [id for id in self._mine if id not in there]:
            del self._mine[id]
        trials = dict(self.told.trials)
        for item in active:
            self._note(item, trials)
        while len(trials) > TRIALS:
            trials.pop(next(iter(trials)))
        self._tell(
            boot=self._mine_of, active=tuple(active), at=self._looked, problem="", mine=frozenset(self._mine), trials=trials,
            trying=frozenset(asked.key for asked, shadow in self._mine.values() if shadow),
        )  # fmt: skip

    def _note(self, item: Mapping[str, Any], trials: dict[str, Trial]) -> None:
        """What a shadow of ours measured since the last look."""
        id, effect, count = str(item["id"]), item.get("effect"), int(item.get("measured") or 0)
        if id not in self._mine or not self._mine[id][1] or effect is None or self._counted.get(id, 0) == count:
            return
        self._counted[id] = count
        key = self._mine[id][0].key
        values = self._values.setdefault(key, deque(maxlen=MEASUREMENTS))
        values.append(float(effect))
        ordered = sorted(values)
        trials.pop(key, None)
        trials[key] = Trial(
            key, len(values), str(item.get("kind")), ordered[len(ordered) // 2], ordered[0], ordered[-1], item.get("outcome")
        )

    def _renew(self) -> None:
        _, ended = self._connected().renew(list(self._mine))
        for id in ended:
            self._mine.pop(id, None)

    def _steer(self, asked: Asked, shadow: bool, n: int) -> None:
        try:
            client = self._connected()
            try:
                started = client.steer(**asked.request(shadow))
            except SteeringError as error:
                if error.reason != "too_many" or not self._take_back(client, asked, shadow):
                    raise
                started = client.steer(**asked.request(shadow))
        except InterlatentError as error:
            self.answer(n, "form", False, words(error))
            if isinstance(error, SteeringError) and error.reason in ("refused", "token"):
                raise
            return
        id = str(started["id"])
        self._mine[id] = (asked, shadow)
        self.answer(n, "form", True, id)
        self._looked = -float("inf")

    def _take_back(self, client: ControlClient, asked: Asked, shadow: bool) -> bool:
        """What this tab does to the same feature gives way; to a shadow only another shadow. Whether there was any."""
        same = [
            id for id, (mine, measures) in self._mine.items()
            if (mine.feature, mine.dictionary) == (asked.feature, asked.dictionary) and (measures or not shadow)
        ]  # fmt: skip
        for id in same:
            client.release_quietly(id)
            del self._mine[id]
        return bool(same)

    def _release(self, id: str, n: int) -> None:
        try:
            self._connected().release(id)
        except SteeringError as error:
            self.answer(n, "release", False, words(error))
            if error.reason != "bad_request":
                raise
        else:
            self.answer(n, "release", True, id)
        self._mine.pop(id, None)
        self._looked = -float("inf")

    def _release_all(self, n: int, control: ControlSpec | None) -> None:
        """On a thread of its own, over a connection of its own."""
        before = {str(item["id"]): item for item in self.told.active}
        try:
            if control is None:
                raise SteeringError("the agent that is shown takes no requests, so nothing steers it", reason="not_allowed")
            with self._reach.client(control, self.name) as client:
                released = client.release_all()
        except SteeringError as error:
            self.answer(n, "all", False, words(error))
            return
        what = ", ".join(spoken(before[id]) for id in released if id in before)
        text = f"Released {len(released)}{': ' + what if what else ''}" if released else "Nothing is in force any more"
        self.answer(n, "all", True, text)
        if self._thread is not None:
            self.look(self._open)


def words(error: InterlatentError) -> str:
    """For people: without the agent's word for the reason."""
    return str(error).removesuffix(f" ({getattr(error, 'reason', '')})")


def spoken(item: Mapping[str, Any]) -> str:
    """What an intervention does, in a few words."""
    what = f"f{item['feature']}" if item.get("feature") is not None else f"a direction at {item.get('output')}"
    return f"{what} {did(item)}{' (shadow)' if item.get('shadow') else ''}"
