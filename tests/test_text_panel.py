"""A language model's text on the page: what the panel tells of a prompt, and that it is read, shaded, and gone through in a browser."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.test_page import becomes, browser, needs_browser, open_page  # noqa: F401 - fixtures
from tests.tiny_lm import model, tokenizer, torch

import interlatent_live as il
from interlatent_live.analyzer.queries import Reader
from interlatent_live.analyzer.service import analyze_recording
from interlatent_live.viewer.cursor import Cursor
from interlatent_live.viewer.feed import Feed
from interlatent_live.viewer.text_panel import SHOWN, Texts, Written
from interlatent_live.viewer.view import View

HOSTILE = "the <b>cat</b> sat on the mat"
TEXTS = [(HOSTILE, "<i>pets</i>"), ("the rocket flies and the fuel burns", "physics")]


@pytest.fixture(scope="module")
def analysed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight prompts of a small model, with two tap points, analysed by neurons."""
    folder = tmp_path_factory.mktemp("text")
    made, tok = model(), tokenizer()
    torch.manual_seed(3)
    with il.Tap(made, "model.layers.[01].mlp:out", run="text", record=folder / "r.mcap", endpoint="", tokenizer=tok) as tap:
        for _ in range(4):
            for text, topic in TEXTS:
                with tap.prompt(text, labels={"topic": topic}):
                    made.generate(tok("<s> " + text, return_tensors="pt").input_ids, max_new_tokens=12, do_sample=True, min_new_tokens=12)
    analyze_recording(folder / "r.mcap", folder / "text.db", neurons_only=True)
    return folder / "text.db"


class Looked:
    """One page's texts, at a frame."""

    def __init__(self, db: Path) -> None:
        self.feed = Feed(db)
        self.feed.pull()
        self.cursor = Cursor(self.feed)
        self.texts = Texts(self.feed)

    def at(self, seq: int, chosen: int | None = None, *, whole: bool = True) -> dict[str, Any] | None:
        self.cursor.obey({"op": "seek", "to": seq})
        return self.texts.message(self.cursor.moment(), chosen, whole=whole)

    def close(self) -> None:
        self.feed.reader.close()


@pytest.fixture
def looked(analysed: Path) -> Any:
    made = Looked(analysed)
    yield made
    made.close()


def test_a_prompt_is_told_token_by_token_as_the_store_holds_it(looked: Looked) -> None:
    boot = looked.feed.boot
    assert boot is not None
    rows = looked.feed.reader.written(boot.boot, 2)
    told = looked.at(rows[5].seq)
    assert told is not None
    assert told["prompt"]["prompt"] == 2
    assert told["prompt"]["labels"] == [["topic", "<i>pets</i>"]], "as it is: the browser writes it as text"
    assert [t[0] for t in told["tokens"]] == [r.seq for r in rows]
    assert [t[8] for t in told["tokens"]] == [r.token for r in rows]
    assert [t[2] for t in told["tokens"]] == [r.special + 2 * r.generated for r in rows]
    assert [t[3] for t in told["tokens"]] == [r.logprob and float(f"{r.logprob:.4g}") for r in rows]
    assert told["tokens"][0][1:3] == ["<s>", 1]
    assert told["tokens"][0][5:7] == [None, []], "special tokens have no features"
    assert told["tokens"][1][7], "what it expected next"
    assert len(told["points"]) == 2
    assert [p["shown"] for p in told["points"]] == [True, False]


def test_values_are_the_codes_of_the_chosen_feature_else_of_the_strongest(looked: Looked) -> None:
    boot, section = looked.feed.boot, looked.feed.section
    assert boot is not None
    assert section is not None
    rows = looked.feed.reader.written(boot.boot, 6)
    expected: dict[int, np.ndarray[Any, Any]] = {}
    for batch in looked.feed.reader.batches(boot.boot, 0):
        for coded in looked.feed.reader.codes(section.id, batch.id, batch.id):
            dense = coded.codes.dense()
            expected |= {batch.first_seq + int(r): dense[i] for i, r in enumerate(coded.rows)}
    plain = looked.at(rows[0].seq)
    chosen = looked.at(rows[0].seq, 5)
    assert plain is not None
    assert chosen is not None
    seen = 0
    for a, b in zip(plain["tokens"], chosen["tokens"], strict=True):
        if a[0] not in expected:
            assert a[5] is None
            continue
        row = expected[a[0]]
        assert a[5] == pytest.approx(float(row[np.argmax(np.abs(row))]), rel=1e-3)
        assert b[5] == pytest.approx(float(row[5]), rel=1e-3)
        assert abs(b[5]) <= chosen["scale"]
        assert [f for f, _ in a[6]] == [int(f) for f in np.argsort(-np.abs(row), kind="stable")[:4] if row[f]]
        seen += 1
    assert seen > 10
    assert chosen["strips"][0] == [t[5] for t in chosen["tokens"]]
    assert chosen["strips"][1] == plain["strips"][1], "of another tap point: the strongest, features are not the same"


def test_only_news_is_told(looked: Looked) -> None:
    boot = looked.feed.boot
    assert boot is not None
    seq = looked.feed.reader.written(boot.boot, 0)[3].seq
    assert looked.at(seq) is not None
    assert looked.at(seq + 1, whole=False) is None, "the browser moves the cursor by itself"
    other = looked.at(seq + 1, 5, whole=False)
    assert other is not None
    assert other["fresh"]


def test_prompts_are_listed_newest_first_with_their_lengths(looked: Looked) -> None:
    looked.at(0)
    listed = looked.texts.prompts()
    assert [p["prompt"] for p in listed] == list(range(7, -1, -1))
    assert listed[-1]["text"] == HOSTILE
    assert listed[-1]["given"] == str(1 + len(HOSTILE.split()))
    assert listed[-1]["written"] == "11", "the last token of twelve was never read"
    assert looked.texts.first_seq(1) == (0, looked.feed.reader.written(str(looked.feed.boot and looked.feed.boot.boot), 1)[0].seq)
    assert looked.texts.first_seq(99) is None


def test_a_text_that_grows_is_added_to(analysed: Path) -> None:
    with Reader(analysed) as reader:
        boot = reader.boots()[0].boot
        sections: dict[str, Any] = {}
        for section in reader.sections(boot):
            sections.setdefault(section.point, []).append(section)
        whole = Written(boot, reader.prompts(boot)[-1], 0)
        whole.read(reader, sections, ())
        assert not whole.closed, "of the last prompt more could come"
        first = Written(boot, reader.prompts(boot)[0], 0)
        for _ in range(100):
            first.read(reader, sections, ())
        assert first.closed
        rows = reader.written(boot, 0)
        assert first.seq == [r.seq for r in rows]
        assert "".join(first.text).startswith("<s> the")
        assert all(len(v) == len(first) for v in first.strengths.values())
        assert first.at(rows[3].seq) == 3
        assert first.at(rows[0].seq - 1) == -1
        assert not first.unknown
    assert SHOWN >= 1024


def test_an_agents_run_has_no_text(tmp_path: Path) -> None:
    from tests.store_builder import StoreBuilder

    builder = StoreBuilder(tmp_path / "run.db")
    builder.frames(60)
    looked = Looked(tmp_path / "run.db")
    assert looked.at(10) is None
    assert looked.texts.prompts() == []
    looked.close()
    builder.store.close()


def test_the_address_keeps_the_feature_that_shades() -> None:
    assert View.read({"shade": [b"12"]}).shade == 12
    assert View.read({"shade": [b"-1"]}).shade is None
    assert ("shade", "12") in View(shade=12).query()


@needs_browser
def test_text_is_read_shaded_and_gone_through(open_page: Callable[..., Any], analysed: Path, tmp_path: Path) -> None:  # noqa: F811
    db = tmp_path / "text.db"
    shutil.copy(analysed, db)
    page = open_page(db)
    becomes(page, "document.body.dataset.language == 'yes' && document.querySelectorAll('.written span').length > 10")
    assert not page.locator(".sees").is_visible()
    assert page.locator(".written .special").count() >= 1
    becomes(page, "document.querySelector('.prompts-count').textContent == '8'")
    page.locator("#prompt-search").fill("<b>cat</b>")
    assert page.locator(".prompt").count() == 4
    assert page.locator(".prompt-list b b, .prompt-list i").count() == 0, "text, never markup"
    page.locator("[data-prompt='0']").click()
    becomes(page, "document.querySelector('.which').textContent.startsWith('prompt 0 ')")
    becomes(page, "document.querySelector('[data-token=position]').textContent == '0'")
    assert page.locator(".written b").count() == 0
    assert "special" in page.locator("[data-token=kind]").inner_text()
    page.locator(".written [data-i='3']").click()
    becomes(page, "document.querySelector('[data-token=position]').textContent == '3'")
    assert page.locator(".written .at").get_attribute("data-i") == "3"
    assert page.locator(".written .later").count() == page.locator(".written [data-i]").count() - 4
    page.locator(".written").focus()
    page.keyboard.press("ArrowRight")
    becomes(page, "document.querySelector('[data-token=position]').textContent == '4'")
    assert page.locator(".nexts li").count() == 5
    page.locator(".written [data-i='2']").hover()
    becomes(page, "!document.querySelector('.tip').hidden && document.querySelector('.tip').textContent.includes('nat')")
    page.locator("[data-prompt='6']").click()
    becomes(page, "document.querySelector('.which').textContent.startsWith('prompt 6 ')")
    shades = "[...document.querySelectorAll('.written span')].map((s) => Number(s.style.getPropertyValue('--a')))"
    strong = page.evaluate(f"{shades}.findIndex((a) => a > 0.1)")
    page.locator(f".written [data-i='{strong}']").click()
    becomes(page, "document.querySelectorAll('.tops button').length > 0")
    page.locator(".tops button").first.click()
    feature = page.locator(".tops button").first.get_attribute("data-feature")
    becomes(page, f"document.querySelector('.by').textContent == 'n{feature}'")
    becomes(page, f"location.search.includes('shade={feature}')")
    becomes(page, f"{shades}[{strong}] > 0")
    page.locator(".reset").click()
    becomes(page, "document.querySelector('.by').textContent.includes('strongest')")
    page.locator(".rows .n").nth(2).click()
    other = page.locator(".rows .n").nth(2).get_attribute("data-row")
    becomes(page, f"document.querySelector('.by').textContent == 'n{other}'")
    page.locator(".points button").nth(1).click()
    becomes(page, "document.querySelectorAll('.points button')[1].getAttribute('aria-pressed') == 'true'")
    becomes(page, "document.querySelector('.by').textContent.includes('strongest')")
    box = page.locator("[data-canvas=layers]").bounding_box()
    page.mouse.click(box["x"] + 3, box["y"] + 5)
    becomes(page, "document.querySelector('[data-token=position]').textContent == '0'")


@needs_browser
def test_the_page_of_an_agent_shows_none_of_it(open_page: Callable[..., Any], tmp_path: Path) -> None:  # noqa: F811
    from tests.store_builder import StoreBuilder

    builder = StoreBuilder(tmp_path / "run.db")
    builder.frames(200)
    builder.accounts()
    page = open_page(tmp_path / "run.db")
    becomes(page, "document.body.dataset.view == 'running'")
    assert page.locator(".sees").is_visible()
    for name in (".reads", ".token", ".prompt-card"):
        assert not page.locator(name).is_visible()
    builder.store.close()


ANALYZE = """
import sys
from interlatent_live.cli.application import app
app(["analyze", "--connect", sys.argv[1], "--db", sys.argv[2], "--neurons"])
"""


@pytest.mark.slow
@needs_browser
def test_text_appears_while_it_is_written(open_page: Callable[..., Any], tmp_path: Path) -> None:  # noqa: F811
    made, tok, db = model(), tokenizer(), tmp_path / "live.db"
    words = tok("<s> " + TEXTS[1][0], return_tensors="pt").input_ids
    with il.Tap(made, "model.layers.1.mlp:out", run="live", endpoint="tcp://127.0.0.1:*", tokenizer=tok) as tap:
        assert tap.endpoint is not None
        with (tmp_path / "analyze.log").open("w") as log:
            analyzer = subprocess.Popen([sys.executable, "-c", ANALYZE, tap.endpoint, str(db)], stdout=log, stderr=log)
        try:
            assert tap.wait_subscribed(120)
            with tap.prompt(TEXTS[1][0], labels={"topic": "physics"}):
                cache = made(words).past_key_values
                page = open_page(db)
                seen: list[int] = []
                token = words[:, -1:]
                for _ in range(60):
                    token = made(token, past_key_values=cache).logits[:, -1:].argmax(-1)
                    page.wait_for_timeout(100)
                    seen.append(page.locator(".written [data-i]").count())
            assert len(set(seen) - {0}) > 3, "it grew while it was written"
            becomes(page, "document.querySelectorAll('.written [data-i]').length >= 60", 60)
            last = "[...document.querySelectorAll('.written [data-i]')].at(-1)"
            becomes(page, f"{last}.classList.contains('at')", 60)
        finally:
            analyzer.terminate()
            analyzer.wait()
