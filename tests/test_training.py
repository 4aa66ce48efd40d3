from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from interlatent_live.analyzer.card import judge, quantiles
from interlatent_live.analyzer.dictionary import load
from interlatent_live.analyzer.recipes import make_model
from interlatent_live.analyzer.samples import Samples, samples_of
from interlatent_live.analyzer.training import Progress, TrainOptions, train, train_recording
from interlatent_live.stream.errors import DictionaryError
from interlatent_live.stream.frames import BASE_COLUMNS, FrameBatch
from interlatent_live.stream.manifest import Manifest, TapPointSpec
from interlatent_live.stream.reading import Recording
from interlatent_live.stream.recording import Recorder

Array = npt.NDArray[Any]
QUICK = TrainOptions(features=24, k=3, steps=300, batch=128, dead_steps=20)


def arrays(episodes: int = 8, frames: int = 150, seed: int = 0) -> tuple[Array, Array, Array]:
    """Three of twelve sparse causes at a time, seen through a linear map and off centre; the output is another map."""
    rng = np.random.default_rng(seed)
    n = episodes * frames
    causes = rng.uniform(1, 2, (n, 12)) * (rng.random((n, 12)) < 0.25)
    maps = np.random.default_rng(99)
    x = causes @ maps.normal(size=(12, 16)) * 3 + 50
    y = causes @ maps.normal(size=(12, 10)) * 0.01 - 2
    return x.astype(np.float32), y.astype(np.float32), np.repeat(np.arange(episodes), frames)


def samples(**changes: Any) -> Samples:
    x, y, episode = arrays()
    given: dict[str, Any] = {"x": x, "y": y, "episode": episode, "input": "1:out", "output": "3:out", "model_hash": "w"}
    return Samples(**(given | changes))


def write(path: Path, *, points: tuple[str, ...] = ("1:out", "3:out"), episodes: int = 4, empty: bool = False) -> Path:
    x, y, episode = arrays(episodes)
    specs = (TapPointSpec("1:out", "float32", (4, 4)), TapPointSpec("3:out", "float32", (10,)))
    manifest = Manifest(
        "r", "b", 0, 0, tap_points=tuple(s for s in specs if s.name in points), weights_hash="w", step_period_s=0.02
    )
    recorder = Recorder(path)
    recorder.write(manifest)
    for begin in range(0, 0 if empty else len(x), 32):
        part = slice(begin, min(begin + 32, len(x)))
        rows = part.stop - part.start
        columns = {name: np.zeros(rows, dtype) for name, dtype in BASE_COLUMNS.items()}
        columns["episode"] = episode[part].astype(np.int32)
        columns["monotonic_ns"] = np.arange(part.start, part.stop) * 20_000_000
        kept = np.arange(1, rows, dtype=np.int32)  # the first row of each batch ran no forward in layer 3
        activations = {"1:out": x[part].reshape(rows, 4, 4), "3:out": y[part][kept]}
        recorder.write(FrameBatch("r", "b", manifest.hash, begin, 0, columns, activations, {"3:out": kept}))
    recorder.close()
    return path


def test_topk_learns_and_its_card_agrees_with_an_oracle() -> None:
    data = samples()
    dictionary = train(data, QUICK, name="t")
    card = dictionary.card
    assert card is not None
    _, held = data.split(QUICK.held_out, QUICK.seed)
    with torch.inference_mode():
        y_hat = dictionary.decode(dictionary.encode_dense(torch.from_numpy(held.x))).double().numpy()
    y = held.y.astype(np.float64)
    expected = ((y - y_hat) ** 2).sum() / ((y - y.mean(axis=0)) ** 2).sum()
    assert card["fvu"] == pytest.approx(expected, rel=1e-4)
    assert card["fvu"] < 0.7 * card["baselines"]["pca"]["fvu"]
    assert card["fvu"] < card["baselines"]["random"]["fvu"]
    assert card["baselines"]["mean"]["fvu"] == pytest.approx(1, abs=0.1)
    assert card["l0"] == 3
    assert 0 <= card["dead_share"] < 0.5
    np.testing.assert_allclose(dictionary.W_dec.norm(dim=1).numpy(), 1, rtol=1e-5)
    fit, _ = data.split(QUICK.held_out, QUICK.seed)[0].split(0.1, QUICK.seed)
    np.testing.assert_allclose(dictionary.tensors["mean_out"].numpy(), fit.y.mean(axis=0, dtype=np.float64), rtol=1e-5)


def test_relu_l1_learns_and_more_l1_means_fewer_latents() -> None:
    cards = [
        train(samples(), TrainOptions(recipe="relu-l1", features=24, steps=300, batch=128, l1=l1)).card for l1 in (1e-4, 0.1)
    ]
    assert cards[0] is not None
    assert cards[1] is not None
    assert cards[0]["fvu"] < 0.2
    assert cards[1]["l0"] < cards[0]["l0"]
    assert cards[0]["k"] is None


def test_the_same_seed_gives_the_same_dictionary_on_any_number_of_threads() -> None:
    quick = TrainOptions(features=16, k=2, steps=40, batch=64)
    first = train(samples(), quick)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert train(samples(), quick).hash == first.hash
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    other = TrainOptions(features=16, k=2, steps=40, batch=64, seed=1)
    assert train(samples(), other).hash != first.hash


def test_auxk_gives_a_gradient_to_latents_that_are_silent_everywhere() -> None:
    x, y, _ = arrays()
    inputs, outputs = torch.from_numpy(x - x.mean(axis=0)), torch.from_numpy(y - y.mean(axis=0))
    model = make_model(inputs, outputs, TrainOptions(features=24, k=3, dead_steps=20))
    with torch.no_grad():
        model.tensors["b_enc"][:5] = -1e6
    for silent, moved in ((0, False), (21, True)):
        model.silent[:] = 0
        model.silent[:5] = silent
        (gradient,) = torch.autograd.grad(model.loss(inputs, outputs), [model.tensors["W_enc"]])
        assert bool(gradient[:, :5].any()) is moved


def test_progress_is_reported() -> None:
    seen: list[Progress] = []
    train(samples(), TrainOptions(features=16, k=2, steps=50, batch=64), progress=seen.append)
    assert (seen[0].step, seen[-1].step, seen[-1].steps) == (1, 50, 50)
    assert seen[-1].fvu < seen[0].fvu
    assert all(np.isfinite([p.loss, p.fvu, p.l0, p.dead]).all() for p in seen)


def test_episodes_are_held_out_whole() -> None:
    fit, held = samples().split(0.25, 3)
    assert not set(fit.episode.tolist()) & set(held.episode.tolist())
    assert (fit.episodes, held.episodes) == (6, 2)
    assert fit.frames + held.frames == samples().frames
    assert {samples().split(0.001, 0)[1].episodes, samples().split(0.999, 0)[0].episodes} == {1}


def test_quantiles_are_of_one_second_windows() -> None:
    data = samples(step_period_s=0.1)
    dictionary = train(data, TrainOptions(features=16, k=2, steps=20, batch=64))
    fit, held = data.split(0.2, 0)
    card = judge(dictionary, held, fit)
    q = card["quantiles"]["fvu"]
    assert q["q001"] <= q["q01"] <= q["q50"] <= q["q99"] <= q["q999"]
    _, sse, sst = dictionary.measure(held.x[:10], held.y[:10])
    assert sst is not None
    assert q["q001"] <= sse / sst <= q["q999"] * 1.2
    assert quantiles(np.array([np.nan])) == dict.fromkeys(("q001", "q01", "q50", "q99", "q999"))


@pytest.mark.parametrize(("changes", "message"), [
    ({"episode": np.zeros(1200, int)}, "1 episode"),
    ({"x": np.full((1200, 16), 3.0)}, "1:out is the same"),
    ({"y": np.full((1200, 10), 3.0)}, "3:out is the same"),
    ({"x": np.zeros((0, 16)), "y": np.zeros((0, 10)), "episode": np.zeros(0, int)}, "no frame"),
    ({"x": np.zeros((1200, 16, 1))}, "shapes"),
    ({"y": np.zeros((1199, 10))}, "shapes"),
])
def test_data_that_teach_nothing_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DictionaryError, match=message):
        train(samples(**changes), QUICK)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_non_finite_data_are_refused(value: float) -> None:
    _, y, _ = arrays()
    y[7, 3] = value
    with pytest.raises(DictionaryError, match="1 of 1200 frames at 3:out"):
        samples(y=y)


@pytest.mark.parametrize("changes", [
    {"recipe": "gelu"}, {"features": 0}, {"k": 0}, {"k": 300}, {"steps": 0}, {"held_out": 1.0}, {"l1": -1.0},
    {"lr": 0.0}, {"lr": float("nan")}, {"lr": 1e3}, {"batch": 0},
])  # fmt: skip
def test_options_that_cannot_be_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(DictionaryError):
        TrainOptions(**changes)


def test_training_that_diverges_says_so() -> None:
    with pytest.raises(DictionaryError, match="diverged"):
        train(samples(), TrainOptions("relu-l1", features=8, steps=30, batch=64, l1=1e300))


def test_from_a_recording_to_an_artifact(tmp_path: Path) -> None:
    recording = write(tmp_path / "r.mcap")
    out = tmp_path / "d"
    card = train_recording(
        recording, out, input_point="1:out", output_point="3:out", features=16, k=2, steps=60, seed=5
    )
    dictionary = load(out)
    assert dictionary.card == card
    assert dictionary.hash == card["hash"]
    cfg = dictionary.cfg
    assert (cfg.input, cfg.output, cfg.d_in, cfg.d_out, cfg.model_hash) == ("1:out", "3:out", 16, 10, "w")
    assert cfg.provenance["seed"] == 5
    assert card["command"] == (
        "interlatent-live dict train r.mcap --input 1:out --output 3:out --recipe topk --features 16 --k 2 "
        "--steps 60 --seed 5 --out d"
    )
    wanted = {
        "hash", "recipe", "features", "k", "l0", "fvu", "dead_share", "action_agreement", "action_error",
        "return_recovery", "baselines",
    }  # fmt: skip
    assert wanted <= set(card)
    with pytest.raises(DictionaryError, match="exists"):
        train_recording(recording, out, input_point="1:out")


def test_samples_of_a_recording_pair_the_rows_that_fired(tmp_path: Path) -> None:
    x, y, episode = arrays(4)
    fired = np.arange(len(x)) % 32 != 0
    found = samples_of(Recording(write(tmp_path / "r.mcap")), "1:out", "3:out")
    np.testing.assert_array_equal(found.x, x[fired])
    np.testing.assert_array_equal(found.y, y[fired])
    np.testing.assert_array_equal(found.episode, episode[fired])
    assert (found.frames_a_second, found.source, found.model_hash) == (50, "r.mcap", "w")
    bounded = samples_of(Recording(tmp_path / "r.mcap"), "1:out", "3:out", max_frames=100)
    assert (bounded.frames, bounded.unused) == (100, found.frames - 100)
    sae = samples_of(Recording(tmp_path / "r.mcap"), "1:out")
    assert sae.output == "1:out"
    assert sae.frames == len(x)


def test_a_recording_without_the_point_or_without_frames_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DictionaryError, match=r"no tap point '2:out'; it has 1:out, 3:out"):
        samples_of(Recording(write(tmp_path / "a.mcap")), "2:out")
    with pytest.raises(DictionaryError, match="no frame"):
        samples_of(Recording(write(tmp_path / "b.mcap", empty=True)), "1:out")
    with pytest.raises(DictionaryError, match="1 episode"):
        train_recording(write(tmp_path / "c.mcap", episodes=1), tmp_path / "d", input_point="1:out")
    assert not (tmp_path / "d").exists()
