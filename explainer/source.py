"""Reading the store: frames and features of one dictionary as they come, as a `Table` with its two parts.

1. The subject is what the page shows: of the newest boot's sections that began together last, the first. Frames of other
   boots count where dictionary, weights and metrics are the same.
2. `pull` reads the next batches, a bounded number at a time, and keeps the newest `max_frames` frames.
3. Episodes are numbered as they appear, for good: one that is held out stays held out when older ones are let go of. Those of a
   language model that were given the same text have one number: what was seen of it once is never held out again.

Reads only, through analyzer.queries; no torch. A batch of 32 frames costs about 0.2 ms; 60,000 frames of 44 metrics and
16 active features take about 50 MB.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from interlatent_live.analyzer.codes import Codes
from interlatent_live.analyzer.queries import Reader
from interlatent_live.analyzer.records import BatchRow, Boot, CodesRow, DictionaryRow, Section
from interlatent_live.explainer.labelled import labels_of
from interlatent_live.explainer.scoring import held_out_episodes
from interlatent_live.explainer.table import Features, Labels, Table
from interlatent_live.stream.errors import StoreError
from interlatent_live.stream.manifest import Manifest

__all__ = ["MAX_FRAMES", "Frames", "Piece", "Source", "Subject"]

MAX_FRAMES: Final = 60_000
_BEHIND_NS: Final = 10_000_000_000
_COLUMNS: Final = ("env", "episode", "episode_step", "policy_version", "metrics", "action", "reward", "terminated", "truncated",
                    "prompt", "token", "next_tokens")  # fmt: skip
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Subject:
    """What is explained: the features of one dictionary over the stream of one set of weights."""

    dictionary: DictionaryRow
    manifest: Manifest
    section: Section

    @property
    def key(self) -> tuple[str, str, tuple[str, ...]]:
        """Frames of equal keys may be counted together."""
        return self.dictionary.hash, self.manifest.weights_hash, self.manifest.metric_names

    @property
    def metrics(self) -> list[str]:
        """The metrics that explanations may use: those that describe what was acted on, not what came after."""
        return [m.name for m in self.manifest.metrics if m.scope == "observation"]

    @property
    def actions(self) -> dict[str, str]:
        """What the agent does in the frame, where that is numbers: `action[3]` to its name in words, 64 at most. A language
        model predicts: how sure it is of what comes next."""
        if self.language:
            expected = {"next_entropy": "entropy of what it expects next", "next_top": "its surest guess of what comes next"}
            return {name: said for name, said in expected.items() if name in self.manifest.metric_names}
        spec = self.manifest.action
        size = int(np.prod(spec.shape)) if spec.shape else 1
        if spec.kind != "continuous" or size > 64:
            return {}
        names = [f"action {spec.names[i]}" if i < len(spec.names) else f"action {i}" for i in range(size)]
        return {f"action[{i}]": name for i, name in enumerate(names)}

    @property
    def language(self) -> bool:
        """Whether a frame is a token of a language model."""
        return {"logprob", "next_entropy"} <= set(self.manifest.metric_names)

    def name(self, feature: int) -> str:
        """How a feature is called: f41, or n41 for a neuron."""
        return f"n{feature}" if self.dictionary.kind == "neurons" else f"f{feature}"


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """One batch."""

    boot: str
    first_seq: int
    t: npt.NDArray[np.float64]
    """(n,) seconds of the agent's monotonic clock since the boot began."""
    wall_ns: int
    """Wall clock of the last frame."""
    columns: dict[str, npt.NDArray[Any]]
    """Row columns, see stream.frames."""
    episode: npt.NDArray[np.int64]
    """(n,) the episode's number in the order of appearance; texts that began alike share the first one's."""
    encoded: Mask
    """(n,) rows whose features are known."""
    codes: Codes
    """Active features of all n rows; none where not encoded."""

    def __len__(self) -> int:
        return len(self.t)


@dataclass(frozen=True, slots=True, eq=False)
class Frames:
    """A table of what is kept, with its two parts."""

    table: Table
    seq: npt.NDArray[np.int64]
    """(n,) sequence numbers within the boot."""
    boots: tuple[str, ...]
    """Names of `table.boot`'s numbers."""
    training: Mask
    held_out: Mask
    """(n,) rows of held-out episodes."""
    policy: npt.NDArray[np.int64]
    """(n,) version of the weights that acted."""

    @property
    def policy_version(self) -> int:
        """Of the newest frame."""
        return int(self.policy[-1])

    def spans(self, rows: npt.NDArray[np.int64], around: int = 8) -> list[tuple[str, int, int]]:
        """(boot, first_seq, next_seq) around each of these rows."""
        return [(self.boots[int(self.table.boot[r])], max(0, int(self.seq[r]) - around), int(self.seq[r]) + around + 1) for r in rows]


class Source:
    """Frames of one database. For one thread."""

    def __init__(self, path: Path | str, *, max_frames: int = MAX_FRAMES, point: str | None = None) -> None:
        self.reader = Reader(path)
        self.max_frames = max_frames
        self.subject: Subject | None = None
        self.epoch = 0
        """Rises when what was kept was let go of: another dictionary, other weights, other metrics, another file."""
        self.frames = 0
        """Frames kept."""
        self.seen = 0
        """Frames read of this subject."""
        self.skipped = 0
        """Times that frames were left out because reading fell behind the stream."""
        self._point = point
        self._identity: tuple[int, int] | None = None
        self._pieces: deque[Piece] = deque()
        self._sections: dict[str, list[int]] = {}
        self._cursor: dict[str, int] = {}
        self._finished: set[str] = set()
        self._episodes: dict[tuple[str, int, int], int] = {}
        self._given: dict[int, int] = {}
        self._next_episode = 0

    def close(self) -> None:
        """Let go of the file."""
        self.reader.close()

    def pull(self, batches: int = 500) -> list[Piece]:
        """Read at most so many batches more; [] when there is nothing new. Raises StoreError for a moment that passes."""
        if not self.reader.ready():
            return []
        with self.reader.consistent():
            if not self._look():
                return []
            pieces: list[Piece] = []
            for boot in self._boots:
                if boot.boot in self._finished:
                    continue
                rows = self.reader.batches(boot.boot, self._cursor.get(boot.boot, 0), batches)
                pieces += self._take(boot, rows)
                batches -= len(rows)
                if batches <= 0:
                    break
                if boot is not self._boots[-1]:
                    self._finished.add(boot.boot)
        return pieces

    def skip(self) -> bool:
        """Leave out what lies more than ten seconds of frame time back; whether there was anything to leave out."""
        if self.subject is None:
            return False
        boot = self._boots[-1]
        rows = self.reader.newest_batches(boot.boot, _BEHIND_NS, 20_000)
        if not rows or rows[0].id <= self._cursor.get(boot.boot, 0) + 1:
            return False
        self._cursor[boot.boot] = rows[0].id - 1
        self.skipped += 1
        return True

    def kept(self) -> Frames | None:
        """Everything that is kept, or None while there is nothing."""
        if not self._pieces or self.subject is None:
            return None
        with self.reader.consistent():
            labels = labels_of(self.reader, list(self._pieces))
        return gather(self._pieces, self.subject.manifest, self.subject.dictionary.features, labels)

    def _look(self) -> bool:
        """Find the subject; whether there is one."""
        self._boots = self.reader.boots()
        if self.reader.identity != self._identity:
            self._identity = self.reader.identity
            self._reset(None)
        if not self._boots:
            return False
        sections = [s for s in self.reader.sections(self._boots[-1].boot) if self._point in (None, s.point)]
        if not sections:
            return False
        section = next(s for s in sections if s.first_seq == sections[-1].first_seq)
        if self.subject is None or section.id != self.subject.section.id:
            dictionary, manifest = self.reader.dictionary(section.dictionary_hash), self.reader.manifest(section.manifest_hash)
            if dictionary is None or manifest is None:
                return False
            subject = Subject(dictionary, manifest, section)
            afresh = self.subject is None or subject.key != self.subject.key
            if afresh:
                self._reset(subject)
            self.subject = subject
            self._sections = {b.boot: self._alike(b, subject) for b in self._boots}
            first = self.reader.batch_at(section.boot, section.first_seq) if afresh and section.reason == "swap" else None
            if first is not None and self._sections[section.boot] == [section.id]:
                self._cursor[section.boot] = first.id - 1  # it was not there before, and what happened then has been told
            self._boots_alike()
        else:
            self.subject = Subject(self.subject.dictionary, self.subject.manifest, section)
            self._boots_alike()
        return True

    def _boots_alike(self) -> None:
        self._boots = [b for b in self._boots if self._sections.get(b.boot)]

    def _alike(self, boot: Boot, subject: Subject) -> list[int]:
        """Sections of a boot that belong to the subject."""
        found = []
        for section in self.reader.sections(boot.boot):
            if section.dictionary_hash == subject.dictionary.hash and section.point == subject.section.point:
                manifest = self.reader.manifest(section.manifest_hash)
                if manifest is not None and Subject(subject.dictionary, manifest, section).key == subject.key:
                    found.append(section.id)
        return found

    def _reset(self, subject: Subject | None) -> None:
        self.subject = subject
        self.epoch += 1
        self.frames = self.seen = 0
        self._pieces.clear()
        self._sections, self._cursor, self._episodes, self._given, self._finished = {}, {}, {}, {}, set()
        self._next_episode = 0

    def _take(self, boot: Boot, rows: list[BatchRow]) -> list[Piece]:
        if not rows or self.subject is None:
            return []
        found: dict[int, CodesRow] = {}
        for section in self._sections[boot.boot]:
            found |= {c.batch_id: c for c in self.reader.codes(section, rows[0].id, rows[-1].id)}
        start, width = self.subject.manifest.started_monotonic_ns, len(self.subject.manifest.metrics)
        made = self.reader.manifest(boot.manifest_hash) if boot.manifest_hash else None
        if made is not None:
            start = made.started_monotonic_ns
        pieces = []
        for row in rows:
            codes = found.get(row.id)
            if codes is None and row.manifest_hash != self.subject.section.manifest_hash:
                continue  # another stretch of the boot, whose metrics may be others
            pieces.append(self._piece(row, codes, start, width))
        self._cursor[boot.boot] = rows[-1].id
        for piece in pieces:
            self._pieces.append(piece)
            self.frames += len(piece)
            self.seen += len(piece)
        while self.frames > self.max_frames and len(self._pieces) > 1:
            self.frames -= len(self._pieces.popleft())
        if len(self._episodes) > 50_000:  # episodes long gone
            newest = self._next_episode - 25_000
            self._episodes = {k: n for k, n in self._episodes.items() if n >= newest}
            self._given = {k: n for k, n in self._given.items() if n >= newest}
        return pieces

    def _piece(self, row: BatchRow, codes: CodesRow | None, start_ns: int, width: int) -> Piece:
        assert self.subject is not None
        encoded, aligned = align(row.rows, self.subject.dictionary.features, codes)
        columns = {name: row.columns[name] for name in _COLUMNS if name in row.columns}
        if "metrics" in columns and columns["metrics"].shape[1:] != (width,):
            raise StoreError(f"batch {row.id} has {columns['metrics'].shape[1:]} metrics, its manifest {width}; the row is damaged")
        pairs = np.stack([columns["env"], columns["episode"]], axis=1).astype(np.int64)
        unique, first, inverse = np.unique(pairs, axis=0, return_index=True, return_inverse=True)
        numbers = np.zeros(len(unique), np.int64)
        for place in np.argsort(first):
            key = (row.boot, int(unique[place, 0]), int(unique[place, 1]))
            if key not in self._episodes:
                self._episodes[key] = self._number(row.boot, columns, int(first[place]))
            numbers[place] = self._episodes[key]
        t = (row.columns["monotonic_ns"] - start_ns) / 1e9
        return Piece(row.boot, row.first_seq, t, row.last_wall_ns, columns, numbers[inverse.reshape(-1)], encoded, aligned)


    def _number(self, boot: str, columns: Mapping[str, npt.NDArray[Any]], row: int) -> int:
        """Of the episode that has this row: the next, or that of an earlier one which was given the same text."""
        number = self._next_episode
        if "prompt" in columns:
            prompt = int(columns["prompt"][row])
            given = hash(next((p.text for p in self.reader.prompts(boot, prompt - 1, 1) if p.prompt == prompt), f"{boot}/{prompt}"))
            number = self._given.setdefault(given, number)
        if number == self._next_episode:
            self._next_episode += 1
        return number


def align(rows: int, features: int, found: CodesRow | None) -> tuple[Mask, Codes]:
    """Which of a batch's rows were encoded, and their codes with an empty row for each other."""
    encoded = np.zeros(rows, np.bool_)
    if found is None or found.codes.features != features:
        return encoded, Codes.empty(rows, features)
    encoded[found.rows] = True
    if found.codes.rows == rows:
        return encoded, found.codes
    counts = np.zeros(rows, np.int32)
    counts[found.rows] = found.codes.counts
    indptr = np.concatenate(([0], np.cumsum(counts))).astype(np.int32)
    return encoded, Codes(indptr, found.codes.indices, found.codes.values, features)


def gather(pieces: Iterable[Piece], manifest: Manifest, features: int, labels: Mapping[str, Labels] | None = None) -> Frames:
    """One table of several pieces. `labels`: text columns over their frames."""
    from scipy.sparse import csr_array

    pieces = list(pieces)
    names = set.intersection(*(set(p.columns) for p in pieces))
    columns: dict[str, npt.NDArray[Any]] = {
        name: np.concatenate([p.columns[name] for p in pieces]) for name in _COLUMNS if name in names
    }
    rows = sum(len(p) for p in pieces)
    counts = np.concatenate([p.codes.counts for p in pieces])
    indptr = np.concatenate(([0], np.cumsum(counts, dtype=np.int64)))
    indices = np.concatenate([p.codes.indices for p in pieces]).astype(np.int32)
    values = np.concatenate([p.codes.values for p in pieces])
    matrix = csr_array((values, indices, indptr), shape=(rows, features))
    boots = tuple(dict.fromkeys(p.boot for p in pieces))
    boot = np.repeat([boots.index(p.boot) for p in pieces], [len(p) for p in pieces])
    table = Table.of(columns, manifest, features=Features(matrix, np.concatenate([p.encoded for p in pieces])), boot=boot,
                     labels=labels)  # fmt: skip
    held_out = held_out_episodes(np.concatenate([p.episode for p in pieces]))
    seq = np.concatenate([p.first_seq + np.arange(len(p)) for p in pieces])
    return Frames(table, seq, boots, ~held_out, held_out, columns["policy_version"].astype(np.int64))
