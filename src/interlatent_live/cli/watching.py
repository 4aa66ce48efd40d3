"""Commands that wait for something: `watchpoint`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from .application import AsJson, app
from .output import print_line, print_result

__all__: list[str] = []


@app.command()
def watchpoint(
    db: Annotated[Path, typer.Argument(help="A database that an analyzer makes, or has made.")],
    when: Annotated[str, typer.Option(help="A predicate; each time it comes true counts.")],
    command: Annotated[str | None, typer.Option("--exec", help="Then start this command, without a shell; its input is JSON.")] = None,
    webhook: Annotated[str | None, typer.Option(help="Then post the facts as JSON to this address.")] = None,
    quiet: Annotated[float, typer.Option(help="Seconds of frame time after one in which further ones are only counted.")] = 10.0,
    clips: Annotated[Path | None, typer.Option(help="Folder for clips; default: DB's name with .clips.")] = None,
    no_clips: Annotated[bool, typer.Option("--no-clips", help="Save none.")] = False,
    everything: Annotated[bool, typer.Option("--all", help="Look at all that is there, then end.")] = False,
    seconds: Annotated[float | None, typer.Option(help="End after so many seconds; else Ctrl-C ends.")] = None,
    as_json: AsJson = False,
) -> None:
    """Mark the timeline and save a clip whenever a predicate comes true; then run a command or call an address, if asked here.

    Example: `interlatent-live watchpoint r.db --when 'pole_angle > 0.15' --exec 'notify-send "it leans"'`
    """
    import time

    from interlatent_live.launch import Stop
    from interlatent_live.watchpoints import Watchpoint

    if not db.is_file():
        raise typer.BadParameter(f"{db} is not a file")

    def say(hit: dict[str, Any]) -> None:
        line = f"{hit['time_s']:.1f} s, episode {hit['episode']}, step {hit['episode_step']}, frame {hit['seq']}: {hit['predicate']}"
        print_line(hit, as_json, line + (f" ({hit['acted']})" if hit["acted"] else ""))

    stop, began = Stop(), time.monotonic()
    folder = None if no_clips else clips or db.with_suffix(".clips")
    point = Watchpoint(db, when, command=command, webhook=webhook, quiet_s=quiet, clips=folder, since_now=not everything, on_hit=say)

    def over() -> bool:
        return stop() or (seconds is not None and time.monotonic() - began > seconds)

    done = point.run(over, stop.wait, to_the_end=everything)
    if not as_json:
        print_result(asdict(done), False)
