"""What a training run says of itself in a small file beside the artifact it works towards, for a page to show. No torch.

`.NAME.learning.json` in the artifact's folder: replaced whole, at most twice a second; removed when the artifact is there; left
with its `error` where there will be none.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

__all__ = ["FRESH_S", "Announcement", "announced"]

FRESH_S: Final = 15.0
"""Seconds after which a file that is not replaced any more is of a run that died."""
_ERROR_S: Final = 120.0
_PREFIX, _SUFFIX = ".", ".learning.json"
_MAX_BYTES: Final = 1 << 16


class Announcement:
    """The file of one run; a disk that is full costs the news alone."""

    def __init__(self, target: Path) -> None:
        self.name = target.name
        self.path = target.with_name(f"{_PREFIX}{target.name}{_SUFFIX}")

    def write(self, news: Mapping[str, Any]) -> None:
        """Replace what was said."""
        work = self.path.with_name(f"{self.path.name}.{os.getpid()}")
        with contextlib.suppress(OSError):
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                work.write_text(json.dumps({**news, "name": self.name, "pid": os.getpid(), "wall_s": time.time()}), encoding="utf-8")
                os.replace(work, self.path)
            finally:
                work.unlink(missing_ok=True)

    def remove(self) -> None:
        """Nothing more to say."""
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)


def announced(folder: Path) -> dict[str, Any] | None:
    """What the newest run in a folder says, if it still runs or has just failed; None for nothing."""
    newest: dict[str, Any] | None = None
    try:
        entries = [e for e in os.scandir(folder) if e.name.startswith(_PREFIX) and e.name.endswith(_SUFFIX)]
    except OSError:
        return None
    for entry in entries:
        try:
            if entry.stat().st_size > _MAX_BYTES:
                continue
            news = json.loads(Path(entry.path).read_text(encoding="utf-8"))
            wall_s = float(news["wall_s"])
        except (OSError, ValueError, KeyError, TypeError):  # being replaced, or not ours
            continue
        age = time.time() - wall_s
        if age < (_ERROR_S if news.get("error") else FRESH_S) and (newest is None or wall_s > newest["wall_s"]):
            newest = news
    return newest
