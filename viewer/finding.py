"""What the page asks of many frames: a feature's page, a predicate tried, two spans compared.

One worker thread owns every connection and the newest frames, so the server's loop never waits for a question. A mistake in
what was typed is data with what is wrong, never an exception.
"""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from interlatent_live.analyzer.records import DictionaryRow
from interlatent_live.explainer.differing import Differing, compare
from interlatent_live.explainer.reading import Pages
from interlatent_live.explainer.source import Frames
from interlatent_live.explainer.table import Table
from interlatent_live.explainer.trying import Trier
from interlatent_live.stream.errors import PredicateError, StoreError
from interlatent_live.viewer.clip import clip
from interlatent_live.viewer.feature import called, feature, finite, said
from interlatent_live.viewer.listing import layers

__all__ = ["Finder"]

FRAMES: Final = 60_000
"""Newest frames that are looked at."""
ROWS: Final = 60
_KEPT: Final = 2
"""Tap points whose frames are kept."""
_BLOCK_S: Final = 1.0
_MIN_BLOCKS: Final = 4
_MIN_EPISODES: Final = 4
"""Below so many, episodes say next to nothing of how sure a difference is: t with one degree of freedom is 12.7."""
_SPAN = re.compile(r"(\d{1,15})-(\d{1,15})")
_TIMES = re.compile(r"(\d{1,9}(?:\.\d{1,6})?)s-(\d{1,9}(?:\.\d{1,6})?)s")
_EPISODE = re.compile(r"e(\d{1,12})")
Mask = npt.NDArray[np.bool_]


class Finder:
    """Answers about one database; every method but `ask` and `close` runs in the worker."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="finder")
        self._pages: Pages | None = None
        self._triers: dict[str | None, Trier] = {}

    def close(self) -> None:
        """Let go of the file and the thread."""
        self.pool.submit(self._let_go)
        self.pool.shutdown(wait=True, cancel_futures=False)

    def _let_go(self) -> None:
        for trier in self._triers.values():
            trier.close()
        if self._pages is not None:
            self._pages.close()

    @property
    def pages(self) -> Pages:
        """The worker's own connection."""
        if self._pages is None:
            self._pages = Pages(self.path)
        return self._pages

    def _trier(self, point: str | None) -> Trier:
        if point not in self._triers:
            while len(self._triers) >= _KEPT:
                self._triers.pop(next(iter(self._triers))).close()
            self._triers[point] = Trier(self.path, max_frames=FRAMES, point=point)
        return self._triers[point]

    def feature(self, hash: str, number: int) -> dict[str, Any] | None:
        """Everything about one feature of the dictionary of that hash, or of the only one that begins so; None where there is none."""
        with self.pages.consistent():
            dictionary = self._dictionary(hash)
            if dictionary is None or not 0 <= number < dictionary.features:
                return None
            return feature(self.pages, dictionary, number, self._frames(dictionary))

    def known(self, hash: str) -> str | None:
        """The whole hash of a dictionary that this database knows."""
        dictionary = self._dictionary(hash)
        return None if dictionary is None else dictionary.hash

    def said(self, hash: str, number: int) -> dict[str, Any]:
        """What explainer and people say of a feature, as its page has it."""
        with self.pages.consistent():
            found: dict[str, Any] = finite(said(self.pages, hash, number))
            return found

    def features(self, boot: str, layer: str) -> dict[str, Any]:
        """The list of features of another layer than the shown one, or of all."""
        with self.pages.consistent():
            return layers(self.pages, boot, layer)

    def _dictionary(self, hash: str) -> DictionaryRow | None:
        exact = self.pages.dictionary(hash)
        if exact is not None or len(hash) < 8:
            return exact
        hashes = {s.dictionary_hash for b in self.pages.boots() for s in self.pages.sections(b.boot)}
        near = [h for h in hashes if h.startswith(hash)]
        return self.pages.dictionary(near[0]) if len(near) == 1 else None

    def _frames(self, dictionary: DictionaryRow) -> Frames | None:
        """The newest frames, if they are of this dictionary."""
        trier = self._trier(dictionary.point)
        try:
            subject = trier.refresh()
        except StoreError:
            return None
        return trier.frames if subject.dictionary.hash == dictionary.hash else None

    def attempt(self, text: str, point: str | None) -> dict[str, Any]:
        """A predicate's score on held-out episodes for the features that it fits best."""
        trier = self._trier(point)
        try:
            trial = trier.attempt(text[:2_000])
            subject = trier.refresh()
        except StoreError as error:
            return {"error": str(error)}
        found: dict[str, Any] = finite(asdict(trial))
        return {**found, "hash": subject.dictionary.hash}

    def names(self, point: str | None) -> list[str]:
        """What a predicate may name."""
        try:
            return list(self._trier(point).names())
        except StoreError:
            return []

    def clip(self, at: int, boot: str | None, env: int, source: str | None) -> str:
        """Ten seconds around a frame, as HTML."""
        return clip(self.pages, at, boot=boot, env=env, source=source)

    def compare(self, boot: str, env: int, a: str, b: str, point: str | None) -> dict[str, Any]:
        """What differs between two selections of frames: '120-480', '2.4s-9.6s' of frame time, 'e7'; b also 'rest'."""
        trier = self._trier(point)
        try:
            subject, frames = trier.refresh(), trier.frames
            if boot not in frames.boots:
                raise PredicateError("none of the newest frames are of this start of the agent")
            mine = frames.table.boot == frames.boots.index(boot)
            one, other = self._selected(frames, mine, boot, env, a), None
            other = mine & ~one if b == "rest" else self._selected(frames, mine, boot, env, b)
            if other is not None and (one & other).any():
                raise PredicateError("the two selections have frames in common; choose ones that do not overlap")
            table, by = _blocked(frames, one, other, subject.manifest.step_period_s)
            features = table.features
            assert features is not None
            active = np.flatnonzero(features.counts(one | other) > 0).tolist()
            metrics = [m.name for m in subject.manifest.metrics]
            differing = compare(table, one, other, metrics=metrics, features=[int(f) for f in active])
        except (PredicateError, StoreError) as error:
            return {"error": str(error)}
        labels = {e.feature: e.label for e in self.pages.explanations(subject.dictionary.hash, everything=True)}
        rows = [_row(d, labels, subject.dictionary) for d in differing]
        ranked = [r for r in rows if r["feature"] is not None][:ROWS] + [r for r in rows if r["feature"] is None][:ROWS]
        found: dict[str, Any] = finite({
            "error": None, "by": by, "hash": subject.dictionary.hash, "rows": ranked,
            "a": self._about(frames, one, boot, env), "b": self._about(frames, other, boot, env),
        })  # fmt: skip
        return found

    def _selected(self, frames: Frames, mine: Mask, boot: str, env: int, text: str) -> Mask:
        """(n,) the frames that a text names."""
        here = mine & (frames.table.env == env)
        found: Mask
        if match := _EPISODE.fullmatch(text.strip()):
            found = here & (frames.table.episode == int(match[1]))
        elif match := _SPAN.fullmatch(text.strip()):
            found = here & (frames.seq >= int(match[1])) & (frames.seq <= int(match[2]))
        elif match := _TIMES.fullmatch(text.strip()):
            first, last = (self._seq_at(boot, float(t)) for t in match.groups())
            found = here & (frames.seq >= first) & (frames.seq <= last)
        else:
            raise PredicateError(f"{text[:60]!r} names no frames; write 120-480 for frames, e7 for an episode")
        if not found.any():
            known = frames.seq[here]
            kept = f"{known[0]} to {known[-1]}" if len(known) else "none"
            raise PredicateError(f"{text[:60]!r} holds none of the frames that are compared (of this environment: {kept})")
        return found

    def _seq_at(self, boot: str, t: float) -> int:
        """The last frame not after frame time `t`, s."""
        known = next((b for b in self.pages.boots() if b.boot == boot), None)
        manifest = self.pages.manifest(known.manifest_hash) if known is not None and known.manifest_hash else None
        extent = self.pages.extent(boot)
        if manifest is None or extent is None:
            raise StoreError("nothing is kept of this start of the agent")
        low, high, wanted = extent[2], extent[3] - 1, manifest.started_monotonic_ns + int(t * 1e9)
        while low < high:
            middle = (low + high + 1) // 2
            clock = self.pages.clock_at(boot, middle)
            if clock is not None and clock <= wanted:
                low = middle
            else:
                high = middle - 1
        return low

    def _about(self, frames: Frames, rows: Mask, boot: str, env: int) -> dict[str, Any]:
        """A selection in figures, with a picture from its middle."""
        at = np.flatnonzero(rows)
        seq, groups = frames.seq[at], np.unique(frames.table.groups[at])
        reward = frames.table.numbers.get("reward")
        middle = int(seq[len(seq) // 2])
        picture = self.pages.picture(boot, env, middle)
        return {
            "frames": len(at), "first": int(seq.min()), "last": int(seq.max()), "episodes": len(groups),
            "reward": None if reward is None else float(np.nanmean(reward[at])) if np.isfinite(reward[at]).any() else None,
            "picture": picture.seq if picture is not None and picture.seq >= int(seq.min()) else None,
        }  # fmt: skip


def _row(found: Differing, labels: dict[int, str | None], dictionary: DictionaryRow) -> dict[str, Any]:
    number = found.feature
    name = found.name if number is None else called(dictionary, number)
    return {**asdict(found), "name": name, "label": None if number is None else labels.get(number)}


def _blocked(frames: Frames, one: Mask, other: Mask, period_s: float | None) -> tuple[Table, str]:
    """The table whose episodes the interval draws again, and what it draws.

    A span within one episode has no other episode to vary with: then blocks of a second stand in, at least four a selection,
    which says how sure the difference is within these frames, not for other episodes; the answer names what was drawn.
    """
    table = frames.table
    if min(len(np.unique(table.groups[one])), len(np.unique(table.groups[other]))) >= _MIN_EPISODES:
        return table, "episodes"
    fewest = min(int(one.sum()), int(other.sum()))
    block = max(1, min(round(_BLOCK_S / period_s) if period_s else 50, fewest // _MIN_BLOCKS))
    order = np.zeros(table.rows, np.int64)
    for rows in (one, other):
        order[rows] = np.arange(int(rows.sum()))
    number = order // block * 2 + other  # blocks of the two never share a number
    kept = one | other
    blocks = np.where(kept, number + 1, 0)
    made = Table(
        table.numbers, env=table.env, boot=table.boot, episode=blocks, labels=table.labels, units=table.vocabulary.units,
        features=table.features,
    )  # fmt: skip
    return made, f"blocks of {block} frames"
