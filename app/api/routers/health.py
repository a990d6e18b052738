"""The three probes: is the process there, can it do its work, and how does it do.

``/livez`` asks nothing of anybody, so a slow database never gets a healthy process killed. ``/readyz`` is 200 only if
a prediction sent now would be answered: database, storage, and a live worker with the default model loaded.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from sqlalchemy.orm import Session

from app.api.dependencies import Services, ServicesDep
from app.api.metrics import CONTENT_TYPE, Queued
from app.database import status, workers
from app.database.workers import WorkerRecord
from app.sdk.errors import RlvoError

router = APIRouter(tags=["service"])

Checks = dict[str, str]


@router.get("/livez", summary="Is the process alive", response_model=dict[str, str])
async def livez() -> JSONResponse:
    return JSONResponse({"status": "alive"}, headers=_FRESH)


@router.get(
    "/readyz",
    summary="Would a prediction sent now be answered",
    response_model=dict[str, Any],
    responses={503: {"description": "Not ready; the checks say why", "model": dict[str, Any]}},
)
async def readyz(services: ServicesDep) -> JSONResponse:
    checks = {
        "service": "draining" if services.draining else "ok",
        "database": await _verdict(services, _database),
        "storage": await _verdict(services, _storage),
        "worker": await _verdict(services, _worker),
    }
    ready = all(verdict == "ok" for verdict in checks.values())
    body = {"status": "ready" if ready else "not-ready", "checks": checks}
    return JSONResponse(
        body, status_code=200 if ready else 503, headers=_FRESH if ready else _FRESH | {"Retry-After": "2"}
    )


@router.get(
    "/metrics",
    summary="Figures for Prometheus",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def metrics(services: ServicesDep) -> Response:
    def ask(session: Session) -> tuple[list[status.FinishedPrediction], Queued, list[WorkerRecord]]:
        return (
            status.done_since(session, services.metrics.since),
            status.waiting(session),
            workers.live(session, services.settings.lease),
        )

    done, waiting, live = await services.read(ask)
    services.metrics.ended(done)
    page = services.metrics.page(waiting=waiting, workers=live)
    return Response(page, media_type=CONTENT_TYPE, headers=_FRESH)


_FRESH = {"Cache-Control": "no-store"}


async def _verdict(services: Services, check: Any) -> str:
    try:
        return str(await services.work(check, services))
    except RlvoError as error:
        return error.code
    except OSError:
        return "unavailable"


def _database(services: Services) -> str:
    services.database.ping()
    return "ok"


def _storage(services: Services) -> str:
    services.storage.probe()
    return "ok"


def _worker(services: Services) -> str:
    """Whether a live worker has the default model loaded."""
    model = services.registry.resolve(services.settings.default_model)
    with services.database.reading() as session:
        live = workers.live(session, services.settings.lease)
    if not live:
        return "no live worker"
    wanted = f"{model.name}@{model.version}"
    return "ok" if any(wanted in worker.models for worker in live) else "the default model is being loaded"
