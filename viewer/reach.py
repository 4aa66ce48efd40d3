"""What the drawer "Reach in" shows: whether and how this page may steer, what is in force, what it does, and what was before.

Pure functions of what the database tells (`steered.Steered`), and of what the agent itself tells where the page has a hand in
it (`hand.Told`). The agent's word about what is in force goes before the database's, which lags. Names, reasons and authors
come from outside: plain text throughout.
"""

from __future__ import annotations

import shlex
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from interlatent_live.stream.errors import InterlatentError, StoreError
from interlatent_live.viewer.feed import Feed
from interlatent_live.viewer.hand import Asked, Told, Trial
from interlatent_live.viewer.steered import Done, did
from interlatent_live.viewer.text import number, plain

__all__ = ["Blocked", "about", "blocked", "drawer", "earlier", "form", "in_force", "stoppable"]

POINTS: Final = 60
"""Measurements drawn of each intervention."""
BEFORE: Final = 24
_UNITS: Final = {"kl": "nats", "sd": "sd"}
_SIZES: Final = {"kl": (0.01, 0.1, 1.0), "sd": (0.1, 0.5, 1.0)}
_WORDS: Final = ("hardly anything", "a little", "clearly", "strongly")
_CAUSES: Final = {
    "expired": "its time was over", "author_gone": "its author was gone", "released": "released", "released_all": "released with all",
    "closed": "the agent ended", "error": "it failed",
}  # fmt: skip
STALE_S: Final = 2.0
"""A listing that is older says nothing of now."""

Blocked = tuple[str, str]
"""Why the form cannot be used, and a command that changes it ('' where there is none)."""


def blocked(feed: Feed, *, reached: bool, allowed: bool, told: Told | None) -> Blocked | None:
    """None where this page may steer the agent that is shown. `reached`: whether its server has a hand; `allowed`: whether
    this browser may use it."""
    manifest, db = feed.manifest, shlex.quote(str(feed.path))
    if feed.boot is None or manifest is None:
        return "There is no agent yet.", ""
    if feed.origin.get("recording") or not feed.newest:
        what = "a recording" if feed.origin.get("recording") else "an earlier start of the agent"
        return f"This is {what}: nothing can be done to it any more. What was done then stands below.", ""
    if feed.freshness().state == "ENDED":
        return "This agent has ended, so nothing can be done to it. What was done stands below.", ""
    if manifest.control is None or not manifest.control.steerable:
        remedy = "il.Tap(policy, steering=il.SteeringPolicy())"
        if manifest.agent:
            remedy = f"interlatent-live demo --agent {shlex.quote(plain(manifest.agent, 40))} --steerable"
        return "This agent was started without steering, so nobody can reach in. One that allows it:", remedy
    if not reached:
        remedy = f"interlatent-live view --db {db} --port 0 --control {shlex.quote(feed.origin.get('endpoint') or 'tcp://127.0.0.1:5570')}"
        return "This agent may be steered, but this page only looks: its server was not asked to reach in. One that may:", remedy
    if not allowed:
        return "This page may steer, but not from this browser: it belongs to another user of this machine, or may only look.", ""
    if feed.dictionary is None or feed.dictionary.kind == "neurons":
        return "What is shown are single neurons. Features of a dictionary can be steered: learn one, or choose one above the raster.", ""
    if told is not None and told.problem:
        return f"{plain(told.problem, 400)}. What you wrote here stays; this page asks again.", ""
    return None


def about(feed: Feed, feature: int) -> dict[str, Any]:
    """What the form says of the feature that was chosen."""
    dictionary = feed.dictionary
    if dictionary is None or not 0 <= feature < dictionary.features:
        most = f"{dictionary.name!r} has 0 to {dictionary.features - 1}" if dictionary is not None else "there is no dictionary yet"
        text = f"There is no feature {feature}; {plain(most, 60)}."
        return {"feature": feature, "known": False, "text": text, "typical": None, "basis": ""}
    said = feed.explanations.get(feature)
    label = plain(said.label or "", 60) if said is not None else ""
    typical, basis = _typical(feed, feature)
    share = feed.shares.get(feature)
    words = [
        label or "unexplained",
        "never active so far" if share is None else f"active in {'< 1' if share < 0.01 else round(100 * share)}\u202f% of frames",
    ]
    return {"feature": feature, "known": True, "text": " · ".join(words), "typical": typical, "basis": basis}


def form(feed: Feed, told: Told | None, asked: Mapping[str, Any]) -> dict[str, Any]:
    """What the form says of what it holds: of the feature, what makes no sense, and what a shadow measured of just this."""
    feature = asked.get("feature")
    shown: dict[str, Any] = {"f": asked.get("f"), "problem": "", "trial": None, "trying": False, "waits": False}
    if not isinstance(feature, int) or not 0 <= feature < 1 << 31:
        return shown | {"about": {"known": True, "text": "Give the number of a feature.", "typical": None, "basis": ""}}
    shown["about"] = about(feed, feature)
    if not shown["about"]["known"] or feed.dictionary is None:
        return shown
    try:
        key = Asked.of(asked, feed.dictionary.hash).key
    except InterlatentError as error:
        return shown | {"problem": str(error)}
    except (KeyError, TypeError, ValueError, OverflowError):
        return shown
    trial = None if told is None else told.trials.get(key)
    waits = told is not None and any(a.get("shadow") and a.get("feature") == feature and not a.get("holds", True) for a in told.active)
    return shown | {"trial": trial and _trial(trial, _names(feed)), "trying": told is not None and key in told.trying, "waits": waits}


def stoppable(feed: Feed) -> bool:
    """Whether there is an agent that takes requests and may still act, so that RELEASE ALL means something."""
    control = feed.manifest.control if feed.manifest is not None else None
    alive = feed.freshness().state != "ENDED" or not feed.newest
    return control is not None and control.steerable and alive and not feed.origin.get("recording")


def _typical(feed: Feed, feature: int) -> tuple[float | None, str]:
    """The typical maximum: the card's, else the median over the newest events of the feature, else the largest there was."""
    card = feed.dictionary.card if feed.dictionary is not None else None
    known = (card or {}).get("typical_max")
    if isinstance(known, list) and feature < len(known) and isinstance(known[feature], (int, float)) and known[feature] > 0:
        return float(known[feature]), "typical maximum, by its card"
    if feed.section is None:
        return None, ""
    try:
        peaks, activity = feed.reader.event_peaks(feed.section.id, feature), feed.reader.activity(feed.section.id)
    except StoreError:
        return None, ""
    if peaks:
        return statistics.median(peaks), f"typical maximum, of {len(peaks)} event{'s' * (len(peaks) > 1)}"
    largest = float(activity.maximum[feature]) if activity is not None and feature < len(activity.maximum) else 0.0
    return (largest, "its largest so far") if largest > 0 else (None, "")


def in_force(feed: Feed, told: Told | None) -> tuple[int, int]:
    """How many interventions change the agent now, and how many only measure; (0, 0) where that is over or not known."""
    if _heard(feed, told):
        assert told is not None
        shadows = sum(bool(item.get("shadow")) for item in told.active)
        return len(told.active) - shadows, shadows
    if feed.origin.get("recording"):
        return 0, 0
    rows = [d.row for d in feed.steered.done if _runs(d, feed)]
    shadows = sum(bool(row.shadow) for row in rows)
    return len(rows) - shadows, shadows


def drawer(feed: Feed, told: Told | None, at: int | None, why: Blocked | None, *, whole: bool) -> dict[str, Any]:
    """What reach.js draws of now. `at`: frame at the cursor, None while live. `whole`: the drawer is open."""
    now, names = time.time(), _names(feed)
    here = [d for d in feed.steered.done if at is not None and _covers(d, at)]
    shown: dict[str, Any] = {
        "said": [] if told is None else list(told.said), "stale": feed.freshness().state == "STALE",
        "here": sum(not d.row.shadow for d in here), "now": now * 1e3, "beats": bool(told is not None and told.mine),
    }  # fmt: skip
    if not whole:
        return shown
    live = {str(item["id"]): item for item in told.active} if told is not None and _heard(feed, told) else None
    force = [_row(feed, d, live and live.get(d.row.id), told, names, now) for d in feed.steered.done if _in_force(d, feed, live)]
    known = {d.row.id for d in feed.steered.done}
    force += [_row(feed, None, item, told, names, now) for id, item in (live or {}).items() if id not in known]
    return shown | {
        "why": "" if why is None else why[0], "command": "" if why is None else why[1],
        "policy": dict(told.policy) if told is not None else {}, "envs": feed.manifest.num_envs if feed.manifest else 1,
        "hash": feed.dictionary.hash if feed.dictionary is not None else "", "force": force,
        "at": [_at(feed, d, at, names) for d in here if at is not None],
    }  # fmt: skip


def earlier(feed: Feed, told: Told | None) -> list[dict[str, Any]]:
    """What was in force before, newest first."""
    live = {str(item["id"]): item for item in told.active} if told is not None and _heard(feed, told) else None
    over = [d for d in feed.steered.done if not _in_force(d, feed, live)]
    return [_row(feed, d, None, told, _names(feed), time.time()) for d in over[::-1][:BEFORE]]


def _names(feed: Feed) -> Sequence[str]:
    """Of actions."""
    return feed.manifest.action.names if feed.manifest is not None else ()


def _in_force(done: Done, feed: Feed, live: Mapping[str, Any] | None) -> bool:
    return done.row.id in live if live is not None else _runs(done, feed)


def _covers(done: Done, at: int) -> bool:
    first, end = done.row.first_seq, done.row.next_seq
    return first is not None and first <= at and (end is None or at < end)


def _heard(feed: Feed, told: Told | None) -> bool:
    """Whether the agent's newest start itself says what is in force."""
    return told is not None and bool(feed.boots) and told.boot == feed.boots[-1].boot and time.monotonic() - told.at < STALE_S


def _runs(done: Done, feed: Feed) -> bool:
    """Whether it is in force, as far as the database knows: an agent that was killed tells of no end."""
    row = done.row
    if row.first_seq is None or row.next_seq is not None or not feed.newest or feed.freshness().state == "ENDED":
        return False
    ttl = row.edit.get("ttl_s")
    left = 0.0 if row.started_wall_ns is None or not isinstance(ttl, (int, float)) else row.started_wall_ns / 1e9 + ttl - time.time()
    return left > -STALE_S


def _row(
    feed: Feed, done: Done | None, item: Mapping[str, Any] | None, told: Told | None, names: Sequence[str], now: float
) -> dict[str, Any]:
    """One intervention."""
    row = done.row if done is not None else None
    edit: Mapping[str, Any] = item if item is not None else row.edit if row is not None else {}
    feature, ttl = edit.get("feature"), edit.get("ttl_s")
    ours = feed.dictionary is not None and edit.get("dictionary_hash") == feed.dictionary.hash
    said = feed.explanations.get(feature) if ours and isinstance(feature, int) else None
    newest = done.effects[-1] if done is not None and done.effects else None
    kind = str(item.get("kind") or "") if item is not None else newest.kind if newest is not None else ""
    value = item.get("effect") if item is not None else newest.value if newest is not None else None
    factor = edit.get("factor", newest.factor if newest is not None else 1.0)
    if item is not None:
        ends = (now + float(item.get("left_s") or 0.0) - (time.monotonic() - (told.at if told else 0.0))) * 1e3
    elif row is not None and row.next_seq is None and row.started_wall_ns is not None and isinstance(ttl, (int, float)):
        ends = row.started_wall_ns / 1e6 + ttl * 1e3
    else:
        ends = None
    id = str(item["id"]) if item is not None else row.id if row is not None else ""
    start = feed.manifest.started_wall_ns if feed.manifest else 0
    began, ended = (row.started_wall_ns, row.ended_wall_ns) if row is not None else (None, None)

    def word(name: str, limit: int) -> str:
        return plain(str((getattr(row, name) if row is not None else edit.get(name)) or ""), limit)

    return {
        "id": id, "mine": told is not None and id in told.mine, "shadow": bool(row.shadow if row is not None else edit.get("shadow")),
        "name": f"f{feature}" if isinstance(feature, int) else plain(f"direction at {edit.get('output')}", 40),
        "label": plain(said.label or "", 60) if said is not None else "", "did": did(edit),
        "author": word("author", 60), "reason": word("reason", 200),
        "when": word("condition", 200), "env": edit.get("env"),
        "holds": True if item is None else bool(item.get("holds", True)), "ends": None if ends is None else round(ends / 100) * 100,
        "ttl": ttl if isinstance(ttl, (int, float)) else None,
        "effect": _effect(value, kind),
        "turned": "" if not isinstance(factor, (int, float)) or factor == 1 else f"turned down to {number(100 * factor, 2)}\u202f%",
        "values": [] if done is None else [round(e.value, 5) for e in done.effects if e.value is not None][-POINTS:],
        "outcome": _outcome(item["outcome"] if item is not None and item.get("outcome") else _stored(done), names),
        "cause": "" if row is None or row.next_seq is None else _CAUSES.get(row.cause or "", plain(row.cause or "", 30)),
        "seq": None if row is None else row.first_seq,
        "t": None if began is None or not start else round((began - start) / 1e9, 1),
        "lasted": None if began is None or ended is None else round((ended - began) / 1e9, 1),
    }  # fmt: skip


def _at(feed: Feed, done: Done, at: int, names: Sequence[str]) -> dict[str, Any]:
    """What was in force at the cursor, with what it did there."""
    assert feed.boot is not None
    try:
        outcome = feed.reader.outcome(feed.boot.boot, done.row.number, at)
    except StoreError:
        outcome = None
    stored = None if outcome is None else [outcome.measure, outcome.actions, outcome.steered, outcome.unsteered]
    return {"id": done.row.id, "shadow": bool(done.row.shadow), "outcome": _outcome(stored, names)}


def _stored(done: Done | None) -> list[Any] | None:
    o = None if done is None else done.outcome
    return None if o is None else [o.measure, o.actions, o.steered, o.unsteered]


def _outcome(data: Any, names: Sequence[str]) -> dict[str, Any] | None:
    """Actions with and without."""
    if not isinstance(data, (list, tuple)) or len(data) != 4:
        return None
    measure, actions, steered, unsteered = data
    return {
        "measure": str(measure),
        "rows": [
            [plain(names[a], 24) if a < len(names) and names[a] else f"action {a}", round(float(w), 5), round(float(o), 5)]
            for a, w, o in zip(actions, steered, unsteered, strict=True)
        ],
    }


def _trial(trial: Trial, names: Sequence[str]) -> dict[str, Any]:
    times = f"median of {trial.count}, {_size(trial.least)} to {_size(trial.most)}" if trial.count > 1 else "measured once"
    return {"effect": _effect(trial.median, trial.kind), "times": times, "outcome": _outcome(trial.outcome, names)}


def _effect(value: float | None, kind: str) -> list[str]:
    """How large, and in a word, by eye, for who does not think in nats; empty where it is not known."""
    if value is None or kind not in _UNITS:
        return []
    word = next((word for below, word in zip(_SIZES[kind], _WORDS, strict=False) if value < below), _WORDS[-1])
    return [f"{_size(value)}\u202f{_UNITS[kind]}", word]


def _size(value: float) -> str:
    return "< 0.001" if 0 < value < 0.001 else number(value)
