"""The command that asks a running language model: `ask`."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from interlatent_live.stream.endpoint import DEFAULT_ENDPOINT

from .application import AsJson, app
from .language import labels_of
from .output import err, out, plain, print_line
from .steering import Ablate, Clamp, Connect, DictionaryName, Keys, RunName, Scale, Token, client_of, strengths

if TYPE_CHECKING:
    from rich.table import Table

__all__: list[str] = []

_LOOK_S: Final = 0.15
_HEARD_S: Final = 30.0
"""How long an agent that loads its model may be silent between two answers."""


@app.command()
def ask(
    text: Annotated[str, typer.Argument(help="What the model is to go on with.")],
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to write at most.")] = 48,
    feature: Annotated[int | None, typer.Option(help="Write it with this feature changed.")] = None,
    scale: Scale = None,
    clamp: Clamp = None,
    add: Annotated[float | None, typer.Option(help="Add this to it.")] = None,
    ablate: Ablate = False,
    dictionary: DictionaryName = None,
    both: Annotated[bool, typer.Option("--both", help="With and without, side by side, from one seed.")] = False,
    label: Annotated[list[str] | None, typer.Option(help="NAME=VALUE, kept with it; may be repeated.")] = None,
    chat: Annotated[bool, typer.Option("--chat", help="As a user's turn, in the model's chat template.")] = False,
    temperature: Annotated[float, typer.Option(help="Of sampling; 0 takes the likeliest token.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of sampling.")] = 0,
    connect: Connect = DEFAULT_ENDPOINT,
    run_name: RunName = None,
    token: Token = None,
    keys_folder: Keys = None,
    as_json: AsJson = False,
) -> None:
    """Ask a running language model to go on with a text, with a feature changed or not; it is recorded and shown like any other.

    Example: `interlatent-live ask "The engine" --feature 7 --scale 0 --both`
    """
    given = strengths(scale, clamp, add, ablate)
    if len(given) != (feature is not None):
        raise typer.BadParameter("give --feature with exactly one of --scale, --clamp, --add and --ablate, or none of them")
    if both and feature is None:
        raise typer.BadParameter("--both is with and without: give --feature as well")
    which = {"feature": feature} | ({"dictionary": dictionary} if dictionary else {})
    steer: list[dict[str, Any]] = [{"operation": name, "strength": value, **which} for name, value in given]
    asked: dict[str, Any] = {
        "max_new_tokens": max_new_tokens, "labels": labels_of(label or ()) or None, "steer": steer or None, "both": both or None,
        "chat": chat or None, "temperature": temperature, "seed": seed,
    }  # fmt: skip
    _follow(connect, run_name, token, keys_folder, text, asked, as_json)


def _follow(
    connect: str, run: str | None, token: Path | None, folder: Path | None, text: str, asked: dict[str, Any], as_json: bool
) -> None:
    """Ask, and print what comes until it is done; cancel it where this process is asked to end."""
    from interlatent_live.launch import Stop
    from interlatent_live.stream.errors import SteeringError

    stop = Stop()
    with client_of(connect, run, token, folder, prompts=True) as client:
        begun = client.prompt(text, **asked)
        id, arms, heard = str(begun["prompt"]), list[dict[str, Any]](), time.monotonic()
        if begun["ahead"] and not as_json:
            err.print(f"{begun['ahead']} before it")
        show = _Show(as_json, bool(asked["both"]))
        found: Mapping[str, Any] = {"state": "waiting"}
        try:
            while found["state"] in ("waiting", "running"):
                if stop.wait(_LOOK_S):
                    client.cancel(id)
                    break
                try:
                    found = client.written(id, [len(arm["tokens"]) for arm in arms])
                except SteeringError as error:
                    if error.reason != "rate" and time.monotonic() - heard > _HEARD_S:
                        raise
                    continue
                heard = time.monotonic()
                arms = arms or [dict(arm) | {"tokens": []} for arm in found["arms"]]
                for mine, news in zip(arms, found["arms"], strict=True):
                    tokens = [*mine["tokens"], *news["tokens"]]
                    mine |= {**news, "tokens": tokens}
                show.now(arms)
        finally:
            show.end(arms)
        if found["state"] in ("refused", "failed"):
            raise SteeringError(str(found["message"]), reason="refused")
        if as_json:
            print_line({"prompt": id, "state": found["state"], "pair": begun["pair"], **_told(arms)}, True, "")


def _told(arms: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The texts as data; `differs`: the first token, counted from the text's beginning, in which the two differ."""
    texts = [[str(token[0]) for token in arm["tokens"]] for arm in arms]
    differs = None
    if len(texts) == 2 and texts[0] != texts[1]:
        differs = next((i for i, (a, b) in enumerate(zip(*texts, strict=False)) if a != b), min(map(len, texts)))
    return {
        "differs": differs,
        "texts": [
            {"arm": arm["arm"], "prompt": arm["prompt"], "text": "".join(words[arm["given"] :]), "tokens": arm["tokens"]}
            for arm, words in zip(arms, texts, strict=True)
        ],
    }


class _Show:
    """Prints a text as it comes; a pair side by side, on a terminal while it is written."""

    def __init__(self, hidden: bool, both: bool) -> None:
        from rich.live import Live

        self._hidden, self._both, self._told = hidden, both, 0
        self._live = Live(console=out, refresh_per_second=8) if both and not hidden and out.is_terminal else None
        if self._live is not None:
            self._live.start()

    def now(self, arms: Sequence[Mapping[str, Any]]) -> None:
        """Print what is new."""
        if self._hidden or not arms:
            return
        if self._live is not None:
            self._live.update(_side_by_side(arms))
        elif not self._both:
            tokens = arms[0]["tokens"]
            for text, _, own in tokens[self._told :]:
                out.print(f"[dim]{plain(text)}[/dim]" if not own else plain(text), end="", soft_wrap=True)
            self._told = len(tokens)
            sys.stdout.flush()

    def end(self, arms: Sequence[Mapping[str, Any]]) -> None:
        """Nothing more comes."""
        if self._live is not None:
            self._live.stop()
        elif not self._hidden and self._both and arms:
            out.print(_side_by_side(arms))
        elif not self._hidden and self._told:
            out.print()


def _side_by_side(arms: Sequence[Mapping[str, Any]]) -> Table:
    """Two columns; from the first token in which they differ on in bold."""
    from rich.table import Table
    from rich.text import Text

    differs = _told(arms)["differs"]
    table = Table(show_lines=False)
    cells = []
    for arm in arms:
        table.add_column(str(arm["arm"]), ratio=1)
        cell = Text()
        for i, (text, _, own) in enumerate(arm["tokens"]):
            cell.append(text, "dim" if not own else "bold" if differs is not None and i >= differs else "")
        cells.append(cell)
    table.add_row(*cells)
    return table
