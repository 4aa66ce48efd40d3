"""What an explainer costs the analyzer, whatever the language model beside it does: one stream, two analyzers at once, one of them
with an explainer on its database. Then how long the explainer holds that file: a process stopped in such a moment keeps it.

    python -m bench.explaining [SECONDS]
"""

from __future__ import annotations

import json
import os
import sqlite3
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import torch

from interlatent_live.agent_side import rollout
from interlatent_live.agent_side.agents import agent_named
from interlatent_live.launch import Child

from .table import Row, show

_TICK: Final = os.sysconf("SC_CLK_TCK")


def _half() -> bytes:
    text = '{"label": "pole leans", "descr'
    choice = {"index": 0, "finish_reason": "length", "message": {"role": "assistant", "content": text}}
    return json.dumps({"id": "c", "object": "chat.completion", "created": 0, "model": "toy", "choices": [choice]}).encode()


ENDPOINTS: Final[dict[str, Callable[[threading.Event], tuple[int, bytes]]]] = {
    "that stalls": lambda over: (503 if over.wait(120) else 504, b""),
    "that answers 503": lambda over: (503, b'{"error": {"message": "busy"}}'),
    "that answers half a JSON": lambda over: (200, _half()),
}


class Endpoint:
    """A server that answers every POST alike."""

    def __init__(self, answer: Callable[[threading.Event], tuple[int, bytes]]) -> None:
        self.asked = 0
        self._over = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                outer.asked += 1
                self.rfile.read(int(self.headers["content-length"]))
                status, body = answer(outer._over)
                try:
                    self.send_response(status)
                    self.send_header("content-type", "application/json")
                    self.send_header("content-length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)
                except OSError:
                    self.close_connection = True

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def close(self) -> None:
        """Let go of who still waits."""
        self._over.set()
        self._server.shutdown()
        self._server.server_close()


def cpu_s(pid: int) -> float:
    """Processor time of a process so far, s."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICK


def measure(name: str, endpoint: Endpoint | None, seconds: float) -> list[Row]:
    """Two rows: latency without and with the explainer, and what each process used."""
    agent = agent_named("cartpole")
    with tempfile.TemporaryDirectory() as folder:
        alone, beside = Path(folder) / "alone.db", Path(folder) / "beside.db"
        with rollout.make_tap(agent, endpoint="tcp://127.0.0.1:*") as tap:
            children = [
                Child("analyzer", ["analyze", "--connect", tap.endpoint, "--db", str(db), "--json"]).start() for db in (alone, beside)
            ]
            while tap.subscribers < 2:
                time.sleep(0.05)
            asking = [] if endpoint is None else ["--llm", "--model", "toy"]
            if endpoint is not None:
                os.environ["OPENAI_BASE_URL"] = endpoint.url
            while not beside.is_file():
                time.sleep(0.05)
            explainer = Child("explainer", ["explain", "--db", str(beside), "--live", "--json", *asking]).start()
            rollout.run(agent, tap, seconds=seconds, fast=False, seed=1, render=False)
            used = [cpu_s(child.pid) for child in (*children, explainer)]
            with sqlite3.connect(beside) as connection:
                row = connection.execute("SELECT value FROM explainer_state WHERE key = 'status'").fetchone()
            explainer.end()
        for child in children:
            child.wait(30)
        found = []
        for db in (alone, beside):
            with sqlite3.connect(db) as connection:
                sql = "SELECT latency_p50_ms, latency_p99_ms, produced, analyzed FROM ledger"
                found.append(connection.execute(sql).fetchone())
    status = json.loads(row[0]) if row else {}
    (p50, p99, produced, analyzed), (other50, other99, _, other) = found
    failures = (status.get("llm") or {}).get("failures", {})
    asked = "" if endpoint is None else f"; {endpoint.asked} requests, {failures}"
    held = status.get("held") or {}
    return [
        (
            f"{produced:,} frames at 50/s, {name}: analyzer without / with it",
            f"p50 {p50:.1f} / {other50:.1f} ms, p99 {p99:.1f} / {other99:.1f} ms, {produced - analyzed} / {produced - other} lost",
            "p99 ≤ 60 ms, 0 lost",
        ),
        (
            "… CPU: analyzer without / with it; the explainer's",
            f"{used[0]:.1f} / {used[1]:.1f} s; {used[2]:.1f} s of {seconds:.0f}{asked}",
            "",
        ),
        (
            "… the explainer's transactions: number; longest; share of the time",
            f"{held.get('count', 0)}; {held.get('longest_ms', 0):.2f} ms; {100 * held.get('total_ms', 0) / 1000 / seconds:.3f} %",
            "reported",
        ),
    ]


def rows(seconds: float) -> list[Row]:
    """No language model, then one of each fault."""
    found = measure("explainer by rules", None, seconds)
    for name, answer in ENDPOINTS.items():
        endpoint = Endpoint(answer)
        try:
            found += measure(f"explainer with an endpoint {name}", endpoint, seconds)
        finally:
            endpoint.close()
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    show("An explainer beside the analyzer", rows(float(sys.argv[1]) if len(sys.argv) > 1 else 60.0))
