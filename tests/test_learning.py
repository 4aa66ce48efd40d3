"""Learning from running streams, over real sockets: what is saved, what is refused, and what it survives."""

from __future__ import annotations

import dataclasses
import json
import math
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from bench.synthetic import Synthetic
from safetensors import safe_open
from tests.test_service import Agent

from interlatent_live.analyzer.announcement import announced
from interlatent_live.analyzer.dictionary import load
from interlatent_live.analyzer.learning import LiveOptions, LiveProgress, learn, learn_to
from interlatent_live.analyzer.training import TrainOptions, checkpoint_path
from interlatent_live.stream.errors import DictionaryError

QUICK = TrainOptions(features=24, k=3, steps=150, batch=64, dead_steps=40)
LONG = LiveOptions(seconds=600, wait=60, memory=4 << 20)
PACED, SLOWLY = dataclasses.replace(QUICK, steps=100_000), LiveOptions(seconds=1_000, wait=60, memory=4 << 20)
"""A hundred steps a second."""


def learned(progress: LiveProgress) -> bool:
    """Whether what there is would be worth an artifact."""
    return progress.held_out > 1 and progress.fvu is not None and progress.fvu < 0.8


class Altered(Synthetic):
    """The same stream with activations made into others."""

    alter: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]] = staticmethod(lambda x: x)

    def batch(self, rows: int, *, now_ns: tuple[int, int] | None = None) -> Any:
        made = super().batch(rows, now_ns=now_ns)
        return dataclasses.replace(made, activations={"0:out": type(self).alter(made.activations["0:out"])})


class Constant(Altered):
    alter = staticmethod(np.ones_like)


class NotANumber(Altered):
    alter = staticmethod(lambda x: np.full_like(x, math.nan))


@contextmanager
def acting(
    kind: type[Synthetic] = Synthetic,
    *,
    frames: int | None = 1_200,
    weights: Literal["frozen", "changing"] = "frozen",
    episode_steps: int = 40,
) -> Iterator[Agent]:
    stream = kind(width=12, metrics=1, episode_steps=episode_steps)
    stream.manifest = dataclasses.replace(stream.manifest, weights=weights)
    agent = Agent(stream, frames=frames)
    agent.start()
    try:
        yield agent
    finally:
        agent.finish.set()
        agent.join(30)


def test_an_artifact_with_a_light_card_and_accounts(tmp_path: Path) -> None:
    target, told, news = tmp_path / "d" / "one", list[LiveProgress](), list[Any]()

    def report(progress: LiveProgress) -> None:
        told.append(progress)
        news.append(announced(target.parent))

    with acting() as agent:
        dictionary = learn_to(agent.endpoint, target, QUICK, LONG, report=report, command=lambda read, predicted: f"{read} {predicted}")
    assert [p.name for p in target.parent.iterdir()] == ["one"]  # no checkpoint, no news, nothing hidden
    loaded = load(target)
    assert loaded.hash == dictionary.hash
    card = loaded.card
    assert card is not None
    assert 0 < card["fvu"] < 1
    assert card["l0"] == 3
    assert 0 <= card["dead_share"] < 1
    assert card["stale"] is None
    assert card["command"] == "0:out 0:out"
    assert set(card["quantiles"]["fvu"].values()) == {None}  # 8 seconds are no bound
    assert loaded.cfg.model_hash == agent.stream.manifest.weights_hash
    live = loaded.cfg.provenance["live"]
    assert loaded.cfg.provenance["frames"] + live["lost"] <= 1_200
    assert live["held"]["fit"] + live["held"]["watch"] <= loaded.cfg.provenance["frames"]
    assert told[-1].phase == "done"
    assert told[-1].step == 150
    assert news[-1] is not None
    assert (news[-1]["name"], news[-1]["phase"]) == ("one", "done")


def test_stop_saves_what_was_learned(tmp_path: Path) -> None:
    seen = threading.Event()

    def report(progress: LiveProgress) -> None:
        if learned(progress):
            seen.set()

    with acting(frames=None) as agent:
        dictionary = learn_to(agent.endpoint, tmp_path / "d", PACED, SLOWLY, report=report, stop=seen.is_set)
    assert load(tmp_path / "d").hash == dictionary.hash
    assert 0 < dictionary.cfg.provenance["stopped_at"] < PACED.steps


def test_an_interrupted_run_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    kept = tmp_path / "kept.safetensors"
    with acting(frames=None) as agent:
        told: list[LiveProgress] = []
        learn(
            agent.endpoint, PACED, SLOWLY, name="d", checkpoint=kept, report=told.append, stop=lambda: bool(told) and learned(told[-1])
        )
        assert kept.exists()
        again: list[LiveProgress] = []
        second = learn(
            agent.endpoint, PACED, SLOWLY, name="d", checkpoint=kept, report=again.append,
            stop=lambda: bool(again) and learned(again[-1]) and again[-1].step > told[-1].step,
        )  # fmt: skip
        assert min(p.step for p in again if p.step) >= told[-1].step
        assert second.cfg.provenance["stopped_at"] > told[-1].step
        with pytest.raises(DictionaryError, match="other options or data"):
            learn(agent.endpoint, dataclasses.replace(PACED, k=4), SLOWLY, name="d", checkpoint=kept)


def test_weights_that_change_make_it_stale() -> None:
    with acting(weights="changing") as agent:
        dictionary = learn(agent.endpoint, QUICK, LONG, name="d")
    assert dictionary.card is not None
    assert dictionary.card["stale"] == "the weights changed while it learned (policy versions 0 to 0)"
    assert dictionary.cfg.provenance["live"]["stale"]
    assert dictionary.cfg.provenance["live"]["reservoir"].startswith("recent")


@pytest.mark.parametrize(("kind", "episode_steps", "message"), [
    (Constant, 40, r"0:out is the same in all .* there is nothing to learn \(\d+ frames"),
    (NotANumber, 40, r"non_finite of them of no use, 0 to fit; 256 are needed"),
    (Synthetic, 10**6, r"1 episode\(s\) came, and 0 frames to judge on; 50 are needed, of a second episode"),
])  # fmt: skip
def test_a_stream_that_teaches_nothing_is_refused_and_leaves_nothing(
    tmp_path: Path, kind: type[Synthetic], episode_steps: int, message: str
) -> None:
    with acting(kind, frames=1_200, episode_steps=episode_steps) as agent, pytest.raises(DictionaryError, match=message):
        learn_to(agent.endpoint, tmp_path / "d", QUICK, LONG)
    assert not (tmp_path / "d").exists()
    news = announced(tmp_path)
    assert news is not None
    assert "came" in news["error"]


def test_no_frame_at_all(tmp_path: Path) -> None:
    with pytest.raises(DictionaryError, match=r"no frame came in 0.2 s; is an agent publishing there\?"):
        learn_to("tcp://127.0.0.1:9", tmp_path / "d", QUICK, LiveOptions(wait=0.2))


def test_what_is_no_better_than_the_mean_is_no_artifact(tmp_path: Path) -> None:
    once = dataclasses.replace(QUICK, steps=1, k=24, lr=1.0)
    with acting() as agent, pytest.raises(DictionaryError, match="after 1 of 1 steps: the mean output alone is as good"):
        learn_to(agent.endpoint, tmp_path / "d", once, LONG)
    assert not (tmp_path / "d").exists()


def test_too_few_frames_in_the_time_given() -> None:
    with acting(frames=100) as agent, pytest.raises(DictionaryError, match="256 are needed: let it run longer"):
        learn(agent.endpoint, QUICK, LONG, name="d")


@pytest.mark.parametrize("changes", [{"seconds": 0}, {"seconds": math.nan}, {"wait": -1}, {"memory": 10}])
def test_options_that_cannot_be_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(DictionaryError):
        LiveOptions(**changes)


def test_a_folder_that_exists_is_not_overwritten(tmp_path: Path) -> None:
    with pytest.raises(DictionaryError, match="exists"):
        learn_to("tcp://127.0.0.1:9", tmp_path, QUICK)


FULL = """
import dataclasses, json, logging, resource, sys
from pathlib import Path
import interlatent_live.analyzer.learning as learning
from interlatent_live.analyzer.training import TrainOptions
learning.CHECKPOINT_S = 0.0
resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500))  # a file beyond 1,500 bytes fails as on a full disk
options = TrainOptions(features=24, k=3, steps=150, batch=64)
failed = []
try:
    learning.learn_to(sys.argv[1], Path(sys.argv[2]), options, learning.LiveOptions(seconds=600, memory=4 << 20),
                      report=lambda p: failed.append(p.checkpoint_failed))
except learning.DictionaryError as error:
    print(json.dumps({"error": str(error), "failed": [f for f in failed if f][-1]}))
"""


def test_a_full_disk_costs_the_checkpoint_and_then_says_that_nothing_was_saved(tmp_path: Path) -> None:
    with acting() as agent:
        command = [sys.executable, "-c", FULL, agent.endpoint, str(tmp_path / "d")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert "checkpoint" in told["failed"]
    assert "cannot be written" in told["error"]
    assert done.stderr.count("learning goes on without it") == 1
    assert [p.name for p in tmp_path.iterdir()] == [".d.learning.json"]


def cli(endpoint: str, target: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "interlatent_live", "dict", "train", "--connect", endpoint, "--live", "--out", str(target)]
    command += ["--features", "24", "--k", "3", "--json", *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ready(target: Path) -> bool:
    news = announced(target.parent)
    return news is not None and news.get("held_out", 0) > 1 and (news.get("fvu") or 1.0) < 0.8


def until(condition: Callable[[], bool], seconds: float = 90.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)


def test_the_command_saves_on_ctrl_c_and_prints_json_alone(tmp_path: Path) -> None:
    target = tmp_path / "d"
    with acting(frames=None) as agent, cli(agent.endpoint, target) as process:
        until(lambda: ready(target) or process.poll() is not None)
        nice = int(Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[16])
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert nice >= 10
    card = json.loads(output)
    assert load(target).hash == card["hash"]
    assert "--connect" in card["command"]


@pytest.mark.slow
def test_killed_it_leaves_no_artifact_and_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    target = tmp_path / "d"
    with acting(frames=None) as agent:
        with cli(agent.endpoint, target) as process:
            until(checkpoint_path(target).exists)
            process.kill()
        with safe_open(checkpoint_path(target), framework="pt") as file:
            reached = int(file.metadata()["step"])
        assert not target.exists()
        step = 0
        with cli(agent.endpoint, target) as process:
            until(lambda: (ready(target) and (announced(tmp_path) or {}).get("pid") == process.pid) or process.poll() is not None)
            news = announced(tmp_path)
            step = news["step"] if news else 0
            process.terminate()
            _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    assert step >= reached > 0
    assert not checkpoint_path(target).exists()
    assert load(target).card is not None
