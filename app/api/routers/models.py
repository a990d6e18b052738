"""Routes that describe the model versions: whether a worker has loaded them, and the inputs that they need."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path
from fastapi.responses import JSONResponse, Response
from sqlalchemy.orm import Session

from app.api import openapi_models
from app.api.dependencies import Services, ServicesDep
from app.api.parameters import strict_query
from app.api.responses import REVALIDATE
from app.database import workers
from app.database.workers import WorkerRecord
from app.inference import own_variables
from app.inference.unread_inputs import ReadInputs
from app.registry.manifest import Manifest
from app.registry.model_store import StoredVersion
from app.registry.own_variable import OWN
from app.sdk.clinical import SECOND_UNITS, ClinicalRecord
from app.sdk.errors import ModelNotFound, NotFound, RlvoError
from app.sdk.types import Input, ModelInfo, ModelVersionInfo

router = APIRouter(prefix="/v1", tags=["models"], dependencies=[Depends(strict_query)])

Name = Annotated[str, Path(description="Name of a model")]
Version = Annotated[str, Path(description="A version such as `1.2.0`, or an alias such as `champion`")]


@router.get(
    "/models", summary="List the models and their versions", response_model=list[ModelInfo], **openapi_models.models
)
async def models(services: ServicesDep) -> Response:
    """Returns all models with their versions and aliases."""
    live = await services.read(_live, services)
    infos = await services.run_in_thread(lambda: [_model(services, name, live) for name in services.registry.names()])
    return JSONResponse([each.model_dump(mode="json") for each in infos], headers=REVALIDATE)


@router.get("/models/{name}", summary="Read a model", response_model=ModelInfo, **openapi_models.model)
async def model(name: Name, services: ServicesDep) -> Response:
    """Returns one model with its versions and aliases."""
    live = await services.read(_live, services)
    info = await services.run_in_thread(_model, services, name, live)
    if not info.versions:
        raise ModelNotFound
    return JSONResponse(info.model_dump(mode="json"), headers=REVALIDATE)


@router.get(
    "/models/{name}/versions/{version}",
    summary="Read a version",
    response_model=ModelVersionInfo,
    **openapi_models.model,
)
async def version(name: Name, version: Version, services: ServicesDep) -> Response:
    """Returns the inputs of the version, and whether a worker has loaded it."""
    return JSONResponse((await describe(services, name, version)).model_dump(mode="json"), headers=REVALIDATE)


@router.get(
    "/models/{name}/versions/{version}/card",
    summary="Read the model card of a version",
    response_class=Response,
    **openapi_models.card,
)
async def card(name: Name, version: Version, services: ServicesDep) -> Response:
    """Returns the model card of the version in Markdown."""
    entry = await services.run_in_thread(_entry, services, name, version)
    text = await services.run_in_thread(entry.card)
    if not text:
        raise NotFound("This version was published without a model card.")
    return Response(text, media_type="text/markdown", headers=REVALIDATE)


@router.get(
    "/models/{name}/versions/{version}/clinical-schema",
    summary="Read the JSON Schema of the clinical variables of a version",
    response_class=Response,
    **openapi_models.model_schema,
)
async def clinical_schema(name: Name, version: Version, services: ServicesDep) -> Response:
    """Returns the JSON Schema with the clinical fields that the version uses."""
    entry = await services.run_in_thread(_entry, services, name, version)
    return JSONResponse(_version_schema(entry.manifest), media_type="application/schema+json", headers=REVALIDATE)


@router.get(
    "/schema/clinical",
    summary="Read the JSON Schema of the clinical document",
    response_class=Response,
    **openapi_models.schema,
)
async def schema() -> Response:
    """Returns the JSON Schema with all clinical fields."""
    return JSONResponse(_schema(), media_type="application/schema+json", headers=REVALIDATE)


async def describe(services: Services, name: str, version: str) -> ModelVersionInfo:
    """Returns the description of one version. Raises ModelNotFound, ModelNotReady."""
    live = await services.read(_live, services)
    entry = await services.run_in_thread(_entry, services, name, version)
    aliases = await services.run_in_thread(services.registry.aliases, name)
    return _version(entry, aliases, live, _default(services))


def _default(services: Services) -> str:
    """Digest of the version of a request that names no model; empty if there is none."""
    try:
        return services.registry.resolve(services.settings.default_model).digest
    except RlvoError:
        return ""


def _live(session: Session, services: Services) -> list[WorkerRecord]:
    return workers.live(session, services.settings.lease)


def _entry(services: Services, name: str, version: str) -> StoredVersion:
    return services.registry.resolve(f"{name}@{version}")


def _model(services: Services, name: str, live: list[WorkerRecord]) -> ModelInfo:
    aliases = services.registry.aliases(name)
    default = _default(services)
    versions = [_version(entry, aliases, live, default) for entry in services.registry.versions(name)]
    return ModelInfo(name=name, versions=versions, aliases=aliases)


def _version(entry: StoredVersion, aliases: dict[str, str], live: list[WorkerRecord], default: str) -> ModelVersionInfo:
    manifest = entry.manifest
    loaded = [worker for worker in live if f"{entry.name}@{entry.version}" in worker.models]
    required = manifest.required_inputs
    readable = ReadInputs.of(manifest).volumes
    return ModelVersionInfo(
        name=entry.name,
        version=entry.version,
        digest=entry.digest,
        aliases=sorted(alias for alias, version in aliases.items() if version == entry.version),
        ready=bool(loaded),
        device=loaded[0].device if loaded else None,
        synthetic=manifest.training.synthetic,
        default=entry.digest == default,
        required_inputs=[name.value for name in required],
        optional_inputs=[name.value for name in Input if name in readable and name not in required],
        required_clinical=[variable.name for variable in manifest.clinical.variables if variable.required],
        intended_use=manifest.intended_use,
    )


def _schema() -> dict[str, Any]:
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **ClinicalRecord.model_json_schema()}


def _version_schema(manifest: Manifest) -> dict[str, Any]:
    """The clinical schema with only the fields that a version uses; those that it requires are required.

    It allows other fields, because callers may send every field of the whole schema.
    """
    schema = _schema()
    names = dict.fromkeys(ReadInputs.of(manifest).fields, False)
    names |= {variable.name: True for variable in manifest.clinical.variables if variable.required}
    names |= {second: False for second, first in SECOND_UNITS.items() if first in names}
    _restrict(schema, {name: required for name, required in names.items() if "." not in name})
    if own := [variable for variable in manifest.clinical.own if variable.name in names]:
        schema["properties"]["own"] = own_variables.json_schema(own)
    sections = {name.partition(".")[0] for name in names if "." in name and not name.startswith(OWN)}
    for section in sections:
        part = ClinicalRecord.model_json_schema()["properties"][section]
        definition = schema["$defs"][part["anyOf"][0]["$ref"].rpartition("/")[2]]
        prefix = f"{section}."
        _restrict(definition, {n.removeprefix(prefix): r for n, r in names.items() if n.startswith(prefix)})
        schema["properties"][section] = part
    return schema


def _restrict(schema: dict[str, Any], names: dict[str, bool]) -> None:
    """Removes the properties that are not in ``names``, and requires those whose value is True."""
    schema["properties"] = {name: part for name, part in schema["properties"].items() if name in names}
    schema["required"] = sorted(name for name, required in names.items() if required)
    schema["additionalProperties"] = True
