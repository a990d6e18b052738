"""The real service in separate processes, which tests use, stop and kill."""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from app.sdk import Client, RlvoError
from app.sdk.types import FiguresState
from tests.deployment import free_port, wait

TIMEOUT_S = 90.0


def eventually(condition: Callable[[], Any], description: str, within: float = TIMEOUT_S) -> Any:
    """Call ``condition`` until its result is true, and return the result."""
    end = time.monotonic() + within
    while not (result := condition()):
        assert time.monotonic() < end, f"not within {within:.0f} s: {description}"
        time.sleep(0.02)
    return result


class RunningService:
    """``rlvo serve`` on one data folder and one port, also after a restart."""

    def __init__(self, folder: Path, model_store: Path, model: str, *, patience: float = TIMEOUT_S) -> None:
        self.folder = folder
        self._patience = patience
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.environment = os.environ | {
            "RLVO_DATA_DIR": str(folder),
            "RLVO_MODEL_STORE": str(model_store),
            "RLVO_DEFAULT_MODEL": model,
            "RLVO_PORT": str(self.port),
            "RLVO_THREADS": "1",
            "RLVO_HEARTBEAT": "0.2",
            "RLVO_LEASE": "3",
            "OMP_NUM_THREADS": "1",
        }
        self._process: subprocess.Popen[bytes] | None = None

    def spawn(self) -> None:
        """Start the process, and do not wait for it."""
        with (self.folder / "log").open("ab") as log:
            command = [sys.executable, "-m", "app.cli", "serve"]
            self._process = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log)

    def start(self) -> None:
        """Start the service and return when it is ready to predict."""
        self.spawn()
        with self.client() as client:

            def ready() -> bool:
                assert self._process is not None
                assert self._process.poll() is None, self.log()
                try:
                    return client.health().ready
                except RlvoError:
                    return False

            eventually(ready, f"ready\n{self.log()}", within=self._patience)

    def stop(self) -> int:
        """Send SIGTERM, as an operator does, and return the exit status."""
        assert self._process is not None
        self._process.terminate()
        return self._process.wait(TIMEOUT_S)

    def kill_api(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def workers(self) -> list[int]:
        """Return the process ids of the registered workers, the latest heartbeat first."""
        return [pid for (pid,) in self.query("SELECT pid FROM workers ORDER BY last_heartbeat DESC")]

    def kill_worker(self) -> int:
        """Send SIGKILL to the current worker and return its process id."""
        worker = self.workers()[0]
        os.kill(worker, signal.SIGKILL)
        return worker

    def client(self, **options: Any) -> Client:
        return Client(self.url, **options)

    def wait_for_figures(self, prediction_id: str) -> None:
        """Return when the figures and the report of a prediction are drawn."""
        with self.client() as client:
            wait(lambda: client.get(prediction_id).figures is FiguresState.READY, seconds=120)

    def query(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        """Return rows that are read directly from the database."""
        with sqlite3.connect(f"file:{self.folder / 'rlvo.sqlite'}?mode=ro", uri=True, timeout=30) as connection:
            return connection.execute(sql, values).fetchall()

    def blobs(self) -> set[str]:
        """Return the names of all stored files, unfinished ones included."""
        return {str(path.relative_to(self.folder)) for path in _files(self.folder / "blobs")}

    def scratch(self) -> list[Path]:
        """Return the scratch folders of predictions; the worker clears one a little after its prediction has ended."""
        return list((self.folder / "blobs" / ".work").iterdir())

    def contents(self) -> dict[Path, bytes]:
        """Return all files of the data folder with their bytes, except those that the service deletes meanwhile."""
        found = {}
        for path in _files(self.folder):
            with suppress(FileNotFoundError):  # such as the journal that SQLite has during each write
                found[path] = path.read_bytes()
        return found

    def rlvo(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command of rlvo in the environment of the service."""
        command = [sys.executable, "-m", "app.cli", *arguments]
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=self._patience)

    def requests(self, status: int) -> int:
        """Return the number of requests that the service has answered with ``status``."""
        return len(re.findall(rf" {status} [0-9.]+ ms\b", (self.folder / "log").read_text()))

    def log(self) -> str:
        return (self.folder / "log").read_text()[-4000:]


def _files(folder: Path) -> Iterator[Path]:
    """All files below a folder. Unlike `Path.rglob`, `os.walk` accepts that a folder is deleted meanwhile."""
    for parent, _, names in os.walk(folder):
        yield from (path for name in names if (path := Path(parent, name)).is_file())
