"""`rlvo train --workers queue`: the workers of the service preprocess the studies of a cohort.

Design notes:
- Preprocessing jobs have the lowest priority, so they do not delay predictions.
- This module waits for files in the cache of the cohort, since the trainer reads these files.
- Without a running worker the command prints a message and continues to wait.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from app.cli.common import open_database

if TYPE_CHECKING:
    from app.training.cohort import CohortRow

PAUSE = 0.1
WORKER_CHECK_INTERVAL = 10.0  # seconds


def by_queue(studies: Sequence[CohortRow], cache: Path, advance: Callable[[], None]) -> None:
    """Preprocess studies into the folder ``cache`` by the workers of the service that the settings describe.

    Raises:
        CohortFault: Some studies stopped their workers; the message names them.
    """
    from app.database import workers
    from app.training.errors import CohortFault
    from app.worker import preprocess_jobs
    from app.worker.queue import Queue

    database = open_database()
    queue = Queue(database)
    queue.upgrade()
    run = uuid.uuid4().hex
    waiting = list(preprocess_jobs.write(studies, cache))
    for _, job in waiting:
        queue.prepare(f"{run}-{job.key}", str(job.path))
    faults: list[str] = []
    checked = 0.0
    while waiting:
        ended = [(study, job) for study, job in waiting if job.ended]
        for study, job in ended:
            if job.given_up:
                faults.append(f"row {study.row}: {preprocess_jobs.GIVEN_UP}")
            job.clear()
            advance()
        waiting = [pair for pair in waiting if pair not in ended]
        if waiting and time.monotonic() - checked > WORKER_CHECK_INTERVAL:
            checked = time.monotonic()
            with database.reading() as session:
                if not workers.registered(session):
                    typer.echo("No worker is running. Start `rlvo worker` with the same settings.", err=True)
        time.sleep(PAUSE if waiting else 0)
    if faults:
        raise CohortFault(faults)
