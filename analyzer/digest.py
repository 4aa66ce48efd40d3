"""Whether two databases hold the same analysis: one hash, or the first difference.

Covers the rows that follow from the batches: batches, codes, episodes, events, peaks, quality, drift, activity,
correlations. Leaves out what depends on when and by whom it was received: times of receipt, ledger, gaps, pictures, row
ids, explanations. Bit for bit, so two machines or builds may differ. Costs about a second for a million frames.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgpack

from interlatent_live.analyzer.store import connect_readonly
from interlatent_live.analyzer.writer import translated
from interlatent_live.stream.errors import StoreError

__all__ = ["RETIRED", "digest", "hash_of", "verify"]

RETIRED: Final = "retired_frames"
"""Key of `meta` under which retention counts the frames whose rows it took away."""

# Sections go by boot and rank: their ids depend on what else the file has seen.
_SECTIONS: Final = """
WITH s AS (SELECT *, row_number() OVER (PARTITION BY boot ORDER BY id) AS rank FROM sections
           WHERE :dictionary IS NULL OR dictionary_hash = :dictionary)
"""
_TABLES: Final[tuple[tuple[str, str], ...]] = (
    (
        "sections",
        "SELECT boot, rank, point, dictionary_hash, manifest_hash, first_seq, next_seq, reason, mismatch FROM s "
        "ORDER BY boot, rank",
    ),
    (
        "batches",
        "SELECT boot, first_seq, rows, manifest_hash, first_step, last_step, first_monotonic_ns, last_monotonic_ns, "
        "first_wall_ns, last_wall_ns, columns FROM batches ORDER BY boot, first_seq",
    ),
    (
        "codes",
        "SELECT b.boot, b.first_seq, s.rank, c.active, c.encoded, c.non_finite, c.sse, c.sst, c.rows, c.blob FROM codes c "
        "JOIN batches b ON b.id = c.batch_id JOIN s ON s.id = c.section_id ORDER BY b.boot, b.first_seq, s.rank",
    ),
    (
        "episodes",
        "SELECT boot, env, episode, first_seq, last_seq, steps, return, complete, terminated, truncated FROM episodes "
        "ORDER BY boot, env, episode",
    ),
    (
        "events",
        "SELECT s.boot, s.rank, feature, env, episode, e.first_seq, last_seq, first_step, last_step, frames, peak, "
        "peak_seq, mean, ended_by FROM events e JOIN s ON s.id = e.section_id ORDER BY s.boot, s.rank, e.id",
    ),
    (
        "peaks",
        "SELECT s.boot, s.rank, feature, seq, env, episode, step, value, window_first_seq, window_next_seq "
        "FROM peaks p JOIN s ON s.id = p.section_id ORDER BY s.boot, s.rank, feature, seq",
    ),
    (
        "prompts",
        "SELECT boot, prompt, env, episode, given, text, labels FROM prompts ORDER BY boot, prompt",
    ),
    ("pairs", "SELECT boot, prompt, pair, arm FROM pairs ORDER BY boot, prompt"),
    (
        "quality",
        "SELECT s.boot, s.rank, q.first_seq, q.next_seq, frames, fvu, l0 FROM quality q JOIN s ON s.id = q.section_id "
        "ORDER BY s.boot, s.rank, q.first_seq",
    ),
    (
        "drift",
        "SELECT s.boot, s.rank, kind, measure, d.first_seq, last_seq, value, low, high FROM drift d "
        "JOIN s ON s.id = d.section_id ORDER BY s.boot, s.rank, d.id",
    ),
    (
        "activity",
        "SELECT s.boot, s.rank, a.next_seq, frames, active, maximum, total FROM activity a "
        "JOIN s ON s.id = a.section_id ORDER BY s.boot, s.rank",
    ),
    (
        "interventions",
        "SELECT boot, number, id, author, reason, edit, condition, shadow, first_seq, next_seq, cause FROM interventions "
        "ORDER BY boot, number",
    ),
    ("effects", "SELECT boot, number, seq, kind, value, factor FROM effects ORDER BY boot, number, seq"),
    ("outcomes", "SELECT boot, number, seq, measure, actions, steered, unsteered FROM outcomes ORDER BY boot, number, seq"),
    (
        "correlation_snapshots",
        "SELECT s.boot, s.rank, span, c.next_seq, frames, metrics, features, r, n, n_eff, low, high, q "
        "FROM correlation_snapshots c JOIN s ON s.id = c.section_id ORDER BY s.boot, s.rank, c.next_seq, span",
    ),
    (
        "correlations",
        "SELECT s.boot, s.rank, x.span, x.next_seq, metric, feature, c.r, c.n, c.n_eff, c.low, c.high, c.q, "
        "significant, observed FROM correlations c JOIN correlation_snapshots x ON x.id = c.snapshot_id "
        "JOIN s ON s.id = x.section_id ORDER BY s.boot, s.rank, x.next_seq, x.span, metric, feature",
    ),
)


def hash_of(db: str | Path, dictionary: str) -> str:
    """The hash of a dictionary that sections of `db` are of, by its name, or by the first 8 digits or more of its hash.

    Raises StoreError where there is none, or more than one.
    """
    with _opened(db) as connection, translated(Path(db)):
        rows = connection.execute(
            "SELECT hash, name FROM dictionaries WHERE hash IN (SELECT dictionary_hash FROM sections) ORDER BY hash"
        ).fetchall()
    found = [hash_ for hash_, name in rows if name == dictionary or (len(dictionary) >= 8 and hash_.startswith(dictionary))]
    if len(found) != 1:
        there = ", ".join(f"{name} {hash_[:12]}" for hash_, name in rows) or "none"
        raise StoreError(f"{db} has {len(found) or 'no'} dictionaries {dictionary!r}; it has {there}")
    return str(found[0])


def digest(db: str | Path, dictionary: str | None = None) -> str:
    """SHA-256 (hex) of the analysis rows, or of those of the dictionary with that hash.

    Raises StoreError where retention has taken rows away: what is left is no longer the whole.
    """
    whole = hashlib.sha256()
    with _opened(db) as connection:
        for table, _, row in _rows(connection, Path(db), dictionary):
            whole.update(msgpack.packb((table, row)))
    return whole.hexdigest()


def verify(a: str | Path, b: str | Path, dictionary: str | None = None) -> str | None:
    """None where both hold the same analysis; else the first difference, in words."""
    with _opened(a) as first, _opened(b) as second:
        ours, theirs = _rows(first, Path(a), dictionary), _rows(second, Path(b), dictionary)
        for one, other in itertools.zip_longest(ours, theirs):
            if one == other:
                continue
            if one is None or other is None or one[0] != other[0]:
                more, rest = (a, one) if other is None or (one and _place(one[0]) < _place(other[0])) else (b, other)
                assert rest is not None
                return f"{rest[0]}: only {more} has the row {_row(rest[1], rest[2])}"
            table, names, mine = one
            yours = other[2]
            which = next(n for n in range(len(names)) if mine[n] != yours[n])
            found = f"{names[which]} is {_value(mine[which])} in {a} and {_value(yours[which])} in {b}"
            return f"{table}: row {_row(names[:which], mine)}: {found}"
    return None


@contextlib.contextmanager
def _opened(db: str | Path) -> Iterator[sqlite3.Connection]:
    connection = connect_readonly(db)
    try:
        with translated(Path(db)):
            connection.execute("BEGIN")  # one state of the file, however long it takes
            retired = connection.execute("SELECT value FROM meta WHERE key = ?", (RETIRED,)).fetchone()
        if retired:
            raise StoreError(f"{db}: {retired[0]} old frames were retired; analyse the recording again to compare")
        yield connection
    finally:
        connection.close()


def _rows(
    connection: sqlite3.Connection, path: Path, dictionary: str | None
) -> Iterator[tuple[str, tuple[str, ...], tuple[Any, ...]]]:
    """(table, column names, row) in an order that follows from the rows alone."""
    with translated(path):
        tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        for table, query in _TABLES:
            if table not in tables:  # a database made before there were any
                continue
            cursor = connection.execute(_SECTIONS + query, {"dictionary": dictionary})
            names = tuple(str(column[0]) for column in cursor.description)
            for row in cursor:
                yield table, names, tuple(row)


def _place(table: str) -> int:
    return next(n for n, (name, _) in enumerate(_TABLES) if name == table)


def _row(names: tuple[str, ...], row: tuple[Any, ...]) -> str:
    """The first columns of a row, which identify it."""
    shown = [f"{name} {value}" for name, value in zip(names, row, strict=False) if not isinstance(value, bytes)]
    return "(" + ", ".join(shown[:6]) + ")"


def _value(value: Any) -> str:
    if isinstance(value, bytes):
        return f"{len(value)} bytes with hash {hashlib.sha256(value).hexdigest()[:12]}"
    return "NULL" if value is None else repr(value)
