"""Routes about the sender of a request: who it is, and where a person can log in."""

from __future__ import annotations

from fastapi import APIRouter, Depends
from fastapi.responses import JSONResponse, Response

from app.api import login, openapi_responses, responses
from app.api.dependencies import CurrentCaller, ServicesDep
from app.api.parameters import strict_query
from app.sdk.callers import CallerInfo

router = APIRouter(tags=["service"], dependencies=[Depends(strict_query)])


@router.get("/v1/caller", summary="Read who the caller is", response_model=CallerInfo, **openapi_responses.caller)
async def caller_info(caller: CurrentCaller) -> Response:
    """Returns the name, tenant and scopes of the key or token that the request has."""
    info = CallerInfo(
        name=caller.name, tenant=caller.tenant, scopes=sorted(caller.scopes), identified=caller.identified
    )
    return responses.private(info.model_dump(mode="json"))


@router.get("/login.json", include_in_schema=False)
async def login_provider(services: ServicesDep) -> Response:
    """Returns the identity provider at which a person logs in on the pages; empty if there is none."""
    return JSONResponse(login.provider(services.settings), headers={"Cache-Control": "no-store"})
