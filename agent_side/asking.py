"""Prompts that other processes ask a language model for, as they wait for the model's own loop and are told about.

    control thread ──submit──▶ waiting ──take──▶ `for asked in tap.asked(…)`, the user's loop, on the model's thread
                   ◀─written── what was read of it so far ◀── sender's thread

Nothing is generated here, and nobody waits in a hook: a loop that does not ask is never disturbed, and what waits, waits.
A prompt with interventions is written with them alone, or twice with the same seed: plain, then steered.
"""

from __future__ import annotations

import codecs
import math
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from interlatent_live.agent_side.policy import SteeringPolicy
from interlatent_live.stream.errors import MalformedMessage, SteeringError
from interlatent_live.stream.prompt import PLAIN, STEERED, checked_labels

__all__ = ["MAX_TEXT", "Arm", "Asking", "Generation", "Wanted"]

MAX_TEXT: Final = 30_000
"""Characters of a prompt that is asked for; a request has 32 KiB."""
_TOLD: Final = 256
"""Tokens of an arm that one answer holds."""
_REMEMBERED: Final = 32
_DRAIN_S: Final = 5.0
"""How long the last rows of a text may take from the model's thread to the sender's."""
_TURN_S: Final = 0.1
_NAMES: Final = frozenset({"text", "max_new_tokens", "labels", "steer", "both", "chat", "seed", "temperature"})


@dataclass(eq=False)
class Arm:
    """One text to be written. Tokens are added by the sender's thread, `answer` and `end` are the model's."""

    name: str
    """'', or of a pair 'plain' and 'steered'."""
    steered: bool
    state: str = "waiting"
    """'waiting', 'running' or 'over'."""
    prompt: int = -1
    """Its number among the boot's prompts, once its first pass was read."""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    given: int = 0
    ids: list[int] | None = None
    """All of it, as the model's loop gave it back."""
    ended: float = math.inf
    _texts: list[str] = field(default_factory=list)
    _decoder: Any = field(default_factory=lambda: codecs.getincrementaldecoder("utf-8")("replace"))

    def read(self, prompt: int, tokens: Sequence[int], logprobs: Sequence[float], generated: Sequence[bool]) -> None:
        """Rows that were made of it, in order."""
        self.prompt = prompt
        self.given += len(generated) - sum(map(bool, generated))
        self.logprobs += map(float, logprobs)
        self.tokens += map(int, tokens)

    @property
    def complete(self) -> bool:
        """Whether no more comes."""
        if self.state != "over":
            return False
        return self.ids is None or len(self.tokens) >= len(self.ids) - 1 or time.monotonic() - self.ended > _DRAIN_S

    def told(self, after: int, text: Callable[[int], bytes]) -> dict[str, Any]:
        """What came after its first `after` tokens."""
        over = self.complete
        known = len(self.logprobs)  # grows before `tokens` does
        tokens = self.tokens[: len(self.tokens)]
        if over and self.ids is not None and len(self.ids) > len(tokens):
            tokens = [*tokens, *self.ids[len(tokens) :]]
        while len(self._texts) < len(tokens):
            self._texts.append(self._decoder.decode(text(tokens[len(self._texts)])))
        last = min(len(tokens), after + _TOLD)
        rows = [
            [self._texts[i], self.logprobs[i] if i < known and math.isfinite(self.logprobs[i]) else None, i >= self.given]
            for i in range(after, last)
        ]
        state = "over" if over and last == len(tokens) else "waiting" if self.state == "waiting" else "running"
        return {"arm": self.name, "steered": self.steered, "state": state, "prompt": self.prompt, "given": self.given, "tokens": rows}


@dataclass(eq=False)
class Wanted:
    """A prompt that was asked for."""

    id: str
    client: str
    text: str
    max_new_tokens: int
    labels: Mapping[str, str]
    steer: Sequence[Mapping[str, Any]]
    """Arguments of `Steering.start`."""
    chat: bool
    seed: int
    temperature: float
    arms: Sequence[Arm]
    state: str = "waiting"
    """'waiting', 'running', 'done', 'refused', 'failed' or 'cancelled'."""
    message: str = ""
    cancelled: bool = False

    @property
    def pair(self) -> str:
        """What its two texts have in common; '' of one."""
        return self.id[:16] if len(self.arms) > 1 else ""

    def close(self, state: str, message: str = "") -> None:
        """Nothing more is written."""
        self.state, self.message = state, message
        for arm in self.arms:
            if arm.state != "over":
                arm.state, arm.ended = "over", time.monotonic()


@dataclass(frozen=True, eq=False)
class Generation:
    """One text that the model's loop is asked to write: `asked.answer(model.generate(**asked.inputs, **asked.options))`."""

    text: str
    labels: Mapping[str, str]
    arm: str
    """'', or of a pair 'plain' and 'steered'."""
    inputs: Mapping[str, Any]
    """`input_ids` and `attention_mask`, (1, tokens), on the model's device."""
    options: Mapping[str, Any]
    """For `generate`: `max_new_tokens`, sampling, and when to stop because nobody waits any more."""
    _arm: Arm

    def answer(self, ids: Any) -> None:
        """Hand back what was written: token numbers, (1, n) or (n,), those given included."""
        rows = ids.tolist() if hasattr(ids, "tolist") else list(ids)
        self._arm.ids = [int(i) for i in (rows[0] if rows and isinstance(rows[0], list) else rows)]


class Asking:
    """What waits and what was written lately."""

    def __init__(self, policy: SteeringPolicy, text: Callable[[int], bytes], check: Callable[[Mapping[str, Any]], None]) -> None:
        """`text`: the bytes of a token. `check`: raises SteeringError or DictionaryError for an intervention that cannot be."""
        self._policy, self._text, self._check = policy, text, check
        self._waiting: deque[Wanted] = deque()
        self._known: OrderedDict[str, Wanted] = OrderedDict()
        self._changed = threading.Condition()
        self._closed = False

    # on the control thread

    def submit(self, id: str, client: str, args: Mapping[str, Any], steer: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Put a prompt among those that wait. `steer`: its interventions, read. Raises SteeringError or DictionaryError."""
        wanted = self._read(id, client, args, steer)
        with self._changed:
            if len(self._waiting) >= self._policy.prompts:
                most = self._policy.prompts
                raise SteeringError(f"{most} prompts wait, the most that are allowed: ask again when one is written", reason="too_many")
            if self._closed:
                raise SteeringError("the agent is ending", reason="refused")
            self._waiting.append(wanted)
            self._known[id] = wanted
            while len(self._known) > max(_REMEMBERED, 2 * self._policy.prompts):
                self._known.popitem(last=False)
            self._changed.notify_all()
            return {"prompt": id, "pair": wanted.pair, "ahead": len(self._waiting) - 1}

    def written(self, id: Any, after: Any) -> dict[str, Any]:
        """How far a prompt is, and of each of its texts what came after so many tokens. Raises SteeringError."""
        wanted = self._known.get(id) if isinstance(id, str) else None
        if wanted is None:
            raise SteeringError(f"no prompt {str(id)[:40]!r} was asked for, or it was long ago", reason="bad_request")
        counts = after if isinstance(after, list) else []
        if len(counts) > len(wanted.arms) or not all(type(n) is int and 0 <= n < 1 << 31 for n in counts):
            raise SteeringError("`after` is a count of tokens for each text", reason="bad_request")
        counts = [*counts, *[0] * (len(wanted.arms) - len(counts))]
        state = wanted.state
        arms = [arm.told(n, self._text) for arm, n in zip(wanted.arms, counts, strict=True)]
        if state in ("done", "cancelled", "failed") and any(arm["state"] != "over" for arm in arms):
            state = "running"  # the last rows are on their way
        with self._changed:
            ahead = self._waiting.index(wanted) if wanted in self._waiting else 0
        return {"state": state, "message": wanted.message, "pair": wanted.pair, "ahead": ahead, "arms": arms}

    def cancel(self, id: Any) -> dict[str, Any]:
        """Write it no further. Twice is once."""
        wanted = self._known.get(id) if isinstance(id, str) else None
        if wanted is None:
            raise SteeringError(f"no prompt {str(id)[:40]!r} was asked for, or it was long ago", reason="bad_request")
        wanted.cancelled = True
        with self._changed:
            if wanted in self._waiting:
                self._waiting.remove(wanted)
                wanted.close("cancelled", "cancelled before it was begun")
        return {"cancelled": wanted.id}

    # on the model's thread

    def take(self, timeout_s: float | None, turn: Callable[[], None]) -> Wanted | None:
        """The next prompt; None where none comes within `timeout_s` seconds (None: ever), or the tap closes. `turn()` is called
        several times a second meanwhile."""
        until = math.inf if timeout_s is None else time.monotonic() + timeout_s
        while True:
            turn()
            with self._changed:
                if self._waiting:
                    wanted = self._waiting.popleft()
                    wanted.state = "running"
                    return wanted
                left = until - time.monotonic()
                if self._closed or left <= 0:
                    return None
                self._changed.wait(min(left, _TURN_S))

    def close(self) -> None:
        """Take no more, and give up what waits."""
        with self._changed:
            self._closed = True
            for wanted in self._waiting:
                wanted.close("failed", "the agent ended")
            self._waiting.clear()
            self._changed.notify_all()

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._waiting)

    @property
    def closed(self) -> bool:
        """Whether the tap was closed."""
        return self._closed

    def _read(self, id: str, client: str, args: Mapping[str, Any], steer: Sequence[Mapping[str, Any]]) -> Wanted:
        def bad(message: str) -> SteeringError:
            return SteeringError(message, reason="bad_request")

        if unknown := sorted(set(args) - _NAMES):
            raise bad(f"prompt knows no {unknown[0][:40]!r}")
        text, most, both = args.get("text"), args.get("max_new_tokens", 48), args.get("both", False)
        chat, seed, temperature = args.get("chat", False), args.get("seed", 0), args.get("temperature", 0.0)
        if not isinstance(text, str) or not text.strip():
            raise bad("the prompt is empty; give it some text")
        if len(text) > MAX_TEXT:
            raise bad(f"a prompt of {len(text)} characters; at most {MAX_TEXT} are taken: shorten it")
        limit = self._policy.max_new_tokens
        if type(most) is not int or not 0 < most <= limit:
            raise bad(f"max_new_tokens is {str(most)[:20]}; 1 to {limit} are allowed")
        if type(both) is not bool or type(chat) is not bool or type(seed) is not int or not 0 <= seed < 1 << 62:
            raise bad("both and chat are true or false, and seed a whole number from 0")
        if isinstance(temperature, bool) or not isinstance(temperature, (int, float)) or not 0 <= temperature <= 10:
            raise bad(f"temperature is {str(temperature)[:20]}; 0 to 10 are allowed, and 0 takes the likeliest token")
        labels = args.get("labels") or {}
        if not isinstance(labels, dict):
            raise bad("labels is a map of names and values")
        try:
            known = checked_labels(labels)
        except MalformedMessage as error:
            raise bad(str(error)) from error
        if both and not steer:
            raise bad("both writes it with and without an intervention, and none is given: name a feature and what is done to it")
        if len(steer) > self._policy.max_active:
            raise bad(f"{len(steer)} interventions; at most {self._policy.max_active} act at once")
        for one in steer:
            self._check(one)
        arms = [Arm(PLAIN, False), Arm(STEERED, True)] if both else [Arm(STEERED if steer else "", bool(steer))]
        return Wanted(id, client, text, most, known, tuple(steer), chat, seed, float(temperature), arms)
