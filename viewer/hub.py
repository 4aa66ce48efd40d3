"""The feeds of one database, shared by the sessions that look at the same environment and source of features."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from interlatent_live.viewer.feed import Feed
from interlatent_live.viewer.hand import Reach
from interlatent_live.viewer.offer import Starter

if TYPE_CHECKING:
    from interlatent_live.viewer.page import Page

__all__ = ["Hub"]


class Hub:
    """The feeds that somebody looks at, by boot, environment and source of features."""

    def __init__(self, path: Path, starter: Starter | None = None, reach: Reach | None = None) -> None:
        self.path, self.starter, self.reach = path, starter, reach
        self.pages: dict[str, Page] = {}
        """Open pages, by the name that only their own document knows."""
        self._feeds: dict[tuple[int, str | None, str | None], Feed] = {}
        self._users: dict[tuple[int, str | None, str | None], int] = {}

    def take(self, env: int = 0, source: str | None = None, boot: str | None = None) -> Feed:
        """A feed, to be handed back by `drop`. `boot`: None for the newest."""
        key = env, source, boot
        if key not in self._feeds:
            self._feeds[key], self._users[key] = Feed(self.path, env, source, boot), 0
        self._users[key] += 1
        return self._feeds[key]

    def drop(self, feed: Feed) -> None:
        """Hand a feed back; the last one to do so closes it."""
        key = feed.env, feed.source, feed.wanted
        self._users[key] -= 1
        if not self._users[key]:
            self._feeds.pop(key).reader.close()
            del self._users[key]

    def close(self) -> None:
        """Let go of the file."""
        for feed in self._feeds.values():
            feed.reader.close()
