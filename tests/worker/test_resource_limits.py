"""The kernel holds a worker's limits, whatever its code does."""

from __future__ import annotations

import signal
import subprocess
import sys


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)


def test_memory_beyond_the_bound_is_refused_and_the_process_lives() -> None:
    code = """
import numpy as np
from app import limits
limits.memory(500)
np.ones(100_000_000, np.uint8)
try:
    np.ones(1_000_000_000, np.uint8)
except MemoryError:
    print("refused")
"""
    done = run(code)
    assert (done.returncode, done.stdout) == (0, "refused\n"), done.stderr


def test_cpu_time_beyond_the_bound_ends_the_process_even_in_native_code() -> None:
    code = """
from app import limits
with limits.cpu(5):
    sum(range(1000))
with limits.cpu(0.2):
    print("began", flush=True)
    pow(7, 10 ** 30000, 10 ** 30000 + 1)  # one call, minutes long, that never gives the interpreter back
    print("ended")
"""
    done = run(code)
    assert (done.returncode, done.stdout) == (-signal.SIGPROF, "began\n")


def test_waiting_costs_no_cpu_time() -> None:
    assert run("import time; from app import limits\nwith limits.cpu(0.2): time.sleep(0.6)").returncode == 0
