"""Builds the HTTP service and its OpenAPI document.

Design notes:
- `create_app` takes settings or ready-made objects; it reads no environment variable.
- The OpenAPI document depends on the routes only, so it needs no database and no settings.
- The API process holds no model and never loads torch.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from fastapi import FastAPI

from app.api import docs, problems
from app.api.auth import validate_exposure
from app.api.dependencies import Services
from app.api.lifespan import lifespan
from app.api.middleware import Middleware
from app.api.routers import (
    aliases,
    callers,
    cds_services,
    dicomweb,
    followup,
    health,
    inference,
    models,
    predictions,
    results,
    studies,
)
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
    """Builds the service from ``settings``; an object that is passed replaces the one that they describe.

    Raises:
        ValueError: The settings would accept remote requests without keys, and `insecure` is not set.
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
    app = _app_with_routes()
    app.state.services = services
    app.add_middleware(Middleware, services=services)
    return app


def openapi_document() -> dict[str, Any]:
    """Returns the OpenAPI document, which is the same for all settings."""
    return _app_with_routes().openapi()


def _app_with_routes() -> FastAPI:
    app = FastAPI(
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
        generate_unique_id_function=lambda route: route.name,
    )
    for module in (
        predictions,
        results,
        studies,
        cds_services,
        followup,
        models,
        aliases,
        callers,
        health,
        inference,
        dicomweb,
        docs,
    ):
        app.include_router(module.router)
    app.include_router(studies.pulls)
    app.include_router(studies.waiting)
    docs.mount(app)
    problems.install(app)
    app.openapi = cache(lambda: docs.describe(app))  # type: ignore[method-assign]
    return app
