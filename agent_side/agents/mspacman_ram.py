"""What the 128 bytes of the Atari's memory say about a game of Ms. Pac-Man.

Positions are in pixels of the 160×210 screen: bytes 10 and 16 are Pac-Man's, 6–9 and 12–15 those of the four ghosts
(orange, cyan, pink, red); a sprite's middle on the screen is its byte moved by `OFFSET_PX`. Beyond that, checked
against rendered frames and rewards:

- Bytes 1–4 are the ghosts' states. Bit 7: edible. Else the upper four bits are 4 (eaten: eyes on their way home) or 6
  (eyes that have arrived); all others are ghosts that kill.
- Byte 116 holds two numbers: the lower six bits count from 62 down to 0, one every eight frames, while ghosts are
  edible; the upper two count the ghosts eaten meanwhile.
- Byte 117: bits 5, 3, 4 and 2 are the power pellets at top left, top right, bottom left and bottom right; its lowest
  two bits make them blink.
- Byte 119 counts the pellets eaten in this maze, power pellets included. The first maze has 150 and four of those.
- Bytes 120–122: the score, two decimal digits a byte, lowest first. Byte 123: lives to come. Byte 0: the maze.

Number and places of the pellets are known for the first maze; in later ones what depends on them is NaN.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from interlatent_live.agent_side.metrics import Metric

__all__ = ["METRICS", "OFFSET_PX", "PELLETS", "POWER_PELLETS", "decode", "eyes", "read"]

PELLETS: Final = 154
"""In the first maze, the four power pellets among them."""

OFFSET_PX: Final = (-8.5, 5.6)
"""Added to the bytes of a position (x, y) it gives the sprite's middle on the screen, to about a pixel."""

POWER_PELLETS: Final = ((0x20, 18, 12), (0x08, 158, 12), (0x10, 18, 144), (0x04, 158, 144))
"""Bit of byte 117, x and y in px as Pac-Man's, of the first maze's four."""

_TICK_S: Final = 8 / 60
_EDIBLE: Final = 0x80

METRICS: Final = (
    Metric("power_pellet_distance", unit="px", description="Straight line to the nearest power pellet left; NaN: none."),
    Metric("ghost_distance", unit="px", description="Straight line to the nearest ghost that kills; NaN where none does."),
    Metric("edible_ghost_distance", unit="px", description="Straight line to the nearest edible ghost; NaN: none."),
    Metric("edible_timer", unit="s", description="Time that ghosts stay edible, at 60 frames a second; 0: they kill."),
    Metric("pellets_left", unit="pellets", description="Pellets to be eaten, power pellets among them."),
    Metric("lives", unit="lives", description="Lives, the one being played included."),
    Metric("score", unit="points", description="As on the screen."),
    Metric("x", unit="px", description="Pac-Man's, as the game counts; the middle on the screen is 8.5 px to the left."),
    Metric("y", unit="px", description="Pac-Man's, as the game counts, downward; on the screen 5.6 px lower."),
)
"""All describe the moment before the step: `read` gives them. None needs the environment's outcome."""


def decode(ram: npt.NDArray[np.uint8]) -> dict[str, float]:
    """The metrics of METRICS, by name, from the (128,) bytes of memory."""
    memory = ram.tolist()
    x, y = memory[10], memory[16]
    killers, edible = math.inf, math.inf
    for ghost in range(4):
        state = memory[1 + ghost]
        distance = math.hypot(memory[6 + ghost] - x, memory[12 + ghost] - y)
        if state & _EDIBLE:
            edible = min(edible, distance)
        elif not eyes(state):
            killers = min(killers, distance)
    first_maze = memory[0] == 0
    power = math.inf
    if first_maze:
        for bit, at_x, at_y in POWER_PELLETS:
            if memory[117] & bit:
                power = min(power, math.hypot(at_x - x, at_y - y))
    return {
        "power_pellet_distance": _or_nan(power),
        "ghost_distance": _or_nan(killers),
        "edible_ghost_distance": _or_nan(edible),
        "edible_timer": (memory[116] & 0x3F) * _TICK_S,
        "pellets_left": float(PELLETS - memory[119]) if first_maze else math.nan,
        "lives": float((memory[123] & 0x0F) + 1),
        "score": float(sum(_decimal(memory[120 + i]) * 100**i for i in range(3))),
        "x": float(x),
        "y": float(y),
    }


def eyes(state: int) -> bool:
    """Whether a ghost of that state byte was eaten and is only its eyes."""
    return state >> 4 in (4, 6)


def read(env: Any) -> Mapping[str, float]:
    """The metrics of a gymnasium environment of the game, as it stands."""
    return decode(env.unwrapped.ale.getRAM())


def _decimal(byte: int) -> int:
    return (byte >> 4) * 10 + (byte & 0x0F)


def _or_nan(distance: float) -> float:
    return distance if distance < math.inf else math.nan
