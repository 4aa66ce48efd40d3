"""Commands that look through an analysed run: `search`, `plot`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from .application import AsJson, app
from .output import err, plain, print_table

if TYPE_CHECKING:
    from interlatent_live.analyzer.records import BatchRow

__all__: list[str] = []

Point = Annotated[str | None, typer.Option("--at", help="Tap point; default: all of them (search), the dictionary's (plot).")]


@app.command()
def search(
    db: Annotated[Path, typer.Argument(help="A database.")],
    token: Annotated[str | None, typer.Option(help="Text of a token: which features are about it.")] = None,
    where: Annotated[str | None, typer.Option(help="Instead: a predicate over frames, of agents as well.")] = None,
    at: Point = None,
    top: Annotated[int, typer.Option(help="Features to print.")] = 20,
    html: Annotated[Path | None, typer.Option(help="Also write a page.")] = None,
    as_json: AsJson = False,
) -> None:
    """The features that tell some frames from all others best: those of a token, or those where a predicate holds.

    Example: `interlatent-live search lm.db --token bomb --top 20`, `interlatent-live search r.db --where 'pole_angle > 0.1'`
    """
    from interlatent_live.analyzer.explore import matching_tokens
    from interlatent_live.analyzer.explore import search as find
    from interlatent_live.explainer.reading import Pages

    if (token is None) == (where is None):
        raise typer.BadParameter("give either --token TEXT or --where PREDICATE")
    wanted: Callable[[str, BatchRow], Any]
    with Pages(db) as reader, reader.consistent():
        if token is not None:
            numbers = matching_tokens(reader, token)

            def wanted(boot: str, batch: BatchRow) -> Any:
                return np.isin(batch.columns["token"], numbers.get(boot, [])) if "token" in batch.columns else np.zeros(batch.rows, bool)
        else:
            wanted = _holding(db, where or "")
        frames, found = find(reader, wanted, top, at)
        named = {e.feature: e.label for e in reader.explanations(everything=True)}
        rows = [{**asdict(f), "label": None if f.name.startswith("n") else named.get(f.feature)} for f in found]
    if html is not None:
        from interlatent_live.viewer.charts import found_page

        html.write_text(found_page(f"{token or where}: {frames} frames", rows), encoding="utf-8")
    if not as_json:
        err.print(plain(f"{token or where}: {frames} frames"), soft_wrap=True)
    print_table(rows, as_json, ("name", "point", "label", "active", "elsewhere", "difference", "mean", "largest"))


@app.command()
def plot(
    db: Annotated[Path, typer.Argument(help="A database.")],
    feature: Annotated[int, typer.Option(help="Number of the feature.")],
    prompt: Annotated[int | None, typer.Option(help="Number of the prompt; of an agent, of the episode in order of appearance.")] = None,
    all_prompts: Annotated[bool, typer.Option("--all-prompts", help="Every prompt, or episode, a line each.")] = False,
    at: Point = None,
    top: Annotated[int, typer.Option(help="Prompts to print with --all-prompts, the strongest; 0 is all, in order.")] = 30,
    html: Annotated[Path | None, typer.Option(help="Write an interactive page.")] = None,
    as_json: AsJson = False,
) -> None:
    """A feature over the tokens of a prompt, or the steps of an episode; or over all of them.

    Example: `interlatent-live plot lm.db --feature 7 --prompt 3`, `interlatent-live plot lm.db --feature 7 --all-prompts --html f7.html`
    """
    from interlatent_live.analyzer.explore import shaded, strengths
    from interlatent_live.analyzer.queries import Reader

    if (prompt is None) != all_prompts:
        raise typer.BadParameter("give either --prompt NUMBER or --all-prompts")
    if prompt is not None:
        text = shaded(db, feature, prompt, point=at)
        if html is not None:
            from interlatent_live.viewer.charts import text_page

            html.write_text(text_page(text), encoding="utf-8")
        if as_json:
            values = [None if np.isnan(v) else float(v) for v in text.values]
            print_table([{"position": i, "text": t, "value": v} for i, (t, v) in enumerate(zip(text.texts, values, strict=True))], True)
        else:
            print(text)  # noqa: T201 - the command's result
        return
    with Reader(db) as reader, reader.consistent():
        rows = [
            {"prompt": s.place.prompt, "labels": dict(s.place.labels), "frames": s.frames, "active": s.active, "mean": s.mean,
             "largest": s.largest, "at": s.at, "token": s.token, "text": s.place.text[:60]}
            for s in strengths(reader, feature, at)
        ]  # fmt: skip
    if html is not None:
        from interlatent_live.viewer.charts import strengths_page

        html.write_text(strengths_page(f"feature {feature} of {db.name}", rows), encoding="utf-8")
    if top:
        rows = sorted(rows, key=lambda row: -abs(float(row["largest"])))[:top]  # type: ignore[arg-type]
    print_table(rows, as_json, ("prompt", "labels", "frames", "active", "mean", "largest", "at", "token", "text"))


def _holding(db: Path, predicate: str) -> Callable[[str, BatchRow], Any]:
    """Which frames a predicate holds in, as far as the newest 300,000 reach."""
    from interlatent_live.explainer.grammar import parse

    from .explaining import _frames

    frames, _ = _frames(db)
    held = parse(predicate, frames.table.vocabulary).holds(frames.table)
    by_boot = {boot: np.sort(frames.seq[held & (frames.table.boot == number)]) for number, boot in enumerate(frames.boots)}

    def wanted(boot: str, batch: BatchRow) -> Any:
        return np.isin(batch.first_seq + np.arange(batch.rows), by_boot.get(boot, np.zeros(0, np.int64)))

    return wanted

