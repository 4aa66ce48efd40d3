"""Commands about dictionaries: `dict train`, `dict list`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from interlatent_live.stream.errors import RecordingExists

from .application import AsJson, dictionaries
from .output import print_result, print_table, progress

__all__: list[str] = []


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
    from interlatent_live.analyzer.training import train_recording

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
        progress=None if as_json else progress(),
    )
    print_result(card, as_json)


@dictionaries.command("list")
def list_dictionaries(
    db: Annotated[Path | None, typer.Option(help="Also those that this database names.")] = None, as_json: AsJson = False
) -> None:
    """The dictionaries that ship, and those a database names.

    Example: `interlatent-live dict list --json`
    """
    from interlatent_live.analyzer.registry import listing

    print_table(listing(db), as_json, ("name", "hash", "tap_points", "path"))
