"""Scalars of the training loop: logged, sent, recorded, replayed and stored."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from tests.tap_samples import mlp

import interlatent_live as il
from interlatent_live.agent_side.scalars import ScalarLog
from interlatent_live.analyzer.queries import Reader
from interlatent_live.analyzer.service import analyze_recording
from interlatent_live.stream.reading import Recording
from interlatent_live.stream.wire import Scalars, decode, encode


def test_rows_of_the_same_names_travel_together_and_none_is_lost() -> None:
    said: list[str] = []
    log = ScalarLog("agent", "b0", said.append)
    for step in range(3):
        log.add(step, 0, {"loss": step, "lr": 0.1})
    log.add(3, 1, {"loss": 3})
    log.add(4, 1, {"figure": object(), "loss": math.nan})
    messages = list(log.drain())
    assert [(m.seq, m.names, m.step) for m in messages] == [(0, ("loss", "lr"), (0, 1, 2)), (3, ("loss",), (3, 4))]
    assert messages[0].values == ((0.0, 0.1), (1.0, 0.1), (2.0, 0.1))
    assert math.isnan(messages[1].values[1][0]), "NaN was logged, and stays"
    assert len(said) == 1
    assert "figure" in said[0]
    assert list(log.drain()) == []
    assert log.dropped == 0


def test_many_names_make_messages_that_fit() -> None:
    log = ScalarLog("agent", "b0", lambda message: None)
    for step in range(1_000):
        log.add(step, 0, {f"name{i}": 0.5 for i in range(300)})
    messages = list(log.drain())
    assert sum(m.rows for m in messages) == 1_000
    for message in messages:
        decoded = decode(encode(message))
        assert isinstance(decoded, Scalars)
        assert len(decoded.names) == 256


def test_beyond_the_bound_the_oldest_go_and_are_counted() -> None:
    log = ScalarLog("agent", "b0", lambda message: None)
    for step in range(65_536 + 10):
        log.add(step, 0, {"loss": 1.0})
    messages = list(log.drain())
    assert log.dropped == 10
    assert messages[0].seq == 10
    assert messages[-1].seq + messages[-1].rows == 65_546


def test_logged_recorded_and_stored(tmp_path: Path) -> None:
    policy = mlp()
    tap = il.Tap(policy, ["1:out"], run="agent", record=tmp_path / "r.mcap", endpoint="", weights="changing")
    tap.log({"early": 1.0})  # before it is open: nothing happens
    loss = torch.tensor([2.0])
    with tap:
        for step in range(5):
            with torch.inference_mode():
                policy(torch.zeros(1, 4))
            tap.step(observation=np.zeros(4), reward=1.0)
            with tap.pause():
                tap.log({"losses/value": loss, "bad": math.nan, "huge": math.inf})
                loss.zero_()  # what was logged is a copy
            tap.policy_version = step + 1
        tap.log(None)  # type: ignore[arg-type]  # raises nothing
    tap.log({"late": 1.0})
    found = [m for m in Recording(tmp_path / "r.mcap").messages() if isinstance(m, Scalars)]
    values = [row for m in found for row in m.values]
    assert [row[0] for row in values] == [2.0, 0.0, 0.0, 0.0, 0.0]
    assert [n for m in found for n in m.step] == [1, 2, 3, 4, 5]
    assert [n for m in found for n in m.policy_version] == [0, 1, 2, 3, 4]
    for _ in range(2):  # twice is once
        analyze_recording(tmp_path / "r.mcap", tmp_path / "r.db")
    with Reader(tmp_path / "r.db") as reader:
        assert reader.scalar_names(tap.boot) == ["bad", "huge", "losses/value"]
        rows = reader.scalars(tap.boot, "losses/value")
        assert [(row.step, row.policy_version, row.value) for row in rows] == [
            (1, 0, 2.0), (2, 1, 0.0), (3, 2, 0.0), (4, 3, 0.0), (5, 4, 0.0)
        ]  # fmt: skip
        assert reader.scalars(tap.boot, "bad")[0].value is None
        assert reader.scalars(tap.boot, "huge")[0].value == math.inf
