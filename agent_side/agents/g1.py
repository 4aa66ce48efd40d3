"""Unitree's humanoid G1 walks on command: MuJoCo, and the published ONNX policy of the package holosoma-inference.

The policy (Apache-2.0, 100-512-256-128-29 ELU units, trained by PPO) and the robot's model are read from the installed
wheels; none of their code is imported, so their own dependencies are not needed:

    pip install 'interlatent-live[g1]' && pip install --no-deps holosoma==0.0.3 holosoma-inference==0.1.3

1. At 50 Hz the policy sees 100 numbers, terms in alphabetical order, and gives 29 joint targets, q₀ + 0.25·a.
2. Ten times per step (every 2 ms) torques kp·(target − q) − kd·q̇, gains from the ONNX file's metadata, are clipped to
   what the joint's motor can give, and applied.
3. A clock of one gait a second stands beside; it halts where the commanded velocity is zero.

`make_actor` runs a copy of the policy whose three hidden layers (512, 256 and 128 units, after ELU) are outputs as well;
they are the tap points, under the names that they have in the ONNX file.

An episode lasts 20 s, or until the pelvis is below 0.4 m. Commands are drawn at each reset, or given by
`options={"command": (forward m/s, left m/s, turning rad/s)}`. Pictures need OpenGL: MUJOCO_GL=egl or osmesa.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Iterable, Mapping
from ctypes.util import find_library
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeAlias

import numpy as np
import numpy.typing as npt

from interlatent_live.agent_side import onnx
from interlatent_live.agent_side.agents.reference import ReferenceAgent, require
from interlatent_live.agent_side.metrics import Metric
from interlatent_live.stream.errors import AgentError

if TYPE_CHECKING:
    import gymnasium

__all__ = [
    "ACTION_SCALE",
    "EPISODE_STEPS",
    "FALLEN_M",
    "G1",
    "JOINTS",
    "METRICS",
    "NOMINAL",
    "OBSERVATION_NAMES",
    "STEP_PERIOD_S",
    "SUBSTEPS",
    "TAP_POINTS",
    "Controller",
    "act",
    "make_actor",
    "make_env",
    "make_policy",
    "phase",
    "policy_path",
    "read",
]

Floats: TypeAlias = npt.NDArray[np.float64]

_REMEDY: Final = (
    "install it with: pip install 'interlatent-live[g1]' && pip install --no-deps holosoma==0.0.3 holosoma-inference==0.1.3"
)
_POLICY: Final = ("holosoma_inference", "models/loco/g1_29dof/ppo_g1_29dof.onnx")
_SCENE: Final = ("holosoma", "data/robots/g1/scenes/scene_g1_29dof_wbt_plane.xml")

STEP_PERIOD_S: Final = 0.02
"""Time of one step, in seconds: 50 Hz."""
SUBSTEPS: Final = 10
EPISODE_STEPS: Final = 1000
FALLEN_M: Final = 0.4
ACTION_SCALE: Final = 0.25
_GAIT_S: Final = 1.0

TAP_POINTS: Final = tuple(f"/actor_module/module/module.{name}/Elu" for name in ("1", "1_1", "1_2"))
"""Nodes of the ONNX graph: 512, 256 and 128 units, after ELU."""

_SIDE: Final = ("hip_pitch", "hip_roll", "hip_yaw", "knee", "ankle_pitch", "ankle_roll")
_ARM: Final = ("shoulder_pitch", "shoulder_roll", "shoulder_yaw", "elbow", "wrist_roll", "wrist_pitch", "wrist_yaw")
JOINTS: Final = (
    *(f"left_{name}" for name in _SIDE),
    *(f"right_{name}" for name in _SIDE),
    "waist_yaw", "waist_roll", "waist_pitch",
    *(f"left_{name}" for name in _ARM),
    *(f"right_{name}" for name in _ARM),
)  # fmt: skip
"""In the order of the observation and of the action alike."""

_LEG: Final = (-0.312, 0.0, 0.0, 0.669, -0.363, 0.0)
NOMINAL: Final = np.array([*_LEG, *_LEG, 0, 0, 0, 0.2, 0.2, 0, 0.6, 0, 0, 0, 0.2, -0.2, 0, 0.6, 0, 0, 0])
"""(29,) joint angles q₀ that the actions add to, in rad."""


def _terms() -> tuple[Metric, ...]:
    named: list[tuple[str, str, str]] = []
    named += [(f"{joint}_last_action", "0.25 rad", f"Last action: target of {joint} from its nominal angle.") for joint in JOINTS]
    named += [(f"{name}_rate", "4 rad/s", f"Angular velocity of the pelvis, {name}, in its own axes.") for name in ("roll", "pitch", "yaw")]
    named.append(("commanded_turn", "rad/s", "Commanded turning, to the left positive."))
    named += [("commanded_forward", "m/s", "Commanded velocity."), ("commanded_left", "m/s", "Commanded velocity.")]
    named += [(f"{side}_gait_cosine", "", f"Cosine of the {side} foot's clock.") for side in ("left", "right")]
    named += [(f"{joint}_position", "rad", f"Angle of {joint} from its nominal one.") for joint in JOINTS]
    named += [(f"{joint}_speed", "20 rad/s", f"Angular speed of {joint}.") for joint in JOINTS]
    named += [(f"gravity_{axis}", "", f"Component of the direction of gravity along the pelvis's {axis}.") for axis in "xyz"]
    named += [(f"{side}_gait_sine", "", f"Sine of the {side} foot's clock.") for side in ("left", "right")]
    found = [Metric(name, index, unit=unit, description=text) for index, (name, unit, text) in enumerate(named)]
    return (
        *found,
        Metric("pelvis_height", unit="m", description="Height of the pelvis; below 0.4 the robot has fallen."),
        Metric("forward_velocity", unit="m/s", description="Of the pelvis, along its heading."),
        Metric("left_velocity", unit="m/s", description="Of the pelvis, across its heading."),
        Metric("tracking_error", unit="m/s", description="Length of commanded minus actual horizontal velocity."),
    )


METRICS: Final = _terms()
"""The observation's 100 elements, in its order, and four numbers that `read` of the environment gives."""

OBSERVATION_NAMES: Final = tuple(metric.name for metric in METRICS if metric.source is not None)


def _installed(package: str, path: str) -> Path:
    spec = find_spec(package)  # finding a top-level package runs none of its code
    folders = [] if spec is None else list(spec.submodule_search_locations or ())
    if not folders:
        raise AgentError(f"the reference agent 'g1' reads files of the package {package!r}, which is not installed; {_REMEDY}")
    found = Path(folders[0], path)
    if not found.is_file():
        raise AgentError(f"{found} is missing, which the reference agent 'g1' reads; {_REMEDY}")
    return found


def policy_path() -> Path:
    """The ONNX policy in the installed wheel: 'actor_obs' (1, 100) to 'action' (1, 29), float32."""
    return _installed(*_POLICY)


class Controller:
    """The ONNX policy, on one thread. `kp` and `kd`: (29,) gains in Nm/rad and Nm·s/rad, from its metadata."""

    def __init__(self, path: Path | None = None, exposed: Iterable[onnx.Exposed] = ()) -> None:
        """`path`: another file with the same input, and perhaps further outputs; those of `exposed` are activations."""
        require("g1", "onnxruntime", extra="g1")
        onnxruntime: Any = import_module("onnxruntime")  # it ships no types
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        path = path or policy_path()
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.outputs = tuple(output.name for output in self._session.get_outputs())
        """Names; 'action' comes first."""
        self.activations: dict[str, npt.NDArray[np.float32]] = {}
        """(units,) of each exposed layer at the last call, by the name of the layer; empty before the first."""
        self._layers = {one.output: one.name for one in exposed}
        metadata = self._session.get_modelmeta().custom_metadata_map
        names = tuple(name.removesuffix("_joint") for name in json.loads(metadata["dof_names"]))
        if names != JOINTS:
            raise AgentError(f"{path} steers the joints {', '.join(names)}; those of the G1 were expected; {_REMEDY}")
        self.kp, self.kd = np.array(json.loads(metadata["kp"])), np.array(json.loads(metadata["kd"]))

    def __call__(self, observation: npt.NDArray[np.float32]) -> dict[str, npt.NDArray[np.float32]]:
        """All outputs for one (100,) observation, by name, without the leading 1: 'action' is (29,)."""
        given = self._session.run(None, {"actor_obs": observation[None]})
        found = {name: value[0] for name, value in zip(self.outputs, given, strict=True)}
        for output, layer in self._layers.items():
            self.activations[layer] = found[output]
        return found


def make_actor() -> Controller:
    """The policy with its hidden layers as outputs. AgentError before anything is begun if a package is missing."""
    _installed("mujoco", "__init__.py")  # not imported: `make_env` chooses its OpenGL first
    _installed(*_SCENE)
    policy = policy_path()
    require("g1", "gymnasium", "onnx", "onnxruntime", extra="g1")
    with tempfile.TemporaryDirectory() as folder:  # the session reads the file once
        copy = Path(folder, "g1.onnx")
        return Controller(copy, onnx.expose(policy, TAP_POINTS, copy))


def make_policy() -> NoReturn:
    """There is no torch module: AgentError."""
    raise AgentError("the policy of the reference agent 'g1' is an ONNX file, not a torch module; `interlatent-live run g1` taps it")


def act(policy: Controller, observation: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """(29,) joint targets; the layers are in `policy.activations` afterwards."""
    return policy(observation)["action"]


def read(env: Any) -> Mapping[str, float]:
    """The metrics without a source."""
    found: Mapping[str, float] = env.unwrapped.read()
    return found


def make_env(render: bool = False) -> gymnasium.Env[Any, Any]:
    """The robot on a plane; with `render` its pictures are (240, 320, 3). Its `read()` gives the metrics without a source."""
    if render and find_library("EGL"):  # read when mujoco is imported, which fails where there is none
        os.environ.setdefault("MUJOCO_GL", "egl")
    require("g1", "gymnasium", "mujoco", "onnxruntime", extra="g1")
    from interlatent_live.agent_side.agents.g1_env import G1Env

    return G1Env(_installed(*_SCENE), Controller(), render)


def phase(steps: int, moving: bool) -> Floats:
    """(2,) clocks of the left and right foot after `steps` of walking, in rad within ±π; both π where it stands."""
    if not moving:
        return np.full(2, math.pi)
    turned = np.array([0.0, math.pi]) + 2 * math.pi * STEP_PERIOD_S / _GAIT_S * steps
    return (turned + math.pi) % (2 * math.pi) - math.pi


G1: Final = ReferenceAgent(
    name="g1",
    environment="UnitreeG1",
    description="Unitree's humanoid G1 walking on command in MuJoCo: a published ONNX policy of 100-512-256-128-29 ELU units.",
    step_period_s=STEP_PERIOD_S,
    make_env=make_env,
    make_policy=make_policy,
    make_actor=make_actor,
    act=act,
    tap_points=TAP_POINTS,
    metrics=METRICS,
    observation_names=OBSERVATION_NAMES,
    action_names=JOINTS,
    dictionary="g1",
    read=read,
)
