"""A watchpoint's mark on the timeline: the predicate, and where the clip is."""

from __future__ import annotations

from typing import Any

from interlatent_live.explainer.reading import WatchedFrame
from interlatent_live.viewer.text import plain

__all__ = ["watch_mark"]


def watch_mark(frame: WatchedFrame) -> list[Any]:
    """[frame, kind, text, frame time], as the timeline draws remarks."""
    saved = "" if frame.clip is None else f"; clip: {frame.clip}"
    acted = "" if frame.acted is None else f"; {frame.acted}"
    return [frame.seq, "watchpoint", plain(f"{frame.predicate}{saved}{acted}", 240), frame.time_s]
