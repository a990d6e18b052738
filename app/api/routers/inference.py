"""Routes of the Open Inference Protocol, version 2, for prepared tensors (clients of KServe and Triton).

Design notes:
- They serve pipelines that prepare tensors themselves. Nothing is recorded, explained or checked as for a study.
- This process does not parse tensors: it passes the body to a worker on this machine (`app.worker.ipc`).
- `MAX_TENSOR_REQUESTS` bodies are in memory; `MAX_WAITING` requests wait with their body unread; others get 429.
- A body may have as many bytes as the shapes of the version need, and at most `max_body_bytes`.
- Errors are problem documents with the additional member ``error`` of the protocol.
- The protocol has a public specification, so the OpenAPI document does not contain these addresses.
"""

from __future__ import annotations

import random
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Request
from fastapi.responses import JSONResponse, Response

from app.api import readiness
from app.api.dependencies import CurrentCaller, Services, ServicesDep
from app.api.parameters import strict_query
from app.database import trials, workers
from app.database.workers import WorkerRecord
from app.inference import open_inference
from app.registry.model_store import StoredVersion
from app.sdk.errors import BadRequest, ModelNotFound, ModelNotReady, QueueFull, TooLarge
from app.sdk.types import NOTICE
from app.worker import ipc

router = APIRouter(prefix="/v2", include_in_schema=False, dependencies=[Depends(strict_query)])

MAX_WAITING = 64
HeaderLength = Annotated[str, Header(alias="Inference-Header-Content-Length", max_length=10)]

_PLAIN = {"Cache-Control": "no-store"}


@router.get("")
async def server() -> Response:
    """Returns name, version and protocol extensions of the server."""
    from app.sdk import __version__

    return JSONResponse({"name": "rlvo", "version": __version__, "extensions": ["binary_tensor_data"]}, headers=_PLAIN)


@router.get("/health/live")
async def live() -> Response:
    """Returns whether the server is alive."""
    return JSONResponse({"live": True}, headers=_PLAIN)


@router.get("/health/ready")
async def ready(services: ServicesDep) -> Response:
    """Returns whether the server is ready, by the same checks as `/readyz`."""
    is_ready = readiness.is_ready(await services.readiness.run())
    return JSONResponse({"ready": is_ready}, 200 if is_ready else 503, headers=_PLAIN)


@router.get("/models/{name}")
@router.get("/models/{name}/versions/{version}")
async def metadata(name: str, services: ServicesDep, version: str = "") -> Response:
    """Returns names, data types and shapes of the tensors of a model version."""
    entry = await _entry(services, name, version)
    versions = [each.version for each in await services.run_in_thread(services.registry.versions, name)]
    return JSONResponse(open_inference.metadata(entry.manifest, versions), headers=_PLAIN)


@router.get("/models/{name}/ready")
@router.get("/models/{name}/versions/{version}/ready")
async def model_ready(name: str, services: ServicesDep, version: str = "") -> Response:
    """Returns whether a worker on this machine has loaded the model version."""
    entry = await _entry(services, name, version)
    loaded = any(_has_loaded(worker, entry) for worker in await _local_workers(services))
    return JSONResponse({"name": entry.name, "ready": loaded}, 200 if loaded else 503, headers=_PLAIN)


@router.post("/models/{name}/infer")
@router.post("/models/{name}/versions/{version}/infer")
async def infer(
    request: Request,
    name: str,
    services: ServicesDep,
    caller: CurrentCaller,
    version: str = "",
    header_length: HeaderLength = "",
) -> Response:
    """Predicts from prepared tensors, for one or more cases; a site in a silent trial of the model gets no answer."""
    services.raise_if_draining()
    if header_length and not (header_length.isascii() and header_length.isdigit()):
        raise BadRequest("Inference-Header-Content-Length must be a number of bytes.")
    entry = await _entry(services, name, version)
    await services.read(trials.refuse, caller.tenant, entry.name, entry.version)
    limit = open_inference.max_request_bytes(entry.manifest)
    if int(request.headers.get("content-length", 0)) > limit:  # the middleware has checked that it is a number
        raise _too_large(limit)
    local = await _local_workers(services)
    local.sort(key=lambda worker: (not _has_loaded(worker, entry), random.random()))  # noqa: S311
    if not local:
        message = "No worker on this machine accepts tensors. Start one with `rlvo serve` or `rlvo worker`."
        raise ModelNotReady(message, retry_after=5)
    if services.inference_slots.statistics().tasks_waiting >= MAX_WAITING:
        raise QueueFull("Too many tensor requests are waiting. Send the tensors again in a second.", retry_after=1)
    head = {
        "name": entry.name,
        "version": entry.version,
        "header_length": int(header_length) if header_length else None,
    }
    async with services.inference_slots:
        body = await _body(request, limit)
        content = await services.run_inference(_infer, services, local, head, body)
    return Response(content, media_type="application/json", headers=_PLAIN | {"X-Notice": NOTICE})


async def _body(request: Request, limit: int) -> bytearray:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise _too_large(limit)
    return body


def _too_large(limit: int) -> TooLarge:
    return TooLarge(
        f"A request to this version may have at most {limit} bytes. Send fewer patients (at most "
        f"{open_inference.MAX_PATIENTS}), or binary tensors (`binary_data_size`)."
    )


def _infer(services: Services, local: list[WorkerRecord], head: dict[str, Any], body: bytearray) -> bytes:
    """The result of the first worker that can be reached; a repeated request is safe, because it changes nothing."""
    for worker in local:
        try:
            return ipc.send_request(
                services.settings.workers, worker.id, head, body, patience=services.settings.load_timeout
            )
        except (OSError, EOFError):
            continue
    raise ModelNotReady("The worker stopped. Send the tensors again in 2 seconds.", retry_after=2)


async def _local_workers(services: Services) -> list[WorkerRecord]:
    """The live workers on this machine that accept tensors."""
    listening = await services.run_in_thread(ipc.workers_with_socket, services.settings.workers)
    return [worker for worker in await services.read(workers.live, services.settings.lease) if worker.id in listening]


async def _entry(services: Services, name: str, version: str) -> StoredVersion:
    if "@" in name or "@" in version:
        raise ModelNotFound
    return await services.run_in_thread(services.registry.resolve, f"{name}@{version}" if version else name)


def _has_loaded(worker: WorkerRecord, entry: StoredVersion) -> bool:
    return f"{entry.name}@{entry.version}" in worker.models
