from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from interlatent_live.analyzer.dictionary import Dictionary, DictionaryConfig
from interlatent_live.analyzer.features import (
    DictionaryFeatures,
    Encoded,
    FeatureSource,
    NeuronFeatures,
    use_one_thread,
)
from interlatent_live.stream.errors import DictionaryError
from interlatent_live.stream.frames import BASE_COLUMNS, FrameBatch
from interlatent_live.stream.manifest import Manifest, TapPointSpec

Array = npt.NDArray[Any]


def batch(
    activations: Mapping[str, Array],
    rows: int | None = None,
    present: Mapping[str, Array] | None = None,
    first_seq: int = 0,
) -> FrameBatch:
    count = len(next(iter(activations.values()))) if rows is None else rows
    columns = {name: np.arange(count).astype(dtype) for name, dtype in BASE_COLUMNS.items()}
    return FrameBatch("r", "b", "m", first_seq, 0, columns, activations, present or {})


def manifest(**dtypes: str) -> Manifest:
    points = tuple(TapPointSpec(name.replace("_", ":"), dtype, (4,)) for name, dtype in dtypes.items())
    return Manifest("r", "b", 0, 0, tap_points=points)


def encode(source: FeatureSource, activations: Array, chunks: int = 32, point: str = "p") -> tuple[Array, Array]:
    """Dense features and the indices of the rows encoded, over many batches."""
    dense, rows = [], []
    for begin in range(0, len(activations), chunks):
        encoded = source.encode(batch({point: activations[begin : begin + chunks]}, first_seq=begin), manifest())
        assert encoded is not None
        dense.append(encoded.codes.dense())
        rows.append(encoded.rows + begin)
    return np.concatenate(dense), np.concatenate(rows)


def transcoder(source: str = "x", target: str = "y") -> Dictionary:
    generator = torch.Generator().manual_seed(0)
    width = 4 if source == target else 3
    tensors = {
        "W_enc": torch.randn(4, 8, generator=generator),
        "b_enc": torch.zeros(8),
        "W_dec": torch.randn(8, width, generator=generator),
        "b_dec": torch.zeros(width),
        "mean_out": torch.zeros(width),
    }
    return Dictionary(DictionaryConfig("t", "topk", 4, width, 8, source, target, k=2), tensors)


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_neurons_are_active_beyond_1_5_sigma_of_the_running_median() -> None:
    x = normal(4000, 6) * np.array([1, 10, 0.01, 1, 1, 1], np.float32) + np.array([0, 50, -3, 0, 0, 0], np.float32)
    dense, rows = encode(NeuronFeatures("p", 6), x)
    assert rows[0] == 64
    late = dense[-2000:]
    z = (x - np.median(x, axis=0)) / x.std(axis=0)
    assert np.abs((np.abs(z[-2000:]) > 1.5) == (late != 0)).mean() > 0.95
    shown = late != 0
    np.testing.assert_allclose(late[shown], z[-2000:][shown], atol=0.5)
    assert {-1.0, 1.0} == set(np.sign(late[shown]).tolist())
    assert np.abs(late[shown]).min() > 1.5


def test_before_the_warm_up_rows_are_missing_not_inactive() -> None:
    source = NeuronFeatures("p", 3)
    for begin in range(0, 64, 16):
        encoded = source.encode(batch({"p": normal(16, 3, seed=begin)}), manifest())
        assert encoded is not None
        assert len(encoded.rows) == encoded.codes.rows == 0
    encoded = source.encode(batch({"p": normal(16, 3, seed=9)}), manifest())
    assert encoded is not None
    assert len(encoded.rows) == 16


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, -1e30, 1e-30])
def test_a_constant_neuron_is_never_active(value: float) -> None:
    x = normal(1000, 2)
    x[:, 1] = value
    dense, _ = encode(NeuronFeatures("p", 2), x)
    assert not dense[:, 1].any()
    assert dense[:, 0].any()


def test_a_neuron_near_the_end_of_float32_gives_finite_features() -> None:
    x = normal(500, 2)
    x[:, 0] = np.where(np.arange(500) % 3 == 0, 3e38, -3e38)
    x[:, 1] = np.where(np.arange(500) == 400, 3e38, 0)
    dense, _ = encode(NeuronFeatures("p", 2), x)
    assert np.isfinite(dense).all()


def test_neurons_follow_the_batches_and_nothing_else() -> None:
    x = normal(3000, 5)
    first, _ = encode(NeuronFeatures("p", 5), x, 7)
    again, _ = encode(NeuronFeatures("p", 5), x, 7)
    np.testing.assert_array_equal(first, again)
    assert NeuronFeatures("p", 5).hash == NeuronFeatures("p", 5).hash != NeuronFeatures("p", 6).hash


@pytest.mark.parametrize("chunks", [1, 33, 5000, 40_000])
def test_the_sample_spans_the_past_evenly_at_any_batch_size(chunks: int) -> None:
    rows = 40_000 if chunks > 1 else 2000
    source = NeuronFeatures("p", 1)
    numbers = np.arange(rows, dtype=np.float32)[:, None]
    for begin in range(0, rows, chunks):
        source.encode(batch({"p": numbers[begin : begin + chunks]}), manifest())
    held = np.sort(source._sample[0, : source._held])
    assert 256 <= len(held) <= 512
    stride = source._stride
    np.testing.assert_array_equal(np.diff(held), np.full(len(held) - 1, stride))
    assert rows - held[-1] <= stride
    assert stride == (32 if rows == 40_000 else 4)
    if rows == 2000:
        assert held[0] == 0


def test_neurons_beyond_the_limit_are_refused() -> None:
    for size in (0, 1 << 17):
        with pytest.raises(DictionaryError, match="neurons"):
            NeuronFeatures("p", size)
    with pytest.raises(DictionaryError, match="values a frame"):
        NeuronFeatures("p", 3).encode(batch({"p": normal(4, 2)}), manifest())


def both(source: Dictionary, given: FrameBatch) -> Encoded:
    encoded = DictionaryFeatures(source).encode(given, manifest())
    assert encoded is not None
    return encoded


def test_a_dictionary_gives_codes_and_error_sums_of_the_batch() -> None:
    dictionary, x, y = transcoder(), normal(9, 2, 2), normal(9, 3, seed=1)
    encoded = both(dictionary, batch({"x": x, "y": y}))
    codes, sse, sst = dictionary.measure(x.reshape(9, 4), y)
    assert encoded.codes.to_blob() == codes.to_blob()
    assert (encoded.sse, encoded.sst, encoded.non_finite) == (sse, sst, 0)
    assert encoded.rows.tolist() == list(range(9))


def test_non_finite_rows_are_refused_and_counted() -> None:
    x, y = normal(6, 4), normal(6, 3)
    x[1, 2], y[4, 0] = np.nan, np.inf
    encoded = both(transcoder(), batch({"x": x, "y": y}))
    assert encoded.rows.tolist() == [0, 2, 3, 5]
    assert encoded.non_finite == 2
    keep = [0, 2, 3, 5]
    assert encoded.codes.to_blob() == transcoder().codes(x[keep]).to_blob()
    neurons = NeuronFeatures("x", 4).encode(batch({"x": x}), manifest())
    assert neurons is not None
    assert neurons.non_finite == 1


def test_rows_without_a_forward_are_missing() -> None:
    x, y = normal(3, 4), normal(2, 3)
    present = {"x": np.array([0, 2, 5], np.int32), "y": np.array([2, 5], np.int32)}
    encoded = both(transcoder(), batch({"x": x, "y": y}, 6, present))
    assert encoded.rows.tolist() == [2, 5]
    assert encoded.codes.to_blob() == transcoder().codes(x[1:]).to_blob()


def test_without_the_output_there_are_codes_but_no_error() -> None:
    x = normal(5, 4)
    encoded = both(transcoder(), batch({"x": x}))
    assert (encoded.sse, encoded.sst) == (None, None)
    assert encoded.codes.rows == 5
    assert DictionaryFeatures(transcoder()).encode(batch({"y": normal(5, 3)}), manifest()) is None
    assert NeuronFeatures("x", 4).encode(batch({"y": normal(5, 3)}), manifest()) is None


def test_an_sae_needs_its_one_point() -> None:
    source = DictionaryFeatures(transcoder("x", "x"))
    assert source.inputs == ("x",)
    encoded = source.encode(batch({"x": normal(5, 4)}), manifest())
    assert encoded is not None
    assert encoded.sse is not None


def test_half_precision_arrives_as_float32() -> None:
    x = normal(8, 4).astype(np.float16)
    assert both(transcoder(), batch({"x": x})).codes.to_blob() == transcoder().codes(x.astype(np.float32)).to_blob()
    bits = (torch.from_numpy(normal(8, 4)).to(torch.bfloat16)).view(torch.uint16).numpy()
    expected = torch.from_numpy(bits).view(torch.bfloat16).float().numpy()
    encoded = DictionaryFeatures(transcoder()).encode(batch({"x": bits}), manifest(x="bfloat16"))
    assert encoded is not None
    assert encoded.codes.to_blob() == transcoder().codes(expected).to_blob()
    with pytest.raises(DictionaryError, match="bfloat16"):
        DictionaryFeatures(transcoder()).encode(batch({"x": bits}), manifest(x="float32"))


def test_one_thread() -> None:
    use_one_thread()
    assert torch.get_num_threads() == 1
