"""The effect of steering on the action: what is measured, at what rate, and how a limit turns steering down."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.steering_samples import OBSERVATION, dictionary_of, drive, quiet
from tests.tap_samples import Recorded, mlp
from tests.test_steering import by_hand
from torch import nn

import interlatent_live as il
from interlatent_live.agent_side.effects import Spread
from interlatent_live.agent_side.tap import Tap
from interlatent_live.analyzer.edit import Edit
from interlatent_live.analyzer.queries import Reader
from interlatent_live.analyzer.service import analyze_recording
from interlatent_live.stream.errors import SteeringError
from interlatent_live.stream.frames import BASE_COLUMNS, FrameBatch
from interlatent_live.stream.intervention import Effects
from interlatent_live.stream.reading import Recording


def tapped(model: nn.Module, **options: Any) -> Tap:
    dictionary = dictionary_of(model)
    policy = quiet(**{"dictionaries": [dictionary], "effect_hz": 1e6, "effect_share": 0.5, **options.pop("policy", {})})
    return il.Tap(model, ["1:out", "3:out"], **{"run": "effects", "endpoint": "", "steering": policy, **options})


def learned(tap: Tap, ready: Callable[[Any], bool]) -> None:
    """Wait until the sender's thread has seen what actions are like."""
    gauge = tap._steering._gauge  # type: ignore[union-attr]
    deadline = time.monotonic() + 30
    while not ready(gauge):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def kl(steered: torch.Tensor, plain: torch.Tensor) -> float:
    both = [torch.distributions.Categorical(logits=x) for x in (steered, plain)]
    return float(torch.distributions.kl_divergence(*both))


def test_the_kl_of_a_discrete_policy_is_measured_stored_and_replayed(tmp_path: Path) -> None:
    model = mlp().eval()
    tap = tapped(model, record=tmp_path / "r.mcap")
    with tap:
        plain = drive(model, tap)
        learned(tap, lambda gauge: gauge.discrete)
        act = tap.steer(4, clamp=6.0)
        drive(model, tap)  # the measuring hook is put on between steps
        steered = drive(model, tap, 20)
        assert act.effect == pytest.approx(kl(steered, plain), rel=1e-4)
        assert act.effect is not None
        assert act.effect > 0.001
        act.release()
        drive(model, tap, 2)
    messages = [m for m in Recording(tmp_path / "r.mcap").messages() if isinstance(m, Effects)]
    assert {m.kind for m in messages} == {"kl"}
    frames = [frame for m in messages for frame in m.frame]
    assert frames
    assert set(frames) <= set(range(2, 22))
    back = Recorded(tmp_path / "r.mcap")
    assert len({row.tobytes() for row in back.activations("3:out")}) == 1  # what was run again left no trace
    analyze_recording(tmp_path / "r.mcap", tmp_path / "r.db", neurons_only=True)
    with Reader(tmp_path / "r.db") as reader:
        rows = reader.effects(tap.boot, 0)
        outcome = reader.outcome(tap.boot, 0)
    assert outcome is not None
    assert (outcome.seq, outcome.measure, outcome.actions) == (frames[-1], "share", tuple(range(plain.shape[1])))
    assert outcome.steered == pytest.approx(steered.softmax(1)[0].tolist(), rel=1e-4)
    assert outcome.unsteered == pytest.approx(plain.softmax(1)[0].tolist(), rel=1e-4)
    assert [row.seq for row in rows] == frames
    assert rows[0].value == pytest.approx(act.effect, rel=1e-4)
    assert rows[0].factor == 1


def test_shadow_measures_and_applies_nothing(tmp_path: Path) -> None:
    model = mlp().eval()
    tap = tapped(model, record=tmp_path / "r.mcap")
    with tap:
        plain = drive(model, tap)
        learned(tap, lambda gauge: gauge.discrete)
        act = tap.steer(4, clamp=6.0, shadow=True)
        for _ in range(10):
            assert torch.equal(drive(model, tap), plain)
        steered = by_hand(model, dictionary_of(model), Edit("clamp", 6.0, feature=4))
        assert act.effect == pytest.approx(kl(steered, plain), rel=1e-3)
    assert all("intervention" not in batch.columns for batch in Recorded(tmp_path / "r.mcap").batches)


def test_a_limit_turns_the_operation_down_until_it_fits() -> None:
    model = mlp().eval()
    tap = tapped(model, policy={"max_effect": 0.02})
    with tap:
        plain = drive(model, tap)
        learned(tap, lambda gauge: gauge.discrete)
        with tap.steer(4, clamp=9.0) as act:
            drive(model, tap)
            outputs = [drive(model, tap) for _ in range(10)]
            effects = [kl(output, plain) for output in outputs]
            assert max(effects) <= 0.02 * 1.001  # from the first measured pass on: its own output was replaced
            assert min(effects) > 0.002
            assert act.effect == pytest.approx(effects[-1], rel=1e-3)
            assert tap._steering.listing()[0]["factor"] < 1  # type: ignore[union-attr]
        with tap.steer(4, clamp=9.0, max_effect=0.001):
            drive(model, tap)
            assert kl(drive(model, tap), plain) <= 0.001 * 1.001


def test_continuous_actions_are_compared_in_standard_deviations_of_the_unsteered_agent() -> None:
    model = mlp().eval()
    rng = np.random.default_rng(0)
    tap = tapped(model)
    with tap, torch.inference_mode():
        actions = []
        for _ in range(200):
            observation = rng.normal(size=4).astype(np.float32)
            actions.append(model(torch.from_numpy(observation)[None])[0].numpy().copy())
            tap.step(observation=observation, action=actions[-1])
        learned(tap, lambda gauge: gauge.spread.frames == 200)
        act = tap.steer(4, clamp=6.0)
        for _ in range(3):
            steered = model(torch.from_numpy(OBSERVATION)[None])[0].numpy()
            tap.step(observation=OBSERVATION, action=steered)
        act.release()
        plain = model(torch.from_numpy(OBSERVATION)[None])[0].numpy()
        expected = np.sqrt((((steered - plain) / np.std(actions, axis=0, ddof=1)) ** 2).mean())
        assert act.effect == pytest.approx(float(expected), rel=1e-3)


def test_deviations_are_those_of_all_unsteered_frames_however_they_were_cut() -> None:
    rng = np.random.default_rng(3)
    actions = rng.normal(size=(300, 3)).astype(np.float32) * [1, 10, 0.1] + [0, 1e4, 5]
    steered = rng.random(300) < 0.3
    steered[40:60] = True  # a batch of which nothing is left
    actions[7] = np.nan
    spread = Spread()
    for begin, end in pairwise([0, 1, 2, 40, 60, 200, 300]):
        n = end - begin
        columns = {name: np.zeros(n, dtype) for name, dtype in BASE_COLUMNS.items()}
        columns["action"] = actions[begin:end].astype(np.float32)
        if begin:
            columns["intervention"] = np.where(steered[begin:end], 0, -1).astype(np.int32)[:, None]
        spread.add(FrameBatch("r", "b", "m", begin, 0, columns))
    steered[0] = False
    kept = actions[~steered & np.isfinite(actions).all(1)].astype(np.float32).astype(np.float64)
    found = spread.deviations(3)
    assert spread.frames == len(kept)
    assert found is not None
    assert np.allclose(found.numpy(), kept.std(0, ddof=1), rtol=1e-5)
    assert spread.deviations(2) is None


def test_a_gaussian_policy_and_a_distribution_of_the_users_give_a_kl() -> None:
    for distribution in (None, lambda output: torch.distributions.Normal(output, torch.tensor([0.5, 2.0]))):
        model = mlp().eval()
        if distribution is None:
            model.log_std = nn.Parameter(torch.log(torch.tensor([0.5, 2.0])))
        tap = tapped(model, action_distribution=distribution)
        with tap, torch.inference_mode():
            plain = model(torch.from_numpy(OBSERVATION)[None])
            tap.step(action=plain[0].numpy())
            act = tap.steer(4, clamp=6.0)
            for _ in range(3):
                steered = model(torch.from_numpy(OBSERVATION)[None])
                tap.step(action=steered[0].numpy())
            both = [torch.distributions.Normal(x[0], torch.tensor([0.5, 2.0])) for x in (steered, plain)]
            assert act.effect == pytest.approx(float(torch.distributions.kl_divergence(*both).sum()), rel=1e-3)


def test_measuring_leaves_the_agents_random_numbers_and_counts_alone() -> None:
    class Noisy(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            output: torch.Tensor = super().forward(x)  # type: ignore[no-untyped-call]
            return output + torch.randn(output.shape)

    drawn = []
    for shadow in (False, True):
        torch.manual_seed(0)
        model = Noisy(*mlp()).eval()
        tap = tapped(model)
        with tap:
            drive(model, tap)
            if shadow:
                tap.steer(4, clamp=6.0, shadow=True)
            torch.manual_seed(1)
            drawn.append([drive(model, tap) for _ in range(10)])
            assert tap.status()["extra_forwards"] == 0
    assert all(torch.equal(a, b) for a, b in zip(*drawn, strict=True))


def test_a_limit_that_cannot_be_measured_ends_the_intervention() -> None:
    model = mlp().eval()
    tap = tapped(model, action_distribution=lambda output: 1 / 0)
    with tap:
        plain = drive(model, tap)
        act = tap.steer(4, clamp=6.0, max_effect=0.1)
        drive(model, tap, 2)
        assert not act.active
        assert torch.equal(drive(model, tap), plain)
        with pytest.raises(SteeringError, match="must be above 0"):
            tap.steer(4, clamp=6.0, max_effect=0.0)


def test_the_budget_holds() -> None:
    model = mlp().eval()
    tap = tapped(model, policy={"effect_share": 0.05})
    with tap:
        drive(model, tap, 3)
        tap.steer(4, clamp=6.0)
        drive(model, tap)
        gauge = tap._steering._gauge  # type: ignore[union-attr]
        assert gauge is not None
        for _ in range(5):
            began, measured, spent = time.monotonic_ns(), gauge.measured, gauge.spent_ns
            while gauge.measured == measured:
                drive(model, tap)
            assert gauge._due - began >= (gauge.spent_ns - spent) / 0.05  # the next waits until this one was a twentieth
