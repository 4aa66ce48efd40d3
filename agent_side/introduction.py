"""What a stream says of itself before its first frame: process, host, weights, software."""

from __future__ import annotations

import os
import socket
import time
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from interlatent_live.agent_side.weights import weights_hash
from interlatent_live.stream.manifest import Manifest

if TYPE_CHECKING:
    from torch import nn

__all__ = ["introduce"]


def introduce(
    run: str, boot: str, model: nn.Module | None, weights: Literal["frozen", "changing", "none"]
) -> Manifest:
    """The manifest of this process, without tap points, metrics and environment. Hashes the weights."""
    return Manifest(
        run=run,
        boot=boot,
        started_wall_ns=time.time_ns(),
        started_monotonic_ns=time.monotonic_ns(),
        host=socket.gethostname(),
        host_boot=_host_boot(),
        pid=os.getpid(),
        weights=weights,
        weights_hash="" if model is None else weights_hash(model),
        software=dict(_software()),
    )


def _host_boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:  # not Linux: clocks of two processes are then not compared
        return ""


@cache
def _software() -> dict[str, str]:
    """Versions; looking them up takes milliseconds."""
    found = {}
    for name in ("interlatent-live", "torch", "numpy", "gymnasium", "stable-baselines3"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
