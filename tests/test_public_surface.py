"""`import interlatent_live`: what it offers, and that it stays light."""

from __future__ import annotations

import subprocess
import sys

import pytest

import interlatent_live as il


def test_public_names() -> None:
    names = ["Metric", "Run", "SteeringPolicy", "Tap", "Transition", "Why", "__version__", "onnx", "open", "points", "tokens", "watch"]
    assert sorted(il.__all__) == names
    for name in il.__all__:
        assert getattr(il, name) is not None
        assert name in dir(il)


def test_version_is_that_of_the_distribution() -> None:
    assert il.__version__.count(".") >= 2


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Tapp'"):
        il.Tapp  # type: ignore[attr-defined]  # noqa: B018


def test_importing_is_light() -> None:
    heavy = "{'torch', 'gymnasium', 'numpy', 'zmq'}"
    code = f"import sys, interlatent_live as il; il.Metric, il.Transition; assert not {heavy} - {{'numpy'}} & set(sys.modules), sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_tap_without_a_model_imports_no_torch() -> None:
    code = (
        "import sys, interlatent_live as il\n"
        "with il.Tap(None, run='arrays', endpoint='') as tap:\n"
        "    tap.step(metrics={'a': 1.0}, reward=1.0)\n"
        "assert tap.frames == 1\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
