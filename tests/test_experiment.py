"""Experiments find a planted cause and no other, tell luck from effect, and go on where they were stopped."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from interlatent_live.analyzer.ablation import AblateOptions, ablate
from interlatent_live.analyzer.candidates import neuron_dictionary
from interlatent_live.analyzer.causal import effects_of, load_effects, save_effects
from interlatent_live.analyzer.dictionary import Dictionary
from interlatent_live.analyzer.effect import Effect
from interlatent_live.analyzer.experiment import SteerOptions, planned, steer
from interlatent_live.analyzer.experiment_page import as_html
from interlatent_live.analyzer.rollout import Splice
from interlatent_live.analyzer.trial import Trial
from interlatent_live.stream.errors import DictionaryError, DictionaryMismatch

WIDTH, STEPS = 6, 12
PLANTED = 2
SMALL = SteerOptions(episodes=60, look=4, first=4, rounds=2, directions=4, others=3)


class Outcome:
    name, unit, description = "return", "", "sum of the rewards of an episode"
    whole: float | None = None


class Toy:
    """Activations are the seed's own. The return is feature PLANTED's sum, or luck that no feature controls."""

    agent, input, output, model_hash, step_period_s = "toy", "0:out", "0:out", "weights", 0.1
    outcome = Outcome()

    def __init__(self, *, luck: bool = False, stop_after: int | None = None) -> None:
        self.luck, self.stop_after, self.done = luck, stop_after, 0
        self.effect = Effect(lambda y: y[:, :2], "discrete")  # the action depends on features 0 and 1

    def trial(self, splice: Splice | None, seeds: Sequence[int], *, max_steps: int | None = None, keep: bool = False) -> Trial:
        if self.stop_after is not None and self.done >= self.stop_after:
            raise KeyboardInterrupt
        self.done += 1
        x = torch.cat([torch.rand(STEPS, WIDTH, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
        y = x if splice is None else splice(x, x)
        if self.luck:  # whatever changes the activations draws another number, of the same distribution
            bits = y.double().reshape(len(seeds), STEPS, WIDTH).sum(1).numpy().view(np.uint64).tolist()
            total = np.array([np.random.default_rng([seed, *row]).normal(10, 2) for seed, row in zip(seeds, bits, strict=True)])
        else:
            total = y[:, PLANTED].double().reshape(len(seeds), STEPS).sum(1).numpy()
        n, nothing = len(seeds), np.empty((0, 0), np.float32)
        return Trial(
            np.array(seeds), total, total, np.full(n, STEPS), np.zeros(n, np.bool_), x.numpy() if keep else nothing,
            x.numpy() if keep else nothing, np.repeat(np.arange(n), STEPS) if keep else np.empty(0, np.int64),
        )  # fmt: skip


@pytest.fixture
def dictionary() -> Dictionary:
    return neuron_dictionary("0:out", WIDTH, "weights")


def test_a_planted_cause_is_found_with_its_size_and_its_controls(dictionary: Dictionary) -> None:
    found = steer(Toy(), dictionary, SMALL)
    best = found["best"]
    assert (best["feature"], best["operation"], best["strength"]) == (PLANTED, "scale", 5.0)
    effect = found["effect_percent"]
    assert effect["mean"] == pytest.approx(400.0, rel=1e-5)  # five times as much
    assert effect["n"] == 60
    controls = found["controls"]
    assert controls["wrong_sign"]["mean"] == pytest.approx(-400.0, rel=1e-5)
    assert controls["other"]["mean"] == 0.0
    assert controls["other"]["arms"] == 3
    assert len(controls["random"]["each"]) == 4
    assert max(abs(e) for e in controls["random"]["each"]) < 400
    assert found["p_holm"] < 0.01
    assert [f["p_holm"] >= f["p"] for f in found["finalists"]] == [True] * 4
    by_dose = {p["dose"]: p["effect_percent"]["mean"] for p in found["dose_response"]}
    assert by_dose[1.0] == 0.0
    assert by_dose[0.0] == pytest.approx(-100.0)
    assert by_dose[2.0] == pytest.approx(100.0, rel=1e-5)


def test_lowering_is_a_goal_too(dictionary: Dictionary) -> None:
    found = steer(Toy(), dictionary, SteerOptions(episodes=10, goal="lower", look=2, first=2, rounds=1, directions=1, others=0))
    assert found["best"]["feature"] == PLANTED
    assert found["effect_percent"]["high"] < 0
    assert found["controls"]["other"]["mean"] is None


def test_one_thing_can_be_tried_alone(dictionary: Dictionary) -> None:
    only = SteerOptions(
        episodes=10, look=2, first=2, rounds=1, directions=1, others=2, doses=2, features=(0, PLANTED), tries=(("add", 0.5), ("scale", 2.0))
    )
    found = steer(Toy(), dictionary, only)
    assert found["search"]["candidates"] == 4
    assert found["best"] == {"feature": PLANTED, "operation": "scale", "strength": 2.0, "dose": 2.0}
    assert len(found["controls"]["other"]["features"]) == 2
    assert PLANTED not in found["controls"]["other"]["features"]
    with pytest.raises(DictionaryError, match=r"scale:1\.5"):
        SteerOptions(tries=(("double", 1.0),))  # type: ignore[arg-type]


def test_luck_wins_the_search_and_not_the_confirmation(dictionary: Dictionary) -> None:
    found = steer(Toy(luck=True), dictionary, SMALL)
    first = found["finalists"][0]
    assert first["searched_percent"] > 3  # the best of 84 candidates looks good
    assert found["effect_percent"]["low"] < 0 < found["effect_percent"]["high"]
    assert min(f["p_holm"] for f in found["finalists"]) > 0.05


def test_search_and_confirmation_share_no_seed(dictionary: Dictionary) -> None:
    found = steer(Toy(), dictionary, SMALL)
    (a, b), (c, d) = found["search"]["seeds"], found["confirmation"]["seeds"]
    assert b < c or d < a
    other = SteerOptions(episodes=50_000, seed=1)
    assert set(SteerOptions(episodes=50_000).seeds(0, 50_000)).isdisjoint(other.seeds(0, 50_000))


def test_an_interrupted_experiment_goes_on_and_ends_the_same(dictionary: Dictionary, tmp_path: Path) -> None:
    state = tmp_path / "folder" / "state.jsonl"
    whole = Toy()
    expected = steer(whole, dictionary, SMALL)
    with pytest.raises(KeyboardInterrupt):
        steer(Toy(stop_after=30), dictionary, SMALL, state=state)
    with state.open("a") as file:
        file.write('{"arm": "torn')
    again = Toy()
    ticks: list[int] = []
    found = steer(again, dictionary, SMALL, state=state, tick=ticks.append)
    assert json.dumps(found) == json.dumps(expected)
    assert again.done == whole.done - 29  # all but the look, which is always run
    assert sum(ticks) <= planned(SMALL, WIDTH)
    with pytest.raises(DictionaryError, match="another experiment"):
        steer(Toy(), dictionary, SteerOptions(episodes=61, look=4, first=4, rounds=2), state=state)


def test_ablation_tells_what_moves_the_action_from_what_moves_the_return(dictionary: Dictionary, tmp_path: Path) -> None:
    found = ablate(Toy(), dictionary, AblateOptions(episodes=40, look=20), action_names=("left", "right"), command="a test")
    rows = found["features"]
    assert list(rows)[:2] in (["0", "1"], ["1", "0"])
    assert rows["0"]["action"]["toward"] in ("left", "right")
    for feature, row in rows.items():
        moves, pays = feature in ("0", "1"), feature == str(PLANTED)
        assert (row["action"]["mean"] > 0.001) == moves
        assert (row["action"]["q"] < 0.05) == moves
        assert (row["return"]["q"] < 0.05) == pays
        assert row["return"]["mean"] == pytest.approx(-100.0 if pays else 0.0, abs=1e-6)
    assert found["found"] == {"action": 2, "return": 1}
    assert found["prediction"]["action"]["mean"] > 0.5
    path = tmp_path / "effects.json"
    save_effects(path, found)
    loaded = load_effects(path)
    assert (loaded.dictionary_hash, loaded.agent, loaded.action_unit) == (dictionary.hash, "toy", "kl")
    effect = loaded.features[PLANTED]
    assert effect.outcome is not None
    assert effect.outcome.mean == pytest.approx(-100.0, abs=1e-6)
    assert effect.operation == "ablate"


def test_the_return_of_a_few_and_none(dictionary: Dictionary) -> None:
    few = ablate(Toy(), dictionary, AblateOptions(episodes=4, look=4, most=2))
    assert [row["return"] is not None for row in few["features"].values()] == [True, True, False, False, False, False]
    none = ablate(Toy(), dictionary, AblateOptions(episodes=0, look=4))
    assert none["baseline"] is None
    assert all(row["return"] is None for row in none["features"].values())
    json.dumps(none, allow_nan=False)


def test_effects_beside_a_dictionary_count_for_it_alone(dictionary: Dictionary, tmp_path: Path) -> None:
    dictionary.save(tmp_path / "d")
    assert effects_of(dictionary) is None
    path = tmp_path / "d" / "effects.json"
    save_effects(path, ablate(Toy(), dictionary, AblateOptions(episodes=0, look=4)))
    assert effects_of(dictionary) is not None
    text = path.read_text()
    path.write_text(text.replace(dictionary.hash, "0" * 64))
    assert effects_of(dictionary) is None
    for damaged in ("", "[]", text[:300], text.replace('"action"', '"axion"')):
        path.write_text(damaged)
        assert effects_of(dictionary) is None
        with pytest.raises(DictionaryError):
            load_effects(path)


def test_the_page_shows_the_figures_and_fetches_nothing(dictionary: Dictionary) -> None:
    page = as_html(steer(Toy(), dictionary, SMALL) | {"agent": "<toy>"})
    assert "&lt;toy&gt;" in page
    assert "+400.0 %" in page
    assert page.count("<svg") == 2
    assert "http" not in page
    assert "nan" not in page


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"episodes": 1}, "2 or more"),
        ({"keep": 1.0}, "between 0 and 1"),
        ({"goal": "up"}, "raise, lower, change"),
        ({"seed": 200}, "0 to 199"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(DictionaryError, match=words):
        SteerOptions(**options)


def test_another_models_dictionary_and_a_silent_one_are_refused() -> None:
    with pytest.raises(DictionaryMismatch, match="name a dictionary of its own"):
        steer(Toy(), neuron_dictionary("0:out", WIDTH, "others"), SMALL)
    silent = neuron_dictionary("0:out", WIDTH, "weights")
    silent = Dictionary(silent.cfg, {**silent.tensors, "b_enc": torch.full((WIDTH,), -9.0)})
    with pytest.raises(DictionaryError, match="nothing to steer"):
        steer(Toy(), silent, SMALL)
    with pytest.raises(DictionaryError, match="nothing to ablate"):
        ablate(Toy(), silent, AblateOptions(look=2))
    with pytest.raises(DictionaryError, match="0 to 5"):
        steer(Toy(), neuron_dictionary("0:out", WIDTH, ""), SteerOptions(features=(9,), look=2))
