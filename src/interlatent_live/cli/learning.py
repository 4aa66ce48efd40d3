"""`dict train --connect ENDPOINT --live`: learning from a running stream, at low priority."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Any, Final

from .output import err, plain, print_result

__all__ = ["NICENESS", "learn_live"]

NICENESS: Final = 10
"""Added to the process's own: agent and analyzer go first wherever a core is wanted by both."""


def learn_live(
    connect: str,
    to: Path,
    input_point: str | None,
    output_point: str | None,
    chosen: dict[str, Any],
    run: str | None,
    seconds: float,
    wait: float,
    memory_mb: int,
    as_json: bool,
) -> None:
    """Learn, save, say what it became. `chosen`: of `TrainOptions`."""
    from interlatent_live.analyzer.learning import LiveOptions, learn_to
    from interlatent_live.analyzer.training import TrainOptions
    from interlatent_live.launch import Stop
    from interlatent_live.progress import LearningProgress

    options = TrainOptions(**chosen)
    live = LiveOptions(seconds=seconds, wait=wait, memory=memory_mb << 20)

    def command(read: str, predicted: str) -> str:
        words = ["interlatent-live", "dict", "train", "--connect", connect, "--live", "--input", read, "--output", predicted]
        words += ["--recipe", options.recipe, "--features", str(options.features), "--k", str(options.k)]
        words += ["--steps", str(options.steps), "--seed", str(options.seed), "--seconds", f"{seconds:g}"]
        words += ["--skip"] if options.skip else []
        words += ["--l1", f"{options.l1:g}"] if options.recipe == "relu-l1" else []
        return shlex.join([*words, "--out", to.name])

    os.nice(NICENESS)
    stop = Stop()
    shown = None if as_json else LearningProgress(err)
    try:
        dictionary = learn_to(
            connect, to, options, live, input_point=input_point, output_point=output_point, run=run, command=command, stop=stop,
            report=(lambda progress: None) if shown is None else shown,
        )  # fmt: skip
    finally:
        if shown is not None:
            shown.close()
    if not as_json and stop():
        err.print(f"stopped early; {plain(str(to))} is whole all the same", soft_wrap=True)
    card = dict(dictionary.card or {})
    shown_keys = ("path", "hash", "recipe", "features", "k", "fvu", "l0", "dead_share", "frames", "stale")
    print_result({"path": str(to), **card}, as_json, shown_keys)
