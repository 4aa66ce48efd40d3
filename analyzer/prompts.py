"""Language models in the store: prompts, the text of tokens, and a row for each token that was read.

Special tokens (beginnings, ends, markers of a chat) are rows like others, but what passes the layers at them is left out of
features, statistics and training: the first token of a text is an outlier by hundreds of standard deviations in many models,
and tells nothing of the text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from interlatent_live.analyzer.writes import Writes
from interlatent_live.stream.frames import FrameBatch
from interlatent_live.stream.prompt import Prompt, Vocabulary

__all__ = ["PairRow", "PromptRow", "TokenRow", "without_special", "write_message", "write_tokens"]

Array = npt.NDArray[Any]
_TOKEN: Final = (
    "INSERT OR IGNORE INTO tokens (run, boot, seq, prompt, position, token, special, generated, logprob) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
)


@dataclass(frozen=True, slots=True)
class PromptRow:
    """One sequence: what was given, and what the model wrote after it. It is an episode."""

    boot: str
    prompt: int
    env: int
    episode: int
    wall_ns: int
    given: int
    """Tokens that were given."""
    text: str
    """What was given."""
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class PairRow:
    """A text that was asked for with and without an intervention, or with one alone."""

    boot: str
    prompt: int
    pair: str
    """What it has in common with the other; '' where there is none."""
    arm: str
    """'plain' or 'steered'."""


@dataclass(frozen=True, slots=True)
class TokenRow:
    """One token that was read."""

    seq: int
    prompt: int
    position: int
    token: int
    special: int
    generated: int
    logprob: float | None
    """nat; None where unknown."""


def write_message(message: Prompt | Vocabulary, writes: Writes) -> None:
    """Add what a message tells; told again, it is left out."""
    if isinstance(message, Prompt):
        writes.insert_once(
            "prompts",
            run=message.run,
            boot=message.boot,
            prompt=message.prompt,
            env=message.env,
            episode=message.episode,
            wall_ns=message.wall_ns,
            given=message.tokens,
            text=message.text,
            labels=json.dumps(dict(message.labels), sort_keys=True),
        )
        if message.pair or message.arm:
            writes.insert_once("pairs", run=message.run, boot=message.boot, prompt=message.prompt, pair=message.pair, arm=message.arm)
        return
    for token, text in zip(message.tokens, message.texts, strict=True):
        writes.insert_once(
            "vocabulary", run=message.run, boot=message.boot, token=token, text=text.decode("utf-8", "replace"), bytes=text
        )


def write_tokens(batch: FrameBatch, metrics: tuple[str, ...], writes: Writes) -> None:
    """Add the tokens of a batch, if it is of a language model."""
    columns = batch.columns
    names = ("prompt", "position", "token", "special", "generated")
    if not all(name in columns for name in names):
        return
    values = [columns[name].tolist() for name in names]
    logprob: list[float | None] = [None] * batch.rows
    if "logprob" in metrics and "metrics" in columns:
        logprob = [None if np.isnan(v) else float(v) for v in columns["metrics"][:, metrics.index("logprob")]]
    rows = [
        (batch.run, batch.boot, seq, prompt, position, token, int(special), int(generated), likely)
        for seq, prompt, position, token, special, generated, likely in zip(batch.seq.tolist(), *values, logprob, strict=True)
    ]
    writes.execute_many(_TOKEN, rows)


def without_special(batch: FrameBatch) -> FrameBatch:
    """`batch` with no activations at special tokens; itself where there are none."""
    special = batch.columns.get("special")
    if special is None or not special.any():
        return batch
    activations: dict[str, Array] = {}
    present: dict[str, Array] = {}
    for point, values in batch.activations.items():
        rows = batch.rows_of(point)
        kept = ~special[rows]
        if kept.any():
            activations[point], present[point] = values[kept], rows[kept]
    return replace(batch, activations=activations, present=present)
