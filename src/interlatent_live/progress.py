"""Progress of a training run in the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from .analyzer.training import Progress as TrainingState

__all__ = ["TrainingProgress"]


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
