"""The manifest: what a stream contains, so that a reader needs nothing else.

Sent on every new subscription, once a second, and first in a recording. Its hash stands in every batch.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Final, Literal

import msgpack

from interlatent_live.stream.errors import MalformedMessage

__all__ = ["ActionSpec", "ControlSpec", "Manifest", "MetricSpec", "TapPointSpec", "check_run"]

MetricScope = Literal["observation", "transition"]
_MAX_COUNT: Final = 1 << 62
_MAX_SIZE: Final = 1 << 31
_MAX_NDIM: Final = 16
_MAX_TEXT: Final = 4096
_RUN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def check_run(run: str) -> str:
    """Return `run`, or raise MalformedMessage: it becomes part of a topic and of file names."""
    if not isinstance(run, str) or not _RUN.fullmatch(run):
        raise MalformedMessage(
            f"run name {run!r} is not usable; take 1 to 64 letters, digits, '.', '_' or '-', beginning with a letter or digit"
        )
    return run


@dataclass(frozen=True, slots=True)
class TapPointSpec:
    """One place where activations are read."""

    name: str
    """Module path with ':in' or ':out'."""
    dtype: str
    """'float32', 'float16' or 'bfloat16' (which travels as uint16)."""
    shape: tuple[int, ...]
    """Shape of one frame's activation."""
    module: str = ""
    """Class of the module, for display."""


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """One named number of a frame."""

    name: str
    unit: str = ""
    """SI unit, or '' for a pure number."""
    scope: MetricScope = "observation"
    """'observation': describes what was acted on. 'transition': needs what came after (reward, next state, info)."""
    description: str = ""


@dataclass(frozen=True, slots=True)
class ActionSpec:
    """What the agent can do."""

    kind: Literal["discrete", "continuous", "unknown"] = "unknown"
    shape: tuple[int, ...] = ()
    names: tuple[str, ...] = ()
    """Names of the choices (discrete) or of the components (continuous); may be empty."""


@dataclass(frozen=True, slots=True)
class ControlSpec:
    """Where requests to steer are taken."""

    endpoint: str
    steerable: bool = False
    """False: every request is answered 'not allowed'."""
    token_file: str = ""
    """File on the agent's host, mode 0600, that holds the token which every request needs."""
    server_key: str = ""
    """CURVE public key (Z85) of an endpoint beyond the loopback; '' on the loopback."""
    prompts: bool = False
    """Whether a language model takes prompts there."""


@dataclass(frozen=True)
class Manifest:
    """One process's stream."""

    run: str
    boot: str
    started_wall_ns: int
    started_monotonic_ns: int
    host: str = ""
    host_boot: str = ""
    """Identity of the host's boot: monotonic clocks compare only where it is equal."""
    pid: int = 0
    agent: str = ""
    """Name of the reference agent, or '' for a user's own."""
    environment: str = ""
    num_envs: int = 1
    step_period_s: float | None = None
    """Nominal time between steps where the environment defines one, in seconds."""
    tap_points: tuple[TapPointSpec, ...] = ()
    metrics: tuple[MetricSpec, ...] = ()
    observation_shape: tuple[int, ...] = ()
    observation_names: tuple[str, ...] = ()
    action: ActionSpec = field(default_factory=ActionSpec)
    weights: Literal["frozen", "changing", "none"] = "frozen"
    weights_hash: str = ""
    """SHA-256 of names, dtypes, shapes and bytes of the parameters and buffers when the tap was opened."""
    software: Mapping[str, str] = field(default_factory=dict)
    """Package name to version."""
    control: ControlSpec | None = None
    """None: no requests are taken."""

    def __post_init__(self) -> None:
        check_run(self.run)
        names = [m.name for m in self.metrics]
        if len(set(names)) != len(names):
            raise MalformedMessage(f"metric names repeat: {sorted({n for n in names if names.count(n) > 1})}")

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for msgpack or JSON."""
        plain = asdict(self)
        if self.control is None:  # as it was before there was any, so that the hash is too
            del plain["control"]
        elif not self.control.prompts:  # likewise
            del plain["control"]["prompts"]
        return plain

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Manifest:
        """Inverse of `to_dict`. Unknown keys are ignored; wrong types raise MalformedMessage."""
        try:
            period = data.get("step_period_s")
            if period is not None and not (isinstance(period, (int, float)) and math.isfinite(period) and period >= 0):
                raise MalformedMessage(f"manifest: step_period_s is {period!r}; seconds or null are required")
            action = data.get("action", {})
            return cls(
                run=data["run"],
                boot=str(data["boot"]),
                started_wall_ns=_whole(data, "started_wall_ns"),
                started_monotonic_ns=_whole(data, "started_monotonic_ns"),
                host=str(data.get("host", "")),
                host_boot=str(data.get("host_boot", "")),
                pid=_whole(data, "pid", 0),
                agent=str(data.get("agent", "")),
                environment=str(data.get("environment", "")),
                num_envs=_whole(data, "num_envs", 1),
                step_period_s=None if period is None else float(period),
                tap_points=tuple(
                    TapPointSpec(str(p["name"]), str(p["dtype"]), _shape(p["shape"]), str(p.get("module", "")))
                    for p in data.get("tap_points", ())
                ),
                metrics=tuple(_metric(m) for m in data.get("metrics", ())),
                observation_shape=_shape(data.get("observation_shape", ())),
                observation_names=tuple(str(n) for n in data.get("observation_names", ())),
                action=ActionSpec(
                    _one_of(action.get("kind"), ("discrete", "continuous"), "unknown"),
                    _shape(action.get("shape", ())),
                    tuple(str(n) for n in action.get("names", ())),
                ),
                weights=_one_of(data.get("weights"), ("frozen", "none"), "changing"),
                weights_hash=str(data.get("weights_hash", "")),
                software={str(k): str(v) for k, v in dict(data.get("software", {})).items()},
                control=_control(data.get("control")),
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise MalformedMessage(f"manifest cannot be read: {type(error).__name__}: {error}") from error

    @cached_property
    def hash(self) -> str:
        """First 16 hex digits of the SHA-256 of the canonical msgpack form."""
        return hashlib.sha256(msgpack.packb(_canonical(self.to_dict()))).hexdigest()[:16]

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Names of the metrics, in column order."""
        return tuple(m.name for m in self.metrics)

    def point(self, name: str) -> TapPointSpec | None:
        """The tap point of that name, if any."""
        return next((p for p in self.tap_points if p.name == name), None)


def _canonical(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _canonical(value[k]) for k in sorted(value)}
    if isinstance(value, (list, tuple)):
        return [_canonical(v) for v in value]
    return value


def _whole(data: Mapping[str, Any], name: str, default: int | None = None) -> int:
    value = data[name] if default is None else data.get(name, default)
    if type(value) is not int or not 0 <= value < _MAX_COUNT:
        raise MalformedMessage(f"manifest: {name} is {value!r}; a whole number from 0 to 2^62 is required")
    return value


def _shape(sizes: Any) -> tuple[int, ...]:
    shape = tuple(sizes)
    if len(shape) > _MAX_NDIM or not all(type(d) is int and 0 <= d < _MAX_SIZE for d in shape):
        raise MalformedMessage(f"manifest: shape {str(shape)[:80]} is not at most {_MAX_NDIM} sizes below 2^31")
    return shape


def _metric(data: Mapping[str, Any]) -> MetricSpec:
    scope: MetricScope = _one_of(data.get("scope"), ("observation",), "transition")
    return MetricSpec(str(data["name"]), str(data.get("unit", "")), scope, str(data.get("description", "")))


def _control(data: Any) -> ControlSpec | None:
    if data is None:
        return None
    return ControlSpec(
        str(data["endpoint"])[:_MAX_TEXT],
        data.get("steerable") is True,
        str(data.get("token_file", ""))[:_MAX_TEXT],
        str(data.get("server_key", ""))[:_MAX_TEXT],
        data.get("prompts") is True,
    )


def _one_of(value: Any, known: tuple[Any, ...], otherwise: Any) -> Any:
    """`value` where it is known; what a newer writer may say besides is read as the weakest claim."""
    return value if value in known else otherwise
