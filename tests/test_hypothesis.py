from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from interlatent_live.explainer.grammar import parse
from interlatent_live.explainer.hypothesis import DESCRIPTION_WORDS, LABEL_WORDS, Hypothesis, Proposal, from_rule, read_proposal
from interlatent_live.explainer.rules import Fitted
from interlatent_live.explainer.table import Table, Vocabulary
from interlatent_live.explainer.wording import Wording
from interlatent_live.stream.errors import HypothesisError

VOCABULARY = Vocabulary({"pole_angle": "rad"}, {"topic": ("physics",)}, features=4)
CLAUSE = {"metric": "pole_angle", "comparison": ">", "value": 0.1}


def answer(**changes: Any) -> str:
    plain = {"label": "pole leans right", "description": "Active when the pole leans right by more than 0.1 rad.",
             "predicate": {"join": "or", "groups": [[CLAUSE]]}}
    return json.dumps(plain | changes)


def test_a_good_answer_becomes_a_hypothesis() -> None:
    got = read_proposal(answer(), VOCABULARY, source="llm:tiny")
    assert (got.label, got.source, str(got.predicate)) == ("pole leans right", "llm:tiny", "pole_angle > 0.1")
    assert Hypothesis.model_validate_json(got.model_dump_json()) == got
    assert read_proposal(answer(label="  pole   leans  "), VOCABULARY, source="llm:t").label == "pole leans"


def predicate(**clause: Any) -> dict[str, Any]:
    return {"groups": [[CLAUSE | clause]]}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "unreadable"), ("{", "unreadable"), (answer()[:-20], "unreadable"), ("[]", "unreadable"), ("null", "unreadable"),
        ("I think this feature is about balance.", "unreadable"), (answer(extra=1), "unreadable"),
        (json.dumps({"label": "a"}), "unreadable"), ("\ud800", "unreadable"),
        (answer(label=""), "prose"), (answer(label=" "), "prose"), (answer(label="one two three four five six seven"), "prose"),
        (answer(description="word " * 41), "prose"), (answer(label="x" * 81), "prose"), (answer(label=3), "prose"),
        (answer(label="<script>alert(1)</script>"), "prose"), (answer(description="see https://evil.example"), "prose"),
        (answer(description="[click](javascript:x)"), "prose"), (answer(description="a\nb"), "prose"),
        (answer(description="a\u202eb"), "prose"), (answer(description="&lt;b&gt;"), "prose"),
        (answer(predicate="pole_angle > 0.1"), "predicate"), (answer(predicate={"groups": []}), "predicate"),
        (answer(predicate={"groups": [[CLAUSE] * 5]}), "predicate"), (answer(predicate=None), "predicate"),
        (answer(predicate=predicate(comparison="is")), "predicate"),
        (answer(predicate=predicate(value="high")), "predicate"),
        (answer(predicate=predicate(comparison="==", value="high")), "predicate"),
        (answer(predicate=predicate(metric="topic", value=1)), "predicate"),
        (answer(predicate=predicate(metric="pole_angel")), "unknown_name"),
        (answer(predicate=predicate(metric="f4")), "unknown_name"),
        (answer(predicate={"groups": [[CLAUSE, CLAUSE | {"comparison": "<", "value": 0}]]}), "impossible"),
        (answer().replace("0.1}", "NaN}"), "predicate"), (answer().replace("0.1}", "1e999}"), "predicate"),
    ],
)
def test_anything_else_is_refused_with_a_reason(text: str, reason: str) -> None:
    with pytest.raises(HypothesisError) as caught:
        read_proposal(text, VOCABULARY, source="llm:tiny")
    assert caught.value.reason == reason, str(caught.value)
    assert "evil" not in str(caught.value)


def test_less_than_is_no_markup() -> None:
    assert read_proposal(answer(description="angle < 0.1 and speed > 3"), VOCABULARY, source="llm:t").description


def test_a_rule_never_goes_without_a_predicate() -> None:
    for source in ("user", "llm:x"):
        assert Hypothesis(label="my favourite", description="", predicate=None, source=source).predicate is None
    with pytest.raises(ValidationError, match="a rule needs a predicate"):
        Hypothesis(label="my favourite", description="", predicate=None, source="rules")
    for bad in ("", "me", "llm:", "llm:a b"):
        with pytest.raises(ValidationError):
            Hypothesis(label="a", description="", predicate=None, source=bad)
    for label in ("", "<b>", "x" * 81, "1 2 3 4 5 6 7"):
        with pytest.raises(ValidationError):
            Hypothesis(label=label, description="", predicate=None, source="user")
    with pytest.raises(ValidationError, match="400"):
        Hypothesis(label="a", description="x" * 401, predicate=None, source="user")


def test_a_sentence_alone_is_taken_only_where_it_is_scored() -> None:
    text = json.dumps({"label": "heat", "description": "Active at words of heat.", "predicate": None})
    vocabulary = Vocabulary({"x": ""})
    assert read_proposal(text, vocabulary, source="llm:x", prose=True).predicate is None
    with pytest.raises(HypothesisError) as caught:
        read_proposal(text, vocabulary, source="llm:x")
    assert caught.value.reason == "predicate"
    with pytest.raises(HypothesisError, match="is empty, and there is no predicate") as empty:
        read_proposal(json.dumps({"label": "heat", "description": ""}), vocabulary, source="llm:x", prose=True)
    assert empty.value.reason == "prose"


def test_the_schema_suits_structured_output() -> None:
    """Objects are closed and nothing is recursive, which is what servers of structured output ask for."""
    schema = Proposal.model_json_schema()
    for part in (schema, *schema["$defs"].values()):
        assert part["additionalProperties"] is False
    assert set(schema["properties"]) == {"label", "description", "predicate"}
    assert set(schema["$defs"]) == {"Predicate", "Clause"}


@pytest.mark.parametrize("name", ["right_shoulder_joint_angular_velocity_about_its_second_axis", "<b>", "x" * 100])
def test_every_rule_can_be_worded(name: str) -> None:
    table = Table({name: np.linspace(0, 1, 50), "contact": np.arange(50) % 2})
    wording = Wording.of(table, np.ones(50, bool), [name, "contact"])
    text = f"`{name}` > 0.25 and contact > 0.5 or `{name}`[-3] <= 0.125 and change(`{name}`, 10) <= -0.5"
    got = from_rule(Fitted(0, parse(text), 0.9), wording)
    assert 0 < len(got.label.split()) <= LABEL_WORDS
    assert len(got.description.split()) <= DESCRIPTION_WORDS
    assert got.source == "rules"
