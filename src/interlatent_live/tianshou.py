"""Tianshou: `collector = watch(collector, tap)`. See docs/adapters/tianshou.md."""

from __future__ import annotations

from interlatent_live import Tap as Tap  # made ready for `view=True`: the agent's side does not know of the page

try:
    from interlatent_live.agent_side.tianshou import watch
except ModuleNotFoundError as error:
    if error.name not in ("tianshou", "torch"):
        raise
    raise ModuleNotFoundError("interlatent_live.tianshou needs Tianshou: pip install tianshou", name=error.name) from error

__all__ = ["watch"]
