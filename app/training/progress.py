"""What a long run says while it works: a bar for each stage with the time that is left, and a line of words.

Notable choices:
- ``ProgressReporter`` says nothing, for tests and for the ranks that are not the first; ``RichProgress`` writes to a terminal.
- A board is called with words, so that whatever only has something to say takes it for a plain function.
"""

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
    """Says nothing."""

    def __call__(self, words: str) -> None:
        """What is being done now."""

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Advance]:
        """A stage of ``total`` steps; the function that it gives takes the steps done."""
        del name, total
        yield lambda _: None


class RichProgress(ProgressReporter):
    """On a console: a bar with the time left for the stage at work, the words beside it."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress: Progress | None = None
        self._task = TaskID(0)

    def __call__(self, words: str) -> None:
        if self._progress is None:
            self._console.print(words, highlight=False)
        else:
            self._progress.update(self._task, words=words)

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
            TextColumn("{task.fields[words]}"),
        )
        with Progress(*columns, console=self._console) as progress:
            task = self._task = progress.add_task(name, total=total, words="")
            self._progress = progress
            try:
                yield lambda steps: progress.advance(task, steps)
            finally:
                self._progress = None
