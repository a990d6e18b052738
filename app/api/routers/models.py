"""Model versions as callers see them: which there are, whether a worker has them loaded, and what they need."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path
from fastapi.responses import JSONResponse, Response
from sqlalchemy.orm import Session

from app.api import openapi_responses
from app.api.dependencies import Services, ServicesDep
from app.api.parameters import strict_query
from app.database import workers
from app.database.workers import WorkerRecord
from app.registry.manifest import Manifest
from app.registry.model_store import StoredVersion
from app.sdk.clinical import ClinicalRecord
from app.sdk.errors import ModelNotFound, NotFound
from app.sdk.types import Channel, Input, ModelInfo, ModelVersionInfo

router = APIRouter(prefix="/v1", tags=["models"], dependencies=[Depends(strict_query)])

Name = Annotated[str, Path(description="A model's name")]
Version = Annotated[str, Path(description="A version such as `1.2.0`, or an alias such as `champion`")]

_FRESH = {"Cache-Control": "private, no-cache"}
_SOURCES: dict[Channel, tuple[Input, ...]] = {
    Channel.NCCT: (Input.NCCT,),
    Channel.CTA: (Input.CTA,),
    Channel.VESSELS: (Input.VESSELS,),
    Channel.TMAX: (Input.TMAX, Input.CTP),
    Channel.RCBF: (Input.CBF, Input.CTP),
}


@router.get(
    "/models", summary="Every model and its versions", response_model=list[ModelInfo], **openapi_responses.models
)
async def models(services: ServicesDep) -> Response:
    live = await services.read(_live, services)
    found = await services.work(lambda: [_model(services, name, live) for name in services.registry.names()])
    return JSONResponse([each.model_dump(mode="json") for each in found], headers=_FRESH)


@router.get("/models/{name}", summary="One model", response_model=ModelInfo, **openapi_responses.model)
async def model(name: Name, services: ServicesDep) -> Response:
    live = await services.read(_live, services)
    found = await services.work(_model, services, name, live)
    if not found.versions:
        raise ModelNotFound
    return JSONResponse(found.model_dump(mode="json"), headers=_FRESH)


@router.get(
    "/models/{name}/versions/{version}",
    summary="One version",
    response_model=ModelVersionInfo,
    **openapi_responses.model,
)
async def version(name: Name, version: Version, services: ServicesDep) -> Response:
    return JSONResponse((await describe(services, name, version)).model_dump(mode="json"), headers=_FRESH)


@router.get(
    "/models/{name}/versions/{version}/card",
    summary="Its model card",
    response_class=Response,
    **openapi_responses.card,
)
async def card(name: Name, version: Version, services: ServicesDep) -> Response:
    entry = await services.work(_entry, services, name, version)
    try:
        text = await services.work((entry.folder / "card.md").read_bytes)
    except FileNotFoundError:
        raise NotFound("This version was published without a card.") from None
    return Response(text, media_type="text/markdown", headers=_FRESH)


@router.get(
    "/models/{name}/versions/{version}/clinical-schema",
    summary="JSON Schema of the clinical document that it reads",
    response_class=Response,
    **openapi_responses.model_schema,
)
async def clinical_schema(name: Name, version: Version, services: ServicesDep) -> Response:
    entry = await services.work(_entry, services, name, version)
    return JSONResponse(_read_by(entry.manifest), media_type="application/schema+json", headers=_FRESH)


@router.get(
    "/schema/clinical",
    summary="JSON Schema of the clinical document",
    response_class=Response,
    **openapi_responses.schema,
)
async def schema() -> Response:
    return JSONResponse(_schema(), media_type="application/schema+json", headers=_FRESH)


async def describe(services: Services, name: str, version: str) -> ModelVersionInfo:
    """One version as callers see it. Raises ModelNotFound, ModelNotReady."""
    live = await services.read(_live, services)
    entry = await services.work(_entry, services, name, version)
    aliases = await services.work(services.registry.aliases, name)
    return _version(entry, aliases, live)


def _live(session: Session, services: Services) -> list[WorkerRecord]:
    return workers.live(session, services.settings.lease)


def _entry(services: Services, name: str, version: str) -> StoredVersion:
    return services.registry.resolve(f"{name}@{version}")


def _model(services: Services, name: str, live: list[WorkerRecord]) -> ModelInfo:
    aliases = services.registry.aliases(name)
    versions = [_version(entry, aliases, live) for entry in services.registry.versions(name)]
    return ModelInfo(name=name, versions=versions, aliases=aliases)


def _version(entry: StoredVersion, aliases: dict[str, str], live: list[WorkerRecord]) -> ModelVersionInfo:
    manifest = entry.manifest
    loaded = [worker for worker in live if f"{entry.name}@{entry.version}" in worker.models]
    required = manifest.required_inputs
    readable = {source for channel in manifest.channels for source in _SOURCES[channel.name]}
    return ModelVersionInfo(
        name=entry.name,
        version=entry.version,
        digest=entry.digest,
        aliases=sorted(alias for alias, version in aliases.items() if version == entry.version),
        ready=bool(loaded),
        device=loaded[0].device if loaded else None,
        synthetic=manifest.training.synthetic,
        required_inputs=[name.value for name in required],
        optional_inputs=[name.value for name in Input if name in readable and name not in required],
        required_clinical=[variable.name for variable in manifest.clinical.variables if variable.required],
        intended_use=manifest.intended_use,
    )


def _schema() -> dict[str, Any]:
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **ClinicalRecord.model_json_schema()}


def _read_by(manifest: Manifest) -> dict[str, Any]:
    """The clinical schema cut down to what a version reads, with what it requires.

    Other fields of the whole schema may be sent and are kept on record, so the cut schema does not forbid them.
    """
    schema = _schema()
    names = {variable.name: variable.required for variable in manifest.clinical.variables}
    if "glucose" in names:
        names["glucose_mmol_l"] = False
    _cut(schema, {name: required for name, required in names.items() if "." not in name})
    sections = {name.partition(".")[0] for name in names if "." in name}
    for section in sections:
        whole = ClinicalRecord.model_json_schema()
        part = whole["properties"][section]
        kind = part["anyOf"][0]["$ref"].rpartition("/")[2]
        prefix = f"{section}."
        _cut(schema["$defs"][kind], {n.removeprefix(prefix): r for n, r in names.items() if n.startswith(prefix)})
        schema["properties"][section] = part
    return schema


def _cut(schema: dict[str, Any], names: dict[str, bool]) -> None:
    """Leaves only the properties in ``names``, and requires those that are True there."""
    schema["properties"] = {name: part for name, part in schema["properties"].items() if name in names}
    schema["required"] = sorted(name for name, required in names.items() if required)
    schema["additionalProperties"] = True
