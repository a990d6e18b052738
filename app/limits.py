"""What one worker process may use: memory, and CPU time for one try at a prediction.

Notable choices:
- The kernel holds the limits, so native code that never gives the interpreter back is bound by them too.
- Memory: RLIMIT_DATA (private writable memory; files mapped for reading, such as weights, are not counted). An
  allocation beyond it fails, and the step that asked for it with it; the worker lives.
- CPU time: ITIMER_PROF counts the CPU seconds of all threads of the process, and SIGPROF ends it. The job goes back
  into the queue, and after three such ends into quarantine, while other jobs go on.
"""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_SHARE = 0.9


def memory(megabytes: int) -> None:
    """Bounds this process's private memory; 0: to nine tenths of the machine's."""
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    bound = megabytes * 1_000_000 or int(_SHARE * whole)
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if hard != resource.RLIM_INFINITY:
        bound = min(bound, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (bound, hard))


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
