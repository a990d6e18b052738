"""Routes that manage model versions: aliases, loading and unloading, and the comparison with a shadow version.

Design notes:
- An existing alias is moved only with ``If-Match``, so that a caller cannot overwrite a move that it has not read.
- The entity tag covers the history, so an alias that is moved away and back has a new tag.
- A move waits for the workers for up to `load_timeout`. 200 means that all live workers have checked the version.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Depends, Header, Path, Request
from fastapi.responses import JSONResponse, Response

from app.api import json_parsing, openapi_models, responses
from app.api.dependencies import CurrentCaller, Services, ServicesDep
from app.api.parameters import strict_query
from app.api.routers.models import Name, describe
from app.database import shadow_scores
from app.operations.promotion import Promotion
from app.registry.aliases import ALIAS
from app.sdk.errors import EtagMismatch, ModelNotFound, PreconditionRequired
from app.sdk.models import Alias, AliasDraft, AliasMove, ShadowReport
from app.sdk.types import ModelVersionInfo

router = APIRouter(prefix="/v1/models/{name}", tags=["models"], dependencies=[Depends(strict_query)])

AliasName = Annotated[
    str,
    Path(
        description="`champion`, `challenger`, `shadow`, or a name that you choose",
        json_schema_extra={"pattern": f"^{ALIAS.pattern}$"},  # an unknown name is 404, whatever its letters
    ),
]
Version = Annotated[str, Path(description="A version such as `1.2.0`")]
IfMatch = Annotated[str, Header(description="Entity tag of the alias as the caller read it", max_length=1000)]


@router.get("/aliases/{alias}", summary="Read an alias", response_model=Alias, **openapi_models.alias)
async def alias(name: Name, alias: AliasName, services: ServicesDep) -> Response:
    """Returns the version of the alias and the history of its moves."""
    return responses.tagged(await services.run_in_thread(_existing_alias, services, name, alias))


@router.put("/aliases/{alias}", summary="Move an alias", response_model=Alias, **openapi_models.set_alias)
async def set_alias(
    name: Name, alias: AliasName, request: Request, services: ServicesDep, caller: CurrentCaller, if_match: IfMatch = ""
) -> Response:
    """Moves the alias to another version after all live workers have checked that version."""
    draft = json_parsing.validated(AliasDraft, await request.body())
    present = await services.run_in_thread(_find_alias, services, name, alias)
    expected = _check_if_match(present, if_match)

    def move() -> Alias:
        _promotion(services).promote(name, alias, draft.version, expected=expected, by=caller.name)
        return _existing_alias(services, name, alias)

    return responses.tagged(await to_thread.run_sync(move, abandon_on_cancel=True))


@router.post(
    "/aliases/{alias}/rollback",
    summary="Move an alias back to its previous version",
    response_model=Alias,
    **openapi_models.roll_back,
)
async def roll_back(
    name: Name, alias: AliasName, services: ServicesDep, caller: CurrentCaller, if_match: IfMatch = ""
) -> Response:
    """Moves the alias to the version that it had before its last move; needs the entity tag as `If-Match`."""
    present = await services.run_in_thread(_existing_alias, services, name, alias)
    expected = _check_if_match(present, if_match)

    def move_back() -> Alias:
        _promotion(services).rollback(name, alias, expected=expected, by=caller.name)
        return _existing_alias(services, name, alias)

    return responses.tagged(await to_thread.run_sync(move_back, abandon_on_cancel=True))


@router.post(
    "/versions/{version}/load",
    summary="Load a version in all workers",
    response_model=ModelVersionInfo,
    **openapi_models.load,
)
async def load(name: Name, version: Version, services: ServicesDep, caller: CurrentCaller) -> Response:
    """Waits until every live worker has loaded the version and checked its golden cases."""
    promotion = _promotion(services)
    await to_thread.run_sync(lambda: promotion.load(name, version, by=caller.name), abandon_on_cancel=True)
    info = await describe(services, name, version)
    return JSONResponse(info.model_dump(mode="json"), headers=responses.REVALIDATE)


@router.post(
    "/versions/{version}/unload",
    summary="Unload a version in all workers",
    response_model=ModelVersionInfo,
    status_code=202,
    **openapi_models.unload,
)
async def unload(name: Name, version: Version, services: ServicesDep, caller: CurrentCaller) -> Response:
    """Requests that the workers unload the version; a version that an alias names cannot be unloaded."""
    promotion = _promotion(services)
    await services.run_in_thread(lambda: promotion.unload(name, version, by=caller.name))
    info = await describe(services, name, version)
    return JSONResponse(info.model_dump(mode="json"), 202, headers=responses.REVALIDATE)


@router.get("/shadow", summary="Compare shadow versions", response_model=list[ShadowReport], **openapi_models.shadow)
async def shadow(name: Name, services: ServicesDep) -> Response:
    """Compares the predictions of shadow versions with the predictions that callers received."""
    if not await services.run_in_thread(services.registry.versions, name):
        raise ModelNotFound
    reports = await services.read(shadow_scores.report, name)
    return JSONResponse([asdict(each) for each in reports], headers=responses.REVALIDATE)


def _promotion(services: Services) -> Promotion:
    settings = services.settings
    return Promotion(services.database, services.registry, settings.lease, load_timeout=settings.load_timeout)


def _find_alias(services: Services, name: str, alias: str) -> Alias | None:
    if not services.registry.versions(name):
        raise ModelNotFound
    version = services.registry.aliases(name).get(alias)
    if version is None:
        return None
    moves = services.registry.history(name, alias)
    history = [AliasMove.model_validate(asdict(move)) for move in moves]
    return Alias(model=name, alias=alias, version=version, history=history)


def _existing_alias(services: Services, name: str, alias: str) -> Alias:
    record = _find_alias(services, name, alias)
    if record is None:
        raise ModelNotFound("There is no such alias. GET /v1/models lists the aliases.")
    return record


def _check_if_match(present: Alias | None, if_match: str) -> str | None:
    """Returns the version that the alias must have when it is moved. Raises PreconditionRequired, EtagMismatch."""
    if present is None:
        if if_match:
            raise EtagMismatch("The alias does not exist yet. Send the request without If-Match.")
        return None
    if not if_match:
        raise PreconditionRequired("The alias exists. To move it, send its ETag as If-Match.")
    if not responses.matches(responses.entity_tag(present), if_match):
        raise EtagMismatch("The alias has been moved since you read it. Read it again.")
    return present.version
