"""What goes when a database grows old or large: the oldest frames first, and never evidence.

1. Candidates are the oldest batches not looked at yet: those older than `max_age_s` of frame time, or, while the file is
   larger than `max_bytes`, those older than two minutes.
2. A batch that overlaps a span of EVIDENCE stays with its codes and pictures; so do events, pictures and attributions of such a span.
3. The rest goes: batches with codes, events, pictures, attributions and all but each section's last snapshots. Episodes, quality,
   drift, peaks, activity and accounts are small and stay.

A pass takes away a bounded number of rows, in the analyzer's own transaction, so that it never stalls; passes come once
a second of frame time, which outruns any stream. Pages that are freed are used again; the file does not shrink.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from interlatent_live.analyzer.digest import RETIRED
from interlatent_live.analyzer.store import Store
from interlatent_live.analyzer.writes import Writes

__all__ = ["EVIDENCE", "MAX_BYTES", "SHOWN_S", "Retention"]

MAX_BYTES: Final = 8 << 30
"""Size of a database, in bytes, from which on old frames go."""
SHOWN_S: Final = 120.0
"""Frame time, in seconds, that stays whatever the size: the page shows it."""
EVIDENCE: Final[tuple[tuple[str, str], ...]] = (
    ("peaks", "SELECT s.boot, p.window_first_seq, p.window_next_seq FROM peaks p JOIN sections s ON s.id = p.section_id"),
    ("cited", "SELECT boot, first_seq, next_seq FROM cited"),  # by explanations and narration; there once something was explained
)
"""Tables of spans that are cited, and queries for (boot, first_seq, next_seq) of them."""
_EVERY_NS: Final = 1_000_000_000
_EVIDENCE_NS: Final = 60_000_000_000
_BATCHES: Final = 250
_EVENTS: Final = 4_000
_SNAPSHOTS: Final = 8
Ints = npt.NDArray[np.int64]


class Retention:
    """Keeps one database within bounds while it is written."""

    def __init__(self, store: Store, *, max_age_s: float | None = None, max_bytes: int | None = MAX_BYTES) -> None:
        self.max_age_s, self.max_bytes = max_age_s, max_bytes
        self._store = store
        self._due_ns: int | None = None
        self._looked_at = {"batches": 0, "events": 0, "pictures": 0, "attributions": 0, "correlation_snapshots": 0}
        self._horizon: dict[str, int] = {}  # by boot: frames before it have been looked at
        self._evidence: dict[str, tuple[Ints, Ints]] = {}
        self._evidence_ns: int | None = None

    def retire(self, now_ns: int, wall_ns: int, writes: Writes) -> None:
        """Add what is to go to `writes`. `now_ns`, `wall_ns`: clocks of the newest frame; the store has no open rows."""
        if self._due_ns is not None and 0 <= self._due_ns - now_ns <= _EVERY_NS:
            return
        self._due_ns = now_ns + _EVERY_NS
        old = self._candidates(wall_ns)
        stale = self._evidence_ns is None or abs(now_ns - self._evidence_ns) >= _EVIDENCE_NS
        if not old:
            if stale:  # up to date: look again at what stayed, some of it is no longer cited
                self._looked_at = dict.fromkeys(self._looked_at, 0)
            return
        if stale:
            self._evidence_ns, self._evidence = now_ns, self._spans()
        frames = 0
        for id, boot, first, rows in old:
            self._looked_at["batches"] = id
            self._horizon[boot] = max(first + rows, self._horizon.get(boot, 0))
            if not self._cited(boot, first, first + rows):
                frames += rows
                writes.execute("DELETE FROM codes WHERE batch_id = ?", id)
                writes.execute("DELETE FROM batches WHERE id = ?", id)
                writes.execute(_TOKENS, self._store.run, boot, first, first + rows)
        if frames:
            writes.execute(_COUNT, RETIRED, str(frames), frames)
        self._events(writes)
        for table in ("pictures", "attributions"):
            self._of_frames(table, writes)
        self._snapshots(writes)

    def _candidates(self, wall_ns: int) -> list[tuple[Any, ...]]:
        """(id, boot, first_seq, rows) of the next batches that may go."""
        sql = "SELECT id, boot, first_seq, rows, last_wall_ns FROM batches WHERE id > ? ORDER BY id LIMIT ?"
        age_s = self.max_age_s
        if self.max_bytes is not None and self._size() > self.max_bytes:
            age_s = SHOWN_S if age_s is None else min(age_s, SHOWN_S)
        if age_s is None:
            return []
        oldest = wall_ns - int(age_s * 1e9)
        found = self._store.all(sql, self._looked_at["batches"], 1)
        if not found or found[0][4] >= oldest:
            return []
        return [row[:4] for row in self._store.all(sql, self._looked_at["batches"], _BATCHES) if row[4] < oldest]

    def _size(self) -> int:
        """Bytes in use; freed pages do not count."""
        pages, free, size = (int(self._store.one(f"PRAGMA {p}")[0]) for p in ("page_count", "freelist_count", "page_size"))
        return (pages - free) * size

    def _spans(self) -> dict[str, tuple[Ints, Ints]]:
        """Cited spans by boot, merged: their beginnings and ends, both rising."""
        by_boot: dict[str, list[tuple[int, int]]] = {}
        for table, query in EVIDENCE:
            if not self._store.one("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?", table):
                continue
            for boot, first, end in self._store.all(query):
                by_boot.setdefault(boot, []).append((first, end))
        merged: dict[str, tuple[Ints, Ints]] = {}
        for boot, spans in by_boot.items():
            first, end = np.array(sorted(spans), np.int64).T
            end = np.maximum.accumulate(end)
            new = np.append(True, first[1:] > end[:-1])
            merged[boot] = first[new], end[np.append(new[1:], True)]
        return merged

    def _cited(self, boot: str, first: int, end: int) -> bool:
        """Whether frames [first, end) overlap a cited span."""
        if boot not in self._evidence:
            return False
        firsts, ends = self._evidence[boot]
        place = int(np.searchsorted(ends, first, side="right"))
        return place < len(firsts) and int(firsts[place]) < end

    def _reached(self, boot: str) -> int:
        """Frames of a boot before this one have been looked at; a boot without batches is behind us."""
        if boot not in self._horizon and not self._store.one(_ANY, self._store.run, boot):
            self._horizon[boot] = 1 << 62
        return self._horizon.get(boot, 0)

    def _events(self, writes: Writes) -> None:
        sql = (
            "SELECT e.id, s.boot, e.first_seq, e.last_seq FROM events e JOIN sections s ON s.id = e.section_id "
            "WHERE e.id > ? ORDER BY e.id LIMIT ?"
        )
        for id, boot, first, last in self._store.all(sql, self._looked_at["events"], _EVENTS):
            if last >= self._reached(boot):
                return
            self._looked_at["events"] = id
            if not self._cited(boot, first, last + 1):
                writes.execute("DELETE FROM events WHERE id = ?", id)

    def _of_frames(self, table: str, writes: Writes) -> None:
        """What belongs to one frame each: pictures, and why an action was taken."""
        sql = f"SELECT rowid, boot, seq FROM {table} WHERE rowid > ? ORDER BY rowid LIMIT ?"
        for id, boot, seq in self._store.all(sql, self._looked_at[table], _BATCHES):
            if seq >= self._reached(boot):
                return
            self._looked_at[table] = id
            if not self._cited(boot, seq, seq + 1):
                writes.execute(f"DELETE FROM {table} WHERE rowid = ?", id)

    def _snapshots(self, writes: Writes) -> None:
        sql = (
            "SELECT c.id, s.boot, c.next_seq, c.id = (SELECT max(id) FROM correlation_snapshots l WHERE "
            "l.section_id = c.section_id AND l.span = c.span) FROM correlation_snapshots c "
            "JOIN sections s ON s.id = c.section_id WHERE c.id > ? ORDER BY c.id LIMIT ?"
        )
        for id, boot, next_seq, last in self._store.all(sql, self._looked_at["correlation_snapshots"], _SNAPSHOTS):
            if next_seq > self._reached(boot):
                return
            self._looked_at["correlation_snapshots"] = id
            if not last:
                writes.execute("DELETE FROM correlations WHERE snapshot_id = ?", id)
                writes.execute("DELETE FROM correlation_snapshots WHERE id = ?", id)


_TOKENS: Final = "DELETE FROM tokens WHERE run = ? AND boot = ? AND seq >= ? AND seq < ?"
_COUNT: Final = """
INSERT INTO meta (key, value) VALUES (?, ?)
ON CONFLICT (key) DO UPDATE SET value = CAST(CAST(value AS INTEGER) + ? AS TEXT)
"""
_ANY: Final = "SELECT 1 FROM batches WHERE run = ? AND boot = ? LIMIT 1"
