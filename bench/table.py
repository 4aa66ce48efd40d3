"""One table a bench: what was measured, what must be reached."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from pathlib import Path

__all__ = ["Row", "machine", "show"]

Row = tuple[str, str, str]
"""What, measured, must reach ('' where nothing was promised)."""


def show(title: str, rows: Iterable[Row]) -> None:
    """Print as Markdown."""
    print(f"\n### {title}\n\n| what | measured | must reach |\n|---|---|---|")
    for row in rows:
        print("| " + " | ".join(row) + " |", flush=True)


def machine() -> str:
    """Processor, cores, Python and torch."""
    import os

    import torch

    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    processor = names[0] if names else platform.machine()
    return f"{processor}, {os.cpu_count()} cores, Python {platform.python_version()}, torch {torch.__version__}"
