"""A feature of a language model in its text: windows of tokens about its strongest moments, and the tokens that it is active at.

Windows come from the stored peaks, one a text where there are enough: tokens by the index on (prompt, position), activations from the
few batches that hold them. Tokens are counted in the newest frames that the finder keeps, so no question here grows with the run.
Text is told as it is; the browser writes it as text, never as markup.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from interlatent_live.analyzer.prompts import TokenRow
from interlatent_live.analyzer.records import Peak, Section
from interlatent_live.explainer.labelled import TOKEN
from interlatent_live.explainer.reading import Pages
from interlatent_live.explainer.source import Frames
from interlatent_live.explainer.table import Table
from interlatent_live.stream.prompt import pieces

__all__ = ["BEFORE", "LEVELS", "counted", "is_text", "window"]

BEFORE: Final = 24
"""Tokens shown before the strongest one."""
AFTER: Final = 12
LEVELS: Final = 10
"""Steps of shading, from 0: those in which evidence is told to a language model."""
TOP: Final = 20
_MOST_BATCHES: Final = 2_000


def is_text(pages: Pages, sections: Sequence[Section]) -> bool:
    """Whether a step was a token where this dictionary was used last."""
    return bool(sections) and bool(pages.prompts(sections[-1].boot, limit=1))


def window(pages: Pages, section: Section, peak: Peak, number: int, scale: float) -> dict[str, Any]:
    """The text about a peak. `scale`: the activation of level 10; `tokens`: [frame, text, kind, activation, level],
    kind 1 for special and 2 for written by the model, activation and level None where it is not known.
    """
    rows = pages.about_token(section.boot, peak.seq, BEFORE, AFTER)
    found: dict[str, Any] = {
        "boot": section.boot, "env": peak.env, "episode": peak.episode, "step": peak.step, "seq": peak.seq, "value": peak.value,
        "prompt": None, "position": None, "labels": {}, "tokens": [],
    }  # fmt: skip
    if not rows:
        return found
    words = pages.words(section.boot, [r.token for r in rows])
    texts = pieces([words.get(r.token, f"⟨{r.token}⟩".encode()) for r in rows])
    values = _values(pages, section, number, rows)
    at = next(r for r in rows if r.seq == peak.seq)
    prompt = pages.prompts(section.boot, after=at.prompt - 1, limit=1)
    return found | {
        "prompt": at.prompt, "position": at.position, "labels": dict(prompt[0].labels) if prompt else {},
        "more_before": rows[0].position > 0, "at": rows.index(at),
        "tokens": [
            [r.seq, text, r.special + 2 * r.generated, values.get(r.seq), level(values.get(r.seq), scale)]
            for r, text in zip(rows, texts, strict=True)
        ],
    }  # fmt: skip


def level(value: float | None, scale: float) -> int | None:
    """0 to 10, as much as `scale`; rounded, but never 0 where it is active."""
    if value is None or scale <= 0:
        return None if value is None else 0
    return max(int(value != 0), min(LEVELS, round(LEVELS * abs(value) / scale)))


def _values(pages: Pages, section: Section, number: int, rows: Sequence[TokenRow]) -> dict[int, float]:
    """The activation at each token that was encoded, by frame."""
    seqs = np.array(sorted(r.seq for r in rows), np.int64)
    first, last = pages.batch_id_at(section.boot, int(seqs[0])), pages.batch_id_at(section.boot, int(seqs[-1]))
    if first is None or last is None or last - first >= _MOST_BATCHES:
        return {}
    begins = {id: begin for id, begin, _, _ in pages.batch_blobs(section.boot, first, last)}
    found: dict[int, float] = {}
    for row in pages.codes(section.id, first, last):
        frames = begins[row.batch_id] + row.rows.astype(np.int64)
        codes = row.codes
        mine = np.zeros(codes.rows, np.float32)
        here = codes.indices == number
        mine[codes.row_index[here]] = codes.values[here]
        kept = np.isin(frames, seqs)
        found |= dict(zip(frames[kept].tolist(), mine[kept].astype(np.float64).tolist(), strict=True))
    return found


def counted(frames: Frames | None, number: int, scale: float) -> dict[str, Any]:
    """The tokens that a feature is active at, by how often, in the newest frames; `top` is empty where they are of another dictionary."""
    found: dict[str, Any] = {"scale": scale, "tokens": 0, "active": 0, "texts": 0, "texts_active": 0, "distinct": 0, "spaces": 0, "top": []}
    if frames is None or frames.table.features is None or TOKEN not in frames.table.labels:
        return found
    table, features = frames.table, frames.table.features
    codes, names = table.labels[TOKEN].codes, table.labels[TOKEN].values
    assert features is not None
    encoded, values = features.encoded, features.values(number)
    active = features.active(number) & encoded
    named = codes >= 0
    hits = np.bincount(codes[active & named], minlength=len(names))
    there = np.bincount(codes[encoded & named], minlength=len(names))
    total = np.bincount(codes[active & named], values[active & named], minlength=len(names))
    order = [int(i) for i in np.lexsort((-np.abs(total), -hits))[:TOP] if hits[i]]
    return found | {
        "tokens": int(encoded.sum()), "active": int(active.sum()), "texts": _texts(table, encoded),
        "texts_active": _texts(table, active), "distinct": int(np.count_nonzero(hits)),
        "spaces": int(np.count_nonzero(active & ~named)),
        "top": [
            {"token": names[i], "count": int(hits[i]), "of": int(there[i]), "mean": float(total[i] / hits[i])} for i in order
        ],
    }  # fmt: skip


def _texts(table: Table, rows: npt.NDArray[np.bool_]) -> int:
    """In how many texts these frames lie."""
    return int(np.unique(np.stack([table.boot[rows], table.env[rows], table.episode[rows]]), axis=1).shape[1])
