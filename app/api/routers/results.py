"""What a prediction made, as files: each is a blob, served under the name that the prediction gives it.

Bytes are checked against their digest before the first one leaves: a damaged blob is an error, never an answer.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, BinaryIO, Literal

from fastapi import APIRouter, Depends, Path
from fastapi.responses import Response, StreamingResponse

from app.api import openapi_responses, responses
from app.api.cds import cards
from app.api.dependencies import CurrentCaller, Services, ServicesDep
from app.api.fhir import bundle
from app.api.parameters import IfNoneMatch, PredictionId, strict_query
from app.database import predictions
from app.sdk.errors import InternalError

PIECE = 256 * 1024

_SHOWN = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; sandbox"
}
"""Of a file that a browser shows: its own style and its own images, and no script whatever it may hold."""

router = APIRouter(prefix="/v1/predictions/{id}", tags=["results"], dependencies=[Depends(strict_query)])

Name = Annotated[str, Path(pattern=r"^[a-z0-9-]{1,64}$", description="As `attribution.maps` lists it")]
Figure = Annotated[
    str,
    Path(
        pattern=r"^[a-z0-9-]{1,64}$",
        description="`waterfall`, `position`, `perfusion`, or `overlay-<modality>` for each explained one",
    ),
]


@router.get(
    "/maps/{name}.nii.gz", summary="A map of the prediction", response_class=Response, **openapi_responses.volume_map
)
async def volume_map(
    prediction_id: PredictionId,
    name: Name,
    services: ServicesDep,
    caller: CurrentCaller,
    if_none_match: IfNoneMatch = "",
) -> Response:
    return await _file(services, caller.tenant, prediction_id, f"maps/{name}.nii.gz", if_none_match)


@router.get("/figures/{name}.{kind}", summary="A figure", response_class=Response, **openapi_responses.figure)
async def figure(
    prediction_id: PredictionId,
    name: Figure,
    kind: Literal["png", "svg"],
    services: ServicesDep,
    caller: CurrentCaller,
    if_none_match: IfNoneMatch = "",
) -> Response:
    return await _file(services, caller.tenant, prediction_id, f"figures/{name}.{kind}", if_none_match)


@router.get("/report.html", summary="The report, for the record", response_class=Response, **openapi_responses.report)
async def report(
    prediction_id: PredictionId, services: ServicesDep, caller: CurrentCaller, if_none_match: IfNoneMatch = ""
) -> Response:
    return await _file(services, caller.tenant, prediction_id, "report.html", if_none_match)


@router.get("/fhir", summary="The prediction as a FHIR R4B bundle", response_class=Response, **openapi_responses.fhir)
async def fhir(prediction_id: PredictionId, services: ServicesDep, caller: CurrentCaller) -> Response:
    prediction = await services.read(predictions.find, prediction_id, caller.tenant)
    return responses.fhir(bundle(prediction))


@router.get(
    "/cds-hooks", summary="The prediction as a CDS Hooks card", response_class=Response, **openapi_responses.cds
)
async def cds_hooks(prediction_id: PredictionId, services: ServicesDep, caller: CurrentCaller) -> Response:
    prediction = await services.read(predictions.find, prediction_id, caller.tenant)
    return responses.cds(cards(prediction, services.settings.public_url))


async def _file(services: Services, tenant: str, prediction_id: str, name: str, if_none_match: str) -> Response:
    """One artifact as a download. Raises PredictionNotFound, Erased, NotFinished, NotFound."""
    digest, media_type = await services.read(predictions.artifact, prediction_id, tenant, name)
    tag = f'"{digest}"'
    headers = {"ETag": tag, "Cache-Control": "private, no-cache", "Accept-Ranges": "none"}
    if responses.matches(tag, if_none_match):
        return Response(status_code=304, headers=headers)
    file, size = await services.work(_verified, services, digest)
    headers["Content-Length"] = str(size)
    where = "attachment" if name.startswith("maps/") else "inline"
    headers["Content-Disposition"] = f'{where}; filename="{prediction_id}-{name.rpartition("/")[2]}"'
    if where == "inline":
        headers |= _SHOWN
    return StreamingResponse(_pieces(services, file), media_type=media_type, headers=headers)


def _verified(services: Services, digest: str) -> tuple[BinaryIO, int]:
    """The blob, opened; blobs are immutable, so what was verified is what will be read."""
    if not services.storage.verify(digest):
        raise InternalError("A stored file is missing or damaged; the operator can mend it with `rlvo fsck`")
    path = services.storage.path(digest)
    return path.open("rb"), path.stat().st_size


async def _pieces(services: Services, file: BinaryIO) -> AsyncIterator[bytes]:
    with file:
        while piece := await services.work(file.read, PIECE):
            yield piece
