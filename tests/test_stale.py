"""What the page says of a dictionary whose card says little about the weights that act."""

from __future__ import annotations

from dataclasses import replace

from interlatent_live.analyzer.records import DictionaryRow, Section
from interlatent_live.stream.manifest import Manifest
from interlatent_live.viewer.learning import stale_reason

FROZEN = Manifest("r", "b", 0, 0, weights_hash="a" * 64)
ROW = DictionaryRow("h", "mine", "topk", "3:out", 8, {"model_hash": "f" * 64, "output": "3:out"}, None, None)
SECTION = Section(1, "r", "b", "3:out", "h", FROZEN.hash, 0, 9, "start", 0)


def test_a_dictionary_of_these_weights_is_not_stale() -> None:
    assert stale_reason(FROZEN, SECTION, ROW) == ""
    assert stale_reason(replace(FROZEN, weights="changing"), SECTION, replace(ROW, kind="neurons")) == ""
    assert stale_reason(None, SECTION, ROW) == ""


def test_an_override_names_both_weights() -> None:
    said = stale_reason(FROZEN, replace(SECTION, mismatch=1), ROW)
    assert said == "used by override: mine is of weights ffffffffffff, the agent has aaaaaaaaaaaa"
    unknown = replace(ROW, cfg={"model_hash": "", "output": "hook"})
    assert "weights it does not name" in stale_reason(FROZEN, replace(SECTION, mismatch=1), unknown)
    moved = replace(ROW, cfg={"model_hash": "a" * 64, "output": "hook"})
    assert stale_reason(FROZEN, replace(SECTION, mismatch=1), moved).endswith("it was trained at hook")


def test_changing_weights_say_so() -> None:
    assert "weights are changing" in stale_reason(replace(FROZEN, weights="changing"), replace(SECTION, mismatch=2), ROW)
