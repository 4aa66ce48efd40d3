"""The clip: some seconds around a frame as one HTML file that needs nothing else, to be sent to somebody.

It holds the pictures, three features as lines, and the sentence of the time with its scores; it loops. What comes from a run is
data in it, written as text by its own script; a policy in its head lets it load nothing from anywhere. At most about 4 MB.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Final

import numpy as np

from interlatent_live.analyzer.records import Boot, PictureRow, Section
from interlatent_live.explainer.reading import NarrationLine, Pages
from interlatent_live.stream.errors import StoreError
from interlatent_live.stream.manifest import Manifest
from interlatent_live.viewer.assets import document
from interlatent_live.viewer.feature import called, finite
from interlatent_live.viewer.text import plain
from interlatent_live.viewer.window import Piece, merge, piece

__all__ = ["SECONDS", "clip"]

SECONDS: Final = 10.0
SHOWN: Final = 3
MAX_FRAMES: Final = 3_000
MAX_PICTURES: Final = 120
MAX_PICTURE_BYTES: Final = 2_800_000
_LINES: Final = 400
_MAX_BATCHES: Final = 20_000


def clip(
    pages: Pages, at: int, *, boot: str | None = None, env: int = 0, source: str | None = None, seconds: float = SECONDS,
    features: Sequence[int] = (),
) -> str:
    """HTML of the `seconds` around frame `at`. `source`: 'point|hash' of the features; `features`: these rather than the likeliest.

    Raises StoreError where nothing is kept there.
    """
    if not 0.5 <= seconds <= 60:
        raise StoreError(f"a clip of {seconds:g} s was asked for; it may be 0.5 to 60 s long")
    with pages.consistent():
        where, manifest, section = _place(pages, boot, source)
        frames, here = _frames(pages, where, manifest, section, env, at, seconds)
        dictionary = None if section is None else pages.dictionary(section.dictionary_hash)
        names = {e.feature: e for e in pages.explanations(dictionary.hash, everything=True)} if dictionary is not None else {}
        said = _sentence(pages, where.boot, env, int(frames.seq[0]), int(frames.seq[-1]), int(frames.seq[here]))
        wanted = [int(m["feature"]) for m in (said.features if said else ()) if "feature" in m]
        size = dictionary.features if dictionary is not None else 0
        if any(not 0 <= f < size for f in features):
            raise StoreError(f"features go from 0 to {size - 1} here; {list(features)} are not all among them")
        chosen = list(features)[:SHOWN] or _chosen(pages, section, frames, size, wanted)
        slots = np.full(max(size, 1), -1, np.int64)
        slots[chosen] = np.arange(len(chosen))
        values = frames.values(slots, len(chosen)).astype(np.float64)
        pictures = _pictures(pages, where.boot, env, frames)
    start = float(frames.t[0])
    acts = None if frames.action is None or frames.action.shape[1] != 1 or manifest.action.kind != "discrete" else frames.action[:, 0]
    known = "" if dictionary is None or dictionary.kind == "neurons" else f"#{dictionary.hash[:8]}"
    labels = {f: plain((names[f].label if f in names else None) or "", 80) for f in chosen}
    data = {
        "run": plain(manifest.run, 80), "environment": plain(manifest.environment, 80), "agent": plain(manifest.agent, 80),
        "dictionary": "" if dictionary is None else plain(dictionary.name, 40) + known,
        "at": int(frames.seq[here]), "at_s": round(float(frames.t[here]) - start, 3), "start_s": round(start, 3),
        "t": np.round(frames.t - start, 3), "seq": frames.seq, "episode": frames.episode, "step": frames.episode_step,
        "action": [] if acts is None else [_act(a, manifest.action.names) for a in acts.tolist()],
        "features": [
            {
                "name": "" if dictionary is None else called(dictionary, f), "label": labels[f],
                "score": None if f not in names or (score := names[f].score) is None else score.balanced_accuracy,
                "values": np.round(values[:, i], 4),
            }
            for i, f in enumerate(chosen)
        ],
        "sentence": None if said is None else {"text": plain(said.text, 400), "seq": said.seq, "t": said.time_s - start},
        "pictures": [[round(_time(frames, p.seq) - start, 3), base64.b64encode(p.data).decode("ascii")] for p in pictures],
    }  # fmt: skip
    return document("clip", finite(data))


def _place(pages: Pages, boot: str | None, source: str | None) -> tuple[Boot, Manifest, Section | None]:
    boots = pages.boots() if pages.ready() else []
    where = next((b for b in reversed(boots) if boot in (None, b.boot)), None)
    manifest = None if where is None or not where.manifest_hash else pages.manifest(where.manifest_hash)
    if where is None or manifest is None:
        of = f" of the start {boot!r}" if boot else ""
        raise StoreError(f"{pages.path} holds no frames{of}; `interlatent-live analyze` makes them")
    sections = pages.sections(where.boot)
    newest = [s for s in sections if s.first_seq == sections[-1].first_seq]
    mine = [s for s in sections if source is not None and f"{s.point}|{s.dictionary_hash}" == source]
    return where, manifest, mine[-1] if mine else newest[0] if newest else None


def _frames(
    pages: Pages, where: Boot, manifest: Manifest, section: Section | None, env: int, at: int, seconds: float
) -> tuple[Piece, int]:
    """The frames of the window, every n-th of too many, and the row of the one that it is about."""
    clock, extent = pages.clock_at(where.boot, at), pages.extent(where.boot)
    if clock is None or extent is None or not extent[2] <= at < extent[3]:
        kept = "nothing is" if extent is None else f"frames {extent[2]} to {extent[3] - 1} are"
        raise StoreError(f"frame {at} is not kept; {kept}")
    half = int(seconds * 5e8)
    middle = pages.batch_at(where.boot, at)
    assert middle is not None
    first = last = middle
    low, high = clock - half, clock + half
    reach = 16  # batches; ever more, so that another boot's batches in between end nothing
    while first.id > extent[0] and first.first_monotonic_ns > low and reach < _MAX_BATCHES:
        first, reach = pages.batch_range(where.boot, max(extent[0], first.id - reach), first.id)[0], 2 * reach
    reach = 16
    while last.id < extent[1] and last.last_monotonic_ns < high and reach < _MAX_BATCHES:
        last, reach = pages.batch_range(where.boot, last.id, min(extent[1], last.id + reach))[-1], 2 * reach
    sections = [] if section is None else [
        s.id for s in pages.sections(where.boot) if (s.dictionary_hash, s.point) == (section.dictionary_hash, section.point)
    ]  # fmt: skip
    codes = {c.batch_id: c for s in sections for c in pages.codes(s, first.id, last.id)}
    rows = pages.batch_range(where.boot, first.id, last.id)
    made = [piece(b, codes.get(b.id), manifest.started_monotonic_ns, env, len(manifest.metrics)) for b in rows]
    found = merge([p for p in made if p is not None])
    if found is None:
        raise StoreError(f"environment {env} has no frames around {at}; there are {manifest.num_envs}")
    middle_s = (clock - manifest.started_monotonic_ns) / 1e9
    newest, oldest = float(found.t[-1]), float(found.t[0])
    begin = max(oldest, min(middle_s - seconds / 2, newest - seconds))  # whole seconds of it also at the edges of what is kept
    one, end = np.searchsorted(found.t, (begin, begin + seconds + 1e-6)).tolist()
    found = found.cut(one, max(end, one + 1))
    every = -(-len(found) // MAX_FRAMES)
    if every > 1:
        some = np.arange(0, len(found), every)
        action = None if found.action is None else found.action[some]
        found = Piece(
            found.t[some], found.step[some], found.episode[some], found.episode_step[some], found.reward[some], found.metrics[some],
            action, found.version[some], found.seq[some], found.rows[some], found.codes,
        )  # fmt: skip
    return found, max(0, int(np.searchsorted(found.seq, at, side="right")) - 1)


def _sentence(pages: Pages, boot: str, env: int, first: int, last: int, at: int) -> NarrationLine | None:
    """What was said of these frames: the last line before the frame, else the first after it, else the last before the window."""
    lines = [line for line in pages.narration(boot, 0, _LINES) if line.env == env and line.seq <= last]
    inside = [line for line in lines if line.seq >= first]
    before = [line for line in inside if line.seq <= at]
    return before[-1] if before else inside[0] if inside else lines[-1] if lines else None


def _chosen(pages: Pages, section: Section | None, frames: Piece, size: int, wanted: Sequence[int]) -> list[int]:
    """Those that the sentence names and that are active here, then those most active here beyond their usual share."""
    if section is None or frames.codes is None or not size:
        return []
    rows = frames.rows[frames.rows >= 0]
    inside = np.isin(frames.codes.row_index, rows)
    share = np.bincount(frames.codes.indices[inside], minlength=size)[:size] / max(1, len(rows))
    activity = pages.activity(section.id)
    usual = activity.active / max(1, activity.frames) if activity is not None and len(activity.active) == size else np.zeros(size)
    order = np.argsort(-np.where(share > 0, share - usual, -np.inf), kind="stable").tolist()
    named = [f for f in dict.fromkeys(wanted) if 0 <= f < size and share[f] > 0]
    return [f for f in dict.fromkeys([*named, *order]) if share[f] > 0][:SHOWN]


def _pictures(pages: Pages, boot: str, env: int, frames: Piece) -> list[PictureRow]:
    """Those of the window, and the last before it; every n-th of too many or too large ones."""
    found: list[PictureRow] = []
    until = int(frames.seq[-1])
    while len(found) < 10 * MAX_PICTURES:
        row = pages.picture(boot, env, until)
        if row is None:
            break
        found.append(row)
        until = row.seq - 1
        if row.seq <= frames.seq[0]:
            break
    found.reverse()
    size = sum(len(p.data) for p in found)
    every = max(1, -(-len(found) // MAX_PICTURES), -(-size // MAX_PICTURE_BYTES))
    return found[::every]


def _time(frames: Piece, seq: int) -> float:
    """Frame time of a picture; one from before the window counts for its beginning."""
    return float(frames.t[max(0, int(np.searchsorted(frames.seq, seq, side="right")) - 1)])


def _act(action: float, names: Sequence[str]) -> str:
    number = int(action) if np.isfinite(action) else -1
    return "" if number < 0 else plain(names[number], 40) if number < len(names) else f"action {number}"
