"""The worker process: takes predictions from the queue, one at a time, and works them through to their record.

Notable choices:
- The job engine (DBOS Transact) runs `predict` and remembers each completed step. A worker that takes over runs it
  again from its beginning, and completed steps are answered from that memory.
- The prediction's own row decides. Before each step the job asks it for leave to go on, so a cancelled, erased or
  taken-over prediction ends there, whatever the engine thinks.
- Every worker watches the others. One is dead when its lock file is free (the kernel lets go of it at once; seen on
  the same machine only) or when its count of beats stood still for a lease by the watcher's own clock. No two clocks
  are ever compared. Whoever strikes it off the roll puts its jobs back into the queue.
- The engine drops a job where the database fails it as it notes a step. So a job that is ours by its word and that no
  thread of ours has in hand for a lease goes back into the queue, and one that it gave up begins again.
- SIGTERM drains: nothing new is taken, the job in hand is finished, or else put back.
- A version is loaded beside the one that serves: threads take turns at the interpreter fifty times as often as by
  default, the loading one with less claim on the cores, and what was imported is no more looked through for garbage.
  What a promotion costs the slowest of a hundred answers, bench/swap.py measures.
- A job that keeps killing its worker without reaching a new stage is quarantined with its own code.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import socket
import sys
import threading
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from functools import partial
from pathlib import Path

from dbos import DBOS, DBOSConfig

from app.core import logging as logs
from app.core.config import Settings
from app.core.egress import EgressClient
from app.core.tracing import Span, TraceContext, Traces
from app.core.tracing_factory import create_traces
from app.database import idempotency, job_state, predictions, workers
from app.database.session import Database, now, retry_until_available
from app.imaging.io.limits import Limits
from app.inference.model_cache import ModelCache
from app.registry.aliases import SHADOW
from app.registry.model_store import ModelStore, StoredVersion
from app.sdk.errors import DatabaseUnavailable, Erased, PredictionNotFound, Quarantined, RlvoError
from app.sdk.types import Stage
from app.storage.factory import storage_of
from app.storage.local import Storage
from app.worker import resource_limits
from app.worker.liveness import LivenessMonitor
from app.worker.model_loading import ModelLoader
from app.worker.pipeline import TRIES, FailureRecord, PredictionPipeline, StepResult, StepResults, failure_record
from app.worker.queue import APPLICATION, JOB, NEWS_JOB, PREPARE_JOB, SERIALIZER, SHADOW_JOB, Queue
from app.worker.retention import Retention
from app.worker.tensor_server import TensorServer
from app.worker.webhooks import WebhookSender

log = logging.getLogger("rlvo.worker")

TURN = 1e-4
"""Seconds after which a thread that waits for the interpreter gets it."""
LOADING_NICE = 10
"""What the thread that loads versions gives way by, to those that answer."""
DRAIN = 25
"""Seconds that the job in hand gets to finish after SIGTERM; a supervisor's patience is a little longer."""
SWEEP_EVERY = 600.0
ORPHAN_AGE = 3600.0
"""Age in seconds at which a blob that no row names, or an upload's remains, are swept; no upload takes that long."""

QUARANTINED = failure_record(
    Quarantined("The prediction was given up: its worker died, or went beyond its limits, each time it was tried")
)


def run(settings: Settings) -> None:
    """Runs one worker until SIGTERM or SIGINT."""
    Worker(settings).run()


class Worker:
    """One process's worker. Everything that it owns is made here and handed down, or given."""

    def __init__(self, settings: Settings, *, traces: Traces | None = None) -> None:
        self.id = str(uuid.uuid4())
        self._settings = settings
        self._database = Database(settings.database, idle=settings.lease)
        self._storage = storage_of(settings)
        self._queue = Queue(self._database)
        self._models = create_model_cache(settings)
        largest = Limits(max_voxels=settings.max_voxels, max_bytes=settings.max_volume_bytes)
        self._job = PredictionPipeline(self._database, self._storage, self._queue, self._models, largest)
        egress = EgressClient(settings.webhook_hosts)
        self._webhook_sender = WebhookSender(self._database, self._queue, egress, settings.webhook_backoff)
        self._tensor_server = TensorServer(settings.workers, self.id, self._models)
        self._model_loader = ModelLoader(self._database, self._models)
        self._liveness = LivenessMonitor(self.id, settings.workers, settings.lease)
        self._traces = traces or create_traces(settings.otlp_endpoint, "rlvo-worker")
        self._stop = threading.Event()
        self._gone = threading.Event()
        self._retention = Retention(self._database, self._storage, settings.retention_days)
        self._started = now()
        self._heartbeats = 0

    def run(self) -> None:
        resource_limits.memory(self._settings.memory_limit_mb)
        resource_limits.keep_memory()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._stop.set())
        sys.setswitchinterval(TURN)
        retry_until_available(self._database.upgrade)
        retry_until_available(self._queue.upgrade)
        self._heartbeat()
        watching = self._regularly(self._settings.heartbeat, self._watch_over)
        self._regularly(SWEEP_EVERY, self._sweep)
        self._regularly(self._settings.heartbeat, self._reconcile_models, nice=LOADING_NICE)
        gc.freeze()
        self._warm_up()
        self._launch()
        self._tensor_server.open()
        log.info("worker %s takes predictions", self.id)
        self._stop.wait()
        log.info("worker %s drains", self.id)
        self._tensor_server.close()
        DBOS.destroy(workflow_completion_timeout_sec=DRAIN)
        self._gone.set()  # not before: who stops beating while it drains is taken for dead
        watching.join(timeout=5)
        self._leave()

    def predict(self, prediction_id: str) -> None:
        """One prediction from its start to its record; the engine's workflow."""
        study = retry_until_available(partial(self._start, prediction_id))
        if study is not None:
            model = f"{study.model.name}@{study.model.version}"
            with (
                self._traces.span("prediction", study.place, prediction=study.id, model=model, run=study.run) as span,
                logs.bound_fields(trace=span.place.trace, prediction=study.id),
            ):
                with resource_limits.cpu(self._settings.cpu_limit):
                    failure = QUARANTINED if study.attempts > TRIES else self._work_through(study, span)
                if failure is None:
                    self._queue_shadow(study)
                else:
                    span.fail(failure["code"])
                    log.error("prediction %s failed: %s", prediction_id, failure["detail"])
                    retry_until_available(partial(self._job.fail, study, failure))
        retry_until_available(partial(self._job.tidy, prediction_id))

    def _work_through(self, study: job_state.JobStudy, span: Span) -> FailureRecord | None:
        """Step after step; why it ended without an answer, or None where it is recorded or no longer ours to do."""
        done: StepResults = {}
        for stage in Stage:
            if stage is Stage.EXPLAIN and not study.explain:
                continue
            if not retry_until_available(partial(self._advance, study, stage)):
                return None
            done[stage] = DBOS.run_step({"name": stage}, self._traced, span.place, stage, study, done)
            if failure := done[stage].get("failure"):
                return failure
        return None

    def _traced(self, parent: TraceContext, stage: Stage, study: job_state.JobStudy, done: StepResults) -> StepResult:
        with self._traces.span(stage, parent, prediction=study.id) as span:
            result = self._job.step(stage, study, done)
            if failure := result.get("failure"):
                span.fail(failure["code"])
            return result

    def shadow(self, prediction_id: str) -> None:
        """Scores one answered prediction by its model's shadow; the engine's workflow."""
        try:
            with self._database.reading() as session:
                study = job_state.recorded(session, prediction_id)
        except (PredictionNotFound, Erased):
            return
        if (entry := self._shadow_of(study)) is not None:
            self._job.shadow(study, entry)

    def prepare(self, order: str) -> None:
        """Prepares one study of a training cohort into the cohort's cache; the engine's workflow."""
        from app.worker import preprocess_jobs  # here: a worker that never trains needs no scikit-learn

        with resource_limits.cpu(self._settings.cpu_limit):
            preprocess_jobs.job_at(Path(order)).carry_out(TRIES)

    def _queue_shadow(self, study: job_state.JobStudy) -> None:
        """After the answer is out. Best effort: who dies right here leaves one prediction without its score."""
        if self._shadow_of(study) is not None:
            try:
                self._queue.shadow(study.id)
            except Exception as error:  # noqa: BLE001 - a shadow harms nobody, whatever it meets
                log.warning("the shadow of %s is not queued: %s", study.id, type(error).__name__)

    def _shadow_of(self, study: job_state.JobStudy) -> StoredVersion | None:
        """The version in the shadow of the one that answered, if there is another one."""
        try:
            entry = self._models.registry.resolve(f"{study.model.name}@{SHADOW}")
        except RlvoError:
            return None
        return entry if entry.version != study.model.version else None

    def _start(self, prediction_id: str) -> job_state.JobStudy | None:
        with self._database.session() as session:
            return job_state.start(session, prediction_id)

    def _advance(self, study: job_state.JobStudy, stage: Stage) -> bool:
        with self._database.session() as session:
            return job_state.advance(session, study, stage)

    def _launch(self) -> None:
        config: DBOSConfig = {
            "name": APPLICATION,
            "system_database_engine": self._database.engine,
            "executor_id": self.id,
            # One for all releases, so that a new release goes on with an old one's jobs: steps must stay compatible.
            "application_version": "1",
            "serializer": SERIALIZER,
            "run_migrations": False,
            "enable_otlp": False,
            "log_level": "ERROR",
        }
        DBOS(config=config)

        @DBOS.workflow(name=JOB)
        def predict(prediction_id: str) -> None:
            with self._job_in_hand():
                self.predict(prediction_id)

        @DBOS.workflow(name=SHADOW_JOB)
        def shadow(prediction_id: str) -> None:
            with self._job_in_hand():
                self.shadow(prediction_id)

        @DBOS.workflow(name=NEWS_JOB)
        def tell(webhook_id: str, prediction_id: str, tries: int) -> None:
            with self._job_in_hand():
                self._webhook_sender.deliver(webhook_id, prediction_id, tries)

        @DBOS.workflow(name=PREPARE_JOB)
        def prepare(order: str) -> None:
            with self._job_in_hand():
                self.prepare(order)

        DBOS.launch()

    def _job_in_hand(self) -> AbstractContextManager[None]:
        return self._liveness.in_hand(str(DBOS.workflow_id))

    def _warm_up(self) -> None:
        """Loads the default version. Where there is none yet, the worker still serves those that requests name."""
        try:
            entry = self._models.registry.resolve(self._settings.default_model)
            self._models.version(entry.name, entry.version)
        except RlvoError as error:
            log.error("the default model is not loaded: %s", error.detail)
        self._heartbeat()

    def _heartbeat(self) -> None:
        self._heartbeats += 1
        models = tuple(f"{ref.name}@{ref.version}" for ref in self._models.loaded())
        me = workers.WorkerRecord(
            self.id,
            socket.gethostname(),
            os.getpid(),
            self._models.device,
            models,
            self._started,
            now(),
            self._heartbeats,
            self._model_loader.results,
            self._usage(),
        )
        with self._database.session() as session:
            workers.heartbeat(session, me)

    def _usage(self) -> workers.Usage:
        used, whole = self._models.device_memory()
        return workers.Usage(resource_limits.resident(), self._models.bytes(), used, whole)

    def _regularly(self, pause: float, duty: Callable[[], object], *, nice: int = 0) -> threading.Thread:
        """Does a duty in a thread of its own, whatever the job in hand does, until this worker is gone."""

        def repeat() -> None:
            if nice:
                with suppress(OSError):  # where a thread has no priority of its own
                    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), nice)
            while not self._gone.wait(pause):
                try:
                    duty()
                except RlvoError as error:
                    log.warning("%s waits: %s", duty.__name__, error.detail)
                except Exception as error:  # noqa: BLE001 - a worker that stops beating is taken for dead
                    log.error("%s: %s", duty.__name__, type(error).__name__)

        thread = threading.Thread(target=repeat, name=duty.__name__, daemon=True)
        thread.start()
        return thread

    def _reconcile_models(self) -> None:
        """Loads and lets go what operators ask for, and tells them at once."""
        before = self._model_loader.results
        self._model_loader.reconcile()
        if self._model_loader.results != before:
            self._heartbeat()

    def _sweep(self) -> None:
        self._retention.apply()
        sweep(self._database, self._storage)
        self._queue.prune(older_than=ORPHAN_AGE)

    def _watch_over(self) -> None:
        """Gives a sign of life, and takes over from those that gave none."""
        self._heartbeat()
        with self._database.reading() as session:
            roll = workers.registered(session)
        for dead in self._liveness.dead(roll):
            with self._database.session() as session:
                struck = workers.deregister(session, dead)
            if struck:
                log.warning("worker %s is dead; its jobs go back into the queue", dead)
                self._requeue({job for job, owner in self._queue.running().items() if owner == dead})
                self._liveness.forget(dead)
        self._requeue(self._liveness.orphaned_jobs(self._queue.running(), {worker.id for worker in roll}))
        for job in self._queue.broken():
            self._queue.begin_again(job)

    def _requeue(self, jobs: set[str]) -> None:
        if jobs:
            self._queue.requeue(sorted(jobs))

    def _leave(self) -> None:
        """Puts back what is unfinished, leaves the roll and ends the process: a job may still hold a thread of it."""
        try:
            mine = {job for job, owner in self._queue.running().items() if owner == self.id}
            self._requeue(mine)
            with self._database.session() as session:
                workers.deregister(session, self.id)
            self._liveness.close()
        except DatabaseUnavailable:
            log.warning("the database is away; another worker will find this one gone")
        self._traces.close()
        logging.shutdown()
        os._exit(0)


def create_model_cache(settings: Settings) -> ModelCache:
    """The predictor that the settings describe."""
    return ModelCache(
        ModelStore(settings.model_store, settings.trusted),
        settings.device,
        settings.threads,
        backend=settings.backend,
        precision=settings.precision,
        budget=settings.memory_budget,
    )


def sweep(database: Database, storage: Storage, *, age: float = ORPHAN_AGE) -> int:
    """Deletes what nothing refers to and nobody touched for ``age`` seconds; returns how many files that were."""
    old = list(storage.older_than(age))
    with database.reading() as session:
        named = predictions.referenced(session, old)
    swept = sum(storage.delete(digest, grace=age) for digest in old if digest not in named)
    benches = storage.workbenches()
    with database.session() as session:
        idempotency.expire(session)
        needed = job_state.unfinished(session, benches)
    for prediction_id in set(benches) - needed:
        storage.workbench(prediction_id).clear()
    return swept + storage.sweep_incoming(older_than=age)
