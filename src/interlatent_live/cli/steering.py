"""Commands that reach into a running agent: `steer`, `steer list`, `steer release`, and `keys` for other machines."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interlatent_live.stream.endpoint import DEFAULT_ENDPOINT

from .application import AsJson, app
from .output import err, plain, print_line, print_result, print_table

if TYPE_CHECKING:
    from interlatent_live.stream.control import ControlClient

__all__ = ["Connect", "Keys", "RunName", "Token", "client_of"]

steer = typer.Typer(help="Change a feature of a running agent, for a while.", rich_markup_mode="markdown", invoke_without_command=True)
keys = typer.Typer(help="CURVE keys, for steering from another machine.", no_args_is_help=True, rich_markup_mode="markdown")
app.add_typer(steer, name="steer")
app.add_typer(keys, name="keys")

Connect = Annotated[str, typer.Option(help="Where the agent publishes.")]
RunName = Annotated[str | None, typer.Option("--run", help="The run; default: the first that is heard.")]
Token = Annotated[Path | None, typer.Option(help="File of the token; default: the one that the agent names.")]
Keys = Annotated[Path | None, typer.Option(help="Folder of CURVE keys; default: below ~/.config.")]
Scale = Annotated[float | None, typer.Option(help="Multiply it; 0 takes it away, 1 changes nothing.")]
Clamp = Annotated[float | None, typer.Option(help="Hold it at this value.")]
Ablate = Annotated[bool, typer.Option("--ablate", help="Take it away.")]
DictionaryName = Annotated[str | None, typer.Option(help="Name or hash of the dictionary, of those that the agent allows.")]


def client_of(connect: str, run: str | None, token: Path | None, folder: Path | None, *, prompts: bool = False) -> ControlClient:
    """A connection to the agent that publishes at `connect`. Raises SteeringError."""
    from interlatent_live.stream.control import ControlClient, find_agent
    from interlatent_live.stream.keys import KeyRing

    manifest = find_agent(connect, run, prompts=prompts)
    assert manifest.control is not None
    return ControlClient(manifest.control, token_file=token, keys=KeyRing(folder), heard_at=connect)


def strengths(scale: float | None, clamp: float | None, add: float | None, ablate: bool) -> list[tuple[str, float]]:
    """Operations that were asked for, with their strengths."""
    asked = {"scale": scale, "clamp": clamp, "add": add, "ablate": 0.0 if ablate else None}
    return [(name, value) for name, value in asked.items() if value is not None]


@steer.callback()
def steer_(
    context: typer.Context,
    feature: Annotated[int | None, typer.Option(help="Number of the feature.")] = None,
    scale: Scale = None,
    clamp: Clamp = None,
    add: Annotated[float | None, typer.Option(help="Add this to it, or this much of --direction.")] = None,
    ablate: Ablate = False,
    direction: Annotated[Path | None, typer.Option(help="JSON list of numbers to add along, at --point.")] = None,
    point: Annotated[str | None, typer.Option(help="Tap point of --direction.")] = None,
    dictionary: DictionaryName = None,
    typical: Annotated[bool, typer.Option("--typical", help="--clamp and --add count in the feature's typical maximum.")] = False,
    db: Annotated[Path | None, typer.Option(help="Database that knows the typical maximum, where the card does not.")] = None,
    ttl: Annotated[float | None, typer.Option(help="End after so many seconds; default: the most that the agent allows.")] = None,
    when: Annotated[str | None, typer.Option(help='Only while this holds, as in "pole_angle > 0.1".')] = None,
    env: Annotated[int | None, typer.Option(help="Only in this environment.")] = None,
    shadow: Annotated[bool, typer.Option("--shadow", help="Measure the effect, and apply nothing.")] = False,
    max_effect: Annotated[float | None, typer.Option(help="Turn the change down until its effect is no larger.")] = None,
    reason: Annotated[str, typer.Option(help="Why; stands in the recording.")] = "",
    connect: Connect = DEFAULT_ENDPOINT,
    run_name: RunName = None,
    token: Token = None,
    keys_folder: Annotated[Path | None, typer.Option("--keys", help="Folder of CURVE keys; default: below ~/.config.")] = None,
    as_json: AsJson = False,
) -> None:
    """Steer a feature of a running agent, for as long as this command runs: it is the author's heartbeat.

    Example: `interlatent-live steer --feature 4 --scale 1.5 --ttl 30 --reason "does it lean?"`
    """
    if context.invoked_subcommand is not None:
        return
    given = strengths(scale, clamp, add, ablate)
    if len(given) != 1 or (feature is None) == (direction is None):
        raise typer.BadParameter("give --feature or --direction, and exactly one of --scale, --clamp, --add and --ablate")
    ((operation, strength),) = given
    asked: dict[str, Any] = {
        "operation": operation,
        "strength": strength,
        "feature": feature,
        "direction": None if direction is None else _numbers(direction),
        "point": point,
        "dictionary": dictionary,
        "unit": "typical" if typical else None,
        "typical": None if db is None or feature is None else _typical(db, dictionary, feature),
        "ttl_s": ttl,
        "env": env,
        "shadow": shadow or None,
        "max_effect": max_effect,
        "reason": reason,
        **_condition(when),
    }
    _hold(connect, run_name, token, keys_folder, asked, as_json)


def _hold(connect: str, run: str | None, token: Path | None, folder: Path | None, asked: dict[str, Any], as_json: bool) -> None:
    """Start it and renew it until it ends, or this process is asked to."""
    from interlatent_live.launch import Stop
    from interlatent_live.stream.errors import SteeringError

    stop = Stop()
    with client_of(connect, run, token, folder) as client:
        pause = float(client.hello()["lease_s"]) / 5
        started = client.steer(**asked)
        id, seen, lost = str(started["id"]), None, 0
        print_line({"event": "start", **started}, as_json, f"{_spoken(started)}; Ctrl-C ends it")
        cause = "released"
        while True:
            if stop.wait(pause):
                client.release_quietly(id)
                break
            try:
                active, ended = client.renew([id])
                lost = 0
            except SteeringError as error:
                lost += 1
                if lost > 3:
                    cause = f"the agent is not heard any more ({error})"
                    break
                continue
            if not active:
                cause = ended.get(id, "ended")
                break
            now = active[0]
            told = (now.get("effect"), now.get("factor"))
            if told != seen and told[0] is not None:
                seen = told
                turned = "" if told[1] == 1 else f", turned down to {told[1]:.2g}"
                print_line({"event": "effect", **now}, as_json, f"effect {told[0]:.3g}{turned}")
        print_line({"event": "end", "id": id, "cause": cause}, as_json, f"ended: {cause}")


@steer.command(name="list")
def list_(
    connect: Connect = DEFAULT_ENDPOINT,
    run_name: RunName = None,
    token: Token = None,
    keys_folder: Keys = None,
    as_json: AsJson = False,
) -> None:
    """What is in force.

    Example: `interlatent-live steer list`
    """
    with client_of(connect, run_name, token, keys_folder) as client:
        active = client.list()
    shown = ("id", "author", "operation", "strength", "feature", "dictionary", "condition", "shadow", "left_s", "effect", "reason")
    print_table(active, as_json, None if as_json or not active else shown)


@steer.command()
def release(
    id: Annotated[str | None, typer.Argument(help="Id of an intervention, as `steer list` shows it.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="End all; no limit or flood keeps this out.")] = False,
    connect: Connect = DEFAULT_ENDPOINT,
    run_name: RunName = None,
    token: Token = None,
    keys_folder: Keys = None,
    as_json: AsJson = False,
) -> None:
    """End an intervention, or all.

    Example: `interlatent-live steer release --all`
    """
    if (id is None) != everything:
        raise typer.BadParameter("give an id, or --all")
    with client_of(connect, run_name, token, keys_folder) as client:
        released = client.release_all() if id is None else client.release(id)
    print_result({"released": released}, as_json)


@keys.command()
def make(keys_folder: Keys = None, as_json: AsJson = False) -> None:
    """Make this machine's keys, where there are none: for its agents (server), and for steering others (client).

    Example: `interlatent-live keys make`
    """
    from interlatent_live.stream.keys import KeyRing

    ring = KeyRing(keys_folder)
    print_result({"folder": ring.folder, **ring.make()}, as_json)


@keys.command(name="list")
def list_keys(keys_folder: Keys = None, as_json: AsJson = False) -> None:
    """This machine's public keys, who may steer its agents, and whose agents are steered from here.

    Example: `interlatent-live keys list`
    """
    from interlatent_live.stream.keys import KeyRing

    ring = KeyRing(keys_folder)
    own = [{"kind": name, "name": "this machine", "key": ring.pair(name)[0]} for name in ("server", "client") if ring.has(name)]
    others = [{"kind": kind, "name": name, "key": key} for kind in ("clients", "servers") for name, key in ring.known(kind).items()]
    print_table([*own, *others], as_json)


@keys.command()
def allow(
    name: Annotated[str, typer.Argument(help="Name of who may steer.")],
    key: Annotated[str, typer.Argument(help="Public key of that machine's client: `keys list` there.")],
    keys_folder: Keys = None,
    as_json: AsJson = False,
) -> None:
    """Let another machine steer the agents of this one, together with their token.

    Example: `interlatent-live keys allow desk 'Yne@$w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{hID'`
    """
    from interlatent_live.stream.keys import KeyRing

    print_result({"file": KeyRing(keys_folder).allow("clients", name, key)}, as_json)


@keys.command()
def trust(
    name: Annotated[str, typer.Argument(help="Name of the machine.")],
    key: Annotated[str, typer.Argument(help="Public key of its server: `keys list` there.")],
    keys_folder: Keys = None,
    as_json: AsJson = False,
) -> None:
    """Take a machine's agents for what they say they are.

    Example: `interlatent-live keys trust robot 'rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7'`
    """
    from interlatent_live.stream.keys import KeyRing

    print_result({"file": KeyRing(keys_folder).allow("servers", name, key)}, as_json)


def _spoken(item: Mapping[str, Any]) -> str:
    what = f"feature {item['feature']} of {item['dictionary']}" if item.get("feature") is not None else f"a direction at {item['output']}"
    strength = "" if item["operation"] == "ablate" else f" {item['strength']:g}"
    only = f" while {item['condition']}" if item.get("condition") else ""
    how = "measured only" if item.get("shadow") else "in force"
    return f"{item['id']}: {item['operation']}{strength} {what}{only}, {how} for {item['left_s']:.0f} s at most"


def _condition(text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        from interlatent_live.explainer.grammar import parse
    except ImportError as error:
        from interlatent_live.stream.errors import SteeringError

        raise SteeringError("--when needs pydantic: pip install 'interlatent-live[explainer]'") from error
    return {"when": parse(text).model_dump()}


def _numbers(path: Path) -> list[float]:
    from interlatent_live.stream.errors import SteeringError

    try:
        numbers = json.loads(path.read_text(encoding="utf-8"))
        return [float(number) for number in numbers]
    except (OSError, ValueError, TypeError) as error:
        raise SteeringError(f"{path} holds no JSON list of numbers ({error})", reason="bad_request") from error


def _typical(db: Path, dictionary: str | None, feature: int) -> float:
    """The median of the feature's peaks in what was analysed."""
    from interlatent_live.analyzer.queries import Reader
    from interlatent_live.stream.errors import SteeringError

    with Reader(db) as reader:
        sections = [section for boot in reader.boots() for section in reader.sections(boot.boot)]
        rows = {section.id: reader.dictionary(section.dictionary_hash) for section in sections}
        peaks = [
            event.peak
            for section in sections
            if (row := rows[section.id]) is not None and row.kind != "neurons" and dictionary in (None, row.hash, row.name)
            for event in reader.events(section.id, limit=1_000_000)
            if event.feature == feature
        ]
    if not peaks:
        raise SteeringError(f"{db} has no event of feature {feature}, so no typical maximum; analyse more, or give plain strengths")
    found = float(statistics.median(peaks))
    err.print(plain(f"the typical maximum of feature {feature} is {found:.4g}, the median of {len(peaks)} events"), soft_wrap=True)
    return found
