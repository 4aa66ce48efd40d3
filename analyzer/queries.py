"""Reading the store: the only module through which the page and the command line read a database.

The connection is read-only and waits at most `BUSY_S` for a writer; nothing here needs torch. The file need not exist
yet, may be replaced while it is watched, and its writer may be killed at any moment: `Reader.ready` says whether there
is something to read. Whatever sqlite says is translated: StoreError for a moment that passes, ForeignDatabase for a
file that is not ours.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, Final, Self, TypeVar

import numpy as np

from interlatent_live.analyzer import attributions
from interlatent_live.analyzer.blobs import unpack_columns, unpack_matrix
from interlatent_live.analyzer.codes import Codes
from interlatent_live.analyzer.interventions import EffectRow, InterventionRow, OutcomeRow, decode_intervention, decode_outcome
from interlatent_live.analyzer.prompts import PairRow, PromptRow, TokenRow
from interlatent_live.analyzer.records import (
    Activity,
    BatchRow,
    Boot,
    CodesRow,
    DictionaryRow,
    Drift,
    Episode,
    Event,
    GapRow,
    LedgerRow,
    Peak,
    PictureRow,
    Quality,
    ScalarRow,
    Section,
    Snapshot,
    TopCorrelation,
)
from interlatent_live.analyzer.store import APPLICATION_ID
from interlatent_live.analyzer.writer import translated
from interlatent_live.stream.attribution import Attribution
from interlatent_live.stream.errors import ForeignDatabase, MalformedMessage, StoreError
from interlatent_live.stream.manifest import Manifest

__all__ = ["BUSY_S", "Reader"]

BUSY_S: Final = 0.1
"""Seconds to wait for a lock before the question is given up."""
_COUNTED: Final = ("boots", "sections", "episodes", "events", "peaks", "correlation_snapshots", "drift", "pictures")
Row = TypeVar("Row")


def _columns(kind: type[Any]) -> str:
    """The columns that a row class asks for: its fields, but for names that Python or the class keeps for itself."""
    renamed = {"return_": "return"} if kind is Episode else {"codes": "blob"} if kind is CodesRow else {}
    return ", ".join(renamed.get(f.name, f.name) for f in fields(kind))


class Reader:
    """A read-only view of one database, for one thread."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._db: sqlite3.Connection | None = None
        self.identity: tuple[int, int] | None = None
        """Device and inode of the file last read: row ids of different files do not compare."""
        self._manifests: dict[str, Manifest] = {}

    def close(self) -> None:
        """Let go of the file; the next question opens it again."""
        if self._db is not None:
            self._db.close()
        self._db = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ready(self) -> bool:
        """Whether there is a database of ours to read. Raises ForeignDatabase for any other file."""
        return self._open() is not None

    @contextmanager
    def consistent(self) -> Iterator[None]:
        """Everything asked within sees one state of the database."""
        db = self._open()
        if db is None or db.in_transaction:
            yield
            return
        with translated(self.path):
            db.execute("BEGIN")
        try:
            yield
        finally:
            with translated(self.path):
                if db.in_transaction:
                    db.execute("ROLLBACK")

    def run(self) -> str | None:
        """The one run that this file belongs to, once it is known."""
        row = self._first("SELECT value FROM meta WHERE key = 'run'")
        return str(row[0]) if row else None

    def origin(self) -> dict[str, str]:
        """Where the frames came from: 'endpoint' and 'follows', the folder whose dictionaries are swapped in; or 'recording'."""
        return {str(k): str(v) for k, v in self._rows("SELECT key, value FROM meta WHERE key IN ('endpoint', 'follows', 'recording')")}

    def boots(self) -> list[Boot]:
        """Processes of the agent, oldest first; one whose start is not known yet is taken for the newest."""
        found = self._select(Boot, "boots")
        return sorted(found, key=lambda b: (b.started_wall_ns is None, b.started_wall_ns or 0))

    def manifest(self, hash: str) -> Manifest | None:
        """The manifest of that hash; NULL where its body cannot be read."""
        if hash not in self._manifests:
            row = self._first("SELECT body FROM manifests WHERE hash = ?", hash)
            if not row:
                return None
            try:
                self._manifests[hash] = Manifest.from_dict(json.loads(row[0]))
            except (MalformedMessage, ValueError) as error:
                raise StoreError(f"{self.path}: manifest {hash} cannot be read ({error}); it is damaged") from error
        return self._manifests[hash]

    def dictionary(self, hash: str) -> DictionaryRow | None:
        """The dictionary of that hash."""
        found = self._select(DictionaryRow, "dictionaries WHERE hash = ?", hash)
        return found[0] if found else None

    def sections(self, boot: str) -> list[Section]:
        """Sections of a boot, in the order in which they began."""
        return self._select(Section, "sections WHERE boot = ? ORDER BY id", boot)

    def batches(self, boot: str, after_id: int, limit: int = 1_000) -> list[BatchRow]:
        """The next batches of a boot, oldest first."""
        return self._select(BatchRow, "batches WHERE id > ? AND boot = ? ORDER BY id LIMIT ?", after_id, boot, limit)

    def newest_batches(self, boot: str, span_ns: int, frames: int) -> list[BatchRow]:
        """The batches of a boot's last `span_ns` of frame time, with at most about `frames` frames; oldest first."""
        ids: list[int] = []
        newest: int | None = None
        sql = "SELECT id, rows, last_monotonic_ns FROM batches WHERE boot = ? ORDER BY id DESC LIMIT ?"
        for id_, rows, last in self._rows(sql, boot, frames):
            newest = last if newest is None else newest
            frames -= rows
            if ids and (frames < 0 or newest - last > span_ns):
                break
            ids.append(id_)
        return self.batches(boot, ids[-1] - 1, len(ids)) if ids else []

    def batch_range(self, boot: str, first_id: int, last_id: int) -> list[BatchRow]:
        """The batches of a boot with ids in [first_id, last_id], oldest first."""
        return self._select(BatchRow, "batches WHERE id BETWEEN ? AND ? AND boot = ? ORDER BY id", first_id, last_id, boot)

    def batch_blobs(self, boot: str, first_id: int, last_id: int) -> list[tuple[int, int, int, bytes]]:
        """The same, undecoded: (id, first frame, rows, columns), for `blobs.unpack_together`."""
        sql = "SELECT id, first_seq, rows, columns FROM batches WHERE id BETWEEN ? AND ? AND boot = ? ORDER BY id"
        return [(i, first, rows, blob) for i, first, rows, blob in self._rows(sql, first_id, last_id, boot)]

    def code_blobs(self, section: int, first_batch: int, last_batch: int) -> list[tuple[int, bytes | None, int, bytes]]:
        """Codes of a section, undecoded: (batch, rows, encoded, codes); see schema.sql."""
        sql = "SELECT batch_id, rows, encoded, blob FROM codes WHERE batch_id BETWEEN ? AND ? AND section_id = ? ORDER BY batch_id"
        return [(batch, rows, encoded, blob) for batch, rows, encoded, blob in self._rows(sql, first_batch, last_batch, section)]

    def batch_id_at(self, boot: str, seq: int) -> int | None:
        """Id of the batch that `batch_at` gives, without reading it."""
        mine = "SELECT id FROM batches WHERE run = (SELECT run FROM boots WHERE boot = ?) AND boot = ?"
        row = self._first(f"{mine} AND first_seq <= ? ORDER BY first_seq DESC LIMIT 1", boot, boot, seq)
        row = row or self._first(f"{mine} ORDER BY first_seq LIMIT 1", boot, boot)
        return int(row[0]) if row else None

    def batch_at(self, boot: str, seq: int) -> BatchRow | None:
        """The batch that holds frame `seq`; the one before it where that frame is missing, or the oldest kept."""
        mine = "batches WHERE run = (SELECT run FROM boots WHERE boot = ?) AND boot = ?"  # both, so that their index serves
        found = self._select(BatchRow, f"{mine} AND first_seq <= ? ORDER BY first_seq DESC LIMIT 1", boot, boot, seq)
        found = found or self._select(BatchRow, f"{mine} ORDER BY first_seq LIMIT 1", boot, boot)
        return found[0] if found else None

    def extent(self, boot: str) -> tuple[int, int, int, int] | None:
        """What is kept of a boot: ids of its first and last batch, its first frame, and one past its last; None for nothing."""
        sql = "SELECT id, first_seq, first_seq + rows FROM batches WHERE run = (SELECT run FROM boots WHERE boot = ?) AND boot = ?"
        first = self._first(f"{sql} ORDER BY first_seq LIMIT 1", boot, boot)
        last = self._first(f"{sql} ORDER BY first_seq DESC LIMIT 1", boot, boot)
        return (first[0], last[0], first[1], last[2]) if first and last else None

    def clock_at(self, boot: str, seq: int) -> int | None:
        """About when frame `seq` was made, monotonic ns, from its batch's edges: cheap, no blob is read. None where nothing is kept."""
        columns = "first_seq, rows, first_monotonic_ns, last_monotonic_ns"
        sql = f"SELECT {columns} FROM batches WHERE run = (SELECT run FROM boots WHERE boot = ?)"
        row = self._first(f"{sql} AND boot = ? AND first_seq <= ? ORDER BY first_seq DESC LIMIT 1", boot, boot, seq)
        row = row or self._first(f"{sql} AND boot = ? ORDER BY first_seq LIMIT 1", boot, boot)
        if not row:
            return None
        first, rows, began, ended = row
        return int(began + (ended - began) * min(max(0, seq - first), rows - 1) / max(1, rows - 1))

    def non_finite(self, section: int, first_batch: int, last_batch: int) -> int:
        """Frames of the batches in [first_batch, last_batch] that were refused because an activation was NaN or infinite."""
        sql = "SELECT coalesce(sum(non_finite), 0) FROM codes WHERE batch_id BETWEEN ? AND ? AND section_id = ?"
        row = self._first(sql, first_batch, last_batch, section)
        return int(row[0]) if row else 0

    def event_starts(self, section: int, after_id: int, limit: int = 20_000) -> list[tuple[int, int]]:
        """The next closed events after an id as (id, first frame), oldest first: cheap, to see where there were many."""
        return [(int(i), int(s)) for i, s in self._rows(
            "SELECT id, first_seq FROM events WHERE section_id = ? AND id > ? ORDER BY id LIMIT ?", section, after_id, limit
        )]  # fmt: skip

    def codes(self, section: int, first_batch: int, last_batch: int) -> list[CodesRow]:
        """Codes of one section for the batches with ids in [first_batch, last_batch]."""
        where = "codes WHERE batch_id BETWEEN ? AND ? AND section_id = ? ORDER BY batch_id"
        return self._select(CodesRow, where, first_batch, last_batch, section)

    def activity(self, section: int) -> Activity | None:
        """Activity of every feature of a section; NULL before its first snapshot."""
        found = self._select(Activity, "activity WHERE section_id = ?", section)
        return found[0] if found else None

    def snapshot_id(self, section: int, span: str = "rolling", until_seq: int | None = None) -> int | None:
        """Id of the newest snapshot, not of frames after `until_seq` if given: cheap, to ask whether there is a new one."""
        until = (1 << 62) if until_seq is None else until_seq
        sql = "SELECT max(id) FROM correlation_snapshots WHERE section_id = ? AND span = ? AND next_seq <= ?"
        row = self._first(sql, section, span, until)
        return None if not row or row[0] is None else int(row[0])

    def snapshot(self, id: int) -> Snapshot | None:
        """The snapshot of that id."""
        found = self._select(Snapshot, "correlation_snapshots WHERE id = ?", id)
        return found[0] if found else None

    def top_correlations(self, snapshot: int) -> list[TopCorrelation]:
        """The strongest pairs of a snapshot, strongest first."""
        where = "correlations WHERE snapshot_id = ? ORDER BY abs(r) DESC, metric, feature"
        return self._select(TopCorrelation, where, snapshot)

    def events(self, section: int, after_id: int = 0, limit: int = 1_000) -> list[Event]:
        """The newest closed events after an id, oldest first."""
        where = "events WHERE section_id = ? AND id > ? ORDER BY id DESC LIMIT ?"
        return self._select(Event, where, section, after_id, limit)[::-1]

    def event_peaks(self, section: int, feature: int, limit: int = 500) -> list[float]:
        """The largest activation in each of the newest closed events of a feature."""
        where = "events WHERE section_id = ? AND feature = ? ORDER BY first_seq DESC LIMIT ?"
        return [float(row[0]) for row in self._rows(f"SELECT peak FROM {where}", section, feature, limit)]

    def peaks(self, section: int, feature: int) -> list[Peak]:
        """A feature's strongest windows, strongest first."""
        where = "peaks WHERE section_id = ? AND feature = ? ORDER BY value DESC, seq"
        return self._select(Peak, where, section, feature)

    def quality(self, section: int, limit: int = 600, after_seq: int = -1) -> list[Quality]:
        """The last seconds of a section that begin after frame `after_seq`, oldest first."""
        where = "quality WHERE section_id = ? AND first_seq > ? ORDER BY first_seq DESC LIMIT ?"
        return self._select(Quality, where, section, after_seq, limit)[::-1]

    def drift(self, section: int, limit: int = 100) -> list[Drift]:
        """The last alarms of a section, oldest first."""
        return self._select(Drift, "drift WHERE section_id = ? ORDER BY id DESC LIMIT ?", section, limit)[::-1]

    def clips(self, section: int) -> dict[int, str]:
        """Recordings of the half minute before alarms, by the alarm's id, relative to the database's folder."""
        if not self._rows("SELECT 1 FROM pragma_table_info('drift') WHERE name = 'clip'"):
            return {}  # made before there were any
        rows = self._rows("SELECT id, clip FROM drift WHERE section_id = ? AND clip IS NOT NULL", section)
        return {int(id): str(clip) for id, clip in rows}

    def episodes(self, boot: str, env: int = 0, limit: int = 100) -> list[Episode]:
        """The last episodes of one environment, oldest first."""
        where = "episodes WHERE boot = ? AND env = ? ORDER BY episode DESC LIMIT ?"
        return self._select(Episode, where, boot, env, limit)[::-1]

    def picture(self, boot: str, env: int = 0, until_seq: int | None = None, after_seq: int = -1) -> PictureRow | None:
        """The newest picture of an environment, not after frame `until_seq` if given, but after frame `after_seq`."""
        until = (1 << 62) if until_seq is None else until_seq
        mine = "run = (SELECT run FROM boots WHERE boot = ?) AND boot = ?"  # both, so that the primary key serves
        where = f"pictures WHERE {mine} AND env = ? AND seq <= ? AND seq > ? ORDER BY seq DESC LIMIT 1"
        found = self._select(PictureRow, where, boot, boot, env, until, after_seq)
        return found[0] if found else None

    def attribution(self, boot: str, env: int = 0, until_seq: int | None = None) -> Attribution | None:
        """Why the newest explained action of an environment was taken, not after frame `until_seq` if given."""
        if not self._table("attributions"):
            return None  # made before there were any
        until = (1 << 62) if until_seq is None else until_seq
        mine = "run = (SELECT run FROM boots WHERE boot = ?) AND boot = ?"
        where = f"attributions WHERE {mine} AND env = ? AND seq <= ? ORDER BY seq DESC LIMIT 1"
        found = self._first(f"SELECT {attributions.COLUMNS} FROM {where}", boot, boot, env, until)
        return attributions.decode(found) if found else None

    def scalars(self, boot: str, name: str, limit: int = 10_000) -> list[ScalarRow]:
        """The last values that the training loop logged under a name, oldest first."""
        mine = "run = (SELECT run FROM boots WHERE boot = ?) AND boot = ?"
        where = f"scalars WHERE {mine} AND name = ? ORDER BY seq DESC LIMIT ?"
        return self._select(ScalarRow, where, boot, boot, name, limit)[::-1]

    def scalar_names(self, boot: str) -> list[str]:
        """What the training loop logged."""
        rows = self._rows("SELECT DISTINCT name FROM scalars WHERE boot = ? ORDER BY name", boot)
        return [str(row[0]) for row in rows]

    def interventions(self, boot: str, limit: int = 1_000_000) -> list[InterventionRow]:
        """The last that was done to the agent in a boot, in order; of older databases nothing."""
        if not self._table("interventions"):
            return []
        return self._select(InterventionRow, "interventions WHERE boot = ? ORDER BY number DESC LIMIT ?", boot, limit)[::-1]

    def effects(self, boot: str, number: int, limit: int = 10_000) -> list[EffectRow]:
        """The last measured effects of an intervention, oldest first."""
        if not self._table("effects"):
            return []
        return self._select(EffectRow, "effects WHERE boot = ? AND number = ? ORDER BY seq DESC LIMIT ?", boot, number, limit)[::-1]

    def outcome(self, boot: str, number: int, until_seq: int | None = None) -> OutcomeRow | None:
        """What was done with and without an intervention when it was last measured, not after frame `until_seq` if given."""
        if not self._table("outcomes"):
            return None
        until = (1 << 62) if until_seq is None else until_seq
        where = "outcomes WHERE boot = ? AND number = ? AND seq <= ? ORDER BY seq DESC LIMIT 1"
        found = self._select(OutcomeRow, where, boot, number, until)
        return found[0] if found else None

    def prompts(self, boot: str | None = None, after: int = -1, limit: int = 10_000) -> list[PromptRow]:
        """What a language model was given, after prompt `after`, oldest first; of all boots where none is named."""
        if not self._table("prompts"):
            return []
        where = "prompts WHERE (? IS NULL OR boot = ?) AND prompt > ? ORDER BY boot, prompt LIMIT ?"
        return self._select(PromptRow, where, boot, boot, after, limit)

    def pairs(self, boot: str) -> list[PairRow]:
        """Texts that were asked for with and without an intervention, oldest first; of older databases none."""
        return self._select(PairRow, "pairs WHERE boot = ? ORDER BY prompt", boot) if self._table("pairs") else []

    def tokens(self, boot: str, first_seq: int, next_seq: int) -> list[TokenRow]:
        """Tokens among frames [first_seq, next_seq), in order of frames."""
        if not self._table("tokens"):
            return []
        mine = "run = (SELECT run FROM boots WHERE boot = ?) AND boot = ?"
        return self._select(TokenRow, f"tokens WHERE {mine} AND seq >= ? AND seq < ? ORDER BY seq", boot, boot, first_seq, next_seq)

    def written(self, boot: str, prompt: int, limit: int = 100_000) -> list[TokenRow]:
        """Tokens of one prompt, in the order of its text."""
        if not self._table("tokens"):
            return []
        return self._select(TokenRow, "tokens WHERE boot = ? AND prompt = ? ORDER BY position LIMIT ?", boot, prompt, limit)

    def vocabulary(self) -> list[tuple[str, int, str]]:
        """(boot, token, text) of every token that was seen."""
        rows = self._rows("SELECT boot, token, text FROM vocabulary ORDER BY boot, token") if self._table("vocabulary") else []
        return [(str(boot), int(token), str(text)) for boot, token, text in rows]

    def episode_keys(self, boot: str) -> list[tuple[int, int]]:
        """(environment, episode) of a boot, in the order in which they began."""
        rows = self._rows("SELECT env, episode FROM episodes WHERE boot = ? ORDER BY first_seq, env", boot)
        return [(int(env), int(episode)) for env, episode in rows]

    def extent_of(self, boot: str, env: int, episode: int) -> tuple[int, int]:
        """Frames [first, next) between which those of an episode lie."""
        sql = "SELECT first_seq, last_seq + 1 FROM episodes WHERE boot = ? AND env = ? AND episode = ?"
        row = self._first(sql, boot, env, episode)
        return (int(row[0]), int(row[1])) if row else (0, 1 << 62)

    def language(self) -> dict[str, Any] | None:
        """Of a language model: prompts, tokens and labels, as plain data; None for an agent."""
        if not self._table("tokens"):
            return None
        sql = "SELECT count(*), count(DISTINCT token), sum(special), sum(generated), avg(logprob) FROM tokens"
        tokens, distinct, special, generated, logprob = self._first(sql)
        if not tokens:
            return None
        labels = self._rows(
            "SELECT j.key, j.value, count(*) FROM prompts p, json_each(p.labels) j GROUP BY j.key, j.value ORDER BY j.key, 3 DESC, j.value"
        )
        by_name: dict[str, dict[str, int]] = {}
        for name, value, count in labels:
            values = by_name.setdefault(str(name), {})
            if len(values) < 20:
                values[str(value)] = int(count)
        return {
            "prompts": self._first("SELECT count(*) FROM prompts")[0], "tokens": tokens, "distinct_tokens": distinct,
            "special_tokens": special, "written_tokens": generated, "mean_logprob": logprob, "labels": by_name,
        }  # fmt: skip

    def words(self, boot: str, tokens: Sequence[int]) -> dict[int, bytes]:
        """The text of some tokens as UTF-8 bytes, which may be a part of a character; see `stream.prompt.pieces`."""
        found: dict[int, bytes] = {}
        if not self._table("vocabulary"):
            return found
        wanted = sorted({int(token) for token in tokens})
        for begin in range(0, len(wanted), 500):
            some = wanted[begin : begin + 500]
            sql = f"SELECT token, bytes FROM vocabulary WHERE boot = ? AND token IN ({', '.join('?' * len(some))})"
            found |= {int(token): bytes(text) for token, text in self._rows(sql, boot, *some)}
        return found

    def ledger(self, boot: str) -> LedgerRow | None:
        """The accounts of a boot."""
        found = self._select(LedgerRow, "ledger WHERE boot = ?", boot)
        return found[0] if found else None

    def gaps(self, boot: str, limit: int = 1_000) -> list[GapRow]:
        """The last gaps of a boot, oldest first."""
        return self._select(GapRow, "gaps WHERE boot = ? ORDER BY first_seq DESC LIMIT ?", boot, limit)[::-1]

    def info(self) -> dict[str, Any]:
        """What the file holds, as plain data."""
        with self.consistent():
            counts = {t: self._first(f"SELECT count(*) FROM {t}")[0] for t in _COUNTED} if self.ready() else {}
            spans = self._rows(
                "SELECT sum(rows), max(last_monotonic_ns) - min(first_monotonic_ns) FROM batches GROUP BY run, boot"
            )
            return {
                "run": self.run(),
                "frames": sum(frames for frames, _ in spans),
                "frame_time_s": sum(span for _, span in spans) / 1e9,
                **counts,
                "dictionaries": [
                    {"hash": d.hash, "name": d.name, "kind": d.kind, "point": d.point, "features": d.features}
                    for d in self._select(DictionaryRow, "dictionaries ORDER BY hash")
                ],
                "ledger": {
                    row.boot: {"produced": row.produced, "received": row.received, "analyzed": row.analyzed}
                    for row in self._select(LedgerRow, "ledger ORDER BY boot")
                },
                **({} if (language := self.language()) is None else {"language": language}),
                "bytes": self.path.stat().st_size if self.path.exists() else 0,
            }

    def _open(self) -> sqlite3.Connection | None:
        """The connection, or None while there is nothing to read."""
        try:
            status = self.path.stat()
        except FileNotFoundError:
            self.close()
            return None
        except OSError as error:
            raise StoreError(f"{self.path}: {error.strerror}; check that it may be read") from error
        if self._db is not None and self.identity == (status.st_dev, status.st_ino):
            return self._db
        self.close()
        with translated(self.path):
            uri = f"{self.path.absolute().as_uri()}?mode=ro"
            db = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=BUSY_S)
            try:
                application = int(db.execute("PRAGMA application_id").fetchone()[0])
                tables = {row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            except BaseException:
                db.close()
                raise
        if application != APPLICATION_ID and (application or tables):
            db.close()
            what = f"a database of another program (application id {application:#x})"
            raise ForeignDatabase(f"{self.path} is {what}; name another file")
        if "ledger" not in tables:  # made this moment: the analyzer has not written its schema yet
            db.close()
            return None
        if self.identity != (status.st_dev, status.st_ino):
            self.identity = (status.st_dev, status.st_ino)
            self._manifests.clear()
        self._db = db
        return db

    def _table(self, name: str) -> bool:
        return bool(self._first("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?", name))

    def _rows(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        db = self._open()
        if db is None:
            return []
        with translated(self.path):
            return db.execute(sql, values).fetchall()

    def _first(self, sql: str, *values: Any) -> tuple[Any, ...]:
        found = self._rows(sql, *values)
        return found[0] if found else ()

    def _select(self, kind: type[Row], where: str, *values: Any) -> list[Row]:
        """Rows of a table as `kind`, whose fields are its columns."""
        rows = self._rows(f"SELECT {_columns(kind)} FROM {where}", *values)
        decode = _DECODERS.get(kind)
        return [kind(*row) for row in rows] if decode is None else [kind(*decode(row)) for row in rows]


def _codes(row: tuple[Any, ...]) -> Sequence[Any]:
    codes = Codes.from_blob(row[-1])
    rows = np.arange(codes.rows, dtype=np.int32) if row[-2] is None else np.frombuffer(row[-2], "<i4")
    if len(rows) != codes.rows:
        raise StoreError(f"codes of batch {row[0]} are of {codes.rows} rows, but {len(rows)} are named; the row is damaged")
    return (*row[:-2], rows, codes)


def _json(text: str | None) -> Any:
    return None if text is None else json.loads(text)


def _snapshot(row: tuple[Any, ...]) -> Sequence[Any]:
    metrics, features = tuple(json.loads(row[5])), unpack_matrix(row[6], -1, dtype="<u4")
    matrices = (unpack_matrix(blob, len(features), len(metrics)) for blob in row[7:])
    return (*row[:5], metrics, features, *matrices)


def _activity(row: tuple[Any, ...]) -> Sequence[Any]:
    blobs = (unpack_matrix(blob, -1, dtype=dtype) for blob, dtype in zip(row[3:], ("<u4", "<f4", "<f8"), strict=True))
    return (*row[:3], *blobs)


_DECODERS: Final[Mapping[type[Any], Callable[[tuple[Any, ...]], Sequence[Any]]]] = {
    Activity: _activity,
    InterventionRow: decode_intervention,
    OutcomeRow: decode_outcome,
    BatchRow: lambda row: (*row[:-1], unpack_columns(row[-1])),
    CodesRow: _codes,
    DictionaryRow: lambda row: (*row[:5], _json(row[5]), _json(row[6]), row[7]),
    PromptRow: lambda row: (*row[:-1], _json(row[-1])),
    LedgerRow: lambda row: (*row[:13], _json(row[13]), _json(row[14]), *row[15:]),
    Snapshot: _snapshot,
}
