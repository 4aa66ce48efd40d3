"""The page beyond loopback: refused without a token, with the command that would be safe; then a form, a signed cookie, known origins."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import quote

import pytest
from tests.store_builder import StoreBuilder
from tests.test_page import ARGS, CHROMIUM, becomes, needs_browser
from tornado.httpclient import HTTPClientError, HTTPRequest
from tornado.websocket import websocket_connect

from interlatent_live.stream.errors import EndpointError
from interlatent_live.viewer.access import Access, origins_of, read_token

TOKEN = "a-token-of-twenty-six-chars"
SERVE = """
import sys, warnings
warnings.simplefilter("error")
from pathlib import Path
from interlatent_live.viewer.app import serve
serve(Path(sys.argv[1]), port=0, token_file=Path(sys.argv[2]), on_ready=lambda url: print(url, flush=True))
"""


@pytest.fixture
def token(tmp_path: Path) -> Path:
    path = tmp_path / "page.token"
    path.write_text(TOKEN + "\n")
    path.chmod(0o600)
    return path


def test_beyond_this_machine_only_with_a_token_and_names(token: Path, tmp_path: Path) -> None:
    for address in ("0.0.0.0", "::", "192.168.1.7", "robot.local"):
        with pytest.raises(EndpointError, match=r"beyond this machine.*umask 077.*--token-file page\.token --allow-origin"):
            Access.decide(address, 5580, None, ("robot.local:5580",))
    with pytest.raises(EndpointError, match="names under which"):
        Access.decide("0.0.0.0", 5580, token, ())
    with pytest.raises(EndpointError, match="has no token"):
        Access.decide("127.0.0.1", 5580, None, ("proxy.example",))
    assert Access.decide("127.0.0.1", 0, None, ()).options() == {}
    assert Access.decide("127.0.0.2", 0, None, ()).token is None
    options = Access.decide("0.0.0.0", 5580, token, ("https://robot.local", "[fe80::1]:81")).options()
    assert options["sign_sessions"] is True
    assert options["allow_websocket_origin"] == ["robot.local:443", "robot.local", "[fe80::1]:81"]
    for wrong in ("*", "*.robot.local", "robot.local/path", "http://"):
        with pytest.raises(EndpointError, match="no origin"):
            origins_of([wrong], "127.0.0.1", 1)


def test_a_token_file_is_long_and_private(token: Path) -> None:
    assert read_token(token) == TOKEN
    token.chmod(0o640)
    with pytest.raises(EndpointError, match="chmod 600"):
        read_token(token)
    token.chmod(0o600)
    token.write_text("short")
    with pytest.raises(EndpointError, match="5 characters; it needs 16"):
        read_token(token)
    token.write_bytes(b"\xff" * 30)
    with pytest.raises(EndpointError, match="no text"):
        read_token(token)
    with pytest.raises(EndpointError, match="No such file"):
        read_token(token.with_name("none"))


@pytest.fixture
def guarded(token: Path, tmp_path: Path) -> Iterator[int]:
    builder = StoreBuilder(tmp_path / "run.db")
    builder.frames(300)
    builder.snapshot()
    builder.accounts(ended=True)
    builder.close()
    process = subprocess.Popen([sys.executable, "-c", SERVE, str(tmp_path / "run.db"), str(token)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    yield int(process.stdout.readline().rsplit(":", 1)[1].strip("/\n"))
    process.terminate()
    process.communicate(timeout=30)


def _ask(port: int, method: str, path: str, body: str = "", cookie: str = "") -> tuple[int, dict[str, str], str]:
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    headers = {"Content-Type": "application/x-www-form-urlencoded"} | ({"Cookie": cookie} if cookie else {})
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    found = answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read().decode()
    connection.close()
    return found


def test_without_its_cookie_there_is_no_page_and_no_socket(guarded: int) -> None:
    status, headers, _ = _ask(guarded, "GET", "/?at=5")
    assert (status, headers["location"]) == (302, "/login?next=%2F%3Fat%3D5")
    assert _ask(guarded, "GET", "/?at=5", cookie="interlatent-live=1")[0] == 302, "a cookie that nobody signed"
    assert _ask(guarded, "GET", "/login?next=//evil.example/")[2].count("evil") == 0
    status, headers, body = _ask(guarded, "POST", "/login", "token=wrong")
    assert (status, "set-cookie" in headers) == (403, False)
    assert "not the token" in body

    async def connect(origin: str) -> None:
        url = f"ws://127.0.0.1:{guarded}/ws"
        request = HTTPRequest(url, headers={"Origin": origin, "Sec-WebSocket-Protocol": "bokeh, x"})
        socket = await websocket_connect(request)
        while await socket.read_message() is not None:
            pass

    with pytest.raises(HTTPClientError):
        asyncio.run(connect("http://evil.example"))
    status, headers, _ = _ask(guarded, "POST", "/login?next=/%3Fat%3D5", f"token={TOKEN}")
    assert (status, headers["location"]) == (302, "/?at=5")
    cookie = headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert TOKEN not in cookie
    status, _, body = _ask(guarded, "GET", "/?at=5", cookie=cookie.split(";")[0])
    assert status == 200
    assert TOKEN not in body
    for where in ("//evil.example/", "https://evil.example/", "/\\evil.example"):
        assert _ask(guarded, "POST", f"/login?next={quote(where, safe='')}", f"token={TOKEN}")[1]["location"] == "/"


@needs_browser
def test_a_browser_shows_the_token_and_then_sees_the_page(guarded: int) -> None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=ARGS.split())
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{guarded}/?at=7")
        page.get_by_label("Token").fill(TOKEN)
        page.get_by_role("button", name="Open").click()
        becomes(page, "document.body && document.body.dataset.view == 'running'")
        becomes(page, "document.querySelector('[data-text=step]').textContent == '7'")
        browser.close()
