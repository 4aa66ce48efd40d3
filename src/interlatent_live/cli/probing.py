"""The command `probe`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from interlatent_live.stream.errors import DictionaryError

from .application import AsJson, app
from .output import print_result

__all__: list[str] = []


@app.command()
def probe(
    recording: Annotated[Path, typer.Argument(help="A recording.")],
    at: Annotated[str, typer.Option("--at", help="Tap point.")],
    metric: Annotated[str | None, typer.Option(help="Metric to predict.")] = None,
    label: Annotated[str | None, typer.Option(help="Instead: a label of a language model's prompts.")] = None,
    dictionary: Annotated[
        str | None, typer.Option(help="Name or path; default: one that fits the recording's model and reads or writes the point; 'none'.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the control.")] = 0,
    as_json: AsJson = False,
) -> None:
    """How much of a metric a linear probe reads off a layer, and off its features: by episode, beside a control.

    Example: `interlatent-live probe r.mcap --at 3:out --metric pole_angle`
    """
    try:
        import sklearn  # noqa: F401 - asked for before a recording is read
    except ImportError as error:
        raise DictionaryError("probes need scikit-learn, which is not installed: pip install 'interlatent-live[explainer]'") from error
    from interlatent_live.analyzer.label_probe import probe_label
    from interlatent_live.analyzer.probe import probe as run

    if (metric is None) == (label is None):
        raise typer.BadParameter("give either --metric NAME or --label NAME")
    found = run(recording, at, metric, dictionary, seed) if metric else probe_label(recording, at, label or "", dictionary, seed)
    print_result(found, as_json)
