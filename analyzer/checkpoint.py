"""An interrupted training run, as one safetensors file: tensors, moments of Adam, the generator, the best so far.

Written whole or not at all (a rename), bound to its options and data by a fingerprint, removed when the run is done.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from interlatent_live.stream.errors import DictionaryError

__all__ = ["Checkpoint", "Kept", "read_whole", "write_whole"]

_FORMAT: Final = "interlatent-training/1"


@dataclass(frozen=True, slots=True)
class Kept:
    """Where a run was."""

    step: int
    best: float
    """Lowest loss on the validation episodes."""
    since: int
    """Reports since then."""
    tensors: dict[str, torch.Tensor]


class Checkpoint:
    """The file of one run; `fingerprint` is of everything that its outcome depends on."""

    def __init__(self, path: Path, fingerprint: str) -> None:
        self.path = path
        self.fingerprint = fingerprint
        self.interrupted: int | None = None
        """The step at which the run was interrupted."""

    def read(self) -> Kept | None:
        """What was kept of this very run; None where there is nothing; DictionaryError where it is of another."""
        kept = read_whole(self.path, _FORMAT, self.fingerprint)
        if kept is None:
            return None
        about, tensors = kept
        return Kept(int(about["step"]), float(about["best"]), int(about["since"]), tensors)

    def write(self, step: int, best: float, since: int, tensors: dict[str, torch.Tensor]) -> None:
        """Replace what was kept."""
        about = {"step": str(step), "best": repr(best), "since": str(since)}
        write_whole(self.path, _FORMAT, self.fingerprint, tensors, about)

    def remove(self) -> None:
        """Done: nothing to go on with."""
        self.path.unlink(missing_ok=True)


def read_whole(path: Path, kind: str, fingerprint: str) -> tuple[dict[str, str], dict[str, torch.Tensor]] | None:
    """What `write_whole` wrote; None where there is nothing; DictionaryError where it is damaged or of another run."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (OSError, SafetensorError) as error:
        raise DictionaryError(f"{path} is not a whole checkpoint: {error}; remove it to begin anew") from error
    if about.get("format") != kind or about.get("fingerprint") != fingerprint:
        raise DictionaryError(
            f"{path} keeps an interrupted run with other options or data; run that command again to finish it, or "
            "remove the file to begin anew"
        )
    return about, tensors


def write_whole(path: Path, kind: str, fingerprint: str, tensors: Mapping[str, torch.Tensor], about: Mapping[str, str]) -> None:
    """Replace the file at once, by a rename."""
    whole = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}  # no two of them share memory
    data = save(whole, metadata={"format": kind, "fingerprint": fingerprint, **about})
    work = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        work.write_bytes(data)
        os.replace(work, path)
    except OSError as error:
        work.unlink(missing_ok=True)
        raise DictionaryError(f"the checkpoint {path} cannot be written: {error}") from error
