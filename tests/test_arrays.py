"""Agents without a torch model: arrays by name, and the robot's own clock."""

from __future__ import annotations

import contextlib
import math
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from tests.tap_samples import Recorded, mlp

from interlatent_live.agent_side.tap import Tap
from interlatent_live.analyzer.digest import digest
from interlatent_live.analyzer.service import analyze_recording
from interlatent_live.stream.wire import MAX_FRAME_BYTES

POINT = "actor.4:out"


def tapped(path: Path, model: Any = None, points: Any = None, **options: Any) -> Tap:
    chosen: dict[str, Any] = {"run": "g1", "endpoint": "", "record": path / "run.mcap"} | options
    return Tap(model, points, **chosen)


def recorded(path: Path) -> Recorded:
    return Recorded(path / "run.mcap")


def test_arrays_are_kept_as_given_and_torch_is_not_imported(tmp_path: Path) -> None:
    code = f"""
import sys, numpy as np, interlatent_live as il
tap = il.Tap(None, run="g1", record={str(tmp_path / "run.mcap")!r}, endpoint="")
h = np.empty((1, 8), np.float32)
with tap:
    for i in range(100):
        h[:] = np.arange(8) + i      # the same array each time: a copy is kept
        tap.step(activations={{"{POINT}": h, "half": np.full(3, i, np.float16)}}, observation=[i, -i], action=[0.5, i],
                 metrics={{"speed": i}}, stamp_ns=20_000_000 * i, image=np.zeros((4, 6, 3), np.uint8))
        h[:] = -1
assert tap.points == ("{POINT}", "half")
assert "torch" not in sys.modules and "gymnasium" not in sys.modules
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=60)
    run = recorded(tmp_path)
    assert [(p.name, p.dtype, p.shape, p.module) for p in run.manifest.tap_points] == [
        (POINT, "float32", (8,), "array"),
        ("half", "float16", (3,), "array"),
    ]
    assert np.array_equal(run.activations(POINT), np.arange(8, dtype=np.float32) + np.arange(100)[:, None])
    assert run.activations("half").dtype == np.float16
    assert (run.manifest.weights, run.manifest.weights_hash) == ("none", "")
    assert run.column("monotonic_ns").tolist() == [20_000_000 * i for i in range(100)]
    assert run.metric("speed").tolist() == list(range(100))
    assert run.column("action").tolist() == [[0.5, i] for i in range(100)]
    assert run.column("forward_age").tolist() == [0] * 100
    assert run.pictures


@pytest.mark.parametrize(
    ("given", "dtype", "expected"),
    [
        (np.arange(3.0), "float32", [0, 1, 2]),
        (np.arange(3.0)[None], "float32", [0, 1, 2]),
        (np.arange(3, dtype=">f4"), "float32", [0, 1, 2]),
        (np.arange(6.0, dtype=np.float32)[::2], "float32", [0, 2, 4]),
        (np.arange(6.0).reshape(2, 3), "float32", [[0, 1, 2], [3, 4, 5]]),
        (np.float32(2.5), "float32", [2.5]),
        ([1, 2], "float32", [1, 2]),
        (np.array([True, False]), "float32", [1, 0]),
        (np.array([math.nan, math.inf]), "float32", [math.nan, math.inf]),
        (np.arange(3, dtype=ml_dtypes.bfloat16), "bfloat16", [0, 0x3F80, 0x4000]),
        (torch.arange(3.0, requires_grad=True)[None], "float32", [0, 1, 2]),
    ],
)
def test_dtypes_and_shapes(tmp_path: Path, given: Any, dtype: str, expected: Any) -> None:
    with tapped(tmp_path) as tap:
        for _ in range(3):
            tap.step(activations={"h": given})
    run = recorded(tmp_path)
    assert run.manifest.tap_points[0].dtype == dtype
    assert run.manifest.tap_points[0].shape == np.shape(expected)
    assert np.array_equal(run.activations("h"), np.array([expected] * 3, run.activations("h").dtype), equal_nan=True)
    assert tap.status()["hook_failures"] == 0


def test_several_environments_lead(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with tapped(tmp_path, num_envs=3) as tap:
        for i in range(4):
            tap.step(activations={"h": np.arange(6.0).reshape(3, 2) + i, "wrong": np.zeros(2)})
    run = recorded(tmp_path)
    assert run.activations("h").shape == (12, 2)
    assert "wrong: an array of shape (2,) was given; the first dimension must be that of 3 environments" in caplog.text


def test_points_may_come_and_go_and_rows_of_before_have_none(tmp_path: Path) -> None:
    with tapped(tmp_path) as tap:
        for i in range(30):
            given = {"a": np.full(2, i, np.float32)} if i % 2 else None
            if i >= 20:
                given = {**(given or {}), "b": np.full(3, i, np.float32)}
            tap.step(activations=given)
    run = recorded(tmp_path)
    assert run.fired("a") == list(range(1, 30, 2))
    assert run.fired("b") == list(range(20, 30))
    assert run.activations("a")[:, 0].tolist() == list(range(1, 30, 2))
    assert run.activations("b")[:, 0].tolist() == list(range(20, 30))


def test_hooks_and_arrays_go_together(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, x = mlp(), torch.ones(1, 4)
    with tapped(tmp_path, model, ["1:out"]) as tap:
        for i in range(5):
            model(x * i)
            tap.step(activations={"planner": np.full(2, i, np.float32), "1:out": np.zeros(8)})
    run = recorded(tmp_path)
    with torch.no_grad():
        assert np.array_equal(run.activations("1:out"), torch.cat([model[:2](x * i) for i in range(5)]).numpy())
    assert run.activations("planner")[:, 1].tolist() == [0, 1, 2, 3, 4]
    assert "'1:out' is a tap point of the model" in caplog.text


def test_what_cannot_be_kept_is_counted_said_once_and_the_row_stays(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Hostile:
        def __array__(self, *args: Any, **kwargs: Any) -> Any:
            raise RuntimeError("not mine")

    huge = np.broadcast_to(np.float32(0), (4096, 4096))
    given: dict[Any, Any] = {
        "": 1.0, 5: 1.0, "text": "a", "object": object(), "empty": np.zeros((0, 3)), "complex": np.zeros(2, complex),
        "hostile": Hostile(), "deep": np.zeros((1, 1, 1, 1, 1, 2)), "huge": huge, "good": np.ones(2, np.float32),
    }  # fmt: skip
    with tapped(tmp_path) as tap:
        for i in range(4):
            tap.step(activations=given, reward=float(i))
        tap.step(activations=[1, 2, 3], reward=4.0)  # type: ignore[arg-type]
        tap.step(activations={"good": np.ones(3, np.float32)}, reward=5.0)  # another shape than before
    run = recorded(tmp_path)
    assert run.column("reward").tolist() == [0, 1, 2, 3, 4, 5]
    assert run.fired("good") == [0, 1, 2, 3]
    assert tap.status()["hook_failures"] == 4 * 9 + 2
    assert tap.status()["step_failures"] == 0
    told = f"an activation of shape (4096, 4096) has {4096 * 4096 * 4} bytes a frame and 2 dimensions; at most {MAX_FRAME_BYTES} bytes"
    assert caplog.text.count(told) == 1
    assert "choose another layer, pool or subsample" in caplog.text
    assert "activations were not kept, a mapping of name to array is" in caplog.text
    assert "hostile: RuntimeError: not mine" in caplog.text


def test_points_that_together_do_not_fit_a_message_are_refused_one_by_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    big = np.ones(MAX_FRAME_BYTES // 4, np.float32)
    with tapped(tmp_path, queue_bytes=4 * MAX_FRAME_BYTES) as tap:  # both rows fit, however late the sender wakes
        for _ in range(2):
            tap.step(activations={f"layer{i}": big for i in range(12)})
    run = recorded(tmp_path)
    assert len(run.manifest.tap_points) == 8
    assert len(run.seq) == 2
    assert "choose fewer points, or pool" in caplog.text


def test_too_many_names_are_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with tapped(tmp_path) as tap:
        for i in range(300):
            tap.step(activations={f"h{i}": np.ones(2, np.float32)})
    assert len(recorded(tmp_path).seq) == 300
    assert len(tap.points) == 100
    assert "one tap point too many; 100 fit a message" in caplog.text


def test_stamps_are_the_frames_time_and_nobody_compares_them_with_this_hosts(tmp_path: Path) -> None:
    with tapped(tmp_path) as tap:
        for i in range(10):
            tap.step(activations={"h": np.ones(2)}, stamp_ns=np.int64(5_000 + i), image=np.zeros((2, 2, 3), np.uint8) if not i else None)
            tap.log({"loss": 1.0})
    run = recorded(tmp_path)
    assert run.column("monotonic_ns").tolist() == list(range(5_000, 5_010))
    assert np.abs(run.column("wall_ns") - time.time_ns()).max() < 60e9
    assert run.manifest.host_boot == ""
    assert run.manifest.started_monotonic_ns <= 5_000
    assert (run.bye.status["stamps_back"], run.bye.status["stamp_failures"]) == (0, 0)


def test_stamps_that_go_back_are_kept_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    stamps = [100, 200, 150, 160, 0, 10**15, 5]
    with tapped(tmp_path) as tap:
        for stamp in stamps:
            tap.step(stamp_ns=stamp)
    assert recorded(tmp_path).column("monotonic_ns").tolist() == stamps
    assert tap.status()["stamps_back"] == 3
    assert caplog.text.count("stamp_ns went back by 50 ns") == 1


@pytest.mark.parametrize("wrong", [1.5, "now", True, -1, 1 << 62, np.float64(3), [1]])
def test_stamps_that_are_no_nanoseconds_are_counted_and_time_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture, wrong: Any) -> None:
    with tapped(tmp_path) as tap:
        tap.step(stamp_ns=1_000)
        tap.step(stamp_ns=wrong)
        tap.step()
        tap.step(stamp_ns=10**12)
    run = recorded(tmp_path)
    first, second, third, last = run.column("monotonic_ns").tolist()
    assert (first, last) == (1_000, 10**12)
    assert first < second <= third < 60e9
    assert tap.status()["stamp_failures"] == 1
    assert "whole nanoseconds" in caplog.text


def test_analysis_bears_clocks_that_jump(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    with tapped(tmp_path) as tap:
        for i in range(600):
            h = generator.normal(size=16).astype(np.float32)
            if i % 50 == 7:
                h[3] = (math.nan, math.inf)[i // 50 % 2]
            back = 10**12 if 200 <= i < 300 else 0
            tap.step(activations={"h": h}, metrics={"x": float(h[0])}, terminated=i % 100 == 99, stamp_ns=3 * 10**12 + i * 10**7 - back)
            if i % 40 == 0:
                time.sleep(0.012)
    assert tap.status()["stamps_back"] == 1
    done = analyze_recording(tmp_path / "run.mcap", tmp_path / "a.db")
    again = analyze_recording(tmp_path / "run.mcap", tmp_path / "b.db")
    assert done["analyzed"] == again["analyzed"] == 600
    assert digest(tmp_path / "a.db") == digest(tmp_path / "b.db")
    with contextlib.closing(sqlite3.connect(tmp_path / "a.db")) as db:
        assert db.execute("SELECT sum(non_finite) FROM codes").fetchone() == (12,)
