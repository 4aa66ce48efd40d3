"""What the tests of steering share: a small policy with its dictionary, and a tap that allows steering."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from tests.tap_samples import mlp
from torch import nn

import interlatent_live as il
from interlatent_live.agent_side.tap import Tap
from interlatent_live.agent_side.weights import weights_hash
from interlatent_live.analyzer.dictionary import Activation, Dictionary, DictionaryConfig

__all__ = ["OBSERVATION", "dictionary_of", "drive", "make", "quiet"]

OBSERVATION = np.array([0.3, -0.2, 0.5, 0.1], np.float32)


def dictionary_of(
    model: nn.Module, width: int = 8, features: int = 6, activation: Activation = "relu", *, points: tuple[str, str] = ("1:out", "3:out")
) -> Dictionary:
    """Random, but of this model, and with every feature active on most inputs."""
    generator = torch.Generator().manual_seed(3)
    cfg = DictionaryConfig(
        "small", activation, width, width, features, *points, k=3 if activation == "topk" else None, model_hash=weights_hash(model)
    )
    tensors = {
        "W_enc": torch.randn(width, features, generator=generator),
        "b_enc": torch.full((features,), 4.0),
        "W_dec": torch.randn(features, width, generator=generator),
        "b_dec": torch.zeros(width),
    }
    if activation in ("jumprelu", "batchtopk"):
        tensors["threshold"] = torch.full((features,), 0.1)
    return Dictionary(cfg, tensors)


def quiet(**options: Any) -> il.SteeringPolicy:
    """A policy without a socket and without measurements."""
    return il.SteeringPolicy(**{"control": "", "effect_hz": 0, "max_change": 1e9, **options})


def make(
    policy: il.SteeringPolicy | None = None, *, points: Sequence[str] = ("1:out", "3:out"), **options: Any
) -> tuple[nn.Sequential, Dictionary, Tap]:
    """A model, its dictionary, and a tap that is not open yet."""
    model = mlp().eval()
    dictionary = dictionary_of(model)
    chosen = quiet(dictionaries=[dictionary]) if policy is None else policy
    return model, dictionary, il.Tap(model, points, **{"run": "steered", "endpoint": "", "steering": chosen, **options})


def drive(model: nn.Module, tap: Tap, steps: int = 1, observation: Any = OBSERVATION, **more: Any) -> torch.Tensor:
    """Act and seal; the last output."""
    output = torch.empty(0)
    for _ in range(steps):
        with torch.inference_mode():
            output = model(torch.from_numpy(observation)[None])
        tap.step(observation=observation, action=int(output.argmax()), reward=1.0, **more)
    return output
