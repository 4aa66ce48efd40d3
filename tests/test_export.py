"""Exported tables hold what the run holds, in Parquet and CSV."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tests.stream_samples import batch, manifest, scalars

import interlatent_live as il
from interlatent_live.analyzer.export import KINDS, export, exportable
from interlatent_live.analyzer.service import analyze_recording
from interlatent_live.stream.errors import RecordingError, RecordingExists
from interlatent_live.stream.recording import Recorder
from interlatent_live.stream.wire import Message

BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export") / "run.mcap"
    recorder = Recorder(path)
    messages: list[Message] = [manifest(), scalars(), *(batch(i * 5, 5) for i in range(100))]
    for message in messages:
        recorder.write(message)
        recorder.flush()
    recorder.close()
    analyze_recording(path, path.with_suffix(".db"))
    return path


@pytest.mark.parametrize("format", ["parquet", "csv"])
def test_everything(path: Path, tmp_path: Path, format: str) -> None:
    run = il.open(path)
    assert exportable(run) == KINDS
    written = export(run, tmp_path / "all", format=format)
    names = {Path(p).name.removesuffix(f".{format}"): rows for p, rows in written.items()}
    assert names["metrics"] == names["frames"] == names["activations.1_out"] == 500
    assert names["features.neurons_of_1_out"] == run.features["1:out"][:].nnz
    assert names["events"] == len(run.events)
    read = {name: getattr(pd, f"read_{format}")(tmp_path / "all" / f"{name}.{format}") for name in names}
    assert np.array_equal(read["metrics"]["pole_angle"], run.metrics["pole_angle"])
    assert read["metrics"]["seq"].tolist() == list(range(500))
    assert np.allclose(read["activations.1_out"][["u0", "u1", "u2"]], run.activations["1:out"][:], rtol=1e-6)
    assert read["activations.3_out"]["u0"].isna().sum() == 100
    assert read["correlations"]["metric"].tolist() == run.correlations["metric"].tolist()
    assert read["scalars"]["value"].tolist() == run.scalars["value"].tolist()
    assert read["episodes"]["return"].tolist() == run.episodes["return"].tolist()


def test_one_table_in_one_file(path: Path, tmp_path: Path) -> None:
    export(il.open(path).episode(2), tmp_path / "m.csv", what=["metrics"])
    assert pd.read_csv(tmp_path / "m.csv")["seq"].tolist() == list(range(200, 300))
    export(il.open(path), tmp_path / "new" / "m.parquet", what=["metrics"])
    assert len(pd.read_parquet(tmp_path / "new" / "m.parquet")) == 500


def test_what_is_refused(path: Path, tmp_path: Path) -> None:
    run = il.open(path)
    with pytest.raises(RecordingError, match="'metric' cannot be exported; there is frames, metrics"):
        export(run, tmp_path / "a", what=["metric"])
    with pytest.raises(RecordingError, match="one file"):
        export(run, tmp_path / "a.csv", what=["metrics", "events"])
    with pytest.raises(RecordingError, match="format"):
        export(run, tmp_path / "a.csv", what=["metrics"], format="parquet")
    with pytest.raises(RecordingError, match="format"):
        export(run, tmp_path / "a", format="xlsx")
    (tmp_path / "a.csv").touch()
    with pytest.raises(RecordingExists):
        export(run, tmp_path / "a.csv", what=["metrics"])
    with pytest.raises(RecordingError, match="analyze --recording"):
        export(il.open(path, beside=False), tmp_path / "b", what=["events"])
    assert not (tmp_path / "b").exists()


def test_a_recording_alone_exports_what_it_has(path: Path, tmp_path: Path) -> None:
    kinds = exportable(il.open(path, beside=False))
    assert "activations" in kinds
    assert "events" not in kinds
    assert "activations" not in exportable(il.open(path.with_suffix(".db"), beside=False))


def test_the_command_puts_the_analysis_beside_the_recording(path: Path, tmp_path: Path) -> None:
    for name in ("run.mcap", "run.db"):
        (tmp_path / name).write_bytes((path.parent / name).read_bytes())
    command = [str(BIN / "interlatent-live"), "export", "run.mcap", "--what", "events,correlations", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100, check=True, env=os.environ)
    rows = {row["file"]: row["rows"] for row in json.loads(done.stdout)}
    run = il.open(path)
    assert rows == {"run-export/events.parquet": len(run.events), "run-export/correlations.parquet": len(run.correlations)}


def test_the_command_recovers(path: Path, tmp_path: Path) -> None:
    (tmp_path / "torn.mcap").write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    command = [str(BIN / "interlatent-live"), "recover", "torn.mcap", "--json"]
    done = json.loads(subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100, check=True).stdout)
    assert done["frames"] > 0
    assert len(il.open(tmp_path / done["out"])) == done["frames"]
