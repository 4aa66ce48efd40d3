"""The explanations of one subject: made, scored, replaced when something better comes, checked for as long as it runs.

1. What is stored for the dictionary's hash is taken up again; a user's predicate comes before everything else.
2. `pending` names features worth an attempt: live, and either unexplained, or on twice the frames of the last attempt,
   or explained by a rule that does worse here than it was said to.
3. A proposal (from rules, a language model or a user) is scored on held-out episodes. It becomes a version where there
   is none, or where the paired difference to the current one lies above 0 with its interval; else it is an attempt with
   a reason. A user's is never replaced by another's.
4. A language model's sentence about text without a predicate becomes a version by how well a judge tells pieces of held-out text
   apart with it (`judged`): where there is none, or where it does better on the same pieces than the rule that stands.
5. `check` scores every current explanation on the newest frames that it was not made from: the live score. Where
   weights, policy or distribution have changed since and the live score is not established, it is stale and says why.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeGuard

import numpy as np
import numpy.typing as npt

from interlatent_live.analyzer.writes import Writes
from interlatent_live.explainer.exam import KINDS, Exhibit, rival
from interlatent_live.explainer.grammar import parse
from interlatent_live.explainer.hypothesis import Hypothesis, from_rule, said_of
from interlatent_live.explainer.labelled import NEXT, TOKEN
from interlatent_live.explainer.notebook import Notebook
from interlatent_live.explainer.predicate import Predicate
from interlatent_live.explainer.rules import fit
from interlatent_live.explainer.scoring import LIVE_POSITIVES, Interval, Score, difference, live, score
from interlatent_live.explainer.source import Frames, Subject
from interlatent_live.explainer.table import Table
from interlatent_live.explainer.wording import Wording, Words
from interlatent_live.stream.errors import PredicateError

__all__ = ["HERE", "NARRATED", "Current", "Explaining", "askable", "established", "read_score"]

HERE: Final = "here"
NARRATED: Final = 0.80
"""Balanced accuracy from which on a feature is spoken of in words; below, by its statistics only."""
_CHECKED: Final = 20_000
"""Newest frames that live scores are made of."""
_CONTROL: Final = 32
"""Other features' predicates in the shuffled control of a proposal."""
_TRAINING: Final = 300
"""Training frames needed for an attempt."""
_SPANS: Final = 4
SCORE_COLUMNS: Final = (
    "frames, positives, episodes, balanced_accuracy, low, high, sensitivity, specificity, f1, shuffled, base_f1, base_rate, undefined"
)


@dataclass(slots=True)
class Current:
    """The newest explanation of a feature."""

    id: int
    feature: int
    version: int
    label: str
    description: str
    predicate: Predicate | None
    """None for a sentence alone: its score is of kind 'detection'."""
    source: str
    made_from: str
    weights_hash: str
    policy_version: int
    held_out: Score | None
    """When it was made."""
    live: Score | None
    """On this stream since."""
    stale: str | None
    judged: dict[str, Score] = field(default_factory=dict)
    """By kind, 'detection' and 'fuzzing': what a judge made of the sentence."""

    @property
    def score(self) -> Score | None:
        """The one to show: the live one once it is established; of a sentence alone that of detection."""
        if self.predicate is None:
            return self.judged.get("detection")
        return self.live if self.live is not None and established(self.live) else self.held_out

    @property
    def kind(self) -> str:
        """What kind of score that is: 'predicate' or 'detection'."""
        return "predicate" if self.predicate is not None else "detection"

    @property
    def narratable(self) -> bool:
        """Whether the feature may be spoken of in words."""
        shown = self.score
        return self.stale is None and shown is not None and shown.balanced_accuracy.mean >= NARRATED


def established(found: Score) -> bool:
    """Whether a live score says something: enough of both classes, in several episodes."""
    enough = LIVE_POSITIVES <= found.positives <= found.frames - LIVE_POSITIVES
    return enough and math.isfinite(found.balanced_accuracy.low)


def askable(predicate: Predicate | None, table: Table) -> TypeGuard[Predicate]:
    """Whether there is a predicate, and the frames have the labels that it asks for: those of earlier prompts may be gone."""
    return predicate is not None and all(not clause.texts or clause.metric in table.labels for clause in predicate.clauses)


class Explaining:
    """For one subject; a new one is made when the subject changes."""

    def __init__(self, notebook: Notebook, subject: Subject) -> None:
        self.subject = subject
        self._notebook = notebook
        self.current: dict[int, Current] = {}
        self._tried: dict[int, int] = {}
        self._names_seen = 0
        self.names: dict[int, str] = {}
        """What people call features, as of the last `look_at_names`."""
        self._named_until = 0
        self._load()

    @property
    def _hash(self) -> str:
        return self.subject.dictionary.hash

    def _load(self) -> None:
        sql = (
            "SELECT id, feature, version, label, description, predicate, source, made_from, weights_hash, policy_version, stale "
            "FROM explanations WHERE dictionary_hash = ? ORDER BY feature, version"
        )
        for id, feature, version, label, description, text, source, made, weights, policy, stale in self._notebook.all(sql, self._hash):
            scores = {basis: self._score(id, feature, basis) for basis in ("held_out", "live", *KINDS)}
            self.current[feature] = Current(
                id, feature, version, label, description, parse(text) if text else None, source, made, weights, policy,
                scores["held_out"], scores["live"], stale, {kind: its for kind in KINDS if (its := scores[kind]) is not None},
            )  # fmt: skip

    def _score(self, id: int, feature: int, basis: str) -> Score | None:
        mine = " AND weights_hash = ?" if basis == "live" else ""  # a live score of other weights says nothing here
        values = [id, basis, *([self.subject.manifest.weights_hash] if mine else [])]
        row = self._notebook.one(f"SELECT {SCORE_COLUMNS} FROM scores WHERE explanation_id = ? AND basis = ?{mine}", *values)
        return read_score(feature, row) if row else None

    def adopt(self, shipped: Sequence[tuple[Hypothesis, Score]], made_from: str, weights_hash: str, evidence_hash: str) -> int:
        """Take in explanations that came with the dictionary, where there are none; how many."""
        writes, taken = Writes(), 0
        for hypothesis, its_score in shipped:
            try:
                if its_score.feature in self.current or hypothesis.predicate is None:
                    continue
                hypothesis.predicate.check(self._vocabulary())
            except PredicateError:
                continue  # of another environment's metrics
            self._add(writes, its_score.feature, hypothesis, its_score, made_from, weights_hash, 0, evidence_hash, [])
            taken += 1
        self._notebook.commit_in_parts(writes)
        return taken

    def _vocabulary(self) -> Any:
        from interlatent_live.explainer.table import Vocabulary

        labels: dict[str, tuple[str, ...]] = {TOKEN: (), NEXT: ()} if self.subject.language else {}
        return Vocabulary.of(self.subject.manifest, self.subject.dictionary.features, labels)

    def alive(self, frames: Frames) -> list[int]:
        """Features worth explaining on these frames."""
        return [int(f) for f in live(frames.table, frames.held_out)]

    def pending(self, frames: Frames, *, again: bool = False) -> list[int]:
        """Features worth an attempt, the unexplained first. `again`: every live feature whatever there is."""
        training = int(np.count_nonzero(frames.training))
        if training < _TRAINING or not self.subject.metrics:
            return []
        found = self.alive(frames)
        if again:
            return found
        new = [f for f in found if f not in self.current and training >= 2 * self._tried.get(f, 0)]
        old = [f for f in found if f in self.current and self._worth_another(self.current[f], training)]
        return new + old

    def _worth_another(self, current: Current, training: int) -> bool:
        if current.source == "user":
            return False
        before = self._tried.get(current.feature, 0)
        fell = (
            current.held_out is not None
            and current.live is not None
            and established(current.live)
            and current.live.balanced_accuracy.high < current.held_out.balanced_accuracy.mean
        )
        if before == 0:
            return fell or current.stale is not None or current.made_from == HERE
        return training >= (1.25 if fell else 2) * before

    def attempt(self, frames: Frames, features: Sequence[int]) -> list[Current]:
        """Fit rules to features and propose them; those that became versions."""
        training = int(np.count_nonzero(frames.training))
        self._tried |= dict.fromkeys(features, training)
        actions = [name for name in self.subject.actions if name in frames.table.numbers]
        fitted = fit(
            frames.table, features, frames.training, metrics=self.subject.metrics, changes=(1,), actions=actions,
            lags=(1,) if self.subject.language else (), labels=tuple(n for n in frames.table.labels if n != NEXT),
            sets=[(TOKEN, 0)] if TOKEN in frames.table.labels else [],
            more_sets=[(n, lag) for n, lag in ((TOKEN, 1), (NEXT, 0)) if n in frames.table.labels],
        )  # fmt: skip
        used = list(dict.fromkeys(n for r in fitted for n in r.predicate.names if n not in frames.table.labels))
        wording = Wording.of(
            frames.table, frames.training, used, step_period_s=self.subject.manifest.step_period_s, names=self.subject.actions,
            words=Words.of(self.subject.language))
        taken = {c.label: c.feature for c in self.current.values()}
        proposals = []
        for rule in sorted(fitted, key=lambda r: r.feature):
            made = from_rule(rule, wording, {label for label, feature in taken.items() if feature != rule.feature})
            taken[made.label] = rule.feature
            proposals.append((rule.feature, made, None))
        return self.propose(frames, proposals)

    def propose(self, frames: Frames, proposals: Sequence[tuple[int, Hypothesis, str | None]]) -> list[Current]:
        """Score (feature, hypothesis, evidence hash or None) on held-out episodes; those that became versions."""
        usable = [(f, h, h.predicate, e) for f, h, e in proposals if h.predicate is not None]
        if not usable:
            return []
        mine = {f for f, *_ in usable}
        others = [c for c in self.current.values() if c.feature not in mine and askable(c.predicate, frames.table)]
        others = others[:: max(1, math.ceil(len(others) / _CONTROL))] if len(usable) < _CONTROL else []
        predicates = [p for _, _, p, _ in usable] + [c.predicate for c in others if c.predicate is not None]
        numbers = [f for f, *_ in usable] + [c.feature for c in others]
        scores = score(predicates, numbers, frames.table, frames.held_out)
        writes = Writes()
        made = []
        for (feature, hypothesis, predicate, evidence), its_score in zip(usable, scores, strict=False):
            reason = self._refused(frames, feature, hypothesis, predicate, its_score)
            if reason is not None:
                self._note_attempt(writes, feature, hypothesis.source, reason, str(predicate))
                continue
            spans = frames.spans(self._strongest(frames, feature))
            evidence = evidence or _hash(self._hash, feature, spans)
            made.append(self._add(
                writes, feature, hypothesis, its_score, HERE, self.subject.manifest.weights_hash, frames.policy_version, evidence, spans,
            ))  # fmt: skip
        self._notebook.commit(writes)
        return made

    def failed(self, feature: int, source: str, reason: str, detail: str) -> None:
        """Keep an attempt that gave no hypothesis at all."""
        writes = Writes()
        self._note_attempt(writes, feature, source, reason, detail)
        self._notebook.commit(writes)

    def _refused(self, frames: Frames, feature: int, hypothesis: Hypothesis, predicate: Predicate, its_score: Score) -> str | None:
        """Why a proposal does not become the current explanation, or None if it does."""
        current = self.current.get(feature)
        if hypothesis.source == "user":
            return None
        if math.isnan(its_score.balanced_accuracy.mean):
            return "no score: held-out episodes lack a class"
        if current is not None and current.predicate is None and current.source != "user":
            pieces, said = self._pieces(current)
            gain = rival(predicate.holds(frames.table), frames, pieces, said)
            return None if gain.high < 0 else f"not better than the sentence on its pieces of text ({-gain.mean:+.3f})"
        if current is None or not askable(current.predicate, frames.table):
            return None
        if current.source == "user":
            return "a user's explanation stands"
        if current.predicate == predicate:
            return "the same as the current one"
        gain = difference(predicate, current.predicate, feature, frames.table, frames.held_out)
        return None if gain.low > 0 else f"not better beyond the interval ({gain.mean:+.3f}, {gain.low:+.3f} to {gain.high:+.3f})"

    def _strongest(self, frames: Frames, feature: int) -> npt.NDArray[np.int64]:
        """Rows of the strongest training frames, one an episode first."""
        assert frames.table.features is not None
        rows = np.flatnonzero(frames.training & frames.table.features.active(feature))
        rows = rows[np.argsort(-np.abs(frames.table.features.values(feature)[rows]), kind="stable")]
        _, first = np.unique(frames.table.groups[rows], return_index=True)
        return rows[np.sort(first)[:_SPANS]]

    def _add(
        self, writes: Writes, feature: int, hypothesis: Hypothesis, its_score: Score | None, made_from: str, weights_hash: str,
        policy_version: int, evidence_hash: str, spans: Sequence[tuple[str, int, int]],
    ) -> Current:  # fmt: skip
        before = self.current.get(feature)
        now = Current(
            self._notebook.new_id("explanations"), feature, before.version + 1 if before else 1, hypothesis.label, hypothesis.description,
            hypothesis.predicate, hypothesis.source, made_from, weights_hash, policy_version, its_score, None, None,
        )  # fmt: skip
        writes.insert(
            "explanations", id=now.id, dictionary_hash=self._hash, feature=feature, version=now.version, label=now.label,
            description=now.description, predicate="" if now.predicate is None else str(now.predicate),
            clauses=0 if now.predicate is None else len(now.predicate.clauses), source=now.source,
            made_from=made_from, created_wall_ns=time.time_ns(), weights_hash=weights_hash, policy_version=policy_version,
            evidence_hash=evidence_hash, stale=None,
        )  # fmt: skip
        if its_score is not None:
            self._write_score(writes, now, "held_out", its_score, policy_version)
        for boot, first, end in spans:
            writes.insert("cited", boot=boot, first_seq=first, next_seq=end, kind="explanation", ref=now.id)
        self.current[feature] = now
        return now

    def _note_attempt(self, writes: Writes, feature: int, source: str, reason: str, detail: str) -> None:
        id = self._notebook.new_id("attempts")
        writes.insert(
            "attempts", id=id, wall_ns=time.time_ns(), dictionary_hash=self._hash, feature=feature, source=source,
            reason=reason[:500], detail=detail[:2_000],
        )  # fmt: skip
        if id % 1_000 == 0:
            writes.execute("DELETE FROM attempts WHERE id <= ?", id - 20_000)

    # sentences, judged

    def sentence(self, current: Current) -> Hypothesis:
        """What a version says, without its predicate."""
        return Hypothesis(label=current.label, description=current.description, predicate=None, source=current.source)

    def other_sentence(self, feature: int) -> str | None:
        """That of another feature, always the same one of those that there are: the control. None where there is none."""
        mine = self.current.get(feature)
        others = [c for f, c in sorted(self.current.items()) if f != feature and (mine is None or c.label != mine.label)]
        return said_of(others[zlib.crc32(f"{feature}".encode()) % len(others)]) if others else None

    def adopt_sentence(
        self, frames: Frames, feature: int, hypothesis: Hypothesis, evidence_hash: str, spans: Sequence[tuple[str, int, int]]
    ) -> Current:
        """Make a sentence without a predicate the current explanation; who judged it has seen that it is better."""
        writes = Writes()
        evidence = evidence_hash or _hash(self._hash, feature, spans)
        made = self._add(
            writes, feature, hypothesis, None, HERE, self.subject.manifest.weights_hash, frames.policy_version, evidence, spans)
        self._notebook.commit(writes)
        return made

    def write_judged(self, current: Current, kind: str, its: Score, chance: float, judge: str) -> None:
        """Keep the score of a version's sentence beside that of its predicate."""
        current.judged[kind] = its
        writes = Writes()
        self._write_score(writes, current, kind, its, current.policy_version)
        writes.execute(
            "UPDATE scores SET judge = ?, chance = ? WHERE explanation_id = ? AND basis = ?", judge, _known(chance), current.id, kind)
        self._notebook.commit(writes)

    def _pieces(self, current: Current) -> tuple[list[Exhibit], list[bool | None]]:
        """What the current sentence was judged on, and the answers."""
        sql = (
            "SELECT boot, seq, text, sort, shown, said FROM exam_pieces WHERE exam_id = "
            "(SELECT max(id) FROM exams WHERE explanation_id = ? AND kind = 'detection') ORDER BY number"
        )
        rows = self._notebook.all(sql, current.id)
        return [Exhibit(*row[:5]) for row in rows], [None if row[5] is None else bool(row[5]) for row in rows]

    def _write_score(self, writes: Writes, of: Current, basis: str, its: Score, policy_version: int) -> None:
        weights = of.weights_hash if basis != "live" else self.subject.manifest.weights_hash
        writes.replace(
            "scores", explanation_id=of.id, basis=basis, scored_wall_ns=time.time_ns(), weights_hash=weights,
            policy_version=policy_version, frames=its.frames, positives=its.positives, episodes=its.episodes,
            balanced_accuracy=_known(its.balanced_accuracy.mean), low=_known(its.balanced_accuracy.low),
            high=_known(its.balanced_accuracy.high), sensitivity=_known(its.sensitivity), specificity=_known(its.specificity),
            f1=_known(its.f1), shuffled=_known(its.shuffled), base_f1=_known(its.base_f1), base_rate=_known(its.base_rate),
            undefined=_known(its.undefined),
        )  # fmt: skip

    def check(self, frames: Frames, outside: str | None = None) -> None:
        """Score what is current on the newest frames; mark what is stale. `outside`: why the stream is out of the card's range."""
        self._take_users(frames)
        writes = Writes()
        newest = np.zeros(frames.table.rows, np.bool_)
        newest[-_CHECKED:] = True
        if self.subject.manifest.weights == "changing":
            newest &= frames.policy == frames.policy_version
        weights = self.subject.manifest.weights_hash
        for here in (True, False):
            group = [
                c for c in self.current.values()
                if (c.made_from == HERE and c.weights_hash == weights) == here and askable(c.predicate, frames.table)
            ]  # fmt: skip
            rows = newest & frames.held_out if here else newest  # what was made elsewhere has seen none of them
            if group and rows.any():
                predicates = [c.predicate for c in group if c.predicate is not None]
                found = score(predicates, [c.feature for c in group], frames.table, rows, resamples=500)
                for current, its_score in zip(group, found, strict=True):
                    current.live = its_score
                    self._write_score(writes, current, "live", its_score, frames.policy_version)
        for current in self.current.values():
            stale = self._stale(current, frames, outside)
            if stale != current.stale:
                current.stale = stale
                writes.execute("UPDATE explanations SET stale = ? WHERE id = ?", stale, current.id)
        self._write_features(writes, frames)
        self._notebook.commit_in_parts(writes)

    def _stale(self, current: Current, frames: Frames, outside: str | None) -> str | None:
        if outside is not None:
            return outside
        if current.live is not None and established(current.live):
            return None
        if self.subject.section.mismatch:
            return "the dictionary is of other weights than this agent's"
        if current.weights_hash != self.subject.manifest.weights_hash:
            return "made for other weights; too few frames of these yet"
        updates = frames.policy_version - current.policy_version
        if updates:
            return f"the policy was updated {updates} times since; too few frames of it yet"
        return None

    def _write_features(self, writes: Writes, frames: Frames) -> None:
        features = frames.table.features
        assert features is not None
        encoded = int(np.count_nonzero(features.encoded))
        active, held = features.counts(features.encoded), features.counts(features.encoded & frames.held_out)
        alive = set(self.alive(frames))
        for feature in np.flatnonzero(active).tolist():
            writes.replace(
                "features", dictionary_hash=self._hash, feature=feature, density=float(active[feature]) / max(1, encoded),
                held_out_positives=int(held[feature]), live=int(feature in alive), frames=encoded,
            )  # fmt: skip

    def look_at_names(self) -> None:
        """Take in what people called features since; they win over labels from the next line on."""
        sql = "SELECT id, feature, label FROM names WHERE dictionary_hash = ? AND id > ? ORDER BY id"
        for id, feature, label in self._notebook.all(sql, self._hash, self._named_until):
            self._named_until = id
            if label is None:
                self.names.pop(feature, None)
            else:
                self.names[feature] = label

    def _take_users(self, frames: Frames) -> None:
        """Predicates that users gave since the last look."""
        sql = "SELECT id, feature, label, predicate FROM names WHERE dictionary_hash = ? AND id > ? ORDER BY id"
        for id, feature, label, text in self._notebook.all(sql, self._hash, self._names_seen):
            self._names_seen = id
            standing = self.current.get(feature)
            if text is None or (standing is not None and standing.source == "user" and str(standing.predicate) == text):
                continue
            predicate = parse(text)
            used = [n for n in predicate.names if n in frames.table.numbers]
            wording = Wording.of(
                frames.table, frames.training, used, names=self.subject.actions, words=Words.of(self.subject.language))
            try:
                predicate.check(frames.table.vocabulary)
            except PredicateError as error:
                self.failed(feature, "user", "predicate", str(error))
                continue
            said = f"Active when {wording.describe(predicate)}."[:400]
            hypothesis = Hypothesis(label=label, description=" ".join(said.split()[:40]), predicate=predicate, source="user")
            self.propose(frames, [(feature, hypothesis, None)])


def read_score(feature: int, row: Sequence[Any]) -> Score:
    """A row of SCORE_COLUMNS; NULL is NaN."""
    frames, positives, episodes = row[:3]
    mean, low, high, sensitivity, specificity, f1, shuffled, base_f1, base_rate, undefined = (
        math.nan if v is None else float(v) for v in row[3:]
    )
    return Score(
        feature=feature, balanced_accuracy=Interval(mean, low, high), sensitivity=sensitivity, specificity=specificity, f1=f1,
        shuffled=shuffled, base_f1=base_f1, base_rate=base_rate, frames=frames, positives=positives, episodes=episodes,
        undefined=undefined,
    )  # fmt: skip


def _hash(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _known(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
