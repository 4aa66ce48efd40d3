"""Where a session looks: live, or at one frame of the past. Every panel follows it.

The browser sends small commands (`Cursor.obey`): pause, live, seek to a frame, to a time in sight, or by frames. The
recording goes on meanwhile; `behind` says by how much.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from interlatent_live.viewer.drawing import Drawing
from interlatent_live.viewer.feed import Feed
from interlatent_live.viewer.past import Clip
from interlatent_live.viewer.window import Piece

__all__ = ["BUDGET_S", "Cursor"]

BUDGET_S: Final = 0.04
"""Time to read frames before the page is answered; the rest follows."""


class Cursor:
    """One session's place in one feed."""

    def __init__(self, feed: Feed) -> None:
        self.feed = feed
        self.clip: Clip | None = None
        """None: live."""
        self._boot = ""

    @property
    def live(self) -> bool:
        """Whether the newest frame is shown."""
        return self.clip is None

    @property
    def drawing(self) -> Drawing:
        """What is shown."""
        return self.feed.drawing if self.clip is None else self.clip.drawing

    @property
    def behind(self) -> int:
        """Frames between the cursor and the newest."""
        if self.clip is None or not self.feed.window:
            return 0
        return max(0, int(self.feed.window.last.seq[-1]) - self.clip.seq)

    def moment(self) -> tuple[Piece, int] | None:
        """The frame at the cursor: a piece and its row in it."""
        if self.clip is not None and self.clip.frames is not None:
            return self.clip.frames, self.clip.row
        return (self.feed.window.last, len(self.feed.window.last) - 1) if self.feed.window else None

    def returned(self) -> float | None:
        """The return of the episode up to the cursor."""
        return self.feed.returned if self.clip is None else self.clip.returned()

    def obey(self, command: Mapping[str, Any]) -> None:
        """Do what the browser asks; what makes no sense is ignored."""
        op = command.get("op")
        if op == "live":
            self.clip = None
        elif op == "pause":
            self._pause()
        elif op in ("seek", "time", "step") and isinstance(command.get("to"), (int, float)):
            to = float(command["to"])
            self._pause()
            if self.clip is None or not abs(to) < 1e15:
                return
            self.clip.newest_t = self.feed.newest_t
            if op == "seek":
                self.clip.seek(int(to), BUDGET_S)
            elif op == "step":
                self.clip.move(int(to), BUDGET_S)
            else:
                at = self.clip.at(to)
                if at is not None:
                    self.clip.seek(at, BUDGET_S)

    def _pause(self) -> None:
        """Stay at the newest frame, with the window as it is."""
        if self.clip is not None:
            return
        clip, newest = self.feed.clip(), self.feed.newest_t
        if clip is None or newest is None or not clip.seek(int(self.feed.window.last.seq[-1]), BUDGET_S, end=max(newest, 30.0)):
            return
        self.clip, self._boot = clip, self.feed.boot.boot if self.feed.boot else ""

    def tick(self) -> None:
        """Go on loading; another boot or another file ends the pause, for its frames have nothing to do with this one's."""
        if self.clip is None:
            return
        if self.feed.boot is None or self.feed.boot.boot != self._boot:
            self.clip = None
        else:
            self.clip.fill(BUDGET_S)
