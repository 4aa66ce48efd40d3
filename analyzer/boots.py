"""One process of the agent as the analyzer follows it: its accounts, manifests, sections and episodes.

Messages whose manifest has not come yet wait here, in order; the oldest are given up first, and counted.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Collection
from typing import Final

from interlatent_live.analyzer.accounts import Accounts
from interlatent_live.analyzer.episodes import Episode, Episodes
from interlatent_live.analyzer.sections import SNAPSHOT_S, Section
from interlatent_live.analyzer.store import Store
from interlatent_live.analyzer.writes import Writes
from interlatent_live.stream.frames import FrameBatch
from interlatent_live.stream.manifest import Manifest
from interlatent_live.stream.wire import Heartbeat

__all__ = ["MAX_WAITING", "MAX_WAITING_BYTES", "BootAnalysis"]

MAX_WAITING_BYTES: Final = 64 << 20
MAX_WAITING: Final = 4_096
"""Messages, and bytes of their batches, that wait for a manifest."""
MAX_MANIFESTS: Final = 64
"""Manifests of one boot that are remembered."""


class BootAnalysis:
    """What is known of one process of the agent while its frames come."""

    def __init__(self, store: Store, boot: str) -> None:
        assert store.run is not None
        self.accounts = Accounts(store, store.run, boot)
        self.manifests: dict[str, Manifest] = {}
        self.manifest: Manifest | None = None
        """That of the open sections."""
        self.sections: list[Section] = []
        self._episodes = Episodes()
        self._episodes_ns: int | None = None
        self._waiting: deque[FrameBatch | Heartbeat] = deque()
        self._waiting_bytes = 0

    def begin(self, writes: Writes) -> None:
        """Write that it exists."""
        writes.insert_once("boots", run=self.accounts.run, boot=self.accounts.boot)

    def learn(self, manifest: Manifest, writes: Writes) -> None:
        """Take in a manifest, which comes every second."""
        if manifest.hash in self.manifests:
            return
        self.manifests[manifest.hash] = manifest
        if len(self.manifests) > MAX_MANIFESTS:
            del self.manifests[next(iter(self.manifests))]
        run, boot = self.accounts.run, self.accounts.boot
        writes.insert_once("manifests", hash=manifest.hash, run=run, boot=boot, body=json.dumps(manifest.to_dict()))
        sql = "UPDATE boots SET manifest_hash = ?, started_wall_ns = ? WHERE run = ? AND boot = ?"
        writes.execute(sql, manifest.hash, manifest.started_wall_ns, run, boot)

    def waits_for(self, message: FrameBatch | Heartbeat) -> bool:
        """Whether a message must wait: for its manifest, or for an earlier one that does."""
        return bool(self._waiting) or (
            isinstance(message, FrameBatch) and message.manifest_hash not in self.manifests
        )

    def hold(self, message: FrameBatch | Heartbeat, writes: Writes) -> None:
        """Keep a message until the manifest comes; accounts are kept only of what has left here."""
        self._waiting.append(message)
        self._waiting_bytes += message.nbytes if isinstance(message, FrameBatch) else 0
        while len(self._waiting) > MAX_WAITING or self._waiting_bytes > MAX_WAITING_BYTES:
            self._give_up(writes)

    def next_ready(self) -> FrameBatch | Heartbeat | None:
        """The oldest message that waits, if it need not any more."""
        if not self._waiting:
            return None
        first = self._waiting[0]
        if isinstance(first, FrameBatch) and first.manifest_hash not in self.manifests:
            return None
        self._waiting_bytes -= first.nbytes if isinstance(first, FrameBatch) else 0
        return self._waiting.popleft()

    def give_up_waiting(self, writes: Writes) -> None:
        """Account for everything that waits in vain."""
        while self._waiting:
            self._give_up(writes)

    def _give_up(self, writes: Writes) -> None:
        message = self._waiting.popleft()
        if isinstance(message, FrameBatch):
            self._waiting_bytes -= message.nbytes
            if self.accounts.arrived(message, writes):
                self.accounts.refused["no_manifest"] += message.rows
        else:
            self.accounts.heard(message, writes)

    def follow_episodes(self, batch: FrameBatch, writes: Writes) -> None:
        """Write episodes that ended, and every few seconds those under way."""
        for episode in self._episodes.update(batch):
            self._write_episode(episode, writes)
        time_ns = int(batch.columns["monotonic_ns"][-1])
        if self._episodes_ns is None or time_ns - self._episodes_ns >= SNAPSHOT_S * 1e9:
            self._episodes_ns = time_ns
            for episode in self._episodes.open():
                self._write_episode(episode, writes)

    def touch(self, writes: Writes) -> None:
        """Write how far things have come; once a transaction."""
        for section in self.sections:
            section.touch(writes)
        self.accounts.write(writes)

    def close_sections(self, writes: Writes, *, but: Collection[tuple[str, str]] = ()) -> None:
        """End the sections, but those of a dictionary's hash and tap point."""
        for section in self.sections:
            if section.key not in but:
                section.close(writes)
        self.sections = [section for section in self.sections if section.key in but]

    def close(self, writes: Writes) -> None:
        """End everything that is open."""
        self.close_sections(writes)
        for episode in self._episodes.open():
            self._write_episode(episode, writes)
        self.accounts.write(writes)

    def _write_episode(self, episode: Episode, writes: Writes) -> None:
        writes.execute(
            _EPISODE,
            self.accounts.run,
            self.accounts.boot,
            episode.env,
            episode.episode,
            episode.first_seq,
            episode.last_seq,
            episode.steps,
            episode.total,
            int(episode.complete),
            int(episode.terminated),
            int(episode.truncated),
        )


_EPISODE: Final = """
INSERT INTO episodes (run, boot, env, episode, first_seq, last_seq, steps, return, complete, terminated, truncated)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (run, boot, env, episode) DO UPDATE SET
  first_seq = min(first_seq, excluded.first_seq), last_seq = excluded.last_seq, steps = excluded.steps,
  return = excluded.return, complete = excluded.complete, terminated = excluded.terminated,
  truncated = excluded.truncated
"""
