"""Progress of a training run in the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from .analyzer.learning import LiveProgress
    from .analyzer.training import Progress as TrainingState

__all__ = ["LearningProgress", "TrainingProgress"]


class TrainingProgress:
    """A bar with loss, FVU, L0 and the share of dead latents; called with each report."""

    def __init__(self, console: Console) -> None:
        columns = (
            TextColumn("training"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
        )
        self._bar = Progress(*columns, console=console)
        self._task = self._bar.add_task("training", total=None, figures="")
        self._bar.start()

    def __call__(self, state: TrainingState) -> None:
        """Show a report."""
        figures = f"loss {state.loss:.4g}  FVU {state.fvu:.4f}  L0 {state.l0:.1f}  dead {state.dead:.1%}"
        self._bar.update(self._task, total=state.steps, completed=state.step, figures=figures)
        if state.step >= state.steps:
            self._bar.stop()


class LearningProgress:
    """A bar over the time of `dict train --live`, with what was learned so far and what came and was dropped."""

    def __init__(self, console: Console) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(16),
            TextColumn("{task.percentage:>3.0f} %"),
            TextColumn("{task.fields[figures]}"),
        )
        self._bar = Progress(*columns, console=console)
        self._task = self._bar.add_task("waiting", total=1.0, figures="")
        self._bar.start()

    def __call__(self, state: LiveProgress) -> None:
        """Show a report."""
        figures = ""
        if state.fvu is not None and state.l0 is not None and state.dead is not None:
            figures = f"FVU {state.fvu:.4f}  L0 {state.l0:.1f}  dead {state.dead:.0%}  "
        figures += f"{state.frames} frames, {state.episodes} episodes, dropped {state.lost}"
        figures += "".join(f", {reason} {count}" for reason, count in state.refused.items())
        figures += ", no checkpoint" if state.checkpoint_failed else ""
        self._bar.update(self._task, completed=state.share, description=state.phase, figures=figures)

    def close(self) -> None:
        """Leave the bar as it stands."""
        self._bar.stop()
