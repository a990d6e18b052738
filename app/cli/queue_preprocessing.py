"""`rlvo train --workers queue`: a cohort's studies are prepared by the service's own workers, through its queue.

Notable choices:
- They come after everybody who waits for an answer: a study is queued at the lowest priority.
- Results are awaited as files in the cohort's cache, not as answers of the engine: they are what the trainer reads.
- Where no worker is alive nothing fails: it is said, and the wait goes on until one is started.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from app.cli.common import settings

if TYPE_CHECKING:
    from app.training.cohort import CohortRow

PAUSE = 0.1
LOOK_EVERY = 10.0  # seconds between looks at the roll of workers


def by_queue(studies: Sequence[CohortRow], cache: Path, advance: Callable[[], None]) -> None:
    """Prepare studies into ``cache`` by the workers of the service that the environment's settings describe.

    :raises CohortFault: naming the studies that killed their workers
    """
    from app.database import workers
    from app.database.session import Database
    from app.training.errors import CohortFault
    from app.worker import preprocess_jobs
    from app.worker.queue import Queue

    database = Database(settings().database)
    database.upgrade()
    queue = Queue(database)
    queue.upgrade()
    run = uuid.uuid4().hex
    waiting = list(preprocess_jobs.write(studies, cache))
    for _, order in waiting:
        queue.prepare(f"{run}-{order.key}", str(order.path))
    faults: list[str] = []
    looked = 0.0
    while waiting:
        ended = [(study, order) for study, order in waiting if order.ended]
        for study, order in ended:
            if order.given_up:
                faults.append(f"row {study.row}: {preprocess_jobs.GIVEN_UP}")
            order.clear()
            advance()
        waiting = [pair for pair in waiting if pair not in ended]
        if waiting and time.monotonic() - looked > LOOK_EVERY:
            looked = time.monotonic()
            with database.reading() as session:
                if not workers.registered(session):
                    typer.echo("No worker is alive: start `rlvo worker` with the same settings.", err=True)
        time.sleep(PAUSE if waiting else 0)
    if faults:
        raise CohortFault(faults)
