"""The DICOMweb address: instances by STOW-RS (DICOM PS3.18). It is described by its standard, not by OpenAPI."""

from __future__ import annotations

import anyio
from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response

from app.api.dependencies import CurrentCaller, ServicesDep
from app.api.middleware import STORE
from app.api.parameters import strict_query
from app.api.stow import MEDIA_TYPE, StoreRequest
from app.api.uploads import stream_to_thread

router = APIRouter(include_in_schema=False, dependencies=[Depends(strict_query)])


@router.post(STORE)
async def store(request: Request, services: ServicesDep, caller: CurrentCaller) -> Response:
    """Stores DICOM instances; they are on the disk when the answer is sent."""
    services.raise_if_draining()
    stored = StoreRequest(services.reception, caller.tenant, services.settings.dicom_max_instance_bytes)
    parser = stored.parser(request.headers.get("content-type", ""))

    async def write(batch: bytes) -> None:
        before = len(stored.received)
        await services.run_in_thread(parser.write, batch)
        if len(stored.received) > before:
            services.instance_received.note()

    try:
        await stream_to_thread(request.stream(), write)
        parser.close()
        await services.run_in_thread(stored.flush)
        services.instance_received.note()
    finally:
        with anyio.CancelScope(shield=True):
            await services.run_in_thread(stored.discard)
    status, document = stored.answer()
    return JSONResponse(document, status_code=status, media_type=MEDIA_TYPE, headers={"Cache-Control": "no-store"})
