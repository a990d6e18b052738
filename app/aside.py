"""Work that is begun beside what one goes on with.

Notable choices:
- For steps that need nothing of each other and let the GIL go: kernels of numba, most of scipy, inflating, the disk.
- A thread of its own for each, never one of a pool that it might itself wait for.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def aside(task: Callable[[], T]) -> Future[T]:
    """Begin a task in a thread of its own; ask for the result, or the error, when it is needed."""
    pool = ThreadPoolExecutor(1, thread_name_prefix="aside")
    begun = pool.submit(task)
    pool.shutdown(wait=False)
    return begun
