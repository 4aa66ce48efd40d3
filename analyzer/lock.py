"""A lock beside a database: one process at a time writes a part of it. The lock dies with its process."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

from interlatent_live.stream.errors import StoreError

__all__ = ["FileLock"]


class FileLock:
    """Held from construction to `release`; its file holds the process's number, for the message of who comes second."""

    def __init__(self, path: Path, part: str, doing: str) -> None:
        """`part` names the file beside `path`, `doing` what is being done to it. Raises StoreError where it is held."""
        self._name = path.with_name(f"{path.name}-{part}")
        while True:
            try:
                handle = os.open(self._name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            except OSError as error:
                raise StoreError(f"{self._name}: {error.strerror}; check that its folder exists and may be written") from error
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                holder = os.read(handle, 32).decode("ascii", "replace").strip() or "unknown"
                os.close(handle)
                raise StoreError(f"{path} is being {doing} by process {holder}; end it, or name another file") from error
            try:
                same = os.fstat(handle).st_ino == os.stat(self._name).st_ino
            except FileNotFoundError:
                same = False
            if same:
                break
            os.close(handle)  # its former holder removed it between our open and our lock
        with contextlib.suppress(OSError):  # a full disk: the number is only for the message above
            os.ftruncate(handle, 0)
            os.write(handle, str(os.getpid()).encode())
        self._handle: int | None = handle

    def release(self) -> None:
        """Let go, and take the file away. Twice is once."""
        if self._handle is None:
            return
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._name)
        os.close(self._handle)
        self._handle = None
