"""The explain process: reads the store, explains, narrates; may die, stall or be absent with no effect on the others.

    store ─▶ Source ─▶ narrator (at once) ─▶ narration
                 └──▶ explaining (rules, a few features at a time; scores every 15 s) ─▶ explanations

1. It runs below the others' priority, on one thread, rests three times as long as fitting took, and writes short
   transactions: the analyzer's latency does not notice.
2. A database that is not there yet, locked, full or replaced is waited for; a subject that changes begins afresh.
3. A language model, where one is configured, is asked on threads of its own (explainer.asking); what it does or does not
   do delays nothing here.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from interlatent_live.analyzer.writes import Writes
from interlatent_live.explainer.causes import causes
from interlatent_live.explainer.explaining import Current, Explaining
from interlatent_live.explainer.narrator import Line, Narrator
from interlatent_live.explainer.notebook import Notebook
from interlatent_live.explainer.shipping import find_shipped
from interlatent_live.explainer.source import Frames, Source
from interlatent_live.explainer.wording import Words
from interlatent_live.stream.errors import InterlatentError, StoreError

__all__ = ["Asker", "Report", "Service", "explain_once"]

log = logging.getLogger(__name__)

NICE: Final = 10
PERIOD_S: Final = 0.25
CHECK_S: Final = 15.0
"""Between live checks of every score."""
FIRST_CHECK_S: Final = 4.0
CHUNK: Final = 4
"""Features fitted at a time; some 50 ms each."""
REST: Final = 3.0
"""How long to rest after fitting, in times of what it took."""
STATUS_S: Final = 2.0
_TRACEBACKS: Final = 5
_KEPT_LINES: Final = 1_000
"""Newest lines whose frames are kept from retention."""


class Asker(Protocol):
    """A language model as the service sees it."""

    def offer(self, explaining: Explaining, frames: Frames, only: Sequence[int] | None = None) -> None:
        """Ask about features that are worth it, or `only` these, without waiting."""

    def collect(self, explaining: Explaining, frames: Frames) -> int:
        """Propose what was answered since; how many became versions."""

    def phrase(self, id: int, line: Line) -> bool:
        """Ask for a line's wording without waiting, where that is possible now."""

    def phrased(self) -> list[tuple[int, str, str]]:
        """(id, sentence, source) of lines that were put into words since, within the deadline, and checked."""

    @property
    def status(self) -> Mapping[str, Any]:
        """What the page should know: model, endpoint, state, calls, failures by reason."""

    def close(self) -> None:
        """Let go of everything; waits for nobody."""


@dataclass(slots=True)
class Report:
    """What a run of the service did."""

    frames: int = 0
    explained: int = 0
    versions: int = 0
    lines: int = 0
    worded: int = 0
    """Lines that a language model put into words."""
    failures: int = 0


class Service:
    """The live mode. `run` returns when `stop()` is true."""

    def __init__(
        self, path: Path, *, asker: Callable[[Notebook], Asker] | None = None, narrate: bool = True,
        on_line: Callable[[Line], None] | None = None,
    ) -> None:  # fmt: skip
        self.path = Path(path)
        self.report = Report()
        self._source = Source(path)
        self._make_asker = asker
        self._asker: Asker | None = None
        self._notebook: Notebook | None = None
        self._narrate, self._on_line = narrate, on_line
        self._epoch = -1
        self._identity: tuple[int, int] | None = None
        self._explaining: Explaining | None = None
        self._narrator: Narrator | None = None
        self._queue: list[int] = []
        self._fresh: Frames | None = None
        self._rest_until = self._status_at = 0.0
        self._checked_at = 0.0
        self._outside: str | None = None
        self._drift_seen = 0
        self._problem = ""

    @property
    def words(self) -> Words:
        """What a frame and an episode are called here."""
        return Words.of(self._source.subject is not None and self._source.subject.language)

    def run(self, stop: Callable[[], bool], wait: Callable[[float], object] = time.sleep) -> Report:
        """Until `stop()`. Errors of the store are states to wait out, counted and told in the log once each."""
        with suppress(OSError):
            os.nice(NICE)
        try:
            while not stop():
                try:
                    busy = self.step()
                    self._problem = ""
                except InterlatentError as error:
                    self._fail(error)
                    busy = False
                except Exception:  # a service loop: what one feature or one answer brings up must not end narration
                    self.report.failures += 1
                    self._queue.clear()
                    if self.report.failures <= _TRACEBACKS:
                        log.exception("the explainer failed; going on")
                    busy = False
                if not busy:
                    wait(PERIOD_S)
        finally:
            self.close()
        return self.report

    def close(self) -> None:
        """Let go of the file."""
        if self._asker is not None:
            self._asker.close()
            self._asker = None
        self._source.close()
        if self._notebook is not None:
            with suppress(StoreError):
                self._notebook.close()
            self._notebook = None

    def step(self) -> bool:
        """Read what is new, say what is worth saying, do a little work; whether more is waiting to be read."""
        pieces = self._source.pull()
        if self._source.subject is None:
            return False
        if self._notebook is None or self._source.reader.identity != self._identity:
            self._open()
        if self._epoch != self._source.epoch or self._explaining is None:
            self._begin()
        assert self._explaining is not None
        assert self._narrator is not None
        if self._narrate:
            self._watch()
            lines = [line for line in map(self._narrator.feed, pieces) if line is not None]
            self._write(lines)
            self._word()
        self.report.frames = self._source.seen
        if len(pieces) >= 500 and self._source.skip():
            log.info("reading fell behind the stream; frames were left out")
        self._work(time.monotonic())
        return len(pieces) >= 500

    def _open(self) -> None:
        if self._notebook is not None:
            self._notebook.close()
            self._notebook = None
        self._notebook = Notebook(self.path)
        self._identity = self._source.reader.identity
        self._explaining = None
        if self._asker is None and self._make_asker is not None:
            self._asker = self._make_asker(self._notebook)

    def _begin(self) -> None:
        assert self._notebook is not None
        assert self._source.subject is not None
        subject = self._source.subject
        self._epoch = self._source.epoch
        self._explaining = Explaining(self._notebook, subject)
        shipped = find_shipped(subject)
        if shipped is not None:
            self._explaining.adopt(shipped.explanations, shipped.made_from, shipped.weights_hash, shipped.evidence_hash)
        self._narrator = Narrator(subject, effects=causes(subject))
        self._narrator.learn(self._explaining.current)
        self._queue, self._fresh, self._drift_seen = [], None, 0
        self._checked_at = time.monotonic() - (CHECK_S - FIRST_CHECK_S)

    def _watch(self) -> None:
        """Look for alarms, and whether the stream is within the dictionary's card."""
        assert self._source.subject is not None
        assert self._narrator is not None
        assert self._explaining is not None
        self._explaining.subject = self._narrator.subject = self._source.subject
        section = self._source.subject.section
        outside = _outside(self._source)
        for alarm in self._source.reader.drift(section.id, 20):
            if alarm.id > self._drift_seen:
                self._drift_seen = alarm.id
                what = "outside the dictionary's card" if alarm.kind == "gate" else "changed its mean"
                bound = "" if alarm.high is None else f" ({'card: up to' if alarm.kind == 'gate' else 'before:'} {alarm.high:.3g})"
                self._narrator.alarm(f"drift: {alarm.measure.upper()} {what}, {alarm.value or 0:.3g}{bound}")
        if outside != self._outside:
            self._outside = outside
        self._explaining.look_at_names()
        self._narrator.learn(self._explaining.current, self._outside or "", self._explaining.names)

    def _work(self, now: float) -> None:
        """A slice of what takes time: checking scores, or fitting a few features."""
        assert self._explaining is not None
        if now - self._status_at >= STATUS_S:
            self._status_at = now
            self._write_status()
        if now < self._rest_until:
            return
        begin = time.thread_time()
        if now - self._checked_at >= CHECK_S:
            self._checked_at = now
            self._fresh = self._source.kept()
            if self._fresh is not None:
                self._explaining.check(self._fresh, self._outside)
                self._queue = self._explaining.pending(self._fresh)
                if self._asker is not None:
                    self._asker.offer(self._explaining, self._fresh)
        elif self._queue and self._fresh is not None:
            chunk, self._queue = self._queue[:CHUNK], self._queue[CHUNK:]
            self.report.versions += len(self._explaining.attempt(self._fresh, chunk))
        elif self._asker is not None and self._fresh is not None:
            self.report.versions += self._asker.collect(self._explaining, self._fresh)
        self.report.explained = len(self._explaining.current)
        self._rest_until = time.monotonic() + REST * (time.thread_time() - begin)

    def _write(self, lines: list[Line]) -> None:
        if not lines or self._notebook is None or self._source.subject is None:
            return
        writes = Writes()
        for line in lines:
            id = self._notebook.new_id("narration")
            writes.insert(
                "narration", id=id, run=self._source.subject.section.run, boot=line.boot, env=line.env, kind=line.kind, seq=line.seq,
                first_seq=line.first_seq, next_seq=line.next_seq, time_s=line.time_s, wall_ns=line.wall_ns, episode=line.episode,
                episode_step=line.episode_step, text=line.text, action=line.action,
                features=json.dumps([asdict(m) for m in line.features]), source="template",
            )  # fmt: skip
            writes.insert("cited", boot=line.boot, first_seq=line.first_seq, next_seq=line.next_seq, kind="line", ref=id)
            writes.execute("DELETE FROM cited WHERE kind = 'line' AND ref <= ?", id - _KEPT_LINES)
        self._notebook.commit(writes)
        self.report.lines += len(lines)
        if self._asker is not None:
            self._asker.phrase(id, lines[-1])  # of several at once all but the newest are past
        for line in lines:
            if self._on_line is not None:
                self._on_line(line)

    def _word(self) -> None:
        """Put a language model's wording beside the template's line."""
        if self._asker is None or self._notebook is None:
            return
        writes = Writes()
        for id, sentence, source in self._asker.phrased():
            writes.execute("UPDATE narration SET wording = ?, worded_by = ? WHERE id = ?", sentence, source, id)
            self.report.worded += 1
        self._notebook.commit(writes)

    def _write_status(self) -> None:
        assert self._notebook is not None
        assert self._explaining is not None
        status = {
            "wall_ns": time.time_ns(), "frames": self._source.seen, "skipped": self._source.skipped, "waiting": len(self._queue),
            "explained": len(self._explaining.current), "outside": self._outside, "failures": self.report.failures,
            "llm": None if self._asker is None else dict(self._asker.status),
            "held": {
                "count": self._notebook.transactions, "total_ms": 1e3 * self._notebook.held_s, "longest_ms": 1e3 * self._notebook.longest_s,
            },
        }  # fmt: skip
        writes = Writes()
        writes.replace("explainer_state", key="status", value=json.dumps(status))
        self._notebook.commit(writes)

    def _fail(self, error: InterlatentError) -> None:
        self.report.failures += 1
        if str(error) != self._problem:
            self._problem = str(error)
            level = logging.INFO if self._notebook is None and "holds no analysis yet" in str(error) else logging.WARNING
            log.log(level, "waiting: %s", error)


def _outside(source: Source) -> str | None:
    """Why the stream is outside the card's range now, or None: the same judgement as the analyzer's gate."""
    assert source.subject is not None
    card = source.subject.dictionary.card or {}
    bound = ((card.get("quantiles") or {}).get("fvu") or {}).get("q999")
    if not isinstance(bound, (int, float)):
        return None
    fvu = [q.fvu for q in source.reader.quality(source.subject.section.id, 3)]
    if len(fvu) < 3 or any(v is None or v <= bound for v in fvu):
        return None
    return f"the dictionary's error (FVU {fvu[-1]:.3g}) is outside its card's range (up to {bound:.3g})"


def explain_once(
    path: Path, *, features: list[int] | None = None, again: bool = False, max_frames: int = 300_000,
    progress: Callable[[int, int], None] | None = None, asker: Callable[[Notebook], Asker] | None = None,
) -> tuple[Explaining, Frames, list[Current]]:  # fmt: skip
    """Explain what a database holds: `features`, or every live one that has no explanation yet (`again`: all).

    Gives the explanations, the frames and what became versions. StoreError where there is nothing to explain.
    """
    source = Source(path, max_frames=max_frames)
    try:
        if not path.is_file():
            raise StoreError(f"{path} does not exist; `interlatent-live analyze` makes it")
        while source.pull():
            pass
        frames = source.kept()
        if frames is None or source.subject is None:
            raise StoreError(f"{path} holds no frames with features yet; analyse some first")
        with Notebook(path) as notebook:
            explaining = Explaining(notebook, source.subject)
            shipped = find_shipped(source.subject)
            if shipped is not None and not again:
                explaining.adopt(shipped.explanations, shipped.made_from, shipped.weights_hash, shipped.evidence_hash)
            explaining.check(frames, _outside(source))
            wanted = explaining.pending(frames, again=again) if features is None else features
            made: list[Current] = []
            for begin in range(0, len(wanted), 32):
                made += explaining.attempt(frames, wanted[begin : begin + 32])
                if progress is not None:
                    progress(min(begin + 32, len(wanted)), len(wanted))
            if asker is not None:
                made += _ask(asker(notebook), explaining, frames, features)
            explaining.check(frames, _outside(source))
        return explaining, frames, made
    finally:
        source.close()


def _ask(asker: Asker, explaining: Explaining, frames: Frames, only: Sequence[int] | None) -> list[Current]:
    """Ask until nothing is open, or the endpoint or the day's budget has given out."""
    before = {f: c.version for f, c in explaining.current.items()}
    try:
        asker.offer(explaining, frames, only)
        while asker.status["open"] and not any(note.endswith("a day is used up") for note in _notes(asker)):
            asker.collect(explaining, frames)
            time.sleep(0.05)
        asker.collect(explaining, frames)
        if _notes(asker) or asker.status["failures"]:
            failures = ", ".join(f"{n} {reason}" for reason, n in asker.status["failures"].items())
            log.warning("the language model: %s", "; ".join(filter(None, (failures, *_notes(asker)))))
    finally:
        asker.close()
    return [c for f, c in explaining.current.items() if before.get(f) != c.version]


def _notes(asker: Asker) -> list[str]:
    """What is wrong with who explains, and with who judges."""
    status = asker.status
    return [note for note in dict.fromkeys((status["note"], (status.get("judge") or {}).get("note", ""))) if note]
