"""Routes of the CDS service (CDS Hooks 2.0): discovery, the hook `patient-view`, and feedback on its cards."""

from __future__ import annotations

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response
from sqlalchemy.orm import Session

from app.api import cds_hooks, json_parsing, openapi_cds, responses
from app.api.dependencies import CurrentCaller, ServicesDep
from app.api.parameters import strict_query
from app.database import audit, predictions

router = APIRouter(prefix="/cds-services", tags=["cds"], dependencies=[Depends(strict_query)])


@router.get("", summary="Discover the CDS service", response_class=JSONResponse, **openapi_cds.discovery)
async def cds_services() -> JSONResponse:
    """Describes the CDS service; it needs no key."""
    return JSONResponse(cds_hooks.DISCOVERY)


@router.post(
    f"/{cds_hooks.SERVICE}", summary="Answer the hook patient-view", response_class=Response, **openapi_cds.patient_view
)
async def patient_view(request: Request, services: ServicesDep, caller: CurrentCaller) -> Response:
    """Returns the card of the newest prediction of the patient, or no card."""
    asked = json_parsing.validated(cds_hooks.CdsRequest, await request.body(), **cds_hooks.PARSING)
    settings = services.settings
    names = cds_hooks.subjects(asked, settings.subject_system)
    newest = await services.read(predictions.newest_of, caller.tenant, names)
    return responses.private(cds_hooks.answer(newest, settings.public_url))


@router.post(
    f"/{cds_hooks.SERVICE}/feedback",
    summary="Report what a user did with a card",
    response_class=JSONResponse,
    **openapi_cds.feedback,
)
async def cds_feedback(request: Request, services: ServicesDep, caller: CurrentCaller) -> JSONResponse:
    """Records the outcome of each card in the audit log; comments are not stored."""
    sent = json_parsing.validated(cds_hooks.CdsFeedback, await request.body(), **cds_hooks.PARSING)

    def record(session: Session) -> None:
        for each in sent.feedback:
            prediction = predictions.find(session, each.card.lower(), caller.tenant)
            audit.append(session, caller.name, "prediction.cds-feedback", prediction.id, each.audited())

    await services.write(record)
    return JSONResponse({"recorded": len(sent.feedback)})
