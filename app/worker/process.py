"""The worker process: loads the models, takes jobs from the queue, and drains at SIGTERM.

Design notes:
- SIGTERM: the worker takes no new job, finishes the current one within `DRAIN_SECONDS`, and requeues what is left.
- The imaging kernels are loaded before the worker takes a job, and before it counts as ready. As a part of the first
  job, this work would make it several times as long, and a worker that is killed often would exhaust the tries of one
  prediction.
- A version is loaded while another one serves. So threads switch more often than by default, the loading thread has a
  lower priority, and the garbage collector ignores imported modules (bench/swap.py measures the effect).
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import uuid
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from dbos import DBOS, DBOSConfig

from app.core import garbage
from app.core.config import Settings
from app.core.egress import EgressClient
from app.core.environment import is_environment_fault
from app.core.logging import error_location
from app.core.tracing import Traces
from app.core.tracing_factory import create_traces
from app.database.session import Database, retry_until_available
from app.dicom.objects.stored import ResultObjects
from app.imaging.io.limits import Limits
from app.imaging.registration import align
from app.inference.device_errors import out_of_memory
from app.inference.model_cache import ModelCache, release_memory
from app.inference.model_version import ModelVersion
from app.registry.model_store import ModelStore
from app.sdk.errors import RlvoError
from app.storage.factory import secure, storage_of
from app.worker import resource_limits
from app.worker.dicom_delivery import DicomDelivery
from app.worker.dicom_pull import DicomPull
from app.worker.drawing import FigureJobs
from app.worker.erasure import Eraser
from app.worker.idle_drawing import IdleDrawing
from app.worker.liveness import LivenessMonitor
from app.worker.model_loading import ModelLoader
from app.worker.pipeline import PredictionPipeline
from app.worker.queue import APPLICATION, SERIALIZER, Queue
from app.worker.retention import ORPHAN_AGE, Retention, sweep
from app.worker.supervision import FIRST_PAUSE, LONGEST_PAUSE, Supervisor
from app.worker.tensor_server import TensorServer
from app.worker.webhooks import WebhookSender
from app.worker.workflows import Workflows

T = TypeVar("T")

log = logging.getLogger("rlvo.worker")

SWITCH_INTERVAL = 1e-4  # seconds after which a thread that waits for the interpreter gets it
LOADING_NICE = 10  # niceness of the thread that loads versions
DRAIN_SECONDS = 25  # for the current job after SIGTERM; a process supervisor waits a little longer before SIGKILL
SWEEP_EVERY = 600.0
FIRST_SWEEP = 60.0  # seconds after the start, so that a worker that never runs for long erases too
REPLAY_PAUSE = 5.0  # seconds until the ledger of erasures is read again, if it cannot be reached


def prepare(settings: Settings) -> threading.Thread:
    """Does what needs neither folders nor database, and returns the thread that loads the imaging kernels.

    The first time after an installation, the kernels of app/imaging are compiled.
    """
    resource_limits.memory(settings.memory_limit_mb)
    resource_limits.keep_memory()
    sys.setswitchinterval(SWITCH_INTERVAL)

    def load() -> None:
        log.info("loads the imaging kernels; the first start after an installation compiles them, in half a minute")
        try:
            align.warm_up()
        except Exception as error:  # noqa: BLE001 - the first preparation tries again and reports its error
            log.warning("the imaging kernels are not loaded: %s", error_location(error))

    thread = threading.Thread(target=load, name="kernels", daemon=True)
    thread.start()
    return thread


def run(settings: Settings, kernels: threading.Thread | None = None) -> None:
    """Runs one worker, and ends the process after SIGTERM or SIGINT.

    While a folder or another part of the environment cannot be used, the worker is created again and again.

    Args:
        settings: Those of the service.
        kernels: Thread of ``prepare``, if that was called.
    """
    loading = kernels or prepare(settings)
    _retry_environment(lambda: Worker(settings)).run(loading)


def _retry_environment(action: Callable[[], T], stop: threading.Event | None = None) -> T:
    """Repeats ``action`` while the environment is at fault; after ``stop``, raises its error."""
    pause, stop = FIRST_PAUSE, stop or threading.Event()
    while True:
        try:
            return action()
        except Exception as error:
            if not is_environment_fault(error) or stop.is_set():
                raise
            log.warning("the worker waits for its environment: %s", error_location(error))
        stop.wait(pause)
        pause = min(2 * pause, LONGEST_PAUSE)


class Worker:
    """One worker process: creates all parts and connects them."""

    def __init__(self, settings: Settings, *, traces: Traces | None = None) -> None:
        self.id = str(uuid.uuid4())
        self._settings = settings
        self._database = Database(settings.database, idle=settings.lease)
        self._storage = storage_of(settings)
        self._queue = Queue(self._database)
        self._model_cache = create_model_cache(settings)
        self._traces = traces or create_traces(settings.otlp_endpoint, "rlvo-worker")
        self._tensor_server = TensorServer(settings.workers, self.id, self._model_cache)
        self._eraser = Eraser.of(settings, self._database, self._storage)
        self._retention = Retention(self._database, self._eraser, settings.retention_days)
        self.liveness = LivenessMonitor(self.id, settings.workers, settings.lease)
        loader = ModelLoader(self._database, self._model_cache)
        self._supervisor = Supervisor(self.id, self._database, self._queue, self._model_cache, loader, self.liveness)
        limits = Limits(max_voxels=settings.max_voxels, max_bytes=settings.max_volume_bytes)
        egress = EgressClient(settings.webhook_hosts)
        self.workflows = Workflows(
            database=self._database,
            queue=self._queue,
            model_cache=self._model_cache,
            pipeline=PredictionPipeline(self._database, self._storage, self._queue, self._model_cache, limits),
            webhook_sender=WebhookSender(self._database, self._queue, egress, settings.webhook_backoff),
            dicom_delivery=DicomDelivery(
                database=self._database,
                queue=self._queue,
                objects=ResultObjects.of(settings, self._database, self._storage),
                egress=EgressClient(settings.dicom_hosts, setting="RLVO_DICOM_HOSTS"),
                backoff=settings.dicom_backoff,
                days=settings.dicom_delivery_days,
            ),
            dicom_pull=DicomPull.of(settings, self._database, self._storage),
            figure_jobs=FigureJobs(self._database, self._storage, self._queue),
            liveness=self.liveness,
            traces=self._traces,
            cpu_limit=settings.cpu_limit,
        )
        self._idle_drawing = IdleDrawing(self._database, self._queue, self.liveness)
        self._stop = threading.Event()
        self._stopped = threading.Event()

    def run(self, kernels: threading.Thread) -> None:
        """Works until SIGTERM or SIGINT, then drains and ends the process; ``kernels`` is the thread of ``prepare``."""
        secure(self._settings)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._stop.set())
        retry_until_available(self._database.upgrade)
        retry_until_available(self._queue.upgrade)
        retry_until_available(self._supervisor.heartbeat)
        watching = self._start_periodic(self._settings.heartbeat, self._supervisor.watch)
        self._start_sweeps()
        self._start_periodic(self._settings.heartbeat, self._supervisor.load_models, nice=LOADING_NICE)
        self._wait_for(kernels)
        garbage.end_start()
        self._load_default_model()
        self._replay_erasures()
        if not self._stop.is_set():  # without the replay, a job could be of an erased prediction
            self._launch_engine()
            self._open_tensor_server()
            self._start_periodic(self._settings.heartbeat, self._idle_drawing.look)
            log.info("worker %s takes predictions", self.id)
            self._stop.wait()
        log.info("worker %s drains", self.id)
        self._tensor_server.close()
        DBOS.destroy(workflow_completion_timeout_sec=DRAIN_SECONDS)
        self._stopped.set()  # after the drain: other workers take over a worker without a heartbeat
        watching.join(timeout=5)
        try:
            self._supervisor.leave()
        except RlvoError as error:
            log.warning("another worker will deregister this one: %s", error.detail)
        self._traces.close()
        logging.shutdown()
        os._exit(0)  # a thread of an unfinished job may still run

    def _wait_for(self, thread: threading.Thread) -> None:
        while thread.is_alive() and not self._stop.is_set():
            thread.join(timeout=0.2)

    def _launch_engine(self) -> None:
        config: DBOSConfig = {
            "name": APPLICATION,
            "system_database_engine": self._database.engine,
            "executor_id": self.id,
            # One version for all releases, so that a new release continues the jobs of an old one.
            "application_version": "1",
            "serializer": SERIALIZER,
            "run_migrations": False,
            "enable_otlp": False,
            "log_level": "ERROR",
        }
        DBOS(config=config)
        self.workflows.register()
        DBOS.launch()

    def _open_tensor_server(self) -> None:
        """Opens the socket for prepared tensors. Predictions need none, so they do not wait for it."""
        try:
            _retry_environment(self._tensor_server.open, self._stop)
        except OSError as error:
            log.error("there is no socket for prepared tensors: %s", error_location(error))

    def _load_default_model(self) -> None:
        """Loads the default version. Without one, the worker still serves the versions that requests name."""
        try:
            entry = self._model_cache.registry.resolve(self._settings.default_model)
            self._explain_once(self._model_cache.version(entry.name, entry.version))
        except RlvoError as error:
            log.error("the default model is not loaded: %s", error.detail)
        except Exception as error:
            if not (isinstance(error, OSError) or out_of_memory(error)):
                raise
            log.error("the default model is not loaded: %s", error_location(error))
        release_memory()  # what the kernels and the first explanation have freed
        retry_until_available(self._supervisor.heartbeat)

    def _explain_once(self, version: ModelVersion) -> None:
        """Does the one-time work of explanations now; a version that cannot do it still predicts."""
        try:
            version.warm_up_explanation()
        except Exception as error:  # noqa: BLE001 - the first explanation tries again and reports its error
            log.warning("the first explanation is not prepared: %s", error_location(error))

    def _replay_erasures(self) -> None:
        """Erases again what a restore of the database has brought back, before any job of it runs."""
        while not self._stop.is_set():
            try:
                self._eraser.replay(actor="worker")
            except RlvoError as error:
                log.warning("the ledger of erasures is read again: %s", error.detail)
                self._stop.wait(REPLAY_PAUSE)
            else:
                return

    def _start_periodic(
        self, pause: float, task: Callable[[], object], *, first: float | None = None, nice: int = 0
    ) -> threading.Thread:
        """Repeats a task in a thread, whatever the current job does, until this worker has stopped.

        The first time is after ``first`` seconds, or else after ``pause`` seconds.
        """

        def repeat() -> None:
            if nice:
                with suppress(OSError):  # some systems have no priority per thread
                    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), nice)
            waiting = pause if first is None else first
            while not self._stopped.wait(waiting):
                waiting = pause
                try:
                    task()
                except RlvoError as error:
                    log.warning("%s is tried again: %s", task.__name__, error.detail)
                except Exception as error:  # noqa: BLE001 - other workers take over a worker without a heartbeat
                    log.error("%s: %s", task.__name__, type(error).__name__)

        thread = threading.Thread(target=repeat, name=task.__name__, daemon=True)
        thread.start()
        return thread

    def _start_sweeps(self) -> None:
        """Starts the sweeps. Each has its own thread, so one that cannot reach its ledger or storage stops no other."""
        for task in (self._sweep_erasures, self._sweep_files, self._sweep_jobs):
            self._start_periodic(SWEEP_EVERY, task, first=FIRST_SWEEP)

    def _sweep_erasures(self) -> None:
        self._eraser.reserve.fill()
        self._eraser.replay(actor="worker")
        self._retention.apply()
        self._retention.forget_instances(self._settings.dicom_keep_hours)

    def _sweep_files(self) -> None:
        sweep(self._database, self._storage)

    def _sweep_jobs(self) -> None:
        self._queue.prune(older_than=ORPHAN_AGE)


def create_model_cache(settings: Settings) -> ModelCache:
    """Makes the model cache that the settings describe."""
    return ModelCache(
        ModelStore(settings.model_store, settings.trusted),
        settings.device,
        settings.threads,
        backend=settings.backend,
        precision=settings.precision,
        budget=settings.memory_budget,
    )
