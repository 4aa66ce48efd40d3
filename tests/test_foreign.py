"""Files that sparsify and SAELens wrote, against what those packages compute from them."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from interlatent_live.analyzer.dictionary import load
from interlatent_live.stream.errors import DictionaryError

GOLDENS = Path(__file__).parent / "golden" / "dictionaries"
KINDS = sorted(p.name for p in GOLDENS.iterdir() if p.is_dir())


def test_every_architecture_that_fits_has_a_golden() -> None:
    assert len(KINDS) == 17
    assert {json.loads((GOLDENS / kind / "golden.json").read_text())["package"] for kind in KINDS} == {"eai-sparsify", "sae-lens"}


@pytest.mark.parametrize("kind", KINDS)
def test_parity_with_the_package_that_wrote_it(kind: str) -> None:
    golden = json.loads((GOLDENS / kind / "golden.json").read_text())
    dictionary = load(GOLDENS / kind)
    x = torch.tensor(golden["x"])
    f = dictionary.encode_dense(x)
    np.testing.assert_allclose(f.numpy(), golden["features"], atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(dictionary.decode(f, x).numpy(), golden["y"], atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(dictionary.codes(x).dense(), golden["features"], atol=1e-5, rtol=1e-5)
    assert (dictionary.cfg.input == dictionary.cfg.output) is ("transcoder" not in kind and kind != "sparsify_skip")


def test_goldens_are_small() -> None:
    assert all(sum(f.stat().st_size for f in (GOLDENS / kind).iterdir()) < 16_000 for kind in KINDS)


@pytest.mark.parametrize("kind", ["saelens_transcoder", "sparsify_skip", "saelens_jumprelu"])
def test_it_becomes_a_native_artifact(kind: str, tmp_path: Path) -> None:
    dictionary = load(GOLDENS / kind)
    again = load(dictionary.save(tmp_path / "native"))
    assert again.hash == dictionary.hash
    assert again.cfg.provenance["format"].lower().startswith(kind.split("_")[0])


def test_hook_names_become_tap_points() -> None:
    assert load(GOLDENS / "saelens_flat_topk").cfg.input == "blocks.3.hook_resid_pre:out"
    assert load(GOLDENS / "sparsify_transcoder").cfg.input == "sparsify_transcoder:in"


@pytest.fixture
def copy(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    return Path(shutil.copytree(GOLDENS / request.param, tmp_path / "layers.3.mlp"))


def edit(folder: Path, **changes: Any) -> None:
    cfg = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps(cfg | changes))


@pytest.mark.parametrize(("copy", "changes", "message"), [
    ("sparsify_sae", {"activation": "groupmax"}, "groupmax"),
    ("sparsify_sae", {"num_latents": 17}, r"shape \(16, 6\).*\(17, 6\)"),
    ("sparsify_sae", {"num_latents": 0, "expansion_factor": 4}, r"\(24, 6\)"),
    ("sparsify_sae", {"d_in": 7}, "7"),
    ("sparsify_sae", {"d_in": "6"}, "d_in '6'"),
    ("sparsify_sae", {"k": 0}, "k 0"),
    ("sparsify_sae", {"k": 17}, "k is 17"),
    ("sparsify_sae", {"skip_connection": True}, "lacks W_skip"),
    ("sparsify_skip", {"skip_connection": False}, "has W_skip"),
    ("saelens_jumprelu", {"architecture": "gated"}, "gated"),
    ("saelens_jumprelu", {"architecture": "standard"}, "has threshold"),
    ("saelens_standard", {"architecture": "jumprelu"}, "lacks threshold"),
    ("saelens_standard", {"normalize_activations": "layer_norm"}, "layer_norm"),
    ("saelens_standard", {"d_sae": 15}, "15"),
    ("saelens_transcoder", {"d_out": 6}, r"W_dec has shape \(16, 5\)"),
    ("saelens_topk", {"k": None}, "needs k"),
    ("saelens_flat_standard", {"activation_fn_str": "tanh-relu"}, "tanh-relu"),
    ("saelens_flat_standard", {"finetuning_scaling_factor": True}, "finetuning"),
], indirect=["copy"])  # fmt: skip
def test_what_cannot_be_computed_or_lies_is_refused_by_name(copy: Path, changes: dict[str, Any], message: str) -> None:
    edit(copy, **changes)
    with pytest.raises(DictionaryError, match=message):
        load(copy)


@pytest.mark.parametrize("copy", ["sparsify_sae", "saelens_topk"], indirect=True)
def test_damage_is_a_dictionary_error(copy: Path) -> None:
    file = next(copy.glob("*.safetensors"))
    whole = file.read_bytes()
    for cut in (0, 7, 100, len(whole) - 1):
        file.write_bytes(whole[:cut])
        with pytest.raises(DictionaryError, match="not a whole safetensors"):
            load(copy)
    file.write_bytes(pickle.dumps({"W_dec": 1}))
    with pytest.raises(DictionaryError, match="safetensors"):
        load(copy)
    file.write_bytes(whole)
    tensors = load_file(file)
    name = next(iter(tensors))
    save_file(tensors | {name: tensors[name] * float("nan")}, file)
    with pytest.raises(DictionaryError, match="NaN"):
        load(copy)
    (copy / "cfg.json").write_text("[]")
    with pytest.raises(DictionaryError, match="list"):
        load(copy)


def test_a_folder_of_pickles_is_refused_unopened(tmp_path: Path) -> None:
    (tmp_path / "cfg.json").write_text("{}")
    (tmp_path / "ae.pt").write_bytes(b"not opened")
    with pytest.raises(DictionaryError, match=r"pickles \(ae.pt\)"):
        load(tmp_path)
