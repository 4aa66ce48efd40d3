"""Commands about files that are there: recordings, databases, models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .application import AsJson, app
from .output import print_line, print_of_text, print_table

__all__ = ["is_database"]


@app.command()
def info(path: Annotated[Path, typer.Argument(help="A recording or a database.")], as_json: AsJson = False) -> None:
    """What a recording or a database holds.

    Example: `interlatent-live info r.mcap --json`
    """
    from interlatent_live.stream.reading import Recording

    if is_database(path):
        from interlatent_live.analyzer.queries import Reader

        with Reader(path) as reader:
            found = reader.info()
        print_of_text(found, as_json, "language" in found)
    else:
        found = Recording(path).info()
        print_of_text(found, as_json, {"logprob", "next_entropy"} <= {metric["name"] for metric in found["metrics"]})


OfOne = Annotated[
    str | None, typer.Option("--dictionary", help="Only what follows from this one, by name or hash; a run may have been swapped to it.")
]


@app.command()
def digest(db: Annotated[Path, typer.Argument(help="A database.")], dictionary: OfOne = None, as_json: AsJson = False) -> None:
    """One line: the hash of the analysis, equal for equal batches.

    Example: `interlatent-live digest r.db`
    """
    from interlatent_live.analyzer.digest import digest as compute
    from interlatent_live.analyzer.digest import hash_of

    value = compute(db, None if dictionary is None else hash_of(db, dictionary))
    print_line({"digest": value}, as_json, value)


@app.command()
def verify(
    a: Annotated[Path, typer.Argument()], b: Annotated[Path, typer.Argument()], dictionary: OfOne = None, as_json: AsJson = False
) -> None:
    """Whether two databases hold the same analysis; if not, the first difference, and status 1.

    Example: `interlatent-live verify r.db again.db`
    """
    from interlatent_live.analyzer.digest import hash_of
    from interlatent_live.analyzer.digest import verify as compare

    difference = compare(a, b, None if dictionary is None else hash_of(a, dictionary))
    print_line({"equal": difference is None, "difference": difference}, as_json, difference or "equal")
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
    from interlatent_live.agent_side.points import points as list_points
    from interlatent_live.agent_side.rollout import load_policy

    rows = [
        {"point": p.name, "module": p.module, "parameters": p.parameters, "default": p.default} for p in list_points(load_policy(agent))
    ]
    print_table(rows, as_json)


def is_database(path: Path) -> bool:
    """Whether a file is a SQLite database; else it is taken for a recording."""
    if not path.is_file():
        raise typer.BadParameter(f"{path} is not a file")
    with path.open("rb") as file:
        return file.read(16) == b"SQLite format 3\0"
