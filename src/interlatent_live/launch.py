"""Processes: start them, watch over them, end them in the order in which frames flow.

The agent is told to stop before the analyzer: its farewell lets the analyzer commit and leave. A child whose parent has died
ends by itself, so nothing is left behind even after `kill -9`.
"""

from __future__ import annotations

import atexit
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from .stream.errors import InterlatentError

__all__ = ["Child", "Stop", "free_endpoint", "run_directory", "view_beside"]

_PARENT = "INTERLATENT_LIVE_PARENT"
REFUSALS = frozenset({1, 2})
"""Statuses of a command that said no: an error of ours, or wrong arguments."""
MAX_RESTARTS = 5
GRACE_S = 1.5
"""How long a child may take to end after SIGTERM before it is killed; a demo is over within 2 s of Ctrl-C."""


class Stop:
    """`stop()` is true once this process was asked to end (SIGTERM, SIGINT), its parent died, or `set()` was called.

    Installs signal handlers, so it is made on the main thread. A second Ctrl-C changes nothing: what runs is the orderly end.
    """

    def __init__(self) -> None:
        self._asked = threading.Event()
        parent = os.environ.get(_PARENT)
        self._parent = int(parent) if parent else None
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._asked.set()

    def __call__(self) -> bool:
        """Whether to end."""
        return self._asked.is_set() or (self._parent is not None and os.getppid() != self._parent)

    def set(self) -> None:
        """Ask for the end."""
        self._asked.set()

    def wait(self, seconds: float) -> bool:
        """Sleep for `seconds` or until asked to end; whether to end."""
        self._asked.wait(seconds)
        return self()


@dataclass
class Child:
    """One `interlatent-live …` process. Its standard output is collected line by line, its standard error is ours."""

    name: str
    arguments: Sequence[str]
    on_line: Callable[[str], None] | None = None
    """Called on a thread of its own for every line of standard output."""
    lines: list[str] = field(default_factory=list)
    restarts: int = 0
    left: bool = False
    """Whether it ended and is not started again."""

    def start(self) -> Child:
        """Start it in a process group of its own, so that Ctrl-C reaches the parent alone and the end is orderly."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "interlatent_live", *self.arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env=os.environ | {_PARENT: str(os.getpid())},
        )
        self._reader = threading.Thread(target=self._read, args=(self._process,), name=f"{self.name}-output", daemon=True)
        self._reader.start()
        return self

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout as output:
            for line in output:
                self.lines.append(line.rstrip("\n"))
                del self.lines[:-100]
                if self.on_line is not None:
                    self.on_line(line.rstrip("\n"))

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def code(self) -> int | None:
        """Exit status, or None while it runs."""
        return self._process.poll()

    def wait(self, seconds: float) -> int | None:
        """Wait for the end; its exit status, or None if it still runs."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        self._reader.join(1.0)
        return self._process.returncode

    def terminate(self) -> None:
        """Ask it to end."""
        if self.code is None:
            self._process.terminate()

    def end(self, grace_s: float = GRACE_S) -> int:
        """Ask it to end, kill it after `grace_s`; its exit status."""
        self.terminate()
        code = self.wait(grace_s)
        if code is None:
            self._process.kill()
            code = self.wait(5.0)
        return -signal.SIGKILL if code is None else code

    def revive(self, say: Callable[[str], None]) -> None:
        """Start it again if it was killed or crashed. One that has done its work (status 0) is left alone.

        Raises InterlatentError where starting it again is of no use: it refused with a message of ours, or has died too often.
        """
        code = self.code
        if code is None or code == 0:
            return
        if code in REFUSALS or self.restarts >= MAX_RESTARTS:
            raise InterlatentError(f"the {self.name} ended with status {code} after {self.restarts} restarts; its message stands above")
        say(f"the {self.name} ended with status {code}; starting it again")
        self.restarts += 1
        self.start()

    def revive_or_leave(self, say: Callable[[str], None]) -> None:
        """The same for a service that nothing depends on: where starting it again is of no use, it is left, and that is said once."""
        if self.left:
            return
        try:
            self.revive(say)
        except InterlatentError as error:
            self.left = True
            say(f"{error}; going on without the {self.name}")


def free_endpoint(preferred: str) -> str:
    """`preferred` if nothing holds it, else a loopback endpoint on a free port. Either is this process's until it ends,
    among those that ask here: two demos begun at once do not get the same one before their agents bind it."""
    host, _, port = preferred.removeprefix("tcp://").rpartition(":")
    for candidate in (int(port), *[0] * 20):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, candidate))
                found = f"tcp://{host}:{probe.getsockname()[1]}"
                _reserve(found)
            except OSError:
                continue
            return found
    return preferred


def _reserve(endpoint: str) -> None:
    """Raise OSError where another process has it. The kernel frees an abstract name with its holder, however that ends."""
    if sys.platform != "linux":
        return
    claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        claim.bind(f"\0interlatent-live {endpoint}")
    except OSError:
        claim.close()
        raise
    atexit.register(claim.close)  # held until then


def view_beside(endpoint: str, run: str) -> Child:
    """Start analyzer and page for the agent of this process; they end with it. Prints the page's address to standard error."""
    child = Child("watch", ["watch", endpoint, "--run", run], on_line=lambda line: print(line, file=sys.stderr))  # noqa: T201 - the user asked for it
    return child.start()


def run_directory(name: str) -> Path:
    """A new folder below `runs/` for the recording and the database of one run."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    for attempt in range(100):
        folder = Path("runs") / (f"{name}-{stamp}" + (f"-{attempt}" if attempt else ""))
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise FileExistsError(f"runs/{name}-{stamp}")
