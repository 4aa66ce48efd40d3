"""Why this action: the parts sum, ablation agrees, nothing is disturbed, the budget holds, what cannot be explained is said."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import interlatent_live as il
from interlatent_live.agent_side.attribution import Attributor, Why
from interlatent_live.agent_side.capture import Capture
from interlatent_live.agent_side.heads import tail_of
from interlatent_live.agent_side.points import resolve
from interlatent_live.agent_side.scores import sum_of_parts
from interlatent_live.analyzer.dictionary import Dictionary, DictionaryConfig
from interlatent_live.analyzer.edit import Edit, edited
from interlatent_live.stream.attribution import Attribution
from interlatent_live.stream.errors import DictionaryMismatch, TapError
from interlatent_live.stream.frames import FrameBatch
from interlatent_live.stream.manifest import ActionSpec, Manifest
from interlatent_live.stream.reading import Recording

WIDTH, FEATURES, K = 8, 16, 4
LATE = 1 << 60
"""A clock that is later than this host's."""
OFTEN: dict[str, Any] = {"rate_hz": 1e6, "share": 1.0}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Several threads of torch wait for each other on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def dictionary(point: str, width: int = WIDTH, *, skip: bool = False) -> Dictionary:
    generator = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * 0.4

    cfg = DictionaryConfig("test", "topk", width, width, FEATURES, point, point, k=K, skip=skip)
    tensors = {"W_enc": draw(width, FEATURES), "b_enc": draw(FEATURES), "W_dec": draw(FEATURES, width), "b_dec": draw(width)}
    return Dictionary(cfg, tensors | ({"W_skip": draw(width, width)} if skip else {}))


def stack(*hidden: nn.Module, actions: int = 3) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, WIDTH), nn.Tanh(), *hidden, nn.Linear(WIDTH, actions)).eval()


class Wrapped(nn.Module):
    """A policy whose way from layer to action no class tells."""

    def __init__(self, layers: nn.Sequential) -> None:
        super().__init__()
        self.first, self.rest = layers[:2], layers[2:]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.rest(self.first(x)) + 0.0
        return scores


def observations(steps: int, envs: int = 1) -> torch.Tensor:
    return torch.randn(steps, envs, 4, generator=torch.Generator().manual_seed(1))


def explained(folder: Path, model: nn.Module, points: list[str], why: Why, steps: int = 40, **options: Any) -> list[Attribution]:
    """What a tap says of some steps, in inference mode as agents act."""
    path = folder / f"r{len(list(folder.iterdir()))}.mcap"
    options = {"action_names": ("a", "b", "c")} | options
    with il.Tap(model, points, run="agent", endpoint="", record=path, why=why, **options) as tap:
        for x in observations(steps):
            with torch.inference_mode():
                action = int(model(x).argmax())
            tap.step(observation=x.numpy()[0], action=action, reward=1.0)
    return [m for m in Recording(path).messages() if isinstance(m, Attribution)]


@pytest.mark.parametrize("skip", [False, True])
def test_on_a_linear_rest_the_parts_sum_to_the_logits_and_ablation_does_what_they_say(tmp_path: Path, skip: bool) -> None:
    model: Any = stack()
    d = dictionary("1:out", skip=skip)
    found = explained(tmp_path, model, ["1:out"], Why(d, **OFTEN))
    assert found
    for m in found:
        x = observations(40)[m.step]
        with torch.inference_mode():
            y = model[:2](x)
            logits = model(x)[0]
        assert (m.kind, m.names, m.chosen) == ("logits", ("a", "b", "c"), int(logits.argmax()))
        np.testing.assert_allclose(m.total, logits.numpy(), atol=1e-6)
        np.testing.assert_allclose(sum_of_parts(m), m.total, atol=1e-6)
        np.testing.assert_allclose(m.rest, model[-1].bias.detach().numpy(), atol=1e-6)
        assert len(m.features) <= K
        for i, feature in enumerate(m.features):
            with torch.inference_mode():
                without = model[2:](edited(d, [Edit("ablate", feature=int(feature))], y, y))[0]
            np.testing.assert_allclose(m.contributions[i], (logits - without).numpy(), atol=1e-5)


def test_three_ways_of_computing_agree_and_first_order_is_what_autograd_says() -> None:
    layers = stack(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.Tanh())
    wrapped, d = Wrapped(layers).eval(), dictionary("1:out")
    ways = [
        (attributor(Why(d, **OFTEN), layers, ["1:out"]), layers),
        (attributor(Why(d, **OFTEN), layers, ["1:out"], "changing"), layers),
        (attributor(Why(dictionary("first.1:out"), **OFTEN), wrapped, ["first.1:out"]), wrapped),
    ]
    for seq in range(10):
        for one, model in ways:
            seal(one, model, observations(10)[seq], seq, LATE + (seq << 40))
    by_step = [{m.step: m for m in one.drain()} for one, _ in ways]
    assert [len(found) for found in by_step] == [10, 10, 5], "running again takes a step to be ready"
    for step in by_step[2]:
        first, *others = (found[step] for found in by_step)
        y = layers[:2](observations(10)[step]).detach()
        jacobian: Any = torch.autograd.functional.jacobian(  # type: ignore[no-untyped-call]
            lambda v: layers[2:](v)[0], y
        )
        wanted = torch.from_numpy(first.values.copy())[:, None] * (d.W_dec[first.features.tolist()] @ jacobian[:, 0].T)
        np.testing.assert_allclose(first.contributions, wanted.detach().numpy(), atol=1e-5)
        for other in others:
            assert other.features.tolist() == first.features.tolist()
            for name in ("total", "bias", "error", "rest", "contributions"):
                np.testing.assert_allclose(getattr(other, name), getattr(first, name), atol=1e-5)


class Awkward(nn.Module):
    """All that running again could disturb: running statistics, random draws, a counter, a state of its own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(4, WIDTH)
        self.norm = nn.BatchNorm1d(WIDTH)
        self.last = nn.Linear(WIDTH, 3)
        self.drop = nn.Dropout(0.2)
        self.calls = 0
        self.state = torch.zeros(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.state += 1
        hidden = torch.tanh(self.norm(self.first(x)))
        scores: torch.Tensor = self.last(self.drop(hidden))
        return scores


@pytest.mark.parametrize("mode", ["inference", "no_grad", "grad"])
def test_nothing_is_disturbed_over_5000_steps(mode: str) -> None:
    def live(why: Why | None, steps: int) -> tuple[Any, ...]:
        model = Awkward().train()
        counted: list[int] = []
        model.last.register_forward_hook(lambda *_: counted.append(1))
        torch.manual_seed(7)
        grad = {"inference": torch.inference_mode, "no_grad": torch.no_grad, "grad": torch.enable_grad}[mode]
        actions = []
        tap = il.Tap(model, ["norm:out"], run="agent", endpoint="", why=why, num_envs=4, action_names=("a", "b", "c"))
        with tap:
            for x in observations(steps, 4):
                with grad():
                    scores = model(x)
                    action = torch.multinomial(scores.detach().softmax(dim=1), 1)[:, 0]
                actions.append(action.numpy().copy())
                tap.step(observation=x.numpy(), action=action.numpy(), reward=np.ones(4))
                assert torch.is_grad_enabled()
                assert not torch.is_inference_mode_enabled()
            status = tap.status()
        state = {name: value.clone() for name, value in model.state_dict().items()}
        assert all(p.grad is None for p in model.parameters())
        assert all(module.training for module in model.modules())
        return np.stack(actions), state, torch.get_rng_state(), model.calls, float(model.state), len(counted), status

    steps = 5000 if mode == "inference" else 500
    plain, told = live(None, steps), live(Why(dictionary("norm:out"), **OFTEN), steps)
    assert told[-1]["why_frames"] > 5
    assert (plain[0] == told[0]).all(), "the same actions, bit for bit"
    assert all(torch.equal(plain[1][name], told[1][name]) for name in plain[1])
    assert torch.equal(plain[2], told[2])
    assert plain[3:6] == told[3:6]


def attributor(why: Why, model: nn.Module, points: list[str], weights: str = "frozen", said: list[str] | None = None) -> Attributor:
    capture = Capture(resolve(model, points), 1)
    capture.attach()
    found = Attributor(why, "agent", "b0", capture, (said if said is not None else []).append)
    manifest = Manifest(
        run="agent", boot="b0", started_wall_ns=0, started_monotonic_ns=0, action=ActionSpec("discrete", (), ("a", "b", "c"))
    )
    found.begin(model, weights, "", lambda: manifest)
    return found


def seal(one: Attributor, model: nn.Module, x: torch.Tensor, seq: int, clock: int, action: Any = 0) -> None:
    with torch.inference_mode():
        model(x)
    capture = one._capture
    kept = tuple(capture.slots)
    capture.slots[:] = [None] * len(kept)
    if clock >= one.due_ns:
        one.consider(seq, seq, clock, clock, kept, action, None)


@pytest.mark.parametrize("way", ["beside", "on the thread", "again"])
def test_what_was_spent_is_waited_for(way: str) -> None:
    layers = stack(nn.Linear(WIDTH, WIDTH), nn.Tanh())
    model: nn.Module = Wrapped(layers) if way == "again" else layers
    point = "first.1:out" if way == "again" else "1:out"
    one = attributor(Why(dictionary(point), rate_hz=1e6, share=0.01), model, [point], "frozen" if way == "beside" else "changing")
    assert one.beside == (way == "beside")
    clock = one.due_ns
    for seq in range(6):
        seal(one, model, observations(6)[seq], seq, clock)
        spent = 0 if not one._costs_ns else one._costs_ns[-1]
        found = list(one.drain())
        if way == "again" and not found:
            assert one.due_ns == 0, "the next step is waited for, without a cost"
            continue
        if way == "beside":  # its cost is known once the sender has done it, and counts from then on
            assert one._interval_ns >= one._costs_ns[-1] / 0.01
        else:
            assert one.due_ns - clock >= spent / 0.01
        clock = max(one.due_ns, clock)
    status = one.status()
    assert status["why_frames"] > 1
    assert status["why_us_median"] > 0
    assert not {name for name, value in status.items() if math.isnan(value)}


def test_the_rate_is_a_limit_too() -> None:
    model = stack()
    one = attributor(Why(dictionary("1:out"), rate_hz=5.0, share=1.0), model, ["1:out"])
    clock = one.due_ns
    for seq in range(100):  # 50 steps a second
        seal(one, model, observations(100)[seq], seq, clock + seq * 20_000_000)
    assert len(list(one.drain())) <= 10
    assert len(one._agent_ns) == 10


def test_large_action_spaces_show_the_chosen_and_the_best() -> None:
    model = stack(actions=200)
    one = attributor(Why(dictionary("1:out"), **OFTEN), model, ["1:out"])
    seal(one, model, observations(1)[0], 0, one.due_ns, action=150)
    (found,) = one.drain()
    assert (found.action_count, found.chosen, len(found.names)) == (200, 150, 8)
    scores = model(observations(1)[0])[0].detach().numpy()
    assert set(found.actions.tolist()) == {150, *np.argsort(-scores)[:7].tolist()}
    np.testing.assert_allclose(found.total, scores[found.actions], atol=1e-6)
    np.testing.assert_allclose(sum_of_parts(found), found.total, atol=1e-5)


class Deciding(nn.Module):
    """Gives the action itself, not its score."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = stack()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        actions: torch.Tensor = self.layers(x).argmax(dim=1) + 0
        return actions


class Guarded(Deciding):
    """Scores that no gradient reaches."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            scores: torch.Tensor = (self.layers(x) > 0).float()
        return scores


@pytest.mark.parametrize(("model", "reason"), [(Deciding(), "actions and not their scores"), (Guarded(), "differentiable")])
def test_what_cannot_be_explained_is_said_once_and_left_alone(model: nn.Module, reason: str) -> None:
    said: list[str] = []
    one = attributor(Why(dictionary("layers.1:out"), **OFTEN), model, ["layers.1:out"], said=said)
    for seq in range(10):
        seal(one, model, observations(10)[seq], seq, LATE)
    assert list(one.drain()) == []
    assert len(said) == 1
    assert reason in said[0]
    assert one.status()["why_failures"] == 1
    assert not one._handles


class Keeping(Deciding):
    """Gives the action, and keeps its scores."""

    scores: Any = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.scores = self.layers(x)
        actions: torch.Tensor = self.scores.argmax(dim=1)
        return actions


def test_scores_may_be_told() -> None:
    model = Keeping()
    one = attributor(Why(dictionary("layers.1:out"), scores=lambda _: model.scores, **OFTEN), model, ["layers.1:out"])
    for seq in range(4):
        seal(one, model, observations(4)[seq], seq, LATE)
    found = list(one.drain())
    assert found
    np.testing.assert_allclose(found[0].total, model.layers(observations(4)[found[0].seq])[0].detach().numpy(), atol=1e-6)


def test_a_policy_that_draws_at_random_is_not_explained_by_another_draw() -> None:
    said: list[str] = []

    class Noisy(Wrapped):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x + torch.randn(x.shape))

    model = Noisy(stack())
    one = attributor(Why(dictionary("first.1:out"), **OFTEN), model, ["first.1:out"], said=said)
    for seq in range(6):
        seal(one, model, observations(6)[seq], seq, LATE)
    assert list(one.drain()) == []
    assert "draws at random" in said[0]


def test_nan_has_no_attribution() -> None:
    model = stack()
    one = attributor(Why(dictionary("1:out"), **OFTEN), model, ["1:out"])
    seal(one, model, torch.full((1, 4), math.nan), 0, LATE)
    assert list(one.drain()) == []
    assert one.status()["why_failures"] == 1
    seal(one, model, torch.zeros(1, 4), 1, LATE + (1 << 40))
    assert len(list(one.drain())) == 1, "and the next frame has one"


def test_one_of_several_environments(tmp_path: Path) -> None:
    model, path = stack(), tmp_path / "r.mcap"
    why = Why(dictionary("1:out"), env=2, **OFTEN)
    with il.Tap(model, ["1:out"], run="agent", endpoint="", record=path, why=why, num_envs=4) as tap:
        for step, x in enumerate(observations(20, 4)):
            with torch.inference_mode():
                scores = model(x)
            valid = np.array([step % 3 != 0, True, step % 5 != 0, True])
            tap.step(observation=x.numpy(), action=scores.argmax(dim=1).numpy(), reward=np.ones(4), valid=valid)
    messages = list(Recording(path).messages())
    batches = [m for m in messages if isinstance(m, FrameBatch)]
    env = {int(s): int(e) for m in batches for s, e in zip(m.seq, m.columns["env"], strict=True)}
    found = [m for m in messages if isinstance(m, Attribution)]
    assert found
    for m in found:
        assert m.env == env[m.seq] == 2
        assert m.step % 5
        np.testing.assert_allclose(m.total, model(observations(20, 4)[m.step])[2].detach(), atol=1e-6)


def test_a_dictionary_that_does_not_belong_is_refused_or_said(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(DictionaryMismatch, match=r"3:out.*tap both"), il.Tap(stack(), ["1:out"], endpoint="", why=Why(dictionary("3:out"))):
        pass
    cfg = DictionaryConfig("test", "topk", WIDTH, WIDTH, FEATURES, "1:out", "1:out", k=K, model_hash="ab" * 32)
    foreign = Dictionary(cfg, dictionary("1:out").tensors)
    with pytest.raises(DictionaryMismatch, match="weights abababababab"), il.Tap(stack(), ["1:out"], endpoint="", why=Why(foreign)):
        pass
    with caplog.at_level(logging.WARNING), il.Tap(stack(), ["1:out"], endpoint="", why=Why(foreign, strict=False)) as tap:
        tap.step(observation=np.zeros(4))
    assert "no action is explained" in caplog.text


@pytest.mark.parametrize(
    ("options", "said"),
    [({"rate_hz": 0}, "rate_hz is 0"), ({"share": 1.5}, "share is 1.5"), ({"kind": "mood"}, "mood"), ({"env": -1}, "env is -1")],
)
def test_settings_that_make_no_sense(options: dict[str, Any], said: str) -> None:
    with pytest.raises(TapError, match=said):
        Why(dictionary("1:out"), **options)
    with pytest.raises(TapError, match="no model"):
        il.Tap(None, endpoint="", why=Why(dictionary("1:out")))


def test_the_rest_of_stable_baselines3s_policies_is_known() -> None:
    gymnasium = pytest.importorskip("gymnasium")
    sb3 = pytest.importorskip("stable_baselines3")
    discrete, continuous = gymnasium.make("CartPole-v1"), gymnasium.make("Pendulum-v1")

    def kept(model: nn.Module, point: str, call: Any) -> tuple[torch.Tensor, Any]:
        seen: list[torch.Tensor] = []
        handle = model.get_submodule(point).register_forward_hook(lambda _m, _a, out: seen.append(out.detach().clone()))
        result = call()
        handle.remove()
        return seen[-1], result

    def scores(model: nn.Module, point: str, y: torch.Tensor) -> tuple[torch.Tensor, str]:
        tail = tail_of(model, f"{point}:out")
        assert tail is not None
        for stage in tail.stages:
            y = stage(y)
        return y.detach(), tail.kind

    for env, kind in ((discrete, "logits"), (continuous, "means")):
        policy = sb3.PPO("MlpPolicy", env, device="cpu").policy
        observation = torch.randn(1, *env.observation_space.shape)
        y, given = kept(policy, "mlp_extractor.policy_net.1", lambda p=policy, o=observation: p.get_distribution(o).distribution)
        found, said = scores(policy, "mlp_extractor.policy_net.1", y)
        assert said == kind
        told = (found.log_softmax(dim=1), given.logits) if kind == "logits" else (found, given.mean)
        torch.testing.assert_close(*told)
    policy = sb3.DQN("MlpPolicy", discrete, device="cpu", buffer_size=10).policy
    observation = torch.randn(1, 4)
    y, given = kept(policy, "q_net.q_net.1", lambda: policy.q_net(observation))
    found, said = scores(policy, "q_net.q_net.1", y)
    assert said == "q"
    torch.testing.assert_close(found, given)
    for algorithm, point in ((sb3.SAC, "actor.latent_pi.1"), (sb3.TD3, "actor.mu.1")):
        policy = algorithm("MlpPolicy", continuous, device="cpu", buffer_size=10).policy
        observation = torch.randn(1, 3)
        y, given = kept(policy, point, lambda p=policy, o=observation: p._predict(o, deterministic=True))
        found, said = scores(policy, point, y)
        assert said == "means"
        torch.testing.assert_close(found, given)
    assert tail_of(policy, "critic.qf0.1:out") is None
