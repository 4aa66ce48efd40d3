"""Why some actions were taken: rows of the table `attributions`, written once and read back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from interlatent_live.analyzer.blobs import pack_matrix, unpack_matrix
from interlatent_live.analyzer.writes import Writes
from interlatent_live.stream.attribution import Attribution

__all__ = ["COLUMNS", "attribute", "decode"]

COLUMNS: Final = (
    "run, boot, env, seq, step, monotonic_ns, wall_ns, dictionary_hash, kind, chosen, action_count, names, actions, total, bias, error, "
    "rest, features, activations, contributions"
)
"""What `decode` reads of a row."""


def attribute(found: Attribution, writes: Writes) -> None:
    """Keep an attribution; one of the same frame stays as it is."""
    writes.insert_once(
        "attributions",
        run=found.run,
        boot=found.boot,
        env=found.env,
        seq=found.seq,
        step=found.step,
        monotonic_ns=found.monotonic_ns,
        wall_ns=found.wall_ns,
        dictionary_hash=found.dictionary,
        kind=found.kind,
        chosen=None if found.chosen < 0 else found.chosen,
        action_count=found.action_count,
        names=json.dumps(found.names),
        actions=pack_matrix(found.actions, "<i4"),
        **{name: pack_matrix(getattr(found, name)) for name in ("total", "bias", "error", "rest")},
        features=pack_matrix(found.features, "<i4"),
        activations=pack_matrix(found.values),
        contributions=pack_matrix(found.contributions),
    )


def decode(row: Sequence[Any]) -> Attribution:
    """A row of `COLUMNS` as the message that it was made of. Raises StoreError where a blob is not of its size."""
    run, boot, env, seq, step, monotonic_ns, wall_ns, dictionary, kind, chosen, action_count = row[:11]
    names = tuple(json.loads(row[11]))
    actions, features = unpack_matrix(row[12], len(names), dtype="<i4"), unpack_matrix(row[17], -1, dtype="<i4")
    total, bias, error, rest = (unpack_matrix(blob, len(names)) for blob in row[13:17])
    return Attribution(
        run, boot, seq, step, env, monotonic_ns, wall_ns, dictionary, kind, -1 if chosen is None else chosen, action_count,
        names, actions, total, bias, error, rest, features,
        values=unpack_matrix(row[18], len(features)), contributions=unpack_matrix(row[19], len(features), len(names)),
    )  # fmt: skip
