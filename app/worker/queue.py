"""The queue of jobs, in the same transaction as the row of the prediction.

Design notes:
- The engine is DBOS Transact, with the database and the connections of the service.
- The id of a job is the id of its prediction, so a second submission makes no second job.
- Webhooks, DICOM deliveries and figures have separate queues, so neither a slow receiver nor a figure delays
  predictions.
- A job carries ids only, so the tables of the engine hold no patient data.
- The queue has no cancel: a prediction is cancelled in its row, and its job ends at the next step.
- This module loads no torch, because the API process imports it.
"""

from __future__ import annotations

import sqlite3
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime

from dbos import DBOS, DBOSClient, DBOSPortableJSONSerializer, EnqueueOptions
from dbos import error as engine_errors
from sqlalchemy.orm import Session

from app.database import destinations, figure_state, pulls, webhooks
from app.database.destinations import Destination
from app.database.job_state import WaitingJob
from app.database.session import Database
from app.sdk.errors import InvalidRequest

APPLICATION = "rlvo"
QUEUE = "predictions"
JOB = "predict"
SHADOW_JOB = "shadow"
WEBHOOK_QUEUE = "webhooks"
WEBHOOK_JOB = "tell"
PREPARE_JOB = "prepare"
DICOM_QUEUE = "dicom"
DICOM_JOB = "send"
PULL_JOB = "fetch"
FIGURE_QUEUE = "figures"
FIGURE_JOB = "draw"
JOBS = [JOB, SHADOW_JOB, WEBHOOK_JOB, PREPARE_JOB, DICOM_JOB, PULL_JOB, FIGURE_JOB]
SERIALIZER = DBOSPortableJSONSerializer()
LOWEST_PRIORITY = 2**31 - 1  # priority of jobs that wait until no prediction waits
POLLING_SECONDS = 0.05
WEBHOOK_POLLING_SECONDS = 0.5
WEBHOOK_CONCURRENCY = 4  # messages that one worker sends at the same time
DICOM_CONCURRENCY = 2  # results and studies that one worker sends or fetches at the same time
FIGURE_POLLING_SECONDS = 0.2
_QUEUES = {
    f"{WEBHOOK_JOB}-": WEBHOOK_QUEUE,
    f"{DICOM_JOB}-": DICOM_QUEUE,
    f"{PULL_JOB}-": DICOM_QUEUE,
    f"{FIGURE_JOB}-": FIGURE_QUEUE,
}  # by the prefix of the job's id


class Queue:
    """Client of the job engine; connects at first use."""

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
        """Creates or migrates the tables of the engine; call it after `Database.upgrade`.

        Raises:
            InvalidRequest: The engine cannot use the SQLite of this Python.
        """
        if self._database.sqlite:
            check_sqlite(sys.version_info[:2], sqlite3.sqlite_version_info)
        with self._database.errors():
            DBOS.migrate(self._database.url.render_as_string(hide_password=False))
            self._client.register_queue(QUEUE, worker_concurrency=1, polling_interval_sec=POLLING_SECONDS)
            self._client.register_queue(
                WEBHOOK_QUEUE, worker_concurrency=WEBHOOK_CONCURRENCY, polling_interval_sec=WEBHOOK_POLLING_SECONDS
            )
            self._client.register_queue(
                DICOM_QUEUE, worker_concurrency=DICOM_CONCURRENCY, polling_interval_sec=WEBHOOK_POLLING_SECONDS
            )
            self._client.register_queue(FIGURE_QUEUE, worker_concurrency=1, polling_interval_sec=FIGURE_POLLING_SECONDS)

    def submit(self, session: Session, prediction_id: str, *, priority: int = 1) -> None:
        """Queues the job of a prediction when the transaction of the session is committed.

        ``priority`` is the position of `app.database.fair_queue`; a smaller number is served earlier.
        """
        self._client.enqueue_in_transaction(
            session,
            {"workflow_name": JOB, "queue_name": QUEUE, "workflow_id": prediction_id, "priority": priority},
            prediction_id,
        )

    def shadow(self, prediction_id: str) -> None:
        """Queues the shadow score of a prediction that has its answer, with the lowest priority."""
        self._client.enqueue(
            {
                "workflow_name": SHADOW_JOB,
                "queue_name": QUEUE,
                "workflow_id": f"shadow-{prediction_id}",
                "priority": LOWEST_PRIORITY,
            },
            prediction_id,
        )

    def queue_webhooks(self, session: Session, prediction_id: str) -> None:
        """Queues a message to each webhook of the tenant that the prediction has finished, in this transaction."""
        for webhook_id in webhooks.subscribed(session, prediction_id):
            self.queue_message(session, webhook_id, prediction_id, 1)

    def queue_message(
        self, session: Session, webhook_id: str, prediction_id: str, tries: int, *, delay: float | None = None
    ) -> None:
        """Queues one try of one webhook message, ``delay`` seconds after the transaction is committed."""
        arguments = (webhook_id, prediction_id, tries)
        self._enqueue(session, WEBHOOK_JOB, arguments, arguments, delay)

    def has_message(self, webhook_id: str, prediction_id: str, tries: int) -> bool:
        """Whether this try of a message is known to the engine: it waits, runs or has ended."""
        ids = [_id_of(WEBHOOK_JOB, (webhook_id, prediction_id, tries))]
        with self._database.errors():
            return bool(self._client.list_workflows(workflow_ids=ids, load_input=False, load_output=False))

    def queue_deliveries(self, session: Session, prediction_id: str, *, again: bool = False) -> int:
        """Queues the delivery of a result to each DICOM destination of the tenant, in this transaction.

        With ``again``, also to those that have it or that were given up. Returns the number of deliveries.
        """
        runs = destinations.begin(session, prediction_id, again=again)
        for destination_id, run in runs:
            self.queue_delivery(session, destination_id, prediction_id, run, 1)
        return len(runs)

    def queue_delivery(
        self,
        session: Session,
        destination_id: str,
        prediction_id: str,
        run: int,
        tries: int,
        *,
        delay: float | None = None,
    ) -> None:
        """Queues one try of one delivery, ``delay`` seconds after the transaction is committed."""
        arguments = (destination_id, prediction_id, run, tries)
        self._enqueue(session, DICOM_JOB, arguments, arguments, delay)

    def queue_pull(self, session: Session, source: Destination, study_uid: str) -> None:
        """Queues the fetching of a study from an archive, for the tenant of the archive, in this transaction."""
        arguments = pulls.begin(session, source, study_uid)
        self._enqueue(session, PULL_JOB, arguments, arguments, None)

    def draw(
        self, session: Session, prediction_id: str, number: int = 1, failures: int = 0, *, delay: float | None = None
    ) -> None:
        """Queues try ``number`` to draw the figures of a prediction, ``delay`` seconds after this transaction.

        ``failures`` is the number of tries that failed for another reason than a fault of the environment.
        """
        self._enqueue(session, FIGURE_JOB, (prediction_id, number), (prediction_id, number, failures), delay)

    def draw_on_demand(self, session: Session, prediction_id: str) -> bool:
        """Queues the job that draws the figures, unless it is queued or nothing is to be drawn; True if it did."""
        wanted = figure_state.want(session, prediction_id)
        if wanted:
            self.draw(session, prediction_id)
        return wanted

    def _enqueue(
        self, session: Session, name: str, key: tuple[object, ...], arguments: tuple[object, ...], delay: float | None
    ) -> None:
        """Queues a job in this transaction, in the queue of its name; ``key`` makes its id."""
        job: EnqueueOptions = {
            "workflow_name": name,
            "queue_name": _QUEUES[f"{name}-"],
            "workflow_id": _id_of(name, key),
        }
        if delay is not None:
            job["delay_seconds"] = delay
        self._client.enqueue_in_transaction(session, job, *arguments)

    def prepare(self, name: str, path: str) -> None:
        """Queues the preparation of one study of a cohort (`app.worker.preprocess_jobs`), with the lowest priority.

        ``path`` is the job file. A ``name`` that was queued before makes no second job.
        """
        self._client.enqueue(
            {
                "workflow_name": PREPARE_JOB,
                "queue_name": QUEUE,
                "workflow_id": f"prepare-{name}",
                "priority": LOWEST_PRIORITY,
            },
            path,
        )

    def running(self) -> dict[str, str]:
        """Running jobs, each with the id of its worker."""
        jobs = self._client.list_workflows(status="PENDING", name=JOBS, load_input=False, load_output=False)
        return {job.workflow_id: job.executor_id or "" for job in jobs}

    def requeue(self, jobs: list[str]) -> None:
        """Puts jobs of a stopped worker back into the queue; the next worker continues after the last completed step.

        If the worker still runs, it has lost the jobs: the engine and the rows of the predictions refuse its writes.
        """
        for queue in (QUEUE, *_QUEUES.values()):
            if ids := [job for job in jobs if _queue_of(job) == queue]:
                self._client.resume_workflows(ids, queue_name=queue)

    def broken(self) -> list[str]:
        """Jobs that the engine has given up because the database failed while it logged a step."""
        jobs = self._client.list_workflows(status="ERROR", name=JOBS, load_input=False, load_output=False)
        return [job.workflow_id for job in jobs]

    def restart(self, job: str) -> None:
        """Queues a broken job again from its first step; a result is still recorded only once."""
        with suppress(engine_errors.DBOSException):  # another worker restarted it first
            self._client.rewind_workflow(job, queue_name=_queue_of(job))

    def continue_waiting(self, job: WaitingJob) -> None:
        """Queues the job of a waiting prediction again, from the step that met the fault of the environment."""
        try:
            self._client.rewind_workflow(job.id, start_step=job.step, queue_name=QUEUE)
        except engine_errors.DBOSNonExistentWorkflowError:  # it ended so long ago that it was pruned
            self._client.enqueue(
                {"workflow_name": JOB, "queue_name": QUEUE, "workflow_id": job.id, "priority": job.queue_position},
                job.id,
            )
        except engine_errors.DBOSException:  # its last run has not ended yet, or another worker was faster
            pass

    def prune(self, *, older_than: float) -> None:
        """Deletes jobs that ended more than ``older_than`` seconds ago; the predictions stay."""
        before = datetime.fromtimestamp(time.time() - older_than, UTC).isoformat()
        ended = self._client.list_workflows(
            status="SUCCESS", name=JOBS, completed_before=before, limit=1000, load_input=False, load_output=False
        )
        if ended:
            self._client.delete_workflows([job.workflow_id for job in ended])

    def alive(self, prediction_ids: list[str]) -> set[str]:
        """The given predictions whose jobs are queued or running."""
        jobs = self._client.list_workflows(
            workflow_ids=prediction_ids, status=["ENQUEUED", "PENDING"], load_input=False, load_output=False
        )
        return {job.workflow_id for job in jobs}


def _id_of(name: str, key: tuple[object, ...]) -> str:
    return "-".join(map(str, (name, *key)))


def check_sqlite(python: tuple[int, ...], sqlite: tuple[int, ...]) -> None:
    """Raises InvalidRequest for a Python from 3.12 on with a SQLite before 3.42.

    There the engine uses ``unixepoch('subsec')``, which gives NULL in an older SQLite, and its first insertion fails.
    """
    if python >= (3, 12) and sqlite < (3, 42):
        found = ".".join(map(str, sqlite))
        raise InvalidRequest(
            f"The job engine needs SQLite 3.42 or later with this Python, which has {found}. Use Python 3.11 or "
            "PostgreSQL (RLVO_DATABASE_URL)"
        )


def _queue_of(job: str) -> str:
    """The queue of a job, by its id."""
    return next((queue for prefix, queue in _QUEUES.items() if job.startswith(prefix)), QUEUE)
