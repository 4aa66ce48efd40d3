"""Commands that keep a moment: `clip`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .application import AsJson, app
from .output import print_result

__all__: list[str] = []


@app.command()
def clip(
    db: Annotated[Path, typer.Argument(help="A database.")],
    at: Annotated[int, typer.Option(help="Frame that it is about; the page shows its number.")],
    out: Annotated[Path, typer.Option(help="Where the HTML goes; an existing file is refused.")],
    seconds: Annotated[float, typer.Option(help="How long, around the frame; 0.5 to 60.")] = 10.0,
    env: Annotated[int, typer.Option(help="Environment, of several.")] = 0,
    boot: Annotated[str | None, typer.Option(help="Start of the agent; default: the newest.")] = None,
    feature: Annotated[list[int] | None, typer.Option(help="Show this feature; three at most. Default: those of the sentence.")] = None,
    as_json: AsJson = False,
) -> None:
    """Some seconds around a frame as one HTML file: pictures, three features, the sentence with its scores; it loops.

    Example: `interlatent-live clip r.db --at 812 --out moment.html`
    """
    from interlatent_live.explainer.reading import Pages
    from interlatent_live.viewer.clip import clip as made

    if not db.is_file():
        raise typer.BadParameter(f"{db} is not a file")
    with Pages(db) as pages:
        text = made(pages, at, boot=boot, env=env, seconds=seconds, features=feature or ())
    try:
        with out.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise typer.BadParameter(f"{out} exists; name another file") from None
    print_result({"out": str(out), "bytes": len(text.encode())}, as_json)
