from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from interlatent_live.analyzer.probe import frames_of, probe, score
from interlatent_live.stream.errors import DictionaryError
from interlatent_live.stream.frames import BASE_COLUMNS, FrameBatch
from interlatent_live.stream.manifest import Manifest, MetricSpec, TapPointSpec
from interlatent_live.stream.reading import Recording
from interlatent_live.stream.recording import Recorder

Array = np.ndarray[Any, np.dtype[Any]]
METRICS = ("height", "contact", "still")


def data(episodes: int = 6, frames: int = 80) -> tuple[Array, Array, Array]:
    """A walk of 8 causes, seen through a map; the metrics: one of them, the sign of another, a constant."""
    rng = np.random.default_rng(3)
    n = episodes * frames
    causes = np.zeros((n, 8))
    for i in range(n):
        causes[i] = rng.normal(size=8) if i % frames == 0 else 0.9 * causes[i - 1] + 0.4 * rng.normal(size=8)
    x = (causes @ rng.normal(size=(8, 12))).astype(np.float32)
    metrics = np.stack([causes[:, 0], (causes[:, 1] > 0).astype(float), np.full(n, 2.5)], axis=1)
    metrics[5, 0] = np.nan
    return x, metrics, np.repeat(np.arange(episodes), frames)


def write(path: Path, episodes: int = 6) -> Path:
    x, metrics, episode = data(episodes)
    manifest = Manifest(
        "r", "b", 0, 0, tap_points=(TapPointSpec("1:out", "float32", (3, 4)),),
        metrics=tuple(MetricSpec(name) for name in METRICS), weights_hash="w", step_period_s=0.02,
    )  # fmt: skip
    recorder = Recorder(path)
    recorder.write(manifest)
    for begin in range(0, len(x), 32):
        part = slice(begin, min(begin + 32, len(x)))
        rows = part.stop - part.start
        columns = {name: np.zeros(rows, dtype) for name, dtype in BASE_COLUMNS.items()}
        columns["episode"] = episode[part].astype(np.int32)
        columns["metrics"] = metrics[part]
        kept = np.arange(1, rows, dtype=np.int32)  # the first row of each batch ran no forward
        activations = {"1:out": x[part].reshape(rows, 3, 4)[kept]}
        recorder.write(FrameBatch("r", "b", manifest.hash, begin, 0, columns, activations, {"1:out": kept}))
    recorder.close()
    return path


def test_frames_pair_what_fired_with_a_finite_metric(tmp_path: Path) -> None:
    x, metrics, episode = data()
    wanted = (np.arange(len(x)) % 32 != 0) & np.isfinite(metrics[:, 0])
    frames, more = frames_of(Recording(write(tmp_path / "r.mcap")), "1:out", "height")
    np.testing.assert_array_equal(frames.x, x[wanted])
    np.testing.assert_array_equal(frames.y, metrics[wanted, 0])
    np.testing.assert_array_equal(frames.episode, episode[wanted])
    assert more == {}


def test_a_metric_that_is_there_is_found_and_a_control_is_not(tmp_path: Path) -> None:
    path = write(tmp_path / "r.mcap")
    found = probe(path, "1:out", "height")
    assert (found["measure"], found["episodes"], found["features"]) == ("R2", 6, None)
    assert found["activations"]["mean"] > 0.99
    assert found["activations"]["control"] < 0.2
    assert found["activations"]["width"] == 12
    binary = probe(path, "1:out", "contact")
    assert binary["measure"] == "balanced accuracy"
    assert binary["activations"]["mean"] > 0.9
    assert 0.3 < binary["activations"]["control"] < 0.7


def test_folds_are_by_episode() -> None:
    # the target is the episode's own number in noise that names the episode: within an episode trivial, across not
    rng = np.random.default_rng(0)
    episode = np.repeat(np.arange(8), 50)
    marks = rng.normal(size=(8, 30))
    x = (marks[episode] + 0.01 * rng.normal(size=(400, 30))).astype(np.float32)
    y = rng.normal(size=8)[episode]
    found = score(x, y + 1e-3 * rng.normal(size=400), episode)
    assert found.mean is not None
    assert found.mean < 0.5


@pytest.mark.parametrize(("point", "metric", "episodes", "message"), [
    ("2:out", "height", 6, "no tap point '2:out'; it has 1:out"),
    ("1:out", "width", 6, "no metric 'width'; it has height, contact, still"),
    ("1:out", "still", 6, "2.5 in all"),
    ("1:out", "height", 1, "1 episode"),
])  # fmt: skip
def test_what_cannot_be_probed_is_said(tmp_path: Path, point: str, metric: str, episodes: int, message: str) -> None:
    with pytest.raises(DictionaryError, match=message):
        probe(write(tmp_path / "r.mcap", episodes), point, metric)
