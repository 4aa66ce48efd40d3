"""One pull of the database for all pages of this process.

There is one feed for each environment and source of features that somebody looks at. Every session asks `Feed.pull()` on
its own callback; at most once in `PULL_S` does it read. What it read is kept as counted rows and columns, so a slow page takes
several steps at once. Every choice of rows and pairs that a page looks at has its drawing, which grows with the frames.
A database that is missing, locked, damaged or replaced is a state to show, never an error to raise.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final
from weakref import WeakSet

import numpy as np
import numpy.typing as npt

from interlatent_live.analyzer.records import (
    BatchRow,
    Boot,
    CodesRow,
    DictionaryRow,
    Episode,
    LedgerRow,
    PictureRow,
    Quality,
    Section,
    Snapshot,
)
from interlatent_live.explainer.reading import Explanation, NarrationLine, Pages, WatchedFrame
from interlatent_live.stream.errors import ForeignDatabase, StoreError
from interlatent_live.stream.manifest import Manifest
from interlatent_live.viewer.choice import Pair, choose_metrics, choose_pairs, choose_rows
from interlatent_live.viewer.drawing import PAIRS, ROWS, SPAN_S, Drawing
from interlatent_live.viewer.learning import Learning
from interlatent_live.viewer.past import Blocks, Clip
from interlatent_live.viewer.steered import Steered
from interlatent_live.viewer.summary import Freshness, freshness
from interlatent_live.viewer.text import plain
from interlatent_live.viewer.timeline import Timeline
from interlatent_live.viewer.window import Piece, Window, merge, piece

__all__ = ["METRICS", "PULL_S", "Feed"]

log = logging.getLogger(__name__)

METRICS: Final = 24
PULL_S: Final = 0.04
SLOW_S: Final = 0.5
"""Between readings of what changes slowly: boots, sections, ledger, snapshots, episodes."""
_REREAD = 3
"""Newest lines that are read again."""
PATIENCE_S: Final = 1.0
"""How long a database may refuse to be read before the page says so."""
MAX_BATCHES: Final = 2_000
SCALARS: Final = 4
CHANGES: Final = 1
"""Rows that may be given to another feature with one snapshot (5 s of frames)."""
LINES: Final = 300
"""Sentences kept."""
_CODES_A_LOOK: Final = 20_000
"""Batches whose refused frames are counted at a time."""
_TIMELINE_LOOKS: Final = 4
"""Looks at what changes slowly between two of the whole boot."""


class Feed:
    """The state of one environment and one source of features of a database, as a page shows it."""

    def __init__(self, path: Path, env: int = 0, source: str | None = None, boot: str | None = None) -> None:
        self.reader = Pages(path)
        self.path = Path(path)
        self.env, self.source, self.wanted = env, source, boot
        """`source`: tap point and dictionary wanted, as `sources` names them; None: the analyzer's own preference. `wanted`: boot."""
        self.boots: list[Boot] = []
        """All starts of the agent, oldest first."""
        self.problem = ""
        """Why the database cannot be read just now, '' while it can."""
        self.failures = 0
        self.slow = 0
        """Rises with every reading of what changes slowly."""
        self._pulled = self._slow_at = -float("inf")
        self._period_looked = -1
        self._identity: tuple[int, int] | None = None
        self._failing_since: float | None = None
        self._reset(None)

    def _reset(self, boot: Boot | None) -> None:
        self.boot = boot
        self.manifest: Manifest | None = None
        self.section: Section | None = None
        self.dictionary: DictionaryRow | None = None
        self.ledger: LedgerRow | None = None
        self.snapshot: Snapshot | None = None
        self.quality: list[Quality] = []
        self.episodes: list[Episode] = []
        self.picture: PictureRow | None = None
        self.window = Window(SPAN_S + 2)
        self.timeline, self.learning, self.steered = Timeline(), Learning(), Steered()
        self.explanations: dict[int, Explanation] = {}
        self.lines: list[NarrationLine] = []
        """Sentences about this environment, oldest first."""
        self.watched: list[WatchedFrame] = []
        """Frames in which a watchpoint's predicate came true, oldest first."""
        self.explained = False
        self._named = 0
        """The last change of a name that was read."""
        self.scalars: dict[str, list[tuple[int, float | None]]] = {}
        self.origin: dict[str, str] = {}
        """Where the frames come from, as the analyzer noted it: 'endpoint' and 'follows', or 'recording'."""
        self.sources: dict[str, str] = {}
        """What may be looked at: key and what it is called."""
        self.non_finite = 0
        """Frames refused because an activation was NaN or infinite, as far as they were counted."""
        self.rows: tuple[int, ...] = ()
        self.metrics: tuple[str, ...] = ()
        self.pairs: tuple[Pair, ...] = ()
        self.duty: dict[int, float] = {}
        self.shares: dict[int, float] = {}
        """Share of frames in which each feature that was ever active is."""
        self.newest_wall_ns: int | None = None
        self._sections: list[int] = []
        self._last_batch = 0
        self._committed_at = -float("inf")
        self._returns: tuple[int, float | None] = (-1, None)
        self._step = -1
        self.learnt: Mapping[str, Any] | None = None
        """What the explainer says of itself."""
        self._counted: tuple[int, int] | None = None
        self._judged: list[int] = []
        """Sections whose quality was read, up to the frame `_judged_until`."""
        self._judged_until = -1
        self._dictionaries: dict[str, DictionaryRow | None] = {}
        self._blocks: Blocks | None = None
        self._maxima = np.zeros(0, np.float32)
        self._begin_drawing()

    # what pages ask

    @property
    def newest_t(self) -> float | None:
        """Frame time of the newest frame, in seconds since the boot began."""
        return float(self.window.last.t[-1]) if self.window else None

    @property
    def source_key(self) -> str:
        """Which of `sources` is shown; '' before there is one."""
        return _key(self.section) if self.section is not None else ""

    @property
    def returned(self) -> float | None:
        """Sum of the rewards of the running episode; None unless it was seen from its beginning."""
        return self._returns[1]

    @property
    def newest(self) -> bool:
        """Whether this is the agent's newest start."""
        return self.boot is None or not self.boots or self.boots[-1].boot == self.boot.boot

    def freshness(self) -> Freshness:
        """State of the run now."""
        if not self.newest:
            return Freshness("ENDED", "an earlier start of the agent")
        silence = time.monotonic() - self._committed_at
        analyzer = None if self.ledger is None else time.time() - self.ledger.updated_wall_ns / 1e9
        return freshness(self.boot, bool(self.window), silence, analyzer)

    def label(self, feature: int) -> str:
        """How a feature is called."""
        return f"n{feature}" if self.dictionary is not None and self.dictionary.kind == "neurons" else f"f{feature}"

    # pulling

    def pull(self) -> None:
        """Read what is new, unless that was done a moment ago."""
        now = time.monotonic()
        if now - self._pulled < PULL_S:
            return
        self._pulled = now
        try:
            if not self.reader.ready():
                if self.boot is not None:
                    self._reset(None)
                self.problem, self._identity = "", None
                return
            identity = self.reader.identity
            if identity != self._identity:  # another file under the same name: its row ids mean something else
                self._identity = identity
                self._reset(None)
                self._slow_at = -float("inf")
            with self.reader.consistent():
                slow = now - self._slow_at >= SLOW_S
                if slow:
                    self._pull_frame_of_reference()
                self._pull_frames(now)
                if slow:
                    self._pull_slow()
                    self._slow_at = now
                    self.slow += 1
            self.problem, self._failing_since = "", None
        except ForeignDatabase as error:
            self.problem = str(error)
        except StoreError as error:  # a locked or a torn moment: what is shown stays, and the next pull tries again
            self.failures += 1
            self.reader.close()
            if self._failing_since is None:
                self._failing_since = now
            if now - self._failing_since > PATIENCE_S:
                self.problem = str(error)
            log.debug("pull failed: %s", error)

    def _pull_frame_of_reference(self) -> None:
        self.boots = self.reader.boots()
        boot = next((b for b in self.boots if b.boot == self.wanted), self.boots[-1] if self.boots else None)
        if boot is None:
            return
        if self.boot is None or boot.boot != self.boot.boot:
            self._reset(boot)
        self.boot = boot
        if boot.manifest_hash:
            self.manifest = self.reader.manifest(boot.manifest_hash)
        sections = self.reader.sections(boot.boot)
        if not sections:
            return
        self._name_sources(sections)
        section = _shown(sections, self.source)
        if self.section is None or section.dictionary_hash != self.section.dictionary_hash or section.point != self.section.point:
            self.dictionary = self.reader.dictionary(section.dictionary_hash)
            self.rows, self.pairs, self.metrics, self.snapshot = (), (), (), None
            self.window, self._last_batch = Window(SPAN_S + 2), 0
            self._counted, self.non_finite = None, 0
            self._begin_drawing()
            self.explanations, self._blocks, self.learning, self.timeline, self._named = {}, None, Learning(), Timeline(), 0
        self.section = section
        alike = (s.id for s in sections if s.dictionary_hash == section.dictionary_hash and s.point == section.point)
        self._sections = list(alike)[-4:]

    def _pull_frames(self, now: float) -> None:
        if self.boot is None or self.manifest is None:
            return
        boot = self.boot.boot
        if self._last_batch == 0:
            batches = self.reader.newest_batches(boot, int(SPAN_S * 1e9), 100_000)
        else:
            batches = self.reader.batches(boot, self._last_batch, MAX_BATCHES)
        if not batches:
            return
        first_look = self._last_batch == 0
        codes = self._codes(batches)
        start, metrics = self.manifest.started_monotonic_ns, len(self.manifest.metrics)
        made = (piece(b, codes.get(b.id), start, self.env, metrics) for b in batches)
        pieces = [p for p in made if p is not None]
        self._last_batch, self.newest_wall_ns = batches[-1].id, batches[-1].last_wall_ns
        age = time.time() - batches[-1].last_wall_ns / 1e9
        if first_look:  # how long ago it was committed is not known: the analyzer's accounts say about when
            ledger = self.reader.ledger(boot)
            ago = age if ledger is None else time.time() - ledger.updated_wall_ns / 1e9
            self._committed_at = now - max(0.0, ago)
        else:
            self._committed_at = now
        self.window.extend(pieces)
        for part in pieces:
            self._note_episodes(part)
        if not self.rows or (self._period_looked < self.slow and not self._same_period()):
            self._choose_rows()
            self._drawings.clear()  # none of them was pushed: pages see that theirs no longer grows, and ask again
            self._redraw()
        else:
            together = merge(pieces)
            for drawing in self._drawings:
                if together is not None:
                    drawing.push(together)
        self.picture = self.reader.picture(boot, self.env, after_seq=-1 if self.picture is None else self.picture.seq) or self.picture

    def _codes(self, batches: list[BatchRow]) -> dict[int, CodesRow]:
        found: dict[int, CodesRow] = {}
        for section in self._sections:
            for row in self.reader.codes(section, batches[0].id, batches[-1].id):
                found[row.batch_id] = row
        return found

    def _pull_slow(self) -> None:
        if self.boot is None:
            return
        self.ledger, self.origin = self.reader.ledger(self.boot.boot), self.reader.origin()
        self.episodes = self.reader.episodes(self.boot.boot, self.env, 40)
        names = self.reader.scalar_names(self.boot.boot)
        self.scalars = {n: [(r.step, r.value) for r in self.reader.scalars(self.boot.boot, n, 120)] for n in names[:SCALARS]}
        begun = self.steered.begun
        self.steered.look(self.reader, self.boot.boot)
        if self.slow % _TIMELINE_LOOKS == 0 or not self.timeline.whole or self.steered.begun != begun:
            start_ns = self.manifest.started_monotonic_ns if self.manifest else 0
            self.timeline.look(self.reader, self.boot.boot, self.env, self._sections, start_ns)
        self._pull_sentences()
        if self.section is None:
            return
        self._count_non_finite()
        self._pull_quality(self._sections)
        if self.manifest is not None and self.manifest.weights == "changing":
            self.learning.note(self.quality, self._version_at)
        newest = self.reader.snapshot_id(self.section.id)
        if newest is None or (self.snapshot is not None and newest == self.snapshot.id):
            return
        self.snapshot = self.reader.snapshot(newest)
        before = self.rows, self.pairs, self.metrics
        self._choose_rows()
        if self.snapshot is not None:
            self.metrics = choose_metrics(self.snapshot, METRICS, self.metrics)
        self.pairs = choose_pairs(self.snapshot, self.rows, PAIRS, self.pairs)
        if before[:2] != (self.rows, self.pairs):
            self._redraw()

    def _pull_sentences(self) -> None:
        self.explained = self.reader.explained()
        self.watched = self.reader.watched(self.boot.boot, self.env) if self.boot is not None else []
        self._pull_labels()
        if not self.explained or self.boot is None:
            return
        self.learnt = self.reader.explainer_status()
        kept = self.lines[:-_REREAD]  # a language model's wording may still come to the newest
        new = [line for line in self.reader.narration(self.boot.boot, kept[-1].id if kept else 0, LINES) if line.env == self.env]
        self.lines = [*kept, *new][-LINES:]

    def _pull_labels(self) -> None:
        """Explanations every few looks; at once where somebody named a feature."""
        named = self.reader.newest_name()
        if self.dictionary is not None and (named != self._named or (self.explained and self.slow % _TIMELINE_LOOKS == 0)):
            self._named = named
            found = self.reader.explanations(self.dictionary.hash, everything=True)
            self.explanations = {e.feature: e for e in found if e.label}

    def _pull_quality(self, sections: list[int]) -> None:
        """The last five minutes by second: all of them where the sections are others than before, else what is new."""
        if sections != self._judged:
            self._judged, self.quality = list(sections), []
            older = [q for s in sections[:-1] for q in self.reader.quality(s, 300)]
            self.quality = [*older, *self.reader.quality(sections[-1], 300)][-300:] if sections else []
            self._judged_until = -1 if not self.quality else self.quality[-1].first_seq
            return
        new = self.reader.quality(sections[-1], 300, self._judged_until) if sections else []
        if new:
            self.quality, self._judged_until = [*self.quality, *new][-300:], new[-1].first_seq

    def _count_non_finite(self) -> None:
        """Count refused frames: new ones, and older ones a stretch at a time until all are counted."""
        extent = self.reader.extent(self.boot.boot) if self.boot else None
        if extent is None:
            return
        low, high = self._counted or (self._last_batch + 1, self._last_batch)
        older = max(extent[0], low - _CODES_A_LOOK)
        for section in self._sections:
            for first, last in ((high + 1, self._last_batch), (older, low - 1)):
                self.non_finite += self.reader.non_finite(section, first, last) if first <= last else 0
        self._counted = older, self._last_batch

    def _version_at(self, seq: int) -> int | None:
        batch = self.reader.batch_at(self.boot.boot, seq) if self.boot else None
        versions = batch.columns.get("policy_version") if batch is not None else None
        return None if versions is None or not len(versions) else int(versions[-1])

    def _name_sources(self, sections: list[Section]) -> None:
        going_on = max(s.next_seq for s in sections)
        self.sources = {}
        for section in sorted(sections, key=lambda s: s.next_seq != going_on):
            row = self._dictionary(section.dictionary_hash) if _key(section) not in self.sources else None
            if row is not None:
                what = "neurons" if row.kind == "neurons" else f"{plain(row.name, 24)}#{row.hash[:8]}"
                until = "" if section.next_seq == going_on else f", until frame {section.next_seq - 1}"
                self.sources[_key(section)] = f"{plain(section.point, 30)} · {what}{until}"

    def _dictionary(self, hash: str) -> DictionaryRow | None:
        """The same every time: what a hash names does not change, but for its card."""
        if self._dictionaries.get(hash) is None:
            self._dictionaries[hash] = self.reader.dictionary(hash)
        return self._dictionaries[hash]

    # the past

    def frames(self) -> Piece | None:
        """The newest frames as one piece."""
        return merge(list(self.window))

    def clip(self, drawing: Drawing | None = None) -> Clip | None:
        """A window of the past, drawn like `drawing`, or with the rows and pairs of now; None while there is nothing."""
        if self.boot is None or self.manifest is None or not self.window:
            return None
        if self._blocks is None or self._blocks.sections != tuple(self._sections):
            start, metrics = self.manifest.started_monotonic_ns, len(self.manifest.metrics)
            self._blocks = Blocks(self.reader, self.boot.boot, tuple(self._sections), start, self.env, metrics)
        return Clip(self._blocks, drawing or self.drawing)

    # choosing and drawing

    def _same_period(self) -> bool:
        self._period_looked = self.slow
        period = self.window.period_s
        return period is None or 0.5 < period / self.drawing.period_s < 2

    def _choose_rows(self) -> None:
        if self.dictionary is None or self.section is None:
            return
        features = self.dictionary.features
        active, maximum, frames = self.window.counts(features)
        silent = set(np.flatnonzero(active == 0).tolist())
        activity = self.reader.activity(self.section.id)
        if activity is not None and len(activity.active) == features:
            active, frames = activity.active.astype(np.int64), activity.frames
            maximum = np.maximum(maximum, activity.maximum)
        rows = choose_rows(active, frames, ROWS, self.rows, silent, changes=CHANGES)
        self.duty = {f: float(active[f]) / max(frames, 1) for f in rows}
        self.shares = {int(f): float(active[f]) / max(frames, 1) for f in np.flatnonzero(active)}
        if rows != self.rows or not len(self._maxima):
            self.rows = rows
            self._maxima = maximum[list(rows)].astype(np.float32)
            self.pairs = choose_pairs(self.snapshot, rows, PAIRS, self.pairs)

    def _begin_drawing(self) -> None:
        self.drawing = Drawing((), (), self._maxima, 0, (), 0.02)
        self._drawings: WeakSet[Drawing] = WeakSet((self.drawing,))

    def _redraw(self) -> None:
        """Draw all that is kept again: rows, strips or the rate of frames changed."""
        period = self.window.period_s or (self.manifest and self.manifest.step_period_s) or 0.02
        self.drawing = self._draw(self.rows, self.pairs, self._maxima, max(period, 1e-6))

    def _draw(self, rows: tuple[int, ...], pairs: tuple[Pair, ...], maxima: npt.NDArray[np.float32], period_s: float) -> Drawing:
        features = self.dictionary.features if self.dictionary is not None else 0
        names = self.manifest.metric_names if self.manifest else ()
        made = Drawing(rows, pairs, maxima, features, names, period_s)
        kept = merge(list(self.window))
        if kept is not None:
            made.push(kept)
        self._drawings.add(made)
        return made

    def grows(self, drawing: Drawing) -> bool:
        """Whether new frames are drawn there."""
        return drawing in self._drawings

    def drawn(self, pins: Sequence[Pair] = (), like: Drawing | None = None) -> Drawing:
        """The drawing with these strips first. `like`: one whose rows shall stay; it comes back if nothing of it changed."""
        rows, maxima = (like.rows, like.maxima) if like is not None and like.rows and like.features else (self.rows, self._maxima)
        pairs = self.strips(pins)
        if like is not None and like in self._drawings and (like.rows, like.pairs) == (rows, pairs):
            return like
        if (rows, pairs) == (self.drawing.rows, self.drawing.pairs):
            return self.drawing
        features = self.dictionary.features if self.dictionary is not None else 0
        if like is not None and like.features != features:
            rows, maxima = self.rows, self._maxima
        found = next((d for d in self._drawings if (d.rows, d.pairs) == (rows, pairs)), None)
        return found or self._draw(rows, pairs, maxima, self.drawing.period_s)

    def strips(self, pins: Sequence[Pair], kept: Sequence[Pair] | None = None) -> tuple[Pair, ...]:
        """What is pinned and exists, then what goes together; or `kept`, without what is no longer pinned, for the rest."""
        features = self.dictionary.features if self.dictionary is not None else 0
        names = set(self.manifest.metric_names) if self.manifest else set()
        first = [p for p in pins if (p.feature is None or p.feature < features) and (p.metric is None or p.metric in names)]
        rest = self.pairs if kept is None else kept
        return (*first, *(p for p in rest if p not in first))[: max(PAIRS, len(first))]

    def _note_episodes(self, part: Piece) -> None:
        episode, total = self._returns
        for number in np.unique(part.episode):
            mine = part.episode == number
            if number != episode:
                whole = int(part.episode_step[mine][0]) == 0
                episode, total = int(number), 0.0 if whole else None
            elif (int(part.step[mine][0]) - self._step) != 1:
                total = None
            if total is not None:
                steps = part.step[mine]
                total = total + float(np.sum(part.reward[mine])) if (np.diff(steps) == 1).all() else None
            self._step = int(part.step[mine][-1])
        self._returns = episode, total


def _key(section: Section) -> str:
    return f"{section.point}|{section.dictionary_hash}"


def _shown(sections: list[Section], wanted: str | None) -> Section:
    """The newest one wanted, or of the sections that began together last the first: the analyzer's own preference."""
    latest = [s for s in sections if s.first_seq == sections[-1].first_seq]
    return next((s for s in reversed(sections) if _key(s) == wanted), latest[0])
