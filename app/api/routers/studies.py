"""Routes of received DICOM studies: list, read, complete, state roles, join the clinical record, cancel and erase."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Request
from fastapi.responses import JSONResponse, Response
from sqlalchemy.orm import Session

from app.api import json_parsing, openapi_studies
from app.api.dependencies import CurrentCaller, ServicesDep
from app.api.parameters import strict_query
from app.api.uploads import MAX_UID_LENGTH
from app.database import audit, predictions, studies
from app.database.api_keys import Caller
from app.sdk.errors import FieldError, InvalidRequest
from app.sdk.studies import MAX_ROLES, UID, ReceivedStudy, ReceivedStudyPage, StudyRoles

router = APIRouter(prefix="/v1/studies", tags=["studies"], dependencies=[Depends(strict_query)])

StudyUid = Annotated[
    str,
    # As the reception: what it takes must stay erasable, also a UID against the rules, such as one with leading zeros.
    Path(alias="uid", description="Study Instance UID", pattern=r"^[0-9]+(\.[0-9]+)*$", max_length=MAX_UID_LENGTH),
]
_CURSOR = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"


@router.get("", summary="List received studies", response_model=ReceivedStudyPage, **openapi_studies.listing)
async def list_studies(
    services: ServicesDep,
    caller: CurrentCaller,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[str | None, Query(description="`next` of the previous page", pattern=f"^{_CURSOR}$")] = None,
) -> Response:
    """Returns one page of the caller's received studies, newest first."""
    page = await services.read(studies.page, caller.tenant, limit=limit, cursor=cursor)
    return _answer(page)


@router.get("/{uid}", summary="Read a received study", response_model=ReceivedStudy, **openapi_studies.read)
async def read_study(uid: StudyUid, services: ServicesDep, caller: CurrentCaller) -> Response:
    """Returns the state of the study, its series with their roles, and its predictions."""
    return _answer(await services.read(studies.find, caller.tenant, uid))


@router.post(
    "/{uid}/complete",
    summary="Say that a study is complete",
    response_model=ReceivedStudy,
    status_code=202,
    **openapi_studies.complete,
)
async def complete_study(uid: StudyUid, services: ServicesDep, caller: CurrentCaller) -> Response:
    """Assembles the study as soon as all received instances are indexed."""
    await services.run_in_thread(services.index_all)

    def record(session: Session) -> ReceivedStudy:
        study = studies.complete(session, caller.tenant, uid)
        _note(session, caller, uid, "study.complete")
        return study

    return _answer(await services.write(record), status=202)


@router.put("/{uid}/roles", summary="State the roles of series", response_model=ReceivedStudy, **openapi_studies.roles)
async def set_study_roles(uid: StudyUid, request: Request, services: ServicesDep, caller: CurrentCaller) -> Response:
    """Replaces the roles that callers have stated."""
    roles = json_parsing.validated(StudyRoles, await request.body()).root
    if len(roles) > MAX_ROLES or not all(UID.fullmatch(name) for name in roles):
        rule = f"must name at most {MAX_ROLES} series by their Series Instance UID"
        raise InvalidRequest(f"The document {rule}.", errors=[FieldError("roles", rule)])

    def record(session: Session) -> ReceivedStudy:
        study = studies.set_roles(session, caller.tenant, uid, roles)
        _note(session, caller, uid, "study.roles", {"series": len(roles)})
        return study

    return _answer(await services.write(record))


@router.put(
    "/{uid}/clinical",
    summary="Join the clinical record to a study",
    response_model=ReceivedStudy,
    **openapi_studies.clinical,
)
async def set_study_clinical(uid: StudyUid, request: Request, services: ServicesDep, caller: CurrentCaller) -> Response:
    """Stores the clinical record of a study, before or after its images."""
    document = json_parsing.clinical_record(await request.body()).model_dump(mode="json", exclude_none=True)

    def record(session: Session) -> ReceivedStudy:
        study = studies.set_clinical(session, caller.tenant, uid, document, quiet=services.settings.dicom_quiet)
        _note(session, caller, uid, "study.clinical")
        return study

    return _answer(await services.write(record))


@router.post("/{uid}/cancel", summary="Cancel a study", response_model=ReceivedStudy, **openapi_studies.cancel)
async def cancel_study(uid: StudyUid, services: ServicesDep, caller: CurrentCaller) -> Response:
    """Stops the predictions of a study that have not finished, and makes no further one."""

    def record(session: Session) -> ReceivedStudy:
        study, unfinished = studies.cancel(session, caller.tenant, uid)
        for prediction_id in unfinished:
            predictions.cancel(session, prediction_id, caller.tenant)
            services.queue.queue_webhooks(session, prediction_id)
            audit.append(session, caller.name, "prediction.cancel", prediction_id)
        _note(session, caller, uid, "study.cancel")
        return study

    return _answer(await services.write(record))


@router.delete("/{uid}", summary="Erase a study", status_code=204, **openapi_studies.erase)
async def erase_study(uid: StudyUid, services: ServicesDep, caller: CurrentCaller) -> Response:
    """Erases the study with its instances and its predictions."""
    await services.run_in_thread(services.index_all)
    await services.run_in_thread(services.eraser.erase_study, uid, caller.tenant, actor=caller.name, why="request")
    await services.run_in_thread(services.reception.forget, caller.tenant, uid)
    return Response(status_code=204)


def _note(session: Session, caller: Caller, uid: str, action: str, detail: dict[str, int] | None = None) -> None:
    """Note an action in the audit log, under the id of the study."""
    study_id, _ = studies.identify(session, caller.tenant, uid)
    audit.append(session, caller.name, action, study_id, detail)


def _answer(document: ReceivedStudy | ReceivedStudyPage, *, status: int = 200) -> Response:
    return JSONResponse(document.model_dump(mode="json"), status_code=status, headers={"Cache-Control": "no-store"})
