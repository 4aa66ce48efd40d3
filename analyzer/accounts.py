"""The accounts of one boot as the store keeps them: what the agent says, what arrived, what was analysed, and how late.

    received = analyzed + Σ refused[reason] for the reasons of REFUSED_FRAMES

The other reasons in `refused` count messages, whose frames are missing from the sequence: they stand under wire_lost.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping
from typing import Final

import numpy as np

from interlatent_live.analyzer.latency import Latency
from interlatent_live.analyzer.store import Store
from interlatent_live.analyzer.writes import Writes
from interlatent_live.stream.frames import FrameBatch
from interlatent_live.stream.ledger import Gap, SubscriberLedger
from interlatent_live.stream.wire import Heartbeat

__all__ = ["REFUSED_FRAMES", "Accounts"]

REFUSED_FRAMES: Final = ("no_manifest", "manifest_mismatch")
"""Reasons for which frames that arrived are not analysed; counted in frames."""
_COLUMNS: Final = (
    "next_seq, queue_dropped_seen, subscriber_queue_dropped, not_subscribed, wire_lost, received, analyzed, refused"
)


class Accounts:
    """Built from the stored row where there is one: then what lies between is not_subscribed."""

    def __init__(self, store: Store, run: str, boot: str) -> None:
        self.run, self.boot = run, boot
        self.ledger = SubscriberLedger()
        self.analyzed = 0
        self.refused: Counter[str] = self.ledger.refused
        self.latency = Latency()
        self.agent: Heartbeat | None = None
        row = store.one(f"SELECT {_COLUMNS} FROM ledger WHERE run = ? AND boot = ?", run, boot)
        self.resumed = bool(row)
        """Whether an earlier analyzer had begun this boot."""
        if row:
            seen, ledger = row[:6], self.ledger
            ledger.next_seq, ledger.queue_dropped_seen, ledger.queue_dropped = seen[:3]
            ledger.not_subscribed, ledger.wire_lost, ledger.received = seen[3:]
            self.analyzed = int(row[6])
            self.refused.update(json.loads(row[7]))

    def arrived(self, batch: FrameBatch, writes: Writes) -> bool:
        """Whether a batch is new; the gap before it is written down."""
        gaps = self.ledger.batch(batch)
        self._write_gaps(gaps or [], writes)
        return gaps is not None

    def heard(self, accounts: Heartbeat, writes: Writes) -> None:
        """Take in the agent's own accounts."""
        self._write_gaps(self.ledger.bound(accounts), writes)
        self.agent = accounts

    def committed(self, batch: FrameBatch, monotonic: bool) -> None:
        """Count the latency of every frame of a batch that has just been committed, by the clock that compares."""
        now = time.monotonic_ns() if monotonic else time.time_ns()
        self.latency.add((now - batch.columns["monotonic_ns" if monotonic else "wall_ns"]) / 1e6)

    def write(self, writes: Writes) -> None:
        """Add the ledger's row."""
        ledger, agent = self.ledger, self.agent
        recorded = agent is not None and agent.recorded + agent.record_failed > 0
        writes.execute(
            _UPSERT,
            self.run,
            self.boot,
            ledger.next_seq,
            ledger.queue_dropped_seen,
            max(ledger.produced, agent.produced if agent else 0),
            max(ledger.queue_dropped_seen, agent.queue_dropped if agent else 0),
            agent.recorded if agent and recorded else None,
            agent.record_failed if agent and recorded else None,
            ledger.queue_dropped,
            ledger.not_subscribed,
            ledger.wire_lost,
            ledger.received,
            self.analyzed,
            json.dumps({k: v for k, v in sorted(self.refused.items()) if v}),
            json.dumps(_finite(agent.status)) if agent else "{}",
            self.latency.quantile(0.5),
            self.latency.quantile(0.99),
            time.time_ns(),
        )

    def _write_gaps(self, gaps: list[Gap], writes: Writes) -> None:
        for gap in gaps:
            writes.insert_once(
                "gaps",
                run=self.run,
                boot=self.boot,
                first_seq=gap.first_seq,
                next_seq=gap.next_seq,
                reason=gap.reason,
                lost=gap.lost,
            )


def _finite(status: Mapping[str, float]) -> dict[str, float | None]:
    """JSON has no NaN: what is unknown is null."""
    return {name: float(value) if np.isfinite(value) else None for name, value in status.items()}


# A row written before this process heard the agent or measured a latency keeps what the earlier one knew.
_UPSERT: Final = """
INSERT INTO ledger (run, boot, next_seq, queue_dropped_seen, produced, queue_dropped, recorded, record_failed,
  subscriber_queue_dropped, not_subscribed, wire_lost, received, analyzed, refused, status,
  latency_p50_ms, latency_p99_ms, updated_wall_ns)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (run, boot) DO UPDATE SET
  next_seq = excluded.next_seq, queue_dropped_seen = excluded.queue_dropped_seen,
  produced = max(produced, excluded.produced), queue_dropped = max(queue_dropped, excluded.queue_dropped),
  recorded = coalesce(excluded.recorded, recorded), record_failed = coalesce(excluded.record_failed, record_failed),
  subscriber_queue_dropped = excluded.subscriber_queue_dropped, not_subscribed = excluded.not_subscribed,
  wire_lost = excluded.wire_lost, received = excluded.received, analyzed = excluded.analyzed,
  refused = excluded.refused,
  status = CASE WHEN excluded.status = '{}' THEN status ELSE excluded.status END,
  latency_p50_ms = coalesce(excluded.latency_p50_ms, latency_p50_ms),
  latency_p99_ms = coalesce(excluded.latency_p99_ms, latency_p99_ms), updated_wall_ns = excluded.updated_wall_ns
"""
