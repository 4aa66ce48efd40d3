"""The explain process: beside a growing database, dying, stalling, absent; and what the commands print."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from interlatent_live.cli import app
from interlatent_live.explainer.reading import Pages
from interlatent_live.explainer.service import Service
from interlatent_live.explainer.shipping import load_shipped, save_shipped
from interlatent_live.stream.errors import DictionaryError, InterlatentError

from .explained import Run


def command(*arguments: object) -> str:
    done = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.fixture
def db(tmp_path: Path) -> Path:
    run = Run(tmp_path / "r.db")
    run.write(10)
    run.close()
    return tmp_path / "r.db"


def test_it_follows_a_database_that_grows(tmp_path: Path) -> None:
    service = Service(tmp_path / "r.db")
    assert not service.step()  # nothing there yet
    run = Run(tmp_path / "r.db")
    run.write(2)
    service.step()
    assert service.report.lines >= 1
    run.write(10)
    deadline = time.monotonic() + 60
    while service.report.explained < 4 and time.monotonic() < deadline:
        service._rest_until, service._checked_at = 0.0, service._checked_at if service._queue else -1e9
        service.step()
    service._status_at = -1e9
    service.step()
    service.close()
    run.close()
    with Pages(tmp_path / "r.db") as pages:
        assert [e.feature for e in pages.explanations()] == [0, 1, 2, 5]
        lines = pages.narration("b0")
        status = pages.explainer_status()
        newest = pages.narration("b0", after_id=lines[-2].id)
    assert status is not None
    assert status["frames"] == 1200
    assert status["llm"] is None
    assert [line.id for line in lines] == sorted(line.id for line in lines)
    assert newest == lines[-1:]
    assert lines[0].kind == "begin"


def test_outside_the_card_explanations_are_stale_and_narration_says_why(tmp_path: Path) -> None:
    run = Run(tmp_path / "r.db")
    run.write(10)
    run.quality(0.5)
    service = Service(tmp_path / "r.db")
    service.step()
    for _ in range(4):
        service._rest_until, service._checked_at = 0.0, service._checked_at if service._queue else -1e9
        service.step()
    service._rest_until, service._checked_at = 0.0, -1e9
    service.step()
    service.close()
    run.close()
    with Pages(tmp_path / "r.db") as pages:
        assert all("outside its card's range" in (e.stale or "") for e in pages.explanations())
        assert any("nothing is said of features" in line.text for line in pages.narration("b0"))


def test_killed_at_any_moment_it_takes_up_where_it_was(db: Path) -> None:
    arguments = [sys.executable, "-m", "interlatent_live", "explain", "--db", str(db), "--live", "--json"]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None
    first = json.loads(process.stdout.readline())
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=10)
    assert first["kind"] == "begin"
    again = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert again.stdout is not None
    again.stdout.readline()
    os.killpg(again.pid, signal.SIGTERM)
    again.communicate(timeout=20)
    assert again.returncode == 0


def test_commands(db: Path) -> None:
    explained = json.loads(command("explain", "--db", db, "--json"))
    assert explained["live_features"] == 4
    assert explained["explained"] == 4
    rows = json.loads(command("explanations", db, "--json"))
    assert [r["feature"] for r in rows] == [0, 1, 2, 5]
    assert len(json.loads(command("explanations", db, "--unscored", "--json"))) == 5
    tried = json.loads(command("explain", "--db", db, "--try", "angle > 0.5", "--json"))
    assert tried["features"][0]["feature"] == 0
    assert tried["features"][0]["balanced_accuracy"] == 1.0
    named = json.loads(command("explain", "--db", db, "--name", 2, "a riddle", "--json"))
    assert named == {"feature": 2, "label": "a riddle"}
    named = json.loads(command("explain", "--db", db, "--name", 5, "leaning", "--try", "angle > 0.5", "--json"))
    assert named["balanced_accuracy"] > 0.8
    labels = {r["feature"]: (r["label"], r["source"]) for r in json.loads(command("explanations", db, "--json"))}
    assert labels[2] == ("a riddle", "rules")
    assert labels[5] == ("leaning", "user")
    one = json.loads(command("explain", "--db", db, "--feature", 1, "--json"))
    assert [r["feature"] for r in one["explanations"]] == [1]
    found = json.loads(command("diff", db, "--a", "angle > 0.5", "--json"))
    assert found[0]["name"] == "f0"
    assert {"low", "high", "effect", "q"} <= found[0].keys()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["explain", "--db", "none.db"], "does not exist"),
        (["explain", "--db", "{db}", "--try", "angel > 1"], "did you mean angle"),
        (["explain", "--db", "{db}", "--name", "1", "<b>x</b>"], "markup"),
        (["diff", "{db}", "--a", "angle > 99"], "no frame is in selection a"),
    ],
)
def test_mistakes_are_told_in_a_line(db: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(InterlatentError, match=message):
        command(*[a.replace("{db}", str(db)) for a in arguments])


def test_shipped_explanations_round_trip_and_damage_is_told(db: Path, tmp_path: Path) -> None:
    from interlatent_live.explainer.service import explain_once

    explaining, _, _ = explain_once(db)
    path = tmp_path / "explanations.json"
    count = save_shipped(path, explaining, made_from="a test", evidence_hash="e")
    shipped = load_shipped(path)
    assert len(shipped.explanations) == count >= 3
    assert (shipped.dictionary_hash, shipped.weights_hash, shipped.made_from) == ("d0", "w0", "a test")
    hypothesis, score = shipped.explanations[0]
    current = explaining.current[score.feature]
    assert hypothesis.predicate == current.predicate
    text = path.read_text()
    for damaged in ("", "[]", text[:200], text.replace("angle", "angle >"), text.replace('"label"', '"lable"')):
        path.write_text(damaged)
        with pytest.raises(DictionaryError):
            load_shipped(path)


@pytest.mark.parametrize("name", ["cartpole", "cartpole-reinforce", "humanoid", "mspacman"])
def test_what_ships_is_of_the_dictionary_that_ships(name: str) -> None:
    from interlatent_live.analyzer import registry
    from interlatent_live.explainer.shipping import place

    shipped = load_shipped(place(name))
    dictionary = registry.find(name)
    again = f"another dictionary ships now: make its explanations by `interlatent-live explain --ship {name}`"
    assert (shipped.dictionary_hash, shipped.weights_hash) == (dictionary.hash, dictionary.cfg.model_hash), again
    assert len(shipped.explanations) >= 10
    assert all(s.balanced_accuracy.mean > 0.5 for _, s in shipped.explanations)
