"""All the texts of the page at one moment, as plain data. Pure but for what the feed holds."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Final

from interlatent_live.analyzer.records import Boot, Snapshot
from interlatent_live.viewer.choice import Pair
from interlatent_live.viewer.cursor import Cursor
from interlatent_live.viewer.drawing import Drawing
from interlatent_live.viewer.feed import Feed
from interlatent_live.viewer.health import services, trouble
from interlatent_live.viewer.learning import stale_reason
from interlatent_live.viewer.listing import feature_rows, percent
from interlatent_live.viewer.says import labels, sentences
from interlatent_live.viewer.summary import flow, header, moment, pairs, scalars, vitals
from interlatent_live.viewer.text import plain
from interlatent_live.viewer.view import pin_text

__all__ = ["features", "state"]

FEATURES: Final = 400
"""Features listed at most: those most often active."""


def state(
    feed: Feed, cursor: Cursor, drawing: Drawing, snapshot: Snapshot | None, pins: Sequence[Pair], note: str, learn: dict[str, Any] | None
) -> dict[str, Any]:
    """What page.js shows as text. `note`: something to say about the address that was opened, or ''.
    `learn`: see `viewer.offer`.
    """
    at = None if cursor.clip is None else cursor.clip.seq
    fresh, dictionary, manifest = feed.freshness(), feed.dictionary, feed.manifest
    quality = next((q for q in reversed(feed.quality) if at is None or q.first_seq <= at), None)
    speed = feed.window.steps_per_s if fresh.state == "LIVE" else None
    names = {f: feed.label(f) for f in range(dictionary.features)} if dictionary else {}
    went = flow(feed.ledger)
    health = services(fresh, feed.ledger, feed.timeline.alarms, feed.timeline.alarm, feed.explained, feed.learnt)
    return {
        "view": "running" if feed.window else "problem" if feed.problem else "empty" if feed.boot is None else "waiting",
        "state": fresh.state,
        "note": feed.problem or note or fresh.note, "calm": bool(note and not feed.problem),
        "db": str(feed.path),
        "text": {
            **header(manifest, dictionary, feed.ledger, quality, speed, feed.window.last if feed.window else None),
            **moment(manifest, cursor.moment(), cursor.returned()),
        },
        "stale": stale_reason(manifest, feed.section, dictionary),
        "flow": went, "vitals": vitals(feed.ledger, feed.non_finite), "services": health, "trouble": trouble(health, went),
        "rows": [
            {"feature": f, "name": names.get(f, ""), "duty": percent(feed.duty.get(f, 0)), "said": said, "pinned": Pair(f, None) in pins}
            for f, said in zip(drawing.rows, labels(drawing.rows, feed.explanations), strict=True)
        ],
        "pairs": pairs(drawing.pairs, pins, snapshot, manifest, names, {f: e.label or "" for f, e in feed.explanations.items()}),
        "neurons": dictionary is not None and dictionary.kind == "neurons",
        "envs": manifest.num_envs if manifest else 1, "env": feed.env,
        "sources": feed.sources, "source": feed.source_key,
        "boots": [[b.boot, _boot(i, b)] for i, b in enumerate(feed.boots)][-50:], "boot": feed.boot.boot if feed.boot else "",
        "lines": sentences(feed.lines, at, names),
        "scalars": scalars(feed.scalars),
        "learn": learn,
        "has": {
            "features": bool(drawing.rows),
            "correlations": snapshot is not None,
            "metrics": bool(manifest and manifest.metrics),
            "picture": feed.picture is not None,
            "quality": any(q.fvu is not None for q in feed.quality),
            "episodes": any(e.complete for e in feed.episodes),
            "versions": len(feed.learning.points) > 1,
            "explainer": feed.explained,
            "lines": bool(feed.lines),
        },
    }  # fmt: skip


def features(feed: Feed, pins: Sequence[Pair]) -> list[dict[str, Any]]:
    """The list of features and metrics: what each is called, how often active, and what it goes with."""
    pinned = {pin_text(p) for p in pins}
    found = feature_rows(feed.shares, feed.explanations, feed.snapshot, feed.label(0)[0], FEATURES)
    for row in found:
        pin = str(row["by"]["feature"])
        row |= {"pin": pin, "pinned": pin in pinned}
    metrics = feed.manifest.metrics if feed.manifest else ()
    found += [
        {
            "pin": f"~{m.name}", "pinned": f"~{m.name}" in pinned, "kind": "metric", "name": "", "label": plain(m.name, 60),
            "about": plain(m.description, 200), "score": "", "stale": "", "share": "", "goes": plain(m.unit, 20),
        }
        for m in metrics
    ]  # fmt: skip
    return found


def _boot(index: int, boot: Boot) -> str:
    when = time.strftime("%d %b %H:%M:%S", time.localtime(boot.started_wall_ns / 1e9)) if boot.started_wall_ns else "?"
    return f"start {index + 1} · {when}"
