"""A section: a stretch of one boot seen through one source of features, and every row that follows from it.

For each batch: its codes, activity, correlations, events, peaks, quality, drift. Everything is decided at batch
boundaries by the agent's clock, so the same batches give the same rows, live or recorded, in any grouping.
"""

from __future__ import annotations

import json
from collections import deque
from typing import Any, Final

import numpy as np

from interlatent_live.analyzer.activity import Activity
from interlatent_live.analyzer.blobs import pack_matrix
from interlatent_live.analyzer.choice import Choice
from interlatent_live.analyzer.correlation import Correlation
from interlatent_live.analyzer.drift import DriftMonitor
from interlatent_live.analyzer.events import Event, EventTracker
from interlatent_live.analyzer.peaks import Peak, PeakKeeper
from interlatent_live.analyzer.prompts import without_special
from interlatent_live.analyzer.quality import Quality, QualityWindow
from interlatent_live.analyzer.rolling import Rolling, Span
from interlatent_live.analyzer.store import Store
from interlatent_live.analyzer.writes import Value, Writes
from interlatent_live.stream.frames import FrameBatch
from interlatent_live.stream.manifest import Manifest

__all__ = ["KEPT_EVERY_S", "SIGNIFICANT_Q", "SNAPSHOT_S", "TOP", "Section"]

SNAPSHOT_S: Final = 5.0
"""Frame time between correlation snapshots."""
KEPT_EVERY_S: Final = 60.0
"""Frame time between the snapshots that stay; beside them the last two of each span."""
TOP: Final = 8
"""Rows of a snapshot in `correlations`, for each metric."""
SIGNIFICANT_Q: Final = 0.05
"""False discovery rate, within a snapshot, below which a correlation is called significant."""
_EVENT: Final = f"INSERT INTO events (id, section_id, {', '.join(Event._fields)}) VALUES (?{', ?' * 13})"
_PEAK: Final = f"INSERT INTO peaks (section_id, {', '.join(Peak._fields)}) VALUES (?{', ?' * 8})"
_GONE: Final = "DELETE FROM peaks WHERE section_id = ? AND feature = ? AND seq = ?"
_SPANS: Final[tuple[Span, ...]] = ("rolling", "start")


class Section:
    """Made with the first batch that it analyses; gathers rows in `writes` and touches no database."""

    def __init__(
        self, store: Store, choice: Choice, manifest: Manifest, first: FrameBatch, reason: str, writes: Writes
    ) -> None:
        source = self.source = choice.source
        self._store, self._manifest = store, manifest
        self.id = store.new_id("sections")
        self.next_seq = first.first_seq
        self.activity = Activity(source.features)
        self._events = EventTracker(source.features)
        self._peaks = PeakKeeper(source.features, num_envs=manifest.num_envs, first_seq=first.first_seq)
        self._new_peaks: dict[tuple[int, int], tuple[Value, ...]] = {}
        self._gone_peaks: list[tuple[Value, ...]] = []
        self._quality = QualityWindow()
        self._drift = DriftMonitor(source.features, source.card)
        self.alarms: list[tuple[int, int]] = []
        """Ids in `drift`, and last frames, of the alarms that the last batch sounded."""
        self._rolling = Rolling(source.features, len(manifest.metrics)) if manifest.metrics else None
        self._begin_ns = self._taken_ns = int(first.columns["monotonic_ns"][0])
        self._snapshot_seq = first.first_seq
        self._kept: dict[Span, deque[tuple[int, bool]]] = {span: deque() for span in _SPANS}
        self._kept_minute = -1
        writes.replace(
            "dictionaries",
            hash=source.hash,
            name=source.name,
            kind=source.kind,
            point=source.point,
            features=source.features,
            cfg=json.dumps(dict(source.cfg)),
            card=None if source.card is None else json.dumps(dict(source.card)),
            path=source.path,
        )
        writes.insert(
            "sections",
            id=self.id,
            run=first.run,
            boot=first.boot,
            point=source.point,
            dictionary_hash=source.hash,
            manifest_hash=manifest.hash,
            first_seq=first.first_seq,
            next_seq=first.first_seq,
            reason=reason,
            mismatch=int(choice.mismatch),
        )

    @property
    def key(self) -> tuple[str, str]:
        """Hash and tap point of what gives the features."""
        return self.source.hash, self.source.point

    def analyse(self, batch: FrameBatch, batch_id: int, writes: Writes) -> None:
        """Take in one batch."""
        encoded = self.source.encode(without_special(batch), self._manifest)
        self.next_seq = batch.next_seq
        self.alarms = []
        if encoded is not None:
            codes = encoded.codes
            writes.insert(
                "codes",
                batch_id=batch_id,
                section_id=self.id,
                active=codes.active,
                encoded=codes.rows,
                rows=None if codes.rows == batch.rows else encoded.rows.astype("<i4").tobytes(),
                non_finite=encoded.non_finite,
                sse=encoded.sse,
                sst=encoded.sst,
                blob=codes.to_blob(),
            )
            self.activity.update(codes)
            if self._rolling is not None:
                self._rolling.push(codes, encoded.rows, batch)
            self._write_events(self._events.update(codes, encoded.rows, batch), writes)
        judged = self._quality.update(encoded, batch)
        if judged is not None:
            self._write_quality(judged, writes)
            self._watch(judged, writes)
        time_ns = int(batch.columns["monotonic_ns"][-1])
        if time_ns - self._taken_ns >= SNAPSHOT_S * 1e9:
            self._taken_ns = time_ns
            self._snapshot(time_ns, writes)

    def touch(self, writes: Writes) -> None:
        """Write how far the section has come; once a transaction. Most peaks of a transaction are gone by its end."""
        writes.execute_many(_GONE, self._gone_peaks)
        writes.execute_many(_PEAK, list(self._new_peaks.values()))
        self._gone_peaks, self._new_peaks = [], {}
        writes.execute("UPDATE sections SET next_seq = ? WHERE id = ?", self.next_seq, self.id)

    def close(self, writes: Writes) -> None:
        """Write what is still open. The section takes no more batches."""
        self._write_events(self._events.close("end"), writes)
        judged = self._quality.close()
        if judged is not None:  # a part of a second, too short to sound an alarm
            self._write_quality(judged, writes)
        if self.next_seq > self._snapshot_seq:
            self._snapshot(self._taken_ns, writes)
        self.touch(writes)

    def _write_events(self, events: list[Event], writes: Writes) -> None:
        new_id = self._store.new_id
        writes.execute_many(_EVENT, [(new_id("events"), self.id, *event) for event in events])
        inserted, evicted = self._peaks.update(self._events.closed)
        for key in evicted:
            if self._new_peaks.pop(key, None) is None:
                self._gone_peaks.append((self.id, *key))
        for peak in inserted:
            self._new_peaks[peak.feature, peak.seq] = (self.id, *peak)

    def _write_quality(self, judged: Quality, writes: Writes) -> None:
        writes.insert(
            "quality",
            section_id=self.id,
            first_seq=judged.first_seq,
            next_seq=judged.next_seq,
            frames=judged.frames,
            fvu=judged.fvu,
            l0=judged.l0,
        )

    def _watch(self, judged: Quality, writes: Writes) -> None:
        for alarm in self._drift.update(judged):
            id = self._store.new_id("drift")
            self.alarms.append((id, alarm.last_seq))
            writes.insert(
                "drift",
                id=id,
                section_id=self.id,
                kind=alarm.kind,
                measure=alarm.measure,
                first_seq=alarm.first_seq,
                last_seq=alarm.last_seq,
                value=alarm.value,
                low=alarm.low,
                high=alarm.high,
            )

    def _snapshot(self, time_ns: int, writes: Writes) -> None:
        self._snapshot_seq = self.next_seq
        activity = self.activity
        writes.replace(
            "activity",
            section_id=self.id,
            next_seq=self.next_seq,
            frames=activity.frames,
            active=pack_matrix(activity.active, "<u4"),
            maximum=pack_matrix(activity.maximum, "<f4"),
            total=pack_matrix(activity.total, "<f8"),
        )
        if self._rolling is None:
            return
        minute = int((time_ns - self._begin_ns) / (KEPT_EVERY_S * 1e9))
        stays, self._kept_minute = minute != self._kept_minute, minute
        for span in _SPANS:
            correlation = self._rolling.snapshot(span)
            id = self._store.new_id("correlation_snapshots")
            _write_correlation(id, self.id, span, self.next_seq, self._manifest.metric_names, correlation, writes)
            kept = self._kept[span]
            kept.append((id, stays))
            while len(kept) > 2:
                old, stays_for_good = kept.popleft()
                if not stays_for_good:
                    writes.execute("DELETE FROM correlations WHERE snapshot_id = ?", old)
                    writes.execute("DELETE FROM correlation_snapshots WHERE id = ?", old)


def _write_correlation(
    id: int, section: int, span: Span, next_seq: int, metrics: tuple[str, ...], found: Correlation, writes: Writes
) -> None:
    writes.insert(
        "correlation_snapshots",
        id=id,
        section_id=section,
        span=span,
        next_seq=next_seq,
        frames=found.frames,
        metrics=json.dumps(metrics),
        features=pack_matrix(found.features, "<u4"),
        r=pack_matrix(found.r),
        n=pack_matrix(found.n),
        n_eff=pack_matrix(found.n_eff),
        low=pack_matrix(found.low),
        high=pack_matrix(found.high),
        q=pack_matrix(found.q),
    )
    strength = np.where(np.isnan(found.r), -1.0, np.abs(found.r))
    for column, metric in enumerate(metrics):
        for row in np.argsort(-strength[:, column], kind="stable")[:TOP].tolist():
            if strength[row, column] < 0:
                break
            q = _known(found.q[row, column])
            writes.insert(
                "correlations",
                snapshot_id=id,
                feature=int(found.features[row]),
                metric=metric,
                r=float(found.r[row, column]),
                n=int(found.n[row, column]),
                n_eff=_known(found.n_eff[row, column]),
                low=_known(found.low[row, column]),
                high=_known(found.high[row, column]),
                q=q,
                significant=None if q is None else int(q < SIGNIFICANT_Q),
                observed=float(found.observed[row, column]),
            )


def _known(value: Any) -> float | None:
    """A number, or None for NaN: what cannot be computed is NULL."""
    return None if np.isnan(value) else float(value)
