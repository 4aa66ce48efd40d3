"""Rows that belong in one transaction, gathered before the database is touched.

Nothing is written while a batch is analysed, so a full disk can be met by committing the very same rows again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache

__all__ = ["Value", "Writes"]

Value = int | float | str | bytes | None
_Row = tuple[Value, ...]


class Writes:
    """Statements in order; consecutive ones of the same kind go to the database together."""

    def __init__(self) -> None:
        self._groups: list[tuple[str, list[_Row]]] = []
        self.rows = 0
        """Statements gathered."""

    def insert(self, table: str, **values: Value) -> None:
        """Add a row; one with the same key must not be there."""
        self._add(_insert(table, tuple(values)), tuple(values.values()))

    def insert_once(self, table: str, **values: Value) -> None:
        """Add a row unless one with the same key is there."""
        self._add(_insert(table, tuple(values)).replace("INSERT", "INSERT OR IGNORE", 1), tuple(values.values()))

    def replace(self, table: str, **values: Value) -> None:
        """Add a row in place of one with the same key."""
        self._add(_insert(table, tuple(values)).replace("INSERT", "INSERT OR REPLACE", 1), tuple(values.values()))

    def execute(self, sql: str, *values: Value) -> None:
        """Any other statement."""
        self._add(sql, values)

    def execute_many(self, sql: str, rows: Sequence[_Row]) -> None:
        """Any other statement, for several rows."""
        if rows:
            self._add(sql, rows[0])
            self._groups[-1][1].extend(rows[1:])
            self.rows += len(rows) - 1

    def _add(self, sql: str, row: _Row) -> None:
        if not self._groups or self._groups[-1][0] != sql:
            self._groups.append((sql, []))
        self._groups[-1][1].append(row)
        self.rows += 1

    def __iter__(self) -> Iterator[tuple[str, Sequence[_Row]]]:
        return iter(self._groups)

    def __bool__(self) -> bool:
        return bool(self._groups)


@cache
def _insert(table: str, columns: tuple[str, ...]) -> str:
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"
