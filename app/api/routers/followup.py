"""Routes for what follows a prediction: reviews, and the outcome of the thrombectomy.

To correct an outcome, a caller sends the entity tag of the recorded one as ``If-Match``. The first outcome needs none.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Header, Request
from fastapi.responses import JSONResponse, Response
from sqlalchemy.orm import Session

from app.api import json_parsing, openapi_responses, responses
from app.api.dependencies import CurrentCaller, ServicesDep
from app.api.parameters import PredictionId, strict_query
from app.database import audit, followup, trials
from app.sdk.errors import EtagMismatch, InvalidRequest, NotFound, PreconditionRequired
from app.sdk.followup import Outcome, OutcomeDraft, Review, ReviewDraft, fault_of

router = APIRouter(prefix="/v1/predictions/{id}", tags=["follow-up"], dependencies=[Depends(strict_query)])


@router.post(
    "/reviews",
    summary="Agree with a decision or override it",
    response_model=Review,
    status_code=201,
    **openapi_responses.review,
)
async def add_review(
    prediction_id: PredictionId, request: Request, services: ServicesDep, caller: CurrentCaller
) -> Response:
    """Records a review; a repetition of the reviewer's last review adds nothing."""
    draft = json_parsing.validated(ReviewDraft, await request.body())

    def record(session: Session) -> tuple[Review, bool]:
        author = caller.name if caller.identified else None
        review, new = followup.add_review(session, prediction_id, caller.tenant, draft, author)
        if new:
            audit.append(session, caller.name, "prediction.review", prediction_id, {"verdict": draft.verdict})
        return review, new

    review, new = await services.write(record)
    return JSONResponse(review.model_dump(mode="json"), 201 if new else 200, headers=responses.REVALIDATE)


@router.get(
    "/reviews", summary="List the reviews, oldest first", response_model=list[Review], **openapi_responses.reviews
)
async def reviews(prediction_id: PredictionId, services: ServicesDep, caller: CurrentCaller) -> Response:
    """Returns all reviews of the prediction."""
    records = await services.read(followup.reviews, prediction_id, caller.tenant)
    return JSONResponse([review.model_dump(mode="json") for review in records], headers=responses.REVALIDATE)


@router.put(
    "/outcome", summary="Record or correct the outcome", response_model=Outcome, **openapi_responses.set_outcome
)
async def set_outcome(
    prediction_id: PredictionId,
    request: Request,
    services: ServicesDep,
    caller: CurrentCaller,
    if_match: Annotated[str, Header(description="Entity tag of the outcome to correct", max_length=1000)] = "",
) -> Response:
    """Records the outcome of the thrombectomy; a correction needs `If-Match`."""
    draft = json_parsing.validated(OutcomeDraft, await request.body())
    if (fault := fault_of(draft)) is not None:
        raise InvalidRequest(f"{fault.field}: {fault.detail}", errors=[fault])

    def record(session: Session) -> Outcome:
        present = followup.outcome(session, prediction_id, caller.tenant)
        _check_if_match(present, if_match)
        outcome = followup.set_outcome(session, prediction_id, caller.tenant, draft)
        detail: dict[str, object] = {"correction": present is not None}
        if (trial := trials.note_outcome(session, prediction_id, correction=present is not None)) is not None:
            detail["trial"] = trial
        audit.append(session, caller.name, "prediction.outcome", prediction_id, detail)
        return outcome

    return responses.tagged(await services.write(record))


@router.get("/outcome", summary="Read the outcome", response_model=Outcome, **openapi_responses.outcome)
async def outcome(prediction_id: PredictionId, services: ServicesDep, caller: CurrentCaller) -> Response:
    """Returns the recorded outcome of the thrombectomy."""
    record = await services.read(followup.outcome, prediction_id, caller.tenant)
    if record is None:
        raise NotFound("The outcome of this prediction is not recorded yet. PUT it to this address.")
    return responses.tagged(record)


def _check_if_match(present: Outcome | None, if_match: str) -> None:
    """Raises PreconditionRequired or EtagMismatch if the caller has not read the present outcome."""
    if present is None:
        if if_match:
            raise EtagMismatch("There is no outcome yet. Send the request without If-Match.")
    elif not if_match:
        raise PreconditionRequired("The outcome is recorded already. To correct it, send its ETag as If-Match.")
    elif not responses.matches(responses.entity_tag(present), if_match):
        raise EtagMismatch("The outcome has been corrected since you read it. Read it again.")
