"""Routes of the files and exports of a prediction: series, maps, figures, report, FHIR bundle, CDS Hooks card.

The digest of a file is checked before its first byte is sent, so a damaged file gives an error.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Annotated, BinaryIO, Literal, TypeVar

from fastapi import APIRouter, Depends, Header, Path, Query
from fastapi.responses import Response, StreamingResponse

from app.api import openapi_cds, openapi_responses, responses
from app.api.cds import cards
from app.api.dependencies import CurrentCaller, Services, ServicesDep
from app.api.fhir import FhirVersion, accepted_version
from app.api.parameters import IfNoneMatch, PredictionId, strict_query
from app.database import figure_state, predictions
from app.dicom.objects.kinds import ObjectKind
from app.sdk.errors import FiguresNotReady, InternalError
from app.sdk.types import Input

T = TypeVar("T")

CHUNK_BYTES = 256 * 1024
SHORT_WAIT = 2.0  # seconds that a request for a figure waits by default; usual clients give up after five

_INLINE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; sandbox"
}
"""For files that a browser shows: only inline styles and inline images, and no script."""

router = APIRouter(prefix="/v1/predictions/{id}", tags=["results"], dependencies=[Depends(strict_query)])

Name = Annotated[str, Path(pattern=r"^[a-z0-9-]{1,64}$", description="A name in `attribution.maps`")]
Figure = Annotated[
    str,
    Path(
        pattern=r"^[a-z0-9-]{1,64}$",
        description="`waterfall`, `position`, `perfusion`, or `overlay-<modality>` for an explained modality",
    ),
]


DrawnWait = Annotated[
    float,
    Query(
        ge=0,
        le=86400,
        allow_inf_nan=False,
        description="Seconds to wait until the figures are drawn; 0 answers at once; the service limits them",
    ),
]
Series = Annotated[Input, Path(description="A name in `inputs`")]


@router.get("/inputs/{name}.nii", summary="Read a series as sent", response_class=Response, **openapi_responses.series)
async def series(
    prediction_id: PredictionId,
    name: Series,
    services: ServicesDep,
    caller: CurrentCaller,
    if_none_match: IfNoneMatch = "",
) -> Response:
    """Returns a volume of the study at full resolution, without the free texts of its header."""
    return await _file(services, caller.tenant, prediction_id, f"inputs/{name}.nii", if_none_match)


@router.get("/alignment.json", summary="Read the alignment", response_class=Response, **openapi_responses.alignment)
async def alignment(
    prediction_id: PredictionId, services: ServicesDep, caller: CurrentCaller, if_none_match: IfNoneMatch = ""
) -> Response:
    """Returns where each image of the patient lies in MNI space."""
    return await _file(services, caller.tenant, prediction_id, "alignment.json", if_none_match)


@router.get("/maps/{name}.nii.gz", summary="Read a map", response_class=Response, **openapi_responses.volume_map)
async def volume_map(
    prediction_id: PredictionId,
    name: Name,
    services: ServicesDep,
    caller: CurrentCaller,
    if_none_match: IfNoneMatch = "",
) -> Response:
    """Returns a voxel map on the grid of the patient's image."""
    return await _file(services, caller.tenant, prediction_id, f"maps/{name}.nii.gz", if_none_match)


@router.get("/figures/{name}.{kind}", summary="Read a figure", response_class=Response, **openapi_responses.figure)
async def figure(
    prediction_id: PredictionId,
    name: Figure,
    kind: Annotated[Literal["png", "svg"], Path(description="Form of the image")],
    services: ServicesDep,
    caller: CurrentCaller,
    if_none_match: IfNoneMatch = "",
    wait: DrawnWait = SHORT_WAIT,
) -> Response:
    """Returns a figure as PNG or SVG."""
    return await _drawn(services, caller.tenant, prediction_id, f"figures/{name}.{kind}", if_none_match, wait)


@router.get("/report.html", summary="Read the report", response_class=Response, **openapi_responses.report)
async def report(
    prediction_id: PredictionId,
    services: ServicesDep,
    caller: CurrentCaller,
    if_none_match: IfNoneMatch = "",
    wait: DrawnWait = SHORT_WAIT,
) -> Response:
    """Returns the report as one HTML page."""
    return await _drawn(services, caller.tenant, prediction_id, predictions.REPORT, if_none_match, wait)


@router.get("/fhir", summary="Read the prediction as a FHIR bundle", response_class=Response, **openapi_responses.fhir)
async def fhir(
    prediction_id: PredictionId,
    services: ServicesDep,
    caller: CurrentCaller,
    version: Annotated[
        FhirVersion | None, Query(alias="fhirVersion", description="FHIR release; if not sent, that of `Accept`, or R4")
    ] = None,
    accept: Annotated[str, Header(include_in_schema=False)] = "",
) -> Response:
    """Returns a FHIR bundle of a prediction that succeeded."""
    asked = version or accepted_version(accept)
    prediction = await services.read(predictions.find, prediction_id, caller.tenant)
    return responses.fhir(prediction, asked, services.settings.subject_system)


@router.get(
    "/cds-hooks", summary="Read the prediction as a CDS Hooks card", response_class=Response, **openapi_cds.card
)
async def cds_hooks(prediction_id: PredictionId, services: ServicesDep, caller: CurrentCaller) -> Response:
    """Returns a CDS Hooks card of a prediction that succeeded."""
    prediction = await services.read(predictions.find, prediction_id, caller.tenant)
    return responses.private(cards(prediction, services.settings.public_url))


@router.get(
    "/dicom", summary="Read the result as DICOM objects", response_class=Response, **openapi_responses.dicom_objects
)
async def dicom_objects(
    prediction_id: PredictionId,
    services: ServicesDep,
    caller: CurrentCaller,
    kind: Annotated[ObjectKind | None, Query(description="Objects of this kind only; if not sent, all")] = None,
    wait: DrawnWait = SHORT_WAIT,
) -> Response:
    """Returns the DICOM objects of a prediction that succeeded, as a ZIP archive; they name the patient."""
    kinds = tuple(ObjectKind) if kind is None else (kind,)

    async def archive() -> bytes:
        async with services.conversion_slots:
            return await services.run_in_thread(_archive, services, caller.tenant, prediction_id, kinds)

    content = await _once_drawn(services, prediction_id, archive, wait)
    name = f'attachment; filename="{prediction_id}-dicom.zip"'
    headers = {"Cache-Control": "private, no-store", "Content-Disposition": name}
    return Response(content, media_type="application/zip", headers=headers)


def _archive(services: Services, tenant: str, prediction_id: str, kinds: tuple[ObjectKind, ...]) -> bytes:
    with services.result_objects.archive(prediction_id, tenant, kinds) as path:
        return path.read_bytes()


async def _drawn(
    services: Services, tenant: str, prediction_id: str, name: str, if_none_match: str, wait: float
) -> Response:
    """The response with a figure or the report, after at most ``wait`` seconds. Raises the errors of `_file`."""
    read = partial(_file, services, tenant, prediction_id, name, if_none_match)
    return await _once_drawn(services, prediction_id, read, wait)


async def _once_drawn(services: Services, prediction_id: str, read: Callable[[], Awaitable[T]], wait: float) -> T:
    """The result of ``read``, which needs the figures; has them drawn, and waits for them for at most ``wait`` seconds.

    Raises FiguresNotReady, and the errors of ``read``.
    """
    try:
        return await read()
    except FiguresNotReady:
        if await services.read(figure_state.undrawn, prediction_id):
            await services.write(services.queue.draw_on_demand, prediction_id)
        if not wait:
            raise
    await services.watcher.drawn(prediction_id, min(wait, services.settings.wait_max))
    return await read()


async def _file(services: Services, tenant: str, prediction_id: str, name: str, if_none_match: str) -> Response:
    """The response with one file. Raises PredictionNotFound, Erased, NotFinished, NotFound."""
    digest, media_type = await services.read(predictions.artifact, prediction_id, tenant, name)
    tag = f'"{digest}"'
    # A browser keeps no series on its disk: a series can show a face, and stays there after an erasure.
    cache = "private, no-store" if name.startswith("inputs/") else "private, no-cache"
    headers = {"ETag": tag, "Cache-Control": cache, "Accept-Ranges": "none"}
    disposition = "attachment" if name.startswith(("inputs/", "maps/")) else "inline"
    if disposition == "inline":
        headers |= _INLINE_HEADERS  # also of a 304, whose headers replace those that the browser has stored
    if responses.matches(tag, if_none_match):
        return Response(status_code=304, headers=headers)
    file, size = await services.run_in_thread(_verified, services, digest)
    headers["Content-Length"] = str(size)
    headers["Content-Disposition"] = f'{disposition}; filename="{prediction_id}-{name.rpartition("/")[2]}"'
    return StreamingResponse(_chunks(services, file), media_type=media_type, headers=headers)


def _verified(services: Services, digest: str) -> tuple[BinaryIO, int]:
    """The open file and its size in bytes; blobs never change, so the verified content is the content that is read."""
    if not services.storage.verify(digest):
        raise InternalError(
            "A stored file is missing or damaged. The operator can check and repair the storage with `rlvo fsck`."
        )
    file = services.storage.open(digest)
    return file, os.fstat(file.fileno()).st_size


async def _chunks(services: Services, file: BinaryIO) -> AsyncIterator[bytes]:
    with file:
        while chunk := await services.run_in_thread(file.read, CHUNK_BYTES):
            yield chunk
