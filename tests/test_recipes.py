from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from interlatent_live.analyzer.checkpoint import Checkpoint
from interlatent_live.analyzer.dictionary import load
from interlatent_live.analyzer.effect import Effect
from interlatent_live.analyzer.recipes import RECIPES, JumpReLU, Recipe
from interlatent_live.analyzer.samples import Samples
from interlatent_live.analyzer.training import Progress, Trainer, TrainOptions, train
from interlatent_live.stream.errors import DictionaryError


def samples(episodes: int = 8, frames: int = 150, **changes: Any) -> Samples:
    """Three of twelve sparse causes at a time, seen through a linear map and off centre; the output is another map."""
    rng = np.random.default_rng(0)
    n = episodes * frames
    causes = rng.uniform(1, 2, (n, 12)) * (rng.random((n, 12)) < 0.25)
    maps = np.random.default_rng(99)
    given: dict[str, Any] = {
        "x": causes @ maps.normal(size=(12, 16)) * 3 + 50,
        "y": causes @ maps.normal(size=(12, 10)) * 0.01 - 2,
        "episode": np.repeat(np.arange(episodes), frames),
        "input": "1:out",
        "output": "3:out",
    }
    return Samples(**(given | changes))


def options(recipe: Recipe, **changes: Any) -> TrainOptions:
    given: dict[str, Any] = {"features": 24, "k": 3, "steps": 300, "batch": 64, "dead_steps": 20}
    return TrainOptions(recipe=recipe, **(given | changes))


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("recipe", list(RECIPES))
def test_a_recipe_learns_and_its_artifact_computes_what_was_trained(recipe: Recipe, skip: bool, tmp_path: Path) -> None:
    seen: list[Progress] = []
    trained = train(samples(), options(recipe, skip=skip), progress=seen.append)
    card = trained.card
    assert card is not None
    assert card["fvu"] < 0.3
    assert card["recipe"] == recipe
    assert card["fvu"] < card["baselines"]["random"]["fvu"] or recipe == "relu-l1" or skip
    if recipe != "relu-l1":
        assert 1.5 <= card["l0"] <= 3.6
    # folding the normalisation into the tensors changed nothing
    assert card["fvu"] == pytest.approx(min(p.fvu for p in seen), rel=0.5)
    again = load(trained.save(tmp_path / "d"))
    assert again.hash == trained.hash
    assert again.cfg.skip is skip
    assert ("W_skip" in again.tensors) is skip
    assert ("threshold" in again.tensors) is (recipe in ("batchtopk", "jumprelu"))


def test_every_recipe_names_its_paper() -> None:
    for model in RECIPES.values():
        assert model.__doc__ is not None
        assert re.search(r"arXiv:\d{4}\.\d{5}|Towards Monosemanticity", model.__doc__)


def test_an_sae_reconstructs_its_input() -> None:
    x = samples().x
    sae = train(samples(y=x, output="1:out"), options("topk"))
    assert (sae.cfg.input, sae.cfg.output) == ("1:out", "1:out")
    assert sae.card is not None
    assert sae.card["fvu"] < 0.3


def test_batchtopk_gives_k_on_average_and_more_to_harder_frames() -> None:
    trained = train(samples(), options("batchtopk"))
    counts = trained.codes(samples().x).counts
    assert counts.mean() == pytest.approx(3, rel=0.1)
    assert counts.std() > 0.5


def test_thresholds_feel_the_rectangle_only() -> None:
    model = JumpReLU(torch.eye(3), torch.ones(3, 4), TrainOptions("jumprelu", features=2, k=1, bandwidth=0.2))
    theta = 0.5
    with torch.no_grad():
        model.tensors["log_theta"].fill_(float(np.log(theta)))
    pre = torch.tensor([[0.55, 0.9], [0.45, 0.1]], requires_grad=True)
    f = model.encode(pre)
    assert f.tolist() == [[pytest.approx(0.55), pytest.approx(0.9)], [0, 0]]
    gradient = torch.autograd.grad(f.sum(), [pre, model.tensors["log_theta"]])
    assert gradient[0].tolist() == [[1, 1], [0, 0]]
    # d/d log theta = theta * -(theta / width) for each value within the strip: two in column 0, none in column 1
    assert gradient[1].tolist() == pytest.approx([-2 * theta * theta / 0.2, 0], rel=1e-5)




def test_an_interrupted_run_goes_on_and_ends_with_the_same_bits(tmp_path: Path) -> None:
    for recipe in RECIPES:
        quick = options(recipe, steps=200)
        whole = train(samples(), quick)
        path = tmp_path / f"{recipe}.safetensors"

        def interrupt(progress: Progress) -> None:
            if progress.step == 130:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            train(samples(), quick, progress=interrupt, checkpoint=path)
        assert path.exists()
        seen: list[Progress] = []
        resumed = train(samples(), quick, progress=seen.append, checkpoint=path)
        assert seen[0].step > 100
        assert resumed.hash == whole.hash
        assert not path.exists()


def test_a_checkpoint_of_another_run_is_not_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"

    def interrupt(progress: Progress) -> None:
        if progress.step == 100:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(samples(), options("topk", steps=200), progress=interrupt, checkpoint=path)
    with pytest.raises(DictionaryError, match="other options or data"):
        train(samples(), options("topk", steps=201), checkpoint=path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DictionaryError, match="remove it"):
        Checkpoint(path, "").read()


def test_training_stops_when_validation_no_longer_improves() -> None:
    data = samples(episodes=6, frames=12)  # few frames: soon learned by heart
    stopped = train(data, options("topk", features=64, steps=4000, patience=5, lr=0.02))
    at = stopped.cfg.provenance["stopped_at"]
    assert at is not None
    assert at < 4000
    assert train(data, options("topk", steps=100, patience=0)).cfg.provenance["stopped_at"] is None


def test_the_actions_error_can_enter_the_loss() -> None:
    data = samples()
    head = torch.zeros(10, 1)
    head[3] = 1  # the action is one component of the output
    effect = Effect(lambda y: y @ head, "continuous")

    def error(weight: float) -> float:
        made = train(data, options("topk", k=1, action_weight=weight), effect=effect)
        x, y = torch.from_numpy(data.x), torch.from_numpy(data.y)
        found = effect.agreement(y, made.decode(made.encode_dense(x)))["action_error"]
        assert found is not None
        return found

    assert error(10.0) < 0.8 * error(0.0)


def test_an_error_beyond_the_bound_of_an_action_counts_nothing() -> None:
    effect = Effect(lambda y: y, "continuous", -1.0, 1.0)
    true = torch.tensor([[3.0, 0.5, -2.0, 0.0]])
    found = torch.tensor([[1.5, 1.5, 2.0, 0.0]], requires_grad=True)
    loss = effect.penalty(true, found, 1.0)
    assert float(loss.detach()) == pytest.approx((0 + 1 + 9 + 0) / 4)
    (gradient,) = torch.autograd.grad(loss, [found])
    assert gradient.tolist() == [[0, 0.5, 1.5, 0]]
    measured = effect.agreement(true.repeat(3, 1), found.detach().repeat(3, 1))
    assert measured["action_agreement"] == pytest.approx(0.5)


def test_effect_on_choices_is_kl_and_agreement() -> None:
    effect = Effect(lambda y: y, "discrete")
    true, found = torch.tensor([[0.0, 1.0], [2.0, 0.0]]), torch.tensor([[1.0, 0.0], [2.0, 0.0]])
    measured = effect.agreement(true, found)
    assert measured["action_agreement"] == 0.5
    p = 1 / (1 + np.e)
    assert measured["action_kl"] == pytest.approx(((1 - p) - p) / 2, rel=1e-5)
    assert effect.penalty(true, found, 1.0) == pytest.approx(measured["action_kl"], rel=1e-5)


@pytest.mark.parametrize("device", ["mps:x", "cuda"])
def test_a_device_that_is_not_there_is_refused(device: str) -> None:
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(DictionaryError, match="device is"):
        TrainOptions(device=device)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_training_on_cuda() -> None:
    trained = train(samples(), options("topk", device="cuda"))
    assert trained.card is not None
    assert trained.card["fvu"] < 0.3
    assert trained.W_enc.device.type == "cpu"


def test_more_frames_go_on_from_where_training_stood() -> None:
    quick = options("topk", steps=150)
    trainer = Trainer(samples(), quick)
    trainer.run(samples(), None)
    first = trainer.dictionary(samples(), name="a", provenance={})
    trainer.run(samples(), None, seed=1, steps=150, rate=quick.rate / 2)
    second = trainer.dictionary(samples(), name="a", provenance={})
    assert second.measure(samples().x, samples().y)[1] < first.measure(samples().x, samples().y)[1]


def test_effect_on_a_value_is_its_mean_absolute_error() -> None:
    y, y_hat = torch.tensor([[1.0, 2.0], [3.0, 5.0]]), torch.tensor([[1.0, 1.0], [3.0, 8.0]])
    effect = Effect(lambda z: z, "discrete", value=lambda z: z.sum(dim=1))
    measured = effect.agreement(y, y_hat)
    assert measured["value_error"] == pytest.approx((1 + 3) / 2)
    assert measured["value_deviation"] == pytest.approx(2.5)
    without = Effect(lambda z: z, "discrete").agreement(y, y_hat)
    assert (without["value_error"], without["value_deviation"]) == (None, None)
