"""ONNX models with more outputs, run by the real runtime."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.tap_samples import Recorded

import interlatent_live as il
from interlatent_live.agent_side.tap import Tap
from interlatent_live.stream.errors import TapError, UnknownTapPoint

Array = np.ndarray[Any, Any]


def actor(path: Path, *, external: bool = False) -> Path:
    """A policy as exporters write it: obs (n, 4) → /actor/0 Gemm → /actor/1 Elu → /actor/2 Gemm → /actor/3 Tanh → action (n, 2)."""
    generator = np.random.default_rng(0)
    weights = {"w0": (4, 8), "b0": (8,), "w2": (8, 2), "b2": (2,)}
    initializers = [numpy_helper.from_array(generator.normal(size=shape).astype(np.float32), name) for name, shape in weights.items()]
    graph = helper.make_graph(
        [
            helper.make_node("Gemm", ["obs", "w0", "b0"], ["/actor/0/Gemm_output_0"], name="/actor/0/Gemm"),
            helper.make_node("Elu", ["/actor/0/Gemm_output_0"], ["/actor/1/Elu_output_0"], name="/actor/1/Elu"),
            helper.make_node("Gemm", ["/actor/1/Elu_output_0", "w2", "b2"], ["/actor/2/Gemm_output_0"], name="/actor/2/Gemm"),
            helper.make_node("Tanh", ["/actor/2/Gemm_output_0"], ["action"]),
        ],
        "actor",
        [helper.make_tensor_value_info("obs", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("action", TensorProto.FLOAT, ["n", 2])],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 10
    if external:
        onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    else:
        onnx.save(model, path)
    return path


def run(path: Path, given: Array) -> dict[str, Array]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"obs": given}), strict=True))


def by_hand(path: Path, given: Array) -> tuple[Array, Array, Array]:
    w = {one.name: numpy_helper.to_array(one) for one in onnx.load(path).graph.initializer}
    first = given @ w["w0"] + w["b0"]
    hidden = np.where(first > 0, first, np.expm1(first))
    return first, hidden, np.tanh(hidden @ w["w2"] + w["b2"])


OBS = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)


def test_outputs_are_added_and_those_there_stay_equal(tmp_path: Path) -> None:
    path = actor(tmp_path / "policy.onnx")
    found = il.onnx.expose(path, ["/actor/1", "/actor/0/Gemm", "/actor/2/Gemm_output_0"], out=tmp_path / "policy-tapped.onnx")
    assert [(one.name, one.output) for one in found] == [
        ("/actor/1", "/actor/1/Elu_output_0"),
        ("/actor/0/Gemm", "/actor/0/Gemm_output_0"),
        ("/actor/2/Gemm_output_0", "/actor/2/Gemm_output_0"),
    ]
    before, after = run(path, OBS), run(tmp_path / "policy-tapped.onnx", OBS)
    assert list(after) == ["action", *(one.output for one in found)]
    assert np.array_equal(before["action"], after["action"])
    first, hidden, action = by_hand(path, OBS)
    np.testing.assert_allclose(after["/actor/0/Gemm_output_0"], first, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(after["/actor/1/Elu_output_0"], hidden, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(after["action"], action, rtol=1e-5, atol=1e-6)
    onnx.checker.check_model(onnx.load(tmp_path / "policy-tapped.onnx"))


def test_patterns_defaults_and_what_is_an_output_already(tmp_path: Path) -> None:
    path = actor(tmp_path / "policy.onnx")
    found = il.onnx.expose(str(path), "/actor/*")
    assert [one.name for one in found] == ["/actor/0/Gemm", "/actor/1/Elu", "/actor/2/Gemm"]
    assert list(run(tmp_path / "policy-tapped.onnx", OBS)) == ["action", *(one.output for one in found)]
    (again,) = il.onnx.expose(path, "action", out=tmp_path / "same.onnx")
    assert again.output == "action"
    assert list(run(tmp_path / "same.onnx", OBS)) == ["action"]


def test_nodes_are_listed_in_order_with_shapes(tmp_path: Path) -> None:
    listed = il.onnx.nodes(actor(tmp_path / "policy.onnx"))
    assert [(n.name, n.op, n.shape, n.exposed) for n in listed] == [
        ("/actor/0/Gemm", "Gemm", ("n", 8), False),
        ("/actor/1/Elu", "Elu", ("n", 8), False),
        ("/actor/2/Gemm", "Gemm", ("n", 2), False),
        ("action", "Tanh", ("n", 2), True),
    ]


def test_an_unknown_name_lists_close_ones(tmp_path: Path) -> None:
    path = actor(tmp_path / "policy.onnx")
    with pytest.raises(UnknownTapPoint, match=r"no node or tensor '/actor/1/Relu' in policy.onnx; close: /actor/1/Elu.*lists all 4"):
        il.onnx.expose(path, ["/actor/1/Relu"])
    with pytest.raises(UnknownTapPoint, match=r"close: .*/actor/1/Elu"):
        il.onnx.expose(path, ["elu"])
    with pytest.raises(TapError, match="no node is named"):
        il.onnx.expose(path, [])
    assert not (tmp_path / "policy-tapped.onnx").exists()


def test_nothing_is_overwritten_unasked(tmp_path: Path) -> None:
    path = actor(tmp_path / "policy.onnx")
    il.onnx.expose(path, "/actor/1")
    with pytest.raises(TapError, match="overwrite=True"):
        il.onnx.expose(path, "/actor/0")
    with pytest.raises(TapError, match=r"name another$"):
        il.onnx.expose(path, "/actor/0", out=path, overwrite=True)
    il.onnx.expose(path, "/actor/0", overwrite=True)
    assert list(run(tmp_path / "policy-tapped.onnx", OBS)) == ["action", "/actor/0/Gemm_output_0"]
    assert {p.name for p in tmp_path.iterdir()} == {"policy.onnx", "policy-tapped.onnx"}


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TapError, match="cannot be read: No such file"):
        il.onnx.nodes(tmp_path / "none.onnx")
    for content in (b"", b"not a model" * 100):
        (tmp_path / "bad.onnx").write_bytes(content)
        with pytest.raises(TapError, match="is no ONNX model"):
            il.onnx.nodes(tmp_path / "bad.onnx")
    path = actor(tmp_path / "policy.onnx")
    with pytest.raises(TapError, match="cannot be written: No such file"):
        il.onnx.expose(path, "/actor/1", out=tmp_path / "nowhere" / "a.onnx")


def test_weights_in_a_file_of_their_own_stay_where_they_are(tmp_path: Path) -> None:
    path = actor(tmp_path / "policy.onnx", external=True)
    size = (tmp_path / "weights.bin").stat().st_size
    il.onnx.expose(path, "/actor/1")
    assert (tmp_path / "policy-tapped.onnx").stat().st_size < size + 2000
    assert np.array_equal(run(path, OBS)["action"], run(tmp_path / "policy-tapped.onnx", OBS)["action"])
    (tmp_path / "other").mkdir()
    with pytest.raises(TapError, match="write the copy into"):
        il.onnx.expose(path, "/actor/1", out=tmp_path / "other" / "policy.onnx")


def test_a_controller_is_tapped_from_end_to_end(tmp_path: Path) -> None:
    (exposed,) = il.onnx.expose(actor(tmp_path / "policy.onnx"), "/actor/1")
    session = onnxruntime.InferenceSession(tmp_path / "policy-tapped.onnx", providers=["CPUExecutionProvider"])
    hidden = []
    with Tap(None, run="g1", record=tmp_path / "run.mcap", endpoint="") as tap:
        for i in range(50):
            observation = OBS[:1] * i
            action, inner = session.run(["action", exposed.output], {"obs": observation})
            hidden.append(inner)
            tap.step(activations={exposed.name: inner}, observation=observation[0], action=action[0], stamp_ns=20_000_000 * i)
    recorded = Recorded(tmp_path / "run.mcap")
    assert recorded.activations("/actor/1").tobytes() == np.concatenate(hidden).tobytes()
    assert recorded.manifest.tap_points[0].shape == (8,)
    assert recorded.manifest.weights == "none"
    assert np.diff(recorded.column("monotonic_ns")).tolist() == [20_000_000] * 49


def test_the_package_is_needed_for_making_the_copy_only() -> None:
    code = "import sys; sys.modules['onnx'] = None; import interlatent_live as il; il.onnx.nodes('a.onnx')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert "pip install 'interlatent-live[onnx]'" in done.stderr
