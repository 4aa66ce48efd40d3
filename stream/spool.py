"""The disk under a recording: a new file to which whole pieces are appended, and how much room has to stay free."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from interlatent_live.stream.errors import RecordingError, RecordingExists

__all__ = ["KEEP_FREE_BYTES", "KEEP_FREE_SHARE", "Spool", "shortage"]

KEEP_FREE_BYTES: Final = 1 << 30
KEEP_FREE_SHARE: Final = 0.05
"""What a recording leaves free unless told otherwise: 1 GiB, or 5 % of a disk smaller than 20 GiB."""


def shortage(path: Path, keep_free_bytes: int | None) -> str | None:
    """Why a recording at `path` may not grow: less than `keep_free_bytes` are free for this user; None where it may.

    None keeps the default, 0 does not look. File systems that tell no size are not judged.
    """
    if keep_free_bytes == 0:
        return None
    try:
        disk = os.statvfs(path if path.exists() else path.parent)
    except OSError:
        return None  # opening or writing will say what is wrong
    size, free = disk.f_blocks * disk.f_frsize, disk.f_bavail * disk.f_frsize
    wanted = min(KEEP_FREE_BYTES, int(size * KEEP_FREE_SHARE)) if keep_free_bytes is None else keep_free_bytes
    if size == 0 or free >= wanted:
        return None
    return f"{free / 2**20:.0f} MiB are free on its disk, and {wanted / 2**20:.0f} MiB are kept free (keep_free_bytes)"


class Spool:
    """A new file to which whole pieces are appended: `flush` writes everything since the last one, or nothing."""

    def __init__(self, path: Path) -> None:
        self._pid = os.getpid()
        self._pieces = bytearray()
        self._length = 0
        try:
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        except FileExistsError as error:
            raise RecordingExists(
                f"recording {path} exists and is never overwritten; choose another name or remove it"
            ) from error
        except OSError as error:
            raise RecordingError(f"recording {path} cannot be made: {error.strerror}") from error

    def usable(self) -> bool:
        """Whether it is open, and this is the process that opened it."""
        return self._fd >= 0 and self._pid == os.getpid()

    def write(self, data: bytes) -> int:
        """Keep `data` for the next flush."""
        self._pieces += data
        return len(data)

    def tell(self) -> int:
        """Bytes written and kept."""
        return self._length + len(self._pieces)

    def flush(self) -> None:
        """Put what was kept on the disk. Raises OSError, and then none of it is there."""
        rest = memoryview(bytes(self._pieces))
        self._pieces.clear()
        good = self._length
        try:
            while rest:
                written = os.write(self._fd, rest)
                self._length += written
                rest = rest[written:]
        except OSError:
            os.ftruncate(self._fd, good)  # half a chunk is of no use, and its bytes may be what others lack
            self._length = good
            raise

    def close(self) -> None:
        """Close the file, without what was kept. Twice is once."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
