"""Sentences about features of text, judged: detection and fuzzing over a real socket, by a judge that reads what it is shown."""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from interlatent_live.cli import app
from interlatent_live.explainer.asking import Asker, Configuration, request
from interlatent_live.explainer.exam import KINDS, MARKS, Exhibit, result, set_exam
from interlatent_live.explainer.explaining import Current, Explaining
from interlatent_live.explainer.hypothesis import Hypothesis
from interlatent_live.explainer.judging import Judging, read_kinds, read_verdict
from interlatent_live.explainer.narrator import Mention, Narrator, _words
from interlatent_live.explainer.notebook import Notebook
from interlatent_live.explainer.reading import Pages
from interlatent_live.explainer.source import Frames, Source
from interlatent_live.stream.errors import HypothesisError, LanguageModelError, PredicateError
from interlatent_live.viewer.says import labels

from .language_model import LanguageModel, completion
from .text_run import FEATURES, HEAT, WATER, WORDS, TextRun

RIGHT = {"label": "hot things", "description": f"Active at {', '.join(HEAT)}.", "predicate": None}
WRONG = {"label": "wet things", "description": f"Active at {', '.join(WATER)}.", "predicate": None}


def reads(body: dict[str, Any]) -> list[int]:
    """The answers of a judge that looks for the sentence's words in each piece; where tokens are marked, whether these are they."""
    told = json.loads(body["messages"][1]["content"])
    wanted = set(re.findall(r"\w+", told["sentence"])) & set(WORDS)
    found = []
    for piece in told["pieces"].values():
        marked = re.findall(f"{MARKS[0]}(.*?){MARKS[1]}", piece)
        found.append(int(bool(marked) and set(marked) <= wanted if marked else bool(wanted & set(re.findall(r"\w+", piece)))))
    return found


def judging(body: dict[str, Any]) -> bool:
    return '"pieces"' in body["messages"][1]["content"]


class World:
    """A database of text, a server that explains and judges, an asker."""

    def __init__(self, path: Path, proposal: dict[str, Any] = RIGHT, **options: Any) -> None:
        run = TextRun(path)
        run.write(60)
        run.close()
        self.path, self.proposal = path, proposal
        self.server = LanguageModel(self.answer)
        self.verdict: Callable[[dict[str, Any]], Any] = lambda body: (200, {}, completion(json.dumps({"answers": reads(body)})))
        self.options = {"pieces": 40, **options}
        self.notebook = Notebook(path)
        source = Source(path)
        while source.pull():
            pass
        frames, subject = source.kept(), source.subject
        source.close()
        assert frames is not None
        assert subject is not None
        self.frames: Frames = frames
        self.explaining = Explaining(self.notebook, subject)
        self.asker = self.make()

    def answer(self, body: dict[str, Any]) -> Any:
        return self.verdict(body) if judging(body) else (200, {}, completion(json.dumps(self.proposal)))

    def make(self) -> Asker:
        configuration = Configuration(self.server.url, "toy", "", timeout_s=20, calls_per_minute=1_000, judging=Judging(**self.options))
        return configuration.make(self.notebook)

    def again(self) -> None:
        """As after a kill: nothing but the database is left."""
        self.asker.close()
        self.notebook.close()
        self.notebook = Notebook(self.path)
        self.explaining = Explaining(self.notebook, self.explaining.subject)
        self.asker = self.make()

    def ask(self, *features: int, until: Callable[[], bool] = lambda: False) -> None:
        self.asker.offer(self.explaining, self.frames, features or (0,))
        deadline = time.monotonic() + 60
        while self.asker.status["open"] and not until():
            assert time.monotonic() < deadline, self.asker.status
            self.asker.collect(self.explaining, self.frames)
            time.sleep(0.005)

    def rule(self, feature: int, text: str, label: str = "a rule") -> None:
        from interlatent_live.explainer.grammar import parse

        made = Hypothesis(label=label, description=f"Active when {label}.", predicate=parse(text), source="rules")
        assert self.explaining.propose(self.frames, [(feature, made, None)])

    @property
    def reasons(self) -> list[str]:
        with Pages(self.path) as pages:
            return [a.reason for a in pages.attempts("d0")]

    def close(self) -> None:
        self.asker.close()
        self.server.close()
        self.notebook.close()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with contextlib.closing(World(tmp_path / "r.db")) as made:
        yield made


def _mention(world: World, current: Current) -> Mention:
    narrator = Narrator(world.explaining.subject)
    narrator.learn(world.explaining.current)
    return narrator._mention(current.feature, world.frames, np.full(FEATURES, 0.3), np.full(FEATURES, 0.1))


def test_a_right_sentence_scores_high_and_is_told_as_detection(world: World) -> None:
    world.rule(1, "token == river", label="the river")
    world.ask(0)
    current = world.explaining.current[0]
    assert (current.source, current.predicate, current.kind, current.held_out) == ("llm:toy", None, "detection", None)
    assert current.score is not None
    assert current.score.balanced_accuracy.mean == current.judged["fuzzing"].balanced_accuracy.mean == 1.0
    assert current.judged["detection"].shuffled < 0.6
    assert current.narratable
    assert _words(_mention(world, current)).startswith("“hot things” (f0, detection 1.00; active 30 %")
    with Pages(world.path) as pages:
        (shown,) = [e for e in pages.explanations("d0", everything=True) if e.feature == 0]
        pieces = pages.judged_pieces(shown.id or 0, "detection")
    assert (shown.predicate, shown.clauses) == (None, 0)
    assert shown.score is not None
    assert (shown.score.kind, shown.score.judge, shown.score.balanced_accuracy) == ("detection", "toy", 1.0)
    assert shown.score.chance is not None
    assert 0.5 < shown.score.chance < 0.8
    assert {s.kind for s in shown.scores} == {"detection", "fuzzing"}
    assert [j["kind"] for j in shown.to_dict()["judged"]] == ["detection", "fuzzing"]
    (said,) = labels([0], {0: shown})
    assert said is not None
    assert (said["label"], said["score"]) == ("hot things", "detection 1.00")
    assert "detection 1.00, 95 % 1.00 … 1.00, 40 pieces of text, judged" in said["about"]
    assert len(pieces) == 40
    assert all((p.said == 1) == (p.sort == "active") for p in pieces)
    assert all(bool(set(HEAT) & set(re.findall(r"\w+", p.shown))) == (p.sort == "active") for p in pieces)


def test_a_wrong_sentence_and_one_who_always_says_yes_score_like_chance(tmp_path: Path) -> None:
    with contextlib.closing(World(tmp_path / "w.db", WRONG)) as world:
        world.ask(0)
        assert 0 not in world.explaining.current or world.explaining.current[0].judged["detection"].balanced_accuracy.mean < 0.65
        rows = world.notebook.all("SELECT sort, said FROM exam_pieces p JOIN exams e ON e.id = p.exam_id WHERE kind = 'detection'")
        active = np.mean([said for sort, said in rows if sort == "active"])
        assert abs(active - np.mean([said for sort, said in rows if sort != "active"])) < 0.4
    with contextlib.closing(World(tmp_path / "y.db")) as world:
        world.verdict = lambda body: (200, {}, completion(json.dumps({"answers": [1 for _ in reads(body)]})))
        world.ask(0)
        assert world.explaining.current == {}
        assert world.reasons == ["no better than chance: detection 0.500"]


def test_a_sentence_replaces_a_rule_only_where_it_does_better_on_the_same_pieces(world: World) -> None:
    world.rule(0, f"token in ({', '.join(HEAT)})")
    world.ask(0)
    assert world.explaining.current[0].source == "rules"
    assert world.reasons[-1].startswith("not better beyond the interval than the rule on the same pieces (+0.000")


def test_a_poor_rule_gives_way_and_a_good_one_takes_over_again(world: World) -> None:
    world.rule(0, "token == heat")
    world.ask(0)
    assert world.explaining.current[0].predicate is None
    from interlatent_live.explainer.grammar import parse

    poor = Hypothesis(label="one word", description="x", predicate=parse("token == oven"), source="rules")
    assert world.explaining.propose(world.frames, [(0, poor, None)]) == []
    assert world.reasons[-1].startswith("not better than the sentence on its pieces of text")


def test_pieces_are_of_held_out_texts_and_none_was_seen(world: World) -> None:
    frames = world.frames
    held = {int(s) for s in frames.seq[frames.held_out]}
    for kind in KINDS:
        pieces = set_exam(0, frames, kind)
        assert set_exam(0, frames, kind) == pieces
        assert {p.seq for p in pieces} <= held
        assert len({p.shown for p in pieces}) == len(pieces) == 40
        assert [sum(p.sort == sort for p in pieces) for sort in ("active", "random", "near")] == [20, 10, 10]
    detection, fuzzing = (set_exam(0, frames, kind) for kind in KINDS)
    assert not any(MARKS[0] in p.shown for p in detection)
    assert all(MARKS[0] in p.shown for p in fuzzing)
    assert {(p.seq, p.sort) for p in detection} == {(p.seq, p.sort) for p in fuzzing}, "the same pieces, marked"


def test_what_a_training_text_holds_is_not_asked(tmp_path: Path) -> None:
    run = TextRun(tmp_path / "r.db")
    words = np.random.default_rng(3).integers(0, len(WORDS), 60)
    for prompt in range(20):  # the same words after another beginning: another prompt, so on either side
        run.text(np.concatenate([[40 + prompt], words]))
    run.close()
    source = Source(tmp_path / "r.db")
    source.pull()
    frames = source.kept()
    source.close()
    assert frames is not None
    assert frames.held_out.any()
    assert set_exam(0, frames, "detection") == ()


def test_a_feature_without_a_class_has_no_score(world: World) -> None:
    assert set_exam(3, replace(world.frames, held_out=world.frames.held_out & False), "detection") == ()
    pieces = (Exhibit("b", 0, 0, "active", "x"), Exhibit("b", 1, 1, "active", "y"))
    score, chance = result(0, pieces, [True, True], [None, None])
    assert np.isnan([score.balanced_accuracy.mean, score.shuffled, chance]).all()
    half = [Exhibit("b", i, i, "active" if i % 2 else "near", "x") for i in range(20)]
    score, _ = result(0, half, [p.truth if i < 8 else None for i, p in enumerate(half)], [None] * 20)
    assert np.isnan(score.balanced_accuracy.mean), "less than half of a class was answered"
    score, _ = result(0, half, [p.truth if i < 16 else None for i, p in enumerate(half)], [None] * 20)
    assert (score.balanced_accuracy.mean, score.frames, round(score.undefined, 2)) == (1.0, 16, 0.2)
    labels = {k: v for k, v in world.frames.table.labels.items() if k != "token"}
    world.frames.table.labels = labels
    with pytest.raises(PredicateError, match="frames are no tokens"):
        set_exam(0, world.frames, "detection")


FAULTS: dict[str, tuple[Any, str]] = {
    "half a JSON": (lambda body: (200, {}, completion('{"answers": [1, 0', "length")), "cut_off"),
    "too few": (lambda body: (200, {}, completion('{"answers": [1, 0]}')), "unreadable"),
    "a number that is none": (lambda body: (200, {}, completion('{"answers": [1, 0, 2, 1, 7]}')), "unreadable"),
    "prose": (lambda body: (200, {}, completion("I think the first one.")), "unreadable"),
    "503": (lambda body: (503, {}, {"error": {"message": "busy"}}), "refused"),
    "dropped": (lambda body: None, "unreachable"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_judge_that_fails_is_an_attempt_with_a_reason(tmp_path: Path, fault: str) -> None:
    with contextlib.closing(World(tmp_path / "r.db", kinds=("detection",), pieces=10)) as world:
        world.verdict, reason = FAULTS[fault]
        world.ask(0)
        assert world.explaining.current == {}
        assert reason in world.reasons
        assert world.asker.status["failures"][reason] >= 1
        with Pages(world.path) as pages:
            assert {a.source for a in pages.attempts("d0") if a.reason == reason} == {"judge:toy"}


def test_an_exam_goes_on_where_it_was_killed(world: World) -> None:
    answered: list[int] = []

    def slowly(body: dict[str, Any]) -> Any:
        answered.append(1)
        return 200, {}, completion(json.dumps({"answers": reads(body)}))

    world.verdict = slowly
    world.ask(0, until=lambda: len(answered) >= 4)
    for _ in range(50):  # what was answered is taken in
        world.asker.collect(world.explaining, world.frames)
        time.sleep(0.002)
    before = world.notebook.all("SELECT exam_id, number, shown FROM exam_pieces ORDER BY exam_id, number")
    said = world.notebook.one("SELECT count(said) FROM exam_pieces")[0]
    assert said > 0
    world.again()
    world.frames = replace(world.frames, held_out=world.frames.training, training=world.frames.held_out)  # new pieces would be others
    asked = len(world.server.bodies)
    world.ask(0)
    assert world.notebook.all("SELECT exam_id, number, shown FROM exam_pieces ORDER BY exam_id, number") == before
    assert len([b for b in world.server.bodies[asked:] if judging(b)]) <= 32 - said // 5
    assert world.explaining.current[0].judged["detection"].balanced_accuracy.mean == 1.0
    asked = len(world.server.bodies)
    world.again()
    world.ask(0)
    assert not [b for b in world.server.bodies[asked:] if judging(b)], "what was judged is not judged again"


def test_an_exam_has_a_deadline_and_a_budget(tmp_path: Path) -> None:
    with contextlib.closing(World(tmp_path / "r.db", kinds=("detection",), seconds=0.3)) as world:

        def slowly(body: dict[str, Any]) -> Any:
            time.sleep(0.25)
            return 200, {}, completion(json.dumps({"answers": reads(body)}))

        world.verdict = slowly
        world.ask(0)
        assert world.notebook.one("SELECT outcome FROM exams")[0] == "deadline"
        assert world.notebook.one("SELECT count(*) FROM exam_pieces WHERE said IS NULL")[0] > 0
    with contextlib.closing(World(tmp_path / "b.db", kinds=("detection",))) as world:
        world.asker.close()
        limited = Configuration(world.server.url, "toy", "", calls_per_minute=4, judging=Judging(kinds=("detection",)))
        world.asker = limited.make(world.notebook)
        world.ask(0, until=lambda: bool((world.asker.status["judge"] or {})["note"]))
        assert len(world.server.bodies) <= 4
        assert world.asker.status["judge"]["note"] == "the budget of 4 calls a minute is used up"


def test_without_a_judge_a_sentence_alone_is_refused(world: World) -> None:
    world.asker.close()
    world.asker = Configuration(world.server.url, "toy", "").make(world.notebook)
    world.ask(0)
    assert world.reasons == ["predicate"]
    plain, prose = (
        request(Configuration(world.server.url, "toy", "", judging=j), world.explaining.subject, world.frames, 0)
        for j in (None, Judging())
    )
    assert plain.key != prose.key
    assert "null" not in json.dumps(plain.schema["properties"]["predicate"])
    assert "null" in json.dumps(prose.schema["properties"]["predicate"])


def test_what_is_asked_is_checked() -> None:
    assert read_kinds("fuzzing, detection,fuzzing") == ("fuzzing", "detection")
    for bad in ("", "detection fuzzing", "simulation"):
        with pytest.raises(LanguageModelError, match="--score takes"):
            read_kinds(bad)
    with pytest.raises(LanguageModelError, match="8 to 400 pieces"):
        Judging(pieces=2)
    assert read_verdict('{"answers": [0, 1]}', 2) == (False, True)
    with pytest.raises(HypothesisError):
        read_verdict('{"answers": [0, 1], "why": "x"}', 2)


def test_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with contextlib.closing(World(tmp_path / "r.db")) as world:
        world.asker.close()
        world.notebook.close()
        monkeypatch.setenv("OPENAI_BASE_URL", world.server.url)
        monkeypatch.delenv("OPENAI_JUDGE_BASE_URL", raising=False)
        arguments = ["explain", "--db", str(tmp_path / "r.db"), "--feature", "0", "--model", "toy", "--llm", "--score", "detection"]
        done = CliRunner().invoke(app, [*arguments, "--judge", "other", "--pieces", "10", "--json"], catch_exceptions=False)
        assert done.exit_code == 0
        (row,) = json.loads(done.stdout)["explanations"]
        assert (row["kind"], row["source"]) == ("predicate", "rules"), "a rule that is right is not outdone"
        assert {b["model"] for b in world.server.bodies if judging(b)} == {"other"}
        assert CliRunner().invoke(app, [*arguments[:5], "--score", "detection"]).exit_code != 0
        assert CliRunner().invoke(app, [*arguments[:-1], "simulation"]).exit_code != 0


def test_a_table_and_json_say_of_which_kind_a_score_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "240")
    with contextlib.closing(World(tmp_path / "r.db")) as world:
        world.ask(0)
        world.notebook.close()
        made = CliRunner().invoke(app, ["explain", "--db", str(tmp_path / "r.db")], catch_exceptions=False)
        assert re.search(r"hot things.*1 .*detection +1\.00 \(1\.00 to 1\.00\) +1\.00", made.stdout), made.stdout
        assert re.search(r"tokens +3600.*\n.*texts +60", made.stdout), "a text is no episode"
        info = CliRunner().invoke(app, ["info", str(tmp_path / "r.db")], catch_exceptions=False)
        assert re.search(r"tokens +3600", info.stdout)
        assert not re.search("episodes|frames ", info.stdout)
        again = CliRunner().invoke(app, ["explanations", str(tmp_path / "r.db"), "--json"], catch_exceptions=False)
        (row,) = [e for e in json.loads(again.stdout) if e["feature"] == 0]
        assert (row["kind"], row["predicate"], row["balanced_accuracy"]["mean"]) == ("detection", None, 1.0)
        assert [(j["kind"], j["judge"]) for j in row["judged"]] == [("detection", "toy"), ("fuzzing", "toy")]
