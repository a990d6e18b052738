"""Progress of a long run: one bar for each stage, with the remaining time and a message."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

Advance = Callable[[int], None]


class ProgressReporter:
    """Reporter that shows nothing; for tests, and for all ranks but the first.

    A reporter is called with a message, so a plain function serves where only messages are reported.
    """

    def __call__(self, message: str) -> None:
        """Report the current work."""

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Advance]:
        """Open a stage of ``total`` steps; yields a function that takes the number of steps just done."""
        del name, total
        yield lambda _: None


class RichProgress(ProgressReporter):
    """Reporter that draws a bar and the last message of the current stage on a console."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress: Progress | None = None
        self._task = TaskID(0)

    def __call__(self, message: str) -> None:
        if self._progress is None:
            self._console.print(message, highlight=False, markup=False)
        else:
            self._progress.update(self._task, message=message)

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Advance]:
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            TextColumn("{task.fields[message]}", markup=False),
        )
        with Progress(*columns, console=self._console) as progress:
            task = self._task = progress.add_task(name, total=total, message="")
            self._progress = progress
            try:
                yield lambda steps: progress.advance(task, steps)
            finally:
                self._progress = None
