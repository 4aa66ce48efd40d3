"""Why this action, on the page: what the panel says of a row, and that it follows the cursor in a browser."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.store_builder import StoreBuilder
from tests.stream_samples import attribution
from tests.test_page import becomes, browser, needs_browser, open_page  # noqa: F401 - fixtures

from interlatent_live.analyzer.attributions import attribute
from interlatent_live.analyzer.writes import Writes
from interlatent_live.stream.attribution import Attribution
from interlatent_live.viewer.why import why


def said(found: Attribution | None, age_s: float | None = 0.0, labels: dict[int, str] | None = None, **options: Any) -> dict[str, Any]:
    given: dict[str, Any] = {"fits": True, "name": "cartpole"} | options
    return why(found, age_s, {}, labels or {}, **given)


def test_actions_with_the_parts_of_their_scores() -> None:
    panel = said(attribution(), 0.0, {17: "cart left of centre"})
    assert (panel["state"], panel["unit"]) == ("shown", "frame 1 · logits")
    left, right = panel["actions"]
    p = np.exp([-1.0, 2.5]) / np.exp([-1.0, 2.5]).sum()
    assert (left["name"], left["value"], left["chosen"]) == ("left", f"{100 * p[0]:.0f}\u202f%", False)
    assert (right["name"], right["value"], right["chosen"], right["signed"]) == ("right", f"{100 * p[1]:.0f}\u202f%", True, False)
    assert [(x["name"], x["label"], x["text"]) for x in right["parts"]] == [
        ("f17", "cart left of centre", "+2.00"), ("f4", "", "+1.00"), ("f30", "", "−0.50"), ("", "bias and error term", "0.00"),
    ]  # fmt: skip
    assert [x["bar"] for x in right["parts"]] == [1.0, 0.5, -0.25, 0.0]
    assert "error term +0.12" in right["parts"][-1]["about"]
    total = sum(float(x["text"].replace("−", "-")) for x in left["parts"])
    assert total == pytest.approx(-1.0), "what is shown sums to the score"


def test_more_features_than_are_named_stand_together() -> None:
    f = 5
    many = attribution(
        features=np.arange(f, dtype="<i4"), values=np.ones(f, "<f4"),
        contributions=np.array([[1, 5], [2, 4], [3, 3], [4, 2], [5, 1]], "<f4"),
    )
    first = said(many)["actions"][0]["parts"]
    assert [(p["name"], p["kind"], p["text"]) for p in first[:4]] == [
        ("f4", "feature", "+5.00"), ("f3", "feature", "+4.00"), ("f2", "feature", "+3.00"), ("", "others", "+3.00"),
    ]  # fmt: skip
    assert first[3]["label"] == "2 other features"


def test_means_and_q_values_keep_their_signs() -> None:
    panel = said(attribution(kind="means", chosen=-1))
    assert [a["value"] for a in panel["actions"]] == ["−1.00", "+2.50"]
    assert [a["bar"] for a in panel["actions"]] == [-0.4, 1.0]
    assert all(a["signed"] and not a["chosen"] for a in panel["actions"])
    assert said(attribution(kind="q"))["unit"] == "frame 1 · Q-values"
    some = said(attribution(action_count=200, actions=np.array([3, 150], "<i4"), chosen=150, names=("", "")))
    assert some["unit"] == "frame 1 · logits of 2 of 200 actions"
    assert [a["name"] for a in some["actions"]] == ["action 3", "action 150"]
    assert [a["value"] for a in some["actions"]] == ["−1.00", "+2.50"], "probabilities of some of the actions would be another thing"


def test_age_and_absence_are_said() -> None:
    assert said(attribution(), 0.04)["unit"] == "40\u202fms earlier · logits"
    stale = said(attribution(), 3.2)
    assert (stale["state"], stale["note"]) == ("stale", "stale: 3.2\u202fs earlier")
    none = said(None)
    assert none["state"] == "none"
    assert none["code"] == 'il.Tap(policy, why=il.Why("cartpole"))'
    assert "dict train" in said(None, fits=False, name="")["code"]

def test_of_many_actions_the_taken_one_and_the_best_other_are_taken_apart() -> None:
    a = 5
    five: dict[str, Any] = {
        "action_count": a, "names": tuple("abcde"), "actions": np.arange(a, dtype="<i4"), "total": np.array([0, 3, 1, 4, -9], "<f4"),
        "contributions": np.zeros((3, a), "<f4"),
    } | {name: np.zeros(a, "<f4") for name in ("bias", "error", "rest")}  # fmt: skip
    panel = said(attribution(chosen=2, **five))
    assert [(x["name"], x["rank"]) for x in panel["actions"]] == [("c", "taken"), ("d", "next")]
    assert [(x["name"], x["chosen"]) for x in panel["all"]] == [("a", False), ("b", False), ("c", True), ("d", False), ("e", False)]
    likely = said(attribution(chosen=-1, **five))
    assert [(x["name"], x["rank"]) for x in likely["actions"]] == [("d", ""), ("b", "")]
    means = said(attribution(chosen=-1, kind="means", **five))
    assert [(x["name"], x["rank"]) for x in means["actions"]] == [("e", ""), ("d", "")]
    assert said(attribution())["all"] == []


@needs_browser
def test_the_panel_follows_the_cursor(open_page: Callable[..., Any], tmp_path: Path) -> None:  # noqa: F811
    builder = StoreBuilder(tmp_path / "run.db")
    builder.frames(300)
    builder.snapshot()
    builder.accounts()
    page = open_page(tmp_path / "run.db")
    becomes(page, "document.body.dataset.view == 'running'")
    becomes(page, "document.querySelector('.why').dataset.why == 'none'")
    assert 'il.Why("cartpole")' in page.locator(".why").inner_text()
    period = builder.period_s * 1e9

    def explain(seq: int, **changes: Any) -> None:
        writes = Writes()
        clock = builder.start_ns + int(seq * period)
        known = {"run": builder.run, "boot": builder.boot, "dictionary": builder.hash, "monotonic_ns": clock}
        attribute(attribution(seq, **(known | changes)), writes)
        builder.store.commit(writes)

    explain(100, names=("<b>left</b>", "right"))
    explain(295, chosen=0)
    builder.frames(5)
    becomes(page, "document.querySelector('.why').dataset.why == 'shown'")
    assert "taken" in page.locator(".why .score .n").first.inner_text()
    assert page.locator(".why .parts li").count() == 8
    page.evaluate("window.itime.send({ op: 'seek', to: 101 })")
    becomes(page, "document.querySelector('.why-note').textContent.includes('20\u202fms earlier')")
    assert page.locator(".why .score .n").first.inner_text() == "<b>left</b>", "names are text, never markup"
    page.evaluate("window.itime.send({ op: 'seek', to: 250 })")
    becomes(page, "document.querySelector('.why').dataset.why == 'stale'")
    assert "3.0\u202fs earlier" in page.locator(".why-note").inner_text()
    page.evaluate("window.itime.send({ op: 'seek', to: 50 })")
    becomes(page, "document.querySelector('.why').dataset.why == 'none'")
    builder.store.close()
