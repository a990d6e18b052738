"""What becomes of a prediction: reviews, and the outcome of the thrombectomy.

An outcome may be corrected by whoever has seen the one on record: its entity tag goes into ``If-Match``. The first one
needs none.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, Header, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ValidationError
from sqlalchemy.orm import Session

from app.api import json_parsing, openapi_responses, responses
from app.api.dependencies import CurrentCaller, ServicesDep
from app.api.parameters import PredictionId, strict_query
from app.database import audit, followup
from app.sdk.errors import EtagMismatch, FieldError, InvalidRequest, NotFound, PreconditionRequired
from app.sdk.followup import Outcome, OutcomeDraft, Review, ReviewDraft

router = APIRouter(prefix="/v1/predictions/{id}", tags=["follow-up"], dependencies=[Depends(strict_query)])

_PRIVATE = {"Cache-Control": "private, no-cache"}
_Draft = TypeVar("_Draft", bound=BaseModel)


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
    draft = read_body(ReviewDraft, await request.body())

    def act(session: Session) -> tuple[Review, bool]:
        review, new = followup.add_review(session, prediction_id, caller.tenant, draft)
        if new:
            audit.append(session, caller.name, "prediction.review", prediction_id, {"verdict": draft.verdict})
        return review, new

    review, new = await services.write(act)
    return JSONResponse(review.model_dump(mode="json"), 201 if new else 200, headers=_PRIVATE)


@router.get("/reviews", summary="Every review, oldest first", response_model=list[Review], **openapi_responses.reviews)
async def reviews(prediction_id: PredictionId, services: ServicesDep, caller: CurrentCaller) -> Response:
    found = await services.read(followup.reviews, prediction_id, caller.tenant)
    return JSONResponse([review.model_dump(mode="json") for review in found], headers=_PRIVATE)


@router.put(
    "/outcome", summary="Record or correct the outcome", response_model=Outcome, **openapi_responses.set_outcome
)
async def set_outcome(
    prediction_id: PredictionId,
    request: Request,
    services: ServicesDep,
    caller: CurrentCaller,
    if_match: Annotated[str, Header(description="The tag of the outcome to correct", max_length=1000)] = "",
) -> Response:
    draft = read_body(OutcomeDraft, await request.body())

    def act(session: Session) -> Outcome:
        present = followup.outcome(session, prediction_id, caller.tenant)
        _check(present, if_match)
        outcome = followup.set_outcome(session, prediction_id, caller.tenant, draft)
        audit.append(session, caller.name, "prediction.outcome", prediction_id, {"correction": present is not None})
        return outcome

    return _answer(await services.write(act))


@router.get("/outcome", summary="The outcome", response_model=Outcome, **openapi_responses.outcome)
async def outcome(prediction_id: PredictionId, services: ServicesDep, caller: CurrentCaller) -> Response:
    found = await services.read(followup.outcome, prediction_id, caller.tenant)
    if found is None:
        raise NotFound("The outcome of this prediction is not known yet; PUT it here once it is")
    return _answer(found)


def _check(present: Outcome | None, if_match: str) -> None:
    """Lets nobody overwrite what they have not seen. Raises PreconditionRequired, EtagMismatch."""
    if present is None:
        if if_match:
            raise EtagMismatch("There is no outcome yet; send it without If-Match")
    elif not if_match:
        raise PreconditionRequired("There is an outcome already; to correct it, send its ETag as If-Match")
    elif not responses.matches(_tag(present), if_match):
        raise EtagMismatch("The outcome was corrected meanwhile; read it again")


def _answer(found: Outcome) -> Response:
    return JSONResponse(found.model_dump(mode="json"), headers={"ETag": _tag(found), **_PRIVATE})


def _tag(found: Outcome) -> str:
    return f'"{hashlib.sha256(found.model_dump_json().encode()).hexdigest()[:32]}"'


def read_body(kind: type[_Draft], content: bytes) -> _Draft:
    """The document in a body.

    Raises MalformedJson, and InvalidRequest, which names the fields at fault and never a value.
    """
    json_parsing.parse(content)
    try:
        return kind.model_validate_json(content.removeprefix(b"\xef\xbb\xbf"))
    except ValidationError as error:
        faults = [_fault(kind, fault) for fault in error.errors(include_url=False, include_input=False)]
        raise InvalidRequest(
            "The document cannot be used; the API's description has its fields.", errors=faults
        ) from None


def _fault(kind: type[BaseModel], fault: Any) -> FieldError:
    name = str(fault["loc"][0]) if fault["loc"] else "body"
    known = name if name in kind.model_fields else "body"
    return FieldError(known, "is not a field" if fault["type"] == "extra_forbidden" else fault["msg"])
