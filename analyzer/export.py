"""A run as Parquet or CSV files, written block by block: memory stays that of some thousand frames.

Tables of frames begin with boot and seq, so that they join. Activations have a column for each unit, features a row for
each value that is not 0. Parquet needs pyarrow (extra `data`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from interlatent_live.analyzer.run import Run
from interlatent_live.analyzer.tables import FRAME_TABLES, frame_blocks, pandas
from interlatent_live.stream.errors import InterlatentError, RecordingError, RecordingExists

__all__ = ["KINDS", "export", "exportable"]

Format = Literal["parquet", "csv"]
FORMATS: Final = ("parquet", "csv")
KINDS: Final = (*FRAME_TABLES, "episodes", "scalars", "activations", "features", "events", "peaks", "correlations", "names", "notes")
"""What can be asked for."""
_ANALYSIS: Final = ("features", "events", "peaks", "correlations", "names", "notes")
_BLOCK: Final = 16_384
Blocks = Iterator[Any]


def exportable(run: Run) -> tuple[str, ...]:
    """What of KINDS a run has."""
    return tuple(
        kind for kind in KINDS
        if (run.analysed or kind not in _ANALYSIS) and (kind != "activations" or len(run.activations))
    )  # fmt: skip


def export(run: Run, out: Path, *, what: Iterable[str] | None = None, format: str | None = None) -> dict[str, int]:
    """Write what is asked for (None: all there is) into the folder `out`, or into the file `out` where it is one table
    and `out` ends in .parquet or .csv. Rows by path.

    Raises RecordingExists rather than overwrite a file.
    """
    wanted = list(dict.fromkeys(what if what is not None else exportable(run)))
    unknown = [kind for kind in wanted if kind not in KINDS]
    if unknown:
        raise RecordingError(f"{unknown[0]!r} cannot be exported; there is {', '.join(KINDS)}")
    single = out.suffix[1:] in FORMATS
    format = format or (out.suffix[1:] if single else "parquet")
    if format not in FORMATS or (single and out.suffix[1:] != format):
        raise RecordingError(f"format {format!r} for {out}; give {' or '.join(FORMATS)}, and a file name that ends so")
    for kind in wanted:
        if kind in _ANALYSIS and not run.analysed:
            getattr(run, kind)  # says what makes one
    tables = [table for kind in wanted for table in _tables(run, kind)]
    if single and len(tables) != 1:
        raise RecordingError(f"{out} is one file, but {len(tables)} tables are asked for: name a folder, or one of them")
    paths = {name: out if single else out / f"{_plain(name)}.{format}" for name, _ in tables}
    for path in paths.values():
        if path.exists():
            raise RecordingExists(f"{path} exists and is not overwritten; name another place with --out")
    write = _parquet if format == "parquet" else _csv
    if format == "parquet":
        _pyarrow()
    try:
        (out.parent if single else out).mkdir(parents=True, exist_ok=True)
        return {str(paths[name]): write(paths[name], blocks()) for name, blocks in tables}
    except OSError as error:
        raise RecordingError(f"{out} cannot be written: {error.strerror or error}") from error


def _tables(run: Run, kind: str) -> Iterator[tuple[str, Callable[[], Blocks]]]:
    if kind in FRAME_TABLES:
        yield kind, lambda: frame_blocks(run.selection, kind)
    elif kind == "activations":
        for name in run.activations:
            yield f"activations.{name}", lambda name=name: _activations(run, name)  # type: ignore[misc]
    elif kind == "features":
        short: dict[str, str] = {}
        for name, features in run.features.items():
            short.setdefault(features.dictionary.hash, name)
        for name in short.values():
            yield f"features.{name}", lambda name=name: _features(run, name)  # type: ignore[misc]
    else:
        yield kind, lambda: iter([getattr(run, kind)])


def _activations(run: Run, point: str) -> Blocks:
    return _gathered(
        {"boot": np.full(len(rows), batch.boot, object), "seq": batch.first_seq + rows}
        | {f"u{i}": column for i, column in enumerate(values.reshape(len(rows), -1).T)}
        for batch, rows, values in run.activations[point].blocks()
    )


def _features(run: Run, name: str) -> Blocks:
    def pieces() -> Iterator[Mapping[str, Any]]:
        for batch, rows, codes in run.features[name].blocks():
            found = codes.tocoo()
            yield {
                "boot": np.full(found.nnz, batch.boot, object),
                "seq": batch.first_seq + rows[found.coords[0]],
                "feature": found.coords[1].astype(np.int32),
                "value": found.data,
            }

    return _gathered(pieces())


def _gathered(pieces: Iterator[Mapping[str, Any]]) -> Blocks:
    """Pieces put together to tables of some thousand rows."""
    pd = pandas()
    held: list[Mapping[str, Any]] = []
    rows = 0
    for piece in pieces:
        held.append(piece)
        rows += len(piece["seq"])
        if rows >= _BLOCK:
            yield pd.DataFrame({name: np.concatenate([p[name] for p in held]) for name in held[0]})
            held, rows = [], 0
    if held:
        yield pd.DataFrame({name: np.concatenate([p[name] for p in held]) for name in held[0]})


def _plain(name: str) -> str:
    """A name that every file system takes."""
    return "".join(c if c.isalnum() or c in "._-" else "_" for c in name)


def _csv(path: Path, blocks: Blocks) -> int:
    rows = 0
    with path.open("x", newline="") as file:
        for block in blocks:
            block.to_csv(file, index=False, header=rows == 0)
            rows += len(block)
    return rows


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise InterlatentError("Parquet needs pyarrow: pip install 'interlatent-live[data]', or --format csv") from error
    return pyarrow, pyarrow.parquet


def _parquet(path: Path, blocks: Blocks) -> int:
    pyarrow, parquet = _pyarrow()
    rows, writer = 0, None
    try:
        for block in blocks:
            table = pyarrow.Table.from_pandas(block, preserve_index=False, schema=None if writer is None else writer.schema)
            writer = writer or parquet.ParquetWriter(path, table.schema, compression="zstd")
            writer.write_table(table)
            rows += len(block)
    finally:
        if writer is not None:
            writer.close()
    return rows
