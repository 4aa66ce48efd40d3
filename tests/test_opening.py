"""`il.open`: what was recorded and analysed comes back, aligned, lazily, without torch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from tests.stream_samples import SECOND, batch, manifest, picture, scalars

import interlatent_live as il
from interlatent_live.analyzer.codes import Codes
from interlatent_live.analyzer.service import analyze_recording
from interlatent_live.analyzer.sources import Recorded
from interlatent_live.stream.errors import InterlatentError, RecordingError, StoreError, UnknownName
from interlatent_live.stream.frames import FrameBatch
from interlatent_live.stream.manifest import ActionSpec, Manifest, MetricSpec, TapPointSpec
from interlatent_live.stream.reading import Recording
from interlatent_live.stream.recording import Recorder
from interlatent_live.stream.wire import Message

ROWS, BATCHES = 7, 90
FRAMES = ROWS * BATCHES


def record(path: Path, messages: list[Message]) -> Path:
    recorder = Recorder(path)
    for number, message in enumerate(messages):
        recorder.write(message)
        if number % 10 == 9:
            recorder.flush()
    recorder.close()
    return path


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One environment, episodes of 100 steps; `3:out` is bfloat16 and did not run in the first row of a batch."""
    messages: list[Message] = [manifest(), scalars(0), scalars(2)]
    for i in range(BATCHES):
        made = batch(i * ROWS, ROWS)
        made.activations["1:out"][:] = np.sin(made.seq[:, None] * (0.1, 0.2, 0.3)) ** 3
        messages += [made] if i % 9 else [made, picture(i * ROWS)]
    return record(tmp_path_factory.mktemp("open") / "run.mcap", messages)


@pytest.fixture(scope="module")
def db(path: Path) -> Path:
    """The analysis of a copy in another folder: `path` itself stays alone."""
    folder = path.parent / "analysed"
    folder.mkdir()
    (folder / "run.mcap").write_bytes(path.read_bytes())
    analyze_recording(folder / "run.mcap", folder / "run.db")
    return folder / "run.db"


def everything(path: Path) -> list[FrameBatch]:
    return [m for m in Recording(path).messages() if isinstance(m, FrameBatch)]


def test_it_says_what_it_is(path: Path) -> None:
    run = il.open(path)
    assert (run.name, len(run), run.boots, run.manifest) == ("agent", FRAMES, ("b0",), manifest())
    assert run.damaged is None
    assert "CartPole-v1" in repr(run)
    assert "CartPole-v1" in run._repr_html_()


def test_tables_of_frames(path: Path) -> None:
    run, read = il.open(str(path)), everything(path)
    metrics = run.metrics
    assert metrics.index.name == "seq"
    assert metrics.index.tolist() == list(range(FRAMES))
    assert metrics.attrs["units"] == {"pole_angle": "rad", "reward_rate": "1/s"}
    assert metrics.attrs["scopes"]["reward_rate"] == "transition"
    assert np.array_equal(metrics, np.concatenate([m.columns["metrics"] for m in read]), equal_nan=True)
    assert list(run.observations) == ["x", "v", "angle", "omega"]
    assert np.array_equal(run.observations, np.concatenate([m.columns["observation"] for m in read]))
    assert run.actions["action"].tolist() == [i % 2 for i in range(FRAMES)]
    assert run.actions.attrs["names"] == ("left", "right")
    assert run.rewards.sum() == FRAMES
    frames = run.frames
    assert frames["step"].tolist() == list(range(FRAMES))
    assert frames["terminated"].sum() == FRAMES // 100


def test_parts_of_a_run(path: Path) -> None:
    run = il.open(path)
    third = run.episode(2)
    assert third.frames["step"].tolist() == list(range(200, 300))
    assert third.steps(250, 400).metrics.index.tolist() == list(range(250, 300))
    assert len(run.steps(5, 17)) == 12
    assert run.steps(5, 17).steps(20, 30).metrics.empty
    assert len(run.episode(99)) == 0
    assert run.episode(99).metrics.empty
    with pytest.raises(RecordingError, match="ask the whole run"):
        third.episode(3)
    with pytest.raises(RecordingError, match="no range"):
        run.steps(5, 1)
    with pytest.raises(RecordingError, match="no boot"):
        run.boot("b7")


def test_activations_equal_what_was_recorded(path: Path) -> None:
    points, read = il.open(path).activations, everything(path)
    assert list(points) == ["1:out", "3:out"]
    one = points["1:out"]
    whole = np.concatenate([m.activations["1:out"] for m in read])
    assert one.shape == whole.shape
    assert one.dtype == np.float32
    assert np.array_equal(one[:], whole)
    assert np.array_equal(np.asarray(one), whole)
    for key in (slice(100, 205), slice(-3, None), slice(0, 300, 7), slice(50, 20), slice(FRAMES + 5, None)):
        assert np.array_equal(one[key], whole[key])
    assert np.array_equal(one[333], whole[333])
    assert np.array_equal(one[-1], whole[-1])
    assert np.array_equal(one.episode(2), whole[200:300])
    assert np.array_equal(one.steps(100, 200), whole[100:200])
    assert np.array_equal(il.open(path).episode(1).activations["1:out"][10:20], whole[110:120])
    assert np.array_equal(np.concatenate([values for _, _, values in one.blocks()]), whole)
    with pytest.raises(IndexError, match="of 630"):
        one[FRAMES]


def test_rows_without_a_forward_pass_are_nan_and_bfloat16_is_exact(path: Path) -> None:
    found = il.open(path).activations["3:out"][:]
    for i, message in enumerate(everything(path)):
        mine = found[i * ROWS : (i + 1) * ROWS]
        assert np.isnan(mine[0]).all()
        assert np.array_equal((mine[1:].view(np.uint32) >> 16).astype(np.uint16), message.activations["3:out"])


def test_only_what_is_asked_for_is_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = il.open(path)
    chunks = len(Recording(path).index.entries)
    read: list[int] = []
    batches = Recorded.batches

    def counted(self: Recorded, extent: int) -> Iterator[FrameBatch]:
        read.append(extent)
        return batches(self, extent)

    monkeypatch.setattr(Recorded, "batches", counted)
    assert run.activations["1:out"][300:310].shape == (10, 3)
    assert run.activations["1:out"].steps(40, 50).shape == (10, 3)
    assert run.episode(3).metrics.shape == (100, 2)
    assert len(read) < chunks


def test_several_environments(tmp_path: Path) -> None:
    messages: list[Message] = [manifest(num_envs=2)]
    for i in range(20):
        made = batch(i * 4, 4)
        step = np.arange(i * 2, i * 2 + 2).repeat(2)
        made.columns["step"][:], made.columns["env"][:] = step, np.tile([0, 1], 2)
        made.columns["episode"][:] = np.where(made.columns["env"] == 0, step // 10, step // 5)
        made.columns["episode_step"][:] = np.where(made.columns["env"] == 0, step % 10, step % 5)
        made.columns["terminated"][:] = np.where(made.columns["env"] == 0, step % 10 == 9, step % 5 == 4)
        messages.append(made)
    run = il.open(record(tmp_path / "run.mcap", messages))
    assert len(run.episode(1)) == 15
    assert len(run.episode(1, env=1)) == 5
    assert run.episode(1, env=0).frames["step"].tolist() == list(range(10, 20))
    assert run.env(1).steps(10, 20).frames["episode"].tolist() == [2] * 5 + [3] * 5
    episodes = run.episodes
    assert len(episodes) == 4 + 8
    assert episodes[episodes["env"] == 1]["return"].tolist() == [5.0] * 8
    assert run.episode(1, env=1).episodes["steps"].tolist() == [5]
    shown = run.show(episode=3, step=2, env=1)
    assert (shown.env, shown.step, shown.episode_step) == (1, 17, 2)


def test_an_agent_that_was_started_again(tmp_path: Path) -> None:
    again = batch(0, 3, boot="b1")
    again.columns["wall_ns"][:] += 60 * SECOND
    run = il.open(record(tmp_path / "run.mcap", [manifest(), batch(0, 4), manifest("b1"), again]))
    assert run.boots == ("b0", "b1")
    assert run.metrics.index.tolist() == [("b0", 0), ("b0", 1), ("b0", 2), ("b0", 3), ("b1", 0), ("b1", 1), ("b1", 2)]
    assert len(run.boot("b1").metrics) == 3


def test_scalars_of_the_training_loop(path: Path, db: Path) -> None:
    table = il.open(path).scalars
    assert table["name"].tolist() == ["losses/value", "lr"] * 4
    assert table[table["name"] == "losses/value"]["value"].tolist() == [0.5, float("inf")] * 2
    assert table["step"].tolist() == [10, 10, 20, 20] * 2
    stored = il.open(db, beside=False).scalars
    assert stored.sort_values(["seq", "name"])["value"].tolist() == table.sort_values(["seq", "name"])["value"].tolist()


def test_what_an_analysis_adds(db: Path) -> None:
    run = il.open(db.with_suffix(".mcap"))
    assert run.analysed
    features = run.features["1:out"]
    assert features.shape == (FRAMES, 3)
    dense = features[:].toarray()
    assert dense.shape == (FRAMES, 3)
    assert np.array_equal(features[100:205].toarray(), dense[100:205])
    assert np.array_equal(features[7].toarray()[0], dense[7])
    assert np.array_equal(features.episode(2).toarray(), dense[200:300])
    assert np.array_equal(features.steps(100, 200).toarray(), dense[100:200])
    assert features.encoded().mean() > 0.8, "neurons are standardised after some batches"
    third = run.features["3:out"].encoded()
    assert not third[::ROWS].any(), "no forward pass ran in the first row of a batch"
    assert third.mean() > 0.7
    events = run.events
    assert "1:out" in set(events["point"])
    assert run.episode(2).events["episode"].eq(2).all()
    assert len(run.steps(100, 120).events) < len(events)
    assert set(run.peaks["feature"]) <= {0, 1, 2}
    correlations = run.correlations
    assert set(correlations["metric"]) == {"pole_angle", "reward_rate"}
    assert correlations["r"].abs().dropna().is_monotonic_decreasing
    assert run.episodes["return"].tolist()[:6] == [100.0] * 6


def test_a_database_alone(db: Path) -> None:
    run, whole = il.open(db, beside=False), il.open(db)
    assert run.metrics.equals(whole.metrics)
    assert run.episode(3).frames.equals(whole.episode(3).frames)
    columns = ["env", "episode", "steps", "return", "complete"]
    assert run.episodes[columns].astype(float).equals(whole.episodes[columns].astype(float))
    assert (run.features["1:out"][:] != whole.features["1:out"][:]).nnz == 0
    with pytest.raises(RecordingError, match="open the recording"):
        run.activations["1:out"]
    assert run.show(episode=2, step=5).picture == picture().data


def test_what_is_not_there_is_said(path: Path, db: Path, tmp_path: Path) -> None:
    run = il.open(path)
    for what in ("features", "events", "peaks", "correlations"):
        with pytest.raises(RecordingError, match=rf"interlatent-live analyze --recording {path} --db"):
            getattr(run, what)
    with pytest.raises(UnknownName, match="1:out"):
        run.activations["1:ou"]
    with pytest.raises(UnknownName, match="3:out"):
        il.open(db).features["4:out"]
    with pytest.raises(RecordingError, match="No such file"):
        il.open(tmp_path / "none.mcap")
    other = record(tmp_path / "other.mcap", [manifest("b9"), batch(boot="b9")])
    with pytest.raises(RecordingError, match="another run"):
        il.open(other, beside=db)
    (tmp_path / "other.db").write_bytes(db.read_bytes())
    assert not il.open(other).analysed, "the database beside it is of another process"
    (tmp_path / "text.db").write_text("SQLite format 3\0" + "x" * 4000)
    with pytest.raises(StoreError):
        il.open(tmp_path / "text.db")


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        if tag != "img":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_a_frame_is_shown(path: Path, db: Path) -> None:
    shown = il.open(path).show(episode=2, step=5)
    assert (shown.seq, shown.step, shown.episode, shown.episode_step) == (205, 205, 2, 5)
    assert shown.picture == picture().data
    assert shown.picture_seq == 189
    html = shown._repr_html_()
    for part in ("pole_angle", "rad", "1 (right)", "data:image/jpeg;base64,", "16 frames earlier", "units of 1:out"):
        assert part in html
    assert "features of" in il.open(db).show(episode=2, step=5).html
    assert "episode 2, step 5" in str(shown)
    assert il.open(path).show(step=300).seq == 300
    assert il.open(path).show(seq=11).seq == 11
    with pytest.raises(RecordingError, match="that episode has steps 0 to 99"):
        il.open(path).show(episode=2, step=812)


def test_what_is_shown_is_escaped(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    made: Manifest = manifest(
        environment=evil, agent=evil, metrics=(MetricSpec(evil, evil), MetricSpec("b")), action=ActionSpec("discrete", (), (evil, evil)),
        tap_points=(TapPointSpec("1:out", "float32", (3,), evil), TapPointSpec("3:out", "bfloat16", (2,))),
    )  # fmt: skip
    one = batch(0, 3)
    one = FrameBatch(one.run, one.boot, made.hash, 0, 0, one.columns, one.activations, one.present)
    run = il.open(record(tmp_path / "run.mcap", [made, one]))
    for html in (run._repr_html_(), run.show().html):
        tags = Tags()
        tags.feed(html)
        assert tags.open == []
        assert "script" not in tags.seen
        assert "&lt;script&gt;" in html


def test_a_damaged_recording_is_read_as_far_as_it_goes(path: Path, tmp_path: Path) -> None:
    (tmp_path / "torn.mcap").write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    run = il.open(tmp_path / "torn.mcap")
    assert 0 < len(run) < FRAMES
    assert len(run.metrics) == len(run) == len(run.activations["1:out"][:])
    assert "tail" in (run.damaged or "")


def test_a_rotated_recording_is_one_run(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "run.mcap", rotate_bytes=4_000)
    recorder.write(manifest())
    for i in range(BATCHES):
        recorder.write(batch(i * ROWS, ROWS))
        recorder.flush()
    recorder.close()
    assert len(list(tmp_path.iterdir())) > 3
    run = il.open(tmp_path / "run.mcap")
    assert len(run) == FRAMES
    assert run.activations["1:out"].episode(5).shape == (100, 3)
    assert run.metrics.index.tolist() == list(range(FRAMES))


def test_no_torch(path: Path) -> None:
    code = (
        "import sys, interlatent_live as il\n"
        f"run = il.open({str(path)!r})\n"
        "run.metrics, run.activations['1:out'][:], run.show(), run.episodes\n"
        "assert not {'torch', 'zmq', 'bokeh', 'river', 'gymnasium'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_tables_without_pandas_say_what_to_install(path: Path) -> None:
    code = (
        "import sys; sys.modules['pandas'] = None\n"
        f"import interlatent_live as il; run = il.open({str(path)!r}); print(run.activations['1:out'][0].shape)\n"
        "try:\n    run.metrics\nexcept Exception as error:\n    print(type(error).__name__, error)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, timeout=60, capture_output=True, text=True)
    assert done.stdout.split("\n")[0] == "(3,)"
    assert "interlatent-live[data]" in done.stdout
    assert issubclass(RecordingError, InterlatentError)


def test_codes_that_do_not_fit_their_batch_are_unknown() -> None:
    from interlatent_live.analyzer.arrays import encoded_rows

    made = batch(0, 4)
    made.columns["forward_age"][:] = [0, 1, 0, 0]
    assert encoded_rows(made, None).tolist() == [-1] * 4
    assert encoded_rows(made, Codes.empty(4, 2)).tolist() == [0, 1, 2, 3]
    assert encoded_rows(made, Codes.empty(3, 2)).tolist() == [0, -1, 1, 2]
    assert encoded_rows(made, Codes.empty(2, 2)).tolist() == [-1] * 4
    assert encoded_rows(made, Codes.empty(3, 2), "3:out").tolist() == [-1, 0, 1, 2]
    made = FrameBatch(made.run, made.boot, made.manifest_hash, 0, 0, made.columns, {"1:out": made.activations["1:out"].copy()})
    made.activations["1:out"][2, 0] = np.nan
    assert encoded_rows(made, Codes.empty(3, 2), "1:out").tolist() == [0, 1, -1, 2]
