"""Why this action: what each active feature of a dictionary contributed to each action's score in one frame.

The parts sum to the score, for every action a (docs/why-this-action.md):

    total[a] = sum over f of contributions[f, a] + bias[a] + error[a] + rest[a]

to the rounding of float32. A message of its own kind, `attribution`: few frames have one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from interlatent_live.stream.errors import MalformedMessage, OversizedMessage

__all__ = ["KINDS", "MAX_ACTIONS", "MAX_FEATURES", "Attribution"]

KINDS: Final = ("logits", "means", "q", "scores")
"""What a score is: a logit of a discrete action, the mean of a component of a continuous one, a Q-value; 'scores': not known."""
MAX_ACTIONS: Final = 64
MAX_FEATURES: Final = 4_096
_MAX_NAME: Final = 200
_VECTORS: Final = {"actions": "<i4", "total": "<f4", "bias": "<f4", "error": "<f4", "rest": "<f4", "features": "<i4", "values": "<f4"}
_MATRIX: Final = "contributions"
Ints = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Attribution:
    """Of one frame; a actions, f active features. All numbers are finite."""

    run: str
    boot: str
    seq: int
    """The frame's sequence number."""
    step: int
    env: int
    monotonic_ns: int
    wall_ns: int
    dictionary: str
    """Hash of the dictionary whose features these are."""
    kind: str
    """One of KINDS."""
    chosen: int
    """Number of the discrete action that was taken; -1 where actions are not discrete or it is not known."""
    action_count: int
    """Actions that the policy scores; at most MAX_ACTIONS of them are here, the chosen one and the best."""
    names: tuple[str, ...]
    """(a,) names of the actions; '' where there is none."""
    actions: Ints
    """(a,) their numbers."""
    total: Floats
    """(a,) the score."""
    bias: Floats
    """(a,) of the dictionary's bias and skip connection."""
    error: Floats
    """(a,) of what the dictionary leaves unexplained of the activation."""
    rest: Floats
    """(a,) what a first-order expansion leaves of the score: the biases behind the layer, and curvature."""
    features: Ints
    """(f,) rising."""
    values: Floats
    """(f,) their activations."""
    contributions: Floats
    """(f, a)"""

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Buffers by name, in the order in which they travel."""
        return {name: np.ascontiguousarray(getattr(self, name), dtype) for name, dtype in (*_VECTORS.items(), (_MATRIX, "<f4"))}

    def checked(self) -> Attribution:
        """Itself. Raises a WireError where it contradicts itself or is beyond a limit, so that what is sent can be received."""
        a, f = len(self.names), len(self.features)
        if not 0 < a <= MAX_ACTIONS or f > MAX_FEATURES:
            raise OversizedMessage(f"attribution of {a} actions and {f} features; 1 to {MAX_ACTIONS} and up to {MAX_FEATURES} are accepted")
        if self.kind not in KINDS:
            raise MalformedMessage(f"attribution of {str(self.kind)[:40]!r}; scores are one of {', '.join(KINDS)}")
        if any(len(name) > _MAX_NAME for name in self.names) or not 0 < len(self.dictionary) <= _MAX_NAME:
            raise MalformedMessage(f"attribution with a name of no or over {_MAX_NAME} characters")
        if not a <= self.action_count or not -1 <= self.chosen < self.action_count:
            raise MalformedMessage(f"attribution of {a} of {self.action_count} actions, of which {self.chosen} was chosen")
        for name, array in self.arrays().items():
            wanted = (f, a) if name == _MATRIX else (f,) if name in ("features", "values") else (a,)
            if array.shape != wanted:
                raise MalformedMessage(f"attribution: {name} has shape {array.shape}, not {wanted}")
            if not np.isfinite(array).all():
                raise MalformedMessage(f"attribution: {name} holds NaN or infinity; such a frame has no attribution")
        if (self.actions < 0).any() or (self.actions >= self.action_count).any() or (f and int(self.features.min()) < 0):
            raise MalformedMessage("attribution: an action or a feature has a number that it cannot have")
        return self

    def header(self) -> dict[str, Any]:
        """What travels beside the buffers."""
        return {
            "boot": self.boot, "seq": self.seq, "step": self.step, "env": self.env, "monotonic_ns": self.monotonic_ns,
            "wall_ns": self.wall_ns, "dictionary": self.dictionary, "scores": self.kind, "chosen": self.chosen,
            "action_count": self.action_count, "names": list(self.names),
            "buffers": [[name, array.dtype.str, list(array.shape)] for name, array in self.arrays().items()],
        }  # fmt: skip

    @classmethod
    def read(
        cls, run: str, boot: str, counts: Mapping[str, int], header: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]
    ) -> Attribution:
        """From a header and its buffers. `counts`: its whole numbers, checked. Raises a WireError."""
        names, chosen, dictionary = header.get("names"), header.get("chosen"), header.get("dictionary")
        if not isinstance(names, list) or len(names) > MAX_ACTIONS or not all(isinstance(name, str) for name in names):
            raise MalformedMessage(f"attribution: `names` is not a list of at most {MAX_ACTIONS} texts")
        if type(chosen) is not int or not isinstance(dictionary, str) or not isinstance(header.get("scores"), str):
            raise MalformedMessage("attribution: `chosen`, `dictionary` or `scores` is not what it should be")
        for name, dtype in (*_VECTORS.items(), (_MATRIX, "<f4")):
            if name not in arrays or arrays[name].dtype != dtype:
                raise MalformedMessage(f"attribution: `{name}` is missing or not {dtype}")
        known: dict[str, Any] = {name: arrays[name] for name in (*_VECTORS, _MATRIX)}
        known |= counts
        return cls(run, boot, dictionary=dictionary, kind=header["scores"], chosen=chosen, names=tuple(names), **known).checked()
