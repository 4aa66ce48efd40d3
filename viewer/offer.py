"""Where there is no dictionary for the agent's weights, the page offers to learn one: the exact command, and a button that starts it.

Everything in the command comes from the database: the endpoint and the followed folder as the analyzer noted them, tap points and
widths from the manifest. The button hands the same words to a callable that the command line gave (`viewer.app.serve`), without
a shell; a page that was given none shows the command alone.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from interlatent_live.analyzer.announcement import announced
from interlatent_live.analyzer.following import follow_folder
from interlatent_live.analyzer.intake import suggested_points
from interlatent_live.stream.errors import DictionaryError
from interlatent_live.stream.manifest import Manifest
from interlatent_live.viewer.feed import Feed
from interlatent_live.viewer.text import plain

__all__ = ["Offer", "Starter", "offer", "told"]

Starter = Callable[[Sequence[str]], None]
"""Starts `interlatent-live` with these words; one that runs already is left alone."""
MAX_FEATURES: Final = 4096
K: Final = 8


@dataclass(frozen=True, slots=True)
class Offer:
    """A training run that could be started."""

    words: tuple[str, ...]
    """After `interlatent-live`."""
    folder: Path
    """Where the dictionary will be."""
    live: bool
    """Whether it learns from the stream; else from the recording that was analysed."""

    @property
    def command(self) -> str:
        """For a terminal in the folder in which the page was started."""
        return shlex.join(["interlatent-live", *self.words])


def offer(manifest: Manifest | None, origin: Mapping[str, str], db: Path) -> Offer | None:
    """What can be learned from where these frames come from; None where that is not known, or there is no tap point."""
    if manifest is None or not (origin.get("endpoint") or origin.get("recording")):
        return None
    try:
        read, predicted = suggested_points(manifest)
    except DictionaryError:
        return None
    point = manifest.point(predicted)
    width = math.prod(point.shape) if point is not None else 1
    features = max(16, min(MAX_FEATURES, 4 * width))
    folder = Path(origin.get("follows") or follow_folder(db))
    target = next(folder / name for name in _names() if not (folder / name).exists())
    points = ["--input", read, "--output", predicted, "--features", str(features), "--k", str(min(K, features)), "--out", _short(target)]
    live = bool(origin.get("endpoint"))
    source = ["--connect", origin["endpoint"], "--live"] if live else [_short(Path(origin["recording"]))]
    return Offer(("dict", "train", *source, *points), target, live)


def told(feed: Feed, starter: Starter | None) -> dict[str, Any] | None:
    """What the page shows: None where the features are a dictionary's already and none is being learned."""
    neurons = feed.dictionary is not None and feed.dictionary.kind == "neurons"
    folder = Path(feed.origin.get("follows") or follow_folder(feed.path))
    news = announced(folder) if feed.origin.get("endpoint") else None
    if not neurons and (news is None or news.get("error")):
        return None
    made = offer(feed.manifest, feed.origin, feed.path)
    if made is None:
        return None
    running = news is not None and not news.get("error")
    shown: dict[str, Any] = {
        "text": "These are single neurons: no dictionary fits these weights.", "command": made.command, "share": None, "progress": "",
        "failed": plain(str(news["error"]), 400) if news is not None and news.get("error") else "",
        "start": made.live and starter is not None and not running and feed.freshness().state == "LIVE",
    }  # fmt: skip
    if news is not None and running:
        name = plain(str(news.get("name")), 40)
        shown |= {"text": f"Learning a dictionary while the agent acts: {name}", "command": ""} | _progress(news)
    elif not made.live:
        shown["text"] += " Learn one from the recording, then analyse it again with --dictionary."
    elif feed.freshness().state == "ENDED":
        shown["text"] += " Learn one when the agent acts again; begin this first, or then."
    elif not feed.origin.get("follows"):
        shown["text"] += f" The analyzer keeps to neurons: end it, and begin it with --follow {_short(folder)}."
    else:
        shown["text"] += " Learn one while the agent acts; it appears here by itself."
    return shown


def _progress(news: Mapping[str, Any]) -> dict[str, Any]:
    """The news as numbers: whatever is not one is left out."""

    def number(key: str) -> float | None:
        value = news.get(key)
        return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None

    share, fvu, l0, dead = (number(key) for key in ("share", "fvu", "l0", "dead"))
    parts = [plain(str(news.get("phase", "")), 20)]
    parts += [] if fvu is None else [f"FVU {fvu:.3f}"]
    parts += [] if l0 is None else [f"L0 {l0:.1f}"]
    parts += [] if dead is None else [f"dead {100 * dead:.0f}\u202f%"]
    counted = (("frames", "frames"), ("episodes", "episodes"), ("lost", "dropped"))
    parts += [f"{count:.0f} {what}" for key, what in counted if (count := number(key)) is not None]
    return {"share": min(1.0, max(0.0, share or 0.0)), "progress": ", ".join(parts)}


def _names() -> Any:
    yield "learned"
    number = 2
    while True:
        yield f"learned-{number}"
        number += 1


def _short(path: Path) -> str:
    """Relative where it lies below the folder in which the page was started."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
