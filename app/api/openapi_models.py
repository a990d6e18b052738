"""Responses of the calls of models and aliases in the OpenAPI document; see `openapi_responses`."""

from __future__ import annotations

from app.api.openapi_responses import ETAG, Entry, entry, json_body
from app.sdk import errors

models = entry(errors.InvalidRequest)
model = entry(errors.InvalidRequest, errors.ModelNotFound, errors.ModelNotReady)
card = entry(
    errors.InvalidRequest,
    errors.ModelNotFound,
    errors.ModelNotReady,
    errors.NotFound,
    ok={200: {"description": "The model card", "content": {"text/markdown": {"schema": {"type": "string"}}}}},
)
_ALIAS_ERRORS = (errors.InvalidRequest, errors.ModelNotFound, errors.ModelNotReady)
_ALIAS_RESPONSE: dict[int | str, Entry] = {200: {"description": "The alias and its present version", "headers": ETAG}}
alias = entry(errors.InvalidRequest, errors.ModelNotFound, ok=_ALIAS_RESPONSE)
set_alias = entry(
    *_ALIAS_ERRORS,
    errors.MalformedJson,
    errors.AliasConflict,
    errors.EtagMismatch,
    errors.PreconditionRequired,
    ok=_ALIAS_RESPONSE,
    openapi_extra=json_body("AliasDraft"),
    description=(
        "Every live worker loads the version and computes its golden cases. If all results match the manifest, the "
        "alias is moved for all callers at once. Otherwise the alias stays unchanged and the problem says why."
    ),
)
roll_back = entry(
    *_ALIAS_ERRORS, errors.AliasConflict, errors.EtagMismatch, errors.PreconditionRequired, ok=_ALIAS_RESPONSE
)
load = entry(*_ALIAS_ERRORS, ok={200: {"description": "Every live worker has loaded and checked the version"}})
unload = entry(
    *_ALIAS_ERRORS, errors.Conflict, ok={202: {"description": "Workers unload the version when no prediction needs it"}}
)
shadow = entry(
    errors.InvalidRequest, errors.ModelNotFound, ok={200: {"description": "One entry per compared pair of versions"}}
)
_SCHEMA = {"description": "JSON Schema 2020-12", "content": {"application/schema+json": {"schema": {"type": "object"}}}}
model_schema = entry(errors.InvalidRequest, errors.ModelNotFound, errors.ModelNotReady, ok={200: _SCHEMA})
schema = entry(errors.InvalidRequest, ok={200: _SCHEMA})
