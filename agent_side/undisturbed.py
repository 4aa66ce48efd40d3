"""Running a policy once more without leaving a trace: no hook fires, and everything is afterwards as it was before.

Kept and put back: what every module holds in its attributes, values of buffers and of tensors among the attributes (so running
statistics, counters and recurrent states stay), and the states of the random number generators. Parameters get no gradient:
`torch.autograd.grad` with respect to one leaf writes none. Costs about 5 µs a module and 30 for the generators.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["fresh", "undisturbed"]

_HOOKS: Final = (
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs", "_backward_hooks", "_backward_pre_hooks",
)  # fmt: skip


@contextmanager
def undisturbed(root: nn.Module) -> Iterator[None]:
    """Inside, `root` and all below it have no hooks and run eagerly; hooks put on inside are gone afterwards."""
    import torch

    modules = list(root.modules())
    attributes = [(module, dict(module.__dict__), dict(module._buffers)) for module in modules]
    held: list[Tensor] = [
        value
        for module in modules
        for value in (*module._buffers.values(), *module.__dict__.values())
        if isinstance(value, torch.Tensor)
    ]
    values = [(tensor, tensor.detach().clone()) for tensor in held]
    devices = {p.device for p in root.parameters() if p.device.type == "cuda"}
    on_device = [(device, torch.cuda.get_rng_state(device)) for device in devices]
    generators = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002 - the one that others draw from
    try:
        for module in modules:
            module.__dict__.update({name: OrderedDict() for name in _HOOKS if name in module.__dict__})
            if module.__dict__.get("_compiled_call_impl") is not None:
                module.__dict__["_compiled_call_impl"] = None
        yield
    finally:
        for module, before, buffers in attributes:
            module.__dict__.clear()
            module.__dict__.update(before)
            module._buffers.clear()
            module._buffers.update(buffers)
        for tensor, value in values:
            with torch.inference_mode(tensor.is_inference()), torch.no_grad():
                if not torch.equal(tensor, value):
                    tensor.copy_(value)
        torch.set_rng_state(generators[0])
        np.random.set_state(generators[1])  # noqa: NPY002
        random.setstate(generators[2])
        for device, state in on_device:
            torch.cuda.set_rng_state(state, device)


def fresh(value: Any) -> Any:
    """A copy of arguments, tensors out of inference mode and of every graph."""
    import torch

    if isinstance(value, torch.Tensor):
        with torch.inference_mode(False), torch.no_grad():
            return value.detach().clone()
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, dict):
        return {key: fresh(item) for key, item in value.items()}
    return type(value)(map(fresh, value)) if type(value) in (tuple, list) else value
