"""The messages of steering on the wire and in files, and the command line against a running agent."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.test_control import Agent, until

from interlatent_live.stream.errors import WireError
from interlatent_live.stream.intervention import Effects, Intervention, Outcome
from interlatent_live.stream.manifest import ControlSpec, Manifest
from interlatent_live.stream.wire import decode, encode
from interlatent_live.viewer.timeline import Timeline

START = Intervention(
    "r", "b", 0, 3, "0a" * 8, "start", "", 10, 9, 1_000, 2_000,
    {"author": "me", "reason": "π", "operation": "scale", "strength": 1.5, "feature": 4, "direction": None, "shadow": False},
)  # fmt: skip
END = Intervention("r", "b", 1, 3, "0a" * 8, "end", "author_gone", 12, 11, 1_100, 2_100, START.told)
EFFECTS = Effects("r", "b", 7, "kl", (3, 3), (10, 11), (1_000, 1_100), (2_000, 2_100), (0.25, math.inf), (1.0, 0.5))
TOLD = dataclasses.replace(EFFECTS, outcome=(None, Outcome("share", (0, 3), (0.25, 0.75), (1.0, 0.0))))


@pytest.mark.parametrize("message", [START, END, EFFECTS, TOLD])
def test_messages_come_back_as_they_went(message: Any) -> None:
    assert decode(encode(message)) == message


def test_the_control_is_in_the_manifest_only_where_there_is_one() -> None:
    plain = Manifest("r", "b", 1, 1)
    assert "control" not in plain.to_dict()
    with_control = Manifest("r", "b", 1, 1, control=ControlSpec("tcp://127.0.0.1:9", True, "/run/x.token", ""))
    assert Manifest.from_dict(with_control.to_dict()) == with_control
    assert with_control.hash != plain.hash
    broken: Any
    for broken in ({"control": 5}, {"control": {}}):
        with pytest.raises(WireError):
            Manifest.from_dict(plain.to_dict() | broken)


@settings(deadline=None, max_examples=150)
@given(
    st.sampled_from([START, END, EFFECTS, TOLD]),
    st.data(),
    st.none() | st.integers(-2, 2**64 - 1) | st.text(max_size=80) | st.lists(st.integers(-1, 3), max_size=3) | st.floats() | st.booleans(),
)
def test_a_header_that_was_tampered_with_is_read_or_refused_by_name(message: Any, data: st.DataObject, value: Any) -> None:
    parts = encode(message)
    header = msgpack.unpackb(parts[1])
    key = data.draw(st.sampled_from(sorted(set(header) - {"v", "run"})))
    if data.draw(st.booleans()):
        del header[key]
    else:
        header[key] = value
    with contextlib.suppress(WireError):  # and nothing else
        decode([parts[0], msgpack.packb(header), parts[2]])


@pytest.mark.parametrize(
    "outcome",
    [{}, [None], [None, ["share", [0], [0.5], [0.5, 0.5]]], [None, ["odds", [0], [0.5], [0.5]]], [None, ["share", [-1], [0.5], [0.5]]],
     [None, ["share", [], [], []]], [None, ["value", [0], ["x"], [0.5]]], [None, ["value", list(range(17)), [0.0] * 17, [0.0] * 17]]],
)  # fmt: skip
def test_an_outcome_that_is_none_is_refused(outcome: Any) -> None:
    parts = encode(TOLD)
    header = msgpack.unpackb(parts[1]) | {"outcome": outcome}
    with pytest.raises(WireError, match="outcome"):
        decode([parts[0], msgpack.packb(header), *parts[2:]])


def steer(agent: Agent, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "interlatent_live", "steer", *arguments, "--connect", agent.tap.endpoint, "--json"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ})


def test_the_command_steers_is_the_heartbeat_and_its_death_releases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    with Agent(pause_s=0.02, endpoint="tcp://127.0.0.1:*") as agent:
        plain = agent.last
        author = steer(agent, "--feature", "4", "--scale", "0", "--ttl", "200", "--reason", "to see", "--when", "reward > 0")
        assert author.stdout is not None
        started = json.loads(author.stdout.readline())
        assert (started["event"], started["reason"], started["condition"], started["ttl_s"]) == ("start", "to see", "reward > 0", 200)
        until(lambda: agent.last != plain)
        time.sleep(2.5)  # longer than the lease: it is renewed
        assert agent.last != plain
        listing = steer_result(agent, "list")
        assert [item["id"] for item in listing] == [started["id"]]
        author.send_signal(signal.SIGKILL)
        author.communicate()
        until(lambda: agent.last == plain)
        refused = steer(agent, "--feature", "4", "--scale", "nan")
        _, message = refused.communicate(timeout=60)
        assert refused.returncode == 1
        assert "strength is 'nan'; a finite number is needed (bad_request)" in message
        other = steer(agent, "--feature", "3", "--clamp", "2")
        assert other.stdout is not None
        other.stdout.readline()
        assert len(steer_result(agent, "release", "--all")["released"]) == 1
        output, _ = other.communicate(timeout=60)
        assert json.loads(output.splitlines()[-1])["cause"] == "released_all"


def steer_result(agent: Agent, *arguments: str) -> Any:
    output, message = steer(agent, *arguments).communicate(timeout=60)
    assert output, message
    return json.loads(output)


def test_the_timeline_shows_interventions(tmp_path: Path) -> None:
    from tests.steering_samples import drive, make

    import interlatent_live as il
    from interlatent_live.analyzer.queries import Reader
    from interlatent_live.analyzer.service import analyze_recording

    model, _, tap = make(record=tmp_path / "r.mcap", metrics=[il.Metric("angle", 2)])
    with tap:
        drive(model, tap, 3)
        with tap.steer(4, scale=0.5, reason="why not"):
            drive(model, tap, 4)
        drive(model, tap, 2)
    analyze_recording(tmp_path / "r.mcap", tmp_path / "r.db", neurons_only=True)
    timeline = Timeline()
    with Reader(tmp_path / "r.db") as reader:
        timeline.look(reader, tap.boot, 0, [], 0)
    ((first, after, text, begin, end, shadow),) = timeline.data["interventions"]
    assert (first, after, shadow) == (3, 7, 0)
    assert begin <= end
    assert text == "steered: scale 0.5 feature 4 by in process: why not; released"
