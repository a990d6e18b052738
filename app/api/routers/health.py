"""Routes of the probes: liveness, readiness and metrics.

``/livez`` reads nothing, so a slow database does not restart a healthy process. ``/readyz`` is 200 only if a prediction
would be answered now: database, storage, and a live worker with the default model work. It answers within two seconds,
also if one of them hangs.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from sqlalchemy.orm import Session

from app.api import readiness
from app.api.dependencies import ServicesDep
from app.api.metrics import CONTENT_TYPE, Queued, Waiting
from app.database import commitments, destinations, status, workers
from app.database.workers import WorkerRecord

router = APIRouter(tags=["service"])

_NO_STORE = {"Cache-Control": "no-store"}


@router.get("/livez", summary="Check that the process is alive", response_model=dict[str, str])
async def livez() -> JSONResponse:
    """Returns 200 while the process runs; it checks nothing else."""
    return JSONResponse({"status": "alive"}, headers=_NO_STORE)


@router.get(
    "/readyz",
    summary="Check that a prediction would be answered now",
    response_model=dict[str, Any],
    responses={503: {"description": "Not ready; `checks` gives the reason", "model": dict[str, Any]}},
)
async def readyz(services: ServicesDep) -> JSONResponse:
    """Checks the database, the storage, and that a live worker has loaded the default model."""
    checks = await services.readiness.run()
    if readiness.is_ready(checks):
        return JSONResponse({"status": "ready", "checks": checks}, headers=_NO_STORE)
    return JSONResponse({"status": "not-ready", "checks": checks}, 503, headers=_NO_STORE | {"Retry-After": "2"})


@router.get(
    "/metrics",
    summary="Read the metrics for Prometheus",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def metrics(services: ServicesDep) -> Response:
    """Returns the metrics in the Prometheus text format."""

    def query(session: Session) -> tuple[list[status.FinishedPrediction], Queued, Waiting, list[WorkerRecord]]:
        return (
            status.done_since(session, services.metrics.since),
            status.queued(session),
            status.waiting(session),
            workers.live(session, services.settings.lease),
        )

    finished, queued, waiting, live = await services.read(query)
    deliveries = await services.read(destinations.counts)
    committed = await services.read(commitments.counts)
    services.metrics.observe_finished(finished)
    page = services.metrics.render(
        queued=queued, waiting=waiting, workers=live, deliveries=deliveries, commitments=committed
    )
    return Response(page, media_type=CONTENT_TYPE, headers=_NO_STORE)
