"""Commands about dictionaries: `dict train`, `dict card`, `dict frontier`, `dict list`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interlatent_live.stream.errors import DictionaryError, RecordingExists

from .application import AsJson, dictionaries
from .output import err, print_result, print_table, progress

if TYPE_CHECKING:
    from interlatent_live.analyzer.closed_loop import Round
    from interlatent_live.analyzer.dictionary import Dictionary

__all__: list[str] = []


@dictionaries.command("train")
def train(
    to: Annotated[Path, typer.Option("--out", help="Folder for the dictionary; it must not exist.")],
    recording: Annotated[Path | None, typer.Argument(help="A recording to learn from; else --connect.")] = None,
    input_point: Annotated[str | None, typer.Option("--input", help="Tap point read; with --live it may be left to the stream.")] = None,
    output_point: Annotated[str | None, typer.Option("--output", help="Tap point predicted; default: the input (an SAE).")] = None,
    recipe: Annotated[str, typer.Option(help="topk, batchtopk, jumprelu or relu-l1.")] = "topk",
    features: Annotated[int, typer.Option(help="Number of latents.")] = 256,
    k: Annotated[int, typer.Option(help="Active latents per frame (topk), on average (batchtopk), aimed at (jumprelu).")] = 8,
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 6000,
    seed: Annotated[int, typer.Option(help="Seed of initialisation, batches and split.")] = 0,
    skip: Annotated[bool, typer.Option("--skip", help="Add a linear path from input to output beside the latents.")] = False,
    l1: Annotated[float, typer.Option(help="Weight of the latents' sum (relu-l1).")] = 1e-3,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    closed_loop: Annotated[bool, typer.Option("--closed-loop", help="Also learn from rollouts of --agent acting on it.")] = False,
    agent: Annotated[str | None, typer.Option(help="The reference agent of --closed-loop.")] = None,
    rounds: Annotated[int, typer.Option(help="Rounds of rollouts (--closed-loop).")] = 6,
    action_weight: Annotated[float, typer.Option(help="Weight of the action's error in the loss (--closed-loop).")] = 4.0,
    l0: Annotated[
        float | None, typer.Option(help="Set the threshold at the end so that whole episodes have this L0 (--closed-loop, batchtopk).")
    ] = None,
    connect: Annotated[str | None, typer.Option(help="Learn from the stream published there (with --live).")] = None,
    live: Annotated[
        bool, typer.Option("--live", help="Learn while the agent acts, in bounded memory and at low priority; Ctrl-C saves.")
    ] = False,
    run_name: Annotated[
        str | None, typer.Option("--run", help="Learn from this run only (--live); default: the first that appears.")
    ] = None,
    seconds: Annotated[float, typer.Option(help="Learn for so many seconds from the first frame (--live).")] = 120.0,
    wait: Annotated[float, typer.Option(help="Wait so many seconds for the first frame (--live).")] = 60.0,
    memory_mb: Annotated[int, typer.Option(help="Hold at most so many MiB of frames (--live).")] = 256,
    as_json: AsJson = False,
) -> None:
    """Train a dictionary on a recording, or on a running stream; held-out episodes judge it.

    On a recording Ctrl-C keeps what was learned, and the same command goes on. With --live it ends the learning and saves.

    Example: `interlatent-live dict train r.mcap --input 2:out --output 3:out --features 256 --k 8 --out dicts/mine`

    Example: `interlatent-live dict train --connect tcp://127.0.0.1:5570 --live --out dicts/mine`
    """
    if to.exists():
        raise RecordingExists(f"{to} exists; dictionaries are never overwritten: name another folder with --out")
    if (recording is None) == (connect is None):
        raise typer.BadParameter("give either a recording or --connect ENDPOINT --live")
    if live != (connect is not None) or (live and closed_loop):
        raise typer.BadParameter("--connect and --live go together, and without --closed-loop: they learn from the stream alone")
    chosen: dict[str, Any] = {
        "recipe": recipe, "features": features, "k": k, "steps": steps, "seed": seed, "skip": skip, "l1": l1, "device": device,
    }  # fmt: skip
    if connect is not None:
        from .learning import learn_live

        learn_live(connect, to, input_point, output_point, chosen, run_name, seconds, wait, memory_mb, as_json)
        return
    assert recording is not None
    if input_point is None:
        raise typer.BadParameter("--input is missing: the tap point read, as `interlatent-live info` lists them")
    shown = None if as_json else progress()
    if closed_loop:
        if agent is None:
            raise DictionaryError("--closed-loop needs an agent to act on the dictionary: name it with --agent, such as --agent humanoid")
        chosen["action_weight"] = action_weight
        try:
            card = _train_closed_loop(recording, to, input_point, output_point or input_point, agent, rounds, l0, chosen, shown)
        except KeyboardInterrupt:
            err.print("stopped; rounds that were done are kept, and the same command goes on from there", soft_wrap=True)
            raise typer.Exit(130) from None
        print_result(card, as_json)
        return
    from interlatent_live.analyzer.training import checkpoint_path, train_recording

    try:
        card = train_recording(recording, to, input_point=input_point, output_point=output_point, progress=shown, **chosen)
    except KeyboardInterrupt:
        if checkpoint_path(to).exists():
            err.print(f"stopped; {checkpoint_path(to)} keeps what was learned, and the same command goes on from there", soft_wrap=True)
        raise typer.Exit(130) from None
    print_result(card, as_json)


def _train_closed_loop(
    recording: Path,
    to: Path,
    input_point: str,
    output_point: str,
    agent: str,
    rounds: int,
    l0: float | None,
    chosen: dict[str, Any],
    shown: Any,
) -> dict[str, Any]:
    from interlatent_live.analyzer.closed_loop import LoopOptions, train_closed_loop
    from interlatent_live.analyzer.samples import samples_of
    from interlatent_live.analyzer.training import TrainOptions, checkpoint_path, command_of
    from interlatent_live.rollouts import AgentRollouts
    from interlatent_live.stream.reading import Recording

    options = TrainOptions(**chosen)
    rollouts = AgentRollouts(agent, input_point, output_point)
    samples = samples_of(Recording(recording), input_point, output_point)
    more = ["--closed-loop", "--agent", agent, *([] if rounds == LoopOptions().rounds else ["--rounds", str(rounds)])]
    more += ["--action-weight", f"{options.action_weight:g}"] + ([] if l0 is None else ["--l0", f"{l0:g}"])

    def report(done: Round, _: Dictionary) -> None:
        err.print(
            f"round {done.number}: {done.frames} frames, FVU {done.fvu:.4f}, L0 {done.l0:.1f}, return of the clean one's "
            f"{done.recovery:.3f}, standing {done.survived:.1%}",
            soft_wrap=True,
        )

    dictionary, _ = train_closed_loop(
        samples, rollouts, options, LoopOptions(rounds=rounds), name=to.name,
        command=command_of(recording.name, to.name, samples, options, *more),
        progress=shown, on_round=None if shown is None else report, l0=l0, checkpoint=checkpoint_path(to),
    )  # fmt: skip
    dictionary.save(to)
    return dict(dictionary.card or {})


@dictionaries.command("card")
def card(
    directory: Annotated[str, typer.Argument(help="Folder of a dictionary, or the name of one that is installed.")],
    recording: Annotated[
        Path | None, typer.Option(help="Judge on its held-out episodes; default: on episodes of the agent that nothing was trained on.")
    ] = None,
    agent: Annotated[
        str | None, typer.Option(help="The reference agent it is of; default: by the model hash. 'none': no rollouts.")
    ] = None,
    episodes: Annotated[int, typer.Option(help="Paired episodes for return recovery.", min=1)] = 100,
    attribution: Annotated[
        bool, typer.Option("--attribution", help="Only amend the card that is there: how well contributions foretell ablation.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Judge a dictionary: write card.json, card.md and card.html beside it.

    Example: `interlatent-live dict card dicts/mine`
    """
    from interlatent_live.analyzer.registry import find
    from interlatent_live.card import amend_card, make_card

    if attribution:
        if recording is not None or agent == "none":
            raise typer.BadParameter("--attribution needs episodes of the agent; leave out --recording and --agent none")
        amended = amend_card(find(directory), agent=agent, episodes=episodes, note=lambda text: None if as_json else err.print(text))
        print_result(amended, as_json, ("name", "hash", "attribution"))
        return
    judged = make_card(
        find(directory), recording=recording, agent=agent, episodes=episodes, note=lambda text: None if as_json else err.print(text)
    )
    measures = ("l0", "fvu", "dead_share", "action_agreement", "action_error", "return_recovery", "baselines")
    print_result(judged, as_json, ("name", "hash", "recipe", "features", "k", *measures))


@dictionaries.command("frontier")
def frontier(
    directory: Annotated[str, typer.Argument(help="Folder of a topk or batchtopk dictionary, or the name of one that is installed.")],
    l0: Annotated[list[float], typer.Option(help="Active latents a frame; repeated, one row each.")],
    agent: Annotated[str | None, typer.Option(help="The reference agent it is of; default: by the model hash.")] = None,
    episodes: Annotated[int, typer.Option(help="Paired episodes for each row.", min=2)] = 20,
    steps: Annotated[int | None, typer.Option(help="Steps of an episode at most; default: all.", min=1)] = None,
    as_json: AsJson = False,
) -> None:
    """What a dictionary loses with fewer active latents, without training it again: FVU and return recovery by L0.

    Example: `interlatent-live dict frontier humanoid --l0 16 --l0 12 --l0 8 --episodes 20 --steps 300`
    """
    from interlatent_live.analyzer.frontier import frontier as measure
    from interlatent_live.analyzer.registry import find
    from interlatent_live.analyzer.training import one_thread
    from interlatent_live.card import agent_of
    from interlatent_live.rollouts import AgentRollouts

    dictionary = find(directory)
    chosen = agent or agent_of(dictionary)
    if chosen is None:
        raise DictionaryError(f"no reference agent has the weights that {dictionary.name!r} was trained on; name one with --agent")
    with one_thread():
        rollouts = AgentRollouts(chosen, dictionary.cfg.input, dictionary.cfg.output)
        rows = measure(
            dictionary, rollouts, l0, episodes=episodes, max_steps=steps, note=lambda text: None if as_json else err.print(text)
        )
    print_table(rows, as_json, ("l0", "l0_found", "fvu", "action_agreement", "action_error", "return_recovery", "standing"))


@dictionaries.command("list")
def list_dictionaries(
    db: Annotated[Path | None, typer.Option(help="Also those that this database names.")] = None, as_json: AsJson = False
) -> None:
    """The dictionaries that ship, and those a database names.

    Example: `interlatent-live dict list --json`
    """
    from interlatent_live.analyzer.registry import listing

    print_table(listing(db), as_json, ("name", "hash", "tap_points", "path"))
