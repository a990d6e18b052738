"""Runs a service per test with a real SQLite database, storage and model store; the test plays the worker."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from sqlalchemy import text

from app.api.dependencies import Services
from app.core.config import Settings
from app.database import figure_state, job_state, workers
from app.database.predictions import Artifact
from app.database.session import now
from app.database.workers import WorkerRecord
from app.imaging.io import nifti
from app.main import create_app
from app.sdk.types import Failure, FiguresState, Stage
from tests.api.server import Server, started
from tests.database.results import result
from tests.factory import tiny_version

MAP = b"the bytes of a map"


def volume(shape: tuple[int, ...] = (8, 9, 10), *, shift: float = 0.0, compressed: bool = True) -> bytes:
    """A small NIfTI with the affine of a head CT."""
    rng = np.random.default_rng(0)
    affine = np.array([[2.0, 0, 0, -90 + shift], [0, 2, 0, -120], [0, 0, 3, -70], [0, 0, 0, 1]])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ("volume.nii.gz" if compressed else "volume.nii")
        nifti.write(path, rng.integers(-1000, 1000, shape).astype(np.int16), affine)
        return path.read_bytes()


@dataclass
class FakeWorker:
    """The steps of a worker on one prediction, done by the test with the real queries."""

    services: Services

    def begin(self, prediction_id: str) -> job_state.JobStudy:
        with self.services.database.session() as session:
            study = job_state.start(session, prediction_id)
            assert study is not None
            return study

    def advance(self, study: job_state.JobStudy, stage: Stage) -> None:
        with self.services.database.session() as session:
            assert job_state.advance(session, study, stage)

    def succeed(self, prediction_id: str, more: Iterable[Artifact] = (), figures: FiguresState | None = None) -> None:
        digest = self.services.storage.put(MAP)
        artifact = Artifact("maps/attribution-cta.nii.gz", digest, len(MAP), "application/gzip")
        study = self.begin(prediction_id)
        with self.services.database.session() as session:
            assert job_state.succeed(session, study, replace(result([artifact, *more]), figures=figures))

    def finish_figures(self, prediction_id: str, *files: Artifact) -> None:
        """Draws the figures, or fails to draw them without ``files``."""
        with self.services.database.session() as session:
            if files:
                assert figure_state.drawn(session, prediction_id, files)
            else:
                assert figure_state.failed(session, prediction_id)

    def figure_jobs(self) -> list[str]:
        """Ids of the queued jobs that draw figures."""
        with self.services.database.reading() as session:
            table = "workflow_status" if self.services.database.sqlite else "dbos.workflow_status"
            jobs = session.scalars(text(f"SELECT workflow_uuid FROM {table} WHERE queue_name = 'figures' ORDER BY 1"))
            return list(jobs)

    def fail(self, prediction_id: str, code: str = "modality-implausible") -> None:
        study = self.begin(prediction_id)
        failure = Failure(code=code, title="The volume does not match its field", detail="no head")
        with self.services.database.session() as session:
            assert job_state.fail(session, study, failure)

    def heartbeat(self, *models: str) -> None:
        with self.services.database.session() as session:
            workers.heartbeat(session, WorkerRecord("w", "here", 1, "cpu", models, now(), now(), 1))


@dataclass
class RunningService:
    """A service and an HTTP client for it."""

    app: FastAPI
    http: httpx.AsyncClient

    @property
    def services(self) -> Services:
        services: Services = self.app.state.services
        return services

    @property
    def worker(self) -> FakeWorker:
        return FakeWorker(self.services)

    def blobs(self) -> list[str]:
        return sorted(self.services.storage.digests())

    def leftovers(self) -> list[Path]:
        return list((self.services.storage.folder / ".incoming").iterdir())

    async def submit(self, prefer: str = "respond-async", **parts: Any) -> httpx.Response:
        files = {"cta": ("x.nii.gz", volume(), "application/octet-stream"), **parts}
        return await self.http.post("/v1/predictions", files=files, headers={"Prefer": prefer})


@asynccontextmanager
async def running(settings: Settings, **overrides: Any) -> AsyncIterator[RunningService]:
    """Runs the service with its lifespan; the client calls it in this process."""
    app = create_app(settings, **overrides)
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=30) as http,
    ):
        yield RunningService(app, http)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def model_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model store with the version ``tiny@1.0.0``, which requires a CTA."""
    store = tmp_path_factory.mktemp("models")
    tiny_version(store)
    return store


def settings_in(folder: Path, model_store: Path) -> Settings:
    return Settings(
        data_dir=folder, model_store=model_store, default_model="tiny", max_body_bytes=4_000_000, max_json_bytes=4096
    )


@pytest.fixture
def settings(tmp_path: Path, model_store: Path) -> Settings:
    return settings_in(tmp_path, model_store)


@pytest.fixture
async def service(settings: Settings) -> AsyncIterator[RunningService]:
    async with running(settings) as service:
        yield service


@pytest.fixture(scope="module")
async def shared_service(tmp_path_factory: pytest.TempPathFactory, model_store: Path) -> AsyncIterator[RunningService]:
    """One service for all tests of a module that store nothing."""
    async with running(settings_in(tmp_path_factory.mktemp("shared"), model_store)) as service:
        yield service


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, model_store: Path) -> Iterator[Server]:
    """One `rlvo serve` without keys for all tests of a module."""
    with started(tmp_path_factory.mktemp("server"), model_store) as server:
        yield server


@pytest.fixture(scope="module")
def server_with_keys(tmp_path_factory: pytest.TempPathFactory, model_store: Path) -> Iterator[Server]:
    """One `rlvo serve` that requires keys for all tests of a module."""
    with started(tmp_path_factory.mktemp("server_with_keys"), model_store, auth="keys") as server:
        yield server
