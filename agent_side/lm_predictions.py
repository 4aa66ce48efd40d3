"""What a language model predicted from each token: log-probabilities, entropies, likeliest tokens; on the sender's thread.

Of prompts whose logits `generate` does not compute, they are computed here from what the head reads, unless the last column's
differ from the model's own: then they stay unknown, and that is told. A token over a vocabulary of 49,152 costs about 0.1 ms,
and only the five likeliest are kept, so that neither is the model's thread's nor the wire's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from interlatent_live.agent_side.lm_activations import host

if TYPE_CHECKING:
    from torch import Tensor

    from interlatent_live.agent_side.lm_passes import Pass

__all__ = ["TOP", "Predictions"]

Array = npt.NDArray[Any]

TOP: Final = 5
"""Predictions kept of each token."""
_CHUNK_BYTES: Final = 16 << 20
"""Of logits that are looked at in one go."""
_DIFFERS: Final = 0.02
"""By how much of their spread recomputed logits may differ from the model's own: bfloat16 keeps 8 bits."""
_FEW: Final = 8
"""Columns of log-probabilities of which the last may be kept without a copy of its own."""
_BLOCK: Final = 256
"""Tokens whose largest logit is looked at first."""


class Predictions:
    """Reads logits. `head()`: weight and bias of the model's head."""

    def __init__(self, head: Callable[[], tuple[Tensor, Tensor | None] | None], complain: Callable[[str], None]) -> None:
        self._head, self._complain = head, complain

    def read(self, passes: Sequence[Pass], widths: Sequence[int], following: Array) -> tuple[dict[str, Array], Tensor | None]:
        """What was predicted from each column of the passes laid side by side, NaN and -1 where unknown:

        `entropy` (rows, columns) nat; `tokens` and `probs` (rows, columns, TOP); `logprob` (rows, columns) of `following`,
        (rows, columns) the token that came next, -1: none. Also the (rows, vocabulary) log-probabilities after the last
        column, if they are known.
        """
        import torch

        rows, columns = following.shape
        found = {
            "logprob": np.full((rows, columns), np.nan),
            "entropy": np.full((rows, columns), np.nan),
            "tokens": np.full((rows, columns, TOP), -1, np.int32),
            "probs": np.full((rows, columns, TOP), np.nan),
        }
        begin = 0
        pieces: list[tuple[int, Tensor]] = []
        for one, wide in zip(passes, widths, strict=True):
            whole = self._whole(one) if wide else None
            if whole is not None:
                offset = one.width - whole.shape[1]  # of the pass: its logits are of its last columns
                first = max(offset, one.skip)
                pieces.append((begin + first - one.skip, whole[:, first - offset : one.keep - offset]))
            begin += wide
        last: Tensor | None = None
        for start, logits in _joined(pieces):
            step = max(1, _CHUNK_BYTES // max(1, rows * logits.shape[2] * 4))
            for low in range(0, logits.shape[1], step):
                part = torch.log_softmax(logits[:, low : low + step].float(), dim=-1)
                place = slice(start + low, start + low + part.shape[1])
                values, tokens = _likeliest(part, min(TOP, part.shape[2]))
                found["tokens"][:, place, : tokens.shape[2]] = host(tokens)
                found["probs"][:, place, : values.shape[2]] = host(values.exp())
                found["entropy"][:, place] = host(_entropy(part))
                after = following[:, place]
                if (after >= 0).any():
                    found["logprob"][:, place] = np.where(after >= 0, gathered(part, after), np.nan)
                if place.stop == columns:
                    last = part[:, -1] if part.shape[1] <= _FEW else part[:, -1].clone()
        return found, last

    def _whole(self, one: Pass) -> Tensor | None:
        """Logits of as many columns as can be had."""
        logits, hidden = one.logits, one.hidden
        if logits is None or hidden is None:
            return logits
        import torch

        weights = self._head()
        if weights is None:
            return logits
        rows, width, _ = hidden.shape
        step = max(1, _CHUNK_BYTES // max(1, rows * weights[0].shape[0] * weights[0].element_size()))
        parts = [torch.nn.functional.linear(hidden[:, low : low + step], *weights) for low in range(0, width, step)]
        whole = torch.cat(parts, 1)
        own, again = logits[:, -1].float(), whole[:, -1].float()
        if float((own - again).abs().max()) > _DIFFERS * max(float(own.std()), 1e-6) * 8:
            self._complain(
                "log-probabilities of prompts are unknown: this model does more than its head's matrix to its logits. Call the model "
                "itself on the prompt for them, which computes all logits"
            )
            return logits
        return torch.cat([whole[:, : width - logits.shape[1]].to(logits.dtype), logits], 1)


def gathered(logprobs: Tensor, at: Array) -> Array:
    """Of (…, vocabulary), the one at each of the (…) tokens `at`, on the host; where those are negative, anything."""
    import torch

    index = torch.from_numpy(np.minimum(np.maximum(at, 0), logprobs.shape[-1] - 1)).to(logprobs.device)
    return host(logprobs.gather(-1, index[..., None])[..., 0])


def _entropy(logprobs: Tensor) -> Tensor:
    """(rows, columns) nat."""
    import torch

    entropy = -logprobs.exp().mul_(logprobs).sum(-1)
    if entropy.isnan().any():  # tokens that are ruled out: 0 · -inf
        entropy = -torch.where(logprobs == -torch.inf, 0.0, logprobs.exp().mul_(logprobs)).sum(-1)
    return entropy


def _likeliest(logprobs: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The largest `count` of (rows, columns, vocabulary) and their tokens, from the largest down.

    Those of a large vocabulary stand in the `count` blocks whose largest are the largest, or in what the blocks leave over.
    """
    import torch

    size = logprobs.shape[2]
    blocks = size // _BLOCK
    if blocks < 4 * count:
        values, tokens = logprobs.topk(count, dim=-1)
        return values, tokens
    split = logprobs[..., : blocks * _BLOCK].reshape(*logprobs.shape[:2], blocks, _BLOCK)
    chosen = split.amax(-1).topk(count, dim=-1).indices
    few = split.gather(2, chosen[..., None].expand(-1, -1, -1, _BLOCK)).flatten(2)
    if size > blocks * _BLOCK:
        few = torch.cat([few, logprobs[..., blocks * _BLOCK :]], -1)
    values, place = few.topk(count, dim=-1)
    block = place // _BLOCK
    inside = chosen.gather(-1, block.clamp(max=count - 1)) * _BLOCK + place % _BLOCK
    return values, torch.where(block < count, inside, place + (blocks - count) * _BLOCK)


def _joined(pieces: list[tuple[int, Tensor]]) -> Iterator[tuple[int, Tensor]]:
    """Logits side by side where their columns are, so that many short passes cost as one."""
    import torch

    group: list[Tensor] = []
    start = end = 0
    for begin, logits in pieces:
        if group and begin != end:
            yield start, torch.cat(group, 1)
            group = []
        if not group:
            start = begin
        group.append(logits)
        end = begin + logits.shape[1]
    if group:
        yield start, group[0] if len(group) == 1 else torch.cat(group, 1)
