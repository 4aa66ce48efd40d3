"""Asking a running language model from outside: what is written, with and without an intervention, and what is refused."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.steering_samples import quiet
from tests.tap_samples import mlp
from tests.test_lm_steering import acted, units
from tests.tiny_lm import Rows, model, tokenizer
from typer.testing import CliRunner

import interlatent_live as il
from interlatent_live.agent_side.asking import MAX_TEXT
from interlatent_live.cli import app
from interlatent_live.stream.control import ControlClient
from interlatent_live.stream.errors import SteeringError, TapError
from interlatent_live.stream.manifest import ControlSpec, Manifest

POINT = "model.layers.1.mlp:out"


def tapped(**options: Any) -> il.Tap:
    made = model()
    policy: dict[str, Any] = {"dictionaries": [units(made, POINT)], "max_change": 1e9, "effect_hz": 0, "prompts": 3, "requests_per_s": 1e3}
    policy |= options.pop("policy", {})
    more = {"run": "asked", "endpoint": "", "tokenizer": tokenizer(), **options}
    return il.Tap(made, [POINT], steering=il.SteeringPolicy(**policy), **more)


class Writer:
    """A loop over what is asked, on a thread of its own, as a user would write it."""

    def __init__(self, tap: il.Tap, before: Callable[[], object] = lambda: None) -> None:
        self.tap, self.before = tap, before
        self._thread = threading.Thread(target=self._write)

    def _write(self) -> None:
        for asked in self.tap.asked():
            self.before()
            asked.answer(self.tap.model.generate(**asked.inputs, **asked.options))  # type: ignore[operator]

    def __enter__(self) -> Writer:
        self.tap.open()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.tap.close()
        self._thread.join(60)
        assert not self._thread.is_alive()


def client(tap: il.Tap) -> ControlClient:
    assert tap._control is not None
    return ControlClient(tap._control.spec, timeout_s=20)


def whole(asking: ControlClient, id: str) -> dict[str, Any]:
    """What it came to, put together from what came at each look."""
    tokens: list[list[Any]] = []
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        found = asking.written(id, [len(t) for t in tokens])
        tokens = tokens or [[] for _ in found["arms"]]
        for mine, arm in zip(tokens, found["arms"], strict=True):
            mine += arm["tokens"]
        if found["state"] not in ("waiting", "running"):
            return found | {"tokens": tokens}
        time.sleep(0.01)
    raise AssertionError(f"still {found['state']}")


def said(tokens: list[list[Any]], *, generated: bool = True) -> str:
    return "".join(text for text, _, own in tokens if own is generated).strip()


def test_a_prompt_is_written_and_told_with_its_last_token(tmp_path: Path) -> None:
    tap = tapped(record=tmp_path / "r.mcap")
    with Writer(tap), client(tap) as asking:
        found = whole(asking, asking.prompt("the cat sat on", max_new_tokens=9, labels={"topic": "pets"})["prompt"])
    assert found["state"] == "done"
    ids = tokenizer()("the cat sat on", return_tensors="pt").input_ids
    wanted = model().generate(ids, max_new_tokens=9, do_sample=False)[0, ids.shape[1] :]
    (tokens,) = found["tokens"]
    assert said(tokens, generated=False) == "the cat sat on"
    assert said(tokens).replace(" ", "") == tokenizer().decode(wanted).replace(" ", "")
    assert [t[1] for t in tokens[:1]] == [None]
    assert all(t[1] < 0 for t in tokens[1:-1])
    (prompt,) = Rows(tmp_path / "r.mcap").prompts
    assert (prompt.text, prompt.labels, prompt.pair, prompt.arm) == ("the cat sat on", {"topic": "pets"}, "", "")
    assert found["arms"][0]["prompt"] == prompt.prompt


def test_with_and_without_is_a_pair_of_one_seed(tmp_path: Path) -> None:
    tap = tapped(record=tmp_path / "r.mcap")
    clamp = {"operation": "clamp", "strength": 8.0, "feature": 5}
    with Writer(tap), client(tap) as asking:
        begun = asking.prompt("the rocket flies", max_new_tokens=10, steer=[clamp], both=True, seed=4, temperature=1.0)
        found = whole(asking, begun["prompt"])
        again = whole(asking, asking.prompt("the rocket flies", max_new_tokens=10, seed=4, temperature=1.0)["prompt"])
        alone = whole(asking, asking.prompt("the rocket flies", max_new_tokens=10, seed=4, temperature=1.0, steer=[clamp])["prompt"])
    assert [arm["arm"] for arm in found["arms"]] == ["plain", "steered"]
    plain, steered = found["tokens"]
    assert said(plain) != said(steered)
    assert said(plain) == said(again["tokens"][0])
    assert said(steered) == said(alone["tokens"][0])
    rows = Rows(tmp_path / "r.mcap")
    first, second, third, fourth = rows.prompts
    assert first.pair == second.pair == begun["pair"] != ""
    assert (first.arm, second.arm, third.arm, fourth.arm) == ("plain", "steered", "", "steered")
    assert (first.labels, third.labels) == ({"arm": "plain"}, {})
    assert third.pair == fourth.pair == ""
    assert acted(rows) == [{1: [0], 3: [1]}.get(prompt, []) for prompt in rows["prompt"].tolist()]


def test_what_cannot_be_written_is_refused_and_the_loop_goes_on() -> None:
    tap = tapped()
    with Writer(tap), client(tap) as asking:
        for text, more, match in (
            ("", {}, "the prompt is empty"),
            ("  \n", {}, "the prompt is empty"),
            ("x" * (MAX_TEXT + 1), {}, "at most 30000 are taken"),
            ("x" * 40_000, {}, "a shorter prompt"),
            ("cat", {"max_new_tokens": 0}, "1 to 512 are allowed"),
            ("cat", {"max_new_tokens": 513}, "1 to 512 are allowed"),
            ("cat", {"both": True}, "none is given"),
            ("cat", {"labels": {"a`": "b"}}, "label name"),
            ("cat", {"temperature": -1}, "temperature is -1"),
            ("cat", {"nonsense": 1}, "knows no 'nonsense'"),
            ("cat", {"steer": [{"operation": "scale", "strength": 0.0, "feature": 64}]}, "feature 64 is not of 'units'"),
            ("cat", {"steer": [{"operation": "scale", "strength": 0.0, "feature": 1, "dictionary": "other"}]}, "no dictionary"),
            ("cat", {"steer": [{"operation": "scale", "strength": 0.0, "feature": 1, "ttl_s": 3.0}]}, "as long as its text"),
            ("cat", {"steer": [3]}, "steer is a list"),
        ):
            with pytest.raises(SteeringError, match=match):
                asking.prompt(text, **more)
        long = whole(asking, asking.prompt("cat " * 200)["prompt"])
        assert long["state"] == "refused"
        assert long["message"].startswith("a prompt of 200 tokens; the model's context is 128")
        empty = whole(asking, asking.prompt("</s>")["prompt"])
        assert (empty["state"], "no token of text" in empty["message"]) == ("refused", True)
        chat = whole(asking, asking.prompt("cat", chat=True)["prompt"])
        assert "no chat template" in chat["message"]
        assert whole(asking, asking.prompt("the cat", max_new_tokens=3)["prompt"])["state"] == "done"
        with pytest.raises(SteeringError, match="was asked for, or it was long ago"):
            asking.written("0" * 16)


def test_too_many_wait_and_a_cancelled_one_is_not_written(tmp_path: Path) -> None:
    tap, go = tapped(record=tmp_path / "r.mcap"), threading.Event()
    with Writer(tap, lambda: go.wait(60)), client(tap) as asking:
        first = asking.prompt("the cat", max_new_tokens=5)["prompt"]
        deadline = time.monotonic() + 60
        while asking.written(first)["state"] == "waiting" and time.monotonic() < deadline:
            time.sleep(0.01)
        waiting = [asking.prompt("a dog", max_new_tokens=5) for _ in range(3)]
        assert [w["ahead"] for w in waiting] == [0, 1, 2]
        with pytest.raises(SteeringError, match="3 prompts wait"):
            asking.prompt("one more")
        asking.cancel(waiting[1]["prompt"])
        assert asking.written(waiting[2]["prompt"])["ahead"] == 1
        go.set()
        assert [whole(asking, w["prompt"])["state"] for w in waiting] == ["done", "cancelled", "done"]
    assert [p.text for p in Rows(tmp_path / "r.mcap").prompts] == ["the cat", "a dog", "a dog"]


def test_a_prompt_that_is_being_written_can_be_cancelled() -> None:
    tap, begun = tapped(), threading.Event()
    with client_of_slow(tap, begun) as asking:
        id = asking.prompt("the cat", max_new_tokens=60)["prompt"]
        assert begun.wait(60)
        asking.cancel(id)
        found = whole(asking, id)
    assert found["state"] == "cancelled"
    assert len(said(found["tokens"][0]).split()) < 60


@contextlib.contextmanager
def client_of_slow(tap: il.Tap, begun: threading.Event) -> Iterator[ControlClient]:
    """Of a model that takes its time over each token."""

    def dawdle(*_: Any) -> None:
        begun.set()
        time.sleep(0.02)

    handle = tap.model.register_forward_hook(dawdle)
    try:
        with Writer(tap), client(tap) as asking:
            yield asking
    finally:
        handle.remove()


def test_what_an_agent_did_not_allow_is_not_there() -> None:
    with tapped(policy={"prompts": 0}) as tap, client(tap) as asking:
        assert tap._control is not None
        assert not tap._control.spec.prompts
        with pytest.raises(SteeringError, match="no prompts are taken"):
            asking.prompt("cat")
        with pytest.raises(SteeringError, match="no prompts are taken"):
            next(tap.asked(0))
    agent = il.Tap(mlp(), ["1:out"], endpoint="", run="agent", steering=quiet(prompts=2, control="tcp://127.0.0.1:*"))
    with pytest.raises(SteeringError, match="prompts are for language models"):
        agent.open()
    with pytest.raises(TapError, match="prompts are asked of language models"):
        agent.asked()
    with pytest.raises(SteeringError, match="prompts is -1"):
        il.SteeringPolicy(prompts=-1)


def test_the_loop_ends_when_nobody_asks_or_the_tap_closes() -> None:
    tap = tapped()
    with tap:
        assert list(tap.asked(timeout_s=0)) == []
        with client(tap) as asking:
            left = asking.prompt("the cat")["prompt"]
            for _ in tap.asked(timeout_s=0):
                break
            assert whole(asking, left)["message"] == "the agent's loop left off"
            assert tap.waiting == 0
    assert list(tap.asked()) == []


def command(tap: il.Tap, *words: str) -> Any:
    return CliRunner().invoke(app, ["ask", *words, "--connect", str(tap.endpoint), "--run", tap.run])


def test_the_command_asks_and_prints_side_by_side() -> None:
    tap = tapped(endpoint="tcp://127.0.0.1:*")
    with Writer(tap):
        plain = command(tap, "the cat sat on", "--max-new-tokens", "5", "--label", "topic=pets")
        both = command(tap, "the cat sat on", "--max-new-tokens", "8", "--feature", "5", "--clamp", "9", "--both")
        data = command(tap, "the cat sat on", "--max-new-tokens", "8", "--feature", "5", "--clamp", "9", "--both", "--json")
        empty = command(tap, "", "--json")
        for words in (["--both"], ["--feature", "3"], ["--scale", "0"], ["--feature", "3", "--scale", "0", "--ablate"]):
            assert command(tap, "the cat", *words).exit_code == 2
    assert plain.exit_code == 0, plain.output
    assert plain.output.strip().startswith("the cat sat on")
    assert plain.output.rstrip().endswith("soup"), "the last token, which was never read, too"
    assert all(word in both.output for word in ("plain", "steered"))
    told = json.loads(data.stdout)
    first, second = told["texts"]
    assert (first["arm"], second["arm"], told["state"]) == ("plain", "steered", "done")
    at = told["differs"]
    assert [t[0] for t in first["tokens"][:at]] == [t[0] for t in second["tokens"][:at]]
    assert first["tokens"][at][0] != second["tokens"][at][0]
    assert "the prompt is empty" in str(empty.exception)


def test_a_manifest_tells_whether_prompts_are_taken() -> None:
    with tapped() as tap:
        assert tap.manifest is not None
        assert tap.manifest.from_dict(tap.manifest.to_dict()).control == tap.manifest.control
        assert tap.manifest.control is not None
        assert tap.manifest.control.prompts
    plain = ControlSpec("tcp://127.0.0.1:1", True)
    assert "prompts" not in Manifest("r", "b", 0, 0, control=plain).to_dict()["control"]
