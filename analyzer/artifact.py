"""Files of an artifact: read with suspicion, written whole or not at all.

Every foreign error (OSError, JSON, safetensors) becomes a DictionaryError here. A directory appears by one rename after
its files were synced; a crash leaves at most a hidden directory beside it.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open

from interlatent_live.stream.errors import DictionaryError

__all__ = ["pack_json", "read_json", "read_tensors", "write_whole"]

MAX_JSON_BYTES: Final = 4 << 20
_DTYPES: Final = ("F32", "F16", "BF16", "F64")


def pack_json(data: Mapping[str, Any], *, canonical: bool = False) -> bytes:
    """JSON for a file, or in one canonical form for a hash. NaN is refused: null says unknown."""
    layout: dict[str, Any] = {"sort_keys": True, "separators": (",", ":")} if canonical else {"indent": 2}
    try:
        return json.dumps(data, allow_nan=False, default=dict, **layout).encode() + b"\n"
    except (TypeError, ValueError) as error:
        raise DictionaryError(f"cfg or card is not JSON: {error}; use null for an unknown number") from error


def read_json(path: Path) -> Any:
    """What a JSON file of bounded size holds."""
    try:
        size = path.stat().st_size
        if size > MAX_JSON_BYTES:
            raise DictionaryError(f"{path} has {size} bytes; at most {MAX_JSON_BYTES} are read")
        return json.loads(path.read_bytes(), parse_constant=_no_constant)
    except (OSError, ValueError, RecursionError) as error:
        raise DictionaryError(f"{path} cannot be read as JSON: {error}") from error


def read_tensors(path: Path, check: Callable[[Mapping[str, tuple[int, ...]]], None]) -> dict[str, torch.Tensor]:
    """Tensors of a safetensors file; `check` sees the names and shapes before anything is allocated."""
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            for name, part in slices.items():
                if part.get_dtype() not in _DTYPES:
                    allowed = ", ".join(_DTYPES)
                    raise DictionaryError(f"{path}: {name} has dtype {part.get_dtype()}; it must be one of {allowed}")
            check({name: tuple(part.get_shape()) for name, part in slices.items()})
            return {name: file.get_tensor(name) for name in slices}
    except (OSError, SafetensorError) as error:
        raise DictionaryError(f"{path} is not a whole safetensors file: {error}; fetch or train it again") from error


def write_whole(target: Path, contents: Mapping[str, bytes]) -> None:
    """A directory of files, replacing one of that name."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        try:
            for name, data in contents.items():
                with open(work / name, "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
            work.chmod(0o755)
            _replace(work, target)
        finally:
            if work.exists():
                shutil.rmtree(work)
    except OSError as error:
        raise DictionaryError(f"{target} cannot be written: {error}; nothing was left there") from error


def _replace(work: Path, target: Path) -> None:
    """A directory that is not empty cannot be renamed over: set the old one aside, and back should the new one fail."""
    aside = None
    if target.exists():
        aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        target.rename(aside / "old")
    try:
        work.rename(target)
    except OSError:
        if aside is not None:
            (aside / "old").rename(target)
        raise
    finally:
        if aside is not None:
            shutil.rmtree(aside)
    handle = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON; null says unknown")
