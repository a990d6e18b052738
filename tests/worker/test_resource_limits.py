"""The kernel enforces the limits of a worker."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from app.worker import resource_limits


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)


def test_memory_beyond_the_limit_is_refused_and_the_process_continues() -> None:
    code = """
import numpy as np
from app.worker import resource_limits
resource_limits.memory(500)
np.ones(100_000_000, np.uint8)
try:
    np.ones(1_000_000_000, np.uint8)
except MemoryError:
    print("refused")
"""
    done = run(code)
    assert (done.returncode, done.stdout) == (0, "refused\n"), done.stderr


def test_cpu_time_beyond_the_limit_ends_the_process_in_native_code() -> None:
    code = """
from app.worker import resource_limits
with resource_limits.cpu(5):
    sum(range(1000))
with resource_limits.cpu(0.2):
    print("began", flush=True)
    pow(7, 10 ** 30000, 10 ** 30000 + 1)  # one call of minutes that keeps the interpreter lock
    print("ended")
"""
    done = run(code)
    assert (done.returncode, done.stdout) == (-signal.SIGPROF, "began\n")


def test_waiting_uses_no_cpu_time() -> None:
    assert (
        run(
            "import time; from app.worker import resource_limits\nwith resource_limits.cpu(0.2): time.sleep(0.6)"
        ).returncode
        == 0
    )


@pytest.mark.parametrize("name", ["memory.max", "memory/memory.limit_in_bytes"])
def test_memory_of_a_container_is_its_limit(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("500000000\n")
    assert resource_limits.available(tmp_path) == 500_000_000


@pytest.mark.parametrize("content", ["max\n", str(2**62)])
def test_memory_of_a_container_without_a_limit_is_that_of_the_machine(tmp_path: Path, content: str) -> None:
    (tmp_path / "memory.max").write_text(content)
    assert resource_limits.available(tmp_path) == resource_limits.available(tmp_path / "absent") > 0
