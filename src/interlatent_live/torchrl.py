"""TorchRL: `env = watch(env, tap)`. See docs/adapters/torchrl.md."""

from __future__ import annotations

from interlatent_live import Tap as Tap  # made ready for `view=True`: the agent's side does not know of the page

try:
    from interlatent_live.agent_side.torchrl import TapTransform, watch
except ModuleNotFoundError as error:
    if error.name not in ("torchrl", "tensordict"):
        raise
    raise ModuleNotFoundError("interlatent_live.torchrl needs TorchRL: pip install torchrl", name=error.name) from error

__all__ = ["TapTransform", "watch"]
