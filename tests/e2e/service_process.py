"""The real service as processes of their own, to be used, stopped and killed like anybody's."""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from app.sdk import Client, RlvoError

PATIENCE = 90.0


def eventually(true: Callable[[], Any], what: str, within: float = PATIENCE) -> Any:
    """The first true answer of ``true``, asked often."""
    end = time.monotonic() + within
    while not (answer := true()):
        assert time.monotonic() < end, f"not within {within:.0f} s: {what}"
        time.sleep(0.02)
    return answer


class House:
    """``rlvo serve`` over one data folder, on one port that stays the same when it is started again."""

    def __init__(self, folder: Path, model_store: Path, model: str) -> None:
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
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

    def start(self) -> None:
        """Returns once it can predict."""
        with (self.folder / "log").open("ab") as log:
            command = [sys.executable, "-m", "app.cli.__main__", "serve"]
            self._process = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log)
        with self.client() as client:

            def ready() -> bool:
                assert self._process is not None
                assert self._process.poll() is None, self.log()
                try:
                    return client.health().ready
                except RlvoError:
                    return False

            eventually(ready, f"ready\n{self.log()}")

    def stop(self) -> int:
        """SIGTERM, as an operator's; the exit status."""
        assert self._process is not None
        self._process.terminate()
        return self._process.wait(PATIENCE)

    def kill_api(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def workers(self) -> list[int]:
        """The processes of the workers on the roll, the one that beat last first."""
        return [pid for (pid,) in self.ask("SELECT pid FROM workers ORDER BY beat DESC")]

    def kill_worker(self) -> int:
        """SIGKILL to the present worker; its process id."""
        worker = self.workers()[0]
        os.kill(worker, signal.SIGKILL)
        return worker

    def client(self, **options: Any) -> Client:
        return Client(self.url, **options)

    def ask(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        """Rows straight from the database, past the service."""
        with sqlite3.connect(f"file:{self.folder / 'rlvo.sqlite'}?mode=ro", uri=True, timeout=30) as rows:
            return rows.execute(query, values).fetchall()

    def blobs(self) -> set[str]:
        """The names of all stored files, unfinished ones too."""
        return {str(path.relative_to(self.folder)) for path in (self.folder / "blobs").rglob("*") if path.is_file()}

    def rlvo(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Runs the command line in this house's environment."""
        command = [sys.executable, "-m", "app.cli.__main__", *arguments]
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=PATIENCE)

    def log(self) -> str:
        return (self.folder / "log").read_text()[-4000:]
