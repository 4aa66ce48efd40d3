"""Size of a recording against the raw bytes of its columns: the reference agents in real time, one frame a batch, signals included."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from interlatent_live.agent_side import rollout
from interlatent_live.agent_side.agents import agent_named
from interlatent_live.stream.frames import FrameBatch
from interlatent_live.stream.reading import Recording

from .table import Row, show


def measure(name: str, seconds: float) -> Row:
    """The row of one reference agent."""
    agent = agent_named(name)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.mcap"
        with rollout.make_tap(agent, record=path, endpoint="") as tap:
            rollout.run(agent, tap, seconds=seconds, render=False)
        batches = [m for m in Recording(path).messages() if isinstance(m, FrameBatch)]
        raw, size = sum(b.nbytes for b in batches), path.stat().st_size
    frames = sum(b.rows for b in batches)
    return (
        f"{name}: {frames} frames in {len(batches)} batches",
        f"{size / raw:.2f}× ({size / frames:.0f} of {raw / frames:.0f} bytes a frame)",
        "≤ 1.2×",
    )


if __name__ == "__main__":
    show(
        "Recording, zstd, pictures apart",
        [measure(name, float(sys.argv[1]) if len(sys.argv) > 1 else 15.0) for name in ("cartpole", "humanoid")],
    )
