"""Predicates as somebody types them."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from interlatent_live.explainer.trying import Trier, suggest
from interlatent_live.stream.errors import StoreError

from .explained import Run


def test_a_predicate_finds_the_feature_that_it_describes(tmp_path: Path) -> None:
    run = Run(tmp_path / "r.db")
    run.write(10)
    trier = Trier(tmp_path / "r.db")
    trial = trier.attempt("angle > 0.5")
    assert trial.error is None
    assert (trial.text, trial.fits[0].feature, trial.fits[0].balanced_accuracy) == ("angle > 0.5", 0, 1.0)
    assert trial.fits[1].feature == 5
    low, high = trial.fits[1].low, trial.fits[1].high
    assert low is not None
    assert high is not None
    assert 0.8 < low < high < 1
    assert trial.holds is not None
    assert 0.1 < trial.holds < 0.4
    frames = trial.frames
    run.write(10)
    assert trier.attempt("angle > 0.5").frames > frames  # it reads on
    assert [f.feature for f in trier.attempt("angle > 0.5", feature=1).fits] == [1]
    assert 0 not in {f.feature for f in trier.attempt("f0 > 0.5").fits}  # not on itself
    trier.close()
    run.close()


def test_mistakes_are_data(tmp_path: Path) -> None:
    run = Run(tmp_path / "r.db")
    run.write(6)
    run.close()
    before = "\n".join(sqlite3.connect(tmp_path / "r.db").iterdump())
    trier = Trier(tmp_path / "r.db")
    unknown = trier.attempt("angel > 1")
    assert unknown.error is not None
    assert "did you mean angle" in unknown.error
    assert (unknown.position, unknown.close, unknown.fits) == (0, ("angle",), ())
    for text in ("", "angle", "angle > ", "0 < angle < 1", "angle > 5 and angle < 3", "f99 > 0", "<script>", "x" * 10_000, "angle" * 900):
        trial = trier.attempt(text)
        assert trial.error, text
        assert len(trial.text) <= 500
    assert "no feature 77" in (trier.attempt("angle > 0", feature=77).error or "")
    trier.close()
    assert "\n".join(sqlite3.connect(tmp_path / "r.db").iterdump()) == before


def test_without_data_there_is_nothing_to_try_on(tmp_path: Path) -> None:
    trier = Trier(tmp_path / "none.db")
    with pytest.raises(StoreError):
        trier.attempt("angle > 0")
    trier.close()


def test_names_are_suggested() -> None:
    names = ("pole_angle", "pole_angular_velocity", "cart_position", "action[3]")
    assert suggest("cart_position > 1 and pol", names) == ["pole_angle", "pole_angular_velocity"]
    assert suggest("angle", names) == ["pole_angle"]
    assert suggest("", names) == list(names)
    assert suggest("x > 0 and zebra", names) == []
