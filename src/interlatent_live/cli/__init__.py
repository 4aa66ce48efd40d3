"""The command `interlatent-live` (alias `ilive`).

Every command that prints a result takes `--json`, and then nothing else goes to standard output. A module of commands
is imported below, which is what registers them.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys

from interlatent_live.stream.errors import InterlatentError

from . import live, files, export, dictionaries, probing, exploring, clipping, watching  # isort: skip  # noqa: F401 - they register commands,
from . import explaining, noting, experimenting, steering, asking, doctor  # isort: skip  # noqa: F401 - in the order of --help
from .application import app
from .output import err, plain

__all__ = ["app", "main"]


def main() -> None:
    """Entry point: errors of ours become one line and status 1."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    status: str | int | None = 0
    try:
        app()
    except InterlatentError as error:
        err.print(f"[red]error[/red] {plain(str(error))}", soft_wrap=True)
        status = 1
    except SystemExit as leaving:
        status = leaving.code
    if not isinstance(status, int):
        status = 1 if status else 0
    # Everything is closed by now. Taking torch and scipy apart module by module would cost one to three seconds on a
    # busy machine, and a demo promises to be over within two.
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(BrokenPipeError):
            stream.flush()
    os._exit(status)
