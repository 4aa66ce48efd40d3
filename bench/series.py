"""What a page costs its server, without a browser: CPU time a step, with 12 series and with 50, at twenty steps a second.

`python -m bench.series [SECONDS]`. A real agent at 50 steps/s with pictures and attribution, its analyzer, and page servers of which
each is asked by one client that reads what comes and draws nothing. CPU time a step times 20 is the share of a core at 20 Hz: it
hardly depends on what else the machine does, where steps are late; the share as it was is told beside it.
"""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from tornado.websocket import websocket_connect

from .page import cpu_s
from .table import Row, show

RATE_HZ = 20
SERVE = """
import sys
from pathlib import Path
from interlatent_live.viewer import view
from interlatent_live.viewer.app import serve
view.MAX_PINS = int(sys.argv[2])
serve(Path(sys.argv[1]), port=0, on_ready=lambda url: print(url, flush=True))
"""


@contextmanager
def acting(folder: Path, seconds: float) -> Iterator[Path]:
    """A demo that writes a database; its own page is not looked at."""
    command = [
        sys.executable, "-m", "interlatent_live", "demo", "--agent", "cartpole", "--seconds", str(seconds), "--no-open", "--port", "0",
        "--db", str(folder / "r.db"), "--record", str(folder / "r.mcap"),
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    next(line for line in process.stderr if "is live at" in line)
    try:
        yield folder / "r.db"
    finally:
        process.terminate()
        process.communicate(timeout=60)


async def watched(pid: int, url: str, pins: int, seconds: float) -> tuple[float, float, float]:
    """Steps, CPU seconds of the server, and seconds passed, once a page with so many pairs is told of them."""
    what = "&".join(f"pin={quote(f'{i}~pole_angle' if i % 2 else f'{i}~cart_position')}" for i in range(pins))
    html = await asyncio.to_thread(lambda: urllib.request.urlopen(f"{url}?{what}").read().decode())
    token = re.search(r'"token":\s*"([^"]+)"', html)
    assert token is not None
    host = url.replace("http", "ws", 1)
    bokeh = await websocket_connect(f"{host}ws", subprotocols=["bokeh", token[1]])
    assert "ACK" in str(await bokeh.read_message())
    for part in (json.dumps({"msgid": "1", "msgtype": "PULL-DOC-REQ"}), "{}", "{}"):
        await bokeh.write_message(part)
    name = None
    while name is None:
        name = re.search(r'\["line",\s*"([\w-]+)"\]', str(await bokeh.read_message()))
    drain = asyncio.ensure_future(_drain(bokeh))
    line = await websocket_connect(f"{host}line?page={name[1]}")
    series, began, steps, before = 0, 0.0, 0, 0.0
    while not began or time.monotonic() - began < seconds:
        message = await line.read_message()
        assert isinstance(message, bytes)
        length = int.from_bytes(message[:4], "little")
        steps += 1
        if b'"frames"' in message[4 : 4 + length] and not series:
            found = re.search(rb'"series": (\d+)', message)
            series = int(found[1]) if found else 0
            assert series in (0, 2 * pins), f"{series} series instead of {2 * pins}"
        if not began and series == 2 * pins and steps > 3 * RATE_HZ:
            began, steps, before = time.monotonic(), 0, cpu_s(pid)
    used, passed = cpu_s(pid) - before, time.monotonic() - began
    line.close()
    drain.cancel()
    bokeh.close()
    return steps, used, passed


async def _drain(socket: object) -> None:
    while await socket.read_message() is not None:  # type: ignore[attr-defined]
        pass


def measure(seconds: float) -> list[Row]:
    """One row for each number of series."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as kept, acting(Path(kept), 3 * seconds + 120) as db:
        time.sleep(35)  # a whole window of frames
        for pins in (6, 25):
            command = [sys.executable, "-c", SERVE, str(db), str(pins)]
            server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            assert server.stdout is not None
            try:
                steps, used, passed = asyncio.run(watched(server.pid, server.stdout.readline().strip(), pins, seconds))
            finally:
                server.terminate()
                server.communicate(timeout=30)
            name = f"server, 24 features in rows and {2 * pins} series at 20 Hz, with pictures: CPU time a step times 20"
            share = f"{100 * RATE_HZ * used / steps:.1f} % of a core ({1e3 * used / steps:.1f} ms a step; {100 * used / passed:.1f} % "
            rows.append((name, f"{share}at the {steps / passed:.0f} steps a second that there were)", "≤ 10 %"))
    return rows


if __name__ == "__main__":
    show("What a page costs its server", measure(float(sys.argv[1]) if len(sys.argv) > 1 else 40.0))
