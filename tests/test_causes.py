"""What changing a feature does, in the sentences about it."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from interlatent_live.analyzer.store import Store
from interlatent_live.analyzer.writes import Writes
from interlatent_live.explainer.causes import causes
from interlatent_live.explainer.explaining import Explaining
from interlatent_live.explainer.narrator import Narrator
from interlatent_live.explainer.notebook import Notebook
from interlatent_live.explainer.source import Source, Subject

from .explained import Run


def effect(mean: float, q: float) -> dict[str, Any]:
    change = {"mean": mean, "low": mean - 0.05, "high": mean + 0.05, "n": 8}
    action = {"mean": 0.2, "low": 0.1, "high": 0.3, "n": 8, "when_active": 0.4, "toward": "left", "change": change, "q": q}
    return {"operation": "ablate", "strength": 0.0, "active_share": 0.3, "action": action, "return": None}


def beside(folder: Path, **changes: Any) -> None:
    found = {
        "format": "interlatent-effects/1", "dictionary_hash": "d0", "weights_hash": "w0", "agent": "toy", "command": "c",
        "action_unit": "kl", "features": {"0": effect(0.25, 0.001), "1": effect(0.01, 0.6)},
    }  # fmt: skip
    (folder / "effects.json").write_text(json.dumps(found | changes))


@pytest.fixture
def source(tmp_path: Path) -> Source:
    run = Run(tmp_path / "r.db")
    run.write(8, steps=500)
    run.close()
    return Source(tmp_path / "r.db")


def subject_of(source: Source, folder: Path) -> Subject:
    source.pull(1)
    assert source.subject is not None
    return dataclasses.replace(source.subject, dictionary=dataclasses.replace(source.subject.dictionary, path=str(folder)))


def test_a_measured_effect_is_told_with_its_figure(source: Source, tmp_path: Path) -> None:
    subject = subject_of(source, tmp_path)
    assert causes(subject) == {}
    beside(tmp_path)
    assert causes(subject) == {
        0: "suppressing it moves the action left by +0.25 in probability (+0.2 to +0.3)",
        1: "suppressing it has no effect on the action that could be told from chance",
    }
    others: list[dict[str, Any]] = [{"dictionary_hash": "d1"}, {"weights_hash": "w1"}, {"format": "else"}, {"features": {"0": {}}}]
    for other in others:
        beside(tmp_path, **other)
        assert causes(subject) == {}, other
    source.close()


def test_narration_says_it_of_a_feature_that_it_names(source: Source, tmp_path: Path) -> None:
    beside(tmp_path)
    subject = subject_of(source, tmp_path)
    while source.pull():
        pass
    frames = source.kept()
    assert frames is not None
    with Notebook(tmp_path / "r.db") as notebook:
        explaining = Explaining(notebook, subject)
        explaining.attempt(frames, [0])
    narrator = Narrator(subject, effects=causes(subject))
    narrator.learn(explaining.current)
    lines = [line for line in map(narrator.feed, source._pieces) if line is not None]
    named = [line for line in lines if line.features and line.features[0].label]
    assert named
    assert all("suppressing it moves the action left by +0.25 in probability" in line.text for line in named)
    source.close()


STOPPED = """
import os, signal, sys
from interlatent_live.explainer.notebook import Notebook
notebook = Notebook(sys.argv[1])
notebook.connection.execute("BEGIN IMMEDIATE")
notebook.connection.execute("INSERT OR REPLACE INTO explainer_state VALUES ('half', 'done')")
print("inside", flush=True)
os.kill(os.getpid(), signal.SIGSTOP)
"""


def test_an_explainer_stopped_inside_a_transaction_costs_the_analyzer_a_wait_and_no_row(tmp_path: Path) -> None:
    """One file has one writer at a time: the analyzer waits, keeps what it has, and goes on as soon as the other ends."""
    Store(tmp_path / "r.db", "r").close()
    process = subprocess.Popen([sys.executable, "-c", STOPPED, str(tmp_path / "r.db")], stdout=subprocess.PIPE, text=True)
    store: Store | None = None
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "inside\n"
        os.waitpid(process.pid, os.WUNTRACED)  # it has stopped
        store = Store(tmp_path / "r.db", "r")
        writes = Writes()
        writes.replace("boots", run="r", boot="b", manifest_hash=None, started_wall_ns=1, ended=0)
        threading.Timer(0.5, os.kill, (process.pid, signal.SIGKILL)).start()
        store.commit(writes)
        assert store.one("SELECT boot FROM boots")[0] == "b"
        assert not store.one("SELECT count(*) FROM explainer_state WHERE key = 'half'")[0]
    finally:
        process.kill()
        process.communicate()
        if store is not None:
            store.close()
