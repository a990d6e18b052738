"""Numerical kernels compiled by numba, and the threads they run on.

Notable choices:
- ``cache=True`` keeps the machine code beside the source, so only the first worker of an installation compiles.
  Where no folder can be written (a read-only image without a home) numba refuses at import; then it is compiled
  in memory instead.
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
from functools import cache
from typing import Any, TypeVar, cast

import numba

F = TypeVar("F", bound=Callable[..., Any])

MAX_THREADS = 8


def compiled(function: F) -> F:
    """Compile ``function`` on first use for the types it is called with; the GIL is released while it runs."""
    try:
        return cast("F", numba.njit(cache=True, nogil=True, error_model="numpy")(function))
    except RuntimeError:  # "cannot cache function: no locator available"
        return cast("F", numba.njit(nogil=True, error_model="numpy")(function))


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
