"""Secrets of the control channel: the token of a run, and CURVE keys of hosts that may steer from elsewhere.

Everything lies in folders of mode 0700, in files of mode 0600, below XDG_STATE_HOME (`~/.local/state`) or XDG_CONFIG_HOME
(`~/.config`); runtime directories are taken for tokens where the system has one. A key is made by libsodium or tweetnacl,
which libzmq carries; files are ZeroMQ certificates as `zmq.auth` reads them.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from pathlib import Path
from typing import Final

import zmq
import zmq.auth

from interlatent_live.stream.errors import SteeringError

__all__ = ["KeyRing", "named_token", "private_folder", "read_token", "release_file", "remove_token", "write_token"]

_FOLDER: Final = "interlatent-live"
_TOKEN_BYTES: Final = 32
_MAX_TOKEN: Final = 512


def private_folder(path: Path) -> Path:
    """Make a folder of mode 0700, or see that it is one and ours. Raises SteeringError."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = path.stat()
    except OSError as error:
        raise SteeringError(f"{path}: {error.strerror}; a private folder is needed there", reason="keys") from error
    if status.st_uid != os.getuid():
        raise SteeringError(f"{path} belongs to user {status.st_uid}; secrets need a folder of your own", reason="keys")
    if stat.S_IMODE(status.st_mode) & 0o077:
        path.chmod(0o700)
    return path


def token_folders() -> tuple[Path, ...]:
    """Where tokens may lie; a new one is written into the first."""
    runtime, state = os.environ.get("XDG_RUNTIME_DIR"), os.environ.get("XDG_STATE_HOME")
    found = [Path(runtime)] if runtime and os.access(runtime, os.W_OK) else []
    found += [Path(state)] if state else []
    return tuple(place / _FOLDER for place in (*found, Path.home() / ".local" / "state"))


def named_token(path: str) -> Path:
    """The file that a manifest names, if it is a token's. A manifest is not signed: any other file would be read, and sent to
    whoever wrote it. Raises SteeringError."""
    file = Path(path)
    try:
        place = file.resolve().parent
        known = [folder.resolve() for folder in token_folders()]
    except (OSError, ValueError, RuntimeError) as error:
        raise SteeringError(f"{path[:200]!r} cannot be looked at ({error})", reason="token") from error
    if file.suffix != ".token" or place not in known:
        raise SteeringError(f"the stream names {path[:200]!r}, which is no token of yours; if you trust it: --token FILE", reason="token")
    return file


def write_token(run: str, boot: str, endpoint: str) -> tuple[str, Path]:
    """A new token and its file, mode 0600, which nobody could read for a moment either; with the address that it is for, so
    that nobody can have it sent elsewhere. Raises SteeringError."""
    token = secrets.token_urlsafe(_TOKEN_BYTES)
    folder = private_folder(token_folders()[0])
    _sweep(folder)
    path = folder / f"{run}-{boot}.token"
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0), 0o600)
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(f"{token}\n{endpoint}\n{os.getpid()}\n")
    except OSError as error:
        raise SteeringError(f"{path}: {error.strerror}; the token of the control channel needs a file there", reason="keys") from error
    return token, path


def _sweep(folder: Path) -> None:
    """Take away tokens of processes that ended without doing so."""
    for path in folder.glob("*.token"):
        try:
            pid = int(path.read_text("ascii").split("\n")[2])
            os.kill(pid, 0)
        except (ProcessLookupError, IndexError, ValueError):
            remove_token(path)
        except OSError:  # of another's process by now, or gone meanwhile
            continue


def read_token(path: str | os.PathLike[str]) -> tuple[str, str]:
    """Token and address in a file that is ours and that nobody else may read. Raises SteeringError."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        with os.fdopen(handle, "rb") as file:
            status = os.fstat(file.fileno())
            if status.st_uid != os.getuid():
                raise SteeringError(f"{path} belongs to user {status.st_uid}; a token is a file of your own", reason="token")
            if stat.S_IMODE(status.st_mode) & 0o077:
                mode = stat.filemode(status.st_mode)
                raise SteeringError(f"{path} is {mode}: others may read it, so it is no secret; chmod 600 it", reason="token")
            token, endpoint, _ = (*file.read(_MAX_TOKEN).decode("ascii").split("\n"), "", "")[:3]
    except FileNotFoundError as error:
        remedy = "the agent has ended, or runs elsewhere (copy its token, --token FILE)"
        raise SteeringError(f"{path} is not there: {remedy}", reason="token") from error
    except (OSError, UnicodeDecodeError) as error:
        raise SteeringError(f"{path} cannot be read as a token ({error}); ask the agent's owner", reason="token") from error
    if not token:
        raise SteeringError(f"{path} is empty; start the agent again", reason="token")
    return token.strip(), endpoint.strip()


def release_file(token_file: str | os.PathLike[str]) -> Path:
    """A file whose appearance beside the token releases everything: no socket, so no flood, is in its way."""
    return Path(token_file).with_suffix(".release")


def remove_token(path: Path) -> None:
    """Take away a token and what lies beside it."""
    for file in (path, release_file(path)):
        with contextlib.suppress(OSError):
            file.unlink()


class KeyRing:
    """A folder of CURVE keys: our own, and the public ones of those who are known.

        server.key server.key_secret     of agents on this machine
        client.key client.key_secret     of those who steer from this machine
        clients/NAME.key                 who may steer the agents here
        servers/NAME.key                 whose agents are steered from here
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        config = os.environ.get("XDG_CONFIG_HOME")
        default = (Path(config) if config else Path.home() / ".config") / _FOLDER / "keys"
        self.folder = default if folder is None else Path(folder)

    def make(self) -> dict[str, str]:
        """Make what is missing of our own two pairs; their public keys, by 'server' and 'client'."""
        if not zmq.has("curve"):
            raise SteeringError("this build of libzmq has no CURVE; install pyzmq from its wheel", reason="keys")
        folder = private_folder(self.folder)
        found = {}
        for name in ("server", "client"):
            if not (folder / f"{name}.key_secret").exists():
                before = os.umask(0o077)
                try:
                    zmq.auth.create_certificates(str(folder), name)
                finally:
                    os.umask(before)
            found[name] = self.pair(name)[0]
        for kind in ("clients", "servers"):
            private_folder(folder / kind)
        return found

    def has(self, name: str) -> bool:
        """Whether there is our own 'server' or 'client' key."""
        return (self.folder / f"{name}.key_secret").exists()

    def pair(self, name: str) -> tuple[str, str]:
        """Public and secret key of our 'server' or 'client', Z85. Raises SteeringError."""
        path = self.folder / f"{name}.key_secret"
        if not path.exists():
            raise SteeringError(f"there is no {path}; make keys: interlatent-live keys make", reason="keys")
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise SteeringError(f"{path} may be read by others, so it is no secret; chmod 600 it, or make new keys", reason="keys")
        public, secret = _certificate(path)
        if secret is None:
            raise SteeringError(f"{path} holds no secret key; make keys again", reason="keys")
        return public, secret

    def known(self, kind: str) -> dict[str, str]:
        """Name to public key of the 'clients' or 'servers' that are known."""
        folder = self.folder / kind
        return {path.stem: _certificate(path)[0] for path in sorted(folder.glob("*.key"))} if folder.is_dir() else {}

    def allow(self, kind: str, name: str, key: str) -> Path:
        """Write down a public key. Raises SteeringError for what is none, or a name that is taken."""
        if not name or not all(c.isalnum() or c in "-_." for c in name) or name.startswith(".") or len(name) > 64:
            raise SteeringError(f"{name!r} is no name of a key; take letters, digits, '-', '_' and '.'", reason="keys")
        if len(key) != 40:
            raise SteeringError(f"a public key has 40 characters, not {len(key)}; `interlatent-live keys list` shows one", reason="keys")
        try:
            zmq.utils.z85.decode(key.encode("ascii"))
        except (ValueError, KeyError, UnicodeEncodeError) as error:
            raise SteeringError(f"{key!r} is no public key; `interlatent-live keys list` shows one", reason="keys") from error
        path = private_folder(self.folder / kind) / f"{name}.key"
        if path.exists():
            raise SteeringError(f"{path} is there already; remove it first, or take another name", reason="keys")
        path.write_text(f'metadata\ncurve\n    public-key = "{key}"\n', encoding="ascii")
        path.chmod(0o600)
        return path


def _certificate(path: Path) -> tuple[str, str | None]:
    try:
        public, secret = zmq.auth.load_certificate(str(path))
    except (OSError, ValueError) as error:
        raise SteeringError(f"{path} is no ZeroMQ certificate ({error}); make it again", reason="keys") from error
    if public is None:
        raise SteeringError(f"{path} holds no public key; make it again", reason="keys")
    return public.decode("ascii"), None if secret is None else secret.decode("ascii")
