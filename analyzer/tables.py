"""A run's columns and rows as pandas tables; the columns' units and where a table is from stand in `attrs`.

Tables of frames are indexed by sequence number (by boot as well, where the agent was started again). `pandas` comes
with the extra `data`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from interlatent_live.analyzer.episodes import Episode, Episodes
from interlatent_live.analyzer.selection import Selection
from interlatent_live.analyzer.sources import Source, Stored
from interlatent_live.stream.errors import InterlatentError
from interlatent_live.stream.frames import FrameBatch

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "FRAME_TABLES",
    "correlations",
    "episodes",
    "events",
    "frame_blocks",
    "frames_table",
    "pandas",
    "peaks",
    "people",
    "scalars",
    "stored_episodes",
]

Array = npt.NDArray[Any]
Rows = npt.NDArray[np.int64]
Columns = dict[str, Array]
Take = Callable[[FrameBatch, Rows], Columns]
_BLOCK_FRAMES: Final = 16_384


def pandas() -> Any:
    """The package, or an error that says how to get it."""
    try:
        import pandas as found
    except ImportError as error:
        raise InterlatentError("tables need pandas: pip install 'interlatent-live[data]'") from error
    return found


def _base(batch: FrameBatch, rows: Rows) -> Columns:
    names = ("step", "env", "episode", "episode_step", "monotonic_ns", "wall_ns", "policy_version", "forward_age")
    found = {name: batch.columns[name][rows] for name in names}
    for name in ("reward", "terminated", "truncated"):
        column = batch.columns.get(name)
        unknown: Array = np.full(len(rows), np.nan) if name == "reward" else np.zeros(len(rows), np.bool_)
        found[name] = unknown if column is None else column[rows]
    return found


def _wide(column: str, names: Sequence[str], width: int) -> Take:
    """The parts of a column under their names; NaN where a batch does not have it."""

    def take(batch: FrameBatch, rows: Rows) -> Columns:
        values = batch.columns.get(column)
        flat = None if values is None else values[rows].reshape(len(rows), -1)
        if flat is None or flat.shape[1] != width:
            flat = np.full((len(rows), width), np.nan, np.float32 if column == "observation" else np.float64)
        return {name: flat[:, i] for i, name in enumerate(names)}

    return take


def _unique(names: Sequence[str], width: int, kind: str) -> list[str]:
    """`width` names, made up where there are not so many different ones."""
    usable = len(names) == width and len(set(names)) == width
    return list(names) if usable else [f"{kind}[{i}]" for i in range(width)] if width != 1 else [kind]


def _metrics(source: Source) -> tuple[Take, dict[str, Any]]:
    specs = source.manifest.metrics
    attrs = {
        "units": {m.name: m.unit for m in specs},
        "scopes": {m.name: m.scope for m in specs},
        "descriptions": {m.name: m.description for m in specs},
    }
    by_hash = {m.hash: m.metric_names for m in source.manifests()}

    def take(batch: FrameBatch, rows: Rows) -> Columns:
        values = batch.columns.get("metrics")
        known = by_hash.get(batch.manifest_hash, source.manifest.metric_names)
        held = {} if values is None or values.shape[1] != len(known) else {name: values[rows, i] for i, name in enumerate(known)}
        return {m.name: held[m.name] if m.name in held else np.full(len(rows), np.nan) for m in specs}

    return take, attrs


def _observations(source: Source) -> tuple[Take, dict[str, Any]]:
    manifest = source.manifest
    width = int(np.prod(manifest.observation_shape, dtype=np.int64)) if manifest.observation_shape else len(manifest.observation_names)
    return _wide("observation", _unique(manifest.observation_names, width, "observation"), width), {"shape": manifest.observation_shape}


def _actions(source: Source) -> tuple[Take, dict[str, Any]]:
    action, width = source.manifest.action, 0
    for extent in np.flatnonzero(source.extents["rows"]):
        first = next(iter(source.batches(int(extent))), None)
        if first is not None:
            column = first.columns.get("action")
            width = 0 if column is None else int(np.prod(column.shape[1:], dtype=np.int64))
            break
    names = action.names if action.kind == "continuous" else ()
    return _wide("action", _unique(names, width, "action"), width), {"kind": action.kind, "names": action.names}


FRAME_TABLES: Final[Mapping[str, Callable[[Source], tuple[Take, dict[str, Any]]]]] = {
    "frames": lambda _: (_base, {"units": {"monotonic_ns": "ns", "wall_ns": "ns"}}),
    "metrics": _metrics,
    "observations": _observations,
    "actions": _actions,
}
"""Tables with a row for each frame."""


def frames_table(selection: Selection, name: str) -> pd.DataFrame:
    """One of FRAME_TABLES. Its memory is that of the table, and one chunk."""
    pd = pandas()
    take, attrs = FRAME_TABLES[name](selection.source)
    total = selection.frames
    columns: Columns = {}
    seq, boot = np.empty(total, np.int64), np.empty(total, np.int32)
    filled = 0
    for batch, rows in selection:
        end = filled + len(rows)
        for column, values in take(batch, rows).items():
            if column not in columns:
                columns[column] = np.empty(total, values.dtype)
            columns[column][filled:end] = values
        seq[filled:end], boot[filled:end] = batch.first_seq + rows, selection.source.boots.index(batch.boot)
        filled = end
    index = _index(selection, seq[:filled], boot[:filled])
    table = pd.DataFrame({name: values[:filled] for name, values in columns.items()}, index=index, copy=False)
    table.attrs |= attrs | {"run": selection.source.manifest.run, "selection": str(selection.where)}
    return table


def frame_blocks(selection: Selection, name: str) -> Iterator[pd.DataFrame]:
    """The same in pieces of some thousand frames, with `boot` and `seq` as columns."""
    pd = pandas()
    take, _ = FRAME_TABLES[name](selection.source)
    pieces: list[Columns] = []
    held = 0
    for batch, rows in selection:
        keys = {"boot": np.full(len(rows), batch.boot, object), "seq": batch.first_seq + rows}
        pieces.append(keys | take(batch, rows))
        held += len(rows)
        if held >= _BLOCK_FRAMES:
            yield pd.DataFrame(_stacked(pieces))
            pieces, held = [], 0
    if pieces:
        yield pd.DataFrame(_stacked(pieces))


def _stacked(pieces: Sequence[Columns]) -> Columns:
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}


def _index(selection: Selection, seq: Array, boot: Array) -> Any:
    pd = pandas()
    if len(selection.source.boots) < 2:
        return pd.Index(seq, name="seq")
    boots = pd.Categorical.from_codes(boot, list(selection.source.boots))
    return pd.MultiIndex.from_arrays([boots, seq], names=["boot", "seq"])


def scalars(source: Source) -> pd.DataFrame:
    """What the training loop logged: boot, seq (of the row of scalars), step (that came next), monotonic_ns, wall_ns,
    policy_version, name, value; one row for each name and time.
    """
    pd = pandas()
    pieces = [pd.DataFrame(piece) for piece in source.scalars()]
    names = ("boot", "seq", "step", "monotonic_ns", "wall_ns", "policy_version", "name", "value")
    return pd.concat(pieces, ignore_index=True) if pieces else pd.DataFrame({name: [] for name in names})


def episodes(selection: Selection) -> pd.DataFrame:
    """One row for each episode: boot, env, episode, first_seq, last_seq, steps, return (NaN where a reward or a frame
    is missing), complete, terminated, truncated; by reading all frames.
    """
    pd = pandas()
    where = selection.where
    following: dict[str, Episodes] = {}
    found: list[tuple[str, Episode]] = []
    for batch, _ in selection:  # whole batches: what is not meant is left out below
        found += [(batch.boot, e) for e in following.setdefault(batch.boot, Episodes()).update(batch)]
    for boot, open_ones in following.items():
        found += [(boot, episode) for episode in open_ones.open()]
    found = [(boot, e) for boot, e in found if where.env in (None, e.env) and where.episode in (None, e.episode)]
    names = ("env", "episode", "first_seq", "last_seq", "steps", "total", "complete", "terminated", "truncated")
    table: dict[str, list[Any]] = {"boot": [boot for boot, _ in found]}
    table |= {name: [getattr(episode, name) for _, episode in found] for name in names}
    frame = pd.DataFrame(table).rename(columns={"total": "return"})
    frame["return"] = frame["return"].astype("float64")
    return frame.sort_values("first_seq", kind="stable", ignore_index=True) if len(following) < 2 else frame


def stored_episodes(stored: Stored, selection: Selection) -> pd.DataFrame:
    """The same as the analyzer followed them, also those whose frames were retired since."""
    where, values = _restricted(selection, "s", "first_seq", "last_seq", steps=False)
    names, rows = stored.reader.table(
        "SELECT boot, env, episode, first_seq, last_seq, steps, return, complete, terminated, truncated FROM episodes s "
        f"WHERE {where} ORDER BY boot, first_seq",
        *values,
    )
    frame = pandas().DataFrame([row for some in rows for row in some], columns=names)
    flags = ("complete", "terminated", "truncated")
    return frame.astype({"return": "float64"} | dict.fromkeys(flags, "bool"))


def events(stored: Stored, selection: Selection) -> pd.DataFrame:
    """Spans in which a feature was active: dictionary, point, boot, feature, env, episode, first_seq, last_seq,
    first_step, last_step, frames, peak, peak_seq, mean, ended_by.
    """
    where, values = _restricted(selection, "e", "first_step", "last_step")
    return _joined(stored, "e.feature, e.env, e.episode, e.first_seq, e.last_seq, e.first_step, e.last_step, e.frames, e.peak, "
                   "e.peak_seq, e.mean, e.ended_by", "events e", f"{where} ORDER BY e.id", values)  # fmt: skip


def peaks(stored: Stored, selection: Selection) -> pd.DataFrame:
    """Where each feature was strongest: dictionary, point, boot, feature, seq, env, episode, step, value and the stored
    window [window_first_seq, window_next_seq).
    """
    where, values = _restricted(selection, "e", "step", "step")
    return _joined(stored, "e.feature, e.seq, e.env, e.episode, e.step, e.value, e.window_first_seq, e.window_next_seq",
                   "peaks e", f"{where} ORDER BY d.name, e.feature, e.value DESC", values)  # fmt: skip


def _restricted(selection: Selection, table: str, first: str, last: str, *, steps: bool = True) -> tuple[str, list[Any]]:
    where = selection.where
    conditions, values = ["1"], []
    for name, value in ((f"{table}.env", where.env), (f"{table}.episode", where.episode), ("s.boot", where.boot)):
        if value is not None:
            conditions.append(f"{name} = ?")
            values.append(value)
    if steps and where.steps is not None:
        conditions.append(f"{table}.{last} >= ? AND {table}.{first} < ?")
        values += where.steps
    return " AND ".join(conditions), values


def _joined(stored: Stored, columns: str, table: str, where: str, values: Sequence[Any]) -> pd.DataFrame:
    pd = pandas()
    names, rows = stored.reader.table(
        f"SELECT d.name AS dictionary, d.point, s.boot, {columns} FROM {table} JOIN sections s ON s.id = e.section_id "
        f"JOIN dictionaries d ON d.hash = s.dictionary_hash WHERE {where}",
        *values,
    )
    return pd.DataFrame([row for some in rows for row in some], columns=names)


def correlations(stored: Stored) -> pd.DataFrame:
    """Every feature with every metric since its section began, by the newest snapshot of each dictionary: dictionary,
    point, feature, metric, r, n, n_eff, low, high, q; the strongest first, undefined ones last.
    """
    pd = pandas()
    pieces = []
    for id_, point, name in stored.reader.newest_snapshots("start"):
        snapshot = stored.reader.snapshot(id_)
        if snapshot is None:
            continue
        features, metrics = len(snapshot.features), len(snapshot.metrics)
        columns: dict[str, Any] = {
            "dictionary": name,
            "point": point,
            "feature": np.repeat(snapshot.features.astype(np.int64), metrics),
            "metric": np.tile(np.array(snapshot.metrics, object), features),
        }
        columns |= {field: getattr(snapshot, field).reshape(-1) for field in ("r", "n", "n_eff", "low", "high", "q")}
        pieces.append(pd.DataFrame(columns))
    if not pieces:
        names = ("dictionary", "point", "feature", "metric", "r", "n", "n_eff", "low", "high", "q")
        return pd.DataFrame({field: [] for field in names})
    table = pd.concat(pieces, ignore_index=True)
    return table.iloc[(-table["r"].abs()).argsort(kind="stable")].reset_index(drop=True)


def people(stored: Stored, table: str) -> pd.DataFrame:
    """What people say of features, the oldest first: dictionary, dictionary_hash, feature, author, wall_ns, and of `names` the label
    (none where it was taken back), of `notes` when it was edited and the text.
    """
    pd = pandas()
    columns = {"names": ("label",), "notes": ("edited_wall_ns", "text")}[table]
    of = ("dictionary_hash", "feature", "author", "wall_ns", *columns)
    there = stored.reader.table("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?", table)[1]
    if not any(there):
        return pd.DataFrame({name: [] for name in ("dictionary", *of)})  # of an older build
    names, rows = stored.reader.table(
        f"SELECT d.name AS dictionary, {', '.join(f'p.{name}' for name in of)} FROM {table} p "
        "LEFT JOIN dictionaries d ON d.hash = p.dictionary_hash ORDER BY p.id"
    )
    return pd.DataFrame([row for some in rows for row in some], columns=names)
