"""Dictionaries that come while the analyzer runs: chosen, followed, swapped in between two frames, killed around it, replayed."""

from __future__ import annotations

import itertools
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from bench.synthetic import Synthetic
from tests.test_service import agent, balanced, committed, until

from interlatent_live.analyzer.choice import choose
from interlatent_live.analyzer.dictionary import Dictionary, DictionaryConfig
from interlatent_live.analyzer.digest import digest, hash_of, verify
from interlatent_live.analyzer.door import Analyzer
from interlatent_live.analyzer.following import Followed, follow_folder, swaps_of
from interlatent_live.analyzer.service import analyze_recording
from interlatent_live.analyzer.store import Store
from interlatent_live.stream.errors import DictionaryError, DictionaryMismatch, StoreError
from interlatent_live.stream.recording import Recorder

STREAM = Synthetic(width=12, metrics=3, episode_steps=40)


def dictionary(name: str = "learned", seed: int = 0, *, width: int = 12, model_hash: str | None = None, point: str = "0:out") -> Dictionary:
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        "W_enc": torch.randn(width, 20, generator=generator), "b_enc": torch.zeros(20),
        "W_dec": torch.randn(20, width, generator=generator), "b_dec": torch.zeros(width), "mean_out": torch.zeros(width),
    }  # fmt: skip
    weights = STREAM.manifest.weights_hash if model_hash is None else model_hash
    return Dictionary(DictionaryConfig(name, "topk", width, width, 20, point, point, k=4, model_hash=weights), tensors)


def names(*args: Any, **options: Any) -> list[tuple[str, int]]:
    return [(c.source.name, c.mismatch) for c in choose(*args, **options)]


def test_adopted_ones_come_first_and_what_was_named_stays(caplog: pytest.LogCaptureFixture) -> None:
    manifest = STREAM.manifest
    new, older, named = dictionary("new", 1), dictionary("older", 2), dictionary("named", 3)
    assert names(manifest, adopted=[new, older]) == [("new", 0)]
    assert names(manifest, adopted=[new], neurons_only=True) == [("new", 0)]
    assert names(manifest, [named], adopted=[new]) == [("new", 0), ("named", 0)]
    assert names(manifest, [named], adopted=[named]) == [("named", 0)]
    assert names(manifest, [named, named]) == [("named", 0)]
    for wrong in (dictionary("w", model_hash="other"), dictionary("w", width=5), dictionary("w", point="9:out")):
        assert names(manifest, adopted=[wrong, older]) == [("older", 0)]
    assert names(manifest, adopted=[dictionary("w", point="9:out")]) == [("neurons of 0:out", 0)]


def test_one_of_changing_weights_is_taken_and_marked_stale() -> None:
    manifest = type(STREAM.manifest).from_dict({**STREAM.manifest.to_dict(), "weights": "changing"})
    assert names(manifest, adopted=[dictionary()]) == [("learned", 2)]
    assert names(manifest, adopted=[dictionary(model_hash="other")]) == [("neurons of 0:out", 0)]


def test_a_folder_is_followed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "d"
    followed = Followed(folder)
    assert followed.changed() is None  # it need not exist
    dictionary("a", 1).save(folder / "a")
    (folder / ".half").mkdir()
    shutil.copy(folder / "a" / "cfg.json", folder / ".half" / "cfg.json")
    found = followed.changed()
    assert found is not None
    assert [d.name for d in found] == ["a"]
    assert followed.changed() is None
    dictionary("b", 2).save(folder / "b")
    os.utime(folder / "b" / "cfg.json", ns=(2**62, 2**62))
    found = followed.changed()
    assert found is not None
    assert [d.name for d in found] == ["b", "a"]  # the newest first
    (folder / "c").mkdir()
    (folder / "c" / "cfg.json").write_text("{")
    with caplog.at_level(logging.WARNING):
        assert followed.changed() is None
    assert "dictionary left out" in caplog.text
    shutil.rmtree(folder / "a")
    assert followed.changed() is None  # it stays in force
    dictionary("c", 3).save(folder / "c", overwrite=True)
    found = followed.changed()
    assert found is not None
    assert {d.name for d in found} == {"a", "b", "c"}


def fed(path: Path, *, swap_at: int | None, first: list[Dictionary] | None = None, batches: int = 60) -> None:
    """600 frames, in transactions of seven batches; from batch `swap_at` on with the learned dictionary."""
    stream = Synthetic(width=12, metrics=3, episode_steps=40)
    with Store(path) as store:
        analyzer = Analyzer(store, dictionaries=first, neurons_only=first is None)
        analyzer.feed(stream.manifest)
        for number, batch in enumerate(stream.batches(batches, 10)):
            if number == swap_at:
                analyzer.adopt([dictionary()])
            analyzer.feed(batch, commit=number % 7 == 6)
        analyzer.close()


def sections(path: Path) -> list[tuple[Any, ...]]:
    with Store(path, readonly=True) as store:
        return store.all(
            "SELECT d.name, s.reason, s.first_seq, s.next_seq FROM sections s JOIN dictionaries d ON d.hash = s.dictionary_hash "
            "ORDER BY s.id"
        )


def test_a_swap_falls_between_two_frames(tmp_path: Path) -> None:
    fed(tmp_path / "a.db", swap_at=23)
    assert sections(tmp_path / "a.db") == [("neurons of 0:out", "start", 0, 230), ("learned", "swap", 230, 600)]
    with Store(tmp_path / "a.db", readonly=True) as store:
        seen = store.all("SELECT b.first_seq, count(*), min(s.reason) FROM batches b JOIN codes c ON c.batch_id = b.id "
                         "JOIN sections s ON s.id = c.section_id GROUP BY b.id ORDER BY b.id")  # fmt: skip
        assert seen == [(10 * n, 1, "start" if n < 23 else "swap") for n in range(60)]
        assert store.one("SELECT count(*) FROM events WHERE ended_by = 'end' AND section_id = 1 AND last_seq = 229")[0] > 0
        assert store.one("SELECT analyzed FROM ledger") == (600,)
    fed(tmp_path / "b.db", swap_at=23)
    assert verify(tmp_path / "a.db", tmp_path / "b.db") is None
    fed(tmp_path / "c.db", swap_at=24)
    assert verify(tmp_path / "a.db", tmp_path / "c.db") is not None


def test_sections_of_one_dictionary_compare_whatever_came_before_it(tmp_path: Path) -> None:
    learned = dictionary()
    fed(tmp_path / "a.db", swap_at=23)
    fed(tmp_path / "b.db", swap_at=23, first=[dictionary("another", 9)])  # named, so it stays beside it
    assert sections(tmp_path / "b.db") == [("another", "start", 0, 600), ("learned", "swap", 230, 600)]
    assert digest(tmp_path / "a.db") != digest(tmp_path / "b.db")
    assert digest(tmp_path / "a.db", learned.hash) == digest(tmp_path / "b.db", learned.hash)
    assert verify(tmp_path / "a.db", tmp_path / "b.db", learned.hash) is None
    assert hash_of(tmp_path / "a.db", "learned") == hash_of(tmp_path / "a.db", learned.hash[:8]) == learned.hash
    with pytest.raises(StoreError, match=f"no dictionaries 'mine'; it has .*learned {learned.hash[:12]}"):
        hash_of(tmp_path / "a.db", "mine")


def test_several_dictionaries_at_once_give_what_each_gives_alone(tmp_path: Path) -> None:
    one, two = dictionary("one", 1), dictionary("two", 2)
    fed(tmp_path / "both.db", swap_at=None, first=[one, two])
    assert sections(tmp_path / "both.db") == [("one", "start", 0, 600), ("two", "start", 0, 600)]
    with Store(tmp_path / "both.db", readonly=True) as store:
        assert store.one("SELECT count(*) FROM codes") == (120,)
    for alone in (one, two):
        db = tmp_path / f"{alone.name}.db"
        fed(db, swap_at=None, first=[alone])
        assert verify(db, tmp_path / "both.db", alone.hash) is None
        assert digest(db, alone.hash) == digest(tmp_path / "both.db", alone.hash)


def test_named_ones_must_still_fit(tmp_path: Path) -> None:
    with pytest.raises(DictionaryMismatch):
        fed(tmp_path / "a.db", swap_at=None, first=[dictionary(), dictionary("w", model_hash="other")])


ANALYZER = """
import signal, sys
from interlatent_live.analyzer.service import analyze_stream
told = []
signal.signal(signal.SIGTERM, lambda *_: told.append(1))
print(analyze_stream(sys.argv[1], sys.argv[2], stop=lambda: bool(told)))
"""


@contextmanager
def analyzer(endpoint: str, db: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", ANALYZER, endpoint, str(db)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def swapped(db: Path, name: str, frames: int = 50) -> bool:
    if not committed(db):
        return False
    try:
        return any(row[0] == name and row[3] - row[2] > frames for row in sections(db))
    except StoreError:
        return False


def test_learned_while_it_runs_swapped_killed_and_replayed(tmp_path: Path) -> None:
    db, folder = tmp_path / "run.db", tmp_path / "run.dictionaries"
    assert follow_folder(db) == folder
    first, second = dictionary("first", 1), dictionary("second", 2)
    recording = tmp_path / "r.mcap"
    with agent(recorder=Recorder(recording)) as acting:
        with analyzer(acting.endpoint, db) as process:
            until(lambda: committed(db) > 50)
            first.save(folder / "first")
            until(lambda: swapped(db, "first"))
            with Store(db, readonly=True) as store:
                assert store.one("SELECT value FROM meta WHERE key = 'endpoint'") == (acting.endpoint,)
                assert store.one("SELECT value FROM meta WHERE key = 'follows'") == (str(folder),)
            second.save(folder / "second")
            process.kill()  # before, while or after it swaps
            process.wait()
        held = sections(db)
        with Store(db, readonly=True) as store:
            assert store.one("PRAGMA integrity_check") == ("ok",)
        with analyzer(acting.endpoint, db) as process:
            until(lambda: sections(db)[-1][0] == "second" and swapped(db, "second"))
            acting.finish.set()
            _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    balanced(db)
    after = sections(db)
    assert after[:2] == held[:2]
    assert [row[:2] for row in after[:2]] == [("neurons of 0:out", "start"), ("first", "swap")]
    assert after[-1][:2] == ("second", "resume")  # the folder is all the state there is
    with Store(db, readonly=True) as store:
        kept = store.all("SELECT first_seq, rows FROM batches ORDER BY first_seq")
        assert all(a + rows <= b for (a, rows), (b, _) in itertools.pairwise(kept))
        counted = "SELECT count(*) FROM batches b WHERE (SELECT count(*) FROM codes c WHERE c.batch_id = b.id) != 1"
        assert store.one(counted) == (0,)
        assert store.one("SELECT sum(rows) FROM batches") == store.one("SELECT analyzed FROM ledger")
    again = tmp_path / "again.db"
    analyze_recording(recording, again, dictionaries=[second])
    analyze_recording(recording, tmp_path / "once.db", dictionaries=[second])
    assert verify(again, tmp_path / "once.db", second.hash) is None


def test_a_live_swap_is_replayed_from_the_recording(tmp_path: Path) -> None:
    db, recording = tmp_path / "run.db", tmp_path / "r.mcap"
    with agent(recorder=Recorder(recording)) as acting, analyzer(acting.endpoint, db) as process:
        until(lambda: committed(db) > 50)
        dictionary().save(tmp_path / "run.dictionaries" / "learned")
        until(lambda: swapped(db, "learned"))
        acting.finish.set()
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    ((_, at),) = swaps_of(db)
    assert at == sections(db)[0][3]
    analyze_recording(recording, tmp_path / "again.db", swaps=db)
    assert verify(db, tmp_path / "again.db") is None
    dictionary(seed=5).save(tmp_path / "run.dictionaries" / "learned", overwrite=True)
    with pytest.raises(DictionaryError, match="holds the dictionary"):
        swaps_of(db)


