"""Explanations of a language model's features: rules over the token's text, its class and its prompt's labels; windows of text."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from interlatent_live.explainer.evidence import gather
from interlatent_live.explainer.explaining import askable
from interlatent_live.explainer.grammar import parse
from interlatent_live.explainer.hypothesis import from_rule
from interlatent_live.explainer.predicate import Clause, Predicate
from interlatent_live.explainer.rules import fit
from interlatent_live.explainer.scoring import score
from interlatent_live.explainer.table import Features, Labels, Table
from interlatent_live.explainer.wording import Wording, Words

WORDS = ("heat", "fuel", "the", ",", "(", "cat", "dog", "<b>", "3")
ENTROPY = "next_entropy"


def text_table(active: str, *, prompts: int = 24, long: int = 40, seed: int = 0, noise: float = 0.02) -> Table:
    """Prompts of random words; feature 0 is active where `active` says of (word, topic, entropy before), but for some noise."""
    rng = np.random.default_rng(seed)
    n = prompts * long
    word = rng.integers(0, len(WORDS), n)
    topic = np.repeat(rng.integers(0, 2, prompts), long)
    entropy = rng.exponential(1.0, n)
    before = np.concatenate([[np.nan], entropy[:-1]])
    on = np.array([eval(active, {}, {"word": WORDS[w], "topic": t, "before": b}) for w, t, b in zip(word, topic, before, strict=True)])
    on ^= rng.random(n) < noise
    matrix = np.zeros((n, 2), np.float32)
    matrix[:, 0] = on * rng.uniform(0.5, 4.0, n)
    matrix[:, 1] = rng.random(n) < 0.3
    classes = {"digit": [WORDS[w].isdigit() for w in word], "punctuation": [WORDS[w] in ",(<b>" for w in word]}
    return Table(
        {"position": np.tile(np.arange(long), prompts), "logprob": -rng.exponential(2.0, n), ENTROPY: entropy,
         **{name: np.asarray(values, np.float64) for name, values in classes.items()}},
        episode=np.repeat(np.arange(prompts), long), episode_step=np.tile(np.arange(long), prompts),
        labels={"token": Labels.of([WORDS[w] for w in word]), "topic": Labels.of([("pets", "physics")[t] for t in topic])},
        features=Features(matrix, np.ones(n, np.bool_)),
    )  # fmt: skip


def rule(table: Table) -> Predicate:
    rows = table.episode < 18
    (found,) = fit(table, [0], rows, metrics=("position", "logprob", "digit", "punctuation"), labels=("token", "topic"))
    held = score([found.predicate], [0], table, table.episode >= 18)[0]
    assert held.balanced_accuracy.mean > 0.93, found.predicate
    assert held.shuffled is not None
    return found.predicate


def test_a_feature_of_two_words_is_told_by_their_text() -> None:
    predicate = rule(text_table("word in ('heat', 'fuel')"))
    assert {(c.metric, c.comparison, c.value) for c in predicate.clauses} == {("token", "==", "heat"), ("token", "==", "fuel")}
    assert parse(str(predicate)) == predicate


def test_a_label_and_a_word_go_together() -> None:
    predicate = rule(text_table("word == 'cat' and topic == 1", noise=0))
    assert ("token", "==", "cat") in {(c.metric, c.comparison, c.value) for c in predicate.clauses}
    assert any(c.metric == "topic" for c in predicate.clauses)


def test_a_class_is_preferred_to_many_words() -> None:
    assert [c.metric for c in rule(text_table("word in (',', '(', '<b>')")).clauses] == ["punctuation"]


def test_what_was_expected_before_the_token_counts() -> None:
    table = text_table("before > 1.2")
    rows = table.episode < 18
    (found,) = fit(table, [0], rows, metrics=("position", "logprob", ENTROPY), labels=("token",), lags=(1,))
    assert (found.predicate.clauses[0].metric, found.predicate.clauses[0].lag) == (ENTROPY, 1)


def many_words(active: str, *, prompts: int = 40, long: int = 60, seed: int = 1) -> Table:
    """Prompts of 80 different words, `w0` to `w79`, the first ones frequent; feature 0 is active where `active` says of (word, before)."""
    rng = np.random.default_rng(seed)
    n = prompts * long
    word = np.minimum(rng.geometric(0.04, n) - 1, 79)
    before = np.where(np.arange(n) % long, np.roll(word, 1), -1)
    on = np.array([eval(active, {}, {"word": w, "before": b}) for w, b in zip(word.tolist(), before.tolist(), strict=True)])
    on ^= rng.random(n) < 0.02
    return Table(
        {"position": np.tile(np.arange(long), prompts)}, episode=np.repeat(np.arange(prompts), long),
        episode_step=np.tile(np.arange(long), prompts), labels={"token": Labels.of([f"w{w}" for w in word])},
        features=Features(on[:, None].astype(np.float32), np.ones(n, np.bool_)),
    )  # fmt: skip


@pytest.mark.parametrize(("lag", "active"), [(0, "word % 3 == 0 and word < 40"), (1, "before % 3 == 0 and 0 <= before < 40")])
def test_a_feature_of_many_words_is_told_by_a_set_of_them(lag: int, active: str) -> None:
    table = many_words(active)
    rows = table.episode < 26
    (found,) = fit(table, [0], rows, metrics=("position",), labels=("token",), sets=(("token", 0),), more_sets=(("token", 1),))
    (clause,) = found.predicate.clauses
    assert (clause.metric, clause.comparison, clause.lag) == ("token", "in", lag)
    assert len(set(clause.texts) & {f"w{w}" for w in range(0, 40, 3)}) >= 10
    assert parse(str(found.predicate)) == found.predicate
    held = score([found.predicate], [0], table, ~rows)[0].balanced_accuracy.mean
    assert held > 0.9
    assert abs(found.train_accuracy - held) < 0.05, "compared on frames whose own words had no say in the set"
    wording = Wording.of(table, rows, [], words=Words.of(True))
    assert wording.label(found.predicate).startswith("after ‘w" if lag else "‘w")
    assert len(wording.label(found.predicate).split()) <= 6
    assert ("the token before is ‘w" if lag else "token is ‘w") in wording.describe(found.predicate)


def test_a_set_of_words_is_no_answer_to_chance() -> None:
    table = many_words("word * 0 == 1")
    noise = np.random.default_rng(5).random(table.rows) < 0.3
    table.features = Features(noise[:, None].astype(np.float32))
    rows = table.episode < 26
    for found in fit(table, [0], rows, metrics=("position",), labels=("token",), sets=(("token", 0), ("token", 1))):
        assert found.train_accuracy < 0.55


def test_words_of_a_text() -> None:
    table = text_table("word == 'heat'")
    wording = Wording.of(table, table.episode >= 0, [], words=Words.of(True))
    said = [wording.describe(parse(text)) for text in ("steps_to_end < 3", "episode_length > 20", "position[-1] > 3", "token[-2] == heat")]
    assert said == ["fewer than 3 tokens before the text ends", "a text of more than 20 tokens", "position 1 token ago above 3",
                    "token 2 tokens ago is ‘heat’"]  # fmt: skip


def test_numbers_alone_give_the_same_rule_with_and_without_labels() -> None:
    table = text_table("before > 1.2")
    rows = table.episode < 18
    plain = fit(table, [0], rows, metrics=("position", "logprob"), lags=(1,))
    with_none = fit(table, [0], rows, metrics=("position", "logprob"), lags=(1,), labels=())
    assert [f.predicate for f in plain] == [f.predicate for f in with_none]


@pytest.mark.parametrize(
    ("value", "label", "said"),
    [
        ("heat", "‘heat’", "token is ‘heat’"), (",", "comma", "token is comma"), ("((", "left parenthesis and more", "token is left"),
        ("<b>", "‘b’", "token is ‘b’"), ("<script>alert(1)</script>", "‘script alert", "token is ‘script"),
    ],
)  # fmt: skip
def test_tokens_in_words_are_plain_whatever_they_hold(value: str, label: str, said: str) -> None:
    table = text_table("word == 'heat'")
    predicate = Predicate(groups=((Clause(metric="token", comparison="==", value=value),),), join="or")
    wording = Wording.of(table, table.episode >= 0, [])
    assert wording.label(predicate).startswith(label)
    assert wording.describe(predicate).startswith(said)
    from interlatent_live.explainer.rules import Fitted

    made = from_rule(Fitted(0, predicate, 0.9), wording)
    assert made.label


def test_windows_hold_text_with_activations_from_0_to_10() -> None:
    table = text_table("word in ('heat', 'fuel')", noise=0)
    evidence = gather(0, table, table.episode < 18, metrics=("position", "logprob"))
    data = json.loads(evidence.to_json())
    levels = []
    for window in data["peaks"]:
        assert len(window["tokens"]) == len(window["offsets"]) > 5
        text, level = window["tokens"][window["offsets"].index(0)]
        assert text in ("heat", "fuel")
        assert 1 <= level <= 10
        assert all((level > 0) == (text in ("heat", "fuel")) for text, level in window["tokens"])
        levels.append(level)
    assert max(levels) == 10
    assert all(window["tokens"][window["offsets"].index(0)][1] == 0 for window in data["contrasts"])
    plain = Table({"position": table.number("position")}, episode=table.episode, episode_step=table.episode_step, features=table.features)
    assert "tokens" not in gather(0, plain, table.episode < 18, metrics=("position",)).to_json(), "an agent's evidence is as it was"


def test_what_asks_for_a_label_that_is_gone_is_left_alone() -> None:
    table = text_table("word == 'heat'")
    assert askable(parse('token == "heat" and position > 3'), table)
    assert askable(parse("position > 3"), table)
    assert not askable(parse('token == "heat" or mood == sad'), table)


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("token[-1] == the", lambda t: t["before"] == "the"), ('token[-1] in (the, ",")', lambda t: t["before"] in ("the", ",")),
        ("position == 0", lambda t: t["position"] == 0), ("position[-1] == 0", lambda t: t["position"] == 1),
        ("logprob < -3 and token not in (the)", lambda t: t["logprob"] < -3 and t["token"] != "the"),
        ("change(digit, 1) > 0.5", lambda t: t["token"] == "3" and t["before"] not in (None, "3")),
        ("topic == pets and punctuation > 0.5", lambda t: t["topic"] == "pets" and t["token"] in (",", "(", "<b>")),
    ],
)  # fmt: skip
def test_what_can_be_asked_of_a_token(text: str, holds: Callable[[dict[str, Any]], bool]) -> None:
    table = text_table("word == 'heat'")
    words = [WORDS[int(c)] for c in np.array([WORDS.index(v) for v in table.labels["token"].values])[table.labels["token"].codes]]
    topic = table.labels["topic"]
    rows = [
        {"token": word, "before": words[i - 1] if i % 40 else None, "position": i % 40, "logprob": table.number("logprob")[i],
         "topic": topic.values[topic.codes[i]]}
        for i, word in enumerate(words)
    ]  # fmt: skip
    predicate = parse(text, table.vocabulary)
    assert str(predicate) == text
    assert predicate.holds(table).tolist() == [holds(row) for row in rows]
