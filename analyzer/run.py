"""A run as it was recorded or analysed: `interlatent_live.open`.

    run = il.open("ppo.mcap")                 # or a database; what lies beside it under the same name is taken along
    run.metrics                               # pandas; units in attrs
    run.activations["3:out"].episode(7)       # numpy, read now
    run.episode(7).metrics                    # a part of a run has all that the run has
    run.features["cartpole"][:]               # scipy.sparse
    run.show(episode=7, step=12)              # in a notebook

Frames, activations and pictures come from the recording, features, events and correlations from the database. Nothing
is read before it is asked for, and never more than a chunk beside what is asked for; torch is not imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from interlatent_live.analyzer import tables
from interlatent_live.analyzer.arrays import Activations, Catalogue, Features
from interlatent_live.analyzer.moment import Moment, definitions, page
from interlatent_live.analyzer.records import DictionaryRow
from interlatent_live.analyzer.selection import Selection, Where
from interlatent_live.analyzer.sources import Recorded, Source, Stored
from interlatent_live.stream.errors import ForeignDatabase, RecordingError, StoreError
from interlatent_live.stream.frames import FrameBatch
from interlatent_live.stream.manifest import Manifest

if TYPE_CHECKING:
    import os

    import pandas as pd

__all__ = ["Run", "is_database", "open_run"]

_SHOWN: Final = 10
_DATABASES: Final = (".db", ".sqlite", ".sqlite3")


class Run:
    """A run, or a part of one. `len(run)` is its number of frames."""

    def __init__(self, recorded: Recorded | None, stored: Stored | None, where: Where = Where()) -> None:  # noqa: B008 - frozen
        source = recorded if recorded is not None else stored
        if source is None:
            raise RecordingError("a run is read from a recording, a database or both; neither is given")
        self._recorded, self._stored = recorded, stored
        self._source: Source = source
        self.selection = Selection(source, where)
        """Which frames these are, and where they are read."""

    # which frames

    def episode(self, episode: int, env: int | None = None) -> Run:
        """The frames of one episode (counted from 0 in each environment)."""
        return self._narrowed(self.selection.narrowed(episode=episode, env=env))

    def steps(self, first: int, after: int) -> Run:
        """The frames of the agent's steps [first, after)."""
        return self._narrowed(self.selection.narrowed(steps=(first, after)))

    def env(self, env: int) -> Run:
        """The frames of one environment."""
        return self._narrowed(self.selection.narrowed(env=env))

    def boot(self, boot: str) -> Run:
        """The frames of one process of the agent."""
        return self._narrowed(self.selection.narrowed(boot=boot))

    def _narrowed(self, selection: Selection) -> Run:
        return Run(self._recorded, self._stored, selection.where)

    def __len__(self) -> int:
        return self.selection.frames

    def __bool__(self) -> bool:
        return True  # an empty part is still a run

    # what is known of it

    @property
    def path(self) -> Path:
        """The file that frames come from."""
        return self._source.path

    @property
    def name(self) -> str:
        """Name of the run."""
        return self._source.manifest.run

    @property
    def manifest(self) -> Manifest:
        """What the stream contains: tap points, metrics with units, environment, weights, software."""
        return self._source.manifest

    @property
    def boots(self) -> tuple[str, ...]:
        """Processes of the agent, in order."""
        return self._source.boots

    @property
    def damaged(self) -> str | None:
        """What of the recording was found missing or broken, as far as it was read."""
        return None if self._recorded is None else self._recorded.recording.damaged

    @property
    def analysed(self) -> bool:
        """Whether there is a database, and so features, events, peaks and correlations."""
        return self._stored is not None

    # tables

    @property
    def metrics(self) -> pd.DataFrame:
        """A column for each metric; `attrs["units"]`, `["scopes"]` and `["descriptions"]` by name. NaN where unknown."""
        return tables.frames_table(self.selection, "metrics")

    @property
    def observations(self) -> pd.DataFrame:
        """A column for each element of the observation that was acted on."""
        return tables.frames_table(self.selection, "observations")

    @property
    def actions(self) -> pd.DataFrame:
        """A column for each element of the action; `attrs["names"]` are those of a discrete action's choices."""
        return tables.frames_table(self.selection, "actions")

    @property
    def frames(self) -> pd.DataFrame:
        """step, env, episode, episode_step, clocks, policy_version, forward_age, reward, terminated, truncated."""
        return tables.frames_table(self.selection, "frames")

    @property
    def rewards(self) -> pd.Series:
        """The reward of each frame's action; NaN where unknown."""
        return self.frames["reward"]

    @property
    def episodes(self) -> pd.DataFrame:
        """One row for each episode, with its return: by reading all frames of a recording, from a database at once."""
        if self._recorded is None and self._stored is not None:
            return tables.stored_episodes(self._stored, self.selection)
        return tables.episodes(self.selection)

    @property
    def scalars(self) -> pd.DataFrame:
        """What the training loop logged (`tap.log`), of the whole run: one row for each name and time."""
        return tables.scalars(self._source)

    @property
    def events(self) -> pd.DataFrame:
        """Spans in which a feature was active."""
        return tables.events(self._analysis("events"), self.selection)

    @property
    def peaks(self) -> pd.DataFrame:
        """Where each feature was strongest."""
        return tables.peaks(self._analysis("peaks"), self.selection)

    @property
    def correlations(self) -> pd.DataFrame:
        """Every feature with every metric, of the whole run, the strongest first."""
        return tables.correlations(self._analysis("correlations"))

    @property
    def names(self) -> pd.DataFrame:
        """What people called features, of the whole run; the newest of a feature counts, without a label it was taken back."""
        return tables.people(self._analysis("names"), "names")

    @property
    def notes(self) -> pd.DataFrame:
        """What people wrote about features, of the whole run."""
        return tables.people(self._analysis("notes"), "notes")

    # arrays

    @property
    def activations(self) -> Mapping[str, Activations]:
        """By tap point; see Activations."""
        points = () if self._recorded is None else self.manifest.tap_points
        specs = {spec.name: spec for spec in points}
        absent = f"{self.path} is a database, which keeps no activations: open the recording, il.open('….mcap')"
        return Catalogue(specs, lambda name: Activations(self.selection, specs[name]), "tap point", absent)

    @property
    def features(self) -> Mapping[str, Features]:
        """By dictionary's name, or by tap point where one dictionary reads it; see Features."""
        stored, known = self._analysis("features"), self._dictionaries
        return Catalogue(known, lambda name: Features(self.selection, stored, known[name]), "dictionary or tap point")

    @cached_property
    def _dictionaries(self) -> dict[str, DictionaryRow]:
        found = self._analysis("features").reader.dictionaries()
        known = {d.hash: d for d in found}
        for key in ("name", "point"):
            for d in found:
                if sum(getattr(other, key) == getattr(d, key) for other in found) == 1:
                    known.setdefault(getattr(d, key), d)
        short = [name for name in known if name not in {d.hash for d in found}]
        return {name: known[name] for name in (*short, *(d.hash for d in found))}

    def _analysis(self, what: str) -> Stored:
        if self._stored is None:
            db = self.path.with_suffix(".db")
            raise RecordingError(
                f"{self.path} is a recording, and {what} come from its analysis: "
                f"interlatent-live analyze --recording {self.path} --db {db}   and then il.open({str(db)!r})"
            )
        return self._stored

    # one frame

    def show(self, episode: int | None = None, step: int | None = None, *, env: int | None = None, seq: int | None = None) -> Moment:
        """One frame with its picture, metrics, action and what was most active, for a notebook.

        `step` counts within the episode where one is given, else it is the agent's. `seq`: the frame of that number
        instead. Nothing given: the first frame.
        """
        selection = self.selection.narrowed(episode=episode, env=env)
        if step is not None and episode is None:
            selection = selection.narrowed(steps=(step, step + 1))
        seen: list[int] = []
        for batch, rows in selection:
            columns = batch.columns
            wanted = rows
            if seq is not None:
                wanted = rows[batch.first_seq + rows == seq]
            elif step is not None and episode is not None:
                seen += [int(columns["episode_step"][rows].min()), int(columns["episode_step"][rows].max())]
                wanted = rows[columns["episode_step"][rows] == step]
            if len(wanted):
                return self._moment(batch, int(wanted[0]))
        asked = ", ".join(f"{k} {v}" for k, v in {"episode": episode, "step": step, "env": env, "seq": seq}.items() if v is not None)
        has = f"; that episode has steps {min(seen)} to {max(seen)}" if seen else ""
        raise RecordingError(f"{self.path} has no frame of {asked or 'any kind'}{has}")

    def _moment(self, batch: FrameBatch, row: int) -> Moment:
        columns, rows = batch.columns, np.array([row])
        manifest = next((m for m in self._source.manifests() if m.hash == batch.manifest_hash), self.manifest)
        seq, env = batch.first_seq + row, int(columns["env"][row])
        picture = self._source.picture(batch.boot, env, seq)
        values = columns.get("metrics")
        metrics = () if values is None else tuple(
            (m.name, float(v), m.unit) for m, v in zip(manifest.metrics, values[row], strict=False)
        )  # fmt: skip
        reward = columns.get("reward")
        return Moment(
            run=self.name,
            boot=batch.boot,
            seq=seq,
            step=int(columns["step"][row]),
            env=env,
            episode=int(columns["episode"][row]),
            episode_step=int(columns["episode_step"][row]),
            picture=None if picture is None else picture[1],
            picture_seq=None if picture is None else picture[0],
            metrics=metrics,
            action=_action(manifest, columns.get("action"), row),
            reward=float("nan") if reward is None else float(reward[row]),
            active=tuple(self._active(batch, rows)),
        )

    def _active(self, batch: FrameBatch, rows: Any) -> list[tuple[str, tuple[tuple[str, float], ...]]]:
        """The strongest features by dictionary, or where there is no analysis, the strongest units by tap point."""
        found = []
        if self._stored is not None:
            for d in {row.hash: row for row in self._dictionaries.values()}.values():
                codes = Features(self.selection, self._stored, d).row(batch, int(rows[0]))
                order = np.argsort(-np.abs(codes.data), kind="stable")[:_SHOWN]
                named = tuple((f"f{codes.indices[i]}", float(codes.data[i])) for i in order)
                found.append((f"features of {d.name}", named))
        if not found and self._recorded is not None:
            for spec in self.manifest.tap_points:
                values = Activations(self.selection, spec).of(batch, rows).reshape(-1).astype(np.float64)
                order = np.argsort(-np.nan_to_num(np.abs(values), nan=-1.0), kind="stable")[:_SHOWN]
                found.append((f"units of {spec.name}", tuple((f"u{i}", float(values[i])) for i in order)))
        return found

    # itself

    def __repr__(self) -> str:
        manifest = self.manifest
        points = ", ".join(p.name for p in manifest.tap_points)
        frames = len(self) if self.selection.whole else "some"
        what = f"{frames} frames ({self.selection.where}), points {points}"
        return f"<run {self.name!r} of {manifest.environment or 'an agent'}: {what}; {self.path}>"

    def _repr_html_(self) -> str:
        manifest = self.manifest
        rows = [
            ("frames", f"{len(self):,}", str(self.selection.where)),
            ("agent", manifest.agent or "–", manifest.weights),
            ("environment", manifest.environment or "–", f"{manifest.num_envs} at once" if manifest.num_envs > 1 else ""),
            ("boots", str(len(self.boots)), ""),
        ]
        files = [source.path for source in (self._recorded, self._stored) if source is not None]
        rows += [("file", str(path), "") for path in files]
        points = [(p.name, "×".join(map(str, p.shape)) or "1", p.dtype) for p in manifest.tap_points]
        metrics = [(m.name, "", m.unit) for m in manifest.metrics[:20]]
        if len(manifest.metrics) > len(metrics):
            metrics.append((f"and {len(manifest.metrics) - len(metrics)} more", "", ""))
        return page(f"run {self.name}", [definitions("run", rows), definitions("tap points", points), definitions("metrics", metrics)])


def _action(manifest: Manifest, column: Any, row: int) -> str:
    if column is None:
        return "–"
    values, names = np.asarray(column[row]).reshape(-1), manifest.action.names
    if manifest.action.kind == "discrete" and len(values) == 1 and 0 <= int(values[0]) < len(names):
        return f"{int(values[0])} ({names[int(values[0])]})"
    labels = [f"{name} " for name in names] if len(names) == len(values) else [""] * len(values)
    shown = [f"{label}{value:.3g}" for label, value in zip(labels, values, strict=True)]
    return ", ".join(shown[:8]) + (" …" if len(shown) > 8 else "")


def is_database(path: Path) -> bool:
    """Whether a file is a SQLite database; else it is taken for a recording."""
    try:
        with path.open("rb") as file:
            return file.read(16) == b"SQLite format 3\0"
    except OSError as error:
        raise RecordingError(f"{path} cannot be opened: {error.strerror}") from error


def open_run(path: str | os.PathLike[str], *, beside: bool | str | os.PathLike[str] = True) -> Run:
    """Open a recording (with the parts that follow it) or a database.

    `beside`: also the database of the recording, or the recording of the database: the file of the same name in the
    same folder if it is of the same run; or that file; False: `path` alone.
    """
    path = Path(path)
    if is_database(path):
        stored = Stored(path)
        recorded = None
        for other in _beside(path, beside, (".mcap",)):
            found = Recorded(other)
            recorded = found if found.manifest.run == stored.manifest.run and set(found.boots) & set(stored.boots) else None
            _check(recorded, beside, other, path)
        return Run(recorded, stored)
    recorded, analysed = Recorded(path), None
    for other in _beside(path, beside, _DATABASES):
        try:
            candidate = Stored(other)
        except (StoreError, ForeignDatabase):
            if beside is not True:
                raise
            continue
        if candidate.manifest.run == recorded.manifest.run and set(candidate.boots) & set(recorded.boots):
            analysed = candidate
            break
        _check(None, beside, other, path)
    return Run(recorded, analysed)


def _beside(path: Path, beside: bool | str | os.PathLike[str], suffixes: tuple[str, ...]) -> list[Path]:
    if isinstance(beside, bool):
        return [other for suffix in suffixes if (other := path.with_suffix(suffix)).is_file()] if beside else []
    return [Path(beside)]


def _check(found: object, beside: bool | str | os.PathLike[str], other: Path, path: Path) -> None:
    if found is None and not isinstance(beside, bool):
        raise RecordingError(f"{other} is of another run than {path}; give the file that belongs to it, or beside=False")
