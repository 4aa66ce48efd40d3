"""What the adapters' tests share: an environment whose observation says which step it is, a hook of torch's own beside
ours, and the comparison of what was recorded with both."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from tests.tap_samples import Recorded
from torch import nn

from interlatent_live.agent_side import tap

__all__ = ["LENGTHS", "Direct", "Numbered", "Shared", "check", "run_snippet", "snippet"]

ROOT = Path(__file__).parents[2]
LENGTHS = (7, 5)
"""Steps of even episodes, which terminate, and of odd ones, which are cut off."""


def snippet(name: str) -> str:
    """The first block of code in docs/adapters/<name>.md."""
    found = re.search(r"```python\n(.*?)```", (ROOT / "docs" / "adapters" / f"{name}.md").read_text("utf-8"), re.DOTALL)
    assert found is not None
    return found[1]


def run_snippet(name: str, folder: Path) -> dict[str, Any]:
    """Run it, unchanged, in the working directory `folder`; the default endpoint may be taken here."""
    path = folder / f"{name}_snippet.py"
    path.write_text(snippet(name), "utf-8")
    kept, tap.DEFAULT_ENDPOINT = tap.DEFAULT_ENDPOINT, "tcp://127.0.0.1:*"  # type: ignore[attr-defined]
    try:
        return runpy.run_path(str(path), run_name="__main__")
    finally:
        tap.DEFAULT_ENDPOINT = kept  # type: ignore[attr-defined]


class Direct:
    """A plain forward hook on `tapped`, and one on `first` to see which observations it answers."""

    def __init__(self, first: nn.Module, tapped: nn.Module) -> None:
        self.seen: torch.Tensor | None = None
        self.given: torch.Tensor | None = None
        first.register_forward_pre_hook(self._before)
        tapped.register_forward_hook(self._after)

    def _before(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self.seen, self.given = args[0].detach().clone(), None

    def _after(self, module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> None:
        self.given = output.detach().clone()

    def row(self, number: float) -> np.ndarray[Any, Any] | None:
        """What the last forward pass gave for the observation that begins with `number`."""
        if self.seen is None or self.given is None:
            return None
        seen, given = self.seen.reshape(-1, self.seen.shape[-1]), self.given.reshape(-1, self.given.shape[-1])
        (rows,) = np.nonzero(seen[:, 0].numpy() == number)
        return given[rows[0]].numpy() if len(rows) else None


class Shared:
    """What the environments note: number → (direct hook's activation, action)."""

    def __init__(self) -> None:
        self.direct: Direct | None = None
        self.truth: dict[int, tuple[np.ndarray[Any, Any] | None, Any]] = {}


class Numbered(gym.Env[np.ndarray[Any, Any], Any]):
    """Its observation is [number, episode, step in episode], each number once over all environments; its reward is the
    number of the observation acted on."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012 - gymnasium's own declaration

    def __init__(self, env: int = 0, shared: Shared | None = None, continuous: bool = False) -> None:
        self.observation_space = gym.spaces.Box(-1e6, 1e6, (3,), np.float32)
        self.action_space = gym.spaces.Box(-1, 1, (2,), np.float32) if continuous else gym.spaces.Discrete(3)
        self.shared = shared if shared is not None else Shared()
        self.number, self.episode, self.step_ = 10_000 * env, -1, 0

    def _observation(self) -> np.ndarray[Any, Any]:
        self.number += 1
        return np.array([self.number, self.episode, self.step_], np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.episode, self.step_ = self.episode + 1, 0
        return self._observation(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        acted_on = self.number
        direct = self.shared.direct
        self.shared.truth[acted_on] = (None if direct is None else direct.row(acted_on), np.array(action))
        self.step_ += 1
        over = self.step_ == LENGTHS[self.episode % 2]
        odd = bool(self.episode % 2)
        return self._observation(), float(acted_on), over and not odd, over and odd, {}


def check(recorded: Recorded, shared: Shared, point: str, *, without: int = 0) -> None:
    """Every frame pairs what was acted on with what came of it, its activation is the direct hook's bit for bit, and no
    step is missing but `without` of them that ran no forward pass."""
    observation, reward = recorded.column("observation"), recorded.column("reward")
    numbers = observation[:, 0].astype(int)
    assert len(set(numbers)) == len(numbers)
    assert set(numbers) == set(shared.truth), "frames are the steps taken, all of them"
    assert np.array_equal(reward, numbers)
    assert np.array_equal(recorded.metric("obs[0]"), numbers)
    assert np.array_equal(recorded.column("env"), numbers // 10_000)
    assert np.array_equal(recorded.column("episode_step"), observation[:, 2])
    ends = observation[:, 2] + 1 == np.array(LENGTHS)[observation[:, 1].astype(int) % 2]
    odd = observation[:, 1].astype(int) % 2 == 1
    assert np.array_equal(recorded.column("terminated"), ends & ~odd)
    assert np.array_equal(recorded.column("truncated"), ends & odd)
    action = recorded.column("action")
    for row, number in enumerate(numbers):
        assert np.array_equal(action[row].ravel(), np.ravel(shared.truth[number][1]))
    fired = recorded.fired(point)
    activations = recorded.activations(point)
    assert len(fired) == len(activations) == len(numbers) - without
    by_seq = dict(zip(recorded.seq, numbers, strict=True))
    for seq, activation in zip(fired, activations, strict=True):
        direct = shared.truth[by_seq[seq]][0]
        assert direct is not None
        assert activation.tobytes() == direct.tobytes()
