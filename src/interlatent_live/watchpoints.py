"""Watchpoints: what happens when a predicate comes true: a mark on the timeline, a clip, and what the owner asked for.

A command or a webhook comes from this process's own command line alone: nothing that a page or a database says reaches a shell or
chooses an address. The command is started without a shell, with the facts as JSON on its standard input; at most one runs, for at
most `COMMAND_S`. Neither may hold up the watch: an answer that does not come is a word in the mark, never an error.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shlex
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from interlatent_live.explainer.notebook import Notebook
from interlatent_live.explainer.reading import Pages
from interlatent_live.explainer.watching import Hit, Watch
from interlatent_live.stream.errors import PredicateError, StoreError
from interlatent_live.viewer.clip import SECONDS, clip

__all__ = ["Done", "Watchpoint"]

log = logging.getLogger(__name__)
COMMAND_S: Final = 30.0
WEBHOOK_S: Final = 5.0
PERIOD_S: Final = 0.1
MAX_CLIPS: Final = 200
"""Clips that one watchpoint saves."""


@dataclass(frozen=True, slots=True)
class Done:
    """What a watchpoint did."""

    frames: int
    """Watched."""
    hits: int
    suppressed: int
    """Times that it came true within the quiet time of another."""
    clips: int
    acted: int
    """Commands started and webhooks answered."""


class Watchpoint:
    """One predicate over one database. Raises PredicateError for an address that is none, or a command that cannot be read."""

    def __init__(
        self, db: Path, text: str, *, command: str | None = None, webhook: str | None = None, quiet_s: float = 10.0,
        clips: Path | None = None, since_now: bool = True, on_hit: Callable[[dict[str, Any]], None] = lambda hit: None,
    ) -> None:
        """`clips`: the folder for them, made when the first is saved; None saves none."""
        if webhook is not None and (urlsplit(webhook).scheme not in ("http", "https") or not urlsplit(webhook).hostname):
            raise PredicateError(f"{webhook!r} is no address for a webhook; give http://host/path or https://host/path")
        try:
            self._words = shlex.split(command) if command else []
        except ValueError as error:
            raise PredicateError(f"the command {command!r} cannot be read: {error}") from error
        self.db, self._webhook, self._clips, self._on_hit, self._quiet_s = Path(db), webhook, clips, on_hit, quiet_s
        self._watch = Watch(db, text, quiet_s=quiet_s, since_now=since_now)
        self._notebook: Notebook | None = None
        self._running: subprocess.Popen[bytes] | None = None
        self._ends = 0.0
        self._acted_at = -float("inf")
        self._pending: list[tuple[Hit, str]] = []
        """Clips whose second half has not been analysed yet."""
        self.hits = self.clips = self.acted = 0

    def run(self, stop: Callable[[], bool], wait: Callable[[float], Any], *, to_the_end: bool = False) -> Done:
        """Watch until `stop()`; `to_the_end`: until all that is there was looked at. A moment that passes is tried again."""
        try:
            while not stop():
                try:
                    busy = self.step()
                except StoreError as error:
                    log.debug("not now: %s", error)
                    busy = False
                    if to_the_end:
                        raise
                if to_the_end and not busy:
                    break
                wait(PERIOD_S)
        finally:
            self.close()
        return Done(self._watch.frames, self.hits, self._watch.suppressed, self.clips, self.acted)

    def step(self) -> bool:
        """Look once; whether anything came true."""
        found = self._watch.look()
        for hit in found:
            self._take(hit)
        self._save(self._watch.newest_s - SECONDS / 2)
        self._mind_the_command()
        return bool(found)

    def close(self) -> None:
        """Save the clips that still wait, end the command, let go."""
        with contextlib.suppress(StoreError):
            self._save(float("inf"))
        if self._running is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._running.wait(timeout=max(0.0, min(5.0, self._ends - time.monotonic())))
            self._end_the_command()
        self._watch.close()
        if self._notebook is not None:
            self._notebook.close()

    def _take(self, hit: Hit) -> None:
        saves = self._clips is not None and self.clips + len(self._pending) < MAX_CLIPS
        name = f"watch-{hit.boot[:8]}-{hit.env}-{hit.seq}.html" if saves else ""
        where = str(self._clips / name) if self._clips is not None and name else None
        facts = {"predicate": str(self._watch.predicate), "db": str(self.db), **asdict(hit), "clip": where}
        acted = self._act(facts)
        if self._notebook is None:
            self._notebook = Notebook(self.db, service=False)
        kept = None if not name or self._clips is None else _beside(self._clips / name, self.db)
        self._notebook.watched(
            boot=hit.boot, env=hit.env, seq=hit.seq, time_s=hit.time_s, wall_ns=hit.wall_ns, episode=hit.episode,
            episode_step=hit.episode_step, predicate=facts["predicate"], clip=kept, acted=acted,
        )  # fmt: skip
        if name:
            self._pending.append((hit, name))
        self.hits += 1
        self._on_hit({**facts, "acted": acted})

    def _act(self, facts: dict[str, Any]) -> str | None:
        """Do what the command line asked for; what came of it, None where nothing was asked."""
        if not self._words and self._webhook is None:
            return None
        now = time.monotonic()
        if now - self._acted_at < self._quiet_s:  # frames of the past come faster than they were made
            return "left out: too soon after the last"
        self._acted_at = now
        body = json.dumps(facts).encode()
        done = []
        if self._words:
            done.append(self._start(body))
        if self._webhook is not None:
            done.append(self._post(self._webhook, body))
        return "; ".join(done)

    def _start(self, body: bytes) -> str:
        self._mind_the_command()
        if self._running is not None:
            return "command left out: the last one still runs"
        try:
            self._running = subprocess.Popen(self._words, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True)
        except OSError as error:
            return f"command failed: {error.strerror}"
        self._ends = time.monotonic() + COMMAND_S
        assert self._running.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # less than a pipe holds, so this never waits
            self._running.stdin.write(body)
            self._running.stdin.close()
        self.acted += 1
        return "command started"

    def _mind_the_command(self) -> None:
        if self._running is not None and (self._running.poll() is not None or time.monotonic() > self._ends):
            self._end_the_command()

    def _end_the_command(self) -> None:
        if self._running is not None:
            if self._running.poll() is None:
                self._running.kill()
            self._running.wait()
            if self._running.returncode:
                log.warning("the watchpoint's command ended with %d", self._running.returncode)
            self._running = None

    def _post(self, address: str, body: bytes) -> str:
        request = urllib.request.Request(address, body, {"Content-Type": "application/json", "User-Agent": "interlatent-live"})
        opener = urllib.request.build_opener(_Stay)
        try:
            with opener.open(request, timeout=WEBHOOK_S) as answer:
                self.acted += 1
                return f"webhook answered {answer.status}"
        except urllib.error.HTTPError as error:
            with error:
                return f"webhook answered {error.code}"
        except (urllib.error.URLError, TimeoutError, OSError, ValueError) as error:
            return f"webhook failed: {getattr(error, 'reason', error)}"[:200]

    def _save(self, until_s: float) -> None:
        """Write the clips of hits up to a frame time."""
        due = [(hit, name) for hit, name in self._pending if hit.time_s <= until_s]
        for hit, name in due:
            self._pending.remove((hit, name))
            assert self._clips is not None
            with Pages(self.db) as pages:
                text = clip(pages, hit.seq, boot=hit.boot, env=hit.env)
            self._clips.mkdir(parents=True, exist_ok=True)
            try:
                (self._clips / name).write_text(text, encoding="utf-8")
                self.clips += 1
            except OSError as error:
                log.warning("no clip %s: %s", self._clips / name, error.strerror)


class _Stay(urllib.request.HTTPRedirectHandler):
    """The address of the command line, and no other."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _beside(path: Path, db: Path) -> str:
    """Relative to the database's folder where it lies below it."""
    here = db.resolve().parent
    return str(path.resolve().relative_to(here)) if path.resolve().is_relative_to(here) else str(path)
