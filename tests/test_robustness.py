"""The agent's side when its surroundings misbehave: processes, disks, networks, clocks and peers."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.hostile import Hostile
from tests.stream_samples import Listener, heartbeat
from tests.tap_samples import Recorded, mlp
from torch import nn

from interlatent_live.agent_side.tap import Tap
from interlatent_live.analyzer.service import analyze_recording, analyze_stream
from interlatent_live.stream.errors import EndpointInUse
from interlatent_live.stream.subscriber import Subscriber
from interlatent_live.stream.wire import MAX_FRAME_BYTES, encode

ROOT = Path(__file__).parents[1]
X = torch.ones(1, 4)
ANY = "tcp://127.0.0.1:*"


def script(code: str, path: Path, *arguments: object, prefix: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run `code` as a program of its own: warnings are errors in it, too."""
    (path / "program.py").write_text(code)
    command = [*prefix, sys.executable, "-W", "error", str(path / "program.py"), *map(str, arguments)]
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    env = os.environ | {"PYTHONPATH": paths}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=path, env=env, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


PROCESSES = """
import multiprocessing, sys, warnings
import torch
import interlatent_live as il
from tests.tap_samples import mlp

def act(model, queue):
    with torch.no_grad():
        queue.put([model(torch.ones(1, 4) * 100).tolist(), bool(model[3]._forward_hooks)])

if __name__ == "__main__":
    torch.set_num_threads(1)
    model = mlp()
    with il.Tap(model, ["3:out"], run="parent", endpoint="tcp://127.0.0.1:*", record="run.mcap") as tap, torch.no_grad():
        for i in range(3):
            model(torch.full((1, 4), float(i)))
            tap.step(reward=float(i))
            if i != 1:
                continue
            context = multiprocessing.get_context(sys.argv[1])
            queue = context.Queue()
            child = context.Process(target=act, args=(model, queue))
            child.start()
            values, hooked = queue.get(timeout=60)
            child.join(60)
            assert child.exitcode == 0
            assert values == model(torch.ones(1, 4) * 100).tolist()
            tap._capture.slots[:] = [None]  # that was the check, not the agent
    assert tap.frames == 3
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_child_processes_neither_publish_nor_record_and_work_as_before(tmp_path: Path, method: str) -> None:
    script(PROCESSES, tmp_path, method)
    run = Recorded(tmp_path / "run.mcap")
    assert run.column("reward").tolist() == [0.0, 1.0, 2.0]
    assert run.bye.produced == run.bye.recorded == 3


VECTOR = """
import sys
import gymnasium as gym, numpy as np, torch
import interlatent_live as il
from tests.tap_samples import mlp

if __name__ == "__main__":
    torch.set_num_threads(1)
    model = mlp()
    tap = il.Tap(model, ["3:out"], run="vector", endpoint="tcp://127.0.0.1:*", record="run.mcap", num_envs=3)
    with tap, torch.no_grad():
        made = [lambda: gym.make("CartPole-v1")] * 3
        env = il.watch(gym.vector.AsyncVectorEnv(made, context=sys.argv[1]), tap)
        observation, _ = env.reset(seed=0)
        for _ in range(40):
            action = model(torch.as_tensor(observation)).argmax(1).numpy()
            observation, *_ = env.step(action)
        env.close()
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_environments_in_processes_of_their_own(tmp_path: Path, method: str) -> None:
    script(VECTOR, tmp_path, method)
    run = Recorded(tmp_path / "run.mcap")
    assert run.bye.produced == run.bye.recorded == len(run.seq) == 120 - run.bye.status["autoreset_rows"]
    with torch.no_grad():
        expected = mlp()[:4](torch.as_tensor(run.column("observation")))
    np.testing.assert_allclose(run.activations("3:out"), expected.numpy(), atol=1e-6)


def test_several_taps_in_one_process_keep_apart(tmp_path: Path) -> None:
    model, other = mlp(), mlp()
    chosen = [(model, "1"), (model, "3"), (other, "3")]
    taps = [Tap(m, p, run=f"tap{i}", endpoint=ANY, record=tmp_path / f"{i}.mcap") for i, (m, p) in enumerate(chosen)]
    for tap in taps:
        tap.open()
    assert len({tap.endpoint for tap in taps}) == 3
    with torch.no_grad():
        for i in range(30):
            model(X * i)
            other(X * -i)
            for tap in taps[: 3 if i < 10 else 2]:
                tap.step(reward=float(i))
            if i == 10:
                taps[2].close()
        taps[0].close()
        model(X)
        taps[1].step(reward=30.0)
        taps[1].close()
    runs = [Recorded(tmp_path / f"{i}.mcap") for i in range(3)]
    assert [len(run.seq) for run in runs] == [30, 31, 10]
    with torch.no_grad():
        assert np.array_equal(runs[0].activations("1:out"), torch.cat([model[:2](X * i) for i in range(30)]).numpy())
        assert np.array_equal(runs[2].activations("3:out"), torch.cat([other[:4](X * -i) for i in range(10)]).numpy())
    assert not any(m._forward_hooks for m in [*model.modules(), *other.modules()])


def test_closing_from_several_threads_at_once_is_closing_once(tmp_path: Path) -> None:
    tap = Tap(mlp(), ["3:out"], run="closing", endpoint=ANY, record=tmp_path / "run.mcap")
    with tap:
        tap.step(reward=1.0)
        threads = [threading.Thread(target=tap.close) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
    assert Recorded(tmp_path / "run.mcap").bye.produced == 1


def test_a_taken_endpoint_names_the_process_and_leaves_nothing_behind(tmp_path: Path) -> None:
    code = "import socket, time; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True); time.sleep(60)"
    model = mlp()
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        port = other.stdout.readline().strip()
        with pytest.raises(EndpointInUse, match=rf"python.* \(pid {other.pid}\); stop it, or choose another endpoint"):
            Tap(model, ["3:out"], run="taken", endpoint=f"tcp://127.0.0.1:{port}", record=tmp_path / "run.mcap").open()
        other.kill()
    assert not any(m._forward_hooks for m in model.modules())
    assert not (tmp_path / "run.mcap").exists()


NETWORKLESS = """
import interlatent_live as il, numpy as np
with il.Tap(None, run="alone", record="run.mcap") as tap:
    for i in range(200):
        tap.step(activations={"h": np.ones(4, np.float32)}, reward=float(i))
assert tap.frames == 200
"""


def test_without_any_network_the_agent_acts_and_records(tmp_path: Path) -> None:
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-rn", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this user may not make a network namespace")
    script(NETWORKLESS, tmp_path, prefix=("unshare", "-rn"))
    assert Recorded(tmp_path / "run.mcap").bye.recorded == 200


def test_a_host_that_does_not_answer_is_silence_and_no_error() -> None:
    with Subscriber("tcp://192.0.2.1:5570") as subscriber:  # reserved for documents: nobody has it
        assert subscriber.receive(0.3) is None
        assert subscriber.silence_s >= 0.3
        assert not subscriber.refused


STALLED = """
import json, sys
from interlatent_live.stream.subscriber import Subscriber
from interlatent_live.stream.ledger import SubscriberLedger
from interlatent_live.stream.frames import FrameBatch
from interlatent_live.stream.wire import Bye
ledger = SubscriberLedger()
with Subscriber(sys.argv[1]) as subscriber:
    print("ready", flush=True)
    while True:
        message = subscriber.receive(60)
        if isinstance(message, FrameBatch):
            ledger.batch(message)
        if isinstance(message, Bye) or message is None:
            if message is not None:
                ledger.bound(message)
            break
print(json.dumps([ledger.produced, ledger.received, ledger.wire_lost, message is not None]))
"""


def stall(path: Path, seconds: float, width: int) -> tuple[list[Any], Recorded, int]:
    """Stop a subscriber's process for `seconds` while the agent goes on; its accounts, the recording, and the agent's
    growth of memory in bytes."""
    h = np.ones(width, np.float32)
    with Tap(None, run="stalled", endpoint=ANY, record=path / "run.mcap") as tap:
        code = [sys.executable, "-c", STALLED, tap.endpoint]
        with subprocess.Popen(code, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(ROOT / "src")}) as other:
            assert other.stdout is not None
            assert other.stdout.readline() == "ready\n"
            assert tap.wait_subscribed(10)
            tap.step(activations={"h": h}, reward=0.0)
            time.sleep(0.1)
            other.send_signal(signal.SIGSTOP)
            before, end = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic() + seconds
            while time.monotonic() < end:
                for _ in range(10):
                    tap.step(activations={"h": h}, reward=1.0)
                time.sleep(0.005)
            grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
            other.send_signal(signal.SIGCONT)
            deadline = time.monotonic() + 10
            while tap.subscribers == 0 and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(1.5)  # it catches up
            tap.close()
            return json.loads(other.communicate(timeout=70)[0]), Recorded(path / "run.mcap"), grown


def test_a_subscriber_that_stalls_costs_the_agent_nothing_and_is_accounted_for(tmp_path: Path) -> None:
    (produced, received, lost, farewell), run, _ = stall(tmp_path, 2.0, 8)
    assert farewell
    assert run.bye.produced == run.bye.recorded == len(run.seq) > 500
    assert produced == received + lost == run.bye.produced


@pytest.mark.slow
def test_a_subscriber_that_stalls_for_minutes_holds_no_more_than_the_high_water_mark(tmp_path: Path) -> None:
    (produced, received, lost, farewell), run, grown = stall(tmp_path, 90.0, 1024)
    assert farewell
    assert produced == received + lost == run.bye.produced == run.bye.recorded
    assert lost > 0
    assert grown < 400 << 20
    print(f"\n90 s stalled: {produced} frames, {lost} lost on the wire, {grown >> 20} MiB grown")


FULL = """
import logging, resource, sys, time
import interlatent_live as il, numpy as np
logging.basicConfig()
h = np.random.default_rng(0).normal(size=256).astype(np.float32)
with il.Tap(None, run="full", endpoint="", record="run.mcap") as tap:
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))  # what a full disk looks like to a process
    for i in range(3000):
        tap.step(activations={"h": h + i}, reward=float(i))
        if i % 100 == 0:
            time.sleep(0.02)
assert tap.frames == 3000
print(tap._sender.recorded, tap._sender.record_failed)
"""


def test_a_full_disk_ends_the_recording_and_not_the_agent(tmp_path: Path) -> None:
    done = script(FULL, tmp_path)
    recorded, failed = map(int, done.stdout.split())
    assert recorded + failed == 3000
    assert min(recorded, failed) > 0
    assert done.stderr.count("free some space or record elsewhere; sending goes on") == 1


def test_a_wall_clock_that_jumps_back_moves_no_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, back = time.time_ns, [0]
    monkeypatch.setattr(time, "time_ns", lambda: real() - back[0])
    model = mlp()
    with Tap(model, ["3:out"], run="agent", endpoint=ANY, record=tmp_path / "run.mcap") as tap:
        listener = Listener(tap.endpoint)
        assert tap.wait_subscribed(10)
        with torch.no_grad():
            for i in range(300):
                back[0] = 3_600 * 10**9 if 100 <= i < 200 else 0
                model(X * i)
                tap.step(reward=float(i), image=np.zeros((4, 4, 3), np.uint8) if i % 50 == 0 else None)
                time.sleep(0.001)
    run = Recorded(tmp_path / "run.mcap")
    assert listener.wait().ledger.received == 300
    assert run.column("reward").tolist() == list(range(300))
    assert (np.diff(run.column("monotonic_ns")) > 0).all()
    assert (np.diff(run.column("wall_ns")) < -3_000 * 10**9).any()
    done = analyze_recording(tmp_path / "run.mcap", tmp_path / "run.db")
    assert done["analyzed"] == 300


def test_an_activation_beyond_the_limit_is_refused_with_the_remedy_and_the_rest_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = nn.ModuleDict({"map": nn.Identity(), "small": nn.Identity()})
    picture = torch.zeros(1, 4096, 4096)
    with Tap(model, ["map:out", "small:out", "map:out:mean"], run="large", endpoint="", record=tmp_path / "run.mcap") as tap:
        for i in range(3):
            model["map"](picture)
            model["small"](X * i)
            tap.step(reward=float(i))
    run = Recorded(tmp_path / "run.mcap")
    assert [p.name for p in run.manifest.tap_points] == ["small:out", "map:out:mean"]
    assert run.column("reward").tolist() == [0, 1, 2]
    assert caplog.text.count(f"has 67108864 bytes a frame and 2 dimensions; at most {MAX_FRAME_BYTES} bytes") == 1
    assert "choose another layer, pool or subsample" in caplog.text


def bombard(n: int) -> tuple[Counter[str], int, int]:
    """Receive `n` hostile messages; what was refused, how many were valid by chance, and the growth of memory in bytes."""
    last = heartbeat(boot="the-end")
    valid = 0
    with Hostile(n, last=encode(last)) as hostile, Subscriber(hostile.endpoint) as subscriber:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        while True:
            message = subscriber.receive(30)
            assert message is not None
            if message == last:
                break
            valid += 1
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
        refused = subscriber.refused.copy()
    assert hostile.sent == n
    return refused, valid, grown


def test_hostile_messages_are_refused_and_counted_one_by_one() -> None:
    refused, valid, grown = bombard(20_000)
    assert refused.total() + valid == 20_000
    assert set(refused) == {"malformed", "truncated", "unsupported_version", "non_finite", "oversized"}
    assert valid < 2_000
    assert grown < 300 << 20


@pytest.mark.slow
def test_a_million_hostile_messages() -> None:
    began = time.monotonic()
    refused, valid, grown = bombard(1_000_000)
    print(f"\n10^6 hostile messages in {time.monotonic() - began:.0f} s: {dict(refused)}, {valid} valid, {grown >> 20} MiB grown")
    assert refused.total() + valid == 1_000_000
    assert grown < 300 << 20


def test_an_analyzer_outlives_hostile_messages_and_then_analyses_the_agent(tmp_path: Path) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as probe:
        endpoint = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
    done: list[dict[str, Any]] = []
    thread = threading.Thread(target=lambda: done.append(analyze_stream(endpoint, tmp_path / "run.db", run="agent")))
    with Hostile(5_000, last=encode(heartbeat()), endpoint=endpoint):
        thread.start()
    with Tap(None, run="agent", endpoint=endpoint) as tap:
        assert tap.wait_subscribed(20)
        for i in range(200):
            tap.step(activations={"h": np.full(8, i, np.float32)}, reward=1.0)
    thread.join(30)
    assert not thread.is_alive()
    with closing(sqlite3.connect(tmp_path / "run.db")) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert db.execute("SELECT sum(rows) FROM batches WHERE boot = ?", (tap.boot,)).fetchone() == (200,)
    assert isinstance(done[0], dict)
