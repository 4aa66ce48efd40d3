"""Why a tap point may have kept nothing: what its modules tell, and else the likely causes.

Hooks are called by `Module.__call__` alone. Whatever goes past it (compiled, traced and exported programs, functions that
use a module's weights, methods other than forward) goes past the tap, without an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from interlatent_live.agent_side.capture import Capture
    from interlatent_live.agent_side.points import Point

__all__ = ["compiled", "silence"]


def silence(points: Sequence[Point], steps: int, capture: Capture, model: nn.Module | None) -> str:
    """What to tell about `points` that kept nothing in `steps` steps."""
    said = f"{', '.join(point.name for point in points)}: nothing was kept in {steps} steps. "
    if capture.other_forwards:
        return said + (
            f"Its last forward of {capture.other_forwards} had shape {capture.other_shape}, but the leading dimension must be num_envs = "
            f"{capture.num_envs}: give Tap(num_envs=…), or watch the vector environment"
        )
    known = list(dict.fromkeys(cause for point in points if (cause := _cause(point.module, model))))
    if known:
        return said + "; ".join(known)
    return said + (
        "Likely causes: the policy is called through a method other than forward (stable-baselines3 predict(), CleanRL "
        "get_action_and_value()), so tap a module inside it; the model was compiled, traced or scripted before the tap was opened, and "
        "hooks fire no more, so tap first; actions come from elsewhere (random warm-up, a queue of actions); or the modules acting are "
        "a copy of those tapped. il.points(model) lists all points"
    )


def compiled(model: nn.Module) -> bool:
    """Whether torch.compile was applied to the model or a module of it."""
    return any(hasattr(one, "_orig_mod") or getattr(one, "_compiled_call_impl", None) is not None for one in model.modules())


def _cause(module: nn.Module | None, model: nn.Module | None) -> str:
    if module is None or model is None:
        return ""
    kind = type(module).__name__
    if kind in ("ModuleList", "ModuleDict", "ParameterList", "ParameterDict"):
        return f"a {kind} only holds modules and is never called: tap one in it"
    if kind == "NonDynamicallyQuantizableLinear":
        return "attention uses its out_proj's weights without calling it: tap the attention itself, whose first item is what it gives"
    if any(type(one).__name__ in ("TopLevelTracedModule", "TracedModule", "RecursiveScriptModule") for one in model.modules()):
        return "a traced or scripted program calls no modules inside it: tap the eager model, or ':out' of the whole"
    if any(base.__module__.startswith("torch.export") for base in type(model).__mro__):
        return "an exported program calls no modules inside it: tap the eager model, or ':out' of the whole"
    if compiled(model):
        return (
            "the model was compiled, and called before the tap was opened, so its program has no hooks in it: open the tap before "
            "the first call, or call torch.compiler.reset() once the tap is open"
        )
    return ""
