"""Workflows of the job engine (DBOS Transact): the jobs that a worker takes from the queue.

Design notes:
- The engine logs each completed step of `predict`. A worker that takes over starts the workflow again, and the engine
  answers the completed steps from its log.
- The row of the prediction decides whether the work goes on. `predict` checks it before each step, so a cancelled,
  erased or taken-over prediction ends there.
- A step that meets a fault of the environment ends the job without a result. The prediction is then waiting, and the
  supervisor of any worker starts the job again from this step.
- A job that stops its worker too often within one stage fails with the code of `Quarantined`.
- Names of workflows and steps, their arguments and the results of steps stay the same in all releases, so a new release
  continues the jobs of an old one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from dbos import DBOS

from app.core.logging import bound_fields
from app.core.tracing import Span, TraceContext, Traces
from app.database import job_state, trials
from app.database.session import Database, retry_until_available
from app.inference.model_cache import ModelCache
from app.registry.aliases import SHADOW
from app.registry.model_store import StoredVersion
from app.sdk.errors import DatabaseUnavailable, Erased, PredictionNotFound, Quarantined, RlvoError, StorageFull
from app.sdk.types import WAITING_FOR_STORAGE, Stage
from app.worker import resource_limits
from app.worker.dicom_delivery import DicomDelivery
from app.worker.dicom_pull import DicomPull
from app.worker.drawing import FigureJobs
from app.worker.liveness import LivenessMonitor
from app.worker.pipeline import TRIES, PredictionPipeline, failure_record
from app.worker.prediction_context import PredictionContext, StepResult
from app.worker.queue import DICOM_JOB, FIGURE_JOB, JOB, PREPARE_JOB, PULL_JOB, SHADOW_JOB, WEBHOOK_JOB, Queue
from app.worker.webhooks import WebhookSender

log = logging.getLogger("rlvo.worker")

QUARANTINED = failure_record(
    Quarantined("The worker stopped, or exceeded its limits, each time it tried this prediction. It is not tried again")
)


@dataclass(frozen=True)
class Workflows:
    """The jobs of one worker: predict, shadow, prepare (a study of a cohort), webhooks, DICOM and figures.

    Attributes:
        cpu_limit: CPU seconds for one start of a job; the worker stops beyond it.
    """

    database: Database
    queue: Queue
    model_cache: ModelCache
    pipeline: PredictionPipeline
    webhook_sender: WebhookSender
    dicom_delivery: DicomDelivery
    dicom_pull: DicomPull
    figure_jobs: FigureJobs
    liveness: LivenessMonitor
    traces: Traces
    cpu_limit: float

    def register(self) -> None:
        """Registers the workflows; after the DBOS object exists and before `DBOS.launch`."""
        deliver = self.webhook_sender.deliver
        jobs: dict[str, Callable[..., None]]
        jobs = {JOB: self.predict, SHADOW_JOB: self.shadow, WEBHOOK_JOB: deliver, PREPARE_JOB: self.prepare}
        jobs[DICOM_JOB] = self.dicom_delivery.deliver
        jobs[PULL_JOB] = self.dicom_pull.pull
        jobs[FIGURE_JOB] = self.figure_jobs.draw
        for name, job in jobs.items():
            DBOS.workflow(name=name)(self._active(job))

    def predict(self, prediction_id: str) -> None:
        """Takes a prediction and runs its steps up to the record."""
        study = retry_until_available(partial(self._start, prediction_id))
        if study is not None:
            model = f"{study.model.name}@{study.model.version}"
            with (
                self.traces.span(
                    "prediction", study.trace_context, prediction=study.id, model=model, run=study.run
                ) as span,
                bound_fields(trace=span.trace_context.trace, prediction=study.id),
            ):
                with resource_limits.cpu(self.cpu_limit), closing(self.pipeline.begin(study)) as context:
                    last: StepResult = {"failure": QUARANTINED}
                    if study.attempts <= TRIES:
                        last = self._run_steps(context, span)
                    step = len(context.results) + 1
                if waiting := last.get("waiting"):
                    span.fail(WAITING_FOR_STORAGE)
                    log.warning("prediction %s is %s: %s", prediction_id, WAITING_FOR_STORAGE, waiting)
                    retry_until_available(partial(self.pipeline.wait, study, waiting, step))
                elif failure := last.get("failure"):
                    span.fail(failure["code"])
                    log.error("prediction %s failed: %s", prediction_id, failure["detail"])
                    retry_until_available(partial(self.pipeline.fail, study, failure))
                else:
                    self._queue_shadow(study)
        retry_until_available(partial(self.pipeline.clear_scratch, prediction_id))

    def shadow(self, prediction_id: str) -> None:
        """Scores a prediction that has its answer with the shadow version of its model."""
        try:
            with self.database.reading() as session:
                study = job_state.recorded(session, prediction_id)
                entry = self._shadow_of(study)
                covered = entry is not None and trials.covers_shadow(session, study.id, entry.name, entry.version)
        except (PredictionNotFound, Erased):
            return
        if entry is not None and not covered:
            self.pipeline.shadow(study, entry)

    def prepare(self, path: str) -> None:
        """Prepares one study of a training cohort into the cache of the cohort."""
        from app.worker import preprocess_jobs  # here: only training needs scikit-learn

        with resource_limits.cpu(self.cpu_limit):
            preprocess_jobs.job_at(Path(path)).run_job(TRIES)

    def _run_steps(self, context: PredictionContext, span: Span) -> StepResult:
        """Returns the result of a step that failed or waits; empty if the answer is recorded or the prediction lost."""
        for stage in Stage:
            if stage is Stage.EXPLAIN and not context.study.explain:
                continue
            try:
                if not retry_until_available(partial(self._advance, context.study, stage), also_full=False):
                    return {}
                with self.database.errors():  # the engine logs the step in the same database
                    result = DBOS.run_step({"name": stage}, self._traced_step, span.trace_context, stage, context)
            except (StorageFull, DatabaseUnavailable) as error:  # no fault of the study, so no start that counts
                return self.pipeline.waiting(stage, context, error)
            if "failure" in result or "waiting" in result:
                return result
            context.results[stage] = result
        return {}

    def _traced_step(self, parent: TraceContext, stage: Stage, context: PredictionContext) -> StepResult:
        with self.traces.span(stage, parent, prediction=context.study.id) as span:
            result = self.pipeline.step(stage, context)
            if failure := result.get("failure"):
                span.fail(failure["code"])
            return result

    def _queue_shadow(self, study: job_state.JobStudy) -> None:
        """Queues the shadow score after the answer is recorded; a worker that stops here leaves it out."""
        if self._shadow_of(study) is not None:
            try:
                self.queue.shadow(study.id)
            except Exception as error:  # noqa: BLE001 - a failed shadow must not stop the worker
                log.warning("the shadow of %s is not queued: %s", study.id, type(error).__name__)

    def _shadow_of(self, study: job_state.JobStudy) -> StoredVersion | None:
        """The shadow version of the study's model, if it is not the version that answered; None if it is sealed."""
        if study.trial is not None:
            return None
        try:
            entry = self.model_cache.registry.resolve(f"{study.model.name}@{SHADOW}")
        except RlvoError:
            return None
        return entry if entry.version != study.model.version else None

    def _start(self, prediction_id: str) -> job_state.JobStudy | None:
        with self.database.session() as session:
            return job_state.start(session, prediction_id)

    def _advance(self, study: job_state.JobStudy, stage: Stage) -> bool:
        with self.database.session() as session:
            return job_state.advance(session, study, stage)

    def _active(self, job: Callable[..., None]) -> Callable[..., None]:
        """The job, marked as active in this worker while it runs."""

        def run(*arguments: Any) -> None:
            with self.liveness.active_job(str(DBOS.workflow_id)):
                job(*arguments)

        return run
