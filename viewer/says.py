"""What the explainer says, as the page shows it: sentences with their evidence, and labels of features. Plain text throughout.

Prose comes from outside; the browser puts it in as text, never as markup.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from interlatent_live.explainer.reading import Explanation, NarrationLine
from interlatent_live.viewer.text import clock, plain

__all__ = ["LINES_SHOWN", "labels", "sentences"]

LINES_SHOWN: Final = 24


def _score(value: Any) -> str:
    return f"{float(value):.2f}" if isinstance(value, (int, float)) else "unscored"


def labels(rows: Sequence[int], explanations: Mapping[int, Explanation]) -> list[dict[str, str] | None]:
    """Label, score and why for each row's feature; None where nobody explained it."""
    found: list[dict[str, str] | None] = []
    for feature in rows:
        known = explanations.get(feature)
        if known is None or not known.label:
            found.append(None)
            continue
        score = known.score
        mean = None if score is None else score.balanced_accuracy
        named = f"your name; the explainer says “{plain(known.own_label, 80)}”" if known.own_label else "your name; nothing explains it yet"
        about = [named if known.named_by_user else "", plain(known.description or "", 200)]
        about += [f"rule: {plain(known.predicate, 200)}" if known.predicate else ""]
        if score is not None and score.low is not None and score.high is not None:
            of = f"{score.frames} frames, {score.basis}" if score.kind == "predicate" else f"{score.frames} pieces of text, judged"
            what = "balanced accuracy" if score.kind == "predicate" else score.kind
            about.append(f"{what} {_score(mean)}, 95 % {score.low:.2f} … {score.high:.2f}, {of}")
        elif mean is None:
            about.append("unscored: nothing has tested it yet")
        if known.stale:
            about.append(f"stale: {plain(known.stale, 120)}")
        stale = "yes" if known.stale else ""
        shown = _score(mean) if score is None or score.kind == "predicate" else f"{score.kind} {_score(mean)}"
        found.append({"label": plain(known.label, 48), "score": shown, "stale": stale, "about": "\n".join(filter(None, about))})
    return found


def sentences(lines: Iterable[NarrationLine], until_seq: int | None, names: Mapping[int, str]) -> list[dict[str, Any]]:
    """The newest sentences up to a frame, newest first. `names`: how features are called, where that is known."""
    kept = [line for line in lines if until_seq is None or line.seq <= until_seq]
    found = []
    for line in reversed(kept[-LINES_SHOWN:]):
        chips = [
            {
                "feature": plain(str(m.get("name") or names.get(int(m["feature"]), f"f{m['feature']}")), 16),
                "label": plain(str(m.get("label") or ""), 40),
                "score": ("" if m.get("kind", "predicate") == "predicate" else f"{m['kind']} ") + _score(m.get("score")),
            }
            for m in line.features
            if "feature" in m
        ]
        found.append({
            "id": line.id, "kind": plain(line.kind, 12), "seq": line.seq, "time": clock(line.time_s), "t": line.time_s,
            "episode": line.episode, "step": line.episode_step, "text": plain(line.text, 400), "chips": chips,
            "wording": plain(line.wording or "", 300), "by": plain((line.worded_by or "").removeprefix("llm:"), 40),
        })  # fmt: skip
    return found
