"""Commands that run something: an agent, an analysis, a page, a replay, a recording."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from interlatent_live.stream.endpoint import DEFAULT_ENDPOINT
from interlatent_live.stream.errors import InterlatentError

from .application import DEFAULT_PORT, AsJson, app
from .output import err, jsonable, plain, print_line, print_result

__all__: list[str] = []

REPLAY_LINGER_S: Final = 30.0
"""How long a replay waits for slow subscribers to fetch the rest."""
EXAMPLE: Final = Path(__file__).parents[1] / "examples" / "cartpole.mcap"
"""A recording that ships with the package."""
LANGUAGE_MODEL: Final = "lm"
"""What stands where a reference agent's name does for a language model."""
Connect = Annotated[str, typer.Option(help="Where the agent publishes.")]
Named = Annotated[
    list[str] | None,
    typer.Option("--dictionary", help="Path or name of a dictionary; may be repeated. Default: what matches, else neurons."),
]
Override = Annotated[
    list[str] | None,
    typer.Option(help="Use this dictionary though it is of other weights; rows are marked. NAME=INPUT,OUTPUT: at these tap points."),
]

SaveClips = Annotated[
    bool | None,
    typer.Option("--clips/--no-clips", help="Save the 30 s before an alarm as a recording beside the database. Default: of a stream."),
]


@app.command()
def demo(
    agent: Annotated[
        str, typer.Option(help="A reference agent: cartpole, cartpole-reinforce, lunarlander, mspacman, humanoid or g1.")
    ] = "cartpole",
    seconds: Annotated[float | None, typer.Option(help="End after so many seconds from the first step; else Ctrl-C ends.")] = None,
    port: Annotated[int, typer.Option(help="Port of the page; 0 takes a free one.")] = DEFAULT_PORT,
    record: Annotated[Path | None, typer.Option(help="Where to record; default: a new folder below runs/.")] = None,
    db: Annotated[Path | None, typer.Option(help="Where the analysis goes; default: a new folder below runs/.")] = None,
    dictionary: Named = None,
    override: Override = None,
    report: Annotated[Path | None, typer.Option(help="Write the report as JSON.")] = None,
    open_page: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in a browser.")] = True,
    steerable: Annotated[bool, typer.Option("--steerable", help="Let the page, and `interlatent-live steer`, change features.")] = False,
    as_json: AsJson = False,
) -> None:
    """A reference agent acts, is analysed and shown, all at once.

    Example: `interlatent-live demo --agent humanoid --seconds 60 --report r.json`
    """
    from interlatent_live.agent_side.agents import agent_named
    from interlatent_live.demo import Demo
    from interlatent_live.launch import Stop, run_directory

    if agent != LANGUAGE_MODEL:
        agent_named(agent)
    folder = Path() if record and db else run_directory(agent)
    play = Demo(
        agent, folder, seconds, port, record, db, analysis=_named(dictionary, override), open_browser=open_page, steerable=steerable,
        say=lambda line: err.print(plain(line), soft_wrap=True),
    )  # fmt: skip
    if not as_json:
        err.print(f"Starting {agent}; recording to {play.record}, analysis in {play.db}. Ctrl-C ends.", soft_wrap=True)
    result = play.run(Stop())
    if report:
        report.write_text(json.dumps(jsonable(result), indent=2) + "\n")
    print_result(
        result,
        as_json,
        ("agent", "seconds", "steps", "episodes", "mean_return", "latency_ms", "overhead_us", "ledger", "features", "dictionary"),
    )


@app.command()
def run(
    name: Annotated[str, typer.Argument(help="A reference agent: cartpole, cartpole-reinforce, lunarlander, mspacman, humanoid or g1.")],
    bind: Annotated[str, typer.Option(help="Where to publish.")] = DEFAULT_ENDPOINT,
    seconds: Annotated[float | None, typer.Option(help="End after so many seconds from the first step.")] = None,
    episodes: Annotated[int | None, typer.Option(help="End after so many episodes.")] = None,
    fast: Annotated[bool, typer.Option("--fast", help="As fast as it can, instead of real time.")] = False,
    record: Annotated[Path | None, typer.Option(help="Record to this file.")] = None,
    wait: Annotated[float, typer.Option(help="Wait up to so many seconds for a subscriber before the first step.")] = 0.0,
    pictures: Annotated[bool, typer.Option("--pictures/--no-pictures", help="Render the environment.")] = True,
    seed: Annotated[int, typer.Option(help="Seed of the environment.")] = 0,
    why: Annotated[bool, typer.Option("--why/--no-why", help="Explain some actions by the dictionary that ships for the agent.")] = True,
    model: Annotated[Path | None, typer.Option(help="lm: directory of a causal model; default: SmolLM2-135M-Instruct.")] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="lm: .jsonl or .csv with `text` and labels; default: the prompts that ship, about four topics.")
    ] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="lm: a prompt; may be repeated.")] = None,
    label: Annotated[list[str] | None, typer.Option(help="lm: NAME=VALUE, on every prompt; may be repeated.")] = None,
    at: Annotated[list[str] | None, typer.Option("--at", help="lm: tap point; may be repeated. A name alone is both sides.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="lm: tokens to write after each prompt, at most.")] = 48,
    batch: Annotated[int, typer.Option(help="lm: prompts to run at once.")] = 1,
    temperature: Annotated[float, typer.Option(help="lm: of sampling; 0 takes the likeliest token.")] = 0.0,
    chat: Annotated[bool, typer.Option("--chat", help="lm: each prompt as a user's turn, in the model's chat template.")] = False,
    repeat: Annotated[bool, typer.Option("--repeat", help="lm: begin again after the last prompt.")] = False,
    steerable: Annotated[bool, typer.Option("--steerable", help="Let `interlatent-live steer` change its features.")] = False,
    serve: Annotated[bool, typer.Option("--serve", help="lm: take prompts of other processes (`ask`) as well, and stay.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run a reference agent, or a language model (`lm`), with a tap in it.

    Example: `interlatent-live run cartpole --episodes 20 --fast --record r.mcap`,
    `interlatent-live run lm --prompt "The engine" --label topic=physics --record lm.mcap`
    """
    if name == LANGUAGE_MODEL:
        from .language import run_language_model

        run_language_model(
            model=model, prompts=prompts, prompt=prompt or (), label=label or (), points=at or (), max_new_tokens=max_new_tokens,
            batch=batch, temperature=temperature, chat=chat, repeat=repeat, bind=bind, record=record, wait=wait, seconds=seconds, seed=seed,
            steerable=steerable, serve=serve, as_json=as_json,
        )  # fmt: skip
        return
    if serve:
        raise typer.BadParameter("--serve is for a language model (`run lm`)")
    from interlatent_live.agent_side import rollout
    from interlatent_live.agent_side.agents import agent_named
    from interlatent_live.launch import Stop
    from interlatent_live.why import why_of

    stop = Stop()
    agent = agent_named(name)
    steering = None
    if steerable:
        from interlatent_live import SteeringPolicy

        steering = SteeringPolicy()
    tap = rollout.make_tap(agent, record=record, endpoint=bind, why=why_of(agent) if why else None, steering=steering)
    with tap:
        if not as_json:
            err.print(f"{name} publishes on {tap.endpoint}; `interlatent-live watch {tap.endpoint}` shows it", soft_wrap=True)
        if wait and not rollout.wait_for_subscriber(tap, wait, stop):
            if stop():
                return
            err.print(f"nobody subscribed within {wait:g} s; starting all the same")
        done = rollout.run(agent, tap, seconds=seconds, episodes=episodes, fast=fast, seed=seed, render=pictures, stop=stop)
    returns = done.returns
    print_result(
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
    dictionary: Named = None,
    run_name: Annotated[str | None, typer.Option("--run", help="Analyse this run only; default: the first that appears.")] = None,
    seconds: Annotated[float | None, typer.Option(help="End after so many seconds from the first frame.")] = None,
    neurons: Annotated[bool, typer.Option("--neurons", help="Take the neurons as features, whatever dictionary matches.")] = False,
    override: Override = None,
    clips: SaveClips = None,
    stay: Annotated[bool, typer.Option("--stay", help="Stay after the agent's farewell, for its next start.")] = False,
    follow: Annotated[
        Path | None,
        typer.Option(help="Swap in dictionaries as they appear in this folder (--connect). Default: DB.dictionaries, without --neurons."),
    ] = None,
    swaps: Annotated[
        Path | None, typer.Option(help="Swap dictionaries where the live analysis in this database did (--recording).")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run dictionaries and correlations over a stream or a recording, into a database.

    Example: `interlatent-live analyze --recording r.mcap --db again.db`
    """
    from interlatent_live.analyzer.service import analyze_recording, analyze_stream
    from interlatent_live.launch import Stop

    if (connect is None) == (recording is None):
        raise typer.BadParameter("give either --connect ENDPOINT or --recording FILE")
    stop = Stop()
    chosen: dict[str, Any] = {
        "dictionaries": dictionary or (),
        "run": run_name,
        "seconds": seconds,
        "neurons_only": neurons,
        "override": override or (),
        "clips": connect is not None if clips is None else clips,
        "stop": stop,
    }
    if recording is not None:
        if follow is not None:
            raise typer.BadParameter("--follow is for --connect: a recording is analysed with --dictionary, or --swaps DB")
        done = analyze_recording(recording, db, swaps=swaps, **chosen)
    else:
        if swaps is not None:
            raise typer.BadParameter("--swaps is for --recording: what a live analysis swaps in is in the folder of --follow")
        done = analyze_stream(connect or DEFAULT_ENDPOINT, db, leave_on_bye=not stay, follow=follow, **chosen)
    print_result({"db": str(db), **done}, as_json)


@app.command()
def view(
    db: Annotated[Path, typer.Option(help="The database to show; it may appear later.")],
    port: Annotated[int, typer.Option(help="Port of the page; 0 takes a free one.")] = DEFAULT_PORT,
    connect: Annotated[str | None, typer.Option(help="Analyse this live stream into the database as well.")] = None,
    address: Annotated[str, typer.Option(help="Address to serve at; beyond this machine with --token-file only.")] = "127.0.0.1",
    token_file: Annotated[
        Path | None, typer.Option(help="File with the token that a browser has to show; only its owner may read it.")
    ] = None,
    allow_origin: Annotated[
        list[str] | None, typer.Option(help="Host and port as browsers will name this page; may be repeated.")
    ] = None,
    control: Annotated[str | None, typer.Option(help="Let the page reach into the agent that publishes here, if it allows that.")] = None,
    control_token: Annotated[Path | None, typer.Option(help="File of the agent's token; default: the one that it names.")] = None,
    control_keys: Annotated[Path | None, typer.Option(help="Folder of CURVE keys, of an agent elsewhere; default: in ~/.config.")] = None,
    look_token_file: Annotated[
        Path | None, typer.Option(help="File of another token, with which a browser may look and not reach in.")
    ] = None,
    read_only: Annotated[bool, typer.Option("--read-only", help="Let the page write no names and no notes.")] = False,
    open_page: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in a browser.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show a database as a live page, on this machine or, with a token, to others; with --control it may reach into the agent.

    Example: `interlatent-live view --db r.db --port 5580`
    """
    def ready(url: str) -> None:
        print_line({"url": url}, as_json, f"the page is at {url}")

    if control is None and (control_token or control_keys):
        raise typer.BadParameter("--control-token and --control-keys are for --control ENDPOINT")
    if control is not None and read_only:
        raise typer.BadParameter("--read-only and --control exclude each other")
    door = {"address": address, "token_file": token_file, "origins": allow_origin or (), "read_only": read_only}
    door |= {"looking_file": look_token_file, "reach": None if control is None else _reach(control, control_token, control_keys)}
    _serve(db, port, open_page, ready, ["--connect", connect, "--stay"] if connect else None, door)


@app.command()
def watch(
    source: Annotated[str, typer.Argument(help="An endpoint (tcp://…) or a recording.")] = DEFAULT_ENDPOINT,
    example: Annotated[bool, typer.Option("--example", help="Show the recording that ships with the package; no agent is needed.")] = False,
    db: Annotated[Path | None, typer.Option(help="Where the analysis goes; default: a new folder below runs/.")] = None,
    dictionary: Named = None,
    override: Override = None,
    clips: SaveClips = None,
    run_name: Annotated[str | None, typer.Option("--run", help="Watch this run only; default: the first that appears.")] = None,
    port: Annotated[int, typer.Option(help="Port of the page; 0 takes a free one.")] = DEFAULT_PORT,
    control: Annotated[bool, typer.Option("--control", help="Let the page reach into the agent, where it allows that.")] = False,
    open_page: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in a browser.")] = False,
    as_json: AsJson = False,
) -> None:
    """Analyse and show a live stream or a recording, in one.

    Example: `interlatent-live watch run.mcap`, `interlatent-live watch --example`
    """
    from interlatent_live.launch import run_directory

    if example:
        if source != DEFAULT_ENDPOINT:
            raise typer.BadParameter(f"--example is a recording of its own; leave out {source}")
        source = str(EXAMPLE)
    live = "://" in source
    if not live and not Path(source).is_file():
        raise typer.BadParameter(f"{source} is neither an endpoint (tcp://host:port) nor a file")
    goes_to = db or run_directory("watch") / "run.db"

    def ready(url: str) -> None:
        print_line({"url": url, "db": str(goes_to)}, as_json, f"the page is at {url}; the analysis goes to {goes_to}")

    door = ["--connect", source, "--stay"] if live else ["--recording", source]
    more = [*(["--run", run_name] if run_name else []), *_named(dictionary, override), *_clips(clips)]
    if control and not live:
        raise typer.BadParameter("--control is for an agent that acts now; a recording takes no requests")
    _serve(goes_to, port, open_page, ready, [*door, *more], {"reach": _reach(source)} if control else None)


def _reach(endpoint: str, token: Path | None = None, keys: Path | None = None) -> Any:
    from interlatent_live.viewer.hand import Reach

    return Reach(endpoint, token, keys)


def _named(dictionary: list[str] | None, override: list[str] | None) -> list[str]:
    """The same options for the analyzer's process."""
    return [word for d in dictionary or () for word in ("--dictionary", d)] + [word for o in override or () for word in ("--override", o)]


def _clips(clips: bool | None) -> list[str]:
    """The same."""
    return [] if clips is None else ["--clips" if clips else "--no-clips"]


def _serve(
    db: Path, port: int, open_page: bool, ready: Callable[[str], None], analyze: list[str] | None, door: dict[str, Any] | None = None
) -> None:
    """The page of `db`, with an analyzer beside it that is started again if it dies, and an explainer; all end with this process."""
    from interlatent_live.launch import Child, Stop
    from interlatent_live.viewer.app import serve

    stop = Stop()
    analyzer = Child("analyzer", ["analyze", "--db", str(db), "--json", *analyze]).start() if analyze else None
    explainer = Child("explainer", ["explain", "--db", str(db), "--live", "--json"]).start() if analyze else None

    def say(line: str) -> None:
        err.print(plain(line), soft_wrap=True)

    failed: list[InterlatentError] = []
    learner: Child | None = None

    def start(words: Sequence[str]) -> None:
        """The page's button to learn a dictionary: one at a time, and it ends with this process."""
        nonlocal learner
        if learner is None or learner.code is not None:
            learner = Child("learner", [*words, "--json"]).start()

    def stopped() -> bool:
        try:
            if analyzer is not None and not stop():
                analyzer.revive(say)
            if explainer is not None and not stop():
                explainer.revive_or_leave(say)
        except InterlatentError as error:  # asked by the server's loop, which would swallow it
            failed.append(error)
        return bool(failed) or stop()

    try:
        serve(db, port=port, open_browser=open_page, stop=stopped, on_ready=ready, starter=start, **(door or {}))
    finally:
        for child in (explainer, analyzer, learner):
            if child is not None:
                child.terminate()
        for child in (explainer, analyzer, learner):
            if child is not None:
                child.end()
    if failed:
        raise failed[0]


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
    from interlatent_live.launch import Stop
    from interlatent_live.stream.publisher import Publisher
    from interlatent_live.stream.reading import Recording
    from interlatent_live.stream.replay import replay as play

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
    print_result(asdict(done), as_json)


@app.command()
def record(
    to: Annotated[Path, typer.Option("--out", help="The recording to make.")],
    connect: Connect = DEFAULT_ENDPOINT,
    run_name: Annotated[str | None, typer.Option("--run", help="Record this run only; default: the first that appears.")] = None,
    seconds: Annotated[float | None, typer.Option(help="End after so many seconds from the first frame.")] = None,
    rotate_mb: Annotated[float | None, typer.Option(help="Go on in another file (NAME.1.mcap, …) after so many MB.")] = None,
    rotate_minutes: Annotated[float | None, typer.Option(help="Go on in another file after so many minutes.")] = None,
    as_json: AsJson = False,
) -> None:
    """Record a live stream from another process.

    Example: `interlatent-live record --out r.mcap`
    """
    from interlatent_live.launch import Stop
    from interlatent_live.stream.reading import Recording
    from interlatent_live.stream.transcript import record_stream

    record_stream(
        connect,
        to,
        run=run_name,
        seconds=seconds,
        rotate_bytes=None if rotate_mb is None else round(rotate_mb * 1e6),
        rotate_s=None if rotate_minutes is None else rotate_minutes * 60,
        stop=Stop(),
    )
    print_result(Recording(to).info(), as_json)
