"""The objects that the routes work with: one `Services` bundle, made by `create_app` and passed to each request.

Design notes:
- Database and storage calls block, so they run in threads and the event loop stays free.
- Uploads, database calls and tensor requests have separate thread limits, so none of them delays the others.
- The loops that no request waits for share one thread, so a database or a disk that hangs holds only this one.
- FastAPI dependencies are coroutines, because a plain function would use a thread for each call.
- Routes receive `ServicesDep` and `CurrentCaller` as annotated parameters and read no globals.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Concatenate, ParamSpec, TypeVar

from anyio import CapacityLimiter, Event, Semaphore, sleep, to_thread
from fastapi import Depends, Request
from sqlalchemy.orm import Session

from app.api.cds_clients import CdsClientVerifier
from app.api.connection_limits import RequestsInProgress
from app.api.held_keys import HeldKeys
from app.api.long_poll import ChangeWatcher
from app.api.metrics import Metrics
from app.api.oidc import TokenVerifier
from app.api.rate_limit import RateLimiter
from app.api.readiness import ReadinessProbe
from app.api.wake import Wake
from app.core.config import Settings
from app.core.logging import error_location
from app.core.tracing import NoopTraces, Traces
from app.database.api_keys import Caller
from app.database.destinations import Destination
from app.database.idempotency import Reservation
from app.database.session import Database
from app.dicom.errors import ArchiveFailed
from app.dicom.objects.stored import ResultObjects
from app.dicom.reception import Reception
from app.dicom.retrieval import StudyQuery
from app.dicom.return_address import key_of
from app.dicom.spare import SpareProcesses, installed
from app.registry.model_store import ModelStore
from app.sdk.errors import ArchiveUnavailable, Draining, NotFound, RlvoError, UnsupportedMedia
from app.storage.local import Storage
from app.worker.dicom_pull import DicomPull
from app.worker.erasure import Eraser
from app.worker.queue import Queue

log = logging.getLogger("rlvo.service")

REPLAY_PAUSE = 5.0
INDEX_PAUSE = 1.0
INDEX_PATIENCE = 5.0  # seconds that a call waits for another process that indexes
MAX_CONVERSIONS = 2  # DICOM studies that are converted at the same time, each in a process of its own
MAX_TENSOR_REQUESTS = 4  # requests with prepared tensors whose bodies are in memory at the same time
P = ParamSpec("P")
T = TypeVar("T")


@dataclass
class Services:
    """The database, storage, model store, queue and other shared objects of one service process.

    Attributes:
        draining: True while the process shuts down; new studies are refused and waiting requests are answered.
        inference_slots: Limits how many tensor requests are in memory at the same time.
        conversion_slots: Limits how many DICOM studies are converted at the same time.
        erasures_replayed: Set when the erasures of the ledger are repeated; until then the service is not ready.
        held_keys: Idempotency keys of requests in progress, which are renewed.
        study_due: Wakes the assembly of studies: one may be due, or more of one has arrived.
        instance_received: Wakes the indexing of received DICOM instances.
        unreleased: Idempotency keys of refused requests that the database could not release yet.
        worker_fault: Returns why the worker of this service cannot be started; None if it can, or if there is none.
    """

    settings: Settings
    database: Database
    storage: Storage
    registry: ModelStore
    queue: Queue
    metrics: Metrics = field(default_factory=Metrics)
    traces: Traces = field(default_factory=NoopTraces)
    draining: bool = False
    unreleased: set[Reservation] = field(default_factory=set)
    worker_fault: Callable[[], str | None] = lambda: None
    _database_limiter: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(16))
    _io_limiter: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(8))
    _inference_limiter: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(MAX_TENSOR_REQUESTS))
    _background_limiter: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(1))
    inference_slots: Semaphore = field(default_factory=lambda: Semaphore(MAX_TENSOR_REQUESTS))
    conversion_slots: Semaphore = field(default_factory=lambda: Semaphore(MAX_CONVERSIONS))

    def __post_init__(self) -> None:
        self.watcher = ChangeWatcher(self.read)
        self.eraser = Eraser.of(self.settings, self.database, self.storage)
        self.held_keys = HeldKeys(self.database, self.settings.lease, self.settings.longest_intake)
        self.return_key = key_of(self.settings.dicom_return_key)
        self.result_objects = ResultObjects.of(self.settings, self.database, self.storage)
        self.spare_conversions = SpareProcesses()
        self.reception = Reception.of(self.settings, self.database, self.storage)
        self.erasures_replayed = Event()
        self.study_due, self.instance_received = Wake(), Wake()
        self.rate_limiter = RateLimiter()
        self.requests_in_progress = RequestsInProgress.of(self.settings)
        self.readiness = ReadinessProbe(self)
        clients, public_url = self.settings.cds_clients, self.settings.public_url
        self.cds_clients = CdsClientVerifier(Path(clients), public_url) if clients else None
        self.token_verifier = TokenVerifier(self.settings) if self.settings.oidc_issuer else None

    @property
    def owner(self) -> str:
        """Identifies this service among the services that share its database."""
        return f"{socket.gethostname()[:50]}:{self.settings.port}"

    async def read(self, work: Callable[Concatenate[Session, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs ``work(session, ...)`` in a thread, in a read-only transaction."""

        def run() -> T:
            with self.database.reading() as session:
                return work(session, *args, **kwargs)

        return await to_thread.run_sync(run, limiter=self._database_limiter)

    async def write(self, work: Callable[Concatenate[Session, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs ``work(session, ...)`` in a thread, in a transaction that is committed when it returns."""

        def run() -> T:
            with self.database.session() as session:
                return work(session, *args, **kwargs)

        return await to_thread.run_sync(run, limiter=self._database_limiter)

    async def run_in_thread(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs blocking work on bytes (parsing, hashing, disk access) in a thread."""
        return await to_thread.run_sync(lambda: work(*args, **kwargs), limiter=self._io_limiter)

    async def run_inference(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs a blocking call to a worker in a thread; these threads are used for nothing else."""
        return await to_thread.run_sync(lambda: work(*args, **kwargs), limiter=self._inference_limiter)

    async def run_in_background(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs a step of a background loop in the one thread of these loops; the end of the service waits for none."""
        run = partial(work, *args, **kwargs)
        return await to_thread.run_sync(run, abandon_on_cancel=True, limiter=self._background_limiter)

    async def replay_erasures(self) -> None:
        """Erases again what a restore of the database has brought back; repeats until the ledger can be read."""
        while not self.erasures_replayed.is_set():
            try:
                await to_thread.run_sync(lambda: self.eraser.replay(actor="service"), abandon_on_cancel=True)
                self.erasures_replayed.set()
            except RlvoError as error:
                log.warning("the ledger of erasures is read again: %s", error.detail)
                await sleep(REPLAY_PAUSE)

    def index_all(self) -> None:
        """Moves all received DICOM instances to the blobs. Raises Unavailable."""
        while self.reception.index(wait=INDEX_PATIENCE):
            pass

    def find_studies(self, archive: Destination, accession_number: str) -> list[str]:
        """UIDs of the studies of an archive with an accession number.

        Raises:
            UnsupportedMedia: the DICOM libraries are not installed.
            ArchiveUnavailable: the archive is away, or refuses.
            NotFound: it has no such study.
        """
        if not installed():
            raise UnsupportedMedia("This service fetches no DICOM: install rlvo-service[dicom].")
        pulling = DicomPull.of(self.settings, self.database, self.storage)
        try:
            found = pulling.find(archive, StudyQuery(accession_number=accession_number))
        except ArchiveFailed as failure:
            raise ArchiveUnavailable(f"The archive does not answer ({failure}). Try again later.") from None
        if not found:
            raise NotFound("The archive has no study with this accession number.")
        return [each.uid for each in found]

    async def index_received(self) -> None:
        """Moves received DICOM instances to the blobs, again and again; a fault of the environment is tried again."""
        while True:
            try:
                if await self.run_in_background(self.reception.index):
                    self.study_due.note()  # its files are read while further ones arrive
                    await sleep(0)
                else:
                    await self.instance_received.pause(INDEX_PAUSE)
            except Exception as error:  # noqa: BLE001 - the files stay, so the next try may succeed
                log.warning("received instances are indexed again: %s", error_location(error))
                await sleep(REPLAY_PAUSE)

    def drain(self) -> None:
        """Refuses new studies from now on and ends all long polls."""
        self.draining = True
        self.watcher.close()

    def raise_if_draining(self) -> None:
        """Raises Draining while the process shuts down."""
        if self.draining:
            raise Draining("The service is shutting down. Send the request again in a few seconds.", retry_after=5)


async def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


async def _caller(request: Request) -> Caller:
    caller: Caller = request.state.caller
    return caller


ServicesDep = Annotated[Services, Depends(_services)]
CurrentCaller = Annotated[Caller, Depends(_caller)]
