"""What one worker process may use: memory, and CPU time for one try at a prediction.

Notable choices:
- The kernel holds the limits, so native code that never gives the interpreter back is bound by them too.
- Memory: RLIMIT_DATA (private writable memory; files mapped for reading, such as weights, are not counted). An
  allocation beyond it fails, and the step that asked for it with it; the worker lives.
- Memory that was freed is kept for the next case: the kernel clears each page that it gives out, which took an eighth
  of a study's time (docs/experiments.md). All threads share one heap, so that one's leavings serve the next one.
- CPU time: ITIMER_PROF counts the CPU seconds of all threads of the process, and SIGPROF ends it. The job goes back
  into the queue, and after three such ends into quarantine, while other jobs go on.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_SHARE = 0.9
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # malloc.h
_LARGEST = 2**31 - 1


def memory(megabytes: int) -> None:
    """Bounds this process's private memory; 0: to nine tenths of the machine's."""
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    bound = megabytes * 1_000_000 or int(_SHARE * whole)
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if hard != resource.RLIM_INFINITY:
        bound = min(bound, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (bound, hard))


def keep_memory() -> None:
    """Has this process's allocator keep what is freed and hand it out again. Before other threads begin; glibc only."""
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(_M_MMAP_THRESHOLD, _LARGEST)
        mallopt(_M_TRIM_THRESHOLD, _LARGEST)
        mallopt(_M_ARENA_MAX, 1)


def resident() -> int:
    """Bytes of memory that this process holds."""
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def cpu(seconds: float) -> Iterator[None]:
    """Ends this process by SIGPROF if the block uses more than ``seconds`` of CPU time."""
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
