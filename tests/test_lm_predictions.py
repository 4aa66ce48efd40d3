"""What was predicted, from logits alone: against the plain computation, on vocabularies of every size."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from interlatent_live.agent_side.lm_passes import Asked, Pass, Sequences
from interlatent_live.agent_side.lm_predictions import TOP, Predictions


def read(logits: torch.Tensor, following: list[list[int]]) -> tuple[dict[str, np.ndarray], torch.Tensor | None]:
    """Of one pass with all its logits."""
    rows, width, _ = logits.shape
    one = Pass(Sequences(rows, Asked(), 0), 0, width, torch.zeros(rows, width, dtype=torch.int64), 0, first=True, keep=width)
    one.kept, one.logits = (), logits
    return Predictions(lambda: None, pytest.fail).read([one], [width], np.array(following, np.int64))


@pytest.mark.parametrize("size", [3, 64, 5_120, 5_121, 50_257, 49_152])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_likeliest_tokens_and_entropy_are_those_of_the_plain_computation(size: int, dtype: torch.dtype) -> None:
    torch.manual_seed(size)
    logits = (4 * torch.randn(2, 3, size)).to(dtype)
    logits[0, 0, -1], logits[0, 1, 0] = 40.0, 40.0  # the last one of all, and the first
    following = [[1, -1, 2], [0, 2, -1]]
    found, last = read(logits, following)
    logp = torch.log_softmax(logits.float(), -1)
    values = logp.topk(min(TOP, size), -1).values.exp().numpy()
    count = values.shape[2]
    assert np.array_equal(found["probs"][..., :count].astype(np.float32), values)
    told = np.take_along_axis(logp.numpy(), found["tokens"][..., :count].astype(np.int64), -1)
    assert np.allclose(np.exp(told), values, rtol=1e-6)
    assert all(len(set(row)) == count for row in found["tokens"][..., :count].reshape(-1, count).tolist())
    assert np.isnan(found["probs"][..., count:]).all()
    assert (found["tokens"][..., count:] == -1).all()
    assert np.allclose(found["entropy"], -(logp.exp() * logp).sum(-1).numpy(), atol=1e-5)
    for row in range(2):
        for column in range(3):
            wanted = logp[row, column, following[row][column]].item() if following[row][column] >= 0 else np.nan
            assert np.array_equal(found["logprob"][row, column], wanted, equal_nan=True)
    assert last is not None
    assert torch.equal(last, logp[:, -1])


def test_tokens_that_are_ruled_out_add_nothing_to_the_entropy_and_unknown_logits_leave_it_unknown() -> None:
    logits = torch.full((1, 2, 64), -torch.inf)
    logits[0, 0, [3, 9]] = 1.0
    logits[0, 1] = torch.nan
    found, _ = read(logits, [[3, -1]])
    assert found["entropy"][0, 0] == pytest.approx(np.log(2), abs=1e-6)
    assert np.isnan(found["entropy"][0, 1])
    assert found["logprob"][0, 0] == pytest.approx(-np.log(2), abs=1e-6)
