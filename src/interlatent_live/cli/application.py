"""The typer application that the command modules fill, and the options that several share."""

from __future__ import annotations

from typing import Annotated, Final

import typer

__all__ = ["DEFAULT_PORT", "AsJson", "app", "dictionaries"]

app = typer.Typer(
    name="interlatent-live",
    help="See what an agent is thinking while it acts.",
    epilog="Begin with `interlatent-live demo`, or tap your own policy: see the README.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
dictionaries = typer.Typer(help="Dictionaries: train, judge, list.", no_args_is_help=True, rich_markup_mode="markdown")
app.add_typer(dictionaries, name="dict")

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON, and nothing else, on standard output.")]
DEFAULT_PORT: Final = 5580
