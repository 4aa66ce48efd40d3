"""Reference agents say why, by the dictionaries that ship for them: live, and from their recordings."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch

import interlatent_live as il
from interlatent_live.agent_side import rollout
from interlatent_live.agent_side.agents import agent_named
from interlatent_live.agent_side.scores import sum_of_parts
from interlatent_live.analyzer.queries import Reader
from interlatent_live.analyzer.service import analyze_recording
from interlatent_live.stream.attribution import Attribution
from interlatent_live.stream.frames import FrameBatch
from interlatent_live.stream.reading import Recording
from interlatent_live.why import why_of


@pytest.mark.parametrize(("name", "kind"), [("cartpole", "logits"), ("humanoid", "means")])
def test_a_reference_agent_says_why(tmp_path: Path, name: str, kind: str) -> None:
    if name == "humanoid":
        pytest.importorskip("pybullet_envs_gymnasium")
    agent = agent_named(name)
    why = why_of(agent)
    assert why is not None
    with rollout.make_tap(agent, record=tmp_path / "r.mcap", endpoint="", why=why) as tap:
        deadline = time.monotonic() + 60
        rollout.run(agent, tap, seed=3, stop=lambda: tap.status()["why_frames"] >= 3 or time.monotonic() > deadline)
        status = tap.status()
    assert status["why_frames"] >= 3
    assert status["why_failures"] == 0
    messages = list(Recording(tmp_path / "r.mcap").messages())
    batches = [m for m in messages if isinstance(m, FrameBatch)]
    found = [m for m in messages if isinstance(m, Attribution)]
    policy = agent.make_policy()
    for m in found:
        assert (m.kind, m.names, m.action_count) == (kind, agent.action_names, len(agent.action_names))
        batch = next(b for b in batches if b.first_seq <= m.seq < b.next_seq)
        row = m.seq - batch.first_seq
        with torch.inference_mode():
            scores = policy(torch.from_numpy(batch.columns["observation"][row].copy())[None])[0].numpy()
        np.testing.assert_allclose(m.total, scores, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(sum_of_parts(m), m.total, atol=1e-5)
        assert m.monotonic_ns == batch.columns["monotonic_ns"][row]
        if kind == "logits":
            assert m.chosen == batch.columns["action"][row] == scores.argmax()
    analyze_recording(tmp_path / "r.mcap", tmp_path / "r.db")
    with Reader(tmp_path / "r.db") as reader:
        row_ = reader.attribution(tap.boot)
        assert row_ is not None
        assert row_.seq == found[-1].seq
        section = reader.sections(tap.boot)[-1]
        assert row_.dictionary == section.dictionary_hash, "the page knows these features by name"
        kept = reader.batch_at(tap.boot, row_.seq)
        assert kept is not None
        (codes,) = reader.codes(section.id, kept.id, kept.id)
    at = int(np.flatnonzero(codes.rows == row_.seq - kept.first_seq)[0])
    mine = slice(codes.codes.indptr[at], codes.codes.indptr[at + 1])
    np.testing.assert_array_equal(codes.codes.indices[mine], row_.features)
    np.testing.assert_allclose(codes.codes.values[mine], row_.values, rtol=1e-3, atol=1e-5)


def test_an_agent_without_a_dictionary_or_a_torch_policy_has_none() -> None:
    assert why_of(agent_named("lunarlander")) is None
    assert why_of(agent_named("g1")) is None


def test_names_of_dictionaries_are_found() -> None:
    found = il.Why("cartpole").load()
    assert found.name == "cartpole"
