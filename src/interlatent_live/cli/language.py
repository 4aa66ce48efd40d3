"""What `run lm` does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import typer

from .output import err, plain, print_result

__all__ = ["labels_of", "run_language_model"]

PROMPTS: Final = 8
"""Prompts of other processes that may wait."""


def run_language_model(
    *,
    model: Path | None,
    prompts: Path | None,
    prompt: Sequence[str],
    label: Sequence[str],
    points: Sequence[str],
    max_new_tokens: int,
    batch: int,
    temperature: float,
    chat: bool,
    repeat: bool,
    bind: str,
    record: Path | None,
    wait: float,
    seconds: float | None,
    seed: int,
    steerable: bool,
    serve: bool,
    as_json: bool,
) -> None:
    """Run a language model over prompts with a tap in it."""
    from interlatent_live.agent_side import rollout
    from interlatent_live.launch import Stop
    from interlatent_live.prompting import SHIPPED, Given, load, make_tap, read_prompts, tokenised, write

    for name, value, least in (("--max-new-tokens", max_new_tokens, 1), ("--batch", batch, 1), ("--temperature", temperature, 0)):
        if not value >= least:
            raise typer.BadParameter(f"{name} is {value}; at least {least} is needed")
    if serve and batch > 1:
        raise typer.BadParameter("--serve answers one prompt at a time; leave --batch out")
    if prompts is not None and prompt:
        raise typer.BadParameter("give either --prompts FILE or --prompt TEXT")
    stop = Stop()
    labels = labels_of(label)
    found = [Given(text, {}, f"--prompt {number}") for number, text in enumerate(prompt, 1)] or read_prompts(prompts or SHIPPED)
    found = [Given(one.text, {**one.labels, **labels}, one.place) for one in found]

    def say(line: str) -> None:
        err.print(plain(line), soft_wrap=True)

    loaded = load(model, say=say)
    ids = tokenised(loaded, found, chat=chat)
    options: dict[str, Any] = {}
    if steerable or serve:
        from interlatent_live import SteeringPolicy

        options["steering"] = SteeringPolicy(prompts=PROMPTS if serve else 0)
    tap = make_tap(loaded, points, run="lm", record=record, endpoint=bind, **options)
    with tap, _Bar(len(found), hidden=as_json or repeat) as bar:
        if not as_json:
            say(f"{loaded.name} publishes on {tap.endpoint}; `interlatent-live watch {tap.endpoint}` shows it")
            if serve:
                say(f'it takes prompts: `interlatent-live ask "The engine" --connect {tap.endpoint}`; Ctrl-C ends it')
        if wait and not rollout.wait_for_subscriber(tap, wait, stop):
            if stop():
                return
            say(f"nobody subscribed within {wait:g} s; starting all the same")
        done = write(
            loaded, tap, found, ids, max_new_tokens=max_new_tokens, batch=batch, temperature=temperature, seed=seed, repeat=repeat,
            seconds=seconds, stop=stop, done=bar, serves=serve,
        )  # fmt: skip
    print_result(
        {
            "agent": "lm",
            "model": loaded.name,
            "seconds": done.seconds,
            "frames": tap.frames,
            "episodes": done.prompts,
            "mean_return": None,
            "tokens_written": done.tokens,
            "tokens_per_s": done.tokens / done.seconds if done.seconds else None,
            "overhead_us": tap.overhead(),
            "recording": str(record) if record else None,
        },
        as_json,
    )


def labels_of(given: Sequence[str]) -> dict[str, str]:
    """Labels from NAME=VALUE."""
    from interlatent_live.stream.errors import MalformedMessage
    from interlatent_live.stream.prompt import checked_labels

    found: dict[str, str] = {}
    for one in given:
        name, equals, value = one.partition("=")
        if not equals:
            raise typer.BadParameter(f"--label {one} has no value; write NAME=VALUE")
        found[name.strip()] = value.strip()
    try:
        return checked_labels(found)
    except MalformedMessage as error:
        raise typer.BadParameter(str(error)) from error


class _Bar:
    """A progress bar over prompts, on standard error."""

    def __init__(self, total: int, *, hidden: bool) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("prompts"), BarColumn(), TextColumn("{task.completed}/{task.total}"), TimeRemainingColumn(),
                   TextColumn("{task.fields[tokens]} tokens"))  # fmt: skip
        self._bar = Progress(*columns, console=err, disable=hidden)
        self._task = self._bar.add_task("prompts", total=total, tokens=0)

    def __enter__(self) -> _Bar:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def __call__(self, prompts: int, tokens: int) -> None:
        self._bar.update(self._task, completed=prompts, tokens=tokens)
