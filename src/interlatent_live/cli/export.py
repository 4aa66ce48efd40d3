"""Commands that make other files of a recording: `export`, `recover`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from .application import AsJson, app
from .output import print_result, print_table

__all__: list[str] = []


@app.command("export")
def export_run(
    path: Annotated[Path, typer.Argument(help="A recording or a database; what lies beside it under the same name is taken along.")],
    to: Annotated[Path | None, typer.Option("--out", help="Folder, or a file for one table. Default: a folder beside it.")] = None,
    format: Annotated[str | None, typer.Option(help="parquet or csv; default: parquet, or what --out ends in.")] = None,
    what: Annotated[
        str | None,
        typer.Option(
            help="Of: frames, metrics, observations, actions, episodes, scalars, activations, features, events, peaks, correlations, "
            "names, notes; with commas between. Default: all there is."
        ),
    ] = None,
    episode: Annotated[int | None, typer.Option(help="This episode only.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write a run as tables: Parquet or CSV.

    Example: `interlatent-live export r.mcap --what metrics,activations --format csv --out tables`
    """
    from interlatent_live.analyzer.export import export
    from interlatent_live.analyzer.run import open_run

    run = open_run(path)
    part = run if episode is None else run.episode(episode)
    kinds = None if what is None else [kind.strip() for kind in what.split(",") if kind.strip()]
    written = export(part, to or path.with_name(f"{path.stem}-export"), what=kinds, format=format)
    print_table([{"file": file, "rows": rows} for file, rows in written.items()], as_json)


@app.command()
def recover(
    path: Annotated[Path, typer.Argument(help="A recording that was cut off or damaged.")],
    to: Annotated[Path | None, typer.Option("--out", help="The recording to make; default: NAME.recovered.mcap beside it.")] = None,
    as_json: AsJson = False,
) -> None:
    """Rebuild a damaged recording, and say what was lost.

    Example: `interlatent-live recover r.mcap --out good.mcap`
    """
    from interlatent_live.stream.salvage import recover as rebuild

    done = asdict(rebuild(path, to))
    print_result(done | {"gaps": len(done["gaps"])} if not as_json else done, as_json)
