"""The HTTP service, assembled.

Notable choices:
- One constructor makes everything, from settings or from what it is given; nothing reads the environment here.
- The routes say what the API is, and need no service to be described: `openapi_document` is the same everywhere.
- This process holds no model and never loads torch.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from app.api import docs, problems
from app.api.auth import validate_exposure
from app.api.dependencies import Services, lifespan
from app.api.middleware import Middleware
from app.api.routers import aliases, followup, health, inference, models, predictions, results
from app.core.config import Settings
from app.core.tracing import Traces
from app.core.tracing_factory import create_traces
from app.database.session import Database
from app.registry.model_store import ModelStore
from app.storage.factory import storage_of
from app.storage.local import Storage
from app.worker.queue import Queue


def create_app(
    settings: Settings,
    *,
    database: Database | None = None,
    storage: Storage | None = None,
    registry: ModelStore | None = None,
    queue: Queue | None = None,
    traces: Traces | None = None,
) -> FastAPI:
    """The service over ``settings``; a handle that is given replaces the one that they describe.

    :raises ValueError: the settings would let anybody in from elsewhere, without saying so on purpose
    """
    validate_exposure(settings)
    database = database or Database(settings.database, idle=settings.lease)
    services = Services(
        settings=settings,
        database=database,
        storage=storage or storage_of(settings),
        registry=registry or ModelStore(settings.model_store, settings.trusted),
        queue=queue or Queue(database),
        traces=traces or create_traces(settings.otlp_endpoint, "rlvo-api"),
    )
    app = _assembled()
    app.state.services = services
    app.add_middleware(Middleware, services=services)
    return app


def openapi_document() -> dict[str, Any]:
    """The API's description, which no setting changes."""
    return _assembled().openapi()


def _assembled() -> FastAPI:
    app = FastAPI(
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
        generate_unique_id_function=lambda route: route.name,
    )
    for room in (predictions, results, followup, models, aliases, health, inference, docs):
        app.include_router(room.router)
    docs.mount(app)
    problems.install(app)
    described: list[dict[str, Any]] = []

    def openapi() -> dict[str, Any]:
        if not described:
            described.append(docs.describe(app))
        return described[0]

    app.openapi = openapi  # type: ignore[method-assign]
    return app
