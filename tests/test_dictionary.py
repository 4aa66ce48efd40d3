from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from interlatent_live.analyzer.dictionary import Activation, Dictionary, DictionaryConfig, load
from interlatent_live.stream.errors import DictionaryError

ACTIVATIONS: tuple[Activation, ...] = ("topk", "batchtopk", "relu", "jumprelu")


def make(activation: Activation = "topk", *, skip: bool = False, seed: int = 0, **changes: Any) -> Dictionary:
    generator = torch.Generator().manual_seed(seed)
    d_in, d_out, features = 12, 7, 40

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    tensors = {
        "W_enc": normal(d_in, features),
        "b_enc": normal(features),
        "W_dec": normal(features, d_out),
        "b_dec": normal(d_out),
        "mean_out": normal(d_out),
    }
    if skip:
        tensors["W_skip"] = normal(d_in, d_out)
    if activation == "jumprelu":
        tensors["threshold"] = normal(features)  # negative ones too: they must not let a negative value through
    if activation == "batchtopk":
        tensors["threshold"] = torch.tensor(1.5)
    k = 5 if activation in ("topk", "batchtopk") else None
    given: dict[str, Any] = {"name": "test", "input": "1:out", "output": "3:out", "k": k, "model_hash": "abc"} | changes
    cfg = DictionaryConfig(activation=activation, d_in=d_in, d_out=d_out, features=features, skip=skip, **given)
    return Dictionary(cfg, tensors)


def oracle(dictionary: Dictionary, x: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Dense float64 features and reconstruction, written from the module's docstring."""
    t = {name: tensor.numpy().astype(np.float64) for name, tensor in dictionary.tensors.items()}
    pre = x @ t["W_enc"] + t["b_enc"]
    f = np.maximum(pre, 0)
    if dictionary.cfg.activation == "topk":
        k = dictionary.cfg.k
        assert k is not None
        f[pre < np.sort(pre, axis=1)[:, -k][:, None]] = 0
    elif "threshold" in t:
        f[pre <= t["threshold"]] = 0
    y = f @ t["W_dec"] + t["b_dec"]
    return f, y + x @ t["W_skip"] if dictionary.cfg.skip else y


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@settings(max_examples=15, deadline=None)
@given(st.integers(0, 33), st.integers(0, 99))
def test_encoding_and_decoding_equal_a_dense_oracle(activation: Activation, skip: bool, rows: int, seed: int) -> None:
    dictionary = make(activation, skip=skip, seed=seed)
    x = np.random.default_rng(seed).normal(size=(rows, 12)).astype(np.float32)
    f, y = oracle(dictionary, x.astype(np.float64))
    inputs = torch.from_numpy(x)
    codes = dictionary.codes(x)
    np.testing.assert_allclose(codes.dense(), f, atol=1e-4)
    assert (np.diff(codes.indices.astype(int))[np.diff(codes.row_index) == 0] > 0).all()
    np.testing.assert_allclose(dictionary.encode_dense(inputs).numpy(), f, atol=1e-4)
    indices, values = dictionary.encode(inputs)
    dense = torch.zeros(rows, 40).scatter_add(1, indices, values)
    np.testing.assert_allclose(dense.numpy(), f, atol=1e-4)
    for decoded in (
        dictionary.decode(dense, inputs),
        dictionary.decode_sparse(indices, values, inputs),
        dictionary.decode_codes(codes, inputs),
    ):
        np.testing.assert_allclose(decoded.numpy(), y, atol=1e-3)


def test_topk_with_fewer_than_k_positive_keeps_only_the_positive() -> None:
    dictionary = make()
    tensors = dict(dictionary.tensors) | {"b_enc": torch.full((40,), -1e3)}
    codes = Dictionary(dictionary.cfg, tensors).codes(np.zeros((3, 12), np.float32))
    assert codes.active == 0
    assert codes.rows == 3


def test_error_sums_pool_over_batches_of_one_row() -> None:
    dictionary = make()
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(50, 12)).astype(np.float32), rng.normal(size=(50, 7)).astype(np.float32)
    _, expected = oracle(dictionary, x.astype(np.float64))
    mean = dictionary.tensors["mean_out"].numpy().astype(np.float64)
    _, sse, sst = dictionary.measure(x, y)
    assert sse == pytest.approx(float(((y - expected) ** 2).sum()), rel=1e-5)
    assert sst == pytest.approx(float(((y - mean) ** 2).sum()), rel=1e-6)
    single = [dictionary.measure(x[i : i + 1], y[i : i + 1]) for i in range(50)]
    assert sum(s[1] for s in single) == pytest.approx(sse, rel=1e-6)


def test_without_a_mean_there_is_no_sst() -> None:
    dictionary = make()
    tensors = {name: t for name, t in dictionary.tensors.items() if name != "mean_out"}
    x, y = np.ones((2, 12), np.float32), np.ones((2, 7), np.float32)
    assert Dictionary(dictionary.cfg, tensors).measure(x, y)[2] is None


def test_read_only_arrays_are_fine_and_the_same_batch_gives_the_same_bits() -> None:
    dictionary = make()
    x = np.frombuffer(np.random.default_rng(0).normal(size=(64, 12)).astype("<f4").tobytes(), "<f4").reshape(64, 12)
    assert dictionary.codes(x).to_blob() == dictionary.codes(x).to_blob()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_artifact_round_trip(activation: Activation, tmp_path: Path) -> None:
    dictionary = make(activation, skip=True, provenance={"seed": 3})
    dictionary = dictionary.with_card({"hash": dictionary.hash, "fvu": 0.01})
    dictionary.save(tmp_path / "deep" / "d")
    again = load(tmp_path / "deep" / "d")
    assert (again.hash, again.cfg) == (dictionary.hash, dictionary.cfg)
    assert again.card == {"hash": dictionary.hash, "fvu": 0.01}
    x = np.random.default_rng(0).normal(size=(9, 12)).astype(np.float32)
    assert again.codes(x).to_blob() == dictionary.codes(x).to_blob()
    assert sorted(p.name for p in (tmp_path / "deep").iterdir()) == ["d"]
    assert load(tmp_path / "deep" / "d" / "cfg.json").hash == again.hash


def test_the_hash_changes_with_every_tensor_and_every_field() -> None:
    dictionary = make("batchtopk", skip=True)
    seen = {dictionary.hash}
    for name, tensor in dictionary.tensors.items():
        changed = tensor.clone()
        changed.view(-1)[0] += 1e-3
        seen.add(Dictionary(dictionary.cfg, dict(dictionary.tensors) | {name: changed}).hash)
    changes: list[dict[str, Any]] = [
        {"name": "other"}, {"input": "0:out"}, {"output": "4:out"},
        {"k": 6}, {"model_hash": "x"}, {"provenance": {"a": 1}},
    ]
    seen.update(make("batchtopk", skip=True, **change).hash for change in changes)
    assert len(seen) == 1 + len(dictionary.tensors) + len(changes)
    assert make("batchtopk", skip=True).hash == dictionary.hash


def test_an_existing_artifact_is_replaced_only_when_asked(tmp_path: Path) -> None:
    make().save(tmp_path / "d")
    with pytest.raises(DictionaryError, match="exists"):
        make(seed=1).save(tmp_path / "d")
    assert load(tmp_path / "d").hash == make().hash
    make(seed=1).save(tmp_path / "d", overwrite=True)
    assert load(tmp_path / "d").hash == make(seed=1).hash
    assert [p.name for p in tmp_path.iterdir()] == ["d"]


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(DictionaryError, match="No space left"):
        make().save(tmp_path / "d")
    assert list(tmp_path.iterdir()) == []


def edit_cfg(path: Path, **changes: Any) -> None:
    data = json.loads((path / "cfg.json").read_text())
    (path / "cfg.json").write_text(json.dumps(data | changes))


@pytest.mark.parametrize(("changes", "message"), [
    ({"d_in": 13}, "W_enc has shape"),
    ({"features": 41}, "W_enc has shape|shape"),
    ({"d_out": 6}, "shape"),
    ({"skip": True}, "lacks tensor"),
    ({"activation": "jumprelu"}, "lacks tensor"),
    ({"activation": "gelu"}, "activation is 'gelu'"),
    ({"k": None}, "needs k"),
    ({"k": 0}, "k is 0"),
    ({"k": 41}, "k is 41"),
    ({"k": True}, "k is True"),
    ({"d_in": "12"}, "d_in is '12'"),
    ({"d_in": 1 << 40}, "d_in is"),
    ({"skip": "yes"}, "skip is 'yes'"),
    ({"input": ""}, "tap points"),
    ({"name": 3}, "name is 3"),
    ({"provenance": 3}, "provenance"),
    ({"format": "interlatent-dictionary/2"}, "format"),
    ({"extra": 1}, "unknown key"),
])
def test_a_cfg_that_lies_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = make().save(tmp_path / "d")
    edit_cfg(path, **changes)
    with pytest.raises(DictionaryError, match=message):
        load(path)


@pytest.mark.parametrize("text", ["", "[]", "3", "{", '{"format": NaN}', "null", "[" * 100_000])
def test_a_cfg_that_is_no_cfg_is_refused(text: str, tmp_path: Path) -> None:
    path = make().save(tmp_path / "d")
    (path / "cfg.json").write_text(text)
    with pytest.raises(DictionaryError):
        load(path)


def test_a_cfg_without_a_required_key_is_refused(tmp_path: Path) -> None:
    path = make().save(tmp_path / "d")
    data = json.loads((path / "cfg.json").read_text())
    del data["features"]
    (path / "cfg.json").write_text(json.dumps(data))
    with pytest.raises(DictionaryError, match="lacks features"):
        load(path)


@pytest.mark.parametrize("keep", [0, 4, 8, 100, -1])
def test_a_truncated_safetensors_is_refused(keep: int, tmp_path: Path) -> None:
    path = make().save(tmp_path / "d")
    whole = (path / "dictionary.safetensors").read_bytes()
    (path / "dictionary.safetensors").write_bytes(whole[:keep])
    with pytest.raises(DictionaryError, match="safetensors"):
        load(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_tensors_are_refused(value: float, tmp_path: Path) -> None:
    path = make().save(tmp_path / "d")
    tensors = load_file(path / "dictionary.safetensors")
    tensors["W_dec"][3, 2] = value
    save_file(tensors, path / "dictionary.safetensors")
    with pytest.raises(DictionaryError, match="W_dec has 1 NaN"):
        load(path)


def test_integers_and_unknown_tensors_are_refused(tmp_path: Path) -> None:
    path = make().save(tmp_path / "d")
    tensors = load_file(path / "dictionary.safetensors")
    save_file(tensors | {"b_enc": tensors["b_enc"].to(torch.int32)}, path / "dictionary.safetensors")
    with pytest.raises(DictionaryError, match="b_enc has dtype I32"):
        load(path)
    save_file(tensors | {"W_more": torch.zeros(2)}, path / "dictionary.safetensors")
    with pytest.raises(DictionaryError, match="W_more"):
        load(path)


def test_half_precision_tensors_are_read_as_float32(tmp_path: Path) -> None:
    path = make().save(tmp_path / "d")
    tensors = {n: t.to(torch.bfloat16) for n, t in load_file(path / "dictionary.safetensors").items()}
    save_file(tensors, path / "dictionary.safetensors")
    assert load(path).W_enc.dtype == torch.float32


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["dictionary.safetensors", "cfg.json", "card.json"]), st.data())
def test_a_damaged_file_is_refused_or_loads_as_another_dictionary(tmp_path: Path, name: str, data: st.DataObject) -> None:
    made = make().with_card({"hash": make().hash})
    path = made.save(tmp_path / "d", overwrite=True)
    content = bytearray((path / name).read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        # most of a safetensors file is numbers; its head is what a parser can trip over
        content[data.draw(st.integers(0, min(len(content), 700) - 1))] = data.draw(st.integers(0, 255))
    (path / name).write_bytes(content[: data.draw(st.sampled_from([len(content), len(content) - 1, 300]))])
    try:
        again = load(path)
    except DictionaryError:
        return
    assert again.hash == made.hash  # the card's word for it


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("a pickle was opened",))


def test_a_pickle_is_refused_unopened(tmp_path: Path) -> None:
    (tmp_path / "d.pt").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(DictionaryError, match="pickle"):
        load(tmp_path / "d.pt")
    path = make().save(tmp_path / "d")
    (path / "dictionary.safetensors").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(DictionaryError, match="safetensors"):
        load(path)


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(DictionaryError, match="no dictionary at"):
        load(tmp_path / "nowhere")
    with pytest.raises(DictionaryError, match="no dictionary at"):
        load(tmp_path)


def test_a_card_of_another_dictionary_is_refused(tmp_path: Path) -> None:
    path = make().save(tmp_path / "d")
    (path / "card.json").write_text(json.dumps({"hash": "0" * 64}))
    with pytest.raises(DictionaryError, match="card"):
        load(path)
    (path / "card.json").write_text("[]")
    with pytest.raises(DictionaryError, match="list"):
        load(path)


def test_a_card_with_nan_is_not_written(tmp_path: Path) -> None:
    dictionary = make()
    with pytest.raises(DictionaryError, match="null"):
        dictionary.with_card({"hash": dictionary.hash, "fvu": float("nan")}).save(tmp_path / "d")
    assert list(tmp_path.iterdir()) == []


def test_wrong_width_names_both() -> None:
    with pytest.raises(DictionaryError, match="width 12 at 1:out"):
        make().codes(np.zeros((2, 13), np.float32))


def test_decoding_with_a_skip_needs_the_input() -> None:
    dictionary = make(skip=True)
    with pytest.raises(DictionaryError, match="skip"):
        dictionary.decode(torch.zeros(1, 40))
