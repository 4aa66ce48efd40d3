"""JSON files that stand beside a dictionary, such as its explanations and effects: of a named format and a bounded size."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from interlatent_live.stream.errors import DictionaryError

__all__ = ["read_sidecar"]


def read_sidecar(path: Path, format: str, most_bytes: int) -> Mapping[str, Any]:
    """The object that the file holds; DictionaryError for one that is too large, cannot be read, or is of another format."""
    try:
        if path.stat().st_size > most_bytes:
            raise DictionaryError(f"{path} is larger than {most_bytes} bytes; it is no file of ours")
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DictionaryError(f"{path} cannot be read: {error}") from error
    if not isinstance(data, dict) or data.get("format") != format:
        raise DictionaryError(f"{path} is not of the format {format}")
    return data
