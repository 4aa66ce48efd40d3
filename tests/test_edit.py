"""Edits of features: what they change, and what they leave bit for bit."""

from __future__ import annotations

import pytest
import torch

from interlatent_live.analyzer.dictionary import Activation, Dictionary, DictionaryConfig
from interlatent_live.analyzer.edit import Edit, edited, feature_values
from interlatent_live.stream.errors import DictionaryError


def made(activation: Activation = "relu") -> Dictionary:
    torch.manual_seed(1)
    cfg = DictionaryConfig("d", activation, 6, 5, 8, "0:in", "0:out", k=3 if activation == "topk" else None)
    tensors = {"W_enc": torch.randn(6, 8), "b_enc": torch.randn(8) / 4, "W_dec": torch.randn(8, 5), "b_dec": torch.randn(5)}
    if activation in ("jumprelu", "batchtopk"):
        tensors["threshold"] = torch.full((8,), 0.5)
    return Dictionary(cfg, tensors)


@pytest.mark.parametrize("activation", ["relu", "topk", "jumprelu", "batchtopk"])
def test_an_edit_moves_the_output_by_decoder_columns_and_nothing_else(activation: Activation) -> None:
    d = made(activation)
    x, y = torch.randn(50, 6), torch.randn(50, 5)
    f = d.encode_dense(x)
    assert torch.allclose(feature_values(d, x, [2, 5]), f[:, [2, 5]], atol=1e-6)
    for edit, want in (
        (Edit("ablate", feature=2), torch.zeros(50)),
        (Edit("scale", 1.5, feature=2), 1.5 * f[:, 2]),
        (Edit("clamp", 3.0, feature=2), torch.full((50,), 3.0)),
        (Edit("add", -0.5, feature=2), (f[:, 2] - 0.5).clamp(min=0)),
    ):
        after = edited(d, [edit], x, y)
        assert torch.allclose(after - y, (want - f[:, 2])[:, None] * d.W_dec[2], atol=1e-5)
        idle = f[:, 2] == 0
        if edit.operation in ("ablate", "scale"):
            assert idle.any()
            assert torch.equal(after[idle], y[idle])
    both = edited(d, [Edit("scale", 2.0, feature=2), Edit("ablate", feature=5)], x, y)
    assert torch.allclose(both - y, f[:, 2:3] * d.W_dec[2] - f[:, 5:6] * d.W_dec[5], atol=1e-5)


def test_a_no_op_is_exactly_a_no_op() -> None:
    d = made()
    x, y = torch.randn(1000, 6), torch.randn(1000, 5)
    for edits in ([], [Edit("scale", 1.0, feature=3)], [Edit("add", 0.0, feature=3)], [Edit("add", 0.0, direction=(1.0,) * 5)]):
        assert torch.equal(edited(d, edits, x, y), y)


def test_a_direction_is_added_in_the_activations_units() -> None:
    d = made()
    x, y = torch.randn(3, 6), torch.zeros(3, 5)
    assert torch.equal(edited(d, [Edit("add", 2.0, direction=(1.0, 0, 0, 0, -1.0))], x, y), torch.tensor([[2.0, 0, 0, 0, -2.0]] * 3))


def test_edits_that_make_no_sense_are_refused() -> None:
    d = made()
    with pytest.raises(DictionaryError, match="one of ablate, scale, clamp, add"):
        Edit("double", feature=1)  # type: ignore[arg-type]
    with pytest.raises(DictionaryError, match="finite"):
        Edit("scale", float("nan"), feature=1)
    with pytest.raises(DictionaryError, match="one of the two"):
        Edit("ablate")
    with pytest.raises(DictionaryError, match="can only be added"):
        Edit("scale", 1.0, direction=(1.0,))
    with pytest.raises(DictionaryError, match="0 to 7"):
        Edit("ablate", feature=8).check(d)
    with pytest.raises(DictionaryError, match="1 numbers, but 0:out 5"):
        Edit("add", 1.0, direction=(1.0,)).check(d)
