"""`il.onnx`: inner activations of ONNX models as outputs; see `interlatent_live.agent_side.onnx`."""

from __future__ import annotations

from interlatent_live.agent_side.onnx import Exposed, NodeInfo, expose, nodes

__all__ = ["Exposed", "NodeInfo", "expose", "nodes"]
