"""Text that Python and its packages bring along, cut into prompts: what the dictionary that ships for SmolLM2 was trained on.

    python -m interlatent_live.texts texts.jsonl --prompts 600

Python's own documentation (`pydoc_data.topics`, PSF licence) and scikit-learn's descriptions of its datasets (BSD), by
paragraphs of some hundred characters, without markup and code, labelled by where they come from. The prompts that ship
are mixed in, for the model to go on with. Nothing is fetched.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Final

from interlatent_live.stream.errors import AgentError

__all__ = ["paragraphs", "write_texts"]

_LEAST: Final = 200
_MOST: Final = 700
"""Characters of a text."""


def paragraphs() -> Iterator[tuple[str, str]]:
    """(source, text), in the order of the files; prose only."""
    from pydoc_data.topics import topics

    for name in sorted(topics):
        for text in _prose(topics[name]):
            yield "python-docs", text
    try:
        described = sorted(files("sklearn.datasets.descr").iterdir(), key=lambda file: file.name)
    except ModuleNotFoundError as error:
        raise AgentError("scikit-learn's descriptions are a part of the texts: pip install 'interlatent-live[explainer]'") from error
    for file in described:
        if file.name.endswith(".rst"):
            for text in _prose(file.read_text(encoding="utf-8")):
                yield "sklearn-datasets", text


def write_texts(path: Path, prompts: int, seed: int = 0) -> int:
    """Write so many of them, drawn by `seed`, as JSONL; how many characters they have."""
    found = list(dict.fromkeys(paragraphs()))
    random.Random(seed).shuffle(found)
    chosen = found[:prompts]
    lines = [json.dumps({"text": text, "source": source}) for source, text in chosen]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return sum(len(text) for _, text in chosen)


def _prose(text: str) -> Iterator[str]:
    gathered = ""
    for block in re.split(r"\n\s*\n", text):
        plain = re.sub(r"\s+", " ", re.sub(r"[*`|]+|:\w+:", "", block)).strip()
        letters = sum(c.isalpha() or c == " " for c in plain)
        if len(plain) < 60 or letters < 0.85 * len(plain) or "::=" in plain or ">>>" in plain:
            continue
        gathered = f"{gathered} {plain}".strip()
        if len(gathered) >= _LEAST:
            yield gathered[:_MOST].rsplit(" ", 1)[0] if len(gathered) > _MOST else gathered
            gathered = ""


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path)
    parser.add_argument("--prompts", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    characters = write_texts(given.path, given.prompts, given.seed)
    print(f"{given.prompts} texts, {characters} characters: {given.path}")  # noqa: T201 - the command's result


if __name__ == "__main__":
    main()
