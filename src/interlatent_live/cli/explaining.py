"""Commands that explain: `explain`, `explanations`, `diff`."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .application import AsJson, app
from .output import err, plain, print_line, print_of_text, print_result, print_table

if TYPE_CHECKING:
    from interlatent_live.explainer.asking import Configuration
    from interlatent_live.explainer.explaining import Current, Explaining
    from interlatent_live.explainer.narrator import Line
    from interlatent_live.explainer.source import Frames

__all__: list[str] = []


@app.command()
def explain(
    db: Annotated[Path | None, typer.Option(help="A database that an analyzer made, or is making.")] = None,
    feature: Annotated[list[int] | None, typer.Option(help="Explain this feature; may be repeated.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Explain every live feature again.")] = False,
    live: Annotated[bool, typer.Option("--live", help="Keep explaining, checking and narrating while the database grows.")] = False,
    tried: Annotated[str | None, typer.Option("--try", help="Score this predicate against every feature, or against --feature.")] = None,
    name: Annotated[tuple[int, str] | None, typer.Option("--name", help="Call a feature so; with --try, explain it so.")] = None,
    llm: Annotated[bool, typer.Option("--llm", help="Ask a language model as well (OPENAI_BASE_URL, OPENAI_API_KEY).")] = False,
    model: Annotated[str | None, typer.Option(help="The model to ask; default: OPENAI_MODEL.")] = None,
    score: Annotated[
        str | None, typer.Option("--score", help="With --llm, of text: judge sentences by detection, fuzzing, or detection,fuzzing.")
    ] = None,
    judge: Annotated[str | None, typer.Option(help="With --score: the model that judges; default: the one that explains.")] = None,
    pieces: Annotated[int, typer.Option(help="With --score: pieces of text for each feature.")] = 40,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the request that would be sent, and send nothing.")] = False,
    ship: Annotated[
        str | None, typer.Option(help="Instead: make the explanations that ship with this reference agent, from new episodes of it.")
    ] = None,
    recording: Annotated[Path | None, typer.Option(help="With --ship and the name of a dictionary: from this recording.")] = None,
    episodes: Annotated[int, typer.Option(help="Episodes for --ship.")] = 32,
    seed: Annotated[int, typer.Option(help="Seed of the environment for --ship.")] = 11,
    as_json: AsJson = False,
) -> None:
    """Explain features by rules over the named metrics, each with its score on episodes it has not seen.

    Example: `interlatent-live explain --db r.db`, `interlatent-live explain --db r.db --try 'pole_angle > 0.1'`
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy is imported: one core, and not the agent's
    if ship is not None:
        _ship(ship, recording, episodes, seed, as_json)
        return
    if db is None:
        raise typer.BadParameter("give --db FILE (or --ship AGENT)")
    if (score is not None or judge is not None) and not (llm or dry_run):
        raise typer.BadParameter("--score and --judge go with --llm")
    asking = _configuration(model, score, judge, pieces) if llm or dry_run else None
    if live:
        _live(db, asking, as_json)
    elif tried is not None and name is None:
        _try(db, tried, feature, as_json)
    elif name is not None:
        _name(db, *name, tried, as_json)
    elif dry_run:
        _dry_run(db, feature, asking)
    else:
        _explain(db, feature, everything, asking, as_json)


@app.command()
def explanations(
    db: Annotated[Path, typer.Argument(help="A database.")],
    unscored: Annotated[bool, typer.Option("--unscored", help="Also features that are not live, or not explained.")] = False,
    as_json: AsJson = False,
) -> None:
    """The newest explanation of each live feature, with its score.

    Example: `interlatent-live explanations r.db --json`
    """
    from interlatent_live.explainer.reading import Pages

    if not db.is_file():
        raise typer.BadParameter(f"{db} is not a file")
    with Pages(db) as pages, pages.consistent():
        found = [e.to_dict() for e in pages.explanations(everything=unscored)]
    print_table(found, as_json, ("feature", "label", "kind", "balanced_accuracy", "shuffled", "predicate", "source"))


@app.command()
def diff(
    db: Annotated[Path, typer.Argument(help="A database.")],
    a: Annotated[str | None, typer.Option("--a", help="A predicate: the frames of interest.")] = None,
    b: Annotated[str | None, typer.Option("--b", help="A predicate: the frames to compare with; default: the rest.")] = None,
    worst: Annotated[int | None, typer.Option(help="Instead: the worst so many episodes by return against as many of the best.")] = None,
    top: Annotated[int, typer.Option(help="Rows to print; --json prints all.")] = 20,
    as_json: AsJson = False,
) -> None:
    """What differs between two selections of frames: metrics and features, with effect size, interval by episode and FDR.

    Example: `interlatent-live diff r.db --a 'steps_to_end < 100 and episode_terminated > 0'`
    """
    from interlatent_live.explainer.differing import compare, extremes
    from interlatent_live.explainer.grammar import parse
    from interlatent_live.explainer.reading import Pages

    if (a is None) == (worst is None):
        raise typer.BadParameter("give either --a PREDICATE (and --b), or --worst COUNT")
    frames, subject = _frames(db)
    table = frames.table
    if worst is not None:
        (one, other), used = extremes(table, worst), ["episode_return"]
    else:
        first = parse(a or "", table.vocabulary)
        truth = first.evaluate(table)
        second = parse(b, table.vocabulary) if b else None
        one, other = truth.holds, truth.defined & ~truth.holds if second is None else second.holds(table)
        used = [*first.names, *(second.names if second else ())]
    assert table.features is not None
    active = table.features.counts() > 0
    metrics = [m.name for m in subject.manifest.metrics]
    found = compare(table, one, other, metrics=metrics, features=[int(f) for f in active.nonzero()[0]], without=used)
    with Pages(db) as pages:
        labels = {e.feature: e.label for e in pages.explanations(subject.dictionary.hash, everything=True)}
    rows = [{**asdict(d), "label": None if d.feature is None else labels.get(d.feature)} for d in found]
    if as_json:
        print_table(rows, True)
        return
    frames_, episodes = ("tokens", "texts") if subject.language else ("frames", "episodes")
    err.print(f"a: {int(one.sum())} {frames_} of {len(set(table.groups[one].tolist()))} {episodes}; "
              f"b: {int(other.sum())} of {len(set(table.groups[other].tolist()))}", soft_wrap=True)
    print_table(rows[:top], False, ("name", "label", "a", "b", "difference", "low", "high", "effect", "q"))


def _frames(db: Path, max_frames: int = 300_000) -> tuple[Frames, Any]:
    """All frames of a database's newest subject."""
    from interlatent_live.explainer.source import Source
    from interlatent_live.stream.errors import StoreError

    source = Source(db, max_frames=max_frames)
    try:
        while source.pull():
            pass
        frames = source.kept()
        if frames is None or source.subject is None:
            raise StoreError(f"{db} holds no frames with features; `interlatent-live analyze` makes them")
        return frames, source.subject
    finally:
        source.close()


def _explain(db: Path, features: list[int] | None, again: bool, asking: Configuration | None, as_json: bool) -> None:
    from interlatent_live.explainer.service import explain_once

    def say(done: int, of: int) -> None:
        if not as_json and done < of:
            err.print(f"{done} of {of} features fitted")

    asker = None if asking is None else asking.make
    explaining, frames, made = explain_once(db, features=features, again=again, progress=say, asker=asker)
    alive = set(explaining.alive(frames))
    shown = features if features is not None else sorted(f for f in explaining.current if f in alive)
    rows = [_row(explaining.current[f]) for f in shown if f in explaining.current]
    if as_json:
        print_line({"db": str(db), **_summary(explaining, frames), "made": len(made), "explanations": rows}, True, "")
        return
    columns = ["feature", "label", "balanced_accuracy", "low", "high", "shuffled", "predicate"]
    if any(row["judged"] for row in rows):  # a judge's scores beside those of predicates
        columns[6:6] = ["kind", "detection", "fuzzing", "control"]
    print_table([row | _columns(row) for row in rows[:40]], False, columns)
    print_of_text(_summary(explaining, frames), False, explaining.subject.language)


def _ship(name: str, recording: Path | None, episodes: int, seed: int, as_json: bool) -> None:
    """Record if need be, analyse, explain, and write the file that ships; overwrites it."""
    import tempfile

    from interlatent_live.analyzer.digest import digest
    from interlatent_live.analyzer.service import analyze_recording
    from interlatent_live.explainer.service import explain_once
    from interlatent_live.explainer.shipping import place, save_shipped

    with tempfile.TemporaryDirectory() as folder:
        db = Path(folder) / "run.db"
        if recording is None:
            made_from = f"interlatent-live explain --ship {name} --episodes {episodes} --seed {seed}"
            analyze_recording(_recorded(name, Path(folder) / "run.mcap", episodes, seed), db)
        else:
            made_from = f"interlatent-live explain --ship {name} --recording {recording.name}"
            analyze_recording(recording, db, dictionaries=[name])
        explaining, frames, _ = explain_once(db, again=True)
        path = place(name)
        count = save_shipped(path, explaining, made_from=made_from, evidence_hash=digest(db)[:16])
    print_of_text({"path": path, "written": count, **_summary(explaining, frames)}, as_json, explaining.subject.language)


def _recorded(name: str, path: Path, episodes: int, seed: int) -> Path:
    from interlatent_live.agent_side import rollout
    from interlatent_live.agent_side.agents import agent_named

    agent = agent_named(name)
    with rollout.make_tap(agent, record=path, endpoint="") as tap:
        rollout.run(agent, tap, episodes=episodes, fast=True, seed=seed, render=False)
    return path


def _summary(explaining: Explaining, frames: Frames) -> dict[str, Any]:
    """The score table in one row."""
    import numpy as np

    from interlatent_live.explainer.scoring import frequency_weighted_f1

    alive = explaining.alive(frames)
    scores = [c.score for f in alive if (c := explaining.current.get(f)) is not None and c.score is not None]
    accuracy = np.array([s.balanced_accuracy.mean for s in scores])
    known = accuracy[np.isfinite(accuracy)]
    return {
        "frames": frames.table.rows,
        "episodes": frames.table.episodes,
        "live_features": len(alive),
        "explained": len(scores),
        "median_balanced_accuracy": float(np.median(known)) if len(known) else None,
        "share_at_least_0.8": float(np.mean(known >= 0.8)) if len(known) else None,
        "shuffled": float(np.nanmean([s.shuffled for s in scores])) if len(scores) > 1 else None,
        "frequency_weighted_f1": frequency_weighted_f1(scores) if scores else None,
    }


def _row(current: Current) -> dict[str, Any]:
    score = current.score
    interval = None if score is None else score.balanced_accuracy
    return {
        "feature": current.feature,
        "label": current.label,
        "description": current.description,
        "predicate": None if current.predicate is None else str(current.predicate),
        "kind": None if score is None else current.kind,
        "balanced_accuracy": None if interval is None else interval.mean,
        "low": None if interval is None else interval.low,
        "high": None if interval is None else interval.high,
        "shuffled": None if score is None else score.shuffled,
        "judged": [
            {
                "kind": kind, "balanced_accuracy": its.balanced_accuracy.mean, "low": its.balanced_accuracy.low,
                "high": its.balanced_accuracy.high, "control": its.shuffled, "pieces": its.frames, "texts": its.episodes,
            }
            for kind, its in current.judged.items()
        ],
        "source": current.source,
        "version": current.version,
        "stale": current.stale,
    }


def _columns(row: dict[str, Any]) -> dict[str, Any]:
    """What a judge made of the sentence, for a table."""
    found: dict[str, Any] = {"detection": None, "fuzzing": None, "control": None}
    for its in row["judged"]:
        interval = "" if math.isnan(its["low"]) else f" ({its['low']:.2f} to {its['high']:.2f})"
        found[its["kind"]] = None if math.isnan(its["balanced_accuracy"]) else f"{its['balanced_accuracy']:.2f}{interval}"
        if its["kind"] == "detection" or found["control"] is None:
            found["control"] = None if math.isnan(its["control"]) else f"{its['control']:.2f}"
    return found


def _try(db: Path, text: str, features: list[int] | None, as_json: bool) -> None:
    from interlatent_live.explainer.trying import Trier
    from interlatent_live.stream.errors import PredicateError

    trier = Trier(db, max_frames=300_000)
    try:
        language = trier.refresh().language
        wanted: list[int | None] = [*features] if features else [None]
        trials = [trier.attempt(text, feature=f, top=10_000) for f in wanted]
    finally:
        trier.close()
    if trials[0].error is not None:
        raise PredicateError(trials[0].error)
    rows = [{k: v for k, v in asdict(fit).items() if k != "name"} for trial in trials for fit in trial.fits]
    if as_json:
        print_line({"predicate": trials[0].text, "features": rows}, True, "")
    else:
        err.print(f"{plain(trials[0].text)} on {trials[0].frames} held-out {'tokens' if language else 'frames'}", soft_wrap=True)
        print_table(rows[:10], False, ("feature", "balanced_accuracy", "low", "high", "sensitivity", "specificity", "label"))


def _name(db: Path, feature: int, label: str, text: str | None, as_json: bool) -> None:
    from interlatent_live.explainer.grammar import parse
    from interlatent_live.explainer.notes import Notes
    from interlatent_live.explainer.service import explain_once
    from interlatent_live.explainer.source import Source
    from interlatent_live.explainer.table import Vocabulary
    from interlatent_live.stream.errors import StoreError

    source = Source(db)
    try:
        source.pull(1)
        if source.subject is None:
            raise StoreError(f"{db} holds no features to name yet")
        subject = source.subject
    finally:
        source.close()
    if not 0 <= feature < subject.dictionary.features:
        raise typer.BadParameter(f"there is no feature {feature}; they go from 0 to {subject.dictionary.features - 1}")
    predicate = parse(text, Vocabulary.of(subject.manifest, subject.dictionary.features)) if text else None
    with Notes(db) as notes:
        label = notes.name(subject.dictionary.hash, feature, label, predicate=None if predicate is None else str(predicate)) or label
    scored: dict[str, Any] = {}
    if predicate is not None:
        try:  # a running service takes it up by itself
            explaining, _, _ = explain_once(db, features=[])
            scored = _row(explaining.current[feature]) if feature in explaining.current else {}
        except StoreError as error:
            err.print(plain(str(error)), soft_wrap=True)
    print_result({"feature": feature, "label": label, **{k: scored[k] for k in ("predicate", "balanced_accuracy") if k in scored}}, as_json)


def _live(db: Path, asking: Configuration | None, as_json: bool) -> None:
    from interlatent_live.explainer.service import Service
    from interlatent_live.launch import Stop

    def say(line: Line) -> None:
        words = service.words
        text = f"{line.time_s:.1f} s, {words.episode} {line.episode}, {words.step} {line.episode_step}: {line.text}"
        print_line(asdict(line), as_json, text)

    stop = Stop()
    service = Service(db, asker=None if asking is None else asking.make, on_line=say)
    done = service.run(stop, stop.wait)
    if not as_json:
        print_result(asdict(done), False)


def _configuration(model: str | None, score: str | None, judge: str | None, pieces: int) -> Configuration:
    from interlatent_live.explainer.asking import Configuration
    from interlatent_live.explainer.judging import Judging, read_kinds

    judging = None if score is None else Judging(read_kinds(score), judge or "", pieces=pieces)
    return Configuration.from_environment(model, judging)


def _dry_run(db: Path, features: list[int] | None, asking: Configuration | None) -> None:
    from interlatent_live.explainer.asking import request
    from interlatent_live.explainer.scoring import live

    assert asking is not None
    frames, subject = _frames(db)
    numbers = features or [int(f) for f in live(frames.table, frames.held_out)][:1]
    for number in numbers:
        print(json.dumps(request(asking, subject, frames, number).body, indent=2, ensure_ascii=False))  # noqa: T201 - the command's result
