"""Looking through a language model's run, and an agent's: search, plot, shaded text, what info tells."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.tiny_lm import model, tokenizer, torch
from typer.testing import CliRunner

import interlatent_live as il
from interlatent_live.analyzer.dictionary import Dictionary, DictionaryConfig
from interlatent_live.analyzer.explore import episodes_of, search, strengths
from interlatent_live.analyzer.queries import Reader
from interlatent_live.analyzer.service import analyze_recording
from interlatent_live.analyzer.shading import Shaded
from interlatent_live.cli import app
from interlatent_live.stream.errors import DictionaryError, PromptError, TapError

POINT = "model.layers.1.mlp:out"
EXAMPLE = Path(__file__).parents[1] / "src" / "interlatent_live" / "examples" / "cartpole.mcap"


def told(*arguments: str) -> Any:
    result = CliRunner().invoke(app, [*arguments, "--json"])
    assert result.exit_code == 0, (result.output, result.exception)
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lm")
    made, tok = model(), tokenizer()
    torch.manual_seed(5)
    with il.Tap(made, POINT, run="look", record=folder / "r.mcap", endpoint="", tokenizer=tok) as tap:
        for turn in range(8):
            for topic, text in {"pets": "the cat sat on the mat and a <b> bomb", "physics": "the rocket flies and burns fuel"}.items():
                with tap.prompt(text, labels={"topic": topic, "turn": turn}):
                    made.generate(tok(text, return_tensors="pt").input_ids, max_new_tokens=10, do_sample=True)
    analyze_recording(folder / "r.mcap", folder / "r.db", neurons_only=True)
    return folder / "r.db"


def test_features_of_a_token(run: Path) -> None:
    rows = told("search", str(run), "--token", "Bomb", "--top", "5")
    assert 0 < len(rows) <= 5
    assert [row["difference"] for row in rows] == sorted((row["difference"] for row in rows), reverse=True)
    best = rows[0]
    with Reader(run) as reader:
        boot = reader.boots()[0].boot
        section = reader.sections(boot)[0]
        batches = reader.batches(boot, 0)
        codes = {c.batch_id: c for c in reader.codes(section.id, 0, batches[-1].id)}
        token = next(number for _, number, text in reader.vocabulary() if text == " bomb")
        active, count = 0, 0
        for batch in batches:
            if batch.id in codes:
                dense = codes[batch.id].codes.dense()[:, best["feature"]]
                mine = batch.columns["token"][codes[batch.id].rows] == token
                active, count = active + int((dense[mine] != 0).sum()), count + int(mine.sum())
    assert best["active"] == pytest.approx(active / count)
    missing = CliRunner().invoke(app, ["search", str(run), "--token", "bomd"])
    assert isinstance(missing.exception, PromptError)
    assert "'bomb'" in str(missing.exception)
    assert CliRunner().invoke(app, ["search", str(run)]).exit_code == 2


def test_labels_select_frames(run: Path) -> None:
    rows = told("search", str(run), "--where", "topic == physics", "--top", "3")
    assert rows[0]["difference"] > 0
    found = told("diff", str(run), "--a", "topic == pets", "--b", "topic == physics")
    assert {"name", "low", "high", "q"} <= set(found[0])


def test_a_feature_over_one_prompt_and_over_all(run: Path, tmp_path: Path) -> None:
    feature = told("search", str(run), "--token", "bomb", "--top", "1")[0]["feature"]
    rows = told("plot", str(run), "--feature", str(feature), "--prompt", "6", "--html", str(tmp_path / "one.html"))
    with Reader(run) as reader:
        boot = reader.boots()[0].boot
        written = reader.written(boot, 6)
        assert len(rows) == len(written)
        words = reader.words(boot, [t.token for t in written])
        assert [row["text"] for row in rows] == [words[t.token].decode() for t in written]
        everything = list(strengths(reader, feature))
        known = [s.place.prompt for s in everything]
        assert [p.prompt for p in episodes_of(reader)] == list(range(16))
        assert known == list(range(known[0], 16)), "neurons are known from the 64th frame on"
        assert known[0] < 6
        assert everything[known.index(6)].largest == max((r["value"] or 0.0 for r in rows), key=abs)
        assert search(reader, lambda boot, batch: np.ones(batch.rows, bool), 1)[0] > 100
    assert "bokeh" in (tmp_path / "one.html").read_text()
    listed = told("plot", str(run), "--feature", str(feature), "--all-prompts", "--top", "0", "--html", str(tmp_path / "all.html"))
    assert [row["prompt"] for row in listed] == known
    assert listed[known.index(6)]["labels"] == {"topic": "pets", "turn": "3"}
    assert (tmp_path / "all.html").stat().st_size > 10_000
    absent = CliRunner().invoke(app, ["plot", str(run), "--feature", "1", "--prompt", "99"])
    assert isinstance(absent.exception, PromptError)


def test_info_tells_of_prompts_and_labels(run: Path) -> None:
    found = told("info", str(run))["language"]
    assert found["prompts"] == 16
    assert found["labels"]["topic"] == {"pets": 8, "physics": 8}
    assert found["tokens"] > found["written_tokens"] > 0


def test_the_same_commands_serve_an_agent(tmp_path: Path) -> None:
    db = tmp_path / "agent.db"
    analyze_recording(EXAMPLE, db, neurons_only=True)
    assert "language" not in told("info", str(db))
    rows = told("search", str(db), "--where", "pole_angle > 0.02", "--top", "3")
    assert rows
    with Reader(db) as reader:
        boot = reader.boots()[0].boot
        steps = [e.steps for e in reader.episodes(boot)]
    listed = told("plot", str(db), "--feature", str(rows[0]["feature"]), "--all-prompts", "--at", rows[0]["point"], "--top", "0")
    assert {row["frames"] for row in listed} <= set(steps)
    shown = told("plot", str(db), "--feature", str(rows[0]["feature"]), "--prompt", "0", "--at", rows[0]["point"])
    assert len(shown) == steps[0]


def test_text_is_shaded_in_a_notebook(run: Path, tmp_path: Path) -> None:
    made, tok = model(), tokenizer()
    tap = il.Tap(made, [f"{POINT.removesuffix(':out')}"], run="nb", record=tmp_path / "r.mcap", endpoint="", tokenizer=tok)
    with pytest.raises(TapError, match="nothing was read"):
        _ = tap.last
    with tap, tap.prompt("x", labels={"topic": "pets"}):
        made.generate(tok("the cat sat", return_tensors="pt").input_ids, max_new_tokens=5, min_new_tokens=5, do_sample=False)
        inside = tap.last
    last = tap.last
    assert len(inside) == len(last) == 7
    assert last.labels == {"topic": "pets"}
    assert last.text.startswith(" the cat sat")
    assert set(last.activations) == {POINT.replace(":out", ":in"), POINT}
    neuron = il.tokens(last, neuron=3, point=POINT)
    assert np.array_equal(neuron.values, last.activations[POINT][:, 3].astype(float))
    generator = torch.Generator().manual_seed(1)
    cfg = DictionaryConfig("tiny", "topk", 32, 32, 8, POINT, POINT, k=2, model_hash=last.model_hash)
    tensors = {"W_enc": torch.randn(32, 8, generator=generator), "b_enc": torch.zeros(8), "W_dec": torch.randn(8, 32, generator=generator),
               "b_dec": torch.zeros(32)}  # fmt: skip
    dictionary = Dictionary(cfg, tensors)
    shown = il.tokens(last, feature=5, dictionary=dictionary)
    assert np.array_equal(shown.values, dictionary.codes(last.activations[POINT]).dense()[:, 5].astype(float))
    assert il.tokens(run, feature=3, prompt=0).title.endswith("prompt 0 (topic pets, turn 0)")
    for bad in ({}, {"feature": 1, "neuron": 1}, {"neuron": 99}, {"feature": 99, "dictionary": dictionary}, {"feature": 1}):
        with pytest.raises(DictionaryError):
            il.tokens(last, **bad)


def test_markup_in_a_text_is_escaped() -> None:
    shown = Shaded("<i>", ["<script>", "\n", '" onmouseover="x'], np.array([1.0, np.nan, -2.0]), ["<b>", "", ""])
    assert "<script>" not in shown.html
    assert "&lt;script&gt;" in shown._repr_html_()
    assert 'title="1; &lt;b&gt;"' in shown.html
    assert "rgba(217,131,36,0.75)" in shown.html
    assert repr(shown).splitlines()[0] == "<i>"
