"""Dictionaries that come while an analyzer runs: a folder is their door.

Every artifact directly below a followed folder is in force, the newest one first for each output point; one of other weights, or
for other tap points, is passed over. An artifact appears by one rename, so it is seen whole or not at all; what the folder holds
is all the state there is, so an analyzer that was killed takes up the same dictionaries again. One that is taken out of the
folder stays in force until the analyzer is started anew.

A live analyzer follows the folder beside its database (`follow_folder`), where `dict train --live` of the page puts what it
learns. A look costs a few microseconds an artifact; loading one, a read and a hash of its file.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from interlatent_live.analyzer.store import connect_readonly
from interlatent_live.analyzer.writer import translated
from interlatent_live.stream.errors import DictionaryError

if TYPE_CHECKING:  # torch comes with it
    from interlatent_live.analyzer.dictionary import Dictionary

__all__ = ["LOOK_S", "Followed", "follow_folder", "swaps_of"]

LOOK_S: Final = 1.0
"""Between two looks."""
MAX_ARTIFACTS: Final = 64
"""The newest are looked at."""
_CFG: Final = "cfg.json"
_LOG = logging.getLogger(__name__)


def follow_folder(db: str | Path) -> Path:
    """The folder that an analyzer of this database follows unless told otherwise: `run.dictionaries` beside `run.db`."""
    path = Path(db).absolute()
    return path.with_name(f"{path.stem}.dictionaries")


class Followed:
    """A folder, which need not exist yet."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._seen: dict[str, tuple[int, int]] = {}
        self._loaded: dict[str, Dictionary] = {}

    def changed(self) -> list[Dictionary] | None:
        """What has ever been there, the newest first, where something was added or replaced since the last look; else None."""
        found: dict[str, tuple[int, int]] = {}
        try:
            with os.scandir(self.folder) as entries:
                for entry in entries:
                    if not entry.name.startswith("."):
                        try:
                            status = os.stat(os.path.join(entry.path, _CFG))
                        except OSError:  # no artifact, or on its way out
                            continue
                        found[entry.name] = status.st_mtime_ns, status.st_ino
        except OSError:
            return None
        new = [name for name, stamp in found.items() if self._seen.get(name) != stamp]
        if not new:
            return None
        from interlatent_live.analyzer.dictionary import load

        self._seen.update(found)
        before = {name: d.hash for name, d in self._loaded.items()}
        for name in sorted(new, key=lambda n: (found[n], n))[-MAX_ARTIFACTS:]:
            try:
                self._loaded[name] = load(self.folder / name)
            except DictionaryError as error:
                _LOG.warning("dictionary left out: %s", error)
        if before == {name: d.hash for name, d in self._loaded.items()}:
            return None
        return [self._loaded[name] for name in sorted(self._loaded, key=lambda n: (self._seen[n], n), reverse=True)]


def swaps_of(db: str | Path) -> dict[tuple[str, int], list[Dictionary]]:
    """Where the analysis in a database swapped dictionaries: (boot, first frame) to those that came then, loaded from where they
    were. Raises DictionaryError where one is gone, or another now.
    """
    from interlatent_live.analyzer.registry import find

    connection = connect_readonly(db)
    try:
        with translated(Path(db)):
            rows = connection.execute(
                "SELECT s.boot, s.first_seq, d.hash, d.path FROM sections s JOIN dictionaries d ON d.hash = s.dictionary_hash "
                "WHERE s.reason = 'swap' AND d.kind != 'neurons' ORDER BY s.id"
            ).fetchall()
    finally:
        connection.close()
    found: dict[tuple[str, int], list[Dictionary]] = {}
    for boot, first_seq, hash_, path in rows:
        dictionary = find(path or hash_)
        if dictionary.hash != hash_:
            raise DictionaryError(f"{path} holds the dictionary {dictionary.hash[:12]} now; {db} was swapped to {hash_[:12]}")
        found.setdefault((boot, first_seq), []).append(dictionary)
    return found
