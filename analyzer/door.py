"""The analyzer's one door: messages of a run, live or recorded, become rows of its store.

    message ─▶ feed ─▶ accounts (gaps, duplicates) ─▶ sections (codes, correlations, events, …) ─▶ Writes ─▶ commit

1. A batch whose manifest is unknown waits for it, and everything after it, up to 64 MiB; a late joiner is sent the
   manifest at once.
2. Another boot id, or another manifest, closes what is open and begins new sections.
3. A farewell and the end of a file close alike, so the same batches give the same rows.

About 50 µs a frame at 128 rows a batch and 70 at 32, for 2048 TopK features and 16 metrics (bench/analyzer.py).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from interlatent_live.analyzer.accounts import Accounts
from interlatent_live.analyzer.beside import write_beside
from interlatent_live.analyzer.blobs import pack_columns
from interlatent_live.analyzer.boots import BootAnalysis
from interlatent_live.analyzer.choice import Overrides, choose
from interlatent_live.analyzer.clips import Clips
from interlatent_live.analyzer.prompts import write_tokens
from interlatent_live.analyzer.retention import Retention
from interlatent_live.analyzer.sections import Section
from interlatent_live.analyzer.store import Store
from interlatent_live.analyzer.writes import Writes
from interlatent_live.stream.frames import FrameBatch
from interlatent_live.stream.manifest import Manifest
from interlatent_live.stream.wire import Bye, Heartbeat, Message, Picture, Signals

if TYPE_CHECKING:  # torch comes with it
    from interlatent_live.analyzer.dictionary import Dictionary

__all__ = ["Analyzer"]

_DTYPES: Final = {"float32": "<f4", "float16": "<f2", "bfloat16": "<u2"}


class Analyzer:
    """Turns messages of one run into rows of its store. For one thread.

    `dictionaries`, `override`: see `choice.choose`. `live_since_ns`: monotonic time at which this subscription began; latencies are
    measured of frames made after it (a replayed stream has none). None for a recording. `clips`: where what came before an
    alarm is saved; None: it is not.
    """

    def __init__(
        self,
        store: Store,
        *,
        dictionaries: Sequence[Dictionary] | None = None,
        neurons_only: bool = False,
        override: Overrides | None = None,
        live_since_ns: int | None = None,
        retention: Retention | None = None,
        clips: Clips | None = None,
    ) -> None:
        self.store = store
        self._clips = clips
        self._retention = retention if retention is not None else Retention(store)
        self.frames = 0
        """Frames analysed by this analyzer."""
        self.first_ns: int | None = None
        self.last_ns = 0
        """Frame time of the first and the last frame that were fed, in ns."""
        self._wall_ns = 0
        self.ended = False
        """Whether the newest boot has said goodbye."""
        self._dictionaries = dictionaries
        self._neurons_only, self._override = neurons_only, override
        self._live_since_ns = live_since_ns
        self._adopted: Sequence[Dictionary] = ()
        self._swap_due = False
        self._writes = Writes()
        self._boot: BootAnalysis | None = None
        self._fresh: list[tuple[Accounts, FrameBatch, bool]] = []

    @property
    def pending(self) -> int:
        """Statements that wait for `commit`."""
        return self._writes.rows

    @property
    def accounts(self) -> Accounts | None:
        """Of the boot that is being analysed."""
        return None if self._boot is None else self._boot.accounts

    def feed(self, message: Message, *, commit: bool = True) -> None:
        """Take in a message; with `commit=False` several share the transaction that `commit()` closes.

        Raises StoreFull before anything has changed: the same message may be fed again.
        """
        if not isinstance(message, Signals) and self._ours(message):
            boot = self._enter(message.boot)
            if isinstance(message, Manifest):
                boot.learn(message, self._writes)
                self._let_go(boot)
            elif isinstance(message, FrameBatch | Heartbeat):
                if boot.waits_for(message):
                    boot.hold(message, self._writes)
                else:
                    self._take(boot, message)
            else:
                if self._clips is not None and isinstance(message, Picture):
                    self._clips.keep(message)
                write_beside(message, self._writes)
        if commit:
            self.commit()

    def adopt(self, dictionaries: Sequence[Dictionary]) -> None:
        """Take these beside the others from the next batch on, see `choose`: what gives way to them ends its section there.

        No frame falls between: the batch before is seen by the old, the next one by the new, and a kill leaves the one or the other.
        """
        self._adopted, self._swap_due = list(dictionaries), True

    def refuse(self, reason: str, messages: int = 1) -> None:
        """Count messages that could not be read."""
        if self._boot is not None:
            self._boot.accounts.refused[reason] += messages

    def commit(self) -> None:
        """Write everything gathered since the last commit, at once. After StoreFull it may be called again."""
        if self._clips is not None:
            self._clips.settle(self._writes)
        if self._boot is not None and self._writes:
            self._boot.touch(self._writes)
        self.store.commit(self._writes)
        self._writes = Writes()
        if self.frames:
            self._retention.retire(self.last_ns, self._wall_ns, self._writes)
        fresh, self._fresh = self._fresh, []
        for accounts, batch, monotonic in fresh:
            accounts.committed(batch, monotonic)

    def close(self) -> None:
        """Finish what is open and commit. More may be fed afterwards, as after a pause."""
        self._leave()
        if self._clips is not None:
            self._clips.close(self._writes)
        self.commit()

    def _ours(self, message: Message) -> bool:
        if self.store.run is None:
            self.store.bind(message.run)
        if message.run != self.store.run:
            self.refuse("other_run")
            return False
        return True

    def _enter(self, boot: str) -> BootAnalysis:
        if self._boot is None or self._boot.accounts.boot != boot:
            self._leave()
            self.commit()  # its accounts are read back from there
            self._boot = BootAnalysis(self.store, boot)
            self._boot.begin(self._writes)
            self.ended = False
        return self._boot

    def _leave(self) -> None:
        if self._boot is not None:
            self._boot.give_up_waiting(self._writes)
            self._boot.close(self._writes)
            self._boot = None

    def _let_go(self, boot: BootAnalysis) -> None:
        while self._boot is boot and (message := boot.next_ready()) is not None:
            self._take(boot, message)

    def _take(self, boot: BootAnalysis, message: FrameBatch | Heartbeat) -> None:
        if isinstance(message, FrameBatch):
            self._analyse(boot, message)
            return
        boot.accounts.heard(message, self._writes)
        if isinstance(message, Bye):
            run, name = boot.accounts.run, boot.accounts.boot
            self._writes.execute("UPDATE boots SET ended = 1 WHERE run = ? AND boot = ?", run, name)
            self._leave()
            self.ended = True

    def _analyse(self, boot: BootAnalysis, batch: FrameBatch) -> None:
        accounts, manifest = boot.accounts, boot.manifests[batch.manifest_hash]
        if not accounts.arrived(batch, self._writes):
            return
        if not _fits(batch, manifest):
            accounts.refused["manifest_mismatch"] += batch.rows
            return
        if boot.manifest is not manifest or self._swap_due:
            self._choose(boot, manifest, batch)
        columns = batch.columns
        id = self.store.new_id("batches")
        self._writes.insert(
            "batches",
            id=id,
            run=batch.run,
            boot=batch.boot,
            first_seq=batch.first_seq,
            rows=batch.rows,
            manifest_hash=batch.manifest_hash,
            first_step=int(columns["step"][0]),
            last_step=int(columns["step"][-1]),
            first_monotonic_ns=int(columns["monotonic_ns"][0]),
            last_monotonic_ns=int(columns["monotonic_ns"][-1]),
            first_wall_ns=int(columns["wall_ns"][0]),
            last_wall_ns=int(columns["wall_ns"][-1]),
            columns=pack_columns(columns),
        )
        for section in boot.sections:
            section.analyse(batch, id, self._writes)
        if self._clips is not None:
            self._clips.keep(batch)
            alarms = [alarm for section in boot.sections for alarm in section.alarms]
            if alarms:
                self._clips.save(manifest, [alarm for alarm, _ in alarms], max(last for _, last in alarms))
        write_tokens(batch, manifest.metric_names, self._writes)
        boot.follow_episodes(batch, self._writes)
        accounts.analyzed += batch.rows
        self.frames += batch.rows
        self.last_ns, self._wall_ns = int(columns["monotonic_ns"][-1]), int(columns["wall_ns"][-1])
        if self.first_ns is None:
            self.first_ns = int(columns["monotonic_ns"][0])
        if self._live_since_ns is not None:
            monotonic = manifest.host_boot != "" and manifest.host_boot == _host_boot()
            since = self._live_since_ns if monotonic else time.time_ns() - time.monotonic_ns() + self._live_since_ns
            if int(columns["monotonic_ns" if monotonic else "wall_ns"][0]) >= since:
                self._fresh.append((accounts, batch, monotonic))

    def _choose(self, boot: BootAnalysis, manifest: Manifest, batch: FrameBatch) -> None:
        """Open the sections that begin with `batch`, and close those that they replace, in the transaction of that batch."""
        chosen = choose(
            manifest, self._dictionaries, neurons_only=self._neurons_only, override=self._override, adopted=self._adopted
        )
        if boot.manifest is manifest:
            reason, stay = "swap", {(c.source.hash, c.source.point) for c in chosen}
        else:
            reason = "manifest" if boot.manifest is not None else "resume" if boot.accounts.resumed else "start"
            stay = set()
        boot.close_sections(self._writes, but=stay)
        boot.manifest, self._swap_due = manifest, False
        going_on = {section.key: section for section in boot.sections}
        boot.sections = [
            going_on.get((c.source.hash, c.source.point)) or Section(self.store, c, manifest, batch, reason, self._writes) for c in chosen
        ]


def _fits(batch: FrameBatch, manifest: Manifest) -> bool:
    """Whether a batch has the columns and shapes that its manifest announces."""
    columns = batch.columns
    metrics = columns.get("metrics")
    if metrics is not None and (metrics.dtype != "<f8" or metrics.shape[1:] != (len(manifest.metrics),)):
        return False
    if any(name in columns and columns[name].ndim != 1 for name in ("reward", "terminated", "truncated")):
        return False
    for name, values in batch.activations.items():
        point = manifest.point(name)
        if point is None or values.shape[1:] != point.shape or values.dtype != _DTYPES.get(point.dtype):
            return False
    return True


def _host_boot() -> str:
    global _this_boot
    if _this_boot is None:
        try:
            _this_boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        except OSError:
            _this_boot = "unknown"
    return _this_boot


_this_boot: str | None = None
