"""The sender's thread: order, accounts, pictures, failures, forks."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.stream_samples import Agent, Listener, batch, manifest, picture
from tests.test_wire import same

from interlatent_live.stream.frames import FrameBatch
from interlatent_live.stream.manifest import Manifest
from interlatent_live.stream.reading import Recording
from interlatent_live.stream.wire import Bye, Heartbeat, Picture, Signals

ROOT = Path(__file__).parents[1]


def wait(condition: Any, timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
    assert condition()


def test_what_is_produced_is_recorded_and_received_alike(tmp_path: Path) -> None:
    agent = Agent(record=tmp_path / "run.mcap")
    with agent:
        listener = Listener(agent.endpoint)
        assert agent.sender.wait_subscribed(5)
        made = []
        for rows in (1, 3, 1, 20):
            made.append(agent.produce(rows))
            agent.settle()
    listener.wait()
    recorded = list(Recording(tmp_path / "run.mcap").messages())
    frames = [m for m in recorded if isinstance(m, FrameBatch)]
    assert all(same(a, b) for a, b in zip(listener.batches, made, strict=True))
    assert all(same(a, b) for a, b in zip(frames, made, strict=True))
    assert isinstance(recorded[0], Manifest)
    bye = recorded[-1]
    assert isinstance(bye, Bye)
    assert isinstance(listener.messages[-1], Bye)
    assert (bye.produced, bye.recorded, bye.record_failed) == (25, 25, 0)
    assert listener.messages[-1].recorded == 25
    assert listener.ledger.produced == listener.ledger.received == 25
    assert bye.status == {"overhead_us_median": 6.5}


def test_what_is_left_when_closing_is_sent(tmp_path: Path) -> None:
    agent = Agent(record=tmp_path / "run.mcap", endpoint=None)
    agent.produce(5)  # never started: closing alone delivers it
    agent.sender.close()
    agent.sender.close()
    assert Recording(tmp_path / "run.mcap").info()["ledger"]["recorded"] == 5
    assert not agent.sender.wait_subscribed(0)


def test_heartbeats_come_while_nothing_happens() -> None:
    with Agent() as agent:
        listener = Listener(agent.endpoint)
        wait(lambda: sum(isinstance(m, Heartbeat) for m in listener.messages) == 2)
    seen = [m for m in listener.wait().messages if isinstance(m, Heartbeat)]
    assert seen[0].produced == 0
    assert seen[1].monotonic_ns > seen[0].monotonic_ns


def test_a_changed_manifest_goes_before_its_first_batch(tmp_path: Path) -> None:
    agent = Agent(record=tmp_path / "run.mcap")
    with agent:
        listener = Listener(agent.endpoint)
        assert agent.sender.wait_subscribed(5)
        agent.produce()
        agent.settle()
        agent.manifest = manifest(weights="changing")
        made = batch(1, 1)
        agent.next_seq = 2
        agent.queue.append(FrameBatch(made.run, made.boot, agent.manifest.hash, 1, 0, made.columns))
        agent.settle()
    listener.wait()
    for messages in (listener.messages, list(Recording(tmp_path / "run.mcap").messages())):
        known: set[str] = set()
        for message in messages:
            if isinstance(message, Manifest):
                known.add(message.hash)
            if isinstance(message, FrameBatch):
                assert message.manifest_hash in known


def test_signals_come_at_most_twenty_times_a_second_of_frame_time() -> None:
    with Agent() as agent:
        listener = Listener(agent.endpoint)
        assert agent.sender.wait_subscribed(5)
        for _ in range(100):  # two seconds of frame time, in no time
            agent.produce()
            agent.settle()
    listener.wait()
    found = [m for m in listener.messages if isinstance(m, Signals)]
    assert 30 <= len(found) <= 40
    assert set(found[0].values) == {"step", "episode", "reward", "pole_angle", "reward_rate"}


def test_pictures_go_out_and_the_oldest_are_dropped() -> None:
    agent = Agent()
    for seq in range(6):
        agent.sender.offer_picture(lambda seq=seq: picture(seq))  # type: ignore[misc]
    assert agent.sender.pictures_dropped == 2
    agent.sender.offer_picture(lambda: None)
    listener = Listener(agent.endpoint)
    with agent:
        assert agent.sender.wait_subscribed(5)
        wait(lambda: not agent.sender._pictures)
    listener.wait()
    assert {m.seq for m in listener.messages if isinstance(m, Picture)} <= {3, 4, 5}
    assert agent.sender.pictures_dropped == 3


def test_a_failing_callable_is_said_once_and_the_frames_go_on(caplog: pytest.LogCaptureFixture) -> None:
    agent = Agent()

    def broken() -> Picture:
        raise ZeroDivisionError("no such camera")

    with agent:
        listener = Listener(agent.endpoint)
        assert agent.sender.wait_subscribed(5)
        for _ in range(3):
            agent.sender.offer_picture(broken)
            agent.produce()
            agent.settle()
        wait(lambda: agent.sender.failures == 3)
    assert listener.wait().ledger.received == 3
    assert agent.sender.pictures_dropped == 3
    assert len([r for r in caplog.records if "no such camera" in r.message]) == 1


def test_a_batch_that_cannot_travel_is_counted() -> None:
    agent = Agent()
    with agent:
        listener = Listener(agent.endpoint)
        assert agent.sender.wait_subscribed(5)
        made = agent.produce(1)
        agent.settle()
        odd = batch(1, 1)
        odd = dataclasses.replace(odd, activations={"1:out": np.zeros((1, 3), "<i8")}, present={})
        agent.next_seq = 2
        agent.queue.append(odd)
        agent.settle()
        agent.produce(1)
        agent.settle()
    listener.wait()
    assert agent.sender.failures == 1
    assert listener.ledger.received == 2
    assert listener.ledger.wire_lost == 1
    assert made.rows == 1


FULL = """
import json, resource, sys, threading, time
from pathlib import Path
from interlatent_live.stream.wire import Bye
from tests.stream_samples import Agent, Listener
agent = Agent(record=Path(sys.argv[1]))
with agent:
    listener = Listener(agent.endpoint)
    assert agent.sender.wait_subscribed(5)
    agent.produce(200)
    agent.settle()
    time.sleep(1.2)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
    for _ in range(390):
        agent.produce(20)
        agent.settle()
bye = listener.wait().messages[-1]
assert isinstance(bye, Bye)
print(json.dumps([agent.next_seq, listener.ledger.received, bye.produced, bye.queue_dropped, bye.recorded, bye.record_failed]))
"""


def test_a_full_disk_stops_the_recording_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "run.mcap"
    done = subprocess.run([sys.executable, "-c", FULL, str(path)], check=True, capture_output=True, text=True, cwd=ROOT)
    produced, received, announced, dropped, recorded, failed = json.loads(done.stdout)
    assert received == produced == announced == 8000
    assert recorded > 0
    assert failed > 0
    assert produced == dropped + recorded + failed
    assert done.stderr.count("sending goes on") == 1
    frames = [m for m in Recording(path).messages() if isinstance(m, FrameBatch)]
    assert sum(m.rows for m in frames) == recorded


FORK = """
import os, sys
from pathlib import Path
from tests.stream_samples import Agent, Listener
agent = Agent(record=Path(sys.argv[1]))
with agent:
    listener = Listener(agent.endpoint)
    assert agent.sender.wait_subscribed(5)
    agent.produce(5)
    agent.settle()
    child = os.fork()
    if child == 0:
        agent.produce(7)
        agent.sender.offer_picture(lambda: None)
        agent.sender.start()
        assert not agent.sender.wait_subscribed(0)
        agent.sender.close()
        agent.publisher.close()
        sys.exit(3)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    agent.produce(5)
    agent.settle()
print(listener.wait().ledger.received, agent.sender.recorded)
"""


def test_a_forked_child_is_inert(tmp_path: Path) -> None:
    path = tmp_path / "run.mcap"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", FORK, str(path)], check=True, capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert done.stdout.split() == ["10", "10"]
    assert done.stderr == ""
    info = Recording(path).info()
    assert (info["frames"], info["damaged"]) == (10, None)


def test_leaving_without_closing_still_says_farewell(tmp_path: Path) -> None:
    path = tmp_path / "run.mcap"
    code = """
import sys
from pathlib import Path
from tests.stream_samples import Agent
agent = Agent(record=Path(sys.argv[1]))
agent.sender.start()
agent.produce(5)
"""
    subprocess.run([sys.executable, "-c", code, str(path)], check=True, cwd=ROOT, timeout=60)
    assert Recording(path).info()["ledger"]["recorded"] == 5


def test_threads_end_and_descriptors_are_returned(tmp_path: Path) -> None:
    def once(number: int) -> None:
        with Agent(record=tmp_path / f"{number}.mcap") as agent:
            agent.produce()

    once(0)
    before = len(os.listdir("/proc/self/fd"))
    for number in range(1, 6):
        once(number)
    assert len(os.listdir("/proc/self/fd")) <= before
    assert not [t for t in threading.enumerate() if t.name.startswith("interlatent-sender")]


CLIENT = ROOT / "tests" / "wire_client.py"


def test_a_client_written_from_the_document_reads_the_stream() -> None:
    agent = Agent()
    client = subprocess.Popen(
        [sys.executable, str(CLIENT), agent.endpoint, "agent", "30"], stdout=subprocess.PIPE, text=True, cwd="/"
    )
    with agent:
        assert agent.sender.wait_subscribed(20)
        made = [agent.produce(rows) for rows in (1, 3)]
        agent.settle()
        agent.sender.offer_picture(lambda: picture(2))
        wait(lambda: not agent.sender._pictures)
    out, _ = client.communicate(timeout=30)
    messages = [json.loads(line) for line in out.splitlines()]
    kinds = [m["kind"] for m in messages]
    assert kinds[0] == "manifest"
    assert kinds[-1] == "bye"
    assert set(kinds) >= {"manifest", "frames", "picture", "signals", "heartbeat", "bye"} - {"heartbeat"}
    first, second = [m for m in messages if m["kind"] == "frames"]
    assert (first["seq"], second["seq"], second["rows"]) == (0, 1, 3)
    assert second["columns"]["observation"] == made[1].columns["observation"].tolist()
    assert second["columns"]["act:3:out"] == made[1].activations["3:out"].tolist()
    assert second["columns"]["rows:3:out"] == [1, 2]
    assert second["columns"]["metrics"][0][1] is None
    assert messages[0]["manifest"]["metrics"][0] == {
        "name": "pole_angle",
        "unit": "rad",
        "scope": "observation",
        "description": "",
    }
    assert next(m for m in messages if m["kind"] == "picture")["jpeg"] == picture(2).data.hex()
    assert messages[-1]["produced"] == 4


def test_the_client_shares_no_code() -> None:
    assert "interlatent" not in CLIENT.read_text().split('"""')[2]


def test_warnings_are_logged_not_printed(caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]) -> None:
    with caplog.at_level(logging.WARNING), Agent() as agent:
        agent.produce()
    assert capsys.readouterr().out == ""
