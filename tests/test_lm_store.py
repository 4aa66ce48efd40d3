"""A language model's stream in the database: prompts, text, tokens; special tokens out of statistics; the same digest."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tests.tiny_lm import model, tokenizer, torch

import interlatent_live as il
from interlatent_live.analyzer.digest import digest, verify
from interlatent_live.analyzer.queries import Reader
from interlatent_live.analyzer.service import analyze_recording
from interlatent_live.explainer.source import Source
from interlatent_live.stream.prompt import pieces

TEXTS = {"the cat sat on the mat and the dog": "pets", "the rocket flies and the fuel burns": "physics"}


def record(path: Path, times: int = 6) -> list[list[int]]:
    """What was written, by prompt."""
    made, tok = model(), tokenizer()
    written = []
    torch.manual_seed(3)
    with il.Tap(made, "model.layers.1.mlp:out", run="store", record=path, endpoint="", tokenizer=tok) as tap:
        for _ in range(times):
            for text, topic in TEXTS.items():
                with tap.prompt(text, labels={"topic": topic}):
                    ids = tok("<s> " + text, return_tensors="pt").input_ids
                    written.append(made.generate(ids, max_new_tokens=12, do_sample=True)[0].tolist())
    return written


def test_what_was_given_and_written_can_be_asked_for(tmp_path: Path) -> None:
    written = record(tmp_path / "r.mcap")
    analyze_recording(tmp_path / "r.mcap", tmp_path / "a.db", neurons_only=True)
    analyze_recording(tmp_path / "r.mcap", tmp_path / "b.db", neurons_only=True)
    assert digest(tmp_path / "a.db") == digest(tmp_path / "b.db")
    assert verify(tmp_path / "a.db", tmp_path / "b.db") is None
    with Reader(tmp_path / "a.db") as reader:
        boot = reader.boots()[0].boot
        prompts = reader.prompts(boot)
        assert [(p.text, p.labels) for p in prompts[:2]] == [(text, {"topic": topic}) for text, topic in TEXTS.items()]
        assert [p.prompt for p in prompts] == list(range(12))
        for prompt, ids in zip(prompts, written, strict=True):
            rows = reader.written(boot, prompt.prompt)
            assert [r.token for r in rows] == ids[:-1]
            assert [r.generated for r in rows] == [0] * prompt.given + [1] * (len(rows) - prompt.given)
            assert rows[0].special
            assert rows[0].logprob is None
            assert all(r.logprob is not None and r.logprob < 0 for r in rows[1:])
            words = reader.words(boot, [r.token for r in rows])
            assert "".join(pieces([words[r.token] for r in rows])).startswith("<s> the")
        last = reader.extent(boot)
        assert last is not None
        assert len(reader.tokens(boot, 3, 9)) == 6
        assert len(reader.tokens(boot, 0, last[3])) == sum(len(ids) - 1 for ids in written)
        assert reader.prompts(boot, after=10)[0].prompt == 11


def test_special_tokens_are_rows_without_features(tmp_path: Path) -> None:
    record(tmp_path / "r.mcap")
    analyze_recording(tmp_path / "r.mcap", tmp_path / "a.db", neurons_only=True)
    with Reader(tmp_path / "a.db") as reader:
        boot = reader.boots()[0].boot
        section = reader.sections(boot)[0]
        batches = reader.batches(boot, 0)
        codes = {c.batch_id: c for c in reader.codes(section.id, batches[0].id, batches[-1].id)}
        seen = 0
        for batch in batches:
            special = batch.columns["special"]
            found = codes.get(batch.id)
            if found is not None:
                assert not special[found.rows].any()
                seen += len(found.rows)
        marked = sum(int(b.columns["special"].sum()) for b in batches)
        assert marked >= 12
        activity = reader.activity(section.id)
        assert activity is not None
        assert activity.frames == seen > 0
        assert {e.episode for e in reader.episodes(boot)} == set(range(12))
        assert all(e.complete for e in reader.episodes(boot))
        assert np.isfinite(reader.top_correlations(reader.snapshot_id(section.id) or 0)[0].r or np.nan)


def test_labels_and_tokens_can_be_asked_for(tmp_path: Path) -> None:
    from interlatent_live.explainer.grammar import parse
    from interlatent_live.explainer.source import Source

    record(tmp_path / "r.mcap")
    analyze_recording(tmp_path / "r.mcap", tmp_path / "a.db", neurons_only=True)
    source = Source(tmp_path / "a.db")
    while source.pull():
        pass
    frames = source.kept()
    source.close()
    assert frames is not None
    table = frames.table
    physics = parse("topic == physics", table.vocabulary).evaluate(table)
    assert physics.defined.all()
    assert 0 < physics.holds.sum() < table.rows
    with Reader(tmp_path / "a.db") as reader:
        boot = reader.boots()[0].boot
        of = {p.prompt for p in reader.prompts(boot) if p.labels["topic"] == "physics"}
        rows = reader.tokens(boot, 0, table.rows)
    assert physics.holds.tolist() == [row.prompt in of for row in rows]
    cat = parse("token == cat and topic != physics", table.vocabulary).holds(table)
    assert cat.sum() >= 6
    assert [row.token == 6 and row.prompt not in of for row in rows] == cat.tolist()
    assert parse("steps_to_end == 0", table.vocabulary).holds(table).sum() == 12


def test_a_text_that_was_given_before_stays_on_its_side_of_the_split(tmp_path: Path) -> None:
    record(tmp_path / "r.mcap")
    analyze_recording(tmp_path / "r.mcap", tmp_path / "a.db", neurons_only=True)
    source = Source(tmp_path / "a.db")
    source.pull()
    kept = source.kept()
    source.close()
    assert kept is not None
    topic = kept.table.labels["topic"]
    assert topic.steady
    sides = {topic.values[code]: set(kept.held_out[topic.codes == code].tolist()) for code in set(topic.codes.tolist())}
    assert sides == {"pets": {False}, "physics": {True}}, "twelve episodes, two texts"
    assert set(kept.table.labels) == {"topic", "token", "next_token"}
