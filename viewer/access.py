"""Who may look: nobody but this machine, unless there is a token, which a browser shows once and keeps in a signed cookie.

Beyond loopback three things are asked for together: the token (a file that only its owner can read), signed sessions and
cookies, whose key is made anew with every start, and a list of origins from which a page may open its socket. Traffic is not
encrypted: outside a network of one's own, put a TLS proxy or `ssh -L` before it.

Who may steer, where the page can: who showed the token that is not for looking alone; without any token, who runs as the same
user on this machine, as the kernel says whose socket the other end is. That is decided when a page is asked for, and stands in
its signed session, which the websocket has to show; a page on a session that somebody else named is for looking only.
"""

from __future__ import annotations

import asyncio
import hmac
import html
import ipaddress
import os
import secrets
import stat
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from bokeh.server.auth_provider import AuthProvider
from tornado.httputil import HTTPServerRequest
from tornado.web import RequestHandler, decode_signed_value

from interlatent_live.stream.errors import EndpointError

__all__ = ["LOOPBACK", "Access", "let_in", "origins_of", "read_token"]

LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "::1"})
MIN_TOKEN: Final = 16
COOKIE: Final = "interlatent-live"
_STEERS, _LOOKS = "1", "look"
"""What the signed cookie says of who showed which token."""
_MAY: Final = "steers"
"""Key of a session's signed payload."""
_NAMED: Final = ("bokeh-session-id", "bokeh-token")
_ATTEMPTS: Final = 10
"""Wrong tokens a minute, from all addresses together; further ones wait."""
_PAGE: Final = """<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><title>Interlatent Live</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 420px; margin: 18vh auto; padding: 0 20px; }}
input, button {{ font: inherit; padding: 8px 12px; width: 100%; box-sizing: border-box; margin-top: 8px; }}
[role=alert] {{ font-weight: 600; }}
</style></head><body><h1>Interlatent Live</h1><p>This page shows an agent to those who hold its token.</p>
<form method="post" action="?next={next}"><label>Token
<input name="token" type="password" autocomplete="current-password" autofocus required></label>
<button>Open</button></form><p role="alert">{said}</p></body></html>"""


def read_token(path: Path) -> str:
    """The token in a file. Raises EndpointError where it is missing, short, or readable by others than its owner."""
    make = f"make one: (umask 077; openssl rand -hex 24 > {path})"
    try:
        mode, token = path.stat().st_mode, path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise EndpointError(f"the token file {path} cannot be read: {error.strerror}; {make}") from error
    except UnicodeDecodeError as error:
        raise EndpointError(f"the token file {path} holds bytes that are no text; {make}") from error
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise EndpointError(f"the token file {path} can be read by others (mode {stat.S_IMODE(mode):o}); run: chmod 600 {path}")
    if len(token) < MIN_TOKEN:
        raise EndpointError(f"the token in {path} has {len(token)} characters; it needs {MIN_TOKEN} at least; {make}")
    return token


def origins_of(origins: Sequence[str], address: str, port: int) -> list[str]:
    """Hosts with ports, as browsers name them, from which a socket may be opened. Raises EndpointError for what is no origin."""
    found = [] if address in ("0.0.0.0", "::") or not port else [_host(address, port)]
    for origin in origins:
        parts = urlsplit(origin if "//" in origin else f"//{origin}")
        if "*" in origin or not parts.hostname or parts.path not in ("", "/"):
            raise EndpointError(f"{origin!r} is no origin: give a host and port as a browser shows them, e.g. robot.local:5580")
        given = parts.port or {"http": 80, "https": 443}.get(parts.scheme, port)
        found.append(_host(parts.hostname, given))
        if given in (80, 443):
            found.append(f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname)  # browsers leave the default port out
    return found


def _host(name: str, port: int) -> str:
    return f"[{name}]:{port}" if ":" in name else f"{name}:{port}"


@dataclass(frozen=True)
class Access:
    """What the server is told: who may look and from where."""

    token: str | None
    origins: tuple[str, ...]
    looking: str | None = None
    """Another token, with which one may look and not steer."""
    secret: str = field(default_factory=lambda: secrets.token_hex(32), repr=False)
    """Signs cookies."""

    @classmethod
    def decide(cls, address: str, port: int, token_file: Path | None, origins: Sequence[str], looking: Path | None = None) -> Access:
        """Loopback needs nothing; any other address needs a token and the names under which browsers will reach it. `looking`: file
        of another token, with which one may look and not steer.

        Raises EndpointError with the command that would be safe.
        """
        token = None if token_file is None else read_token(token_file)
        looks = None if looking is None else read_token(looking)
        if looks is not None and (token is None or token == looks):
            raise EndpointError("a token for looking alone stands beside another one, with which one may do more: give --token-file too")
        here = address in LOOPBACK or _is_loopback(address)
        everywhere = address in ("0.0.0.0", "::")
        if (token is None and (not here or origins)) or (everywhere and not origins):
            lacks = "has no token" if token is None else "needs the names under which browsers reach it"
            at = address if not here else f"{address} for {', '.join(origins)}"
            wide, port = address if not here else "0.0.0.0", port or 5580
            raise EndpointError(
                f"the page would be served beyond this machine, at {at}, and {lacks}. Either forward the port (ssh -L "
                f"{port}:127.0.0.1:{port} this-host), or: (umask 077; openssl rand -hex 24 > page.token) && interlatent-live view "
                f"--db run.db --address {wide} --port {port} --token-file page.token --allow-origin this-host:{port}"
            )
        if not here and not port:
            raise EndpointError(f"beyond this machine the page needs a port that browsers can name; give one, e.g. --port {5580}")
        return cls(token, () if here and not origins else tuple(origins_of(origins, address, port)), looks)

    def admits(self, request: RequestHandler) -> bool:
        """Whether whoever asks may look: by the signed cookie where there is a token; else only under the names of this machine, so that
        no site of another name can read along (DNS rebinding)."""
        if self.token is not None:
            return bool(request.get_signed_cookie(COOKIE, max_age_days=1))
        host = request.request.host
        return (urlsplit(f"//{host}").hostname or "") in LOOPBACK or host in self.origins

    def options(self, steers: bool = False) -> dict[str, Any]:
        """For bokeh.server.server.Server. `steers`: whether the page can reach an agent."""
        extra: dict[str, Any] = {"allow_websocket_origin": list(self.origins)} if self.origins else {}
        if self.token is None and not steers:
            return extra
        key = secrets.token_hex(32)
        extra |= {"sign_sessions": True, "secret_key": key.encode(), "include_headers": [], "include_cookies": []}
        if self.token is None:
            return extra
        return extra | {"auth_provider": _Provider(self.token, self.looking), "cookie_secret": self.secret}

    def payload(self, request: HTTPServerRequest) -> dict[str, Any]:
        """What a new session's signed payload says: whether who asks for the page may steer."""
        return {_MAY: self._steers(request)}

    def _steers(self, request: HTTPServerRequest) -> bool:
        if any(name in request.arguments or name in request.headers for name in _NAMED):
            return False  # a session that others may know
        if self.token is None:
            return _own(request)
        cookie = request.cookies.get(COOKIE)
        said = None if cookie is None else decode_signed_value(self.secret, COOKIE, cookie.value, max_age_days=1)
        return said == _STEERS.encode()


def let_in(context: Any) -> bool:
    """Whether the session of a document may steer."""
    try:
        return context.token_payload.get(_MAY) is True
    except (AttributeError, AssertionError):  # a document without a server
        return False


def _own(request: HTTPServerRequest) -> bool:
    """Whether the other end of the connection is a socket of this very user on this machine. Linux says; elsewhere nobody does."""
    connection: Any = request.connection
    try:
        socket = connection.stream.socket
        there, here = ((ipaddress.ip_address(host), int(port)) for host, port in (socket.getpeername()[:2], socket.getsockname()[:2]))
    except (AttributeError, OSError, ValueError):
        return False
    return there[0].is_loopback and here[0].is_loopback and _user_of(there, here) == os.getuid()


def _user_of(local: tuple[Any, int], remote: tuple[Any, int]) -> int | None:
    """Id of the user who owns the socket with these ends, by /proc/net."""
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text(encoding="ascii").splitlines()[1:]
        except OSError:
            continue
        for words in map(str.split, lines):
            if len(words) > 7 and (_end(words[1]), _end(words[2])) == (local, remote):
                return int(words[7])
    return None


def _end(text: str) -> tuple[Any, int]:
    """Address and port as the kernel writes them: hexadecimal, words of 32 bits in the machine's order."""
    host, _, port = text.partition(":")
    address = ipaddress.ip_address(b"".join(int(host[i : i + 8], 16).to_bytes(4, sys.byteorder) for i in range(0, len(host), 8)))
    return getattr(address, "ipv4_mapped", None) or address, int(port, 16)


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


class _Provider(AuthProvider):
    """A token, once; then a cookie that this server has signed."""

    def __init__(self, token: str, looking: str | None = None) -> None:
        self._wrong: deque[float] = deque(maxlen=_ATTEMPTS)
        provider = self

        class Login(RequestHandler):
            """Where a browser shows its token: a form, or `?token=` in a link, which is then taken out of the address."""

            def set_default_headers(self) -> None:
                self.set_header("Referrer-Policy", "no-referrer")
                self.set_header("Cache-Control", "no-store")
                self.set_header("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'")

            async def get(self) -> None:
                self._form("")

            async def post(self) -> None:
                given = self.get_body_argument("token", "")
                looks = looking is not None and hmac.compare_digest(given.encode(), looking.encode())
                if looks or await provider.right(given, token):
                    secure, may = self.request.protocol == "https", _LOOKS if looks else _STEERS
                    self.set_signed_cookie(COOKIE, may, expires_days=1, httponly=True, samesite="Strict", secure=secure)
                    self.redirect(_inside(self.get_query_argument("next", "/")))
                else:
                    self.set_status(403)
                    self._form("That is not the token.")

            def _form(self, said: str) -> None:
                where = html.escape(_quoted(_inside(self.get_query_argument("next", "/"))))
                self.finish(_PAGE.format(next=where, said=html.escape(said)))

        self._login = Login
        super().__init__()

    async def right(self, given: str, token: str) -> bool:
        """Whether a token is right; wrong ones, when many, are answered ever more slowly."""
        now = time.monotonic()
        if len(self._wrong) == _ATTEMPTS and now - self._wrong[0] < 60:
            await asyncio.sleep(3.0)
        if hmac.compare_digest(given.encode(), token.encode()):
            return True
        self._wrong.append(now)
        return False

    @property
    def get_user(self) -> Any:
        """From a request: who it is, or None."""
        return lambda handler: handler.get_signed_cookie(COOKIE, max_age_days=1)

    @property
    def login_url(self) -> str:
        """Where those without a cookie are sent."""
        return "/login"

    @property
    def login_handler(self) -> type[RequestHandler]:
        """What answers there."""
        return self._login


def _inside(path: str) -> str:
    """A place on this server, whatever a link said."""
    parts = urlsplit(path)
    return path if path.startswith("/") and not path.startswith(("//", "/\\")) and not parts.netloc else "/"


def _quoted(path: str) -> str:
    from urllib.parse import quote

    return quote(path, safe="/")
