"""One pull of the database for all pages of this process.

Every session asks `Feed.pull()` on its own callback; at most once in `PULL_S` does it read. What it read is kept as counted
rows and columns, so a slow page takes several steps at once and a page that lost its place starts afresh (`epoch`).
A database that is missing, locked, damaged or replaced is a state to show, never an error to raise.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np

from interlatent_live.analyzer.queries import Reader
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
from interlatent_live.stream.errors import ForeignDatabase, StoreError
from interlatent_live.stream.manifest import Manifest
from interlatent_live.viewer.choice import Pair, choose_metrics, choose_pairs, choose_rows
from interlatent_live.viewer.raster import Raster, levels
from interlatent_live.viewer.series import RAW_PER_S, Series
from interlatent_live.viewer.summary import Freshness, freshness
from interlatent_live.viewer.text import plain
from interlatent_live.viewer.window import Piece, Window, piece

__all__ = ["METRICS", "PAIRS", "PULL_S", "ROWS", "SPAN_S", "Feed"]

log = logging.getLogger(__name__)

SPAN_S: Final = 30.0
"""Seconds of frame time in sight."""
ROWS: Final = 32
METRICS: Final = 24
PAIRS: Final = 4
PULL_S: Final = 0.08
SLOW_S: Final = 0.5
"""Between readings of what changes slowly: boots, sections, ledger, snapshots, episodes."""
PATIENCE_S: Final = 1.0
"""How long a database may refuse to be read before the page says so."""
MAX_BATCHES: Final = 2_000
COLUMN_S: Final = 0.05


class Feed:
    """The state of one database as a page shows it."""

    def __init__(self, path: Path) -> None:
        self.reader = Reader(path)
        self.path = Path(path)
        self.env = 0
        self.problem = ""
        """Why the database cannot be read just now, '' while it can."""
        self.failures = 0
        self.epoch = 0
        """Rises whenever pages must forget what they show."""
        self.slow = 0
        """Rises with every reading of what changes slowly."""
        self._pulled = self._slow_at = -float("inf")
        self._identity: tuple[int, int] | None = None
        self._failing_since: float | None = None
        self._ages: deque[float] = deque(maxlen=10)
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
        self.rows: tuple[int, ...] = ()
        self.metrics: tuple[str, ...] = ()
        self.pairs: tuple[Pair, ...] = ()
        self.duty: dict[int, float] = {}
        self.boundaries: list[float] = []
        self.newest_wall_ns: int | None = None
        self._sections: list[int] = []
        self._last_batch = 0
        self._committed_at = -float("inf")
        self._returns: tuple[int, float | None] = (-1, None)
        self._step = -1
        self._ages.clear()
        self._slots = np.zeros(0, np.int64)
        self._maxima = np.zeros(0, np.float32)
        self._clear_drawing(0.02)

    def _clear_drawing(self, period_s: float) -> None:
        self.period_s = period_s
        column_s = max(COLUMN_S, min(period_s, 1.0))
        hold_s = min(max(0.25, 4 * period_s), 5.0)
        self.raster = Raster(ROWS, SPAN_S, column_s, hold_s)
        self.series = Series(1 + 2 * PAIRS, SPAN_S, None if 1 / period_s <= RAW_PER_S else COLUMN_S, hold_s)
        self.epoch += 1

    # what pages ask

    @property
    def newest_t(self) -> float | None:
        """Frame time of the newest frame, in seconds since the boot began."""
        return float(self.window.last.t[-1]) if self.window else None

    @property
    def returned(self) -> float | None:
        """Sum of the rewards of the running episode; None unless it was seen from its beginning."""
        return self._returns[1]

    def age_ms(self) -> float | None:
        """Age of the newest frame by the wall clocks of agent and page: its median over the last pulls, growing in silence."""
        if not self._ages:
            return None
        silence_ms = 1e3 * (time.monotonic() - self._committed_at)
        return median(self._ages) if silence_ms < 1e3 else self._ages[-1] + silence_ms

    def freshness(self) -> Freshness:
        """State of the run now."""
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
        boots = self.reader.boots()
        boot = boots[-1] if boots else None
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
        section = _shown(sections)
        if self.section is None or section.dictionary_hash != self.section.dictionary_hash or section.point != self.section.point:
            self.dictionary = self.reader.dictionary(section.dictionary_hash)
            self.rows, self.pairs, self.metrics, self.snapshot = (), (), (), None
            self.window, self._last_batch = Window(SPAN_S + 2), 0
            self._clear_drawing(self.period_s)
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
        self._ages.append(1e3 * age)
        self.window.extend(pieces)
        for part in pieces:
            self._note_episodes(part)
        if not self.rows or not self._same_period():
            self._choose_rows()
            self._redraw()
        else:
            for part in pieces:
                self._draw(part)
        newest = self.reader.picture(boot, self.env)
        if newest is not None and (self.picture is None or newest.seq != self.picture.seq):
            self.picture = newest

    def _codes(self, batches: list[BatchRow]) -> dict[int, CodesRow]:
        found: dict[int, CodesRow] = {}
        for section in self._sections:
            for row in self.reader.codes(section, batches[0].id, batches[-1].id):
                found[row.batch_id] = row
        return found

    def _pull_slow(self) -> None:
        if self.boot is None:
            return
        self.ledger = self.reader.ledger(self.boot.boot)
        self.episodes = self.reader.episodes(self.boot.boot, self.env, 40)
        if self.section is None:
            return
        self.quality = [q for s in self._sections for q in self.reader.quality(s, 300)][-300:]
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

    # choosing and drawing

    def _same_period(self) -> bool:
        period = self.window.period_s
        return period is None or 0.5 < period / self.period_s < 2

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
        rows = choose_rows(active, frames, ROWS, self.rows, silent)
        self.duty = {f: float(active[f]) / max(frames, 1) for f in rows}
        if rows != self.rows or not len(self._maxima):
            self.rows = rows
            self._maxima = maximum[list(rows)].astype(np.float32)
            self.pairs = choose_pairs(self.snapshot, rows, PAIRS, self.pairs)

    def _redraw(self) -> None:
        """Draw all that is kept again: rows, strips or the rate of frames changed."""
        period = self.window.period_s or (self.manifest and self.manifest.step_period_s) or 0.02
        self._clear_drawing(max(period, 1e-6))
        if self.dictionary is not None:
            self._slots = np.full(self.dictionary.features, -1, np.int64)
            shown = [*self.rows, *(p.feature for p in self.pairs if p.feature not in self.rows)]
            self._slots[shown] = np.arange(len(shown))
            self._shown = shown
        for part in self.window:
            self._draw(part)

    def _draw(self, part: Piece) -> None:
        if self.dictionary is None or not self.rows:
            return
        values = part.values(self._slots, len(self._shown))
        self.raster.push(part.t, levels(values[:, : len(self.rows)], self._maxima))
        names = self.manifest.metric_names if self.manifest else ()
        strips = np.full((len(part), 2 * PAIRS), np.nan)
        for i, pair in enumerate(self.pairs):
            strips[:, 2 * i] = values[:, self._shown.index(pair.feature)]
            if pair.metric in names:
                strips[:, 2 * i + 1] = part.metrics[:, names.index(pair.metric)]
        self.series.push(part.t, part.step, part.episode, strips)

    def _note_episodes(self, part: Piece) -> None:
        episode, total = self._returns
        for number in np.unique(part.episode):
            mine = part.episode == number
            if number != episode:
                whole = int(part.episode_step[mine][0]) == 0
                episode, total = int(number), 0.0 if whole else None
                if whole:
                    self.boundaries = [*self.boundaries[-40:], float(part.t[mine][0])]
            elif (int(part.step[mine][0]) - self._step) != 1:
                total = None
            if total is not None:
                steps = part.step[mine]
                total = total + float(np.sum(part.reward[mine])) if (np.diff(steps) == 1).all() else None
            self._step = int(part.step[mine][-1])
        self._returns = episode, total

    def metric(self, name: str | None) -> dict[str, Any]:
        """Name and unit of a metric as shown."""
        found = next((m for m in self.manifest.metrics if m.name == name), None) if self.manifest else None
        return {"name": plain(name or ""), "unit": plain(found.unit, 12) if found else ""}


def _shown(sections: list[Section]) -> Section:
    """Of the sections that began together last, one for each tap point, the first: the analyzer's own preference."""
    return next(s for s in sections if s.first_seq == sections[-1].first_seq)
