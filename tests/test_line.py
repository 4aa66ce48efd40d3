"""The line beside Bokeh's connection: what a message is, who may open it, and that nothing is missing where a browser reads late."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.store_builder import StoreBuilder
from tests.test_page import BUILDER, Served
from tornado.httpclient import HTTPClientError, HTTPRequest
from tornado.websocket import WebSocketClientConnection, websocket_connect

from interlatent_live.viewer.line import packed

Told = dict[str, dict[str, str | bytes]]


def taken_apart(message: bytes) -> Told:
    """As line.js does, from the layout in line.py's docstring."""
    length = int.from_bytes(message[:4], "little")
    told: Told = {}
    at = -(-(4 + length) // 8) * 8
    for name, column, kind, size in json.loads(message[4 : 4 + length]):
        part = message[at : at + size]
        told.setdefault(name, {})[column] = part.decode() if kind == "t" else part
        at += -(-size // 8) * 8
    assert at == len(message)
    return told


@given(st.dictionaries(st.text(max_size=5), st.dictionaries(st.text(max_size=5), st.text() | st.binary(), min_size=1, max_size=3)))
def test_a_message_is_what_went_in(told: Told) -> None:
    assert taken_apart(packed(told)) == told


def test_numbers_in_a_message_are_aligned() -> None:
    message = packed({"é": {"json": "ü", "bytes": b"\x01"}, "n": {"bytes": b"12345678"}})
    assert message.index(b"12345678") % 8 == message.index(b"\x01\0\0\0\0\0\0\0") % 8 == 0


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    db = tmp_path_factory.mktemp("line") / "run.db"
    writer = subprocess.Popen([sys.executable, str(BUILDER), str(db), "--seconds", "300"])
    server = Served(db)
    yield server
    writer.kill()
    writer.wait()
    said = server.close().splitlines()
    assert [words for words in said if not words.startswith("403 GET /line")] == [], "nothing but who was refused"


@asynccontextmanager
async def tab(url: str) -> AsyncIterator[str]:
    """A document loaded and kept, as a browser does; the name of its line, which it alone is told."""
    html = await asyncio.to_thread(lambda: urllib.request.urlopen(url).read().decode())
    token = re.search(r'"token":\s*"([^"]+)"', html)
    assert token is not None
    opened = await websocket_connect(f"{url.replace('http', 'ws', 1)}ws", subprotocols=["bokeh", token[1]])
    assert "ACK" in str(await asyncio.wait_for(opened.read_message(), 60))
    for part in (json.dumps({"msgid": "1", "msgtype": "PULL-DOC-REQ"}), "{}", "{}"):
        await opened.write_message(part)
    found = None
    while found is None:
        answer = await asyncio.wait_for(opened.read_message(), 30)
        assert answer is not None
        found = re.search(r'\["line",\s*"([\w-]{20,})"\]', str(answer))
    yield found[1]
    await gone(opened)


async def line(url: str, name: str, **headers: str) -> WebSocketClientConnection:
    return await websocket_connect(HTTPRequest(f"{url.replace('http', 'ws', 1)}line?page={name}", headers=headers))


async def gone(opened: WebSocketClientConnection) -> None:
    """Close it at once, as a tab that is closed does."""
    assert opened.protocol is not None
    stream: Any = opened.protocol.stream
    opened.close()
    stream.close()
    await asyncio.sleep(0)


async def messages(opened: WebSocketClientConnection, seconds: float) -> list[Told]:
    """All that come in so many seconds."""
    found, end = [], time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        try:
            message = await asyncio.wait_for(opened.read_message(), left)
        except TimeoutError:
            break
        assert isinstance(message, bytes)
        found.append(taken_apart(message))
    return found


async def until(opened: WebSocketClientConnection, good: Any, seconds: float = 60) -> Told:
    """The first message that is good."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        message = await asyncio.wait_for(opened.read_message(), end - time.monotonic())
        assert isinstance(message, bytes)
        if good(told := taken_apart(message)):
            return told
    raise AssertionError("no such message")


def place(told: Told) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(told["frames"]["json"]) if "frames" in told else {}
    return found


def test_the_first_message_is_whole_and_the_next_ones_follow_it(live: Served) -> None:
    async def look() -> None:
        async with tab(live.url) as name:
            end = time.monotonic() + 60
            while time.monotonic() < end:  # the writer may still be starting
                opened = await line(live.url, name)
                first = await until(opened, lambda told: "frames" in told)
                if place(first)["newest"] > 50:
                    break
                await gone(opened)
            assert {"frames", "state", "timeline", "picture"} <= set(first)
            assert place(first)["fresh"]
            jpeg = first["picture"]["jpeg"]
            assert isinstance(jpeg, bytes)
            assert jpeg[:2] == b"\xff\xd8"
            head = place(first)["first"] + place(first)["count"]
            newest = place(first)["newest"]
            for _ in range(20):
                now = place(await until(opened, lambda told: "frames" in told))
                assert not now["fresh"]
                assert now["newest"] >= newest
                newest = now["newest"]
                if now["count"]:
                    assert now["first"] <= head, "no column is missing"
                    head = now["first"] + now["count"]
            await gone(opened)

    asyncio.run(look())


def test_a_tab_that_nobody_sees_costs_little_and_misses_nothing(live: Served) -> None:
    async def look() -> None:
        async with tab(live.url) as name:
            opened = await line(live.url, name)
            first = place(await until(opened, lambda told: place(told).get("newest", 0) > 50))
            head = first["first"] + first["count"]
            await opened.write_message("hidden")
            await messages(opened, 0.5)
            hidden = await messages(opened, 4)
            assert 1 <= len([told for told in hidden if "frames" in told]) <= 6, "one a second, not twenty"
            await opened.write_message("nonsense")
            await opened.write_message("seen")
            seen: list[Told] = []
            end = time.monotonic() + 60
            while len(seen) < 20 and time.monotonic() < end:
                seen += await messages(opened, 0.5)
            assert len(seen) >= 20
            begin = head
            for told in (place(one) for one in hidden + seen if place(one).get("count")):
                assert told["fresh"] or told["first"] <= head, "a whole one where what is drawn changed, else what follows"
                head = told["first"] + told["count"]
            assert head > begin
            await gone(opened)

    asyncio.run(look())


def test_nobody_else_may_open_it(live: Served) -> None:
    async def refused(name: str, **headers: str) -> int:
        with pytest.raises(HTTPClientError) as error:
            await line(live.url, name, **headers)
        return error.value.code

    async def look() -> None:
        async with tab(live.url) as name:
            assert await refused(name, Origin="http://evil.example") == 403
            assert await refused(name, Host="evil.example") == 403
            unknown = await line(live.url, "A" * 22)
            assert await asyncio.wait_for(unknown.read_message(), 30) is None
            assert unknown.close_code == 4404
            unknown.close()

    asyncio.run(look())


def test_a_tab_that_goes_away_leaves_nothing_behind(tmp_path: Path) -> None:
    builder = StoreBuilder(tmp_path / "run.db")
    builder.frames(300)
    builder.accounts()
    builder.close()
    server = Served(tmp_path / "run.db")

    async def look() -> None:
        async with tab(server.url) as name:
            opened = await line(server.url, name)
            await until(opened, lambda told: "frames" in told)
            await gone(opened)
            again = await line(server.url, name)
            assert place(await until(again, lambda told: "frames" in told))["fresh"]
            await gone(again)

    asyncio.run(look())
    assert server.close() == ""


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_browser_that_does_not_read_fills_no_memory_and_misses_nothing(live: Served) -> None:
    host, port = live.url.removeprefix("http://").strip("/").split(":")
    async def look() -> None:
        async with tab(live.url) as name:
            await asyncio.to_thread(deaf, name)

    def deaf(name: str) -> None:
        with socket.socket() as raw:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            raw.connect((host, int(port)))
            key = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: x3JJHMbDL1EzLkh9GBhXDw==\r\nSec-WebSocket-Version: 13"
            raw.sendall(f"GET /line?page={name} HTTP/1.1\r\nHost: {host}:{port}\r\n{key}\r\n\r\n".encode())
            time.sleep(5)
            before = _rss_mib(live.process.pid)
            time.sleep(60)
            assert _rss_mib(live.process.pid) - before < 6, "what is new waits in the window, not in the socket"
            urllib.request.urlopen(live.url).read()

    asyncio.run(look())


def _rss_mib(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 / 2**20
