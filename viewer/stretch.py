"""Many batches read as one piece. A robot's batches hold one frame each: decoded array by array, numpy's overhead is all it costs.

Where batches do not have the same columns they are decoded one by one, as they are while live.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from interlatent_live.analyzer.blobs import unpack_together
from interlatent_live.analyzer.codes import Codes
from interlatent_live.analyzer.queries import Reader
from interlatent_live.analyzer.records import CodesRow
from interlatent_live.viewer.window import Piece, merge, piece, piece_of

__all__ = ["stretch"]

_NEEDED: Final = frozenset(
    ("step", "env", "episode", "episode_step", "monotonic_ns", "metrics", "reward", "action", "policy_version")
)


def stretch(
    reader: Reader, boot: str, sections: tuple[int, ...], first_id: int, last_id: int, start_ns: int, env: int, metrics: int
) -> Piece | None:
    """Frames of environment `env` in the batches with ids in [first_id, last_id]; None where there are none.

    `start_ns`: monotonic clock at the boot's beginning; `metrics`: how many the manifest names.
    """
    batches = reader.batch_blobs(boot, first_id, last_id)
    if not batches:
        return None
    columns = unpack_together([blob for *_, blob in batches], _NEEDED)
    total = sum(rows for _, _, rows, _ in batches)
    if columns is None or any(len(c) != total for c in columns.values()):
        return _one_by_one(reader, boot, sections, first_id, last_id, start_ns, env, metrics)
    counts = np.array([rows for _, _, rows, _ in batches])
    starts = np.concatenate(([0], np.cumsum(counts)[:-1]))
    seq = np.arange(total) + np.repeat(np.array([first for _, first, _, _ in batches]) - starts, counts)
    place = {id_: int(start) for (id_, _, _, _), start in zip(batches, starts, strict=True)}
    coded = [c for section in sections for c in reader.code_blobs(section, first_id, last_id) if c[0] in place]
    coded.sort(key=lambda c: c[0])
    encoded = np.full(total, -1, np.int64)
    codes: Codes | None = None
    if coded:
        codes = Codes.from_blobs([blob for *_, blob in coded])
        at = [
            place[batch] + (np.arange(count) if rows is None else np.frombuffer(rows, "<i4")) for batch, rows, count, _ in coded
        ] if any(rows is not None or count != 1 for _, rows, count, _ in coded) else None  # fmt: skip
        encoded[np.array([place[batch] for batch, *_ in coded]) if at is None else np.concatenate(at)] = np.arange(codes.rows)
    return piece_of(columns, seq, encoded, codes, start_ns, env, metrics)


def _one_by_one(
    reader: Reader, boot: str, sections: tuple[int, ...], first_id: int, last_id: int, start_ns: int, env: int, metrics: int
) -> Piece | None:
    codes: dict[int, CodesRow] = {}
    for section in sections:
        codes.update((c.batch_id, c) for c in reader.codes(section, first_id, last_id))
    rows = reader.batch_range(boot, first_id, last_id)
    made = (piece(b, codes.get(b.id), start_ns, env, metrics) for b in rows)
    return merge([p for p in made if p is not None])
