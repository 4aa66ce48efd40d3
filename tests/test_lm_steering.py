"""Steering a language model while it writes: what changes, bit for bit, on which rows it stands, and how it ends."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.tiny_lm import Rows, bits, layers, model, plain_hooks, tokenizer, torch, transformers

import interlatent_live as il
from interlatent_live.agent_side.weights import weights_hash
from interlatent_live.analyzer.dictionary import Dictionary, DictionaryConfig
from interlatent_live.stream.control import ControlClient
from interlatent_live.stream.errors import SteeringError
from interlatent_live.stream.intervention import Effects, Intervention
from interlatent_live.stream.reading import Recording

WIDTH = 32


def units(made: Any, point: str) -> Dictionary:
    """A dictionary whose features are the units of `point` above 0, then those below: to ablate both is to zero the unit."""
    cfg = DictionaryConfig("units", "relu", WIDTH, WIDTH, 2 * WIDTH, point, point, model_hash=weights_hash(made))
    both = torch.cat([torch.eye(WIDTH), -torch.eye(WIDTH)])
    return Dictionary(cfg, {"W_enc": both.T.contiguous(), "b_enc": torch.zeros(2 * WIDTH), "W_dec": both, "b_dec": torch.zeros(WIDTH)})


def tapped(made: Any, kind: str = "llama", **options: Any) -> il.Tap:
    """Of the MLP in the middle and the layer after it; nothing is measured unless asked for."""
    point, after = f"{layers(kind)}.1.mlp:out", f"{layers(kind)}.2:out"
    policy: dict[str, Any] = {"control": "", "dictionaries": [units(made, point)], "max_change": 1e9, "effect_hz": 0}
    policy |= options.pop("policy", {})
    more = {"run": "steered", "endpoint": "", "tokenizer": tokenizer(), **options}
    return il.Tap(made, [point, after], steering=il.SteeringPolicy(**policy), **more)


def written(made: Any, given: Any, tokens: int = 8, **options: Any) -> Any:
    return made.generate(**given, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, **options)


def inputs(*texts: str) -> dict[str, Any]:
    found = tokenizer()(list(texts), return_tensors="pt", padding=True, padding_side="left")
    return {name: found[name] for name in ("input_ids", "attention_mask")}


def zeroing(made: Any, kind: str, unit: int) -> Any:
    """A plain hook that zeroes a unit of the MLP's output."""

    def hook(module: Any, args: Any, output: Any) -> Any:
        changed = output.clone()
        changed[..., unit] = 0
        return changed

    return dict(made.named_modules())[f"{layers(kind)}.1.mlp"].register_forward_hook(hook)


def told(path: Path) -> list[Intervention]:
    return [m for m in Recording(path).messages() if isinstance(m, Intervention)]


def acted(rows: Rows) -> list[list[int]]:
    """By row: numbers of the interventions that acted."""
    found: list[list[int]] = []
    for batch in rows.batches:
        column = batch.columns.get("intervention", np.full((batch.rows, 1), -1, np.int32))
        found += [[int(n) for n in row if n >= 0] for row in column]
    return found


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_ablation_equals_zeroing_by_a_plain_hook(kind: str, dtype: str, tmp_path: Path) -> None:
    made, given = model(kind, dtype=dtype), inputs("the cat sat on the mat", "fuel burns", "a rocket flies and")
    after, site = f"{layers(kind)}.2:out", f"{layers(kind)}.1.mlp:out"
    plain = written(made, given)
    tap = tapped(made, kind, record=tmp_path / "r.mcap")
    with tap:
        free = written(made, given)
        with tap.steer(5, scale=0, reason="zero it"), tap.steer(5 + WIDTH, ablate=True):
            steered = written(made, given)
        released = written(made, given)
    zero = zeroing(made, kind, 5)
    try:
        with plain_hooks(made, [after, site]) as seen:
            wanted = written(made, given)
    finally:
        zero.remove()
    assert torch.equal(plain, free)
    assert torch.equal(plain, released)
    assert torch.equal(steered, wanted)
    rows = Rows(tmp_path / "r.mcap")
    together = torch.cat(seen[after], 1)
    for env in range(3):
        of = rows.of(3 + env)
        theirs = bits(together[env])
        assert np.array_equal(rows.activations(after)[of], theirs[len(theirs) - len(of) :]), "all that comes after is steered"
    before = rows.activations(site)[rows.of(3)]
    assert before[:, 5].all(), "the point itself holds what the model computed"
    assert acted(rows) == [[0, 1] if 3 <= prompt < 6 else [] for prompt in rows["prompt"].tolist()]


def test_one_row_of_a_batch(tmp_path: Path) -> None:
    made, given = model(), inputs("the cat sat on the mat", "fuel burns")
    tap = tapped(made, record=tmp_path / "r.mcap")
    with tap:
        free = written(made, given)
        with tap.steer(5, clamp=6.0, env=1):
            steered = written(made, given)
        with pytest.raises(SteeringError, match="env is 5000"):
            tap.steer(5, clamp=6.0, env=5000)
    assert torch.equal(free[0], steered[0])
    assert not torch.equal(free[1], steered[1])
    rows = Rows(tmp_path / "r.mcap")
    assert acted(rows) == [[0] if prompt == 3 else [] for prompt in rows["prompt"].tolist()]


class _At(transformers.StoppingCriteria):  # type: ignore[misc]
    """Calls something after so many written tokens; asks for no end."""

    def __init__(self, tokens: int, what: Any) -> None:
        self.left, self.what = tokens, what

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        self.left -= 1
        if not self.left:
            self.what()
        return torch.zeros(input_ids.shape[0], dtype=torch.bool)


@pytest.mark.parametrize("how", ["released", "expired"])
def test_it_ends_within_a_text(how: str, tmp_path: Path) -> None:
    made, given = model(), inputs("the cat sat on the mat")
    tap = tapped(made, record=tmp_path / "r.mcap")
    with tap:
        act = tap.steer(5, clamp=6.0)

        def over() -> None:
            if how == "released":
                act.release()
            else:
                act._act.deadline_ns = 0

        steered = written(made, given, 8, stopping_criteria=[_At(4, over)])
    length = given["input_ids"].shape[1]
    rows = Rows(tmp_path / "r.mcap")
    assert acted(rows) == [[0]] * (length + 3) + [[]] * 4, "four tokens were written when it ended, of which the last was not read yet"
    start, end = told(tmp_path / "r.mcap")
    assert (start.frame, start.step, end.cause) == (0, 0, how)
    if how == "released":
        assert (end.frame, end.step) == (length + 3, length + 3)
    else:
        assert end.frame >= length + 3, "the hook sees at once that its time is over; it is told when the sender's thread turns"
    always = tapped(made)
    with always, always.steer(5, clamp=6.0):
        kept = written(made, given)
    assert torch.equal(steered[0, : length + 4], kept[0, : length + 4])


def test_starts_and_ends_stand_at_the_frames_they_are_of(tmp_path: Path) -> None:
    made, given = model(), inputs("the cat sat on the mat")
    tap = tapped(made, record=tmp_path / "r.mcap")
    with tap:
        with tap.steer(5, scale=0):
            pass
        written(made, given, 3)
        with tap.steer(5, scale=0), tap.steer(6, scale=2):
            written(made, given, 3)
        act = tap.steer(7, scale=0)
        del act
    length = given["input_ids"].shape[1] + 2
    found = [(m.event, m.number, m.frame, m.cause) for m in told(tmp_path / "r.mcap")]
    assert found == [
        ("start", 0, 0, ""), ("end", 0, 0, "released"), ("start", 1, length, ""), ("start", 2, length, ""),
        ("end", 2, 2 * length, "released"), ("end", 1, 2 * length, "released"), ("start", 3, 2 * length, ""),
        ("end", 3, 2 * length, "closed"),
    ]  # fmt: skip


def test_measuring_the_effect_changes_nothing_and_is_the_divergence_of_the_next_token(tmp_path: Path) -> None:
    made, given = model(), inputs("the cat sat on the mat")
    measured: dict[str, Any] = {"effect_hz": 1e9, "effect_share": 0.5}
    tap = tapped(made, record=tmp_path / "r.mcap", policy=measured)
    with tap, tap.steer(5, clamp=6.0):
        steered = written(made, given)
    quiet = tapped(made)
    with quiet, quiet.steer(5, clamp=6.0) as act:
        assert torch.equal(steered, written(made, given))
        assert act.effect is None
    rows = Rows(tmp_path / "r.mcap")
    assert len(rows["token"]) == given["input_ids"].shape[1] + 7, "passes of the gauge are no rows"
    effects = [m for m in Recording(tmp_path / "r.mcap").messages() if isinstance(m, Effects)]
    frames, values = [f for m in effects for f in m.frame], [v for m in effects for v in m.value]
    assert frames
    assert frames[0] == given["input_ids"].shape[1] - 1, "of the token after the text"
    with torch.no_grad():
        unsteered = torch.log_softmax(made(**given).logits[:, -1], -1)
    with tapped(made) as again, again.steer(5, clamp=6.0), torch.no_grad():
        p = torch.log_softmax(made(**given).logits[:, -1], -1)
    assert values[0] == pytest.approx(float((p.exp() * (p - unsteered)).sum()), rel=1e-4)
    outcome = effects[0].outcome[0]
    assert outcome is not None
    assert outcome.steered == pytest.approx(p.exp()[0, list(outcome.actions)].tolist(), rel=1e-4)


def test_a_limit_on_the_effect_holds_for_tokens(tmp_path: Path) -> None:
    made, given = model(), inputs("the cat sat on the mat")
    with (tap := tapped(made, policy={"effect_hz": 1e9, "effect_share": 0.5})), tap.steer(5, clamp=6.0, max_effect=1e-4) as act:
        written(made, given, 2)
        assert act.effect is not None
        assert act.effect <= 1e-4
        assert act._act.factor < 1


def test_a_static_cache_is_steered_and_not_measured() -> None:
    made, given = model(), inputs("the cat sat on the mat")
    with (tap := tapped(made, policy={"effect_hz": 1e9, "effect_share": 0.5})), tap.steer(5, clamp=6.0) as act:
        steered = written(made, given, cache_implementation="static")
        assert act.effect is None or act._act.measured <= 1
        assert act.active
    with (tap := tapped(made)), tap.steer(5, clamp=6.0):
        assert torch.equal(steered, written(made, given))


def test_what_makes_no_sense_for_tokens_is_refused() -> None:
    made = model()
    with tapped(made) as tap, pytest.raises(SteeringError, match="conditions are judged on an agent's steps"):
        tap.steer(5, scale=0, when="logprob > 1")
    with pytest.raises(SteeringError, match="action_limits"):
        tapped(made, policy={"action_limits": [(0.0, 1.0)]}).open()


def test_from_outside_while_it_writes(tmp_path: Path) -> None:
    made, given = model(), inputs("the cat sat on the mat")
    tap = tapped(made, record=tmp_path / "r.mcap", policy={"control": "tcp://127.0.0.1:*", "requests_per_s": 1000.0})
    started, ended = threading.Event(), threading.Event()

    def outside() -> None:
        assert tap._control is not None
        with ControlClient(tap._control.spec, timeout_s=20) as client:
            act = client.steer(operation="clamp", strength=6.0, feature=5, ttl_s=60)
            started.set()
            while not ended.wait(0.2):
                client.renew([act["id"]])
            client.release_all()

    with tap:
        asking = threading.Thread(target=outside)

        def ask() -> None:
            asking.start()
            assert started.wait(60)

        def end() -> None:
            ended.set()
            asking.join(60)

        steered = written(made, given, 9, stopping_criteria=[_At(3, ask), _At(6, end)])
    length = given["input_ids"].shape[1]
    assert acted(Rows(tmp_path / "r.mcap")) == [[]] * (length + 2) + [[0]] * 3 + [[]] * 3
    assert not torch.equal(steered, written(made, given, 9))
