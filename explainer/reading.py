"""What the explainer wrote, for the page and the command line: explanations by feature, narration, its state. No torch.

`Pages` is a `Reader` with more questions, so one connection and one consistent moment serve both. Before the explainer
has run once, every answer is empty. Prose and names come from outside: escape them where they are drawn.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from interlatent_live.analyzer.prompts import TokenRow
from interlatent_live.analyzer.queries import Reader
from interlatent_live.explainer.notes import Name, Note
from interlatent_live.explainer.scoring import LIVE_DENSITY, LIVE_POSITIVES

__all__ = ["Attempt", "Explanation", "JudgedPiece", "NarrationLine", "Pages", "ScoreRow", "WatchedFrame"]

_SCORES: Final = (
    "basis, scored_wall_ns, frames, positives, episodes, balanced_accuracy, low, high, sensitivity, specificity, f1, shuffled, "
    "base_f1, base_rate"
)


@dataclass(frozen=True, slots=True)
class ScoreRow:
    """How well an explanation does; None where it cannot be computed."""

    basis: str
    """'live': on this stream, on frames it was not made from; 'held_out': when it was made; a judge's: its kind."""
    scored_wall_ns: int
    frames: int
    positives: int
    episodes: int
    balanced_accuracy: float | None
    low: float | None
    high: float | None
    sensitivity: float | None
    specificity: float | None
    f1: float | None
    shuffled: float | None
    base_f1: float | None
    base_rate: float | None
    kind: str = "predicate"
    """'predicate', or 'detection' or 'fuzzing': what a judge made of the sentence; then frames are pieces of text, episodes texts, and
    `shuffled` is what another feature's sentence reaches on the same pieces."""
    judge: str | None = None
    """The model that judged."""
    chance: float | None = None
    """What the judge's answers reach in 97.5 % of shuffles."""

    @property
    def established(self) -> bool:
        """Whether there is enough of both classes, in several episodes."""
        return self.low is not None and LIVE_POSITIVES <= self.positives <= self.frames - LIVE_POSITIVES


@dataclass(frozen=True, slots=True)
class Explanation:
    """One version of a feature's explanation, or a feature that has none."""

    feature: int
    label: str | None
    """The user's name where there is one; None where nobody gave any."""
    named_by_user: bool
    description: str | None
    predicate: str | None
    clauses: int
    source: str | None
    """'rules', 'llm:<model>' or 'user'."""
    made_from: str | None
    """'here', or what shipped explanations were made from."""
    version: int
    id: int | None
    created_wall_ns: int | None
    stale: str | None
    """Why its score is of another time; None while it is not."""
    score: ScoreRow | None
    """The one to show: the live one once it is established, else that of its making."""
    scores: tuple[ScoreRow, ...]
    density: float | None
    """Fraction of the frames in which the feature is active."""
    live: bool
    """Worth explaining: density 1-90 %, 20 held-out active frames."""
    own_label: str | None = None
    """The explanation's own, whatever the user calls it; None without one."""

    def to_dict(self) -> dict[str, Any]:
        """As `interlatent-live explanations --json` prints it."""
        score = self.score
        interval = None if score is None else {"mean": score.balanced_accuracy, "low": score.low, "high": score.high}
        return {
            "feature": self.feature, "label": self.label, "description": self.description, "predicate": self.predicate,
            "balanced_accuracy": interval, "kind": None if score is None else score.kind,
            "shuffled": None if score is None else score.shuffled, "judged": [_judged(s) for s in self.scores if s.judge is not None],
            "clauses": self.clauses,
            "source": self.source,
            "age_s": None if self.created_wall_ns is None else max(0.0, time.time() - self.created_wall_ns / 1e9),
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class NarrationLine:
    """One line, with its moment and what supports it."""

    id: int
    boot: str
    env: int
    kind: str
    """'begin', 'surprise', 'regime', 'episode', 'drift' or 'steady'."""
    seq: int
    first_seq: int
    next_seq: int
    """Frames [first_seq, next_seq) are what it is about."""
    time_s: float
    """Seconds since the boot began, on the agent's clock."""
    wall_ns: int
    episode: int
    episode_step: int
    text: str
    action: str
    features: tuple[Mapping[str, Any], ...]
    """feature, name, label, explanation, score, low, high, share, usual, holds: see explainer.narrator.Mention."""
    source: str
    wording: str | None = None
    """The same in a language model's words, checked against the line's facts; None where there is none."""
    worded_by: str | None = None
    """'llm:<model>'."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """A proposal that did not become a version."""

    wall_ns: int
    feature: int
    source: str
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class JudgedPiece:
    """A piece of held-out text, and what a judge who knows only the sentence said of it."""

    boot: str
    seq: int
    """Of its middle token."""
    sort: str
    """'active'; 'random' or 'near' where the feature is not active in it."""
    shown: str
    said: int | None
    """1 for yes, 0 for no, None for no answer."""
    controlled: int | None
    """The same with another feature's sentence."""


@dataclass(frozen=True, slots=True)
class WatchedFrame:
    """A frame in which a watchpoint's predicate came true."""

    seq: int
    time_s: float
    episode: int
    episode_step: int
    predicate: str
    clip: str | None
    """Where it was saved, relative to the database's folder if it lies below it."""
    acted: str | None
    """What came of the command or the webhook; None where none was asked for."""


class Pages(Reader):
    """Everything the store's reader answers, and what the explainer wrote."""

    def explained(self) -> bool:
        """Whether the explainer has ever written here."""
        return bool(self._first("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'explainer_state'"))

    def subject_hash(self) -> str | None:
        """Dictionary of the newest section that explanations are of."""
        row = self._first("SELECT dictionary_hash FROM explanations ORDER BY id DESC LIMIT 1") if self.explained() else ()
        newest = self._first(
            "SELECT s.dictionary_hash FROM sections s WHERE s.boot = (SELECT boot FROM sections ORDER BY id DESC LIMIT 1) AND "
            "s.first_seq = (SELECT max(first_seq) FROM sections t WHERE t.boot = s.boot) ORDER BY s.id LIMIT 1"
        )
        return str(newest[0]) if newest else str(row[0]) if row else None

    def explanations(self, dictionary_hash: str | None = None, *, everything: bool = False) -> list[Explanation]:
        """The newest version of each live feature, by feature. `everything`: of every feature that was ever active."""
        hash_ = dictionary_hash or self.subject_hash()
        if hash_ is None:
            return []
        names = self.named(hash_)
        if not self.explained():
            return [_explanation(f, None, [], names[f], None, False) for f in sorted(names) if everything]
        features = {
            int(f): (density, bool(live))
            for f, density, live in self._rows("SELECT feature, density, live FROM features WHERE dictionary_hash = ?", hash_)
        }
        newest = {
            int(row[1]): row
            for row in self._rows(f"SELECT {_EXPLANATION} FROM explanations WHERE dictionary_hash = ? ORDER BY feature, version", hash_)
        }
        scores: dict[int, list[ScoreRow]] = {}
        for id, *rest in self._rows(
            f"SELECT explanation_id, {self._scores()} FROM scores WHERE explanation_id IN "
            "(SELECT max(id) FROM explanations WHERE dictionary_hash = ? GROUP BY feature)", hash_,
        ):  # fmt: skip
            scores.setdefault(id, []).append(ScoreRow(*rest))
        found = []
        for feature in sorted(features.keys() | newest.keys() | names.keys()):
            row = newest.get(feature)
            density, live = features.get(feature, (None, False))
            made = _explanation(feature, row, scores.get(row[0], []) if row else [], names.get(feature), density, live)
            if everything or (live and row is not None):
                found.append(made)
        return found

    def versions(self, dictionary_hash: str, feature: int) -> list[Explanation]:
        """Every version of a feature's explanation, oldest first."""
        if not self.explained():
            return []
        rows = self._rows(
            f"SELECT {_EXPLANATION} FROM explanations WHERE dictionary_hash = ? AND feature = ? ORDER BY version", dictionary_hash, feature
        )
        made = []
        for row in rows:
            scores = [ScoreRow(*s) for s in self._rows(f"SELECT {self._scores()} FROM scores WHERE explanation_id = ?", row[0])]
            made.append(_explanation(feature, row, scores, None, None, False))
        return made

    def attempts(self, dictionary_hash: str, feature: int | None = None, limit: int = 100) -> list[Attempt]:
        """The last proposals that came to nothing, oldest first."""
        if not self.explained():
            return []
        where, values = ("AND feature = ?", [feature]) if feature is not None else ("", [])
        sql = f"SELECT wall_ns, feature, source, reason, detail FROM attempts WHERE dictionary_hash = ? {where} ORDER BY id DESC LIMIT ?"
        return [Attempt(*row) for row in self._rows(sql, dictionary_hash, *values, limit)][::-1]

    def evidence(self, explanation: int) -> list[tuple[str, int, int]]:
        """(boot, first_seq, next_seq) of the frames that an explanation cites; they stay when old frames go."""
        if not self.explained():
            return []
        rows = self._rows("SELECT boot, first_seq, next_seq FROM cited WHERE kind = 'explanation' AND ref = ?", explanation)
        return [(str(boot), int(first), int(end)) for boot, first, end in rows]

    def narration(self, boot: str, after_id: int = 0, limit: int = 50) -> list[NarrationLine]:
        """The newest lines of a boot after an id, oldest first."""
        if not self.explained():
            return []
        rows = self._rows(
            "SELECT id, boot, env, kind, seq, first_seq, next_seq, time_s, wall_ns, episode, episode_step, text, action, features, source"
            f"{', wording, worded_by' if self._worded() else ''} FROM narration "
            "WHERE boot = ? AND id > ? ORDER BY id DESC LIMIT ?", boot, after_id, limit,
        )  # fmt: skip
        return [NarrationLine(*(*row[:13], tuple(json.loads(row[13])), *row[14:])) for row in rows][::-1]

    def watched(self, boot: str, env: int, limit: int = 500) -> list[WatchedFrame]:
        """The last frames of an environment in which a watchpoint's predicate came true, oldest first."""
        if not self._first("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'watched'"):
            return []
        rows = self._rows(
            "SELECT seq, time_s, episode, episode_step, predicate, clip, acted FROM watched WHERE boot = ? AND env = ? "
            "ORDER BY seq DESC LIMIT ?", boot, env, limit,
        )  # fmt: skip
        return [WatchedFrame(*row) for row in rows][::-1]

    def judged_pieces(self, explanation: int, kind: str) -> list[JudgedPiece]:
        """The pieces of text that a sentence was judged on, in the order of the exam."""
        if not self._table("exam_pieces"):
            return []
        rows = self._rows(
            "SELECT boot, seq, sort, shown, said, controlled FROM exam_pieces WHERE exam_id = "
            "(SELECT max(id) FROM exams WHERE explanation_id = ? AND kind = ? AND ended_wall_ns IS NOT NULL) ORDER BY number",
            explanation, kind,
        )  # fmt: skip
        return [JudgedPiece(*row) for row in rows]

    def _scores(self) -> str:
        """Columns of a score: a database of an older build has fewer."""
        judged = self._first("SELECT 1 FROM pragma_table_info('scores') WHERE name = 'judge'")
        return f"{_SCORES}, kind, judge, chance" if judged else _SCORES

    def _worded(self) -> bool:
        """Whether lines may carry a wording: a database of an older build has no such column."""
        return bool(self._first("SELECT 1 FROM pragma_table_info('narration') WHERE name = 'wording'"))

    def explainer_status(self) -> Mapping[str, Any] | None:
        """What the explain service is at: wall_ns (when it said so), waiting, explained, outside, llm, …; None before it ran."""
        row = self._first("SELECT value FROM explainer_state WHERE key = 'status'") if self.explained() else ()
        return dict(json.loads(row[0])) if row else None

    # what people say

    def named(self, dictionary_hash: str) -> dict[int, str]:
        """What people call features, by feature; those whose name was taken back are left out."""
        found: dict[int, str | None] = {}
        for table in ("user_names", "names"):  # the first of older builds
            if self._table(table):
                found |= dict(self._rows(f"SELECT feature, label FROM {table} WHERE dictionary_hash = ? ORDER BY id", dictionary_hash))
        return {feature: label for feature, label in found.items() if label is not None}

    def newest_name(self) -> int:
        """Number of the last change of a name, 0 before there was one: cheap, to ask whether there is a new one."""
        row = self._first("SELECT max(id) FROM names") if self._table("names") else ()
        return int(row[0]) if row and row[0] is not None else 0

    def names(self, dictionary_hash: str, feature: int, limit: int = 20) -> list[Name]:
        """What a feature was called, the newest first."""
        if not self._table("names"):
            return []
        where = "names WHERE dictionary_hash = ? AND feature = ? ORDER BY id DESC LIMIT ?"
        return self._select(Name, where, dictionary_hash, feature, limit)

    def notes(self, dictionary_hash: str | None = None, feature: int | None = None, limit: int = 10_000) -> list[Note]:
        """Notes, oldest first; of all dictionaries or features where none is named."""
        if not self._table("notes"):
            return []
        where = "notes WHERE (? IS NULL OR dictionary_hash = ?) AND (? IS NULL OR feature = ?) ORDER BY id LIMIT ?"
        return self._select(Note, where, dictionary_hash, dictionary_hash, feature, feature, limit)

    # a language model's text

    def about_token(self, boot: str, seq: int, before: int, after: int) -> list[TokenRow]:
        """The tokens of the prompt of frame `seq`, from `before` before it to `after` after it; nothing for an agent."""
        mine = self.tokens(boot, seq, seq + 1)
        if not mine:
            return []
        where = "tokens WHERE boot = ? AND prompt = ? AND position BETWEEN ? AND ? ORDER BY position"
        return self._select(TokenRow, where, boot, mine[0].prompt, mine[0].position - before, mine[0].position + after)


_EXPLANATION: Final = "id, feature, label, description, predicate, clauses, source, made_from, version, created_wall_ns, stale"


def _explanation(
    feature: int, row: tuple[Any, ...] | None, scores: list[ScoreRow], name: str | None, density: float | None, live: bool
) -> Explanation:
    if density is not None and not (math.isfinite(density) and LIVE_DENSITY[0] <= density <= LIVE_DENSITY[1]):
        live = False
    if row is None:
        return Explanation(feature, name, name is not None, None, None, 0, None, None, 0, None, None, None, None, (), density, live)
    id, _, label, description, predicate, clauses, source, made_from, version, created, stale = row
    predicate = predicate or None  # '' for a sentence alone
    shown = next((s for s in scores if s.basis == "live" and s.established), None)
    shown = shown or next((s for s in scores if s.basis == ("held_out" if predicate is not None else "detection")), None)
    return Explanation(
        feature, name if name is not None else label, name is not None, description, predicate, clauses, source, made_from, version, id,
        created, stale, shown, tuple(scores), density, live, label,
    )  # fmt: skip


def _judged(score: ScoreRow) -> dict[str, Any]:
    return {
        "kind": score.kind, "balanced_accuracy": {"mean": score.balanced_accuracy, "low": score.low, "high": score.high},
        "control": score.shuffled, "chance": score.chance, "pieces": score.frames, "texts": score.episodes, "judge": score.judge,
    }  # fmt: skip
