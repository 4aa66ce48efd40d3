from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from bench.synthetic import Synthetic
from tests import stream_samples

from interlatent_live.analyzer.intake import PARTS, Intake, suggested_points
from interlatent_live.stream.errors import DictionaryError
from interlatent_live.stream.frames import FrameBatch
from interlatent_live.stream.manifest import Manifest, TapPointSpec
from interlatent_live.stream.wire import Bye

MEMORY = 4 << 20


def points(*names: str) -> Manifest:
    return Manifest("r", "b", 0, 0, tap_points=tuple(TapPointSpec(n, "float32", (4,)) for n in names))


@pytest.mark.parametrize(("names", "expected"), [
    (("3:out",), ("3:out", "3:out")),
    (("1:out", "3:out"), ("1:out", "3:out")),
    (("conv.0:out", "pi.0:in", "pi.0:out", "pi.2:out"), ("pi.0:in", "pi.2:out")),
    (("pi.2:out", "vf.2:out"), ("vf.2:out", "vf.2:out")),
])  # fmt: skip
def test_points_are_suggested(names: tuple[str, ...], expected: tuple[str, str]) -> None:
    assert suggested_points(points(*names)) == expected


def test_a_stream_without_points_has_nothing_to_learn() -> None:
    with pytest.raises(DictionaryError, match="no tap point"):
        suggested_points(points())
    intake = Intake("9:out", memory=MEMORY)
    with pytest.raises(DictionaryError, match=r"no tap point '9:out'; it has 1:out, 3:out"):
        intake.take(points("1:out", "3:out"))


def fed(frames: int, **options: Any) -> tuple[Intake, Synthetic]:
    stream = Synthetic(width=6, metrics=1, episode_steps=40, num_envs=3, **options)
    intake = Intake(memory=MEMORY, seed=3)
    intake.take(stream.manifest)
    for batch in stream.batches(frames // 10, 10):
        intake.take(batch)
    return intake, stream


def test_whole_episodes_go_to_one_part_in_the_shares_promised() -> None:
    intake, _ = fed(12_000)
    found = {part: intake.samples(part) for part in PARTS}
    numbers = {part: set(samples.episode.tolist()) for part, samples in found.items()}
    assert sum(map(len, numbers.values())) == len(set.union(*numbers.values())) == 300
    assert dict(intake.episodes) == {"fit": 210, "held_out": 60, "watch": 30}
    assert dict(intake.taken) == {"fit": 210 * 40, "held_out": 60 * 40, "watch": 30 * 40}
    for samples in found.values():
        _, counts = np.unique(samples.episode, return_counts=True)
        assert (counts == 40).all()  # all fits, so nothing was left out
        assert samples.step is not None
        assert samples.step.max() == 39
    assert intake.received == 12_000 == sum(intake.taken.values()) + sum(intake.refused.values())


def test_the_second_episode_is_held_out() -> None:
    intake, _ = fed(30)
    assert intake.episodes == {"fit": 2, "held_out": 1}


def test_memory_is_bounded() -> None:
    stream = Synthetic(width=256, metrics=1, episode_steps=40)
    intake = Intake(memory=1 << 21)
    intake.take(stream.manifest)
    bytes_held = sum(store.nbytes for part in intake.parts.values() for store in part._stores)
    assert bytes_held <= 1 << 21
    for batch in stream.batches(60, 100):
        intake.take(batch)
    assert intake.parts["fit"].frames == intake.parts["fit"].slots < intake.taken["fit"]
    with pytest.raises(DictionaryError, match="give more memory"):
        Intake(memory=1 << 20).take(Synthetic(width=4096).manifest)


def test_what_is_of_no_use_is_counted_by_reason() -> None:
    intake, stream = fed(300)
    assert intake.changing is False

    def altered(batch: FrameBatch, **changes: Any) -> FrameBatch:
        return dataclasses.replace(batch, **changes)

    batch = stream.batch(10)
    x = batch.activations["0:out"].copy()
    x[2, 1], x[5, 0], x[7, 3] = np.nan, np.inf, 1e30
    intake.take(altered(batch, activations={"0:out": x}))
    assert intake.refused["non_finite"] == 3
    batch = stream.batch(10)
    some = np.array([0, 4], np.int32)
    intake.take(altered(batch, activations={"0:out": batch.activations["0:out"][some]}, present={"0:out": some}))
    assert intake.refused["no_forward"] == 8
    intake.take(altered(stream.batch(10), activations={}))
    assert intake.refused["no_forward"] == 18
    batch = stream.batch(10)
    intake.take(altered(batch, activations={"0:out": np.zeros((10, 5), np.float32)}))
    intake.take(altered(stream.batch(10), activations={"0:out": np.zeros((10, 6), np.uint16)}))
    assert intake.refused["manifest_mismatch"] == 20
    intake.take(altered(stream.batch(10), manifest_hash="0" * 16))
    assert intake.refused["no_manifest"] == 10
    other = dataclasses.replace(stream.manifest, weights_hash="other", boot="b1")
    intake.take(other)
    intake.take(altered(stream.batch(10), manifest_hash=other.hash, boot="b1", first_seq=0))
    assert intake.refused["other_weights"] == 10
    intake.take(batch)  # seen before
    intake.take(dataclasses.replace(stream.manifest, run="another"))
    intake.take(altered(stream.batch(10), run="another"))
    intake.take(stream_samples.signals())
    assert intake.received == 370 == sum(intake.taken.values()) + sum(intake.refused.values())


def test_loss_a_farewell_and_an_agent_that_comes_back() -> None:
    intake, stream = fed(300)
    stream.skip(50)
    intake.take(stream.batch(10))
    assert intake.lost == 50
    manifest = stream.manifest
    intake.take(Bye(manifest.run, manifest.boot, 1, 1, stream.seq, 0))
    assert intake.ended
    again = dataclasses.replace(manifest, boot="b1")
    intake.take(again)
    episodes = sum(intake.episodes.values())
    intake.take(dataclasses.replace(stream.batch(10), boot="b1", manifest_hash=again.hash, first_seq=20))
    assert not intake.ended
    assert intake.lost == 50  # what came before it joined is not its loss
    assert sum(intake.episodes.values()) > episodes  # another boot's episodes are others


def test_a_policy_version_that_moves_is_a_weight_that_changes() -> None:
    intake, stream = fed(300)
    batch = stream.batch(10)
    columns = {**batch.columns, "policy_version": np.arange(10, dtype=np.int32)}
    intake.take(dataclasses.replace(batch, columns=columns))
    assert intake.changing
    assert intake.versions == (0, 9)
