from __future__ import annotations

import numpy as np
import pytest

from interlatent_live.explainer.grammar import parse
from interlatent_live.explainer.table import Labels, Table
from interlatent_live.explainer.wording import LABEL_WORDS, Wording, spoken


def wording(step_period_s: float | None = None) -> Wording:
    n = 1000
    ramp = np.linspace(-1, 1, n)
    numbers = {"pole_angle": ramp, "forward_velocity": ramp, "knee_position": ramp, "heel_contact": np.arange(n) % 2,
               "right_foot_contact": np.arange(n) % 2, "obs[3]": ramp, "score": np.maximum(0, ramp), "left shoulder <b>joint</b>": ramp}
    table = Table(numbers, labels={"topic": Labels.of(["physics", "<i>"] * 500)},
                  units={"pole_angle": "rad", "forward_velocity": "10/3 m/s"})
    return Wording.of(table, np.ones(n, bool), list(numbers), step_period_s=step_period_s)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("pole_angle > 0.1", "pole angle above 0.1 rad"),
        ("pole_angle <= -0.1", "pole angle at most -0.1 rad"),
        ("forward_velocity > 0.9", "forward velocity above 3 m/s"),
        ("forward_velocity[-1] > 0.9", "forward velocity 1 step ago above 3 m/s"),
        ("pole_angle[-5] >= 0", "pole angle 5 steps ago at least 0 rad"),
        ("change(pole_angle, 10) > 0.1", "pole angle up by more than 0.1 rad over 10 steps"),
        ("change(pole_angle, 10) >= 0.1", "pole angle up by at least 0.1 rad over 10 steps"),
        ("change(pole_angle, 10) < -0.1", "pole angle down by more than 0.1 rad over 10 steps"),
        ("change(pole_angle, 10) < 0.1", "change of pole angle over 10 steps below 0.1 rad"),
        ("steps_to_end < 100", "fewer than 100 steps before the episode ends"),
        ("episode_step > 20", "more than 20 steps into the episode"),
        ("episode_length >= 500", "an episode of at least 500 steps"),
        ("episode_terminated > 0", "an episode that ends by itself"),
        ("episode_terminated == 0", "an episode that is cut off"),
        ("episode_return > 200", "episode return above 200"),
        ("topic == physics", "topic is physics"),
        ("topic != \"<i>\"", "topic is not i"),
        ("heel_contact > 0.5", "heel contact"),
        ("heel_contact < 1", "no heel contact"),
        ("heel_contact[-2] == 1", "heel contact 2 steps ago"),
        ("heel_contact > 1", "heel contact above 1"),
        ("right_foot_contact <= 0.5", "right foot lifted"),
        ("obs[3] > 0", "obs 3 above 0"),
        ("`left shoulder <b>joint</b>` > 0", "left shoulder b joint /b above 0"),
        ("pole_angle > 0 and heel_contact > 0.5", "pole angle above 0 rad and heel contact"),
        ("pole_angle > 0 or heel_contact > 0.5", "pole angle above 0 rad or heel contact"),
        ("pole_angle > 0 and obs[3] > 0 or heel_contact > 0",
         "pole angle above 0 rad and obs 3 above 0, or heel contact"),
        ("(pole_angle > 0 or obs[3] > 0) and heel_contact > 0",
         "either pole angle above 0 rad or obs 3 above 0, and heel contact"),
        ("pole_angle > 0.1 and heel_contact > 0 and pole_angle <= 0.4", "pole angle between 0.1 and 0.4 rad and heel contact"),
        ("forward_velocity < 0.9 and forward_velocity >= -0.3", "forward velocity between -1 and 3 m/s"),
        ("(pole_angle > 0 or obs[3] > 0) and knee_position > 0.1 and knee_position <= 0.2",
         "either pole angle above 0 rad or obs 3 above 0, and knee position between 0.1 and 0.2"),
        ("pole_angle > 0.4 or pole_angle < 0.6", "pole angle above 0.4 rad or pole angle below 0.6 rad"),
        ("pole_angle > 0.1 and pole_angle > 0.2", "pole angle above 0.1 rad and pole angle above 0.2 rad"),
    ],
)
def test_predicates_in_words(text: str, words: str) -> None:
    assert wording().describe(parse(text)) == words


def test_lags_in_seconds_where_a_step_has_a_length() -> None:
    assert wording(0.02).describe(parse("pole_angle[-5] > 0")) == "pole angle 0.1 s ago above 0 rad"


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("pole_angle > 0.1", "pole leans right"),
        ("pole_angle < -0.1", "pole leans left"),
        ("pole_angle > -0.5", "pole angle not low"),  # may lean either way, so no phrase
        ("pole_angle < 0.5", "pole angle not high"),
        ("knee_position > 0.5", "high knee position"),
        ("knee_position > 0.9", "very high knee position"),
        ("knee_position <= -0.9", "very low knee position"),
        ("knee_position <= 0.9", "knee position not high"),
        ("change(knee_position, 5) > 0", "knee position rises"),
        ("change(knee_position, 5) > -1", "knee position not falling"),
        ("change(knee_position, 5) < -1", "knee position falls"),
        ("f41 > 0.8", "feature 41 above 0.8"),
        ("right_foot_contact > 0.5 and pole_angle > 0.1", "right foot down, pole leans right"),
        ("right_foot_contact > 0.5 or pole_angle > 0.1", "right foot down"),
        ("heel_contact > 0.5 or f1 > 0", "heel contact"),
        ("heel_contact < 1 or topic == physics", "no heel contact"),
        ("heel_contact > 0.5 or right_foot_contact < 1", "heel contact or right foot lifted"),
        ("knee_position > 0 and right_foot_contact > 0 or obs[3] > 0", "high knee position, right foot down"),
        ("knee_position > 0.12 and knee_position <= 0.345", "knee position 0.12 to 0.34"),
        ("score <= 0", "zero score"),
        ("score > 0 and knee_position > 0", "score not zero, high knee position"),
    ],
)
def test_labels(text: str, label: str) -> None:
    got = wording().label(parse(text))
    assert got == label
    assert len(got.split()) <= LABEL_WORDS


def test_labels_that_tell_one_from_another() -> None:
    words, taken = wording(), set[str]()
    for text, label in (
        ("knee_position > 0.5 and pole_angle > 0.9", "high knee position, pole leans right"),
        ("knee_position > 0.5 and pole_angle > 0.8", "knee position above 0.5"),
        ("knee_position > 0.5 and pole_angle > 0.7 and score > 0", "pole angle above 0.7"),
        ("knee_position > 0.5 and pole_angle > 0.7 or score <= 0", "high knee position or zero score"),
        ("knee_position > 0.503 and pole_angle > 0.703", "knee position above 0.503"),
        ("knee_position > 0.503 and pole_angle > 0.703 and score > 0.2", "knee position above 0.5, high score"),
        ("knee_position > 0.503 and pole_angle > 0.703", "pole angle above 0.703"),
        ("knee_position > 0.503 and pole_angle > 0.703", "high knee position 2"),
    ):
        found = words.distinct(parse(text), taken)
        assert found not in taken
        assert len(found.split()) <= LABEL_WORDS
        assert found == label
        taken.add(found)


def test_labels_of_sets_name_what_fits() -> None:
    table = Table({"knee_position": np.zeros(4)}, labels={"token": Labels.of(["a", "b", "->", "“"]), "next_token": Labels.of(["a"] * 4)})
    words, taken = Wording.of(table, np.ones(4, bool), []), set[str]()
    for text, label in (
        ("token in (a, b, c, d)", "‘a’, ‘b’ or 2 more"),
        ("token in (a, b, c, d) and knee_position > 0", "‘b’, ‘c’ or 2 more"),
        ("token[-1] in (a, b, c)", "after ‘a’, ‘b’ or 1 more"),
        ("next_token in (a, b)", "before ‘a’ or ‘b’"),
        ("token in (a, \"->\")", "‘a’ or hyphen-minus and more"),
        ("token in (\"“\", \"->\", a)", "one of 3 tokens"),
    ):
        found = words.distinct(parse(text), taken)
        assert len(found.split()) <= LABEL_WORDS
        assert found == label
        taken.add(found)


def test_a_name_of_many_words_is_cut_to_a_label() -> None:
    name = "the third joint of the left hind leg"
    table = Table({name: np.zeros(3)})
    label = Wording.of(table, np.ones(3, bool), [name]).label(parse(f"`{name}` > 1"))
    assert label == "the third joint of the left"


def test_spoken_names_carry_no_markup() -> None:
    assert spoken("right_foot_contact") == "right foot contact"
    assert spoken("f41") == "feature 41"
    assert spoken("<script>alert(1)</script>") == "script alert 1 /script"
    assert spoken("<>") == "unnamed"
