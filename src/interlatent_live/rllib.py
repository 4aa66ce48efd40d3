"""RLlib, new API stack: `config.callbacks(functools.partial(TapCallback, …))`. See docs/adapters/rllib.md."""

from __future__ import annotations

from interlatent_live import Tap as Tap  # made ready for `view=True`: the agent's side does not know of the page

try:
    from interlatent_live.agent_side.rllib import TapCallback, WatchedRunnerEnv
except ModuleNotFoundError as error:
    if error.name not in ("ray", "torch"):
        raise
    raise ModuleNotFoundError("interlatent_live.rllib needs RLlib: pip install 'ray[rllib]'", name=error.name) from error

__all__ = ["TapCallback", "WatchedRunnerEnv"]
