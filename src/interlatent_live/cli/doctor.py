"""The command that looks at this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from .application import AsJson, app
from .output import out, plain, print_line

_COLOURS: Final = {"PASS": "green", "WARN": "yellow", "FAIL": "red"}


@app.command()
def doctor(
    connect: Annotated[str | None, typer.Option(help="Also look at the stream there; default: at the default endpoint, if one is.")] = None,
    folder: Annotated[Path, typer.Option(help="Where recordings and databases would go.")] = Path(),
    as_json: AsJson = False,
) -> None:
    """Look for what may be wrong on this machine, with a remedy for each; status 1 if something fails.

    Example: `interlatent-live doctor --connect tcp://127.0.0.1:5570`
    """
    from interlatent_live.doctor import as_dict, examine

    checks = []
    for check in examine(folder.resolve(), connect):
        checks.append(check)
        if not as_json:
            colour = _COLOURS[check.state]
            out.print(f"[{colour}]{check.state}[/{colour}] [bold]{plain(check.name)}[/bold] {plain(check.found)}", soft_wrap=True)
            if check.remedy:
                out.print(f"     → {plain(check.remedy)}", soft_wrap=True)
    counted = as_dict(checks)
    print_line(counted, as_json, f"{counted['pass']} passed, {counted['warn']} to look at, {counted['fail']} failed")
    if counted["fail"]:
        raise typer.Exit(1)
