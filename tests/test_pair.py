"""Two texts of one prompt side by side, from a recording and live, and the box that asks for them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.test_asked import Writer, client, tapped, whole
from tests.test_lm_steering import units
from tests.test_page import ARGS, CHROMIUM, becomes, browser, needs_browser, open_page  # noqa: F401 - fixtures
from tests.test_text_panel import Looked
from tests.tiny_lm import model

from interlatent_live.analyzer.digest import verify
from interlatent_live.analyzer.queries import Reader
from interlatent_live.analyzer.service import analyze_recording
from interlatent_live.stream.errors import SteeringError
from interlatent_live.viewer.pair import PairView
from interlatent_live.viewer.prompt_box import MAX_TOKENS, PromptBox, Wish, blocked
from interlatent_live.viewer.view import View

POINT = "model.layers.1.mlp:out"
CLAMP = {"operation": "clamp", "strength": 8.0, "feature": 5}
TEXT = "the <i>rocket</i> flies and the fuel burns"


@pytest.fixture(scope="module")
def analysed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A pair, a text that was steered alone, and one that nobody steered; (database, the pair's name)."""
    folder = tmp_path_factory.mktemp("pair")
    tap = tapped(record=folder / "r.mcap", policy={"effect_hz": 1e9, "effect_share": 0.5})
    with Writer(tap), client(tap) as asking:
        pair = asking.prompt(TEXT, max_new_tokens=40, steer=[CLAMP], both=True)
        for id in (pair["prompt"], *(asking.prompt("a dog", max_new_tokens=6, **more)["prompt"] for more in ({"steer": [CLAMP]}, {}))):
            assert whole(asking, id)["state"] == "done"
    units(model(), POINT).save(folder / "units")
    analyze_recording(folder / "r.mcap", folder / "pair.db", dictionaries=[str(folder / "units")])
    return folder / "pair.db", str(pair["pair"])


@pytest.fixture
def looked(analysed: tuple[Path, str]) -> Iterator[Looked]:
    made = Looked(analysed[0])
    yield made
    made.close()


def test_the_store_knows_pairs_and_a_replay_gives_the_same(analysed: tuple[Path, str], tmp_path: Path) -> None:
    db, name = analysed
    with Reader(db) as reader:
        boot = reader.boots()[0].boot
        found = reader.pairs(boot)
        assert [(p.prompt, p.pair, p.arm) for p in found] == [(0, name, "plain"), (1, name, "steered"), (2, "", "steered")]
        assert [p.labels.get("arm") for p in reader.prompts(boot)] == ["plain", "steered", None, None]
    analyze_recording(db.with_name("r.mcap"), tmp_path / "again.db", dictionaries=[str(db.with_name("units"))])
    assert verify(db, tmp_path / "again.db") is None


def test_both_are_told_with_where_they_part(analysed: tuple[Path, str], looked: Looked) -> None:
    view = PairView(looked.feed)
    told = view.message(analysed[1], 5, whole=True)
    assert told is not None
    plain, steered = told["arms"]
    assert (plain["arm"], steered["arm"], plain["prompt"], steered["prompt"]) == ("plain", "steered", 0, 1)
    texts = [[t[1] for t in arm["tokens"]] for arm in (plain, steered)]
    at = told["differs"]
    assert texts[0][:at] == texts[1][:at]
    assert texts[0][at] != texts[1][at]
    assert plain["given"] == steered["given"] == len(TEXT.split()) <= at
    assert told["acts"] == ["f5 held at 8"]
    assert told["kl"]["count"] == sum(t[6] is not None for t in steered["tokens"]) > 3
    assert all(t[6] is None for t in plain["tokens"])
    boot = looked.feed.boot
    assert boot is not None
    logprobs = [r.logprob for r in looked.feed.reader.written(boot.boot, 1)]
    assert [t[3] for t in steered["tokens"]] == [None if v is None else float(f"{v:.4g}") for v in logprobs]
    strongest = max(abs(t[4]) for arm in (plain, steered) for t in arm["tokens"] if t[4] is not None)
    assert 0 < strongest <= told["scale"]
    assert view.message(analysed[1], 5, whole=False) is None, "nothing is new"
    alone = view.message("p2", None, whole=False)
    assert alone is not None
    assert ([a["arm"] for a in alone["arms"]], alone["pair"], alone["differs"]) == (["steered"], False, None)
    assert view.message(None, None, whole=False) == {"name": None}
    assert view.message(None, None, whole=False) is None
    lost = view.message("nothere", None, whole=False)
    assert lost is not None
    assert lost["arms"] == []


def test_the_list_of_prompts_names_the_pair(analysed: tuple[Path, str], looked: Looked) -> None:
    looked.at(0)
    assert [p.get("pair") for p in looked.texts.prompts()] == [None, None, analysed[1], analysed[1]]


def test_the_address_keeps_the_pair() -> None:
    assert View.read({"pair": [b"7f3a"]}).pair == "7f3a"
    assert View.read({"pair": [b"<script>"]}).pair is None
    assert ("pair", "p7") in View(pair="p7").query()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"text": " "}, "Write a prompt"), ({"text": "a", "tokens": 0}, "from 1 to 512"), ({"text": "a", "tokens": 2.5}, "from 1 to 512"),
        ({"text": "a", "tokens": MAX_TOKENS + 1}, "from 1 to 512"), ({"text": "a", "tokens": 4, "both": True}, "Name a feature"),
        ({"text": "a", "tokens": 4, "feature": -1, "operation": "scale", "strength": 0}, "whole number"),
        ({"text": "a", "tokens": 4, "feature": 1, "operation": "melt", "strength": 0}, "strength"),
        ({"text": "a", "tokens": 4, "feature": 1, "operation": "scale", "strength": None}, "strength"),
    ],
)  # fmt: skip
def test_what_a_form_lacks_is_said(data: dict[str, Any], said: str) -> None:
    with pytest.raises(SteeringError, match=said):
        Wish.of(data, "hash")


def test_a_wish_becomes_a_request() -> None:
    wish = Wish.of({"text": "a", "tokens": 4, "feature": 3, "operation": "ablate", "strength": 7, "both": True}, "hash")
    steer = [{"operation": "ablate", "strength": 0.0, "feature": 3, "dictionary": "hash"}]
    assert wish.request == {"max_new_tokens": 4, "steer": steer, "both": True, "chat": None}
    with pytest.raises(SteeringError, match="of the dictionary that is shown"):
        Wish.of({"text": "a", "tokens": 4, "feature": 3, "operation": "ablate"}, "")


def test_a_recording_takes_no_prompts_and_says_what_would(looked: Looked) -> None:
    why = blocked(looked.feed, reached=True, allowed=True)
    assert why is not None
    assert why[1] == "interlatent-live demo --agent lm"
    told: list[dict[str, Any]] = []
    box = PromptBox(lambda what, json="": told.append({"what": what, "json": json}), None, True)
    assert box.show(looked.feed) is None
    assert box.obey({"text": "a", "tokens": 3}, looked.feed) is None
    assert json.loads(told[0]["json"])["may"] is False
    box.close()


@needs_browser
def test_a_pair_of_a_recording_is_shown_and_kept_in_the_address(
    open_page: Callable[..., Any], analysed: tuple[Path, str], tmp_path: Path  # noqa: F811
) -> None:
    db = tmp_path / "pair.db"
    shutil.copy(analysed[0], db)
    page = open_page(db)
    becomes(page, "document.querySelectorAll('.prompt-list .beside').length == 2")
    assert page.locator("#try-plain").is_disabled()
    assert "demo --agent lm" in page.locator(".try-why code").inner_text()
    page.locator(".prompt-list .beside").first.click()
    becomes(page, "document.body.dataset.pair == 'yes' && document.querySelectorAll('.side .first').length == 2")
    becomes(page, f"location.search.includes('pair={analysed[1]}')")
    assert not page.locator(".written").is_visible()
    assert "f5 held at 8" in page.locator(".acts-said").inner_text()
    assert "KL" in page.locator(".verdict").inner_text()
    assert page.locator(".side i").count() == 0, "text, never markup"
    page.locator(".side .first").first.hover()
    becomes(page, "!document.querySelector('.tip').hidden && document.querySelector('.tip').textContent.includes('log-probability')")
    page.locator(".side .first").last.click()
    first = "document.querySelectorAll('.side .first')[1].textContent.trim()"
    becomes(page, f"document.querySelector('[data-token=text]').textContent.includes({first})")
    page.reload()
    becomes(page, "document.querySelectorAll('.side .first').length == 2")
    page.locator(".pair .back").click()
    becomes(page, "document.body.dataset.pair == 'no' && !location.search.includes('pair=')")
    assert page.locator(".written").is_visible()
