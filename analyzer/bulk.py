"""Reading whole tables of a database, block by block: what `il.open` and `export` need beside the page's questions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from interlatent_live.analyzer.codes import Codes
from interlatent_live.analyzer.queries import Reader
from interlatent_live.analyzer.records import BatchRow, DictionaryRow
from interlatent_live.stream.index import ENTRY

__all__ = ["BulkReader"]

_BLOCK: Final = 64
"""Batches that are read together."""
_NO_BOUND: Final = np.iinfo(np.int32).max


class BulkReader(Reader):
    """A read-only view of one database, for one thread, that gives all of a table."""

    def blocks(self, boots: list[str]) -> npt.NDArray[np.void]:
        """(blocks,) ENTRY: stretches of batches of one boot, in the order in which they were committed; `offset` is the
        first batch's id. Episodes are not known here.
        """
        sql = (
            "SELECT min(id), boot, sum(rows), min(first_seq), max(first_seq + rows), min(first_step), max(last_step), "
            "min(first_monotonic_ns), max(last_monotonic_ns), min(first_wall_ns) FROM batches "
            f"GROUP BY boot, id / {_BLOCK} ORDER BY min(id)"
        )
        rows = self._rows(sql)
        entries: Any = np.zeros(len(rows), ENTRY)
        places = {boot: number for number, boot in enumerate(boots)}
        names = ("offset", "boot", "rows", "first_seq", "next_seq", "first_step", "last_step", "first_ns", "last_ns", "first_wall_ns")
        for number, row in enumerate(rows):
            for name, value in zip(names, (row[0], places[row[1]], *row[2:]), strict=True):
                entries[name][number] = value
        entries["high_episode"] = _NO_BOUND
        return entries  # type: ignore[no-any-return]

    def block(self, first_id: int, boot: str) -> list[BatchRow]:
        """Batches of the block that begins with that id."""
        last = (first_id // _BLOCK + 1) * _BLOCK - 1
        where = "batches WHERE id BETWEEN ? AND ? AND boot = ? ORDER BY id"
        return self._select(BatchRow, where, first_id, last, boot)

    def episode_spans(self, episode: int, env: int | None) -> list[tuple[str, int, int]]:
        """Boot, first and last sequence number of an episode, of every environment or one."""
        sql = "SELECT boot, first_seq, last_seq FROM episodes WHERE episode = ? AND (? IS NULL OR env = ?)"
        return [(str(b), int(f), int(n)) for b, f, n in self._rows(sql, episode, env, env)]

    def dictionaries(self) -> list[DictionaryRow]:
        """Everything that gave features, in the order in which it began to."""
        return self._select(
            DictionaryRow,
            "dictionaries WHERE hash IN (SELECT dictionary_hash FROM sections) "
            "ORDER BY (SELECT min(id) FROM sections WHERE dictionary_hash = hash)",
        )

    def coded(self, hash: str, boot: str, first_seq: int, next_seq: int) -> dict[int, Codes]:
        """Codes by a dictionary, by the first sequence number of their batch, for batches that begin in
        [first_seq, next_seq).
        """
        sql = (
            "SELECT b.first_seq, c.blob FROM batches b JOIN codes c ON c.batch_id = b.id JOIN sections s ON s.id = c.section_id "
            "WHERE b.run = (SELECT value FROM meta WHERE key = 'run') AND b.boot = ? AND b.first_seq >= ? AND b.first_seq < ? "
            "AND s.dictionary_hash = ?"
        )
        return {int(seq): Codes.from_blob(blob) for seq, blob in self._rows(sql, boot, first_seq, next_seq, hash)}

    def table(self, sql: str, *values: Any) -> tuple[list[str], Iterator[list[tuple[Any, ...]]]]:
        """Names of a query's columns, and its rows by the thousand."""
        db = self._open()
        if db is None:
            return [], iter(())
        cursor = db.execute(sql, values)
        return [column[0] for column in cursor.description], iter(lambda: cursor.fetchmany(10_000), [])

    def newest_snapshots(self, span: str) -> list[tuple[int, str, str]]:
        """Id, point and dictionary's name of the newest snapshot of each dictionary."""
        sql = (
            "SELECT max(k.id), d.point, d.name FROM correlation_snapshots k JOIN sections s ON s.id = k.section_id "
            "JOIN dictionaries d ON d.hash = s.dictionary_hash WHERE k.span = ? GROUP BY d.hash ORDER BY 1"
        )
        return [(int(i), str(point), str(name)) for i, point, name in self._rows(sql, span)]
