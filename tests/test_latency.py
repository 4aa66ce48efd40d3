"""Quantiles of latencies, and episodes, against the plain computation."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from bench.synthetic import Synthetic

from interlatent_live.analyzer.episodes import Episode, Episodes
from interlatent_live.analyzer.latency import Latency


@pytest.mark.parametrize("seed", range(3))
def test_quantiles_are_within_two_percent_of_numpy(seed: int) -> None:
    values = np.random.default_rng(seed).lognormal(2.0, 1.5, 20_000)
    found = Latency()
    for part in np.array_split(values, 77):
        found.add(part)
    for q in (0.5, 0.99):
        assert found.quantile(q) == pytest.approx(float(np.quantile(values, q)), rel=0.02)


def test_no_frame_has_no_latency_and_the_ends_hold() -> None:
    found = Latency()
    assert found.quantile(0.5) is None
    found.add(np.array([-1.0, 0.0]))  # a wall clock that was set back
    assert found.quantile(0.5) == pytest.approx(0.01, rel=0.02)
    found.add(np.full(98, 1e9))
    assert found.quantile(0.5) == pytest.approx(1e5, rel=0.05)


def follow(rows: int, envs: int, count: int) -> tuple[list[Episode], list[Episode]]:
    stream, episodes = Synthetic(width=4, metrics=1, num_envs=envs, episode_steps=7), Episodes()
    ended = [episode for batch in stream.batches(count, rows) for episode in episodes.update(batch)]
    return ended, episodes.open()


@pytest.mark.parametrize(("rows", "envs"), [(1, 1), (5, 1), (64, 1), (3, 4), (64, 4), (12, 3)])
def test_episodes_do_not_depend_on_batches_or_environments(rows: int, envs: int) -> None:
    ended, going = follow(rows, envs, 840 // rows)
    frames = 840 // rows * rows
    by_env = {env: [e for e in ended if e.env == env] for env in range(envs)}
    for env, found in by_env.items():
        steps = len(range(env, frames, envs))
        assert len(found) == steps // 7
        for number, episode in enumerate(found):
            assert (episode.episode, episode.steps, episode.total) == (number, 7, 7.0)
            assert (episode.first_seq, episode.last_seq) == (env + 7 * number * envs, env + (7 * number + 6) * envs)
            assert (episode.complete, episode.terminated, episode.truncated) == (True, True, False)
        rest = [e for e in going if e.env == env]
        assert [e.steps for e in rest] == ([steps % 7] if steps % 7 else [])
        assert not any(e.complete for e in rest)


def test_what_is_not_known_of_a_return_is_unknown() -> None:
    stream, episodes = Synthetic(width=4, metrics=1, episode_steps=10), Episodes()
    first = stream.batch(5)
    episodes.update(dataclasses.replace(first, columns={**first.columns, "reward": np.array([1, np.nan, 1, 1, 1.0])}))
    (unknown,) = episodes.update(stream.batch(5))
    assert (unknown.total, unknown.steps, unknown.complete) == (None, 10, True)
    stream.skip(3)
    (late,) = episodes.update(stream.batch(7))
    assert (late.total, late.steps, late.first_seq) == (None, 10, 13)
    (whole,) = episodes.update(stream.batch(10))
    assert whole.total == 10.0
    stream.skip(10)
    episodes.update(stream.batch(5))
    stream.skip(5)  # its end was lost: the next one's first frame closes it
    (cut,) = episodes.update(stream.batch(5))
    assert (cut.complete, cut.steps, cut.total) == (False, 5, None)
    batch = stream.batch(5)
    (nothing,) = episodes.update(
        dataclasses.replace(batch, columns={k: v for k, v in batch.columns.items() if k != "reward"})
    )
    assert nothing.total is None
