"""The report of a run: one dict of plain data, every key there, None where a number cannot be computed."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from interlatent_live.analyzer.accounts import REFUSED_FRAMES
from interlatent_live.analyzer.store import Store
from interlatent_live.stream.errors import StoreError

__all__ = ["report"]


def report(
    db: str | Path,
    *,
    agent: str | None = None,
    seconds: float | None = None,
    steps: int | None = None,
    episodes: int | None = None,
    mean_return: float | None = None,
) -> dict[str, Any]:
    """What the newest boot in `db` came to. Figures that the agent's side knows better are handed in.

    `seconds`: from the first to the last frame; `steps`: frames produced; `episodes` and `mean_return`: completed ones;
    `dropped`: frames lost up to the analyzer, by reason, so that produced = analyzed + their sum.
    """
    with Store(db, readonly=True) as store:
        found = store.one("SELECT run, boot, manifest_hash FROM boots ORDER BY started_wall_ns DESC LIMIT 1")
        if not found:
            raise StoreError(f"{db} holds no run yet; nothing has arrived")
        run, boot, manifest_hash = found
        body = store.one("SELECT body FROM manifests WHERE hash = ?", manifest_hash)
        manifest = json.loads(body[0]) if body else {}
        span = store.one(
            "SELECT (max(last_monotonic_ns) - min(first_monotonic_ns)) / 1e9 FROM batches WHERE run = ? AND boot = ?",
            run,
            boot,
        )
        completed = store.one(
            "SELECT count(*), count(return), avg(return) FROM episodes WHERE run = ? AND boot = ? AND complete",
            run,
            boot,
        )
        ledger, latency, overhead = _accounts(store, run, boot)
        section = _section(store, run, boot)
        return {
            "agent": agent if agent is not None else (manifest.get("agent") or run),
            "seconds": seconds if seconds is not None else span[0],
            "steps": steps if steps is not None else ledger["produced"],
            "episodes": episodes if episodes is not None else completed[0],
            "mean_return": mean_return if mean_return is not None else (completed[2] if completed[1] else None),
            "ledger": ledger,
            "latency_ms": latency,
            "overhead_us": overhead,
            "features": _features(store, section),
            "dictionary": _dictionary(store, section),
            "top_correlations": _top(store, section, [m["name"] for m in manifest.get("metrics", ())]),
        }


def _accounts(store: Store, run: str, boot: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    row = store.one(
        "SELECT produced, queue_dropped, recorded, record_failed, subscriber_queue_dropped, not_subscribed, wire_lost, "
        "received, analyzed, refused, status, latency_p50_ms, latency_p99_ms FROM ledger WHERE run = ? AND boot = ?",
        run,
        boot,
    )
    if not row:
        row = (None,) * 9 + ("{}", "{}", None, None)
    refused, status = json.loads(row[9]), json.loads(row[10])
    losses = {"queue_dropped": row[4], "not_subscribed": row[5], "wire_lost": row[6]}
    losses |= {reason: refused.get(reason, 0) for reason in REFUSED_FRAMES}
    ledger = {
        "produced": row[0],
        "queue_dropped": row[1],
        "recorded": row[2],
        "record_failed": row[3],
        "subscriber": {"not_subscribed": row[5], "wire_lost": row[6], "received": row[7]},
        "analyzed": row[8],
        "dropped": {reason: count for reason, count in losses.items() if count},
    }
    overhead = {"median": status.get("overhead_us_median"), "p99": status.get("overhead_us_p99")}
    return ledger, {"p50": row[11], "p99": row[12]}, overhead


def _section(store: Store, run: str, boot: str) -> tuple[Any, ...]:
    """(id, dictionary hash, kind, features, card) of what is shown: a dictionary's, else the last layer's."""
    return store.one(
        "SELECT s.id, d.hash, d.kind, d.features, d.card FROM sections s JOIN dictionaries d "
        "ON d.hash = s.dictionary_hash WHERE s.run = ? AND s.boot = ? ORDER BY d.kind = 'neurons', s.id DESC LIMIT 1",
        run,
        boot,
    )


def _features(store: Store, section: tuple[Any, ...]) -> dict[str, Any]:
    if not section:
        return {"total": None, "alive": None, "events": None}
    import numpy as np

    active = store.one("SELECT active FROM activity WHERE section_id = ?", section[0])
    events = store.one("SELECT count(*) FROM events WHERE section_id = ?", section[0])
    alive = int(np.count_nonzero(np.frombuffer(active[0], "<u4"))) if active else None
    return {"total": section[3], "alive": alive, "events": events[0]}


def _dictionary(store: Store, section: tuple[Any, ...]) -> dict[str, Any]:
    if not section or section[2] == "neurons":
        return {"hash": None, "fvu_live": None, "fvu_card": None}
    sse, sst, judged, all_ = store.one(
        "SELECT sum(sse), sum(sst), count(sse + sst), count(*) FROM codes WHERE section_id = ? AND encoded > 0",
        section[0],
    )
    card = json.loads(section[4]) if section[4] else {}
    live = sse / sst if all_ and judged == all_ and sst > 0 else None
    fvu = card.get("fvu")
    return {"hash": section[1], "fvu_live": live, "fvu_card": fvu if isinstance(fvu, (int, float)) else None}


def _top(store: Store, section: tuple[Any, ...], metrics: list[str]) -> list[dict[str, Any]]:
    """The strongest feature of every metric since the section began; an entry of None where none is defined."""
    best = {
        metric: (feature, r, n, n_eff, low, high, significant)
        for metric, feature, r, n, n_eff, low, high, significant in (
            store.all(
                "SELECT metric, feature, r, n, n_eff, low, high, significant FROM correlations WHERE snapshot_id = ("
                "SELECT max(id) FROM correlation_snapshots WHERE section_id = ? AND span = 'start') "
                "ORDER BY abs(r), feature DESC",  # the strongest is written last
                section[0],
            )
            if section
            else ()
        )
    }
    rows = []
    for metric in metrics:
        feature, r, n, n_eff, low, high, significant = best.get(metric, (None,) * 7)
        unknown = low is None or high is None or math.isnan(low) or math.isnan(high)
        rows.append(
            {
                "feature": feature,
                "metric": metric,
                "r": r,
                "n": n,
                "n_eff": n_eff,
                "ci": None if unknown else [low, high],
                "significant": None if significant is None else bool(significant),
            }
        )
    return rows
