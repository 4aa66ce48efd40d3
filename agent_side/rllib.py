"""RLlib, new API stack: a callback that watches the environments of the env runner.

    config.callbacks(functools.partial(TapCallback, points="encoder.encoder.net.mlp.*", record="ppo.mcap"))

An env runner steps a vector environment of gymnasium's with a copy of the module that only acts, so nothing of an
update passes the hooks. RLlib makes a callback object for the algorithm and for each runner; the one whose runner is
the first opens the tap, before that runner's first reset.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from typing import Any

from gymnasium.vector import VectorEnv
from ray.rllib.callbacks.callbacks import RLlibCallback
from torch import nn

from interlatent_live.agent_side.metrics import Metrics
from interlatent_live.agent_side.tap import Tap
from interlatent_live.agent_side.watch import Read, WatchedVectorEnv

__all__ = ["TapCallback", "WatchedRunnerEnv"]

_LOG = logging.getLogger(__name__)


class TapCallback(RLlibCallback):  # type: ignore[misc] # RLlib is not installed where types are checked
    """Taps the module of the first env runner, from its first reset until its environments are closed."""

    def __init__(
        self,
        points: str | Iterable[str] | None = None,
        *,
        evaluation: bool = False,
        metrics: Metrics | None = None,
        read: Read | None = None,
        **options: Any,
    ) -> None:
        """`points` of the runner's module, see `il.points(algorithm.env_runner.module)`; None is the last hidden layer
        of what acts. `evaluation`: tap the first runner that evaluates instead. `read`: as of `il.watch`. `options`:
        those of `il.Tap`."""
        super().__init__()
        self._points = points if points is None or isinstance(points, str) else tuple(points)
        self._evaluation, self._metrics, self._read, self._options = evaluation, metrics, read, options
        self._tried = False

    def on_episode_created(self, *, env_runner: Any = None, **kwargs: Any) -> None:
        """Called before the runner's first reset, when its environments and its module are there."""
        if not self._tried and env_runner is not None:
            self._tried = True
            if self._is_first(env_runner):
                self._open(env_runner)

    def on_train_result(self, *, algorithm: Any, result: Mapping[str, Any], **kwargs: Any) -> None:
        """Called after each iteration, in the algorithm's process: what it measured goes with the frames of a runner
        that is there, too."""
        env = getattr(algorithm.env_runner, "env", None)
        if isinstance(env, WatchedRunnerEnv):
            env.tap.log(_numbers({name: result.get(name) for name in ("learners", "env_runners")}))

    def _is_first(self, runner: Any) -> bool:
        index = runner.worker_index or 0  # without remote runners there is number 0 only
        return bool(runner.config.in_evaluation) == self._evaluation and index <= 1

    def _open(self, runner: Any) -> None:
        if not isinstance(runner.env, VectorEnv) or not isinstance(runner.module, nn.Module):
            kinds = f"{type(runner.env).__name__} and {type(runner.module).__name__}"
            _LOG.warning("no tap is opened: it needs one agent's vector environment and a torch module, not %s", kinds)
            return
        options = {"agent": type(runner.module).__name__, "weights": "changing"} | self._options
        tap = Tap(runner.module, self._points, metrics=self._metrics, num_envs=runner.num_envs, **options)
        env = WatchedRunnerEnv(runner, tap, self._read)
        tap.open()
        runner.env = env


class WatchedRunnerEnv(WatchedVectorEnv):
    """The environments of a runner, watched; closing them closes the tap."""

    def __init__(self, runner: Any, tap: Tap, read: Read | None = None) -> None:
        super().__init__(runner.env, tap, read)
        self._runner = runner

    @property
    def tap(self) -> Tap:
        """The tap that is told of every step."""
        return self._tap

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, Any]:
        """Step; frames carry the number of the weights that RLlib counts."""
        self._tap.policy_version = int(getattr(self._runner, "_weights_seq_no", 0))
        return super().step(actions)

    def close(self, **kwargs: Any) -> None:
        """Close the tap, then the environments."""
        self._tap.close()
        super().close(**kwargs)


def _numbers(tree: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers of nested mappings, named `learners/default_policy/vf_loss`."""
    found: dict[str, float] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            found |= _numbers(value, f"{prefix}{name}/")
        elif (isinstance(value, (int, float)) and not isinstance(value, bool)) or getattr(value, "ndim", None) == 0:
            number = float(value)
            if not math.isnan(number):
                found[f"{prefix}{name}"] = number
    return found
