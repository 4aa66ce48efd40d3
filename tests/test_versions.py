"""Explanations over time: made, replaced only by what is better, stale when the world changed, the user's above all."""

from __future__ import annotations

from pathlib import Path

import pytest

from interlatent_live.explainer.explaining import Explaining
from interlatent_live.explainer.grammar import parse
from interlatent_live.explainer.hypothesis import Hypothesis
from interlatent_live.explainer.notebook import Notebook
from interlatent_live.explainer.notes import Notes
from interlatent_live.explainer.reading import Pages
from interlatent_live.explainer.service import explain_once
from interlatent_live.explainer.source import Frames, Source

from .explained import Run


def kept(source: Source) -> Frames:
    while source.pull():
        pass
    frames = source.kept()
    assert frames is not None
    return frames


def hypothesis(predicate: str, source: str = "rules") -> Hypothesis:
    return Hypothesis(label="a label", description="Active sometimes.", predicate=parse(predicate), source=source)


def test_explains_live_features_and_says_how_well(tmp_path: Path) -> None:
    run = Run(tmp_path / "r.db")
    run.write(16)
    run.close()
    explaining, frames, made = explain_once(tmp_path / "r.db")
    assert explaining.alive(frames) == [0, 1, 2, 5]
    assert {c.feature for c in made} == {0, 1, 2, 5}
    with Pages(tmp_path / "r.db") as pages:
        found = {e.feature: e for e in pages.explanations()}
        everything = {e.feature: e for e in pages.explanations(everything=True)}
        evidence = pages.evidence(found[0].id or 0)
    assert sorted(found) == [0, 1, 2, 5]
    assert sorted(everything) == [0, 1, 2, 4, 5]
    assert everything[4].to_dict()["balanced_accuracy"] is None
    row = found[0].to_dict()
    assert list(row) == [
        "feature", "label", "description", "predicate", "balanced_accuracy", "kind", "shuffled", "judged", "clauses", "source", "age_s",
    ]  # fmt: skip
    assert row["balanced_accuracy"]["mean"] > 0.98
    assert row["balanced_accuracy"]["low"] <= row["balanced_accuracy"]["mean"] <= row["balanced_accuracy"]["high"]
    assert 0.3 < row["shuffled"] < 0.9
    assert row["predicate"].startswith("angle > 0.")
    random = found[2].score
    assert random is not None
    assert random.balanced_accuracy is not None
    assert random.balanced_accuracy < 0.6
    assert len(evidence) == 4
    assert all(boot == "b0" and first < end for boot, first, end in evidence)


def test_explaining_again_gives_the_same(tmp_path: Path) -> None:
    run = Run(tmp_path / "r.db")
    run.write(10)
    run.close()
    first, _, _ = explain_once(tmp_path / "r.db")
    second, _, made = explain_once(tmp_path / "r.db", again=True)
    assert made == []
    assert {f: str(c.predicate) for f, c in first.current.items()} == {f: str(c.predicate) for f, c in second.current.items()}
    with Pages(tmp_path / "r.db") as pages:
        reasons = {a.reason for a in pages.attempts("d0")}
    assert reasons == {"the same as the current one"}


@pytest.fixture
def running(tmp_path: Path) -> tuple[Run, Source, Notebook]:
    run = Run(tmp_path / "r.db")
    run.write(12)
    return run, Source(tmp_path / "r.db"), Notebook(tmp_path / "r.db")


def test_a_new_hypothesis_must_be_better_beyond_the_interval(running: tuple[Run, Source, Notebook]) -> None:
    run, source, notebook = running
    frames = kept(source)
    assert source.subject is not None
    explaining = Explaining(notebook, source.subject)
    assert len(explaining.propose(frames, [(0, hypothesis("angle > 0.1"), None)])) == 1
    assert explaining.propose(frames, [(0, hypothesis("angle > 0.11"), None)]) == []
    assert explaining.propose(frames, [(0, hypothesis("noise > 0"), None)]) == []
    better = explaining.propose(frames, [(0, hypothesis("angle > 0.5", "llm:m"), "abc")])
    assert [c.version for c in better] == [2]
    with Pages(run.store.path) as pages:
        versions = pages.versions("d0", 0)
        attempts = pages.attempts("d0", 0)
    assert [(v.version, v.predicate, v.source) for v in versions] == [(1, "angle > 0.1", "rules"), (2, "angle > 0.5", "llm:m")]
    assert len(attempts) == 2
    assert all(a.reason.startswith("not better beyond the interval") for a in attempts)
    notebook.close()
    run.close()


def test_a_change_of_weights_makes_scores_stale_until_the_live_score_is_established(tmp_path: Path) -> None:
    run = Run(tmp_path / "r.db")
    run.write(12)
    run.close()
    explain_once(tmp_path / "r.db")
    other = Run(tmp_path / "r.db", boot="b1", weights="w1")
    other.write(1, steps=40)
    source = Source(tmp_path / "r.db")
    frames = kept(source)
    assert source.subject is not None
    with Notebook(tmp_path / "r.db") as notebook:
        explaining = Explaining(notebook, source.subject)
        explaining.check(frames)
        assert "other weights" in (explaining.current[0].stale or "")
        assert not explaining.current[0].narratable
        other.write(12, swapped=True)
        explaining.check(kept(source))
        current = explaining.current[0]
        assert current.stale is None
        assert current.score is current.live
        assert current.live is not None
        assert current.live.balanced_accuracy.mean < 0.1
        assert not current.narratable
        frames = kept(source)
        assert 0 in explaining.pending(frames)
        made = explaining.attempt(frames, [0])
        assert [c.version for c in made] == [2]
        assert "<=" in str(made[0].predicate)
    other.close()
    source.close()


def test_a_policy_that_learns_makes_scores_stale(tmp_path: Path) -> None:
    run = Run(tmp_path / "r.db", weights_state="changing")
    run.write(12)
    source = Source(tmp_path / "r.db")
    frames = kept(source)
    assert source.subject is not None
    with Notebook(tmp_path / "r.db") as notebook:
        explaining = Explaining(notebook, source.subject)
        explaining.attempt(frames, [0])
        run.policy = 3
        run.write(1, steps=30)
        explaining.check(kept(source))
        assert explaining.current[0].stale == "the policy was updated 3 times since; too few frames of it yet"
        explaining.check(kept(source), outside="the stream drifted")
        assert explaining.current[0].stale == "the stream drifted"
        with Pages(tmp_path / "r.db") as pages:
            assert [e.stale for e in pages.explanations(everything=True) if e.feature == 0] == ["the stream drifted"]
    run.close()
    source.close()


def test_what_the_user_says_wins_and_is_kept(running: tuple[Run, Source, Notebook]) -> None:
    run, source, notebook = running
    frames = kept(source)
    assert source.subject is not None
    explaining = Explaining(notebook, source.subject)
    explaining.attempt(frames, [0, 1])
    with Notes(run.store.path) as names:
        names.name("d0", 1, "mine")
        names.name("d0", 0, "leaning", predicate="angle > 0.2")
        names.name("d0", 5, "wrong", predicate="no_such_metric > 0")
    explaining.check(frames)
    assert (explaining.current[0].label, explaining.current[0].source) == ("leaning", "user")
    assert explaining.propose(frames, [(0, hypothesis("angle > 0.5"), None)]) == []
    assert 0 not in explaining.pending(frames)
    with Pages(run.store.path) as pages:
        found = {e.feature: e for e in pages.explanations(everything=True)}
        reasons = [a.reason for a in pages.attempts("d0")]
    assert (found[1].label, found[1].named_by_user, found[1].source) == ("mine", True, "rules")
    assert found[1].own_label == explaining.current[1].label, "the explainer's stays at hand"
    assert (found[0].label, found[0].predicate) == ("leaning", "angle > 0.2")
    assert found[5].label == "wrong"
    assert reasons == ["predicate", "a user's explanation stands"]
    notebook.close()
    run.close()
