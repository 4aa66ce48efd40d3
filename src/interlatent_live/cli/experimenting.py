"""The commands `experiment steer` and `experiment ablate`."""

from __future__ import annotations

import contextlib
import json
import shlex
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interlatent_live.stream.errors import DictionaryError

from .application import AsJson, app
from .output import err, jsonable, print_line, print_result, print_table

if TYPE_CHECKING:
    from interlatent_live.analyzer.dictionary import Dictionary
    from interlatent_live.trials import AgentTrials

__all__: list[str] = []

experiment = typer.Typer(
    help="What causes what: change features, run paired episodes, measure.", no_args_is_help=True, rich_markup_mode="markdown"
)
app.add_typer(experiment, name="experiment")

Agent = Annotated[str, typer.Option(help="A reference agent.")]
Named = Annotated[
    str | None, typer.Option("--dictionary", help="Name or folder; 'neurons' or 'neurons:POINT': a layer's neurons. Default: the agent's.")
]
Seed = Annotated[int, typer.Option(help="0 to 199: experiments of different numbers share no episode.", min=0, max=199)]


@contextlib.contextmanager
def _bar(total: int, quiet: bool) -> Iterator[tuple[Callable[[int], None], Callable[[str], None]]]:
    """(tick, note): episodes done and the stage, as a progress bar on standard error."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    if quiet:
        yield (lambda _: None), (lambda _: None)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total} episodes"), TimeElapsedColumn())
    with Progress(*columns, console=err) as bar:
        task = bar.add_task("", total=total)
        yield (lambda n: bar.advance(task, n)), (lambda text: bar.update(task, description=text))
        bar.update(task, completed=total, description="done")


@experiment.command("steer")
def steer(
    agent: Agent = "cartpole-reinforce",
    dictionary: Named = None,
    outcome: Annotated[str, typer.Option(help="'return', 'steps', 'speed' or 'heading' (humanoid), or a metric's mean.")] = "return",
    goal: Annotated[str, typer.Option(help="What to do to it: raise, lower or change.")] = "raise",
    episodes: Annotated[int, typer.Option(help="Fresh pairs of episodes that confirm what the search found.", min=2)] = 500,
    seed: Seed = 0,
    features: Annotated[str | None, typer.Option(help="Try only these: 3,5,8. Default: all that are live, or a screened few.")] = None,
    tries: Annotated[
        list[str] | None, typer.Option("--try", help="Only this: scale:1.5, or clamp:0.8 of the typical maximum; may be repeated.")
    ] = None,
    screen: Annotated[int | None, typer.Option(help="Try only so many, those that move the action most.", min=1)] = None,
    search_episodes: Annotated[int | None, typer.Option(help="Pairs of the search's first round.", min=2)] = None,
    search_steps: Annotated[int | None, typer.Option(help="Length of an episode of the search, at most.", min=1)] = None,
    max_steps: Annotated[int | None, typer.Option(help="Length of an episode of the confirmation, at most.", min=1)] = None,
    finalists: Annotated[int | None, typer.Option(help="Candidates that are confirmed.", min=1)] = None,
    directions: Annotated[int | None, typer.Option(help="Random directions of the control.", min=1)] = None,
    others: Annotated[int | None, typer.Option(help="Other features of the control, at most.", min=0)] = None,
    doses: Annotated[int | None, typer.Option(help="Points of the dose-response curve, at most.", min=1)] = None,
    live: Annotated[
        bool, typer.Option("--live", help="Then the same over the control channel, to an agent in another process (outcome 'return').")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder for result.json and report.html. Default: experiment-steer-DICTIONARY-OUTCOME.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Which feature, changed how, moves the outcome most? A search, and a confirmation on fresh paired episodes, with controls.

    Ctrl-C keeps what was run; the same command goes on from there.

    Example: `interlatent-live experiment steer --agent cartpole-reinforce --episodes 500 --json`
    """
    from interlatent_live.analyzer import experiment as steering
    from interlatent_live.analyzer.experiment_page import as_html
    from interlatent_live.experiments import affordable, prepare

    begun = time.monotonic()
    if live and outcome != "return":
        raise DictionaryError(f"--live compares returns, but the outcome is {outcome!r}; leave one of the two out")
    _, trials, chosen = prepare(agent, dictionary, outcome)
    if live and chosen.path is None:
        raise DictionaryError(f"{chosen.name} stand in no folder that another process could read; steer a dictionary live")
    given = {
        "screen": screen, "first": search_episodes, "search_steps": search_steps, "max_steps": max_steps, "features": _numbers(features),
        "tries": _tries(tries), "finalists": finalists, "directions": directions, "others": others, "doses": doses,
    }  # fmt: skip
    fixed: dict[str, Any] = {"episodes": episodes, "seed": seed, "goal": goal}
    options = steering.SteerOptions(**(fixed | affordable(trials) | {k: v for k, v in given.items() if v is not None}))
    folder = out or Path(f"experiment-steer-{chosen.name.replace(' ', '-').replace(':', '-')}-{outcome}")
    count = len(options.features) if options.features is not None else min(chosen.features, options.screen or chosen.features)
    state = folder / "state.jsonl"
    try:
        with _bar(steering.planned(options, count), as_json) as (tick, note):
            found = steering.steer(trials, chosen, options, state=state, tick=tick, note=note)
            if live:
                note("over the control channel")
                found["live"] = _live(agent, trials, chosen, found, options.max_steps)
    except KeyboardInterrupt:
        err.print(f"stopped; {state} keeps what was run, and the same command goes on from there", soft_wrap=True)
        raise typer.Exit(130) from None
    words = ["interlatent-live", "experiment", "steer", "--agent", agent, "--dictionary", dictionary or chosen.name]
    words += ["--outcome", outcome, "--goal", goal, "--episodes", str(episodes), "--seed", str(seed)]
    asked = {k: v for k, v in given.items() if k != "tries"} | {"features": features}
    words += [word for text in tries or () for word in ("--try", text)]
    names = {"first": "search-episodes"}
    words += ["--live"] if live else []
    words += [word for k, v in asked.items() if v is not None for word in (f"--{names.get(k, k.replace('_', '-'))}", str(v))]
    found |= {"command": shlex.join(words), "seconds": round(time.monotonic() - begun, 1)}
    (folder / "result.json").write_text(json.dumps(jsonable(found), indent=1) + "\n", encoding="utf-8")
    (folder / "report.html").write_text(as_html(jsonable(found)), encoding="utf-8")
    state.unlink(missing_ok=True)
    found |= {"report": str(folder / "report.html")}
    if as_json:
        print_line(found, True, "")
        return
    keys = ("feature", "operation", "strength", "searched_percent", "effect_percent", "p_holm")
    print_table([{k: row[k] for k in keys} for row in found["finalists"]], False)
    controls = {name: {k: found["controls"][name][k] for k in ("mean", "low", "high", "n")} for name in ("random", "wrong_sign", "other")}
    curve = "; ".join(f"{p['dose']:g}: {p['effect_percent']['mean']:+.1f} %" for p in found["dose_response"])
    shown = ("baseline", "steered", "best", "effect_percent", "p", "p_holm", "falls", *(("live",) if live else ()))
    print_result({**{k: found[k] for k in shown}, **controls, "dose_response": curve, "report": found["report"]}, False)


def _live(agent: str, trials: AgentTrials, chosen: Dictionary, found: dict[str, Any], max_steps: int | None) -> dict[str, Any]:
    """The best once more, in a running agent that is steered from here, on the confirmation's seeds."""
    from interlatent_live.analyzer.candidates import splice_of_edit
    from interlatent_live.analyzer.edit import Edit
    from interlatent_live.live_trial import compare, steered_over_control

    best, (first, last) = found["best"], found["confirmation"]["seeds"]
    seeds = range(first, last + 1)
    returns, _ = steered_over_control(agent, chosen, best, seeds, max_steps)
    edit = Edit(best["operation"], best["strength"], feature=best["feature"])
    base = trials.trial(None, seeds, max_steps=max_steps)
    arm = trials.trial(splice_of_edit(chosen, edit), seeds, max_steps=max_steps)
    return compare(base, found["effect_percent"], returns, arm, trials.outcome.whole)


@experiment.command("ablate")
def ablate(
    agent: Agent = "cartpole-reinforce",
    dictionary: Named = None,
    episodes: Annotated[int, typer.Option(help="Pairs of episodes of each feature for the return; 0: the action only.", min=0)] = 500,
    look: Annotated[int, typer.Option(help="Clean episodes for the action.", min=2)] = 100,
    most: Annotated[int | None, typer.Option(help="The return of so many features only, those that move the action most.", min=1)] = None,
    top: Annotated[int | None, typer.Option(help="Write only so many features, those that move the action most.", min=1)] = None,
    seed: Seed = 0,
    max_steps: Annotated[int | None, typer.Option(help="Length of an episode, at most.", min=1)] = None,
    out: Annotated[
        Path | None, typer.Option(help="File. Default: effects.json beside the dictionary, where pages and sentences find it.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Take out each feature in turn: what it does to the action and to the return, and whether correlation would have told.

    Example: `interlatent-live experiment ablate --agent cartpole-reinforce --out effects.json`
    """
    from interlatent_live.analyzer import ablation
    from interlatent_live.analyzer.causal import FILE, save_effects
    from interlatent_live.experiments import prepare

    begun = time.monotonic()
    reference, trials, chosen = prepare(agent, dictionary, "return")
    if out is None and chosen.path is None:
        raise DictionaryError(f"{chosen.name} stand in no folder; say with --out where to write")
    path = out or Path(chosen.path or ".") / FILE
    options = ablation.AblateOptions(episodes=episodes, look=look, most=most, top=top, seed=seed, max_steps=max_steps)
    words = ["interlatent-live", "experiment", "ablate", "--agent", agent, "--dictionary", dictionary or chosen.name]
    words += ["--episodes", str(episodes), "--look", str(look), "--seed", str(seed)] + ([] if most is None else ["--most", str(most)])
    words += [word for k, v in (("top", top), ("max-steps", max_steps)) if v is not None for word in (f"--{k}", str(v))]
    state = path.with_name(f".{path.name}.state.jsonl")
    total = episodes * (1 + min(chosen.features, most or chosen.features))
    try:
        with _bar(total, as_json) as (tick, note):
            found = ablation.ablate(
                trials, chosen, options, action_names=reference.action_names, command=shlex.join(words), state=state, tick=tick, note=note
            )
    except KeyboardInterrupt:
        err.print(f"stopped; {state} keeps what was run, and the same command goes on from there", soft_wrap=True)
        raise typer.Exit(130) from None
    save_effects(path, jsonable(found))
    state.unlink(missing_ok=True)
    summary = {k: found[k] for k in ("dictionary", "baseline", "live", "measured_return", "found", "prediction")}
    summary |= {"written": str(path), "seconds": round(time.monotonic() - begun, 1)}
    if as_json:
        print_line(summary | {"features": found["features"]}, True, "")
        return
    rows = [
        {
            "feature": f, f"action_{found['action_unit']}": row["action"]["mean"],
            "low": row["action"]["low"], "high": row["action"]["high"],
            "toward": f"{row['action']['toward']} {row['action']['change']['mean']:+.3f}",
            "r": row["action"]["r"], "q": row["action"]["q"],
            "return_percent": None if row["return"] is None else _span(row["return"]),
            "q_return": None if row["return"] is None else row["return"]["q"],
        }
        for f, row in list(found["features"].items())[:40]
    ]  # fmt: skip
    print_table(rows, False)
    print_result(summary, False)


def _span(row: dict[str, Any]) -> str:
    return f"{row['mean']:+.1f} ({row['low']:+.1f} to {row['high']:+.1f})"


def _tries(texts: list[str] | None) -> tuple[tuple[str, float], ...] | None:
    if not texts:
        return None
    try:
        return tuple((text.partition(":")[0], float(text.partition(":")[2] or 0)) for text in texts)
    except ValueError as error:
        raise DictionaryError(f"--try is {', '.join(texts)}; write an operation and a number, such as scale:1.5") from error


def _numbers(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise DictionaryError(f"--features is {text!r}; write numbers, such as 3,5,8") from error
