"""Operating the registry over HTTP: which version an alias means, what the workers keep loaded, what a shadow says.

Notable choices:
- An alias that exists moves only by ``If-Match``, so that nobody overwrites a move that they have not seen; its tag
  counts the moves, so there and back again is another tag.
- A move waits for the workers, up to `load_timeout`: 200 means that all of them serve the new version already.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from typing import Annotated, TypeVar

from anyio import to_thread
from fastapi import APIRouter, Depends, Header, Path, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel

from app.api import openapi_responses, responses
from app.api.dependencies import CurrentCaller, Services, ServicesDep
from app.api.parameters import strict_query
from app.api.routers.followup import read_body
from app.api.routers.models import Name, describe
from app.database import shadow_scores
from app.operations.promotion import Promotion
from app.sdk.errors import EtagMismatch, ModelNotFound, PreconditionRequired
from app.sdk.models import Alias, AliasDraft, AliasMove, ShadowReport
from app.sdk.types import ModelVersionInfo

router = APIRouter(prefix="/v1/models/{name}", tags=["models"], dependencies=[Depends(strict_query)])

AliasName = Annotated[str, Path(description="champion, challenger, shadow, or one of your own")]
Version = Annotated[str, Path(description="A version such as `1.2.0`")]
IfMatch = Annotated[str, Header(description="The alias' entity tag as it was read", max_length=1000)]

_FRESH = {"Cache-Control": "private, no-cache"}
_Kind = TypeVar("_Kind", bound=BaseModel)


@router.get("/aliases/{alias}", summary="What an alias means", response_model=Alias, **openapi_responses.alias)
async def alias(name: Name, alias: AliasName, services: ServicesDep) -> Response:
    return _answer(await services.work(_present, services, name, alias))


@router.put("/aliases/{alias}", summary="Move an alias", response_model=Alias, **openapi_responses.set_alias)
async def set_alias(
    name: Name, alias: AliasName, request: Request, services: ServicesDep, caller: CurrentCaller, if_match: IfMatch = ""
) -> Response:
    draft = read_body(AliasDraft, await request.body())
    present = await services.work(_known, services, name, alias)
    expected = _checked(present, if_match)

    def act() -> Alias:
        _promotion(services).promote(name, alias, draft.version, expected=expected, by=caller.name)
        return _present(services, name, alias)

    return _answer(await to_thread.run_sync(act, abandon_on_cancel=True))


@router.post(
    "/aliases/{alias}/rollback",
    summary="Move it back to the version before",
    response_model=Alias,
    **openapi_responses.set_back,
)
async def roll_back(
    name: Name, alias: AliasName, services: ServicesDep, caller: CurrentCaller, if_match: IfMatch = ""
) -> Response:
    present = await services.work(_present, services, name, alias)
    if if_match:
        _checked(present, if_match)

    def act() -> Alias:
        _promotion(services).rollback(name, alias, expected=present.version, by=caller.name)
        return _present(services, name, alias)

    return _answer(await to_thread.run_sync(act, abandon_on_cancel=True))


@router.post(
    "/versions/{version}/load",
    summary="Have the workers load it",
    response_model=ModelVersionInfo,
    **openapi_responses.load,
)
async def load(name: Name, version: Version, services: ServicesDep, caller: CurrentCaller) -> Response:
    promotion = _promotion(services)
    await to_thread.run_sync(lambda: promotion.load(name, version, by=caller.name), abandon_on_cancel=True)
    return JSONResponse((await describe(services, name, version)).model_dump(mode="json"), headers=_FRESH)


@router.post(
    "/versions/{version}/unload",
    summary="Have the workers let it go",
    response_model=ModelVersionInfo,
    status_code=202,
    **openapi_responses.unload,
)
async def unload(name: Name, version: Version, services: ServicesDep, caller: CurrentCaller) -> Response:
    promotion = _promotion(services)
    await services.work(lambda: promotion.unload(name, version, by=caller.name))
    return JSONResponse((await describe(services, name, version)).model_dump(mode="json"), 202, headers=_FRESH)


@router.get("/shadow", summary="How a shadow compares", response_model=list[ShadowReport], **openapi_responses.shadow)
async def shadow(name: Name, services: ServicesDep) -> Response:
    if not await services.work(services.registry.versions, name):
        raise ModelNotFound
    found = await services.read(shadow_scores.report, name)
    return JSONResponse([asdict(each) for each in found], headers=_FRESH)


def _promotion(services: Services) -> Promotion:
    settings = services.settings
    return Promotion(services.database, services.registry, settings.lease, patience=settings.load_timeout)


def _known(services: Services, name: str, alias: str) -> Alias | None:
    if not services.registry.versions(name):
        raise ModelNotFound
    version = services.registry.aliases(name).get(alias)
    if version is None:
        return None
    moves = services.registry.history(name, alias)
    history = [AliasMove.model_validate(asdict(move)) for move in moves]
    return Alias(model=name, alias=alias, version=version, history=history)


def _present(services: Services, name: str, alias: str) -> Alias:
    found = _known(services, name, alias)
    if found is None:
        raise ModelNotFound("There is no such alias; GET /v1/models lists those there are")
    return found


def _checked(present: Alias | None, if_match: str) -> str | None:
    """The version that the alias must still mean when it is moved. Raises PreconditionRequired, EtagMismatch."""
    if present is None:
        if if_match:
            raise EtagMismatch("There is no such alias yet; send it without If-Match")
        return None
    if not if_match:
        raise PreconditionRequired("The alias exists; to move it, send its ETag as If-Match")
    if not responses.matches(_tag(present), if_match):
        raise EtagMismatch("The alias was moved meanwhile; read it again")
    return present.version


def _answer(found: Alias) -> Response:
    return JSONResponse(found.model_dump(mode="json"), headers={"ETag": _tag(found), **_FRESH})


def _tag(found: Alias) -> str:
    return f'"{hashlib.sha256(found.model_dump_json().encode()).hexdigest()[:32]}"'
