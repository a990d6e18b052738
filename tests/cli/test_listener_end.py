"""The end of the listener that `rlvo serve` runs: by a signal, or with the service."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

COMMAND = [sys.executable, "-m", "app.cli", "dicom", "listen", "--port", "0", "--until-eof"]
Process = subprocess.Popen[bytes]


def close_input(process: Process) -> None:
    assert process.stdin is not None
    process.stdin.close()


WAYS: dict[str, Callable[[Process], None]] = {
    "SIGTERM": lambda process: process.send_signal(signal.SIGTERM),
    "SIGINT": lambda process: process.send_signal(signal.SIGINT),
    "closed input": close_input,
}


@pytest.mark.parametrize("way", list(WAYS))
def test_listener_of_a_service_ends_without_an_error(tmp_path: Path, way: str) -> None:
    environment = os.environ | {"RLVO_DATA_DIR": str(tmp_path)}
    pipe = subprocess.PIPE
    with subprocess.Popen(COMMAND, env=environment, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert b"rlvo listens for DICOM" in process.stdout.readline()
        WAYS[way](process)
        assert process.wait(30) == 0
        assert b"Fatal" not in process.stderr.read()
