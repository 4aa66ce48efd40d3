"""The page's box to try a prompt on the model that runs: asks in a thread of its own, so that a page never waits for an agent.

Only where the page's server was given a way to reach the agent, this browser may use it, and the agent takes prompts; else the
box says what to do. What is written comes back through the store, as everything a page shows.
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
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from interlatent_live.stream.control import ControlClient
from interlatent_live.stream.errors import InterlatentError, SteeringError
from interlatent_live.stream.manifest import ControlSpec
from interlatent_live.viewer.feed import Feed
from interlatent_live.viewer.hand import Reach

__all__ = ["MAX_TOKENS", "PromptBox", "Wish", "blocked"]

log = logging.getLogger(__name__)
MAX_TOKENS: Final = 512
_LOOK_S: Final = 0.25
_SILENT_S: Final = 20.0
"""How long an agent may not answer before the box gives up."""
_OPERATIONS: Final = ("ablate", "scale", "clamp", "add")


@dataclass(frozen=True, slots=True)
class Wish:
    """A prompt as the form asks for it."""

    text: str
    max_new_tokens: int
    chat: bool = False
    feature: int | None = None
    operation: str = "scale"
    strength: float = 0.0
    both: bool = False
    dictionary: str = ""
    """Hash of the feature's dictionary."""

    @classmethod
    def of(cls, data: Mapping[str, Any], dictionary: str) -> Wish:
        """From what a browser says. Raises SteeringError with what is wrong, for people."""
        text, most, feature = str(data.get("text") or ""), data.get("tokens"), data.get("feature")
        if not text.strip():
            raise SteeringError("Write a prompt first.")
        if type(most) is not int or not 0 < most <= MAX_TOKENS:
            raise SteeringError(f"Tokens to write: a whole number from 1 to {MAX_TOKENS}.")
        both, operation = data.get("both") is True, str(data.get("operation"))
        if feature is None:
            if both:
                raise SteeringError("With and without what? Name a feature, and what is done to it.")
            return cls(text, most, data.get("chat") is True)
        strength = data.get("strength")
        if type(feature) is not int or feature < 0 or not dictionary:
            raise SteeringError("A feature is a whole number, of the dictionary that is shown.")
        if operation not in _OPERATIONS or isinstance(strength, bool) or not isinstance(strength, (int, float)):
            raise SteeringError("The strength is a number.")
        return cls(text, most, data.get("chat") is True, feature, operation, float(strength), both, dictionary)

    @property
    def request(self) -> dict[str, Any]:
        """For `ControlClient.prompt`."""
        steer = None
        if self.feature is not None:
            strength = 0.0 if self.operation == "ablate" else self.strength
            steer = [{"operation": self.operation, "strength": strength, "feature": self.feature, "dictionary": self.dictionary}]
        return {"max_new_tokens": self.max_new_tokens, "steer": steer, "both": self.both or None, "chat": self.chat or None}


@dataclass(frozen=True, slots=True)
class _Told:
    busy: bool = False
    message: str = ""
    bad: bool = False
    show: str | None = None
    """What to look at: a pair's name, or 'p7'."""
    version: int = 0


class PromptBox:
    """One tab's. `tell` is `Page.tell`: the browser draws `asked`."""

    def __init__(self, tell: Callable[..., None], reach: Reach | None, allowed: bool) -> None:
        self._tell, self._reach, self._allowed = tell, reach, allowed
        self._wishes: queue.Queue[tuple[Wish, ControlSpec] | None] = queue.Queue(4)
        self._thread: threading.Thread | None = None
        self._cancel = threading.Event()
        self._told = _Told()
        self._sent = ""
        self._shown = 0
        self._taken = 0

    def close(self) -> None:
        """The session ended: what was asked for goes on, and nobody waits for it."""
        if self._thread is not None:
            self._cancel.set()
            self._wishes.put(None)

    def show(self, feed: Feed) -> str | None:
        """Send what changed; what to look at, once, when something was begun."""
        told, why = self._told, blocked(feed, reached=self._reach is not None, allowed=self._allowed)
        dictionary = feed.dictionary
        data = {
            "may": why is None, "why": None if why is None else list(why), "busy": told.busy, "message": told.message, "bad": told.bad,
            "features": 0 if dictionary is None or dictionary.kind == "neurons" else dictionary.features, "most": MAX_TOKENS,
        }  # fmt: skip
        text = json.dumps(data)
        if text != self._sent:
            self._sent = text
            self._tell("asked", json=text)
        if told.show is None or told.version == self._shown:
            return None
        self._shown = told.version
        return told.show

    def again(self) -> None:
        """Somebody listens anew: tell the whole."""
        self._sent = ""

    def obey(self, command: Mapping[str, Any], feed: Feed) -> int | None:
        """What the form asks; the feature that it changes, if it begins anything."""
        if command.get("stop") is True:
            self._cancel.set()
            return None
        n = int(command.get("n", 0))
        if n <= self._taken and command.get("n") is not None:
            return None  # a message that came again begins nothing again
        self._taken = max(n, self._taken)
        if self._told.busy or blocked(feed, reached=self._reach is not None, allowed=self._allowed) is not None:
            return None
        known = feed.dictionary is not None and feed.dictionary.kind != "neurons"
        try:
            wish = Wish.of(command, feed.dictionary.hash if known and feed.dictionary is not None else "")
        except SteeringError as error:
            self._say(str(error), bad=True)
            return None
        manifest = feed.manifest
        assert manifest is not None
        assert manifest.control is not None
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name="prompt-box", daemon=True)
            self._thread.start()
        self._cancel.clear()
        self._say("asking …", busy=True)
        self._wishes.put((wish, manifest.control))
        return wish.feature

    # in its thread

    def _say(self, message: str, *, busy: bool = False, bad: bool = False, show: str | None = None) -> None:
        before = self._told
        self._told = replace(
            before, message=message, busy=busy, bad=bad, show=show or before.show, version=before.version + (show is not None)
        )

    def _serve(self) -> None:
        while (taken := self._wishes.get()) is not None:
            try:
                self._follow(*taken)
            except InterlatentError as error:
                self._say(str(error), bad=True)
            except Exception as error:  # the service loop: say it, go on
                log.exception("the prompt box failed")
                self._say(f"{type(error).__name__}: {error}", bad=True)

    def _follow(self, wish: Wish, control: ControlSpec) -> None:
        """Ask, and tell how far it is until it is done."""
        assert self._reach is not None
        name = f"{getpass.getuser()}@{os.uname().nodename} page {secrets.token_hex(2)}"
        with self._reach.client(control, name) as client:
            begun = client.prompt(wish.text, **wish.request)
            id, pair, shown = str(begun["prompt"]), str(begun["pair"]), False
            if pair:
                self._say("waiting for the model …", busy=True, show=pair)
            while True:
                found = _look(client, id, 2 if wish.both else 1)
                numbers = [int(arm["prompt"]) for arm in found["arms"]]
                state, ahead = str(found["state"]), int(found["ahead"])
                if not pair and not shown and numbers[0] >= 0:
                    shown = True
                    self._say("writing …", busy=True, show=f"p{numbers[0]}")
                if state == "waiting":
                    self._say("waiting for the model …" if not ahead else f"waiting for the model: {ahead} before it …", busy=True)
                elif state == "running":
                    arm = next((arm["arm"] for arm in found["arms"] if arm["state"] == "running"), "")
                    self._say("writing " + ({"plain": "without …", "steered": "with …"}.get(arm, "…") if pair else "…"), busy=True)
                else:
                    done = {"done": "", "cancelled": "stopped"}.get(state)
                    self._say(str(found["message"]) if done is None else done, bad=done is None)
                    return
                if self._cancel.wait(_LOOK_S):
                    self._cancel.clear()
                    client.cancel(id)


def _look(client: ControlClient, id: str, arms: int) -> dict[str, Any]:
    """How far it is; its text comes through the store. Raises SteeringError where the agent does not answer for long."""
    until = time.monotonic() + _SILENT_S
    while True:
        try:
            return client.written(id, [1 << 30] * arms)
        except SteeringError as error:
            if error.reason not in ("refused", "rate") or time.monotonic() > until:
                raise
            time.sleep(_LOOK_S)


def blocked(feed: Feed, *, reached: bool, allowed: bool) -> tuple[str, str] | None:
    """Why the box cannot be used, and the command that would help; None: it can."""
    manifest, boot = feed.manifest, feed.boot
    serve = "interlatent-live demo --agent lm"
    if manifest is None or boot is None or feed.origin.get("recording") or boot.ended or not feed.newest:
        return "Nobody writes here any more. Prompts are tried on a model that runs:", serve
    control = manifest.control
    if control is None or not control.prompts:
        return "This model takes no prompts. One does that is started so:", "interlatent-live run lm --serve"
    if not reached:
        return "This page only looks. One that may ask is started so:", f"interlatent-live view --db {feed.path} --control ENDPOINT"
    if not allowed:
        return "This browser was let in to look only.", ""
    return None
