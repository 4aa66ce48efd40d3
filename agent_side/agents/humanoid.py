"""`humanoid`: PyBullet's 17-joint humanoid, walking by a published policy.

The policy is the multilayer perceptron 44-256-128-17 (ReLU) of the pybullet wheel (zlib licence), file
`pybullet_envs/examples/enjoy_TF_HumanoidBulletEnv_v0_2017may.py`. Its six arrays are read from the installed file as
literals (`ast.literal_eval`); the file itself is never executed: it would import packages that nobody has any more.
The policy was trained on another zero of observation 0, the torso's height, which its own code corrects (`ob[0] +=
-1.4 + 0.8`); here that −0.6 is folded into the first layer's bias (b₁ − 0.6·W₁[0]), so that the policy is a plain
`torch.nn.Sequential` of the environment's true observation. Torques are clipped to ±1, the environment's action
space; it clips what it applies, but charges for the current of what it was given.

The environment is `HumanoidBulletEnv-v0` of pybullet-envs-gymnasium: 60.6 steps a second, over after 1,000 steps or
when the torso sinks below 0.78 m. Of 100 random starts the policy walked 93 to the end, returning 3547 to 3740 (mean
3685), and fell 7 times, within the first 150 steps. Pictures are 320×240, drawn on the CPU by TinyRenderer in about 20 ms each,
without OpenGL. After the first episode PyBullet restores a saved state whose solver caches differ: the same seed then
walks a slightly different path.
"""

from __future__ import annotations

import ast
import os
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from interlatent_live.agent_side.agents.reference import ReferenceAgent, require
from interlatent_live.agent_side.metrics import Metric
from interlatent_live.stream.errors import AgentError

if TYPE_CHECKING:
    import gymnasium
    from torch import nn

__all__ = [
    "HEIGHT_OFFSET_M",
    "HUMANOID",
    "JOINTS",
    "METRICS",
    "STEP_PERIOD_S",
    "act",
    "make_env",
    "make_policy",
    "published_weights",
]

JOINTS: Final = (
    "abdomen_z", "abdomen_y", "abdomen_x",
    "right_hip_x", "right_hip_z", "right_hip_y", "right_knee",
    "left_hip_x", "left_hip_z", "left_hip_y", "left_knee",
    "right_shoulder1", "right_shoulder2", "right_elbow",
    "left_shoulder1", "left_shoulder2", "left_elbow",
)  # fmt: skip
"""In the order of the observation and of the action alike."""

STEP_PERIOD_S: Final = 0.0165
"""Simulated time of one step, in seconds."""

HEIGHT_OFFSET_M: Final = -1.4 + 0.8
"""Added to observation 0, which is in metres, before the published weights see it."""

_SOURCE = "examples/enjoy_TF_HumanoidBulletEnv_v0_2017may.py"
_SHAPES: dict[str, tuple[int, ...]] = {
    "weights_dense1_w": (44, 256),
    "weights_dense1_b": (256,),
    "weights_dense2_w": (256, 128),
    "weights_dense2_b": (128,),
    "weights_final_w": (128, 17),
    "weights_final_b": (17,),
}


def _terms() -> tuple[Metric, ...]:
    """The observation's 44 elements, from `calc_state` of the environment, which scales and clips them to ±5.

    A unit with a factor says what 1 stands for: a joint speed of 0.5 in units of '10 rad/s' is 5 rad/s.
    """
    named = [
        ("torso_height", "m", "Height of the torso above 0.8 m; the episode ends below -0.02."),
        ("target_sine", "", "Sine of the angle from the torso's heading to the target, 1 km ahead; left is positive."),
        ("target_cosine", "", "Cosine of that angle: 1 when the humanoid faces the target."),
        ("forward_velocity", "10/3 m/s", "Velocity of the torso along its heading."),
        ("left_velocity", "10/3 m/s", "Velocity of the torso to its left."),
        ("up_velocity", "10/3 m/s", "Vertical velocity of the torso."),
        ("roll", "rad", "Roll of the torso."),
        ("pitch", "rad", "Pitch of the torso; leaning forward is positive."),
    ]
    for joint in JOINTS:
        named.append((f"{joint}_position", "", f"Angle of the joint {joint}, mapped so that its limits are -1 and +1."))
        named.append((f"{joint}_speed", "10 rad/s", f"Angular speed of the joint {joint}."))
    named += [
        (f"{side}_foot_contact", "", f"1 where the {side} foot touched the floor one step before, else 0.")
        for side in ("right", "left")
    ]
    return tuple(Metric(name, index, unit=unit, description=text) for index, (name, unit, text) in enumerate(named))


METRICS: Final = _terms()
"""The 44 named elements of the observation, in its order."""


@cache
def published_weights() -> dict[str, npt.NDArray[np.float64]]:
    """The policy's six arrays by their published names, `weights_dense1_w` (44, 256) and so on; read, not executed."""
    package = find_spec("pybullet_envs")  # finding a top-level package runs none of its code
    if package is None or not package.submodule_search_locations:
        raise AgentError(
            "the reference agent 'humanoid' reads its policy from the package 'pybullet', which is not installed; "
            "install it with: pip install 'interlatent-live[agents]'"
        )
    path = Path(next(iter(package.submodule_search_locations)), _SOURCE)
    remedy = "install pybullet 3.2.7, whose wheel holds the humanoid's policy"
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError) as error:
        raise AgentError(f"{path} cannot be read ({error}); {remedy}") from error
    weights = {}
    for statement in tree.body:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Call(args=[literal])) if name in _SHAPES:
                weights[name] = np.array(ast.literal_eval(literal), dtype=np.float64)
    found = {name: array.shape for name, array in weights.items()}
    if found != _SHAPES:
        raise AgentError(f"{path} holds arrays of shapes {found}, not {_SHAPES}; {remedy}")
    return weights


def make_policy() -> nn.Sequential:
    """(n, 44) float32 observations to (n, 17) torques; '1:out' (256) and '3:out' (128) are its hidden layers."""
    require("humanoid", "torch")
    import torch
    from torch import nn

    weights = published_weights()
    first_bias = weights["weights_dense1_b"] + HEIGHT_OFFSET_M * weights["weights_dense1_w"][0]
    layers = []
    for weight, bias in (
        (weights["weights_dense1_w"], first_bias),
        (weights["weights_dense2_w"], weights["weights_dense2_b"]),
        (weights["weights_final_w"], weights["weights_final_b"]),
    ):
        layer = nn.Linear(*weight.shape)
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(weight.T))
            layer.bias.copy_(torch.from_numpy(bias))
        layers.append(layer)
    return nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2]).eval()


def make_env(render: bool = False) -> gymnasium.Env[Any, Any]:
    """HumanoidBulletEnv-v0; with `render` its pictures are (240, 320, 3), drawn without OpenGL."""
    require("humanoid", "gymnasium", "pybullet_envs_gymnasium")  # the latter registers the environment
    import gymnasium

    env = gymnasium.make("HumanoidBulletEnv-v0", render_mode="rgb_array" if render else None)
    _connect(env.unwrapped)
    return env


def _connect(env: Any) -> None:
    """Give the environment a simulation of its own, in this process, as its first `reset` would.

    Left to itself it first looks for another process's simulation in shared memory, which it would then share; and
    PyBullet prints a line to standard output for each attempt, where results go.
    """
    import pybullet

    client_type: Any = import_module("pybullet_utils.bullet_client").BulletClient
    client = client_type.__new__(client_type)
    # what BulletClient.__init__ sets, but connected without its string of options: parsing that is what prints
    vars(client).update(_shapes={}, _pid=os.getpid(), _client=pybullet.connect(pybullet.DIRECT))
    client.resetSimulation()
    client.setPhysicsEngineParameter(deterministicOverlappingPairs=1)
    env._p, env.physicsClientId, env.ownsPhysicsClient = client, client._client, True


def act(policy: nn.Module, observation: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """(17,) torques within ±1, as the environment's action space asks."""
    import torch

    with torch.inference_mode():
        torques: npt.NDArray[np.float32] = policy(torch.from_numpy(observation)[None])[0].clamp(-1, 1).numpy()
    return torques


HUMANOID: Final = ReferenceAgent(
    name="humanoid",
    environment="HumanoidBulletEnv-v0",
    description="PyBullet's humanoid walks, by a published policy of 44-256-128-17 units.",
    step_period_s=STEP_PERIOD_S,
    make_env=make_env,
    make_policy=make_policy,
    act=act,
    tap_points=("1:out", "3:out"),
    metrics=METRICS,
    observation_names=tuple(metric.name for metric in METRICS),
    action_names=JOINTS,
    dictionary="humanoid",
)
