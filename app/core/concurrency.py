"""Work in other threads: begun beside what one goes on with, or all in one thread, a piece at a time.

Notable choices:
- Beside is for steps that need nothing of each other and let the GIL go: kernels of numba, most of scipy, inflating,
  the disk. Each gets a thread of its own, never one of a pool that it might itself wait for.
- In one thread is for torch on a CPU. OpenMP keeps helpers for every thread that ever asked it for something; once
  they are more than the cores, they sleep between two steps instead of standing by, and the explanation of a small
  network takes 1.4 times as long (docs/experiments.md).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Protocol, TypeVar

T = TypeVar("T")


class Executor(Protocol):
    """Lets a task be done when its turn has come, and gives its result, or its error."""

    def __call__(self, task: Callable[[], T], /) -> T: ...


def run_inline(task: Callable[[], T], /) -> T:
    """Where nobody else is waiting."""
    return task()


def no_pause() -> None:
    """Where nobody is in the way of anybody."""


def submit(task: Callable[[], T]) -> Future[T]:
    """Begin a task in a thread of its own; ask for the result, or the error, when it is needed."""
    pool = ThreadPoolExecutor(1, thread_name_prefix="aside")
    begun = pool.submit(task)
    pool.shutdown(wait=False)
    return begun


class BoundedExecutor:
    """Does tasks in their order in a thread of its own, at most so many behind whoever gives them.

    Leaving the block waits for the one in hand and drops the rest.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._begun: deque[Future[None]] = deque()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="behind")

    def __enter__(self) -> BoundedExecutor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

    def __call__(self, task: Callable[[], None]) -> None:
        """Raises what an earlier task raised."""
        if len(self._begun) >= self._most:
            self._begun.popleft().result()
        self._begun.append(self._pool.submit(task))

    def catch_up(self) -> None:
        """Returns once all is done. Raises what a task raised."""
        while self._begun:
            self._begun.popleft().result()


class SerialExecutor:
    """Does what it is given in one thread of its own, a piece at a time; whoever gives it waits for the result."""

    def __init__(self, name: str) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._thread: int | None = None

    def __call__(self, task: Callable[[], T], /) -> T:
        """The task's result, or its error. A task may give another one; it is done at once."""
        if threading.get_ident() == self._thread:
            return task()
        return self._pool.submit(self._do, task).result()

    def _do(self, task: Callable[[], T]) -> T:
        self._thread = threading.get_ident()
        return task()
