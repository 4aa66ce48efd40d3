"""The G1 in MuJoCo as a gymnasium environment; imports gymnasium and mujoco, so `g1.make_env` imports it late."""

from __future__ import annotations

import math
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import gymnasium
import numpy as np
import numpy.typing as npt

from interlatent_live.agent_side.agents.g1 import (
    ACTION_SCALE,
    EPISODE_STEPS,
    FALLEN_M,
    JOINTS,
    NOMINAL,
    OBSERVATION_NAMES,
    STEP_PERIOD_S,
    SUBSTEPS,
    Controller,
    phase,
)

__all__ = ["G1Env"]

mujoco: Any = import_module("mujoco")  # it ships no types

_WIDTH: Final = 320
_HEIGHT: Final = 240
_START_M: Final = 0.79
_STILL: Final = 0.01


class G1Env(gymnasium.Env[npt.NDArray[np.float32], npt.NDArray[np.float32]]):
    """29 joints, torques from proportional-derivative control; the reward is exp(−4·|velocity error|²), in 0 to 1."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 50}  # noqa: RUF012 - gymnasium's convention
    dt = STEP_PERIOD_S

    def __init__(self, scene: Path, controller: Controller, render: bool = False) -> None:
        self.render_mode = "rgb_array" if render else None
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (len(OBSERVATION_NAMES),), np.float32)
        self.action_space = gymnasium.spaces.Box(-np.inf, np.inf, (len(JOINTS),), np.float32)
        self.command = np.zeros(3)
        """Forward and to the left in m/s, turning to the left in rad/s."""
        self.model = mujoco.MjModel.from_xml_path(str(scene))
        self.model.opt.timestep = STEP_PERIOD_S / SUBSTEPS
        self.data = mujoco.MjData(self.model)
        joints = [self.model.joint(f"{name}_joint") for name in JOINTS]
        self._angles = np.array([joint.qposadr[0] for joint in joints])
        self._speeds = np.array([joint.dofadr[0] for joint in joints])
        self._limits = np.array([self.model.jnt_actfrcrange[joint.id] for joint in joints])
        self._kp, self._kd = controller.kp, controller.kd
        self._last = np.zeros(len(JOINTS), np.float32)
        self._steps = 0
        self._renderer: Any = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        """Stand upright; `options["command"]` or a drawn one holds for the episode."""
        super().reset(seed=seed)
        mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[:7] = (0, 0, _START_M, 1, 0, 0, 0)
        self.data.qpos[self._angles] = NOMINAL + self.np_random.uniform(-0.01, 0.01, len(JOINTS))
        drawn = self.np_random.uniform((0.2, -0.3, -0.5), (0.8, 0.3, 0.5))
        self.command = np.array(drawn if options is None or "command" not in options else options["command"], np.float64)
        self._last[:] = 0
        self._steps = 0
        mujoco.mj_forward(self.model, self.data)
        return self._observe(), {}

    def step(self, action: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """One step of 20 ms towards the targets q₀ + 0.25·action."""
        data = self.data
        target = NOMINAL + ACTION_SCALE * np.asarray(action, np.float64)
        for _ in range(SUBSTEPS):
            torque = self._kp * (target - data.qpos[self._angles]) - self._kd * data.qvel[self._speeds]
            data.qfrc_applied[self._speeds] = np.clip(torque, self._limits[:, 0], self._limits[:, 1])
            mujoco.mj_step(self.model, data)
        self._last[:] = action
        self._steps += 1
        error = self.read()["tracking_error"]
        fallen = bool(data.qpos[2] < FALLEN_M)
        return self._observe(), math.exp(-4 * error**2), fallen, self._steps >= EPISODE_STEPS, {}

    def read(self) -> Mapping[str, float]:
        """What the observation does not show, as it stands: the pelvis's height and velocity."""
        w, x, y, z = self.data.qpos[3:7]
        heading = math.atan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))
        vx, vy = self.data.qvel[:2]
        forward = vx * math.cos(heading) + vy * math.sin(heading)
        left = vy * math.cos(heading) - vx * math.sin(heading)
        return {
            "pelvis_height": float(self.data.qpos[2]),
            "forward_velocity": float(forward),
            "left_velocity": float(left),
            "tracking_error": math.hypot(self.command[0] - forward, self.command[1] - left),
        }

    def _observe(self) -> npt.NDArray[np.float32]:
        data = self.data
        clock = phase(self._steps, bool(np.abs(self.command).max() > _STILL))
        down, back = np.zeros(3), np.zeros(4)
        mujoco.mju_negQuat(back, data.qpos[3:7])
        mujoco.mju_rotVecQuat(down, np.array([0.0, 0.0, -1.0]), back)
        terms = (
            self._last,
            0.25 * data.qvel[3:6],
            self.command[2:],
            self.command[:2],
            np.cos(clock),
            data.qpos[self._angles] - NOMINAL,
            0.05 * data.qvel[self._speeds],
            down,
            np.sin(clock),
        )  # alphabetical by the policy's own names of its terms
        return np.concatenate(terms).astype(np.float32)

    def render(self) -> Any:
        """(240, 320, 3) uint8: the collision shapes from the side, without shadows."""
        if self._renderer is None:
            self._renderer = mujoco.Renderer(self.model, _HEIGHT, _WIDTH)
            self._camera = mujoco.MjvCamera()
            self._camera.distance, self._camera.azimuth, self._camera.elevation = 2.5, 120, -15
            self._shown = mujoco.MjvOption()
            self._shown.geomgroup[:] = (1, 0, 1, 1, 0, 0)
        self._camera.lookat[:] = (self.data.qpos[0], self.data.qpos[1], 0.6)
        self._renderer.update_scene(self.data, self._camera, self._shown)
        self._renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
        return self._renderer.render()

    def close(self) -> None:
        """Free the picture's buffers."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
