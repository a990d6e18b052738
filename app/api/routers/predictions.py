"""Routes of predictions: submit, read, follow, list, cancel, erase, and the certificate of an erasure."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import Response, StreamingResponse
from sqlalchemy.orm import Session
from starlette.requests import ClientDisconnect

from app.api import openapi_responses, responses, submission, uploads
from app.api.dependencies import CurrentCaller, Services, ServicesDep
from app.api.fhir import accepted_version
from app.api.parameters import (
    CreatedAfter,
    IdempotencyKey,
    IfNoneMatch,
    ModelFilter,
    PredictionId,
    Prefer,
    Urgency,
    Wait,
    preferred_wait,
    priority_of,
    strict_query,
)
from app.database import audit, erasures, paging, predictions
from app.database.status import State
from app.sdk.errors import InternalError, RlvoError
from app.sdk.sorting import Sort
from app.sdk.types import ErasureCertificate, Prediction, PredictionPage, Status

HEARTBEAT = 15.0  # seconds without an event after which an event stream sends a comment

router = APIRouter(prefix="/v1/predictions", tags=["predictions"], dependencies=[Depends(strict_query)])


@router.post("", summary="Submit a study", response_model=Prediction, **openapi_responses.submit)
async def submit(
    request: Request,
    services: ServicesDep,
    caller: CurrentCaller,
    idempotency_key: IdempotencyKey = None,
    prefer: Prefer = "",
    urgency: Urgency = "",
) -> Response:
    """Receives a study, queues its prediction, and waits for the result as long as the caller prefers."""
    priority = priority_of(urgency)
    reservation = await submission.reserve(services, caller, idempotency_key, priority)
    try:
        async with uploads.receive(request, services) as upload:
            prediction_id, replayed = await submission.accept(
                services, caller, upload, reservation, request.state.trace_context, priority
            )
    except Exception as error:
        await submission.refuse(services, caller, reservation, _refusal_code(error), request.state.trace_id)
        raise
    settings = services.settings
    wait, applied = preferred_wait(prefer, default=settings.wait_default, most=settings.wait_max)
    prediction = await _wait_for(services, prediction_id, caller.tenant, wait)
    trace_id = request.state.trace_id
    return responses.submission(prediction, applied=applied, replayed=replayed, trace_id=trace_id)


@router.get("/{id}", summary="Read a prediction", response_model=Prediction, **openapi_responses.read)
async def read(
    request: Request,
    prediction_id: PredictionId,
    services: ServicesDep,
    caller: CurrentCaller,
    wait: Wait = 0.0,
    if_none_match: IfNoneMatch = "",
) -> Response:
    """Returns the present state of the prediction; with `wait`, waits for its result first."""
    prediction = await _wait_for(services, prediction_id, caller.tenant, min(wait, services.settings.wait_max))
    if responses.FHIR in (accept := request.headers.get("accept", "")):
        return responses.fhir(prediction, accepted_version(accept), services.settings.subject_system)
    return responses.prediction(prediction, if_none_match=if_none_match)


@router.get("/{id}/events", summary="Follow a prediction", response_class=StreamingResponse, **openapi_responses.events)
async def events(prediction_id: PredictionId, services: ServicesDep, caller: CurrentCaller) -> StreamingResponse:
    """Sends each new state of the prediction as a server-sent event, until it finishes and no job draws its figures."""
    await services.read(predictions.find, prediction_id, caller.tenant)
    stream = _events(services, prediction_id)
    return StreamingResponse(stream, media_type="text/event-stream", headers={"Cache-Control": "no-store"})


@router.get("", summary="List predictions", response_model=PredictionPage, **openapi_responses.listing)
async def listing(
    services: ServicesDep,
    caller: CurrentCaller,
    created_after: CreatedAfter,
    model: ModelFilter,
    subject: Annotated[
        str | None, Query(description="The whole pseudonym of a patient", pattern=f"^{uploads.SUBJECT}$")
    ] = None,
    study_instance_uid: Annotated[
        str | None,
        Query(description="DICOM Study Instance UID", pattern=f"^{uploads.UID}$", max_length=uploads.MAX_UID_LENGTH),
    ] = None,
    accession_number: Annotated[
        str | None, Query(description="Accession number of the study", pattern=f"^{uploads.ACCESSION}$", max_length=16)
    ] = None,
    status: Annotated[Status | None, Query(description="Only predictions in this state")] = None,
    subject_contains: Annotated[
        str | None, Query(description="Part of the pseudonym, in any case", pattern=f"^{uploads.SUBJECT}$")
    ] = None,
    reviewed: Annotated[bool | None, Query(description="With or without a review")] = None,
    sort: Annotated[Sort, Query(description="`-` means descending; rows without a value are last")] = Sort.NEWEST,
    limit: Annotated[int, Query(description="Largest number of predictions on the page", ge=1, le=200)] = 50,
    cursor: Annotated[
        str | None, Query(description="`next` of the previous page of this `sort`", pattern=f"^{paging.CURSOR}$")
    ] = None,
) -> Response:
    """Returns one page of the caller's predictions that match all given filters, by default newest first."""
    page = await services.read(
        predictions.page,
        caller.tenant,
        limit=limit,
        cursor=cursor,
        subject=subject,
        study_instance_uid=study_instance_uid,
        accession_number=accession_number,
        model=model,
        status=status,
        created_after=created_after,
        subject_contains=subject_contains,
        reviewed=reviewed,
        sort=sort,
    )
    return responses.page(page)


@router.post("/{id}/cancel", summary="Cancel a prediction", response_model=Prediction, **openapi_responses.cancel)
async def cancel(prediction_id: PredictionId, services: ServicesDep, caller: CurrentCaller) -> Response:
    """Stops a prediction that has not finished; the record remains."""

    def record(session: Session) -> Prediction:
        cancelled = predictions.cancel(session, prediction_id, caller.tenant)
        services.queue.queue_webhooks(session, prediction_id)
        audit.append(session, caller.name, "prediction.cancel", prediction_id)
        return cancelled

    return responses.prediction(await services.write(record))


@router.delete("/{id}", summary="Erase a prediction", status_code=204, **openapi_responses.erase)
async def erase(prediction_id: PredictionId, services: ServicesDep, caller: CurrentCaller) -> Response:
    """Deletes the prediction, its clinical record, and the files that no other prediction uses."""
    await services.run_in_thread(services.eraser.erase, prediction_id, caller.tenant, actor=caller.name, why="request")
    return Response(status_code=204)


@router.get(
    "/{id}/erasure",
    summary="Read the certificate of an erasure",
    response_model=ErasureCertificate,
    **openapi_responses.erasure,
)
async def erasure(prediction_id: PredictionId, services: ServicesDep, caller: CurrentCaller) -> Response:
    """Returns what was erased, and whether all files are deleted by now."""
    exists = services.storage.exists
    certificate = await services.read(erasures.certificate, prediction_id, caller.tenant, exists)
    return responses.private(certificate.model_dump(mode="json"))


def _refusal_code(error: Exception) -> str:
    """The code of a refusal in the audit log."""
    if isinstance(error, ClientDisconnect):
        return "client-gone"
    return error.code if isinstance(error, RlvoError) else InternalError.code  # errors of SQLAlchemy have codes too


async def _wait_for(services: Services, prediction_id: str, tenant: str, wait: float) -> Prediction:
    """The prediction when it has finished, or its state after ``wait`` seconds."""
    prediction = await services.read(predictions.find, prediction_id, tenant)
    if wait > 0 and not prediction.status.finished:
        await services.watcher.finished(prediction_id, wait)
        prediction = await services.read(predictions.find, prediction_id, tenant)
    return prediction


async def _events(services: Services, prediction_id: str) -> AsyncIterator[str]:
    """Each state as a server-sent event, and a comment after `HEARTBEAT` seconds without one."""
    async for state in services.watcher.changes(prediction_id, heartbeat=HEARTBEAT):
        yield ": heartbeat\n\n" if state is None else f"event: state\ndata: {_state(prediction_id, state)}\n\n"


def _state(prediction_id: str, state: State) -> str:
    members = {"id": prediction_id, "status": state.status, "stage": state.stage, "progress": state.progress}
    known = {"waiting": state.waiting, "figures": state.figures}
    return json.dumps(members | {name: value for name, value in known.items() if value})
