"""The Open Inference Protocol, version 2, for prepared tensors: what KServe and Triton clients speak.

Notable choices:
- For pipelines that prepare their own tensors. Nothing is recorded, explained or checked as a study is; a patient's
  prediction is `POST /v1/predictions`.
- This process reads no tensor: it hands the body to a worker on its machine (app/wire.py) and its answer back, a few at
  a time. Whoever comes beyond that waits with the body unread, so memory stays bounded; beyond a few dozen it is 429.
- Errors are problem documents with the protocol's own member ``error`` beside the others.
- The protocol has a description of its own, so ours leaves these addresses out.
"""

from __future__ import annotations

import random
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Request
from fastapi.responses import JSONResponse, Response

from app.api.dependencies import Services, ServicesDep
from app.api.parameters import strict_query
from app.api.routers.health import readyz
from app.database import workers
from app.database.workers import WorkerRecord
from app.inference import open_inference
from app.registry.model_store import StoredVersion
from app.sdk.errors import BadRequest, ModelNotFound, ModelNotReady, QueueFull
from app.sdk.types import NOTICE
from app.worker import ipc

router = APIRouter(prefix="/v2", include_in_schema=False, dependencies=[Depends(strict_query)])

MOST_WAITING = 64
HeaderLength = Annotated[str, Header(alias="Inference-Header-Content-Length", max_length=10)]

_PLAIN = {"Cache-Control": "no-store"}


@router.get("")
async def server() -> Response:
    from app.sdk import __version__

    return JSONResponse({"name": "rlvo", "version": __version__, "extensions": ["binary_tensor_data"]}, headers=_PLAIN)


@router.get("/health/live")
async def live() -> Response:
    return JSONResponse({"live": True}, headers=_PLAIN)


@router.get("/health/ready")
async def ready(services: ServicesDep) -> Response:
    answer = await readyz(services)
    return JSONResponse({"ready": answer.status_code == 200}, answer.status_code, headers=_PLAIN)


@router.get("/models/{name}")
@router.get("/models/{name}/versions/{version}")
async def metadata(name: str, services: ServicesDep, version: str = "") -> Response:
    entry = await _entry(services, name, version)
    versions = [each.version for each in await services.work(services.registry.versions, name)]
    return JSONResponse(open_inference.metadata(entry.manifest, versions), headers=_PLAIN)


@router.get("/models/{name}/ready")
@router.get("/models/{name}/versions/{version}/ready")
async def model_ready(name: str, services: ServicesDep, version: str = "") -> Response:
    entry = await _entry(services, name, version)
    loaded = any(_has(worker, entry) for worker in await _near(services))
    return JSONResponse({"name": entry.name, "ready": loaded}, 200 if loaded else 503, headers=_PLAIN)


@router.post("/models/{name}/infer")
@router.post("/models/{name}/versions/{version}/infer")
async def infer(
    request: Request, name: str, services: ServicesDep, version: str = "", header_length: HeaderLength = ""
) -> Response:
    services.open_for_work()
    if header_length and not (header_length.isascii() and header_length.isdigit()):
        raise BadRequest("Inference-Header-Content-Length is a number of bytes.")
    entry = await _entry(services, name, version)
    near = sorted(await _near(services), key=lambda worker: (not _has(worker, entry), random.random()))  # noqa: S311
    if not near:
        raise ModelNotReady("No worker on this machine takes tensors; `rlvo serve` starts one", retry_after=5)
    if services.tensors.statistics().tasks_waiting >= MOST_WAITING:
        raise QueueFull("Too many tensors wait for the device; send them again in a moment.", retry_after=1)
    head = {
        "name": entry.name,
        "version": entry.version,
        "header_length": int(header_length) if header_length else None,
    }
    async with services.tensors:
        body = await request.body()
        answer = await services.run_inference(_ask, services, near, head, body)
    return Response(answer, media_type="application/json", headers=_PLAIN | {"X-Notice": NOTICE})


def _ask(services: Services, near: list[WorkerRecord], head: dict[str, Any], body: bytes) -> bytes:
    """The first worker's answer that is there to give one: a question changes nothing, so it may be put twice."""
    for worker in near:
        try:
            return ipc.ask(services.settings.workers, worker.id, head, body, patience=services.settings.load_timeout)
        except (OSError, EOFError):
            continue
    raise ModelNotReady("The worker went away; send the tensors again in a moment", retry_after=2)


async def _near(services: Services) -> list[WorkerRecord]:
    """The live workers that take tensors on this machine."""
    here = await services.work(ipc.listening, services.settings.workers)
    return [worker for worker in await services.read(workers.live, services.settings.lease) if worker.id in here]


async def _entry(services: Services, name: str, version: str) -> StoredVersion:
    if "@" in name or "@" in version:
        raise ModelNotFound
    return await services.work(services.registry.resolve, f"{name}@{version}" if version else name)


def _has(worker: WorkerRecord, entry: StoredVersion) -> bool:
    return f"{entry.name}@{entry.version}" in worker.models
