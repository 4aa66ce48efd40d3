"""Everything that is known of one feature, as plain data: what the feature page draws and its `.json` twin gives.

Figures come from where they were measured, each with what it is of: the explainer's scores, the analyzer's activity,
correlations and strongest windows, `effects.json` beside the dictionary, stored attributions, the decoder's columns. What
was not measured is None with a word on what would measure it. Names and prose come from outside: the browser writes them as text.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from interlatent_live.analyzer.causal import FILE, load_effects
from interlatent_live.analyzer.records import DictionaryRow, Peak, Section
from interlatent_live.explainer.reading import Explanation, Pages, ScoreRow
from interlatent_live.explainer.source import Frames
from interlatent_live.stream.errors import DictionaryError
from interlatent_live.stream.manifest import Manifest
from interlatent_live.viewer import contexts
from interlatent_live.viewer.window import merge, piece

__all__ = ["called", "feature", "finite", "said"]

WINDOWS: Final = 8
BINS: Final = 32
LAGS: Final = 25
"""Steps to either side."""
LAGGED: Final = 6
"""Metrics whose lags are computed: those that go with it most."""
LAG_FRAMES: Final = 20_000
"""Newest frames of which lags are computed."""
EXPLAINED: Final = 120
"""Newest explained frames that are looked through for what the feature does to the action."""
ALIKE: Final = 8
_PICTURE_FRAMES: Final = 50
"""A picture of an earlier frame still shows the window."""
Floats = npt.NDArray[np.float64]


def called(dictionary: DictionaryRow, number: int) -> str:
    """'f41', or 'n41' for a neuron."""
    return f"n{number}" if dictionary.kind == "neurons" else f"f{number}"


def finite(value: Any) -> Any:
    """JSON has no NaN: None instead, at any depth; numpy's numbers become Python's."""
    if isinstance(value, dict):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]
    if isinstance(value, np.ndarray):
        return finite(value.tolist())
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


def feature(pages: Pages, dictionary: DictionaryRow, number: int, frames: Frames | None) -> dict[str, Any]:
    """All of it. `frames`: the newest frames of this very dictionary; None where the newest are of another."""
    found = {e.feature: e for e in pages.explanations(dictionary.hash, everything=True)}
    sections = _sections(pages, dictionary)
    manifest = pages.manifest(sections[-1].manifest_hash) if sections else None
    name, activity, text = called(dictionary, number), _activity(pages, sections, number), contexts.is_text(pages, sections)
    scale = float(activity["maximum"]) if activity else 0.0
    data: dict[str, Any] = {
        "feature": number, "name": name, "run": pages.run(), "features": dictionary.features,
        "dictionary": {"hash": dictionary.hash, "name": dictionary.name, "kind": dictionary.kind, "point": dictionary.point},
        "environment": manifest.environment if manifest else "", "agent": manifest.agent if manifest else "",
        "step_period_s": manifest.step_period_s if manifest else None,
        **said(pages, dictionary.hash, number, found.get(number)),
        "text": contexts.counted(frames, number, scale) if text else None,
        "activity": activity, "histogram": _histogram(frames, number),
        "windows": [
            contexts.window(pages, section, peak, number, scale) if text else _window(pages, section, peak, number)
            for section, peak in _strongest(pages, sections, number)
        ],
        "correlations": _correlations(pages, sections, manifest, number),
        "effect": _effect(dictionary, manifest, number), "actions": _actions(pages, sections, dictionary, number),
        "similar": _named(_similar(dictionary, number), found, dictionary, "cosine"),
        "together": _named(_together(frames, number), found, dictionary, "r"),
        "rename": shlex.join(["interlatent-live", "explain", "--db", str(pages.path), "--name", str(number), "LABEL"]),
    }  # fmt: skip
    data["lags"] = _lags(frames, number, [c["metric"] for c in data["correlations"]])
    made: dict[str, Any] = finite(data)
    return made


def _sections(pages: Pages, dictionary: DictionaryRow) -> list[Section]:
    """Where this dictionary was used, the newest last; of the newest twenty starts of the agent."""
    return [s for b in pages.boots()[-20:] for s in pages.sections(b.boot) if s.dictionary_hash == dictionary.hash]


def _score(score: ScoreRow | None) -> dict[str, Any] | None:
    return None if score is None else asdict(score)


def said(pages: Pages, dictionary_hash: str, number: int, mine: Explanation | None = None) -> dict[str, Any]:
    """What explainer and people say of a feature. `mine`: its explanation, where it was read already."""
    mine = mine or next((e for e in pages.explanations(dictionary_hash, everything=True) if e.feature == number), None)
    people = {
        "versions": [_version(v) for v in pages.versions(dictionary_hash, number)],
        "names": [{"label": n.label, "author": n.author, "wall_ns": n.wall_ns} for n in pages.names(dictionary_hash, number)],
        "notes": [
            {"id": n.id, "author": n.author, "text": n.text, "wall_ns": n.wall_ns, "edited_wall_ns": n.edited_wall_ns, "owner": n.owner}
            for n in pages.notes(dictionary_hash, number)
        ],
    }
    if mine is None:
        fields = ("label", "own_label", "description", "predicate", "source", "stale", "score", "explanation")
        return {**dict.fromkeys(fields), "named_by_user": False, **people}
    return {
        "label": mine.label, "named_by_user": mine.named_by_user, "own_label": mine.own_label, "description": mine.description,
        "predicate": mine.predicate, "source": mine.source, "made_from": mine.made_from, "version": mine.version, "stale": mine.stale,
        "score": _score(mine.score), "scores": [_score(s) for s in mine.scores], **people,
    }  # fmt: skip


def _version(v: Explanation) -> dict[str, Any]:
    return {
        "version": v.version, "label": v.label, "predicate": v.predicate, "source": v.source, "made_from": v.made_from,
        "created_wall_ns": v.created_wall_ns, "score": _score(v.score),
    }  # fmt: skip


def _activity(pages: Pages, sections: Sequence[Section], number: int) -> dict[str, Any] | None:
    """Over all sections: how often, and how strongly."""
    frames = active = 0
    total, maximum = 0.0, 0.0
    for section in sections:
        row = pages.activity(section.id)
        if row is not None and number < len(row.active):
            frames, active = frames + row.frames, active + int(row.active[number])
            total, maximum = total + float(row.total[number]), max(maximum, float(row.maximum[number]))
    if not frames:
        return None
    return {"frames": frames, "active": active, "density": active / frames, "maximum": maximum, "mean": total / active if active else None}


def _histogram(frames: Frames | None, number: int) -> dict[str, Any] | None:
    """Activations where it is active, in the newest frames."""
    if frames is None or frames.table.features is None:
        return None
    values = frames.table.features.values(number)
    encoded = int(frames.table.features.encoded.sum())
    values = values[values != 0]
    if not len(values):
        return {"edges": [], "counts": [], "frames": encoded, "active": 0}
    counts, edges = np.histogram(values.astype(np.float64), BINS)
    return {"edges": edges, "counts": counts, "frames": encoded, "active": len(values)}


def _strongest(pages: Pages, sections: Sequence[Section], number: int) -> list[tuple[Section, Peak]]:
    """The strongest stored windows, one an episode where there are enough, the strongest first."""
    peaks = [(section, peak) for section in sections for peak in pages.peaks(section.id, number)]
    peaks.sort(key=lambda sp: (-abs(sp[1].value), sp[0].id, sp[1].seq))
    seen: set[tuple[str, int, int]] = set()
    firsts: list[tuple[Section, Peak]] = []
    others: list[tuple[Section, Peak]] = []
    for section, peak in peaks:
        key = section.boot, peak.env, peak.episode
        (others if key in seen else firsts).append((section, peak))
        seen.add(key)
    return sorted([*firsts, *others][:WINDOWS], key=lambda sp: -abs(sp[1].value))


def _window(pages: Pages, section: Section, peak: Peak, number: int) -> dict[str, Any]:
    first, last = (pages.batch_at(section.boot, seq) for seq in (peak.window_first_seq, peak.window_next_seq - 1))
    data: dict[str, Any] = {
        "boot": section.boot, "env": peak.env, "episode": peak.episode, "step": peak.step, "seq": peak.seq, "value": peak.value,
        "t": None, "frames": [], "values": [],
    }  # fmt: skip
    manifest = pages.manifest(section.manifest_hash)
    if first is not None and last is not None and manifest is not None and last.id - first.id < 2_000:
        coded = {c.batch_id: c for c in pages.codes(section.id, first.id, last.id)}
        rows = pages.batch_range(section.boot, first.id, last.id)
        made = [piece(b, coded.get(b.id), manifest.started_monotonic_ns, peak.env, len(manifest.metrics)) for b in rows]
        part = merge([p for p in made if p is not None])
        if part is not None:
            low, high = np.searchsorted(part.seq, (peak.window_first_seq, peak.window_next_seq))
            part = part.cut(int(low), int(high))
            slots = np.full(0 if part.codes is None else part.codes.features, -1, np.int64)
            slots[number : number + 1] = 0
            data |= {"frames": part.seq, "values": part.values(slots, 1)[:, 0].astype(np.float64)}
            at = np.flatnonzero(part.seq == peak.seq)
            data["t"] = float(part.t[at[0]]) if len(at) else None
    picture = pages.picture(section.boot, peak.env, peak.seq)
    period = max(1, manifest.num_envs if manifest else 1)
    data["picture"] = picture.seq if picture is not None and peak.seq - picture.seq <= _PICTURE_FRAMES * period else None
    return data


def _correlations(pages: Pages, sections: Sequence[Section], manifest: Manifest | None, number: int) -> list[dict[str, Any]]:
    """With every metric: over the last minute, and since the beginning; strongest first."""
    spans: dict[str, dict[str, dict[str, Any]]] = {}
    for span in ("rolling", "start"):
        for section in reversed(sections):
            newest = pages.snapshot_id(section.id, span)
            snapshot = None if newest is None else pages.snapshot(newest)
            at = None if snapshot is None else np.flatnonzero(snapshot.features == number)
            if snapshot is not None and at is not None and len(at):
                i = int(at[0])
                spans[span] = {
                    m: {k: float(getattr(snapshot, k)[i, j]) for k in ("r", "low", "high", "n", "n_eff", "q")}
                    for j, m in enumerate(snapshot.metrics)
                }
                break
    units = {m.name: (m.unit, m.description) for m in manifest.metrics} if manifest else {}
    names = [m for m in spans.get("rolling", spans.get("start", {}))]
    rows = [
        {
            "metric": m, "unit": units.get(m, ("", ""))[0], "about": units.get(m, ("", ""))[1], "rolling": spans.get("rolling", {}).get(m),
            "start": spans.get("start", {}).get(m),
        }
        for m in names
    ]  # fmt: skip

    def strength(row: dict[str, Any]) -> float:
        r = (row["rolling"] or row["start"])["r"]
        return -abs(r) if math.isfinite(r) else 1.0

    return sorted(rows, key=strength)


def _lags(frames: Frames | None, number: int, metrics: Sequence[str]) -> list[dict[str, Any]]:
    """r of the activation with each metric `lag` steps later (earlier where negative), within episodes; NaN pairs left out."""
    if frames is None:
        return []
    table, found = frames.table, []
    name = f"f{number}"
    for metric in [m for m in metrics if m in table.numbers][:LAGGED]:
        lags, values = list(range(-LAGS, LAGS + 1)), []
        for lag in lags:
            x = table.lagged(name, lag) if lag > 0 else table.number(name)
            y = table.lagged(metric, -lag) if lag < 0 else table.number(metric)
            values.append(_pearson(np.asarray(x[-LAG_FRAMES:], np.float64), np.asarray(y[-LAG_FRAMES:], np.float64)))
        known = np.array(values)
        best = int(np.nanargmax(np.abs(known))) if np.isfinite(known).any() else None
        found.append({
            "metric": metric, "lags": lags, "r": values, "best": None if best is None else lags[best],
            "best_r": None if best is None else values[best],
        })  # fmt: skip
    return found


def _pearson(x: Floats, y: Floats) -> float:
    both = np.isfinite(x) & np.isfinite(y)
    x, y = x[both], y[both]
    if len(x) < 4:
        return math.nan
    x, y = x - x.mean(), y - y.mean()
    scale = math.sqrt(float(x @ x) * float(y @ y))
    return float(x @ y) / scale if scale > 0 else math.nan


def _effect(dictionary: DictionaryRow, manifest: Manifest | None, number: int) -> dict[str, Any] | None:
    """What changing it does, from `effects.json` beside exactly this dictionary over exactly these weights."""
    folder = Path(dictionary.path) if dictionary.path else None
    if folder is None or not (folder / FILE).is_file():
        return None
    try:
        found = load_effects(folder / FILE)
    except DictionaryError as error:
        return {"problem": str(error)}
    if found.dictionary_hash != dictionary.hash or manifest is None or found.weights_hash != manifest.weights_hash:
        return {"problem": f"{FILE} beside the dictionary is of another dictionary or other weights"}
    mine = found.features.get(number)
    return None if mine is None else {**asdict(mine), "action_unit": found.action_unit, "command": found.command}


def _actions(pages: Pages, sections: Sequence[Section], dictionary: DictionaryRow, number: int) -> dict[str, Any]:
    """What one unit of its activation adds to each action's score: contribution over activation, to first order.

    Of the newest explained frames in which it was active. Where all logits are kept, relative to their mean: only differences count.
    """
    shares: list[Floats] = []
    names: tuple[str, ...] = ()
    kind, seen, rel = "", 0, False
    if sections:
        section = sections[-1]
        row = pages.attribution(section.boot, 0)
        while row is not None and seen < EXPLAINED:
            seen += 1
            at = np.flatnonzero(row.features == number) if row.dictionary == dictionary.hash else np.zeros(0, np.int64)
            if len(at) and row.values[at[0]] and (not names or names == row.names):
                share = row.contributions[at[0]].astype(np.float64) / float(row.values[at[0]])
                rel = row.kind == "logits" and row.action_count == len(row.names)
                shares.append(share - share.mean() if rel else share)
                names, kind = row.names, row.kind
            row = pages.attribution(section.boot, 0, row.seq - 1)
    rows = []
    if shares:
        low, middle, high = np.quantile(np.stack(shares), (0.25, 0.5, 0.75), axis=0)
        rows = [
            {"action": names[i] or f"action {i}", "per_unit": float(middle[i]), "low": float(low[i]), "high": float(high[i])}
            for i in np.argsort(-middle, kind="stable").tolist()
        ]
    return {"kind": kind, "relative": rel, "explained": seen, "frames": len(shares), "rows": rows}


def _similar(dictionary: DictionaryRow, number: int) -> list[tuple[int, float]]:
    """(feature, cosine) of the most alike decoder columns; read without torch, from the very dictionary that was used."""
    folder = Path(dictionary.path) if dictionary.path else None
    if folder is None or not (folder / "cfg.json").is_file() or not (folder / "dictionary.safetensors").is_file():
        return []
    from safetensors import SafetensorError, safe_open

    try:
        if json.loads((folder / "cfg.json").read_text(encoding="utf-8")) != dict(dictionary.cfg):
            return []  # another one by now
        with safe_open(str(folder / "dictionary.safetensors"), framework="numpy") as tensors:
            columns = np.asarray(tensors.get_tensor("W_dec"), np.float64)
    except (OSError, ValueError, SafetensorError):
        return []
    if columns.ndim != 2 or len(columns) != dictionary.features:
        return []
    length = np.linalg.norm(columns, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        cosine = columns @ columns[number] / (length * length[number])
    cosine[number] = np.nan
    return _top(cosine)


def _together(frames: Frames | None, number: int) -> list[tuple[int, float]]:
    """(feature, r of being active) of those active in the same frames most."""
    if frames is None or frames.table.features is None:
        return []
    features = frames.table.features
    kept = features.encoded
    n = int(kept.sum())
    mine = features.active(number) & kept
    own = int(mine.sum())
    if not 0 < own < n:
        return []
    counts, both = features.counts(kept).astype(np.float64), features.counts(mine).astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        r = (n * both - own * counts) / np.sqrt(float(own) * (n - own) * counts * (n - counts))
    r[number] = np.nan
    return _top(r)


def _top(values: Floats) -> list[tuple[int, float]]:
    order = np.argsort(-np.nan_to_num(values, nan=-np.inf), kind="stable")[:ALIKE]
    return [(int(i), float(values[i])) for i in order if math.isfinite(values[i]) and values[i] > 0]


def _named(
    rows: Sequence[tuple[int, float]], found: dict[int, Explanation], dictionary: DictionaryRow, measure: str
) -> list[dict[str, Any]]:
    made = []
    for number, value in rows:
        known = found.get(number)
        score = known.score if known is not None else None
        made.append({
            "feature": number, "name": called(dictionary, number), "label": known.label if known else None,
            "score": score.balanced_accuracy if score else None, "kind": score.kind if score else None, measure: value,
        })  # fmt: skip
    return made


