"""Runs the real service as a separate process, for tests that need real sockets or its memory use."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from app.database.session import Database


@dataclass
class Server:
    url: str
    pid: int
    folder: Path

    def database(self) -> Database:
        return Database(f"sqlite:///{self.folder / 'rlvo.sqlite'}")

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def memory(self) -> int:
        """Resident memory of the process, in bytes."""
        pages = (Path("/proc") / str(self.pid) / "statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def incoming(self) -> list[Path]:
        """Files of uploads in progress."""
        return list((self.folder / "blobs" / ".incoming").iterdir())


@contextmanager
def started(folder: Path, model_store: Path, *, worker: bool = False, **settings: str) -> Iterator[Server]:
    """Runs `rlvo serve` on a free port, by default without a worker."""
    environment = {
        **os.environ,
        "RLVO_DATA_DIR": str(folder),
        "RLVO_MODEL_STORE": str(model_store),
        "RLVO_DEFAULT_MODEL": "tiny",
        **{f"RLVO_{name.upper()}": value for name, value in settings.items()},
    }
    command = [sys.executable, "-m", "app.cli", "serve", "--worker" if worker else "--no-worker", "--port", "0"]
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=log) as process,
    ):
        assert process.stdout is not None
        line = next(line for line in process.stdout if b"rlvo is at" in line)
        try:
            yield Server(line.decode().split()[-1], process.pid, folder)
        finally:
            process.terminate()
