"""A language model's feature on its page: windows of text shaded by it, the tokens it is active at; and lists of features by layer."""

from __future__ import annotations

import json
import re
import sqlite3
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.test_notes import ARGS, CHROMIUM, end, plain, serve
from tests.tiny_lm import model, tokenizer, torch

import interlatent_live as il
from interlatent_live.analyzer.queries import Reader
from interlatent_live.analyzer.service import analyze_recording
from interlatent_live.explainer.notes import Notes
from interlatent_live.viewer import contexts, listing
from interlatent_live.viewer.finding import Finder

HOSTILE = "<img src=x onerror=\"document.title='taken'\">"
TEXTS = [("the cat sat on the mat and the dog", "<i>pets</i>"), ("the rocket flies and the fuel burns", "physics")]
FEATURE = 1


@pytest.fixture(scope="module")
def analysed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen prompts of a small model with two tap points, analysed by neurons; one word of its vocabulary is hostile."""
    folder = tmp_path_factory.mktemp("text")
    made, tok = model(), tokenizer()
    torch.manual_seed(3)
    with il.Tap(made, "model.layers.[01].mlp:out", run="text", record=folder / "r.mcap", endpoint="", tokenizer=tok) as tap:
        for _ in range(8):
            for text, topic in TEXTS:
                with tap.prompt(text, labels={"topic": topic}):
                    made.generate(tok("<s> " + text, return_tensors="pt").input_ids, max_new_tokens=24, do_sample=True, min_new_tokens=24)
    db = folder / "text.db"
    analyze_recording(folder / "r.mcap", db, neurons_only=True)
    with sqlite3.connect(db) as connection:
        connection.execute("UPDATE vocabulary SET text = ?, bytes = ? WHERE text LIKE '%the%'", (HOSTILE, HOSTILE.encode()))
    connection.close()
    return db


@pytest.fixture
def finder(analysed: Path) -> Iterator[Finder]:
    made = Finder(analysed)
    yield made
    made.close()


def first(db: Path) -> tuple[str, str, dict[int, float], dict[int, tuple[int, int, int]]]:
    """Of the first tap point: start, dictionary's hash, FEATURE's value by encoded frame, and (token, prompt, special) by frame."""
    with Reader(db) as reader:
        boot = reader.boots()[0].boot
        section = reader.sections(boot)[0]
        values: dict[int, float] = {}
        tokens: dict[int, tuple[int, int, int]] = {}
        for batch in reader.batches(boot, 0):
            for coded in reader.codes(section.id, batch.id, batch.id):
                dense = coded.codes.dense()
                values |= {batch.first_seq + int(r): float(dense[i, FEATURE]) for i, r in enumerate(coded.rows)}
        for row in reader.tokens(boot, 0, 1 << 40):
            tokens[row.seq] = row.token, row.prompt, row.special
        return boot, section.dictionary_hash, values, tokens


def test_windows_are_the_text_about_the_strongest_moments(analysed: Path, finder: Finder) -> None:
    _, hash_, values, tokens = first(analysed)
    found = finder.pool.submit(finder.feature, hash_, FEATURE).result()
    assert found is not None
    json.dumps(found, allow_nan=False)
    windows = found["windows"]
    assert len(windows) > 2
    strengths = [abs(w["value"]) for w in windows]
    assert strengths == sorted(strengths, reverse=True)
    assert len({w["prompt"] for w in windows}) > 2, "one a text where there are enough"
    scale, specials = found["text"]["scale"], 0
    assert scale == pytest.approx(max(abs(v) for v in values.values()), rel=1e-6)
    for w in windows:
        assert w["tokens"][w["at"]][0] == w["seq"]
        assert w["tokens"][w["at"]][3] == pytest.approx(w["value"], rel=1e-5)
        assert w["at"] <= contexts.BEFORE
        assert w["labels"]["topic"] in ("<i>pets</i>", "physics"), "as it is: the browser writes it as text"
        for seq, _text, kind, value, level in w["tokens"]:
            assert tokens[seq][1] == w["prompt"]
            assert (kind & 1) == tokens[seq][2]
            specials += kind & 1
            assert value == (pytest.approx(values[seq]) if seq in values else None)
            assert level == contexts.level(values.get(seq), scale)
    assert specials > 0, "a beginning is shown, and marked"
    assert any(t[1].startswith(HOSTILE) for w in windows for t in w["tokens"])


@pytest.mark.parametrize(("value", "expected"), [(None, None), (0.0, 0), (0.01, 1), (-4.0, 5), (8.0, 10), (20.0, 10)])
def test_shading_has_ten_steps(value: float | None, expected: int | None) -> None:
    assert contexts.level(value, 8.0) == expected


def test_tokens_are_counted_where_it_is_active(analysed: Path, finder: Finder) -> None:
    _, hash_, values, tokens = first(analysed)
    found = finder.pool.submit(finder.feature, hash_, FEATURE).result()
    assert found is not None
    told = found["text"]
    active = [seq for seq, v in values.items() if v]
    assert (told["tokens"], told["active"]) == (len(values), len(active))
    assert (told["texts"], told["texts_active"]) == (len({tokens[s][1] for s in values}), len({tokens[s][1] for s in active}))
    hits, there = Counter(tokens[s][0] for s in active), Counter(tokens[s][0] for s in values)
    assert [t["count"] for t in told["top"]] == sorted((n for _, n in hits.most_common(20)), reverse=True)
    assert sorted(t["of"] for t in told["top"] if t["count"] == told["top"][0]["count"])[-1] in there.values()
    total = sum(t["mean"] * t["count"] for t in told["top"])
    if len(hits) <= 20:
        assert total == pytest.approx(sum(values[s] for s in active), rel=1e-4)
    assert found["activity"]["density"] == pytest.approx(np.mean([v != 0 for v in values.values()]), abs=0.02), "special tokens are none"


def test_the_list_is_of_one_layer_or_of_all(analysed: Path, finder: Finder, monkeypatch: pytest.MonkeyPatch) -> None:
    with Reader(analysed) as reader:
        boot = reader.boots()[0].boot
        sections = reader.sections(boot)
    keys = [f"{s.point}|{s.dictionary_hash}" for s in sections]
    assert len(keys) == 2
    with Notes(analysed) as notes:
        notes.name(sections[1].dictionary_hash, 3, "of the second")

    def ask(layer: str) -> dict[str, Any]:
        return finder.pool.submit(finder.features, boot, layer).result()

    both, one = ask("all"), ask(keys[1])
    assert {r["layer"] for r in both["rows"]} == set(keys)
    assert {r["layer"] for r in one["rows"]} == {keys[1]}
    assert both["of"] == len(both["rows"]) == one["of"] + ask(keys[0])["of"]
    shares = [r["by"]["share"] for r in both["rows"]]
    assert shares == sorted(shares, reverse=True)
    assert [r["label"] for r in both["rows"] if r["by"]["feature"] == 3 and r["layer"] == keys[1]] == ["of the second"]
    assert [r["label"] for r in both["rows"] if r["by"]["feature"] == 3 and r["layer"] == keys[0]] in ([""], []), "its own name alone"
    assert ask("nothing") == {"rows": [], "of": 0, "layers": 0}
    monkeypatch.setattr(listing, "MOST", 10)
    few = ask("all")
    assert len(few["rows"]) == 10
    assert few["of"] == both["of"], "and it says of how many"


@pytest.mark.skipif(CHROMIUM is None, reason="Debian's chromium is not installed (make setup-system)")
def test_read_followed_and_filtered_by_layer_in_a_browser(analysed: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api")
    expect, said = playwright.expect, []
    expect.set_options(timeout=60_000)
    _, hash_, _, _ = first(analysed)
    process, url = serve(analysed)
    try:
        found = json.loads(plain(f"{url}feature/{hash_}/{FEATURE}.json")[1])
        with playwright.sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=CHROMIUM, args=ARGS.split())
            page = browser.new_page(viewport={"width": 1440, "height": 900})
            page.set_default_timeout(60_000)
            page.on("console", lambda m: said.append(m.text) if m.type in ("error", "warning") else None)
            page.on("pageerror", lambda error: said.append(str(error)))
            page.goto(f"{url}feature/{hash_}/{FEATURE}")
            texts = page.locator(".contexts .written")
            expect(texts).to_have_count(len(found["windows"]))
            strongest = found["windows"][0]
            expect(texts.first.locator(".at")).to_have_attribute("title", re.compile(f"{strongest['tokens'][strongest['at']][4]} of 10$"))
            assert texts.first.locator("span").count() == len(strongest["tokens"])
            assert page.locator(".contexts .special").count() > 0
            assert page.locator("img").count() == 0, "no picture, and no markup of a token"
            expect(page.locator("main")).to_contain_text(HOSTILE)
            expect(page.locator("main")).to_contain_text("<i>pets</i>")
            page.locator(".contexts a").first.click()
            page.wait_for_url(lambda to: f"at={strongest['seq']}" in to and f"shade={FEATURE}" in to)
            expect(page.locator(".written .at")).to_have_count(1)
            expect(page.locator(".reads .by")).to_contain_text(f"n{FEATURE}")

            page.locator("#tab-features").click()
            layer = page.locator(".layer select")
            expect(page.locator(".table .point")).to_have_count(0)
            layer.select_option("all")
            expect(page.locator(".table .point").first).to_be_visible()
            page.wait_for_url(lambda to: "layer=all" in to and "tab=features" in to)
            page.reload()
            expect(layer).to_have_value("all")
            page.locator("#search").fill("layers.1")
            expect(page.locator(".table .point").first).to_have_text("model.layers.1.mlp:out")
            row = page.locator(".table tbody tr").first
            assert row.locator("button[data-pin]").is_disabled()
            assert row.get_by_text("reach in").count() == 0, "its number means another feature of the shown layer"
            expect(row.locator("a")).to_have_attribute("href", re.compile("^/feature/"))
            browser.close()
    finally:
        end(process)
    assert said == []
