"""Looking through an analysed run: which features are about a token, where a feature is strong, what a run holds.

Of a language model frames are tokens and episodes prompts; the same questions serve agents, with steps for tokens. Rows
are asked by SQL and read a bounded number of batches at a time, whatever the size of the database.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from interlatent_live.analyzer.queries import Reader
from interlatent_live.analyzer.records import BatchRow, CodesRow, Section
from interlatent_live.analyzer.shading import Shaded
from interlatent_live.stream.errors import PromptError, StoreError
from interlatent_live.stream.prompt import pieces

__all__ = ["Found", "Place", "Strength", "episodes_of", "matching_tokens", "search", "shaded", "strengths"]

_BATCHES: Final = 200
"""Batches whose codes are in memory at once."""
Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Found:
    """How a feature goes with the frames that were asked for."""

    point: str
    dictionary: str
    feature: int
    name: str
    active: float
    """Share of these frames in which it is active."""
    elsewhere: float
    """Share of all others; NaN where there are none."""
    difference: float
    mean: float
    """Mean activation in those of these frames in which it is active."""
    largest: float


@dataclass(frozen=True, slots=True)
class Place:
    """One text, or one episode."""

    boot: str
    prompt: int
    """Number of the prompt; of an agent, of the episode in its order of appearance."""
    env: int
    episode: int
    text: str
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Strength:
    """A feature in one prompt or episode."""

    place: Place
    frames: int
    active: float
    mean: float
    """Mean over all its frames."""
    largest: float
    at: int
    """Position, or step, of the largest."""
    token: str
    """What is read there; '' of an agent."""


def matching_tokens(reader: Reader, token: str) -> dict[str, list[int]]:
    """By boot, the tokens whose text is `token` but for spaces around it and capitals. Raises PromptError with close ones."""
    found: dict[str, list[int]] = {}
    wanted = token.strip().lower()
    for boot, number, text in reader.vocabulary():
        if text.strip().lower() == wanted:
            found.setdefault(boot, []).append(number)
    if not found:
        known = sorted({text.strip() for _, _, text in reader.vocabulary() if text.strip()})
        if not known:
            raise PromptError(f"{reader.path} holds no text of tokens; name frames by --where PREDICATE instead")
        close = difflib.get_close_matches(token.strip(), known, 5, 0.5) or [t for t in known if wanted and wanted in t.lower()][:5]
        said = f"; there is {', '.join(map(repr, close))}" if close else ""
        raise PromptError(f"no token {token!r} was read in {reader.path}{said}")
    return found


def search(reader: Reader, wanted: Callable[[str, BatchRow], Array], top: int = 20, point: str | None = None) -> tuple[int, list[Found]]:
    """The features that tell `wanted(boot, batch)` (rows,) frames from all others best: how many such frames there are, and
    those features, by the difference of their shares."""
    found: list[Found] = []
    asked = 0
    for boot, sections in _sections(reader, point):
        for section in sections:
            dictionary = reader.dictionary(section.dictionary_hash)
            if dictionary is None:
                continue
            size = dictionary.features
            here, there, total = np.zeros(size, np.int64), np.zeros(size, np.int64), np.zeros(size)
            most = np.zeros(size)
            inside = outside = 0
            for batch, codes in _coded(reader, boot, section):
                mask = np.asarray(wanted(boot, batch), bool)[codes.rows]
                rows = np.repeat(mask, np.diff(codes.codes.indptr))
                index, values = codes.codes.indices.astype(np.int64), codes.codes.values.astype(np.float64)
                here += np.bincount(index[rows], minlength=size)
                there += np.bincount(index[~rows], minlength=size)
                total += np.bincount(index[rows], values[rows], minlength=size)
                np.maximum.at(most, index[rows], np.abs(values[rows]))
                inside += int(mask.sum())
                outside += int((~mask).sum())
            asked = max(asked, inside)
            if not inside:
                continue
            share, other = here / inside, there / outside if outside else np.full(size, np.nan)
            difference = share - np.nan_to_num(other)
            letter = "n" if dictionary.kind == "neurons" else "f"
            best = [feature for feature in np.argsort(-difference, kind="stable")[:top].tolist() if here[feature]]
            columns = (share, other, difference, total / np.maximum(here, 1), most)
            found += [
                Found(section.point, dictionary.name, feature, f"{letter}{feature}", *(float(values[feature]) for values in columns))
                for feature in best
            ]
    return asked, sorted(found, key=lambda f: (-f.difference, f.point, f.feature))[:top]


def episodes_of(reader: Reader) -> Iterator[Place]:
    """Prompts, or the episodes of an agent, in order."""
    for boot in reader.boots():
        after, any_ = -1, False
        while some := reader.prompts(boot.boot, after):
            any_ = True
            yield from (Place(p.boot, p.prompt, p.env, p.episode, p.text, p.labels) for p in some)
            after = some[-1].prompt
        if not any_:
            for number, (env, episode) in enumerate(reader.episode_keys(boot.boot)):
                yield Place(boot.boot, number, env, episode, f"environment {env}, episode {episode}", {})


def shaded(path: Path, feature: int, prompt: int, *, point: str | None = None) -> Shaded:
    """The text of a prompt shaded by a feature; of an agent, a mark for each step."""
    with Reader(path) as reader, reader.consistent():
        place = next((p for p in episodes_of(reader) if p.prompt == prompt), None)
        if place is None:
            raise PromptError(f"{path} has no prompt or episode {prompt}; `interlatent-live info {path}` tells how many there are")
        section, name = _of_feature(reader, place.boot, feature, point)
        positions, values, tokens, special, logprob = _values(reader, place, section, feature)
        texts = _texts(reader, place.boot, tokens)
        likely = [f", log-probability {v:.2f}" if math.isfinite(v) else "" for v in logprob]
        notes = [f"position {p}{told}" for p, told in zip(positions, likely, strict=True)]
        labels = ", ".join(f"{k} {v}" for k, v in place.labels.items())
        title = f"{name} at {section.point}, prompt {prompt}" + (f" ({labels})" if labels else "")
        return Shaded(title, texts, values, notes, special)


def strengths(reader: Reader, feature: int, point: str | None = None) -> Iterator[Strength]:
    """A feature in every prompt or episode."""
    for place in episodes_of(reader):
        section, _ = _of_feature(reader, place.boot, feature, point)
        positions, values, tokens, _, _ = _values(reader, place, section, feature)
        known = np.isfinite(values)
        if not known.any():
            continue
        at = int(np.argmax(np.where(known, np.abs(values), -1)))
        text = _texts(reader, place.boot, tokens[at : at + 1])[0] if len(tokens) and tokens[0] >= 0 else ""
        yield Strength(
            place, len(values), float((values[known] != 0).mean()), float(values[known].mean()), float(values[at]), int(positions[at]), text
        )


def _values(reader: Reader, place: Place, section: Section, feature: int) -> tuple[Array, Array, Array, Array, Array]:
    """Of one prompt or episode, in its order: positions, values (NaN where not encoded), tokens (-1: none), special, logprob."""
    positions: list[Array] = []
    values: list[Array] = []
    tokens: list[Array] = []
    special: list[Array] = []
    logprob: list[Array] = []
    first, after = reader.extent_of(place.boot, place.env, place.episode)
    for batch, codes in _coded(reader, place.boot, section, first, after):
        columns = batch.columns
        rows = np.flatnonzero((columns["env"] == place.env) & (columns["episode"] == place.episode))
        if not len(rows):
            continue
        held = np.full(batch.rows, np.nan)
        held[codes.rows] = 0.0
        row = np.repeat(codes.rows, np.diff(codes.codes.indptr))
        mine = codes.codes.indices == feature
        held[row[mine]] = codes.codes.values[mine]
        positions.append(columns["episode_step"][rows])
        values.append(held[rows])
        tokens.append(columns["token"][rows] if "token" in columns else np.full(len(rows), -1))
        special.append(columns["special"][rows] if "special" in columns else np.zeros(len(rows), bool))
        names = () if (m := reader.manifest(batch.manifest_hash)) is None else m.metric_names
        place_ = names.index("logprob") if "logprob" in names and "metrics" in columns else None
        logprob.append(np.full(len(rows), np.nan) if place_ is None else columns["metrics"][rows, place_])
    if not positions:
        empty = np.zeros(0)
        return empty, empty, np.zeros(0, int), np.zeros(0, bool), empty
    joined = [np.concatenate(some) for some in (positions, values, tokens, special, logprob)]
    order = np.argsort(joined[0], kind="stable")
    return tuple(some[order] for some in joined)  # type: ignore[return-value]


def _texts(reader: Reader, boot: str, tokens: Array) -> list[str]:
    if not len(tokens) or tokens[0] < 0:
        return ["▪"] * len(tokens)
    words = reader.words(boot, np.unique(tokens).tolist())
    return pieces([words.get(int(token), f"<{token}>".encode()) for token in tokens])


def _of_feature(reader: Reader, boot: str, feature: int, point: str | None) -> tuple[Section, str]:
    """The newest section of a boot that has the feature: a dictionary's before neurons'."""
    found = [(s, reader.dictionary(s.dictionary_hash)) for s in reader.sections(boot) if point in (None, s.point)]
    having = [(s, d) for s, d in found if d is not None and feature < d.features]
    if not having:
        points = ", ".join(dict.fromkeys(s.point for s in reader.sections(boot))) or "none"
        raise StoreError(f"{reader.path}: no feature {feature}" + (f" at {point}" if point else "") + f"; its tap points are {points}")
    having.sort(key=lambda one: one[1].kind == "neurons")
    section, dictionary = having[0]
    return section, f"feature {feature} of {dictionary.name}" if dictionary.kind != "neurons" else f"neuron {feature}"


def _sections(reader: Reader, point: str | None) -> Iterator[tuple[str, list[Section]]]:
    for boot in reader.boots():
        yield boot.boot, [s for s in reader.sections(boot.boot) if point in (None, s.point)]


def _coded(reader: Reader, boot: str, section: Section, first: int = 0, after: int = 1 << 62) -> Iterator[tuple[BatchRow, CodesRow]]:
    """Batches of a section with frames in [first, after), with their codes, a bounded number at a time."""
    start = reader.batch_at(boot, max(first, section.first_seq))
    if start is None:
        return
    last = start.id - 1
    while rows := reader.batches(boot, last, _BATCHES):
        codes = {c.batch_id: c for c in reader.codes(section.id, rows[0].id, rows[-1].id)}
        for row in rows:
            if row.first_seq >= min(after, section.next_seq):
                return
            if row.id in codes:
                yield row, codes[row.id]
        last = rows[-1].id
