"""Where a session looks: live, or at one frame of the past, which may play. Every panel follows it.

The browser sends small commands (`Cursor.obey`): pause, play, live, seek to a frame, to a time in sight, by frames, to the
episode before or after; speed; a range to loop. The recording goes on meanwhile; `behind` says by how much.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Final

from interlatent_live.viewer.drawing import Drawing
from interlatent_live.viewer.feed import Feed
from interlatent_live.viewer.past import Clip
from interlatent_live.viewer.view import SPEEDS
from interlatent_live.viewer.window import Piece

__all__ = ["BUDGET_S", "Cursor"]

BUDGET_S: Final = 0.04
"""Time to read frames before the page is answered; the rest follows."""
_LONGEST_TICK_S: Final = 0.5
"""Playback does not leap after a stall."""


class Cursor:
    """One session's place in one feed."""

    def __init__(self, feed: Feed, speed: float = 1.0) -> None:
        self.feed = feed
        self.clip: Clip | None = None
        """None: live."""
        self.playing = False
        self.speed = speed
        self.loop: tuple[int, int] | None = None
        """First and last frame that playback repeats."""
        self.boot = ""
        """Of the frames at which it stays."""
        self._at_s = 0.0
        """Frame time that playback has reached."""
        self._ticked = time.monotonic()

    @property
    def live(self) -> bool:
        """Whether the newest frame is shown."""
        return self.clip is None

    @property
    def lost(self) -> bool:
        """Whether the feed went on to another boot while this stays at a frame of an earlier one."""
        return self.clip is not None and (self.feed.boot is None or self.feed.boot.boot != self.boot)

    @property
    def behind(self) -> int:
        """Frames between the cursor and the newest."""
        if self.clip is None or not self.feed.window:
            return 0
        return max(0, int(self.feed.window.last.seq[-1]) - self.clip.seq)

    def drawing(self, live: Drawing) -> Drawing:
        """What is shown, where `live` is what would be without a pause; what the past is drawn like follows it."""
        if self.clip is None:
            return live
        self.clip.draw_like(live)
        return self.clip.drawing

    def moment(self) -> tuple[Piece, int] | None:
        """The frame at the cursor: a piece and its row in it."""
        if self.clip is not None and self.clip.frames is not None:
            return self.clip.frames, self.clip.row
        return (self.feed.window.last, len(self.feed.window.last) - 1) if self.feed.window else None

    def returned(self) -> float | None:
        """The return of the episode up to the cursor."""
        return self.feed.returned if self.clip is None else self.clip.returned()

    def obey(self, command: Mapping[str, Any], drawing: Drawing | None = None) -> None:
        """Do what the browser asks; what makes no sense is ignored. `drawing`: what is shown, for the choice of rows and pairs."""
        op, to = command.get("op"), command.get("to")
        if op == "live":
            self.clip, self.playing = None, False
        elif op == "speed" and to in SPEEDS:
            self.speed = float(to)
        elif op == "loop":
            self._loop(command)
        elif op in ("pause", "play"):
            self._pause(drawing)
            self.playing = op == "play" and self.clip is not None
            if self.clip is not None:
                self._at_s, self._ticked = self.clip.t, time.monotonic()
        elif op in ("seek", "time", "step", "episode") and isinstance(to, (int, float)) and abs(to) < 1e15:
            self._pause(drawing)
            if self.clip is not None:
                self._go(self.clip, str(op), float(to))
                self._at_s = self.clip.t

    def _loop(self, command: Mapping[str, Any]) -> None:
        first, last = command.get("first"), command.get("last")
        if isinstance(first, int) and isinstance(last, int) and 0 <= first < last < 1e15:
            self.loop = first, last
        elif first is None:
            self.loop = None

    def _go(self, clip: Clip, op: str, to: float) -> None:
        clip.newest_t = self.feed.newest_t
        if op == "seek":
            clip.seek(int(to), BUDGET_S)
        elif op == "step":
            self.playing = False
            clip.move(int(to), BUDGET_S)
        elif op == "episode":
            at = self.feed.timeline.episode(clip.seq, 1 if to > 0 else -1)
            if at is not None:
                clip.seek(at, BUDGET_S)
        else:
            at = clip.at(to)
            if at is not None:
                clip.seek(at, BUDGET_S)

    def _pause(self, drawing: Drawing | None) -> None:
        """Stay at the newest frame, with the window as it is."""
        if self.clip is not None:
            return
        clip, newest = self.feed.clip(drawing), self.feed.newest_t
        if clip is None or newest is None or not clip.seek(int(self.feed.window.last.seq[-1]), BUDGET_S, end=max(newest, 30.0)):
            return
        self.clip, self.boot = clip, self.feed.boot.boot if self.feed.boot else ""

    def tick(self) -> None:
        """Go on loading, and playing; the newest frame reached, go on live, or stop where the run has ended."""
        now = time.monotonic()
        passed, self._ticked = min(now - self._ticked, _LONGEST_TICK_S), now
        if self.clip is None or self.lost:
            return
        if not self.playing:
            self.clip.fill(BUDGET_S)
            return
        if self.loop is not None and not self.loop[0] <= self.clip.seq < self.loop[1]:
            self.clip.seek(self.loop[0], BUDGET_S)
            self._at_s = self.clip.t
            return
        self.clip.newest_t = newest = self.feed.newest_t
        self._at_s = self.clip.play(self._at_s + self.speed * passed, BUDGET_S)
        if self.loop is not None and self.clip.seq > self.loop[1]:  # quick playback goes by many frames at a time
            self.clip.seek(self.loop[1], BUDGET_S)
            self._at_s = self.clip.t
        if newest is not None and self._at_s >= newest:
            self.playing = False
            if self.loop is None and self.feed.freshness().state == "LIVE":
                self.clip = None
