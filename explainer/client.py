"""An OpenAI-compatible endpoint, asked without anybody waiting: Chat Completions, on a thread with an event loop.

1. The ladder: `json_schema`, then `json_object` with the schema, then text; one step down where the server refuses the
   form (400, 404, 415, 422, 500, 501). What worked is reported with the answer, to be remembered for the endpoint.
2. An answer has a deadline in all, not a byte; at most `concurrency` are open and 16 queued.
3. Three failures running open the circuit: nothing is sent for 30 s, twice as long each time up to 10 minutes, then one
   request probes. 401 and 403 open it for 10 minutes at once. 429 is obeyed: Retry-After, 120 s at most.
4. Every failure is an `Answer` with a reason. What a server says is cut to 200 characters, without the key.
"""

from __future__ import annotations

import asyncio
import json
import queue
import re
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal
from urllib.parse import urlsplit, urlunsplit

__all__ = ["FORMS", "Answer", "Client", "Form", "extract_json", "safe_address"]

Form = Literal["json_schema", "json_object", "text"]
FORMS: Final[tuple[Form, ...]] = ("json_schema", "json_object", "text")
_REFUSES_FORM: Final = frozenset({400, 404, 415, 422, 500, 501})
_QUEUE: Final = 16
_FAILURES: Final = 3
_PAUSE_S: Final = 30.0
_LONGEST_S: Final = 600.0
_RETRY_S: Final = 120.0
_MAX_ANSWER: Final = 20_000
_SECRET: Final = re.compile(r"\b(sk|key|pk|hf|gsk)[-_][A-Za-z0-9_\-*]{6,}|bearer\s+\S+", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a request."""

    text: str | None = None
    """The JSON object in the answer, as text; None for a failure."""
    form: Form = "json_schema"
    calls: int = 0
    tokens: int = 0
    reason: str = ""
    """'timeout', 'late' (not by the deadline that it was given), 'unreachable', 'rate_limited', 'unauthorised', 'refused', 'cut_off',
    'unreadable' or 'closed'."""
    detail: str = ""


class Client:
    """One endpoint. Made, used and closed on one thread; its own thread does the waiting."""

    def __init__(self, base_url: str, key: str, *, timeout_s: float, concurrency: int) -> None:
        self._url, self._key = base_url, key
        self._timeout_s, self._concurrency = timeout_s, concurrency
        self._done: queue.SimpleQueue[tuple[str, Answer]] = queue.SimpleQueue()
        self._pending = 0
        self._failed = 0
        self._pause_s = _PAUSE_S
        self._until = 0.0
        self._probing = False
        self.note = ""
        """What is wrong, '' while nothing is."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._openai: Any = None
        self._slots: asyncio.Semaphore | None = None

    @staticmethod
    def body(
        model: str, messages: Sequence[Mapping[str, str]], schema: Mapping[str, Any], form: Form, max_tokens: int, *,
        name: str = "explanation",
    ) -> dict[str, Any]:
        """The request as it is sent."""
        body: dict[str, Any] = {"model": model, "messages": [dict(m) for m in messages], "max_tokens": max_tokens, "temperature": 0.0}
        if form == "json_schema":
            body["response_format"] = {"type": "json_schema", "json_schema": {"name": name, "schema": dict(schema)}}
        elif form == "json_object":
            body["response_format"] = {"type": "json_object", "schema": dict(schema)}
        return body

    @property
    def ready(self) -> bool:
        """Whether a request would be sent now."""
        if self._pending >= _QUEUE or time.monotonic() < self._until:
            return False
        return not (self._failed >= _FAILURES and self._probing)

    @property
    def dead(self) -> bool:
        """Whether the circuit is open."""
        return time.monotonic() < self._until

    @property
    def state(self) -> str:
        """'closed' (all is well), 'open' (nothing is sent for a while) or 'probing'."""
        if time.monotonic() < self._until:
            return "open"
        return "probing" if self._failed >= _FAILURES else "closed"

    def submit(self, key: str, bodies: Mapping[Form, Mapping[str, Any]], form: Form, *, deadline_s: float | None = None) -> None:
        """Send `bodies[form]`, or those after it on the ladder; the answer comes through `answers`.

        `deadline_s`: it is of use only so soon. It then waits for no other request, and what is not there by then is 'late'.
        """
        if self._loop is None:
            self._start()
        assert self._loop is not None
        self._pending += 1
        self._probing = self._failed >= _FAILURES
        asyncio.run_coroutine_threadsafe(self._work(key, dict(bodies), form, deadline_s), self._loop)

    def answers(self) -> list[tuple[str, Answer]]:
        """What has come back since."""
        found = []
        while not self._done.empty():
            key, answer = self._done.get_nowait()
            self._pending -= 1
            self._judge(answer)
            found.append((key, answer))
        return found

    def close(self) -> None:
        """Leave what is open; the thread ends by itself."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._loop = None

    def _start(self) -> None:
        import openai

        self._loop = asyncio.new_event_loop()
        self._openai = openai.AsyncOpenAI(base_url=self._url, api_key=self._key or "none", max_retries=0, timeout=self._timeout_s)
        threading.Thread(target=self._run, args=(self._loop,), name="language-model", daemon=True).start()

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        asyncio.set_event_loop(loop)
        self._slots = asyncio.Semaphore(self._concurrency)
        loop.run_forever()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.gather(*asyncio.all_tasks(loop), return_exceptions=True))
        loop.run_until_complete(self._openai.close())
        loop.close()

    async def _work(self, key: str, bodies: dict[Form, Mapping[str, Any]], form: Form, deadline_s: float | None) -> None:
        assert self._slots is not None
        try:
            if deadline_s is None:
                async with self._slots:
                    answer = await self._climb(bodies, form)
            else:
                async with asyncio.timeout(deadline_s):
                    answer = await self._climb(bodies, form)
        except TimeoutError:
            answer = Answer(form=form, calls=1, reason="late", detail=f"no answer within {deadline_s:g} s")
        except asyncio.CancelledError:
            answer = Answer(reason="closed")
        self._done.put((key, answer))

    async def _climb(self, bodies: dict[Form, Mapping[str, Any]], form: Form) -> Answer:
        """Down the ladder until a form is taken."""
        answer = Answer(reason="refused")
        for calls, step in enumerate(FORMS[FORMS.index(form) :], 1):
            answer, refused = await self._ask(bodies[step], step, calls)
            if not refused:
                break
        return answer

    async def _ask(self, body: Mapping[str, Any], form: Form, calls: int) -> tuple[Answer, bool]:
        """One request; the answer, and whether the server refused its form."""
        import openai

        def failed(reason: str, detail: object) -> Answer:
            return Answer(form=form, calls=calls, reason=reason, detail=self._clean(detail))

        try:
            async with asyncio.timeout(self._timeout_s):
                raw = await self._openai.chat.completions.with_raw_response.create(**_arguments(body))
                done = raw.parse()
        except (TimeoutError, openai.APITimeoutError):
            return failed("timeout", f"no answer within {self._timeout_s:g} s"), False
        except openai.RateLimitError as error:
            self._until = max(self._until, time.monotonic() + _retry_after(error))
            return failed("rate_limited", error), False
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            return failed("unauthorised", f"status {error.status_code}: {error}"), False
        except openai.APIStatusError as error:
            return failed("refused", f"status {error.status_code}: {error}"), error.status_code in _REFUSES_FORM
        except openai.APIConnectionError as error:
            return failed("unreachable", error.__cause__ or error), False
        except (openai.OpenAIError, ValueError, TypeError, AttributeError) as error:  # a body that is no completion
            return failed("unreadable", f"{type(error).__name__}: {error}"), False
        return self._read(done, form, calls), False

    def _read(self, done: Any, form: Form, calls: int) -> Answer:
        """Whatever a server may send as a completion."""
        usage = getattr(done, "usage", None)
        tokens = getattr(usage, "total_tokens", 0) or 0
        tokens = int(tokens) if isinstance(tokens, (int, float)) else 0
        try:
            choice = done.choices[0]
            text, finish = choice.message.content, choice.finish_reason
        except (AttributeError, IndexError, TypeError, KeyError):
            return Answer(form=form, calls=calls, tokens=tokens, reason="unreadable", detail="the answer is no chat completion")
        if not isinstance(text, str) or not text.strip():
            return Answer(form=form, calls=calls, tokens=tokens, reason="unreadable", detail="the answer is empty")
        found = extract_json(text[:_MAX_ANSWER])
        if found is None:
            reason = "cut_off" if finish == "length" else "unreadable"
            return Answer(form=form, calls=calls, tokens=tokens, reason=reason, detail=f"no JSON object in: {self._clean(text)}")
        return Answer(text=found, form=form, calls=calls, tokens=tokens)

    def _judge(self, answer: Answer) -> None:
        """Open or close the circuit."""
        self._probing = False
        if answer.reason == "late":  # too slow for one purpose is not broken; who gave the deadline counts it
            return
        if answer.reason in ("", "unreadable", "cut_off"):  # it answers; what it says is another question
            self._failed, self._pause_s, self.note = 0, _PAUSE_S, ""
            return
        self.note = f"{answer.reason}: {answer.detail}".rstrip(": ")
        if answer.reason == "rate_limited":
            return
        self._failed += 1
        if answer.reason == "unauthorised":
            self._failed, self._pause_s = max(self._failed, _FAILURES), _LONGEST_S
        if self._failed >= _FAILURES:
            self._until = time.monotonic() + self._pause_s
            self._pause_s = min(_LONGEST_S, 2 * self._pause_s)

    def _clean(self, said: object) -> str:
        """One line of what a server said, without the key or anything like one."""
        text = " ".join(str(said).split())
        if self._key:
            text = text.replace(self._key, "…")
        return "".join(c for c in _SECRET.sub("…", text) if c.isprintable())[:200]


def extract_json(text: str) -> str | None:
    """The first JSON object in a text, as text."""
    decoder = json.JSONDecoder()
    for match in re.finditer(r"\{", text):
        try:
            found, _ = decoder.raw_decode(text, match.start())
        except (ValueError, RecursionError):
            continue
        return json.dumps(found)
    return None


def safe_address(url: str) -> str:
    """An endpoint without user, password, query or fragment."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    host = f"[{host}]" if ":" in host else host
    return urlunsplit((parts.scheme, f"{host}:{parts.port}" if parts.port else host, parts.path, "", ""))


def _arguments(body: Mapping[str, Any]) -> dict[str, Any]:
    return dict(body)


def _retry_after(error: Any) -> float:
    said = error.response.headers.get("retry-after", "")
    try:
        return min(_RETRY_S, max(1.0, float(said)))
    except ValueError:
        return 10.0
