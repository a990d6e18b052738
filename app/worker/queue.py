"""The queue of predictions: an entry is made in the very transaction that inserts the prediction.

Notable choices:
- The engine is DBOS Transact, over our own database and our own connections; no queue is written by hand.
- A job's id is its prediction's id, so submitting one twice makes one job.
- Webhooks have a queue of their own: no receiver that is slow keeps a prediction waiting.
- A job carries its prediction's id and nothing else: no patient data ever lies in the engine's tables.
- There is no cancel here. A prediction is cancelled in its own row; its job looks there before each step, and ends.
- No torch: the API process uses this.
"""

from __future__ import annotations

import time
from contextlib import suppress
from datetime import UTC, datetime

from dbos import DBOS, DBOSClient, DBOSPortableJSONSerializer, EnqueueOptions
from dbos import error as engine_errors
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.database import webhooks
from app.database.session import Database
from app.database.tables import PredictionRow
from app.sdk.types import Status

APPLICATION = "rlvo"
QUEUE = "predictions"
JOB = "predict"
SHADOW_JOB = "shadow"
NEWS_QUEUE = "webhooks"
NEWS_JOB = "tell"
PREPARE_JOB = "prepare"
JOBS = [JOB, SHADOW_JOB, NEWS_JOB, PREPARE_JOB]
SERIALIZER = DBOSPortableJSONSerializer()
LAST = 2**31 - 1
"""The priority of what may wait for ever."""
POLLING = 0.05
"""Seconds between a worker's looks at the queue."""
NEWS_POLLING = 0.5
NEWS_AT_ONCE = 4
"""Messages that one worker sends at a time."""

_NEWS = f"{NEWS_JOB}-"


class Queue:
    """The way into the queue, for the process that takes requests. Connects when first used."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._client = DBOSClient(
            system_database_engine=database.engine,
            serializer=SERIALIZER,
            application_name=APPLICATION,
            lazy=True,
            retry_connection_errors=False,
        )

    def upgrade(self) -> None:
        """Brings the engine's tables to this release's shape; after `Database.upgrade`, which makes the file."""
        DBOS.migrate(self._database.url.render_as_string(hide_password=False))
        self._client.register_queue(QUEUE, worker_concurrency=1, polling_interval_sec=POLLING)
        self._client.register_queue(NEWS_QUEUE, worker_concurrency=NEWS_AT_ONCE, polling_interval_sec=NEWS_POLLING)

    def submit(self, session: Session, prediction_id: str, *, priority: int = 1) -> None:
        """Queues the work on a prediction, if and when the session's transaction is committed.

        :param priority: its turn (app/database/turns.py); a smaller number is served earlier
        """
        self._client.enqueue_in_transaction(
            session,
            {"workflow_name": JOB, "queue_name": QUEUE, "workflow_id": prediction_id, "priority": priority},
            prediction_id,
        )

    def shadow(self, prediction_id: str) -> None:
        """Queues the scoring of an answered prediction by its model's shadow, for when nobody else waits."""
        self._client.enqueue(
            {
                "workflow_name": SHADOW_JOB,
                "queue_name": QUEUE,
                "workflow_id": f"shadow-{prediction_id}",
                "priority": LAST,
            },
            prediction_id,
        )

    def announce(self, session: Session, prediction_id: str) -> None:
        """Lets every webhook of the prediction's tenant know that it has finished, if the transaction is committed."""
        for webhook_id in webhooks.wanting(session, prediction_id):
            self.tell(session, webhook_id, prediction_id, 1)

    def tell(
        self, session: Session, webhook_id: str, prediction_id: str, tries: int, *, delay: float | None = None
    ) -> None:
        """Queues one try at one message, to be made after ``delay`` seconds, if the transaction is committed."""
        job: EnqueueOptions = {
            "workflow_name": NEWS_JOB,
            "queue_name": NEWS_QUEUE,
            "workflow_id": f"{_NEWS}{webhook_id}-{prediction_id}-{tries}",
        }
        if delay is not None:
            job["delay_seconds"] = delay
        self._client.enqueue_in_transaction(session, job, webhook_id, prediction_id, tries)

    def prepare(self, name: str, order: str) -> None:
        """Queues the preparation of one study of a cohort (app/training/orders.py), for when nobody else waits.

        :param name: of the job; one that was queued under this name before is not queued again
        :param order: path of the order's file
        """
        self._client.enqueue(
            {"workflow_name": PREPARE_JOB, "queue_name": QUEUE, "workflow_id": f"prepare-{name}", "priority": LAST},
            order,
        )

    def running(self) -> dict[str, str]:
        """The jobs that some worker took, each with that worker's id; a prediction's job has its id."""
        jobs = self._client.list_workflows(status="PENDING", name=JOBS, load_input=False, load_output=False)
        return {job.workflow_id: job.executor_id or "" for job in jobs}

    def requeue(self, jobs: list[str]) -> None:
        """Lets other workers go on with jobs whose worker is gone, after the last step that it completed.

        Should that worker live after all, it has lost the jobs: neither the engine nor our rows take its writes.
        """
        news = [job for job in jobs if job.startswith(_NEWS)]
        work = [job for job in jobs if not job.startswith(_NEWS)]
        for ids, queue in ((work, QUEUE), (news, NEWS_QUEUE)):
            if ids:
                self._client.resume_workflows(ids, queue_name=queue)

    def broken(self) -> list[str]:
        """The jobs that the engine gave up, because the database failed it while it noted what they had done."""
        jobs = self._client.list_workflows(status="ERROR", name=JOBS, load_input=False, load_output=False)
        return [job.workflow_id for job in jobs]

    def begin_again(self, job: str) -> None:
        """Lets workers do a broken job once more, from its beginning; what it has recorded is recorded once."""
        with suppress(engine_errors.DBOSException):  # another worker was quicker
            self._client.rewind_workflow(job, queue_name=NEWS_QUEUE if job.startswith(_NEWS) else QUEUE)

    def prune(self, *, older_than: float) -> None:
        """Forgets jobs that ended more than ``older_than`` seconds ago; their predictions are the record."""
        before = datetime.fromtimestamp(time.time() - older_than, UTC).isoformat()
        ended = self._client.list_workflows(
            status="SUCCESS",
            name=JOBS,
            completed_before=before,
            limit=1000,
            load_input=False,
            load_output=False,
        )
        if ended:
            self._client.delete_workflows([job.workflow_id for job in ended])

    def alive(self, prediction_ids: list[str]) -> set[str]:
        """Those of the predictions that the engine will still work on."""
        jobs = self._client.list_workflows(
            workflow_ids=prediction_ids, status=["ENQUEUED", "PENDING"], load_input=False, load_output=False
        )
        return {job.workflow_id for job in jobs}

    def depth(self, session: Session) -> int:
        """How many predictions wait for a worker."""
        return session.scalar(select(func.count()).where(PredictionRow.status == Status.QUEUED)) or 0
