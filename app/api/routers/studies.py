"""Routes of received DICOM studies: list, read, complete, state roles, join the clinical record, cancel and erase."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Annotated, TypeVar

from fastapi import APIRouter, Depends, Path, Query, Request
from fastapi.responses import JSONResponse, Response
from sqlalchemy.orm import Session

from app.api import json_parsing, openapi_studies, submission
from app.api.dependencies import CurrentCaller, Services, ServicesDep
from app.api.parameters import strict_query
from app.api.uploads import ACCESSION, MAX_UID_LENGTH
from app.database import audit, destinations, predictions, records, studies
from app.database.api_keys import Caller
from app.database.session import now
from app.dicom.reception import MAX_INSTANCES
from app.dicom.return_address import accession_digest
from app.sdk.errors import FieldError, InvalidRequest, NotFound
from app.sdk.studies import MAX_ROLES, UID, ReceivedStudy, ReceivedStudyPage, StudyRecord, StudyRoles

T = TypeVar("T")

router = APIRouter(prefix="/v1/studies", tags=["studies"], dependencies=[Depends(strict_query)])
# These are beside /v1/studies/{uid}: a path below it would be taken for a study with the UID of its name.
pulls = APIRouter(prefix="/v1/study-pulls", tags=["studies"], dependencies=[Depends(strict_query)])
waiting = APIRouter(prefix="/v1/study-records", tags=["studies"], dependencies=[Depends(strict_query)])

StudyUid = Annotated[
    str,
    # As the reception: what it takes must stay erasable, also a UID against the rules, such as one with leading zeros.
    Path(alias="uid", description="Study Instance UID", pattern=r"^[0-9]+(\.[0-9]+)*$", max_length=MAX_UID_LENGTH),
]
AccessionNumber = Annotated[
    str | None, Query(description="Accession number of the study", pattern=f"^{ACCESSION}$", max_length=16)
]
NeededAccessionNumber = Annotated[
    str, Query(description="Accession number", examples=["A4711"], pattern=f"^{ACCESSION}$", max_length=16)
]
Source = Annotated[
    str | None, Query(description="Name or id of the archive; not needed if there is one", max_length=64)
]
_CURSOR = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"


@router.get("", summary="List received studies", response_model=ReceivedStudyPage, **openapi_studies.listing)
async def list_studies(
    services: ServicesDep,
    caller: CurrentCaller,
    limit: Annotated[int, Query(description="Largest number of studies on the page", ge=1, le=200)] = 50,
    cursor: Annotated[str | None, Query(description="`next` of the previous page", pattern=f"^{_CURSOR}$")] = None,
    accession_number: AccessionNumber = None,
) -> Response:
    """Returns one page of the caller's received studies, newest first."""
    accession = None if accession_number is None else _digest(services, accession_number)
    page = await services.read(studies.page, caller.tenant, limit=limit, cursor=cursor, accession=accession)
    return _answer(page)


@pulls.post(
    "",
    summary="Fetch studies by accession number",
    response_model=ReceivedStudyPage,
    status_code=202,
    **openapi_studies.pull_by_accession,
)
async def pull_by_accession(
    accession_number: NeededAccessionNumber, services: ServicesDep, caller: CurrentCaller, source: Source = None
) -> Response:
    """Asks an archive for the studies with this accession number, and fetches them."""
    archive = await services.read(destinations.source, caller.tenant, source)
    found = await services.run_in_thread(services.find_studies, archive, accession_number)

    def record(session: Session) -> ReceivedStudyPage:
        return ReceivedStudyPage(items=[_begin_pull(session, services, caller, archive, uid) for uid in found])

    return _answer(await services.write(record), status=202)


@waiting.put(
    "", summary="Join the clinical record by accession number", response_model=StudyRecord, **openapi_studies.record
)
async def set_clinical_by_accession(
    accession_number: NeededAccessionNumber, request: Request, services: ServicesDep, caller: CurrentCaller
) -> Response:
    """Joins the clinical record to the study with this accession number, or keeps it until that study arrives."""
    accession = _digest(services, accession_number)
    sent = json_parsing.clinical_record(await request.body())
    await submission.check_stored_record(services, caller, sent)
    document = sent.model_dump(mode="json", exclude_none=True)
    settings = services.settings

    def store(session: Session) -> StudyRecord:
        uid = records.study_of(session, caller.tenant, accession)
        if uid is None:
            row = records.keep(session, caller.tenant, accession, document)
            audit.append(session, caller.name, "record.waits", row)
            return StudyRecord(study=None, kept_until=now() + timedelta(hours=settings.dicom_keep_hours))
        study = studies.set_clinical(session, caller.tenant, uid, document, quiet=settings.dicom_quiet)
        records.withdraw(session, caller.tenant, accession)  # after the study is locked, as in the reception
        _note(session, caller, uid, "study.clinical")
        return StudyRecord(study=study)

    await services.run_in_thread(services.index_all)
    answer = await _changed(services, store)
    return _answer(answer, status=202 if answer.study is None else 200)


@waiting.delete("", summary="Withdraw a waiting clinical record", status_code=204, **openapi_studies.withdraw)
async def withdraw_clinical(
    accession_number: NeededAccessionNumber, services: ServicesDep, caller: CurrentCaller
) -> Response:
    """Deletes a clinical record that waits for its study."""
    accession = _digest(services, accession_number)
    if not await services.write(lambda session: records.withdraw(session, caller.tenant, accession)):
        raise NotFound("No clinical record waits for a study with this accession number.")
    return Response(status_code=204)


@router.get("/{uid}", summary="Read a received study", response_model=ReceivedStudy, **openapi_studies.read)
async def read_study(uid: StudyUid, services: ServicesDep, caller: CurrentCaller) -> Response:
    """Returns the state of the study, its series with their roles, and its predictions."""
    try:
        study = await services.read(studies.find, caller.tenant, uid)
    except NotFound:  # its first instances may be on the disk only
        await services.run_in_thread(services.index_all)
        study = await services.read(studies.find, caller.tenant, uid)
    return _answer(study)


@router.post(
    "/{uid}/complete",
    summary="Say that a study is complete",
    response_model=ReceivedStudy,
    status_code=202,
    **openapi_studies.complete,
)
async def complete_study(
    uid: StudyUid,
    services: ServicesDep,
    caller: CurrentCaller,
    instances: Annotated[
        int | None, Query(ge=1, le=MAX_INSTANCES, description="Number of instances of the study; without it: now")
    ] = None,
) -> Response:
    """Assembles the study as soon as all received instances are indexed, or the stated number has arrived."""
    await services.run_in_thread(services.index_all)

    def record(session: Session) -> ReceivedStudy:
        quiet = services.settings.dicom_quiet
        study = studies.complete(session, caller.tenant, uid, instances=instances, quiet=quiet)
        _note(session, caller, uid, "study.complete")
        return study

    return _answer(await _changed(services, record), status=202)


@router.post(
    "/{uid}/pull", summary="Fetch a study", response_model=ReceivedStudy, status_code=202, **openapi_studies.pull
)
async def pull_study(uid: StudyUid, services: ServicesDep, caller: CurrentCaller, source: Source = None) -> Response:
    """Fetches the study from an archive."""

    def record(session: Session) -> ReceivedStudy:
        archive = destinations.source(session, caller.tenant, source)
        return _begin_pull(session, services, caller, archive, uid)

    return _answer(await services.write(record), status=202)


@router.put("/{uid}/roles", summary="State the roles of series", response_model=ReceivedStudy, **openapi_studies.roles)
async def set_study_roles(uid: StudyUid, request: Request, services: ServicesDep, caller: CurrentCaller) -> Response:
    """Replaces the roles that callers have stated."""
    roles = json_parsing.validated(StudyRoles, await request.body()).root
    if len(roles) > MAX_ROLES or not all(UID.fullmatch(name) for name in roles):
        rule = f"must name at most {MAX_ROLES} series by their Series Instance UID"
        raise InvalidRequest(f"The document {rule}.", errors=[FieldError("roles", rule)])
    await services.run_in_thread(services.index_all)

    def record(session: Session) -> ReceivedStudy:
        study = studies.set_roles(session, caller.tenant, uid, roles)
        _note(session, caller, uid, "study.roles", {"series": len(roles)})
        return study

    return _answer(await _changed(services, record))


@router.put(
    "/{uid}/clinical",
    summary="Join the clinical record to a study",
    response_model=ReceivedStudy,
    **openapi_studies.clinical,
)
async def set_study_clinical(uid: StudyUid, request: Request, services: ServicesDep, caller: CurrentCaller) -> Response:
    """Stores the clinical record of a study, before or after its images."""
    sent = json_parsing.clinical_record(await request.body())
    await submission.check_stored_record(services, caller, sent)
    document = sent.model_dump(mode="json", exclude_none=True)

    def record(session: Session) -> ReceivedStudy:
        study = studies.set_clinical(session, caller.tenant, uid, document, quiet=services.settings.dicom_quiet)
        _note(session, caller, uid, "study.clinical")
        return study

    return _answer(await _changed(services, record))


@router.post("/{uid}/cancel", summary="Cancel a study", response_model=ReceivedStudy, **openapi_studies.cancel)
async def cancel_study(uid: StudyUid, services: ServicesDep, caller: CurrentCaller) -> Response:
    """Stops the predictions of a study that have not finished, and makes no further one."""
    await services.run_in_thread(services.index_all)

    def record(session: Session) -> ReceivedStudy:
        study, unfinished = studies.cancel(session, caller.tenant, uid)
        for prediction_id in unfinished:
            predictions.cancel(session, prediction_id, caller.tenant)
            services.queue.queue_webhooks(session, prediction_id)
        for prediction_id in unfinished:  # all predictions are locked before the audit, as in other transactions
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


def _begin_pull(
    session: Session, services: Services, caller: Caller, archive: destinations.Destination, uid: str
) -> ReceivedStudy:
    services.queue.queue_pull(session, archive, uid)
    _note(session, caller, uid, "study.pull")
    return studies.find(session, caller.tenant, uid)


def _digest(services: Services, accession_number: str) -> str:
    """Digest of an accession number, by which studies are found. Raises InvalidRequest without a key."""
    if services.return_key is None:
        rule = "needs RLVO_DICOM_RETURN_KEY, with which the service recognises accession numbers of received studies"
        raise InvalidRequest(f"accession_number {rule}.", errors=[FieldError("accession_number", rule)])
    return accession_digest(accession_number.encode(), services.return_key)


async def _changed(services: Services, record: Callable[[Session], T]) -> T:
    """Write a change that can make a study due, and end the wait of the assembly."""
    done = await services.write(record)
    services.study_due.note()
    return done


def _note(session: Session, caller: Caller, uid: str, action: str, detail: dict[str, int] | None = None) -> None:
    """Note an action in the audit log, under the id of the study."""
    study_id, _ = studies.identify(session, caller.tenant, uid)
    audit.append(session, caller.name, action, study_id, detail)


def _answer(document: ReceivedStudy | ReceivedStudyPage | StudyRecord, *, status: int = 200) -> Response:
    return JSONResponse(document.model_dump(mode="json"), status_code=status, headers={"Cache-Control": "no-store"})
