"""Weights that change under a page: which policy version frames were made under, and the dictionary's error against it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from interlatent_live.analyzer.records import DictionaryRow, Quality, Section
from interlatent_live.stream.manifest import Manifest
from interlatent_live.viewer.text import plain

__all__ = ["VERSIONS", "Learning", "stale_reason"]

VERSIONS: Final = 300


class Learning:
    """Mean FVU of each policy version seen, weighted by frames."""

    def __init__(self) -> None:
        self._sums: dict[int, tuple[float, int]] = {}
        self._known = (-1, -1)
        """Section and first frame of the newest second taken in."""

    def note(self, rows: Sequence[Quality], version_at: Callable[[int], int | None]) -> None:
        """Take in seconds not seen yet. `version_at`: of a frame."""
        for row in rows:
            at = row.section_id, row.first_seq
            if at <= self._known or row.fvu is None:
                continue
            self._known = at
            version = version_at(row.first_seq)
            if version is not None:
                total, frames = self._sums.get(version, (0.0, 0))
                self._sums[version] = total + row.fvu * row.frames, frames + row.frames
        for version in sorted(self._sums)[:-VERSIONS]:
            del self._sums[version]

    @property
    def points(self) -> list[tuple[int, float]]:
        """(policy version, FVU), rising."""
        return [(v, total / frames) for v, (total, frames) in sorted(self._sums.items()) if frames]


def stale_reason(manifest: Manifest | None, section: Section | None, dictionary: DictionaryRow | None) -> str:
    """Why a dictionary's card says little about these weights; '' where it does."""
    if manifest is None or section is None or dictionary is None or dictionary.kind == "neurons":
        return ""
    if manifest.weights == "changing":
        return "stale: the weights are changing, and the card was measured on others"
    if not section.mismatch:
        return ""
    ours, theirs = str(dictionary.cfg.get("model_hash") or ""), manifest.weights_hash
    known = f"weights {ours[:12]}" if ours else "weights it does not name"
    where = "" if ours != theirs else f"; it was trained at {dictionary.cfg.get('output')}"
    return plain(f"used by override: {dictionary.name} is of {known}, the agent has {theirs[:12] or 'unknown ones'}{where}", 160)
