"""Compile numerical kernels with numba, and run them on threads.

Design notes:
- numba is imported when the first kernel runs, because many processes never run one.
- The machine code is cached on disk; where no folder is writable, a kernel is compiled in memory.
- Kernels release the GIL and run on Python threads over disjoint slabs (docs/decisions/0050).
- The number of threads does not change the result.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, cached_property, update_wrapper
from typing import Any, Generic, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

MAX_THREADS = 8


class Kernel(Generic[P, R]):
    """A function that numba compiles at the first call. A kernel may call another kernel by its name."""

    def __init__(self, function: Callable[P, R]) -> None:
        self._function = function
        update_wrapper(self, function)

    def __call__(self, *arguments: P.args, **named: P.kwargs) -> R:
        result: R = self._dispatcher(*arguments, **named)
        return result

    @cached_property
    def _dispatcher(self) -> Any:
        import numba

        try:
            return numba.njit(cache=True, nogil=True, error_model="numpy")(self._function)
        except RuntimeError:  # "cannot cache function: no locator available"
            return numba.njit(nogil=True, error_model="numpy")(self._function)

    @property
    def _numba_type_(self) -> Any:
        """The type by which numba compiles a call from another kernel."""
        return self._dispatcher._numba_type_


def lazy_njit(function: Callable[P, R]) -> Kernel[P, R]:
    """Decorator: ``numba.njit`` at the first call, for the types of the arguments, without the GIL."""
    return Kernel(function)


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(thread_count(), thread_name_prefix="imaging")


def thread_count() -> int:
    """Number of cores that this process may use, at most ``MAX_THREADS``."""
    return max(1, min(MAX_THREADS, len(os.sched_getaffinity(0))))


def run_in_slabs(count: int, work: Callable[[int, int], None]) -> None:
    """Call ``work(start, stop)`` in parallel for slabs that together cover ``range(count)``."""
    parts = min(count, thread_count())
    if parts <= 1:
        work(0, count)
        return
    edges = [count * part // parts for part in range(parts + 1)]
    for future in [_pool().submit(work, start, stop) for start, stop in itertools.pairwise(edges)]:
        future.result()
