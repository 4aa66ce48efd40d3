from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from interlatent_live.analyzer.digest import digest
from interlatent_live.analyzer.retention import Retention
from interlatent_live.analyzer.writes import Writes
from interlatent_live.explainer.notebook import Notebook
from interlatent_live.explainer.notes import Notes
from interlatent_live.explainer.reading import Pages
from interlatent_live.stream.errors import ForeignDatabase, StoreError

from .explained import Run


def test_its_tables_come_beside_the_analyzers_and_change_nothing_there(tmp_path: Path) -> None:
    run = Run(tmp_path / "r.db")
    run.write(2)
    before = digest(tmp_path / "r.db")
    with Notebook(tmp_path / "r.db") as notebook, Notes(tmp_path / "r.db") as notes:
        notes.name("d0", 1, "mine")
        notes.add("d0", 1, "seen twice")
        run.write(1)  # the analyzer goes on while they are open
        assert notebook.all("SELECT feature, label FROM names") == [(1, "mine")]
    run.store.connection.execute("DELETE FROM codes WHERE batch_id > 10")
    run.store.connection.execute("DELETE FROM batches WHERE id > 10")
    run.store.connection.execute("UPDATE sections SET next_seq = 200")
    assert digest(tmp_path / "r.db") == before
    run.close()


def test_one_process_writes_and_names_may_be_given_all_the_same(tmp_path: Path) -> None:
    Run(tmp_path / "r.db").close()
    with Notebook(tmp_path / "r.db"):
        with pytest.raises(StoreError, match=f"process {os.getpid()}"):
            Notebook(tmp_path / "r.db")
        with Notes(tmp_path / "r.db") as names:
            names.name("d0", 0, "x", predicate="angle > 0")
        Notebook(tmp_path / "r.db", service=False).close()
    Notebook(tmp_path / "r.db").close()


def test_a_killed_process_leaves_no_lock(tmp_path: Path) -> None:
    Run(tmp_path / "r.db").close()
    code = (
        "import os, sys; from pathlib import Path; from interlatent_live.explainer.notebook import Notebook; "
        "n = Notebook(Path(sys.argv[1])); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path / "r.db")], check=False).returncode == -9
    Notebook(tmp_path / "r.db").close()


def test_refuses_what_is_not_the_analyzers(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="does not exist"):
        Notebook(tmp_path / "none.db")
    (tmp_path / "empty.db").touch()
    with pytest.raises(StoreError, match="no analysis yet"):
        Notebook(tmp_path / "empty.db")
    other = sqlite3.connect(tmp_path / "other.db")
    other.execute("CREATE TABLE mine (a)")
    other.close()
    with pytest.raises(ForeignDatabase):
        Notebook(tmp_path / "other.db")
    (tmp_path / "text.db").write_text("no database" * 100)
    with pytest.raises(ForeignDatabase):
        Notebook(tmp_path / "text.db")
    Run(tmp_path / "new.db").close()
    with Notebook(tmp_path / "new.db") as notebook:
        writes = Writes()
        writes.execute("UPDATE explainer_meta SET value = '99'")
        notebook.commit(writes)
    with pytest.raises(StoreError, match="newer build"):
        Notebook(tmp_path / "new.db")


def test_retention_keeps_the_frames_that_a_sentence_cites(tmp_path: Path) -> None:
    run = Run(tmp_path / "r.db")
    run.write(3)
    with Notebook(tmp_path / "r.db") as notebook:
        writes = Writes()
        writes.insert("cited", boot="b0", first_seq=105, next_seq=115, kind="line", ref=1)
        notebook.commit(writes)
    retired = Writes()
    Retention(run.store, max_age_s=1.0).retire(10**12, 10**18 + 10**12, retired)
    run.store.commit(retired)
    assert [row[0] for row in run.store.all("SELECT first_seq FROM batches ORDER BY id")] == [100]
    run.close()


def test_retention_works_before_anything_was_explained(tmp_path: Path) -> None:
    run = Run(tmp_path / "r.db")
    run.write(1)
    retired = Writes()
    Retention(run.store, max_age_s=1.0).retire(10**12, 10**18 + 10**12, retired)
    run.store.commit(retired)
    assert run.store.all("SELECT id FROM batches") == []
    run.close()


def test_pages_are_empty_before_the_explainer_ran(tmp_path: Path) -> None:
    Run(tmp_path / "r.db").close()
    with Pages(tmp_path / "r.db") as pages:
        assert pages.explanations(everything=True) == []
        assert pages.narration("b0") == []
        assert pages.explainer_status() is None
        assert pages.versions("d0", 1) == []
        assert pages.attempts("d0") == []
        assert pages.evidence(1) == []
    with Pages(tmp_path / "none.db") as pages:
        assert pages.explanations() == []


def test_rows_go_in_parts_and_all_of_them_arrive(tmp_path: Path) -> None:
    Run(tmp_path / "r.db").close()
    with Notebook(tmp_path / "r.db") as notebook:
        writes = Writes()
        for feature in range(150):
            writes.replace(
                "features", dictionary_hash="d0", feature=feature, density=0.5, held_out_positives=1, live=1, frames=10)
        writes.replace("explainer_state", key="status", value="{}")
        notebook.commit_in_parts(writes)
        assert notebook.one("SELECT count(*) FROM features") == (150,)
        assert notebook.one("SELECT value FROM explainer_state") == ("{}",)
