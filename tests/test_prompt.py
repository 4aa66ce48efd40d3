"""Prompts and the text of tokens on the wire, in recordings, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.stream_samples import batch, manifest

from interlatent_live.analyzer.prompts import without_special
from interlatent_live.stream.errors import MalformedMessage, WireError
from interlatent_live.stream.prompt import MAX_LABELS, Prompt, Vocabulary, checked_labels, pieces
from interlatent_live.stream.reading import Recording
from interlatent_live.stream.recording import Recorder
from interlatent_live.stream.salvage import recover
from interlatent_live.stream.wire import decode, encode

PROMPT = Prompt("agent", "b0", 3, 1, 2, 1_764_000_000_000_000_000, 5, "the cat – sat", {"topic": "pets", "long": "no"})
WORDS = Vocabulary("agent", "b0", 1_764_000_000_000_000_001, (7, 9), (b" cat", b"\xe2\x80"))


PAIRED = replace(PROMPT, pair="7f3a09c2", arm="steered")


@pytest.mark.parametrize("message", [PROMPT, WORDS, PAIRED])
def test_there_and_back(message: Prompt | Vocabulary) -> None:
    assert decode(encode(message)) == message


LABEL = st.from_regex(r"\A[a-z]{1,9}\Z")


@given(st.integers(0, 2**31 - 1), st.text(max_size=50), st.dictionaries(LABEL, LABEL, max_size=MAX_LABELS))
def test_any_text_travels(number: int, text: str, labels: dict[str, str]) -> None:
    prompt = Prompt("r", "b", number, 0, 0, 1, 2, text.encode("utf-8", "replace").decode(), labels)
    assert decode(encode(prompt)) == prompt


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("prompt", {"text": 3}), ("prompt", {"labels": [1]}), ("prompt", {"labels": {"a": ""}}), ("prompt", {"prompt": -1}),
        ("prompt", {"pair": 3}), ("prompt", {"arm": "x" * 65}), ("prompt", {"pair": "a\nb"}),
        ("prompt", {"labels": {"a`": "b"}}), ("vocabulary", {"tokens": [1]}), ("vocabulary", {"tokens": [-1, 2]}),
        ("vocabulary", {"texts": ["a", "b"]}), ("vocabulary", {"texts": [b"a" * 300, b""]}), ("vocabulary", {"tokens": [], "texts": []}),
    ],
)  # fmt: skip
def test_what_is_not_as_described_is_refused(kind: str, change: dict[str, object]) -> None:
    parts = encode(PROMPT if kind == "prompt" else WORDS)
    header = msgpack.unpackb(parts[1]) | change
    with pytest.raises(WireError):
        decode([parts[0], msgpack.packb(header), *parts[2:]])


def test_labels_are_text_that_predicates_can_ask_for() -> None:
    assert checked_labels({"n": 3, "yes": True, "none": None}) == {"n": "3", "yes": "true"}
    for bad in ({"": "a"}, {"a": ""}, {"a": "x" * 200}, {"a": "line\nbreak"}, {str(i): "x" for i in range(MAX_LABELS + 1)}):
        with pytest.raises(MalformedMessage, match="label"):
            checked_labels(bad)


def test_a_character_over_several_tokens_stands_with_the_last() -> None:
    assert pieces([b"a", b"\xe2\x80", b"\x93 b", b"\xff"]) == ["a", "", "– b", "�"]


def test_recorded_and_salvaged(tmp_path: Path) -> None:
    path = tmp_path / "r.mcap"
    recorder = Recorder(path)
    for message in (manifest(), batch(), PROMPT, WORDS):
        recorder.write(message)
    recorder.close()
    assert [m for m in Recording(path).messages() if isinstance(m, Prompt | Vocabulary)] == [PROMPT, WORDS]
    torn = tmp_path / "torn.mcap"
    torn.write_bytes(path.read_bytes()[:-200])
    recover(torn, tmp_path / "saved.mcap")
    assert [m for m in Recording(tmp_path / "saved.mcap").messages() if isinstance(m, Prompt | Vocabulary)] == [PROMPT, WORDS]


def test_special_tokens_are_left_out_of_what_is_learned() -> None:
    whole = batch(rows=4)
    assert without_special(whole) is whole
    import dataclasses

    marked = dataclasses.replace(whole, columns=dict(whole.columns) | {"special": np.array([True, False, True, False])})
    less = without_special(marked)
    assert less.rows == 4
    for point, values in whole.activations.items():
        there = np.isin(whole.rows_of(point), [1, 3])
        assert np.array_equal(less.activations[point], values[there])
        assert np.array_equal(less.rows_of(point), whole.rows_of(point)[there])
    nothing = without_special(dataclasses.replace(whole, columns=dict(whole.columns) | {"special": np.ones(4, bool)}))
    assert not nothing.activations
