"""The page's own files, put together once: template, style and scripts."""

from __future__ import annotations

import json
import re
from importlib.resources import files
from typing import Any, Final

from jinja2 import Environment

__all__ = ["SCRIPTS", "document", "read", "template"]

SCRIPTS: Final = (
    "make.js", "draw.js", "time.js", "lists.js", "keys.js", "save.js", "learn.js", "why.js", "find.js", "tokens.js", "pairs.js", "reach.js",
    "line.js", "page.js",
)  # fmt: skip

_PART: Final = re.compile(r"/\* (\w+\.(?:css|js)) \*/")
_EXTRAS: Final = re.compile(r"<script[^>]*/bokeh-(?:gl|widgets|tables|mathjax)[^>]*></script>")
"""2.7 MB of Bokeh that no figure here uses: half of the time to the first paint."""


def read(name: str) -> str:
    """One of this folder's files."""
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def template() -> Any:
    """The page, as Bokeh fills it in."""
    environment = Environment(autoescape=False)  # Bokeh hands in markup of its own; nothing of a run's is put in here
    environment.filters["core"] = lambda scripts: _EXTRAS.sub("", str(scripts))
    source = read("template.html")
    for name in ("page.css", "find.css", "reach.css", "pairs.css", *SCRIPTS):
        source = source.replace(f"/* {name} */", read(name))
    return environment.from_string(source)


def document(name: str, data: Any, **body: bool) -> str:
    """A page without Bokeh, from `<name>.html`: its scripts draw `data`. `body`: set as data attributes where true."""
    made = _PART.sub(lambda part: read(part[1]), read(f"{name}.html"))
    text = json.dumps(data, allow_nan=False).replace("<", "\\u003c")  # ASCII, and no tag can begin in it
    attributes = " ".join(f"data-{key}" for key, on in body.items() if on)
    return made.replace("data-body", attributes).replace('"data of the page"', text)
