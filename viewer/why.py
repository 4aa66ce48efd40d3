"""Why this action, as the panel shows it: each action's score with what features contributed to it. A pure function of a row.

Signs stand as symbols, so nothing is said by colour alone. Names and labels come from a run or its explainer: plain text throughout.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from interlatent_live.stream.attribution import Attribution
from interlatent_live.viewer.text import duration, number, plain, quantity

__all__ = ["FEW", "STALE_S", "TOP", "why"]

FEW: Final = 3
"""Actions that are all taken apart. Of more, those that say most are: the one taken and the best other one, or the largest two."""

STALE_S: Final = 1.0
"""Seconds of frame time after which an attribution no longer speaks for the frame shown."""
TOP: Final = 3
"""Features named for each action."""
_KINDS: Final = {"logits": "logit", "means": "mean", "q": "Q-value", "scores": "score"}


def why(
    row: Attribution | None, age_s: float | None, features: Mapping[int, str], labels: Mapping[int, str], *, fits: bool, name: str
) -> dict[str, Any]:
    """What why.js draws. `age_s`: how much older than the frame shown the attribution is, in seconds of frame time.

    `features`, `labels`: how features are called, and in words. `fits`: whether a dictionary serves this run, of `name`.
    """
    if row is None:
        return {"state": "none", "note": "", "code": _remedy(fits, name), "reason": _reason(fits), "actions": [], "all": []}
    stale = age_s is not None and age_s > STALE_S
    kind, whole = _KINDS[row.kind], row.action_count == len(row.names)
    shares = _shares(row)
    widest = max(float(np.abs(row.total).max()), 1e-12)
    strongest = max(float(np.abs(row.contributions).max(initial=0.0)), float(np.abs(row.bias + row.error + row.rest).max()), 1e-12)
    actions = []
    for i, number_ in enumerate(row.actions.tolist()):
        share = None if shares is None else float(shares[i])
        actions.append({
            "name": plain(row.names[i], 30).replace("_", " ") or f"action {number_}",
            "chosen": row.chosen == number_,
            "value": _signed(float(row.total[i])) if share is None else f"{100 * share:.0f}\u202f%" if share >= 0.01 else "<\u202f1\u202f%",
            "about": f"{kind} {_signed(float(row.total[i]))}",
            "bar": float(row.total[i]) / widest if share is None else share,
            "signed": share is None,
            "parts": _parts(row, i, features, labels, strongest),
        })  # fmt: skip
    earlier = "" if age_s is None or age_s <= 0 else quantity(round(1e3 * age_s), "ms") if age_s < 1 else duration(age_s)
    earlier = earlier and f"{earlier} earlier"
    said = f"{kind}s" if whole else f"{kind}s of {len(row.names)} of {row.action_count} actions"
    said = f"{earlier or f'frame {row.seq}'} · {said}"
    note = f"stale: {earlier}" if stale else ""
    few = len(actions) <= FEW
    apart = actions if few else [actions[i] | {"rank": rank} for i, rank in _foremost(row, shares is not None)]
    lines = [] if few else [{key: action[key] for key in ("name", "chosen", "value", "about", "bar", "signed")} for action in actions]
    state = "stale" if stale else "shown"
    return {"state": state, "note": note, "unit": said, "reason": "", "code": "", "actions": apart, "all": lines}


def _foremost(row: Attribution, ranked: bool) -> list[tuple[int, str]]:
    """Which two actions are taken apart where there are many, and what each is called: places of their own, so that nothing jumps."""
    size = row.total if ranked or row.chosen >= 0 else np.abs(row.total)
    order = np.argsort(-size, kind="stable").tolist()
    taken = [i for i in order if int(row.actions[i]) == row.chosen]
    if not taken:
        return [(order[0], ""), (order[1], "")]
    return [(taken[0], "taken"), (next(i for i in order if i != taken[0]), "next")]


def _parts(row: Attribution, i: int, features: Mapping[int, str], labels: Mapping[int, str], strongest: float) -> list[dict[str, Any]]:
    """The strongest features, the other ones, and the rest: they sum to the score."""
    mine = row.contributions[:, i].astype(np.float64)
    top = np.argsort(-np.abs(mine), kind="stable")[:TOP]

    def part(name: str, label: str, value: float, kind: str, about: str) -> dict[str, Any]:
        width = max(-1.0, min(1.0, value / strongest))
        return {"name": name, "label": label, "text": _signed(value), "bar": width, "kind": kind, "about": about}

    found = []
    for k in top.tolist():
        feature = int(row.features[k])
        label, name = plain(labels.get(feature, ""), 40), features.get(feature, f"f{feature}")
        called, active = f"{name}, {label}," if label else name, number(float(row.values[k]))
        about = f"{called} active at {active}, contributes {_signed(float(mine[k]))}"
        found.append(part(name, label, float(mine[k]), "feature", about))
    others = len(mine) - len(top)
    if others:
        name = f"{others} other feature{'s' * (others > 1)}"
        found.append(part("", name, float(mine.sum() - mine[top].sum()), "others", f"{name} together"))
    rest = float(row.bias[i]) + float(row.error[i]) + float(row.rest[i])
    about = (
        f"dictionary's bias {_signed(float(row.bias[i]))}, error term {_signed(float(row.error[i]))}, "
        f"what lies behind the layer {_signed(float(row.rest[i]))}"
    )
    found.append(part("", "bias and error term", rest, "rest", about))
    return found


def _shares(row: Attribution) -> np.ndarray[Any, np.dtype[np.float64]] | None:
    """(a,) probabilities of logits of all actions; None where scores are no logits, or some actions are missing."""
    if row.kind != "logits" or row.action_count != len(row.names):
        return None
    scores = row.total.astype(np.float64)
    shares = np.exp(scores - scores.max())
    return np.asarray(shares / shares.sum(), np.float64)


def _signed(value: float) -> str:
    """A number with its sign, always; two or three digits."""
    text = f"{value:+.2f}" if abs(value) < 100 else f"{value:+.3g}"
    return ("0.00" if text in ("+0.00", "-0.00") else text).replace("-", "−")


def _reason(fits: bool) -> str:
    if fits:
        return "No action of this run is explained up to this frame. The tap explains some, if it is asked to:"
    return "No dictionary fits this model, so no action can be explained. Learn one from a recording, then ask the tap:"


def _remedy(fits: bool, name: str) -> str:
    tap = f'il.Tap(policy, why=il.Why("{plain(name, 40) if fits else "NAME"}"))'
    return tap if fits else f"interlatent-live dict train …\n{tap}"
