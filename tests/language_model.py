"""A small OpenAI-compatible server on a real socket that can misbehave in every way one has been seen to."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

__all__ = ["GOOD", "LanguageModel", "completion"]

GOOD = {
    "label": "angle high", "description": "Active when the angle is above 0.5 rad.",
    "predicate": {"join": "or", "groups": [[{"metric": "angle", "comparison": ">", "value": 0.5}]]},
}  # fmt: skip


def completion(text: str | None, finish: str = "stop") -> dict[str, Any]:
    """A chat completion."""
    return {
        "id": "c", "object": "chat.completion", "created": 0, "model": "toy",
        "choices": [{"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text}}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120},
    }  # fmt: skip


class LanguageModel:
    """`answer(body)` gives (status, headers, bytes or JSON), or None to drop the connection. `bodies` are what was asked."""

    def __init__(self, answer: Callable[[dict[str, Any]], Any] | None = None) -> None:
        self.answer: Callable[[dict[str, Any]], Any] = answer or (lambda body: (200, {}, completion(json.dumps(GOOD))))
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.open = self.most_open = 0
        self.released = threading.Event()
        outer, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with lock:
                    outer.bodies.append(body)
                    outer.keys.append(self.headers.get("authorization", ""))
                    outer.open += 1
                    outer.most_open = max(outer.most_open, outer.open)
                try:
                    self.reply(outer.answer(body))
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True
                finally:
                    with lock:
                        outer.open -= 1

            def reply(self, said: Any) -> None:
                if said is None:
                    self.close_connection = True
                    return
                status, headers, content = said
                data = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                headers = {"content-type": "application/json", "content-length": str(len(data)), **headers}
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)
                if int(headers["content-length"]) > len(data):
                    self.close_connection = True

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def stall(self, body: dict[str, Any]) -> Any:
        """An answer that does not come until `close`."""
        self.released.wait(30)

    def close(self) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()
