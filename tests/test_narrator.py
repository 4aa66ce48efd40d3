from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from interlatent_live.explainer.explaining import Explaining
from interlatent_live.explainer.grammar import parse
from interlatent_live.explainer.narrator import GAP_S, Line, Narrator
from interlatent_live.explainer.notebook import Notebook
from interlatent_live.explainer.source import Source

from .explained import Run
from .text_run import TextRun


def narrate(path: Path, *, explain: bool = True, withheld: str = "", alarm: str = "", rule: str = "") -> list[Line]:
    """`rule`: in place of what was found for each feature; its label and score stay."""
    source = Source(path)
    pieces = source.pull(10_000)
    frames = source.kept()
    assert frames is not None
    assert source.subject is not None
    narrator = Narrator(source.subject)
    if explain:
        with Notebook(path) as notebook:
            explaining = Explaining(notebook, source.subject)
            explaining.attempt(frames, explaining.pending(frames))
            known = explaining.current
            if rule:
                known = {feature: replace(current, predicate=parse(rule)) for feature, current in known.items()}
            narrator.learn(known, withheld)
    if alarm:
        narrator.alarm(alarm)
    source.close()
    return [line for line in map(narrator.feed, pieces) if line is not None]


def test_lines_name_the_moment_the_action_and_scored_features(tmp_path: Path) -> None:
    run = Run(tmp_path / "r.db")
    run.write(8, steps=500)
    run.close()
    lines = narrate(tmp_path / "r.db")
    assert lines[0].kind == "begin"
    assert {line.kind for line in lines} >= {"begin", "episode"}
    assert all(b.time_s - a.time_s >= GAP_S for a, b in pairwise(lines))
    ended = next(line for line in lines if line.kind == "episode")
    assert ended.text.startswith("episode 0 ended by itself after 500 steps, return 500")
    assert "left in" in ended.text or "right in" in ended.text
    assert ended.seq == 499
    for line in lines:
        assert line.first_seq <= line.seq < line.next_seq or line.kind == "episode"
        for mention in line.features:
            if mention.label is not None:
                assert mention.score is not None
                assert mention.score >= 0.8


def test_a_surprise_is_told_with_its_usual_density_and_whether_the_rule_holds(tmp_path: Path) -> None:
    run = Run(tmp_path / "r.db")
    run.write(8, steps=250)
    run.rng = Leaning()  # type: ignore[assignment]
    run.write(1, steps=500)
    run.close()
    lines = narrate(tmp_path / "r.db")
    surprises = [line for line in lines if line.kind in ("surprise", "regime") and line.seq >= 2000]
    assert surprises
    told = {m.feature: (m, line) for line in surprises for m in line.features}
    mention, line = told[0]
    assert mention.usual is not None
    assert mention.share - mention.usual > 0.2
    assert f"usually {100 * mention.usual:.0f} %" in line.text
    assert "rule holds in 100 %" in line.text


def test_a_rule_over_a_label_that_these_frames_lack_holds_nowhere_known(tmp_path: Path) -> None:
    run = Run(tmp_path / "r.db")
    run.write(8, steps=250)
    run.close()
    mentioned = [m for line in narrate(tmp_path / "r.db", rule='token == "heat"') for m in line.features]
    assert any(m.label is not None for m in mentioned)
    assert all(m.holds is None for m in mentioned)


def test_what_is_not_explained_is_described_by_statistics_only(tmp_path: Path) -> None:
    run = Run(tmp_path / "r.db")
    run.write(8, steps=250)
    run.rng = Leaning()  # type: ignore[assignment]
    run.write(1, steps=500)
    run.close()
    lines = narrate(tmp_path / "r.db", explain=False)
    mentioned = [m for line in lines for m in line.features]
    assert mentioned
    assert all(m.label is None and m.score is None for m in mentioned)
    assert any("(not explained)" in line.text for line in lines)


def test_outside_the_card_nothing_is_said_of_features(tmp_path: Path) -> None:
    run = Run(tmp_path / "r.db")
    run.write(8, steps=250)
    run.close()
    lines = narrate(tmp_path / "r.db", withheld="the error is outside its card's range", alarm="drift: FVU 0.4")
    assert lines[0].kind == "drift"
    assert lines[0].text.startswith("drift: FVU 0.4")
    assert all(line.features == () for line in lines)
    assert "nothing is said of features: the error is outside its card's range" in lines[1].text


def test_the_same_frames_give_the_same_lines(tmp_path: Path) -> None:
    run = Run(tmp_path / "r.db")
    run.write(6, steps=400)
    run.close()
    first = narrate(tmp_path / "r.db", explain=False)
    assert first
    assert narrate(tmp_path / "r.db", explain=False) == first


def test_a_text_is_no_episode_and_a_token_no_step(tmp_path: Path) -> None:
    run = TextRun(tmp_path / "r.db")
    run.write(40)
    run.close()
    lines = narrate(tmp_path / "r.db")
    ended = [line.text for line in lines if line.kind == "episode"]
    assert ended
    assert all(re.match(r"text \d+ ended after 60 tokens", text) for text in ended)
    said = " ".join(line.text for line in lines)
    assert not re.search(r"episode|\bsteps?\b|frames", said), said


class Leaning:
    """Metrics that stay at an angle of 1.5 with a speed of 1."""

    def normal(self, mean: float, scale: float, shape: tuple[int, int]):  # type: ignore[no-untyped-def]
        import numpy as np

        out = np.zeros(shape)
        out[:, :2] = (1.5, 1.0)
        return out

    def random(self, n: int):  # type: ignore[no-untyped-def]
        import numpy as np

        return np.full(n, 0.9)
