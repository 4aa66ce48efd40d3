"""The demo: agent, analyzer, explainer and page, each in its own process, under one roof.

1. The page comes up on an empty database; its address is printed.
2. The analyzer connects. The agent takes its first step only then.
3. A service that dies is started again; an agent that ends, ends the demo. The explainer only reads: without it, all
   goes on. Its narration is said as well as shown.
4. The agent's farewell lets the analyzer commit and leave; the report is read from the database.
"""

from __future__ import annotations

import json
import time
import webbrowser
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .launch import GRACE_S, Child, Stop, free_endpoint
from .stream.endpoint import DEFAULT_ENDPOINT
from .stream.errors import InterlatentError, RecordingExists, StoreError

__all__ = ["Demo"]

@dataclass
class Demo:
    """One demo. `run` blocks until the agent ends, `seconds` have passed since its first step, or `stop()`."""

    agent: str
    folder: Path
    seconds: float | None = None
    port: int = 0
    record: Path | None = None
    db: Path | None = None
    analysis: Sequence[str] = ()
    """More arguments of the analyzer."""
    open_browser: bool = False
    steerable: bool = False
    """Whether the page, and `interlatent-live steer`, may change the agent's features."""
    say: Callable[[str], None] = lambda line: None

    def __post_init__(self) -> None:
        self.record = self.record or self.folder / "run.mcap"
        self.db = self.db or self.folder / "run.db"
        if self.record.exists():
            raise RecordingExists(f"{self.record} exists; recordings are never overwritten: name another with --record")
        if self.db.exists():
            raise StoreError(f"{self.db} exists; a demo begins with a new database: name another with --db")
        self.steerable |= self.agent == "lm"  # the page has a box to try prompts on it, with a feature changed too
        for path in (self.record, self.db):
            path.parent.mkdir(parents=True, exist_ok=True)

    def run(self, stop: Stop) -> dict[str, Any]:
        """Run it; the report (see `analyzer.report`) with the agent's own figures."""
        endpoint = free_endpoint(DEFAULT_ENDPOINT)
        if endpoint != DEFAULT_ENDPOINT:
            self.say(f"{DEFAULT_ENDPOINT} is taken; this demo streams on {endpoint}")
        db = str(self.db)
        self.reach = ["--control", endpoint] if self.steerable else []
        self.viewer = Child("viewer", ["view", "--db", db, "--port", str(self.port), *self.reach, "--json"], on_line=self._page_is_up)
        analyze = ["analyze", "--connect", endpoint, "--db", db, "--run", self.agent, "--json", *self.analysis]
        self.analyzer = Child("analyzer", analyze)
        self.explainer = Child("explainer", ["explain", "--db", db, "--live", "--json"], on_line=self._narrate)
        arguments = ["run", self.agent, "--bind", endpoint, "--record", str(self.record), "--wait", "60", "--pictures", "--json"]
        if self.agent == "lm":
            arguments += ["--repeat", "--temperature", "0.7", "--serve"]
        if self.seconds is not None:
            arguments += ["--seconds", str(self.seconds)]
        if self.steerable:
            arguments.append("--steerable")
        self.acting = Child("agent", arguments)
        services = (self.viewer, self.analyzer)
        try:
            for child in (*services, self.explainer, self.acting):
                child.start()
            while not stop.wait(0.05) and self.acting.code is None:
                for service in services:
                    service.revive(self.say)
                self.explainer.revive_or_leave(self.say)
        finally:
            self._end()
        if self.acting.code != 0:
            raise InterlatentError(f"the agent ended with status {self.acting.code}; its message stands above")
        return self._report()

    def _page_is_up(self, line: str) -> None:
        url = json.loads(line)["url"]
        if self.viewer.restarts == 0:
            # a page that is started again comes back where the browser looks for it
            self.viewer.arguments = ["view", "--db", str(self.db), "--port", url.rstrip("/").rpartition(":")[2], *self.reach, "--json"]
            self.say(f"{self.agent} is live at {url}")
            if self.open_browser:
                webbrowser.open(url)

    def _narrate(self, line: str) -> None:
        told = json.loads(line)
        self.say(f"{told['time_s']:.1f} s, episode {told['episode']}, step {told['episode_step']}: {told['text']}")

    def _end(self) -> None:
        self.viewer.terminate()
        self.explainer.terminate()
        self.acting.end()
        deadline = time.monotonic() + GRACE_S
        while self.analyzer.code is None and time.monotonic() < deadline and self.acting.code == 0:
            time.sleep(0.01)
        self.analyzer.end(0.5)
        self.viewer.end(0.5)
        self.explainer.end(0.5)

    def _report(self) -> dict[str, Any]:
        from .analyzer.report import report

        assert self.db is not None
        acted = json.loads(self.acting.lines[-1])
        return report(
            self.db,
            agent=self.agent,
            seconds=acted["seconds"],
            steps=acted["frames"],
            episodes=acted["episodes"],
            mean_return=acted["mean_return"],
        )
