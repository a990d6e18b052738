"""Limits of one worker process: memory, and CPU time of one start of a job.

Design notes:
- The kernel enforces both limits, so they also hold in native code that keeps the interpreter lock.
- Memory: RLIMIT_DATA counts private writable memory, not mapped weights. Beyond it the step fails, not the worker.
- Freed memory is kept for the next case, because the kernel clears each new page (docs/experiments.md). All threads
  share one heap, so each thread can use what another one has freed.
- CPU time: ITIMER_PROF counts the CPU seconds of all threads, and SIGPROF ends the process. The job is requeued, and
  quarantined after three such ends.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_SHARE = 0.9
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # malloc.h
_LARGEST = 2**31 - 1


def available(cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes of memory of this machine, or of its container if that has less; the kernel says so in ``cgroups``."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for name in ("memory.max", "memory/memory.limit_in_bytes"):  # cgroup 2 and 1
        with suppress(OSError, ValueError):  # no container, or "max"
            total = min(total, int((cgroups / name).read_text()))
    return total


def memory(megabytes: int) -> None:
    """Limits the private memory of this process; 0 stands for nine tenths of the memory of the machine or container."""
    total = available()
    limit = megabytes * 1_000_000 or int(_SHARE * total)
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


def keep_memory() -> None:
    """Makes the allocator keep and reuse freed memory. Call it before other threads start; glibc only."""
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(_M_MMAP_THRESHOLD, _LARGEST)
        mallopt(_M_TRIM_THRESHOLD, _LARGEST)
        mallopt(_M_ARENA_MAX, 1)


def resident() -> int:
    """Resident memory of this process in bytes."""
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
