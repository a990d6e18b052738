"""Executors that run tasks in background threads or in one dedicated thread.

Design notes:
- `submit` and `BoundedExecutor` are for work that releases the GIL: numba kernels, scipy, decompression, disk access.
- `submit` uses a new thread for each task, so a task never waits for a pool thread that waits for the task.
- `SerialExecutor` keeps all torch CPU work in one thread. OpenMP keeps helper threads for each calling thread, and
  too many of them slow down small networks (docs/experiments.md).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol, TypeVar

T = TypeVar("T")


class Executor(Protocol):
    """Callable that runs a task, possibly later or in another thread, and returns its result or raises its error."""

    def __call__(self, task: Callable[[], T], /) -> T: ...


def run_inline(task: Callable[[], T], /) -> T:
    """Executor that runs the task at once, in the calling thread."""
    return task()


def no_pause() -> None:
    """Pause function that returns at once, for work that does not share its thread."""


def submit(task: Callable[[], T]) -> Future[T]:
    """Start a task in a new thread and return its future."""
    pool = ThreadPoolExecutor(1, thread_name_prefix="submit")
    future = pool.submit(task)
    pool.shutdown(wait=False)
    return future


class BoundedExecutor:
    """Run tasks in order in one background thread, with a bounded number of unfinished tasks.

    At the end of the `with` block, the executor waits for the running task and drops the others.
    """

    def __init__(self, max_pending: int) -> None:
        self._max_pending = max_pending
        self._pending: deque[Future[None]] = deque()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="bounded")

    def __enter__(self) -> BoundedExecutor:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def __call__(self, task: Callable[[], None]) -> None:
        """Queue a task; if the bound is reached, wait for the oldest task first and raise its error."""
        if len(self._pending) >= self._max_pending:
            self._pending.popleft().result()
        self._pending.append(self._pool.submit(task))

    def catch_up(self) -> None:
        """Wait until all tasks are done; raise the error of the first failed task."""
        while self._pending:
            self._pending.popleft().result()


class SerialExecutor:
    """Executor that runs all tasks in one dedicated thread, one at a time; the caller waits for the result."""

    def __init__(self, name: str) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._thread: int | None = None

    def __call__(self, task: Callable[[], T], /) -> T:
        """Run a task and return its result or raise its error; a task that a running task calls runs at once."""
        if threading.get_ident() == self._thread:
            return task()
        return self._pool.submit(self._run, task).result()

    def _run(self, task: Callable[[], T]) -> T:
        self._thread = threading.get_ident()
        return task()
