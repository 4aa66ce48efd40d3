"""Stable-Baselines3: `model.learn(200_000, callback=TapCallback(…))`. Needs the extra `sb3`; see docs/adapters/sb3.md."""

from __future__ import annotations

from interlatent_live import Tap as Tap  # made ready for `view=True`: the agent's side does not know of the page

try:
    from interlatent_live.agent_side.sb3 import TapCallback
except ModuleNotFoundError as error:
    if error.name != "stable_baselines3":
        raise
    raise ModuleNotFoundError(
        "interlatent_live.sb3 needs Stable-Baselines3: pip install stable-baselines3", name="stable_baselines3"
    ) from error

__all__ = ["TapCallback"]
