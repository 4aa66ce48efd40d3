"""What docs/privacy.md says of files: what a recording and a database hold, and what they do not."""

import os
import sqlite3
import stat
from pathlib import Path

import numpy as np

import interlatent_live as il
from interlatent_live.analyzer.blobs import unpack_columns
from interlatent_live.analyzer.service import analyze_recording
from interlatent_live.cli.live import EXAMPLE
from interlatent_live.stream.reading import Recording


def test_database_keeps_observations_and_pictures_but_no_activations(tmp_path: Path) -> None:
    analyze_recording(EXAMPLE, tmp_path / "r.db")
    with sqlite3.connect(tmp_path / "r.db") as db:
        columns = unpack_columns(db.execute("SELECT columns FROM batches LIMIT 1").fetchone()[0])
        pictures = db.execute("SELECT count(*) FROM pictures").fetchone()[0]
    db.close()
    assert {"observation", "metrics", "action", "reward"} <= set(columns)
    assert not [name for name in columns if name.startswith(("act:", "1:out", "3:out"))]
    assert pictures == Recording(EXAMPLE).info()["pictures"]


def test_observations_of_images_are_not_kept(tmp_path: Path) -> None:
    with il.Tap(None, run="camera", record=tmp_path / "r.mcap", endpoint="") as tap:
        for _ in range(3):
            tap.step(observation=np.zeros((96, 96, 3), np.uint8), activations={"hidden:out": np.zeros(4, np.float32)})
    run = il.open(tmp_path / "r.mcap")
    assert len(run) == 3
    assert run.observations.empty or run.observations.shape[1] == 0


def test_files_obey_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        with il.Tap(None, run="mine", record=tmp_path / "r.mcap", endpoint="") as tap:
            tap.step(observation=np.zeros(3, np.float32))
        analyze_recording(tmp_path / "r.mcap", tmp_path / "r.db")
    finally:
        os.umask(before)
    assert [stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "r.mcap", tmp_path / "r.db")] == [0o600, 0o600]
