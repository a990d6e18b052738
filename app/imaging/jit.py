"""Numerical kernels compiled by numba, and the threads they run on.

Notable choices:
- ``cache=True`` keeps the machine code beside the source, so only the first worker of an installation compiles.
  Where no folder can be written (a read-only image without a home) numba refuses; then it is compiled
  in memory instead.
- numba, and LLVM with it, are some 50 MB and a third of a second: they come with the first kernel that runs, so that
  a worker asked only for prepared tensors, and a command that says a version's card, never have them.
- Kernels release the GIL and are run on plain Python threads over disjoint slabs. numba's own ``prange`` is not
  used: its default threading layer aborts the process when two Python threads enter it at once.
- Each slab is computed by the same instructions whichever thread runs it, so the number of threads changes nothing
  in the result.
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
    """A function that is compiled when it is first called. Kernels call each other by their names."""

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
        """What numba takes this for where another kernel names it."""
        return self._dispatcher._numba_type_


def jit_compiled(function: Callable[P, R]) -> Kernel[P, R]:
    """Compile ``function`` on first use for the types it is called with; the GIL is released while it runs."""
    return Kernel(function)


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads(), thread_name_prefix="imaging")


def threads() -> int:
    """Cores this process may use, at most ``MAX_THREADS``."""
    return max(1, min(MAX_THREADS, len(os.sched_getaffinity(0))))


def over_slabs(count: int, work: Callable[[int, int], None]) -> None:
    """Call ``work(start, stop)`` for slabs that together cover ``range(count)``, in parallel."""
    parts = min(count, threads())
    if parts <= 1:
        work(0, count)
        return
    edges = [count * part // parts for part in range(parts + 1)]
    for done in [_pool().submit(work, start, stop) for start, stop in itertools.pairwise(edges)]:
        done.result()
