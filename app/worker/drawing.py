"""Draws the figures and the report of a prediction after its answer is recorded.

Design notes:
- The answer waits for no figure, and no error here changes it.
- A process of its own draws (`app.worker.drawing_process`); it is started when it is needed.
- The job stores nothing before all files are drawn. Then the blobs come first and one transaction names them, so a job
  that is killed at any time starts again and stores each file once.
- A fault of the environment is waited for without limit. After another error the state is `failed`, and the job is
  tried again `TRIES` times in all, with growing pauses.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from socket import socketpair

from app.core.environment import is_environment_fault
from app.core.logging import bound_fields, error_location
from app.database import figure_state
from app.database.predictions import Artifact
from app.database.session import Database, retry_until_available
from app.sdk.errors import DatabaseUnavailable, RlvoError, StorageFull, StorageUnavailable
from app.storage.local import Storage
from app.worker import file_messages
from app.worker.drawing_data import wanted
from app.worker.file_messages import ERROR, IDLE_SECONDS
from app.worker.queue import Queue

log = logging.getLogger("rlvo.figures")

TRIES = 8
FIRST_PAUSE = 10.0  # seconds after the first failure; the next pauses are four times as long, up to the longest
LONGEST_PAUSE = 6 * 3600.0
ENVIRONMENT_PAUSE = 15.0
PATIENCE = 120.0  # seconds for all files of one prediction; a process that needs more is ended

_MEDIA_TYPES = {"svg": "image/svg+xml", "png": "image/png", "html": "text/html; charset=utf-8"}


class DrawingFailed(Exception):
    """The process that draws has ended, or has met an error; the text says where."""


@dataclass
class DrawingProcess:
    """The process that draws; it is used by one job at a time.

    Attributes:
        patience: Seconds until a process without an answer is ended.
    """

    patience: float = PATIENCE
    _process: subprocess.Popen[bytes] | None = None
    _connection: Connection | None = None
    _last_used: float = 0.0

    def draw(self, stored: Mapping[str, bytes]) -> dict[str, bytes]:
        """Draws all files of one prediction. Raises DrawingFailed, and OSError if no process can be started."""
        connection = self._connected()
        try:
            file_messages.send(connection, stored)
            if not connection.poll(self.patience):
                raise DrawingFailed(f"no figures within {self.patience:g} s")
            files = file_messages.receive(connection)
        except (EOFError, OSError):  # no fault of the environment: the same input can end the next process too
            self.close()
            raise DrawingFailed("the process that draws has ended") from None
        except DrawingFailed:
            self.close()
            raise
        if ERROR in files:
            self.close()
            raise DrawingFailed(files[ERROR].decode())
        return files

    def close(self) -> None:
        """Ends the process."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _connected(self) -> Connection:
        if self._process is None or time.monotonic() - self._last_used > IDLE_SECONDS / 2:  # it may end at any time now
            self.close()
            ours, theirs = socketpair()
            with ours, theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "app.worker.drawing_process"],
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
                )
                self._connection = Connection(ours.detach())
        assert self._connection is not None
        self._last_used = time.monotonic()
        return self._connection


@dataclass(frozen=True)
class FigureJobs:
    """The jobs that draw figures and reports."""

    database: Database
    storage: Storage
    queue: Queue
    process: DrawingProcess = field(default_factory=DrawingProcess)

    def draw(self, prediction_id: str, number: int, failures: int) -> None:
        """Makes one try, and queues the next one if it fails. The first try has the number 1 and no failures."""
        with bound_fields(prediction=prediction_id):
            if (sources := retry_until_available(partial(self._sources, prediction_id))) is None:
                return
            try:
                stored = self._draw(prediction_id, sources)
            except (RlvoError, OSError, DrawingFailed) as error:
                log.warning("the figures of %s are drawn later: %s", prediction_id, _reason(error))
                counts = not _is_environment_fault(error)
                retry_until_available(partial(self._try_again, prediction_id, number, failures + counts, failed=counts))
            else:
                retry_until_available(partial(self._record, prediction_id, stored))

    def _draw(self, prediction_id: str, sources: Mapping[str, str]) -> list[Artifact]:
        """Draws the files and makes blobs of them; none if the prediction was erased meanwhile."""
        files = self.process.draw({name: self.storage.read(sources[name]) for name in wanted(sources)})
        self.storage.require(sum(map(len, files.values())))
        if self._sources(prediction_id) is None:
            return []
        return [
            Artifact(name, self.storage.put(data), len(data), _MEDIA_TYPES[name.rpartition(".")[2]])
            for name, data in files.items()
        ]

    def _sources(self, prediction_id: str) -> dict[str, str] | None:
        with self.database.reading() as session:
            return figure_state.sources(session, prediction_id)

    def _record(self, prediction_id: str, stored: list[Artifact]) -> None:
        with self.database.session() as session:
            figure_state.drawn(session, prediction_id, stored)

    def _try_again(self, prediction_id: str, number: int, failures: int, *, failed: bool) -> None:
        """Queues the next try in the transaction that notes the failure; none after the last try, or an erasure."""
        with self.database.session() as session:
            if failed and not figure_state.failed(session, prediction_id):
                return
            if failures < TRIES:
                delay = pause(failures) if failed else ENVIRONMENT_PAUSE
                self.queue.draw(session, prediction_id, number + 1, failures, delay=delay)


def pause(failures: int) -> float:
    """Seconds before the next try after this number of failures."""
    return float(min(FIRST_PAUSE * 4 ** (failures - 1), LONGEST_PAUSE))


def _is_environment_fault(error: Exception) -> bool:
    return isinstance(error, StorageFull | StorageUnavailable | DatabaseUnavailable) or is_environment_fault(error)


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, DrawingFailed) else error_location(error)
