"""The command `interlatent-live` (alias `ilive`).

Every command that prints a result takes `--json`, and then nothing else goes to standard output.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from .stream.endpoint import DEFAULT_ENDPOINT
from .stream.errors import InterlatentError, RecordingExists

__all__ = ["app", "main"]

app = typer.Typer(
    name="interlatent-live",
    help="See what an agent is thinking while it acts.",
    epilog="Begin with `interlatent-live demo`, or tap your own policy: see the README.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
dictionaries = typer.Typer(help="Dictionaries (transcoders and SAEs): train, list.", no_args_is_help=True, rich_markup_mode="markdown")
app.add_typer(dictionaries, name="dict")

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON, and nothing else, on standard output.")]
Connect = Annotated[str, typer.Option(help="Where the agent publishes.")]
DEFAULT_PORT = 5580
REPLAY_LINGER_S = 30.0
"""How long a replay waits for slow subscribers to fetch the rest."""


def main() -> None:
    """Entry point: errors of ours become one line and status 1."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    status: str | int | None = 0
    try:
        app()
    except InterlatentError as error:
        err.print(f"[red]error[/red] {_plain(str(error))}", soft_wrap=True)
        status = 1
    except SystemExit as leaving:
        status = leaving.code
    if not isinstance(status, int):
        status = 1 if status else 0
    # Everything is closed by now. Taking torch and scipy apart module by module would cost one to three seconds on a
    # busy machine, and a demo promises to be over within two.
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(BrokenPipeError):
            stream.flush()
    os._exit(status)


@app.command()
def demo(
    agent: Annotated[str, typer.Option(help="A reference agent: cartpole or humanoid.")] = "cartpole",
    seconds: Annotated[float | None, typer.Option(help="End after so many seconds from the first step; else Ctrl-C ends.")] = None,
    port: Annotated[int, typer.Option(help="Port of the page; 0 takes a free one.")] = DEFAULT_PORT,
    record: Annotated[Path | None, typer.Option(help="Where to record; default: a new folder below runs/.")] = None,
    db: Annotated[Path | None, typer.Option(help="Where the analysis goes; default: a new folder below runs/.")] = None,
    report: Annotated[Path | None, typer.Option(help="Write the report as JSON.")] = None,
    open_page: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in a browser.")] = True,
    as_json: AsJson = False,
) -> None:
    """A reference agent acts, is analysed and shown, all at once.

    Example: `interlatent-live demo --agent humanoid --seconds 60 --report r.json`
    """
    from .agent_side.agents import agent_named
    from .demo import Demo
    from .launch import Stop, run_directory

    agent_named(agent)
    folder = Path() if record and db else run_directory(agent)
    play = Demo(agent, folder, seconds, port, record, db, open_browser=open_page, say=lambda line: err.print(_plain(line), soft_wrap=True))
    if not as_json:
        err.print(f"Starting {agent}; recording to {play.record}, analysis in {play.db}. Ctrl-C ends.", soft_wrap=True)
    result = play.run(Stop())
    if report:
        report.write_text(json.dumps(_jsonable(result), indent=2) + "\n")
    _result(
        result,
        as_json,
        ("agent", "seconds", "steps", "episodes", "mean_return", "latency_ms", "overhead_us", "ledger", "features", "dictionary"),
    )


@app.command()
def run(
    name: Annotated[str, typer.Argument(help="A reference agent: cartpole or humanoid.")],
    bind: Annotated[str, typer.Option(help="Where to publish.")] = DEFAULT_ENDPOINT,
    seconds: Annotated[float | None, typer.Option(help="End after so many seconds from the first step.")] = None,
    episodes: Annotated[int | None, typer.Option(help="End after so many episodes.")] = None,
    fast: Annotated[bool, typer.Option("--fast", help="As fast as it can, instead of real time.")] = False,
    record: Annotated[Path | None, typer.Option(help="Record to this file.")] = None,
    wait: Annotated[float, typer.Option(help="Wait up to so many seconds for a subscriber before the first step.")] = 0.0,
    pictures: Annotated[bool, typer.Option("--pictures/--no-pictures", help="Render the environment.")] = True,
    seed: Annotated[int, typer.Option(help="Seed of the environment.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Run a reference agent with a tap in it.

    Example: `interlatent-live run cartpole --episodes 20 --fast --record r.mcap`
    """
    from .agent_side import rollout
    from .agent_side.agents import agent_named
    from .launch import Stop

    stop = Stop()
    agent = agent_named(name)
    tap = rollout.make_tap(agent, record=record, endpoint=bind)
    with tap:
        if not as_json:
            err.print(f"{name} publishes on {tap.endpoint}; `interlatent-live watch {tap.endpoint}` shows it", soft_wrap=True)
        if wait and not rollout.wait_for_subscriber(tap, wait, stop):
            if stop():
                return
            err.print(f"nobody subscribed within {wait:g} s; starting all the same")
        done = rollout.run(agent, tap, seconds=seconds, episodes=episodes, fast=fast, seed=seed, render=pictures, stop=stop)
    returns = done.returns
    _result(
        {
            "agent": name,
            "seconds": done.seconds,
            "frames": done.steps,
            "episodes": len(returns),
            "mean_return": sum(returns) / len(returns) if returns else None,
            "overhead_us": tap.overhead(),
            "recording": str(record) if record else None,
        },
        as_json,
    )


@app.command()
def analyze(
    db: Annotated[Path, typer.Option(help="The database to write.")],
    connect: Annotated[str | None, typer.Option(help="Analyse a live stream.")] = None,
    recording: Annotated[Path | None, typer.Option(help="Analyse a recording.")] = None,
    dictionary: Annotated[
        list[str] | None, typer.Option(help="Path or name of a dictionary; may be repeated. Default: the one that matches, else neurons.")
    ] = None,
    run_name: Annotated[str | None, typer.Option("--run", help="Analyse this run only; default: the first that appears.")] = None,
    seconds: Annotated[float | None, typer.Option(help="End after so many seconds from the first frame.")] = None,
    as_json: AsJson = False,
) -> None:
    """Run dictionaries and correlations over a stream or a recording, into a database.

    Example: `interlatent-live analyze --recording r.mcap --db again.db`
    """
    from .analyzer.service import analyze_recording, analyze_stream
    from .launch import Stop

    if (connect is None) == (recording is None):
        raise typer.BadParameter("give either --connect ENDPOINT or --recording FILE")
    stop = Stop()
    if recording is not None:
        done = analyze_recording(recording, db, dictionaries=dictionary or (), run=run_name, stop=stop)
    else:
        done = analyze_stream(connect or DEFAULT_ENDPOINT, db, dictionaries=dictionary or (), run=run_name, seconds=seconds, stop=stop)
    _result({"db": str(db), **done}, as_json)


@app.command()
def view(
    db: Annotated[Path, typer.Option(help="The database to show; it may appear later.")],
    port: Annotated[int, typer.Option(help="Port of the page; 0 takes a free one.")] = DEFAULT_PORT,
    connect: Annotated[str | None, typer.Option(help="Analyse this live stream into the database as well.")] = None,
    open_page: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in a browser.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show a database as a live page on this machine.

    Example: `interlatent-live view --db r.db --port 5580`
    """
    from .launch import Child, Stop
    from .viewer.app import serve

    stop = Stop()
    analyzer = Child("analyzer", ["analyze", "--connect", connect, "--db", str(db), "--json"]).start() if connect else None

    def ready(url: str) -> None:
        _line({"url": url}, as_json, f"the page is at {url}")

    try:
        serve(db, port=port, open_browser=open_page, stop=stop, on_ready=ready)
    finally:
        if analyzer is not None:
            analyzer.end()


@app.command()
def watch(
    source: Annotated[str, typer.Argument(help="An endpoint (tcp://…) or a recording.")] = DEFAULT_ENDPOINT,
    db: Annotated[Path | None, typer.Option(help="Where the analysis goes; default: a new folder below runs/.")] = None,
    run_name: Annotated[str | None, typer.Option("--run", help="Watch this run only; default: the first that appears.")] = None,
    port: Annotated[int, typer.Option(help="Port of the page; 0 takes a free one.")] = DEFAULT_PORT,
    open_page: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in a browser.")] = False,
    as_json: AsJson = False,
) -> None:
    """Analyse and show a live stream or a recording, in one.

    Example: `interlatent-live watch run.mcap`
    """
    from .launch import Child, Stop, run_directory
    from .viewer.app import serve

    stop = Stop()
    live = "://" in source
    if not live and not Path(source).exists():
        raise typer.BadParameter(f"{source} is neither an endpoint (tcp://host:port) nor a file")
    db = db or run_directory("watch") / "run.db"
    only = ["--run", run_name] if run_name else []
    analyzer = Child("analyzer", ["analyze", "--connect" if live else "--recording", source, "--db", str(db), "--json", *only]).start()

    def ready(url: str) -> None:
        _line({"url": url, "db": str(db)}, as_json, f"the page is at {url}; the analysis goes to {db}")

    try:
        serve(db, port=port, open_browser=open_page, stop=stop, on_ready=ready)
    finally:
        analyzer.end()


@app.command()
def replay(
    recording: Annotated[Path, typer.Argument(help="A recording.")],
    speed: Annotated[float, typer.Option(help="1 is real time; inf is as fast as possible.")] = 1.0,
    bind: Annotated[str, typer.Option(help="Where to publish.")] = DEFAULT_ENDPOINT,
    from_s: Annotated[float | None, typer.Option("--from", help="Begin so many seconds into the recording.")] = None,
    to_s: Annotated[float | None, typer.Option("--to", help="End so many seconds into the recording.")] = None,
    wait: Annotated[float, typer.Option(help="Wait up to so many seconds for a subscriber.")] = 30.0,
    as_json: AsJson = False,
) -> None:
    """Publish a recording as if its agent were acting now.

    Example: `interlatent-live replay r.mcap --speed inf`
    """
    from .launch import Stop
    from .stream.publisher import Publisher
    from .stream.reading import Recording
    from .stream.replay import replay as play

    if not speed > 0:
        raise typer.BadParameter(f"--speed is {speed}; it must be above 0 (inf: as fast as possible)")
    stop = Stop()
    publisher = Publisher(bind)
    try:
        if not as_json:
            err.print(f"replaying on {publisher.endpoint}", soft_wrap=True)
        done = play(Recording(recording), publisher, speed=speed, from_s=from_s, to_s=to_s, wait_subscriber_s=wait, stop=stop)
    finally:
        publisher.close(linger_s=0.5 if stop() else REPLAY_LINGER_S)
    _result(asdict(done), as_json)


@app.command()
def record(
    to: Annotated[Path, typer.Option("--out", help="The recording to make.")],
    connect: Connect = DEFAULT_ENDPOINT,
    run_name: Annotated[str | None, typer.Option("--run", help="Record this run only; default: the first that appears.")] = None,
    seconds: Annotated[float | None, typer.Option(help="End after so many seconds from the first frame.")] = None,
    as_json: AsJson = False,
) -> None:
    """Record a live stream from another process.

    Example: `interlatent-live record --out r.mcap`
    """
    from .launch import Stop
    from .stream.reading import Recording
    from .stream.transcript import record_stream

    record_stream(connect, to, run=run_name, seconds=seconds, stop=Stop())
    _result(Recording(to).info(), as_json)


@app.command()
def info(path: Annotated[Path, typer.Argument(help="A recording or a database.")], as_json: AsJson = False) -> None:
    """What a recording or a database holds.

    Example: `interlatent-live info r.mcap --json`
    """
    from .stream.reading import Recording

    if _is_database(path):
        from .analyzer.queries import Reader

        with Reader(path) as reader:
            _result(reader.info(), as_json)
    else:
        _result(Recording(path).info(), as_json)


@app.command()
def digest(db: Annotated[Path, typer.Argument(help="A database.")], as_json: AsJson = False) -> None:
    """One line: the hash of the analysis, equal for equal batches.

    Example: `interlatent-live digest r.db`
    """
    from .analyzer.digest import digest as compute

    value = compute(db)
    _line({"digest": value}, as_json, value)


@app.command()
def verify(a: Annotated[Path, typer.Argument()], b: Annotated[Path, typer.Argument()], as_json: AsJson = False) -> None:
    """Whether two databases hold the same analysis; if not, the first difference, and status 1.

    Example: `interlatent-live verify r.db again.db`
    """
    from .analyzer.digest import verify as compare

    difference = compare(a, b)
    _line({"equal": difference is None, "difference": difference}, as_json, difference or "equal")
    if difference is not None:
        raise typer.Exit(1)


@app.command()
def points(
    agent: Annotated[str, typer.Argument(help="A reference agent, or module:callable that returns a torch module.")],
    as_json: AsJson = False,
) -> None:
    """The places in a model that can be tapped.

    Example: `interlatent-live points cartpole`, `interlatent-live points my_training:make_policy`
    """
    from .agent_side.points import points as list_points
    from .agent_side.rollout import load_policy

    rows = [
        {"point": p.name, "module": p.module, "parameters": p.parameters, "default": p.default} for p in list_points(load_policy(agent))
    ]
    _table(rows, as_json)


@dictionaries.command("train")
def train(
    recording: Annotated[Path, typer.Argument(help="A recording to learn from.")],
    to: Annotated[Path, typer.Option("--out", help="Folder for the dictionary; it must not exist.")],
    input_point: Annotated[str, typer.Option("--input", help="Tap point read.")],
    output_point: Annotated[str | None, typer.Option("--output", help="Tap point predicted; default: the input (an SAE).")] = None,
    recipe: Annotated[str, typer.Option(help="topk or relu-l1.")] = "topk",
    features: Annotated[int, typer.Option(help="Number of latents.")] = 256,
    k: Annotated[int, typer.Option(help="Active latents per frame (topk).")] = 8,
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 6000,
    seed: Annotated[int, typer.Option(help="Seed of initialisation, batches and split.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Train a dictionary on a recording; held-out episodes judge it.

    Example: `interlatent-live dict train r.mcap --input 2:out --output 3:out --features 256 --k 8 --out dicts/mine`
    """
    from .analyzer.training import train_recording

    if to.exists():
        raise RecordingExists(f"{to} exists; dictionaries are never overwritten: name another folder with --out")
    card = train_recording(
        recording,
        to,
        input_point=input_point,
        output_point=output_point,
        recipe=recipe,
        features=features,
        k=k,
        steps=steps,
        seed=seed,
        progress=None if as_json else _progress(),
    )
    _result(card, as_json)


@dictionaries.command("list")
def list_dictionaries(
    db: Annotated[Path | None, typer.Option(help="Also those that this database names.")] = None, as_json: AsJson = False
) -> None:
    """The dictionaries that ship, and those a database names.

    Example: `interlatent-live dict list --json`
    """
    from .analyzer.registry import listing

    _table(listing(db), as_json, ("name", "hash", "tap_points", "path"))


def _is_database(path: Path) -> bool:
    if not path.is_file():
        raise typer.BadParameter(f"{path} is not a file")
    with path.open("rb") as file:
        return file.read(16) == b"SQLite format 3\0"


def _progress() -> Any:
    from .progress import TrainingProgress

    return TrainingProgress(err)


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _jsonable(value: Any) -> Any:
    """NaN and infinity become null: JSON has neither."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): _jsonable(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(v) for v in value]
    return str(value) if isinstance(value, Path) else value


def _line(data: Mapping[str, Any], as_json: bool, text: str) -> None:
    print(json.dumps(_jsonable(data)) if as_json else text, flush=True)  # noqa: T201 - the command's result


def _result(data: Mapping[str, Any], as_json: bool, keys: Iterable[str] | None = None) -> None:
    if as_json:
        _line(data, True, "")
        return
    table = Table(show_header=False, box=None)
    for key in keys or data:
        table.add_row(f"[bold]{key}", _plain(_short(data[key])))
    out.print(table)


def _table(rows: list[dict[str, Any]], as_json: bool, keys: Iterable[str] | None = None) -> None:
    if as_json:
        print(json.dumps(_jsonable(rows)))  # noqa: T201 - the command's result
        return
    table = Table(box=None)
    names = tuple(keys or (rows[0] if rows else ()))
    for name in names:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(_plain(_short(row[name])) for name in names))
    out.print(table if rows else "none")


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_short(v)}" for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(_short(v) for v in value)
    return "–" if value is None else str(value)
