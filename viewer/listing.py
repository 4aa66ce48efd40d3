"""The list of features: what each is called, how often it is active, what it goes with; of the shown tap point, of another, or of all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from interlatent_live.analyzer.records import Section, Snapshot
from interlatent_live.explainer.reading import Explanation, Pages
from interlatent_live.viewer.choice import SIGNIFICANT
from interlatent_live.viewer.says import labels
from interlatent_live.viewer.text import plain

__all__ = ["ALL", "MOST", "feature_rows", "layers", "percent"]

ALL: Final = "all"
"""Layer that stands for every one."""
MOST: Final = 2_000
"""Features listed of other layers than the shown one, together: of each those most often active."""


def feature_rows(
    shares: Mapping[int, float], explanations: Mapping[int, Explanation], snapshot: Snapshot | None, letter: str, most: int
) -> list[dict[str, Any]]:
    """A row for each of the `most` features with the largest share of frames, that first. `letter`: 'f', or 'n' for neurons."""
    strongest: dict[int, str] = {}
    largest: dict[int, float] = {}
    if snapshot is not None and len(snapshot.metrics):
        with np.errstate(invalid="ignore"):
            r = np.where(snapshot.q < SIGNIFICANT, snapshot.r, np.nan)
        for feature, row in zip(snapshot.features, r, strict=True):
            if np.isfinite(row).any():
                j = int(np.nanargmax(np.abs(row)))
                largest[int(feature)] = round(float(row[j]), 4)
                strongest[int(feature)] = f"{plain(snapshot.metrics[j], 30)} {row[j]:+.2f}".replace("-", "−")
    order = sorted(shares, key=lambda f: -shares[f])[:most]
    return [
        {
            "kind": "feature", "name": f"{letter}{f}", "label": said["label"] if said else "", "about": said["about"] if said else "",
            "score": said["score"] if said else "", "stale": said["stale"] if said else "", "share": percent(shares[f]),
            "goes": strongest.get(f, ""),
            "by": {"feature": f, "score": _score(explanations.get(f)), "share": round(shares[f], 4), "r": largest.get(f)},
        }
        for f, said in zip(order, labels(order, explanations), strict=True)
    ]  # fmt: skip


def layers(pages: Pages, boot: str, wanted: str) -> dict[str, Any]:
    """Features of one source, 'point|dictionary's hash', or of all: rows as above, each with its point and its dictionary's hash."""
    newest: dict[str, Section] = {f"{s.point}|{s.dictionary_hash}": s for s in pages.sections(boot)}
    keys = [k for k in newest if wanted in (ALL, k)]
    rows: list[dict[str, Any]] = []
    there = 0
    for key in keys:
        section = newest[key]
        dictionary, activity = pages.dictionary(section.dictionary_hash), pages.activity(section.id)
        if dictionary is None or activity is None or not activity.frames:
            continue
        shares = {int(f): float(activity.active[f]) / activity.frames for f in np.flatnonzero(activity.active)}
        found = pages.snapshot_id(section.id)
        snapshot = None if found is None else pages.snapshot(found)
        explanations = {e.feature: e for e in pages.explanations(dictionary.hash, everything=True) if e.label}
        there += len(shares)
        made = feature_rows(shares, explanations, snapshot, "n" if dictionary.kind == "neurons" else "f", max(1, MOST // len(keys)))
        rows += [{**row, "layer": key, "point": plain(section.point, 60), "hash": dictionary.hash} for row in made]
    rows.sort(key=lambda row: -float(row["by"]["share"]))
    return {"rows": rows, "of": there, "layers": len(keys)}


def percent(share: float) -> str:
    """A share of frames as it is written."""
    return "<\u202f1\u202f%" if 0 < share < 0.005 else f"{100 * share:.0f}\u202f%"


def _score(said: Explanation | None) -> float | None:
    """Its score as a number."""
    return None if said is None or said.score is None else said.score.balanced_accuracy
