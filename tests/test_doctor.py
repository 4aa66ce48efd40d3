"""What the doctor says of machines that are well, and of ones that are not."""

from __future__ import annotations

import json
import os
import resource
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.stream_samples import batch, heartbeat, manifest

from interlatent_live import doctor
from interlatent_live.agent_side.tap import Tap
from interlatent_live.doctor import Check, as_dict, examine
from interlatent_live.stream.endpoint import DEFAULT_ENDPOINT
from interlatent_live.stream.errors import EndpointError
from interlatent_live.stream.publisher import Publisher
from interlatent_live.stream_check import listen

ANY = "tcp://127.0.0.1:*"
BIN = Path(sys.executable).parent / "interlatent-live"


def states(checks: list[Check]) -> dict[str, str]:
    return {check.name: check.state for check in checks}


def test_this_machine_is_well_and_nothing_is_left_behind(tmp_path: Path) -> None:
    checks = list(examine(tmp_path))
    found = states(checks)
    expected = "python packages torch endpoint loopback page disk database clock limits pictures dictionaries stream"
    assert set(expected.split()) <= set(found)
    assert [check for check in checks if check.state == "FAIL"] == []
    for name in ("python", "packages", "loopback", "database", "dictionaries"):
        assert found[name] == "PASS"
    assert all(check.remedy for check in checks if check.state != "PASS")
    assert list(tmp_path.iterdir()) == []


def test_the_command_prints_json_and_nothing_else_and_fails_where_a_check_does(tmp_path: Path) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as probe:
        port = probe.getsockname()[1]
    command = [str(BIN), "doctor", "--json", "--connect", f"tcp://127.0.0.1:{port}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path, check=False)
    told = json.loads(done.stdout)
    assert done.returncode == 1
    assert told["fail"] == 1
    (row,) = [row for row in told["checks"] if row["state"] == "FAIL"]
    assert row["name"] == "stream"
    assert "nothing was heard" in row["found"]
    assert "is the agent running" in row["remedy"]
    assert told["pass"] + told["warn"] + told["fail"] == len(told["checks"])


def test_a_stream_that_is_well(tmp_path: Path) -> None:
    stop = threading.Event()
    with Tap(None, run="robot", endpoint=ANY) as tap:

        def act() -> None:
            while not stop.wait(0.01):
                tap.step(activations={"h": np.ones(4, np.float32)}, reward=1.0)

        agent = threading.Thread(target=act)
        agent.start()
        checks = [Check(*row) for row in listen(tap.endpoint).rows(expected=True)]
        stop.set()
        agent.join()
    found = states(checks)
    assert found["stream"] == "PASS"
    assert found["stream age"] == "PASS"
    assert found["stream ledger"] == "PASS"
    assert found["stream overhead"] == "PASS"
    assert "run 'robot'" in checks[0].found
    assert "frames/s" in checks[0].found
    assert "lost on the wire 0" in next(c.found for c in checks if c.name == "stream ledger")


class Speaking:
    """A publisher that says the same over and over, as a tap in trouble would."""

    def __init__(self, *messages: Any) -> None:
        self._publisher = Publisher(ANY)
        self.endpoint = self._publisher.endpoint
        self._messages, self._stop = messages, threading.Event()
        self._thread = threading.Thread(target=self._speak)

    def _speak(self) -> None:
        while not self._stop.wait(0.1):
            if self._publisher.poll():
                for message in self._messages:
                    self._publisher.send(message)

    def __enter__(self) -> Speaking:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._publisher.close()


def test_troubles_of_a_stream_are_told_with_remedies() -> None:
    status = {"silent_points": 2.0, "hook_failures": 7.0, "stamps_back": 1.0, "overhead_us_median": 5_000.0, "overhead_us_p99": 9_000.0}
    troubled = heartbeat(10, queue_dropped=3, record_failed=4, status=status)
    with Speaking(manifest(), batch(0, 2), batch(5, 2), troubled) as speaking:
        heard = listen(speaking.endpoint, 2.0)
    checks = {row[0]: row for row in heard.rows(expected=True)}
    assert checks["stream ledger"][1] == "WARN"
    assert "recording failed for 4" in checks["stream ledger"][2]
    assert "disk is full" in checks["stream ledger"][3]
    assert checks["stream age"][1] == "WARN"  # frames of the year 2025
    assert checks["stream silent points"][1:3] == ("WARN", "2 tap point(s) kept nothing")
    assert checks["stream hook failures"][1] == "WARN"
    assert "monotonic clock" in checks["stream stamps back"][3]
    assert checks["stream overhead"][1] == "WARN"


def test_a_run_without_frames_and_one_that_ended() -> None:
    with Speaking(manifest(), heartbeat(0)) as speaking:
        rows = listen(speaking.endpoint, 1.5).rows(expected=True)
    assert rows[0][1] == "WARN"
    assert "no frame came" in rows[0][2]
    from interlatent_live.stream.wire import Bye

    with Speaking(manifest(), heartbeat(8, kind=Bye)) as speaking:
        rows = listen(speaking.endpoint, 1.5).rows(expected=True)
    assert rows[0][1:3] == ("PASS", "run 'agent' said farewell after 8 frames")


def test_a_taken_default_endpoint_names_its_holder_and_looks_at_its_stream(tmp_path: Path) -> None:
    try:
        tap = Tap(None, run="default", endpoint=DEFAULT_ENDPOINT)
        tap.open()
    except EndpointError:
        pytest.skip("something else uses the default endpoint")
    try:
        checks = {check.name: check for check in examine(tmp_path)}
    finally:
        tap.close()
    assert checks["endpoint"].state == "WARN"
    assert f"(pid {os.getpid()})" in checks["endpoint"].found
    assert "run 'default'" in checks["stream"].found


def test_a_folder_that_cannot_be_used(tmp_path: Path) -> None:
    checks = states(list(examine(tmp_path / "none")))
    assert checks["disk"] == checks["database"] == "FAIL"


def test_packages_that_are_missing_or_too_old(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = metadata.version

    def version(name: str) -> str:
        if name == "scipy":
            raise metadata.PackageNotFoundError(name)
        return {"numpy": "1.20.3", "bokeh": "2.4"}.get(name) or real(name)

    monkeypatch.setattr(metadata, "version", version)
    checks = {check.name: check for check in doctor._packages()}
    assert checks["packages"].state == "FAIL"
    assert "numpy 1.20.3 is not >=1.26" in checks["packages"].found
    assert checks["packages [analyzer]"].state == "WARN"
    assert checks["packages [analyzer]"].remedy == "pip install 'interlatent-live[analyzer]'"
    assert "scipy is missing; needed for analyze, watch, demo" in checks["packages [analyzer]"].found
    assert "bokeh 2.4 is not >=3.6" in checks["packages [viewer]"].found


def test_a_file_that_shadows_a_package(tmp_path: Path) -> None:
    (tmp_path / "torch.py").touch()
    (check,) = doctor._shadows(tmp_path)
    assert (check.state, check.remedy) == ("WARN", "rename your file")


def test_no_display(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER", "MUJOCO_GL"):
        monkeypatch.delenv(name, raising=False)
    (check,) = doctor._pictures()
    assert check.state == "WARN"
    assert "SDL_VIDEODRIVER=dummy" in check.remedy
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    monkeypatch.setenv("MUJOCO_GL", "egl")
    assert [c.state for c in doctor._pictures()] == ["PASS"]


def test_a_damaged_dictionary(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "cfg.json").write_text("{")
    monkeypatch.setenv("INTERLATENT_DICTIONARIES", f"{tmp_path}{os.pathsep}{tmp_path / 'nowhere'}")
    checks = list(doctor._dictionaries())
    assert [check.state for check in checks] == ["FAIL", "WARN", "PASS"]
    assert checks[0].found.startswith("mine: ")


def test_clocks(monkeypatch: pytest.MonkeyPatch) -> None:
    real, steps = time.time_ns, iter([0, 10**9])
    monkeypatch.setattr(time, "time_ns", lambda: real() + next(steps))
    (check,) = doctor._clock()
    assert check.state == "WARN"
    monkeypatch.undo()
    monkeypatch.setattr(time, "time", lambda: 1_000.0)
    (check,) = doctor._clock()
    assert check.state == "FAIL"


def test_small_limits() -> None:
    code = (
        "import resource; from interlatent_live import doctor\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)); (a,) = doctor._limits(); assert a.state == 'WARN', a\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100)); (a,) = doctor._limits(); assert '100 open files' in a.found, a"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 100


def test_a_check_that_breaks_is_a_failure_and_the_rest_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(folder: Path) -> Any:
        raise OSError("no such device")

    monkeypatch.setattr(doctor, "_database", broken)
    checks = {check.name: check for check in examine(tmp_path)}
    assert checks["database"].state == "FAIL"
    assert "no such device" in checks["database"].found
    assert "stream" in checks
    assert as_dict(list(checks.values()))["fail"] == 1
