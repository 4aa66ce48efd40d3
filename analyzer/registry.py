"""Which dictionaries there are, and which one belongs to a stream.

Looked for in `analyzer/dictionaries/` (those that ship) and in the directories of INTERLATENT_DICTIONARIES (separated
like PATH); an artifact is a directory directly below one of them. Loading costs a read and a hash of the file.
"""

from __future__ import annotations

import difflib
import json
import logging
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interlatent_live.analyzer.dictionary import CFG, Dictionary, load
from interlatent_live.analyzer.store import Store
from interlatent_live.stream.errors import DictionaryError, DictionaryMismatch
from interlatent_live.stream.manifest import Manifest

__all__ = ["VARIABLE", "Doubt", "at_point", "check", "find", "installed", "listing", "match", "shipped"]

log = logging.getLogger(__name__)

SHIPPED = Path(__file__).resolve().parent / "dictionaries"
VARIABLE = "INTERLATENT_DICTIONARIES"


@dataclass(frozen=True, slots=True)
class Doubt:
    """Why a dictionary may say little about a stream, though it can be computed there."""

    text: str
    """Both values and the remedy."""
    stale: bool
    """The stream's weights are changing, so any dictionary falls behind; else it is of other weights, or of unknown ones."""


def shipped() -> list[Dictionary]:
    """The dictionaries of the reference agents, by name."""
    return [load(path) for path in _artifacts(SHIPPED)]


def installed() -> list[Dictionary]:
    """Those that ship, and those of INTERLATENT_DICTIONARIES; a damaged one is logged and left out."""
    found = []
    for path in (p for place in _places() for p in _artifacts(place)):
        try:
            found.append(load(path))
        except DictionaryError as error:
            log.warning("dictionary left out: %s", error)
    return found


def find(name_or_path: str | Path) -> Dictionary:
    """By path where there is one, else by name, else by the beginning (8 digits or more) of its hash."""
    path = Path(name_or_path)
    if path.exists():
        return load(path)
    wanted = str(name_or_path)
    if os.sep in wanted or path.suffix:
        return load(path)  # says what is missing there
    for place in _places():
        if (place / wanted / CFG).is_file():
            return load(place / wanted)
    known = installed()
    for dictionary in known:
        if dictionary.name == wanted or (len(wanted) >= 8 and dictionary.hash.startswith(wanted)):
            return dictionary
    names = sorted({d.name for d in known})
    close = difflib.get_close_matches(wanted, names, n=3) or names
    raise DictionaryError(f"no dictionary named {wanted!r}; there are: {', '.join(close) or 'none'}. Give a path, or set {VARIABLE}")


def match(manifest: Manifest) -> list[Dictionary]:
    """Those whose model hash and tap points are the stream's, the best reconstruction of each output point first.

    Of a stream whose weights are changing, those that are of the weights with which it began.
    """
    fitting = []
    for dictionary in installed():
        if not dictionary.cfg.model_hash or dictionary.cfg.model_hash != manifest.weights_hash:
            continue
        try:
            check(dictionary, manifest)
        except DictionaryMismatch:
            continue
        fitting.append(dictionary)
    return sorted(fitting, key=lambda d: (d.cfg.output, _fvu(d), d.hash))


def at_point(manifest: Manifest, point: str, wanted: str | None) -> Dictionary | None:
    """The dictionary named `wanted` (a name or path; None: the best that reads or reconstructs `point`; 'none': none)."""
    if wanted == "none":
        return None
    if wanted is None:
        return next((d for d in match(manifest) if point in (d.cfg.input, d.cfg.output)), None)
    chosen = find(wanted)
    check(chosen, manifest)
    return chosen


def check(dictionary: Dictionary, manifest: Manifest, at: tuple[str, str] | None = None) -> Doubt | None:
    """None where it belongs to the stream; else why its features are doubtful, for a person to override and the store to mark.

    Where it cannot even be computed, a tap point missing or of another width: DictionaryMismatch, which no override helps.
    `at`: input and output tap points to take instead of its own.
    """
    cfg, name = dictionary.cfg, dictionary.name
    points = {p.name: math.prod(p.shape) for p in manifest.tap_points}
    there = ", ".join(f"{point} ({width} wide)" for point, width in points.items()) or "none"
    for point, width in zip(at or (cfg.input, cfg.output), (cfg.d_in, cfg.d_out), strict=True):
        if point not in points:
            same = next((p for p, w in points.items() if w == width), None)
            named = "" if same is None else f", or if {same!r} is the same layer under another name, say so: --override {name}=INPUT,OUTPUT"
            raise DictionaryMismatch(f"{name!r} needs tap point {point!r}, {width} wide; the stream has {there}: tap it as well{named}")
        if points[point] != width:
            raise DictionaryMismatch(
                f"{name!r} expects {width} values at tap point {point!r}; the stream has {points[point]} there: it cannot be computed; "
                f"name another dictionary, or train one for this layer with: interlatent-live dict train"
            )
    ours, theirs = cfg.model_hash[:12] or "weights it does not name", manifest.weights_hash[:12] or "weights it does not name"
    if manifest.weights == "changing":
        return Doubt(f"the stream's weights are changing (it began with {theirs}), and {name!r} is of {ours}: its features are stale", True)
    if not cfg.model_hash or cfg.model_hash != manifest.weights_hash:
        remedy = f"name one of these weights, train one with interlatent-live dict train, or use it all the same: --override {name}"
        return Doubt(f"{name!r} is of {ours}, the stream of {theirs}: {remedy}", False)
    return None


def listing(db: str | Path | None = None) -> list[dict[str, Any]]:
    """Name, path, hash, tap points and card of those installed, and of those that the database `db` names."""
    rows = [
        {
            "name": d.name,
            "path": str(d.path),
            "hash": d.hash,
            "tap_points": list(dict.fromkeys((d.cfg.input, d.cfg.output))),
            "card": d.card,
        }
        for d in installed()
    ]
    if db is not None:
        known = {row["hash"] for row in rows}
        with Store(db, readonly=True) as store:
            named = store.all("SELECT name, path, hash, point, card FROM dictionaries WHERE kind != 'neurons' ORDER BY name")
        rows += [
            {"name": name, "path": path, "hash": hash_, "tap_points": [point], "card": json.loads(card) if card else None}
            for name, path, hash_, point, card in named
            if hash_ not in known
        ]
    return rows


def _fvu(dictionary: Dictionary) -> float:
    value = (dictionary.card or {}).get("fvu")
    return float(value) if isinstance(value, (int, float)) else math.inf


def _places() -> list[Path]:
    extra = os.environ.get(VARIABLE, "")
    return [SHIPPED, *(Path(p) for p in extra.split(os.pathsep) if p)]


def _artifacts(place: Path) -> list[Path]:
    if not place.is_dir():
        return []
    return sorted(p for p in place.iterdir() if not p.name.startswith(".") and (p / CFG).is_file())
