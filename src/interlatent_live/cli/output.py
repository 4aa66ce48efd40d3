"""What commands print: results on standard output (as JSON where asked), everything else on standard error."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

__all__ = ["err", "jsonable", "out", "plain", "print_line", "print_of_text", "print_result", "print_table", "progress"]

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def progress() -> Any:
    """A progress bar for training, on standard error."""
    from interlatent_live.progress import TrainingProgress

    return TrainingProgress(err)


def plain(text: str) -> str:
    """Text in which rich finds no markup."""
    from rich.markup import escape

    return escape(text)


def jsonable(value: Any) -> Any:
    """NaN and infinity become null: JSON has neither."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): jsonable(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(v) for v in value]
    return str(value) if isinstance(value, Path) else value


def print_line(data: Mapping[str, Any], as_json: bool, text: str) -> None:
    """One line: `data` as JSON, or `text`."""
    print(json.dumps(jsonable(data)) if as_json else text, flush=True)  # noqa: T201 - the command's result


def print_result(data: Mapping[str, Any], as_json: bool, keys: Iterable[str] | None = None) -> None:
    """A result by name; `keys`: those shown, unless as JSON."""
    if as_json:
        print_line(data, True, "")
        return
    table = Table(show_header=False, box=None)
    for key in keys or data:
        table.add_row(f"[bold]{key}", plain(_short(data[key])))
    out.print(table)


def print_of_text(data: Mapping[str, Any], as_json: bool, language: bool) -> None:
    """A result by name; for people, what a language model's frames and episodes are called. JSON has one set of names."""
    names = {"frames": "tokens", "episodes": "texts"} if language and not as_json else {}
    kept = {key: value for key, value in data.items() if not (names and key == "steps")}  # a step is a token
    print_result({names.get(key, key): value for key, value in kept.items()}, as_json)


def print_table(rows: list[dict[str, Any]], as_json: bool, keys: Iterable[str] | None = None) -> None:
    """Rows of equal keys."""
    if as_json:
        print(json.dumps(jsonable(rows)))  # noqa: T201 - the command's result
        return
    table = Table(box=None)
    names = tuple(keys or (rows[0] if rows else ()))
    for name in names:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(plain(_short(row[name])) for name in names))
    out.print(table if rows else "none")


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_short(v)}" for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(_short(v) for v in value)
    return "–" if value is None else str(value)
