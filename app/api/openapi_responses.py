"""What the API's description says beyond what the routes' own types say: the form, the answers, the refusals.

Each route takes its entry by name (``**contract.submit``), so a route and its description stand or fall together.
"""

from __future__ import annotations

from typing import Any

from app.api.problems import responses
from app.api.uploads import MODEL, SUBJECT
from app.sdk.errors import (
    AliasConflict,
    BadRequest,
    Conflict,
    DatabaseUnavailable,
    DecompressedTooLarge,
    DigestMismatch,
    Draining,
    Erased,
    EtagMismatch,
    ExpectationFailed,
    GeometryMismatch,
    HeadersTooLarge,
    IdempotencyKeyMissing,
    IdempotencyKeyReused,
    IdentityUnavailable,
    ImplausibleModality,
    InsufficientScope,
    InvalidClinical,
    InvalidRequest,
    InvalidVolume,
    MalformedJson,
    MalformedMultipart,
    MissingInput,
    ModelNotFound,
    ModelNotReady,
    NotFinished,
    NotFound,
    PreconditionRequired,
    PredictionNotFound,
    QueueFull,
    RateLimited,
    RequestInProgress,
    RlvoError,
    StorageFull,
    TooLarge,
    Unauthenticated,
    UnsupportedMedia,
    UploadTimeout,
)
from app.sdk.types import Input

Entry = dict[str, Any]

FORM = "multipart/form-data"

EXAMPLE_RECORD = {
    "age": 71,
    "sex": "female",
    "atrial_fibrillation": False,
    "hypertension": True,
    "diabetes": True,
    "smoking": "former",
    "nihss": 14,
    "onset_to_imaging": 210,
    "ivt": True,
    "occlusion_side": "left",
    "occlusion_site": "m1-proximal",
    "aspects": 8,
}

_VOLUMES = {
    Input.NCCT: "Non-contrast CT, HU",
    Input.CTA: "CT angiography, HU",
    Input.VESSELS: "Vessel mask on the grid of `cta`; computed from it where not sent",
    Input.TMAX: "Tmax map, s",
    Input.CBF: "Cerebral blood flow map",
    Input.CBV: "Cerebral blood volume map",
    Input.MTT: "Mean transit time map, s",
    Input.CTP: "CT perfusion series, 4-D, HU",
}

_ETAG = {"ETag": {"description": "Changes whenever the record does", "schema": {"type": "string"}}}
_RETRY = {
    "Retry-After": {"description": "Seconds after which to ask again", "schema": {"type": "integer", "minimum": 1}}
}
_LOCATION = {"Location": {"description": "Where the prediction is read", "schema": {"type": "string"}}}
_ALWAYS = (
    BadRequest,
    Unauthenticated,
    InsufficientScope,
    TooLarge,
    UploadTimeout,
    ExpectationFailed,
    HeadersTooLarge,
    RateLimited,
    DatabaseUnavailable,
    IdentityUnavailable,
)


def _form() -> Entry:
    volumes = {
        name.value: {"type": "string", "format": "binary", "description": f"{text}. NIfTI, .nii or .nii.gz"}
        for name, text in _VOLUMES.items()
    }
    fields = {
        "clinical": {"$ref": "#/components/schemas/ClinicalRecord"},
        "model": {
            "type": "string",
            "pattern": f"^({MODEL})?$",
            "examples": [""],
            "description": "`name`, `name@1.2.0` or `name@alias`; the service's default where not sent",
        },
        "subject": {
            "type": "string",
            "pattern": f"^({SUBJECT})?$",
            "examples": ["S-001"],
            "description": "The site's pseudonym for the patient; never a name or a number of the clinic",
        },
        "explain": {
            "type": "string",
            "enum": ["true", "false", "exact"],
            "default": "true",
            "description": "With reasons and maps; `exact`: by the exact rules, which take minutes",
        },
    }
    return {
        "schema": {"type": "object", "properties": volumes | fields, "additionalProperties": False},
        "encoding": {"clinical": {"contentType": "application/json"}},
    }


_ABOUT_ONE = (
    "read",
    "events",
    "cancel",
    "erase",
    "erasure",
    "fhir",
    "cds_hooks",
    "add_review",
    "reviews",
    "set_outcome",
    "outcome",
)


def _links() -> Entry:
    """What can be asked next of a prediction that was sent."""
    same_id = {"parameters": {"id": "$response.body#/id"}}
    return {name: {"operationId": name, **same_id} for name in _ABOUT_ONE}


def _entry(*errors: type[RlvoError], ok: dict[int | str, Entry] | None = None, **more: Any) -> Entry:
    """A route's ``responses``: its successes, its own refusals, and those that every route has."""
    return {"responses": {**(ok or {}), **responses(*errors, *_ALWAYS)}, **more}


def _one(**headers: Any) -> Entry:
    return {"description": "The prediction", "headers": headers}


def _bytes(media_type: str, description: str) -> dict[int | str, Entry]:
    content = {media_type: {"schema": {"type": "string", "format": "binary"}}}
    not_modified = {"description": "The caller has this very file"}
    return {200: {"description": description, "content": content, "headers": _ETAG}, 304: not_modified}


_OF_ONE = (PredictionNotFound, Erased, InvalidRequest)

_ACCEPTED = {"application/json": {"schema": {"$ref": "#/components/schemas/Prediction"}}}

submit = _entry(
    MalformedMultipart,
    MalformedJson,
    DigestMismatch,
    IdempotencyKeyMissing,
    ModelNotFound,
    RequestInProgress,
    DecompressedTooLarge,
    UnsupportedMedia,
    InvalidVolume,
    GeometryMismatch,
    ImplausibleModality,
    InvalidClinical,
    MissingInput,
    IdempotencyKeyReused,
    InvalidRequest,
    QueueFull,
    ModelNotReady,
    Draining,
    StorageFull,
    ok={
        200: {
            "description": "Finished within the wait: succeeded, failed or cancelled",
            "headers": _LOCATION | _ETAG,
            "links": _links(),
        },
        202: {
            "description": "Accepted and durable; ask at Location",
            "content": _ACCEPTED,
            "headers": _LOCATION | _ETAG | _RETRY,
            "links": _links(),
        },
    },
    openapi_extra={"requestBody": {"required": True, "content": {FORM: _form()}}},
    description=(
        "Send at least one volume, and the clinical document as JSON. A part is optional unless the model requires "
        "it.\n\n**To try it here**: choose a head CT in NIfTI (`make demo` leaves one in the data folder) as `ncct` or "
        "`cta`, keep the example as `clinical`, and execute. The answer comes within the wait, or is 202 with a "
        "`Location`.\n\nA refused study leaves nothing behind but the audit's note. The same codes are the terminal "
        "`error.code` of a prediction that failed."
    ),
)
read = _entry(
    *_OF_ONE,
    NotFinished,
    ok={
        200: {**_one(**_ETAG), "content": {"application/fhir+json": {"schema": {"type": "object"}}}},
        304: {"description": "The caller has this very state"},
    },
    description="With `Accept: application/fhir+json` it answers as `/fhir` does.",
)
_STATE_EVENT = {
    "type": "object",
    "required": ["event", "data"],
    "properties": {
        "event": {"const": "state"},
        "data": {
            "type": "string",
            "contentMediaType": "application/json",
            "contentSchema": {
                "type": "object",
                "properties": {
                    "id": {"type": "string", "format": "uuid"},
                    "status": {"$ref": "#/components/schemas/Status"},
                    "stage": {"anyOf": [{"$ref": "#/components/schemas/Stage"}, {"type": "null"}]},
                    "progress": {"type": "number", "minimum": 0, "maximum": 1},
                },
            },
        },
    },
}
events = _entry(
    *_OF_ONE,
    ok={
        200: {
            "description": "`state` events with status, stage and progress, until the prediction has finished",
            "content": {"text/event-stream": {"schema": _STATE_EVENT}},
        }
    },
)
listing = _entry(InvalidRequest)
cancel = _entry(*_OF_ONE, Conflict, ok={200: _one(**_ETAG)})
erase = _entry(*_OF_ONE, ok={204: {"description": "Erased; the id answers 410 from now on"}})
erasure = _entry(
    PredictionNotFound,
    InvalidRequest,
    NotFound,
    ok={200: {"description": "What was erased, on the word of an entry of the audit"}},
)
volume_map = _entry(*_OF_ONE, NotFound, NotFinished, ok=_bytes("application/gzip", "A NIfTI volume, gzip-compressed"))
figure = _entry(
    *_OF_ONE,
    NotFound,
    NotFinished,
    ok={
        200: {
            "description": "The figure",
            "content": {
                kind: {"schema": {"type": "string", "format": "binary"}} for kind in ("image/png", "image/svg+xml")
            },
            "headers": _ETAG,
        },
        304: {"description": "The caller has this very file"},
    },
)
report = _entry(*_OF_ONE, NotFound, NotFinished, ok=_bytes("text/html", "One page, complete in itself"))
fhir = _entry(
    *_OF_ONE,
    NotFinished,
    ok={
        200: {
            "description": "Bundle of RiskAssessment, Device, Provenance",
            "content": {"application/fhir+json": {"schema": {"type": "object"}}},
        }
    },
)

_CARDS = {
    "type": "object",
    "required": ["cards"],
    "properties": {
        "cards": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["uuid", "summary", "detail", "indicator", "source"],
                "properties": {
                    "uuid": {"type": "string", "format": "uuid"},
                    "summary": {"type": "string", "maxLength": 139},
                    "detail": {"type": "string"},
                    "indicator": {"enum": ["info", "warning"]},
                    "source": {"type": "object"},
                    "links": {"type": "array"},
                },
            },
        }
    },
}
cds = _entry(
    *_OF_ONE,
    NotFinished,
    ok={
        200: {
            "description": "CDS Hooks 2.0: the cards of one answer",
            "content": {"application/json": {"schema": _CARDS}},
        }
    },
)

_BODY = (MalformedJson, NotFinished)


def _takes(kind: str) -> Entry:
    return {
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{kind}"}}},
        }
    }


review = _entry(
    *_OF_ONE,
    *_BODY,
    ok={
        200: {
            "description": "The reviewer said just that before; nothing was added",
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Review"}}},
        },
        201: {"description": "The review as it is on record"},
    },
    openapi_extra=_takes("ReviewDraft"),
)
reviews = _entry(*_OF_ONE)
set_outcome = _entry(
    *_OF_ONE,
    *_BODY,
    EtagMismatch,
    PreconditionRequired,
    ok={200: {"description": "The outcome as it is on record", "headers": _ETAG}},
    openapi_extra=_takes("OutcomeDraft"),
)
outcome = _entry(*_OF_ONE, NotFound, ok={200: {"description": "The outcome on record", "headers": _ETAG}})
models = _entry(InvalidRequest)
model = _entry(InvalidRequest, ModelNotFound, ModelNotReady)
card = _entry(
    InvalidRequest,
    ModelNotFound,
    ModelNotReady,
    NotFound,
    ok={200: {"description": "The model card", "content": {"text/markdown": {"schema": {"type": "string"}}}}},
)
_OF_ALIAS = (InvalidRequest, ModelNotFound, ModelNotReady)
_ALIAS_ANSWER: dict[int | str, Entry] = {200: {"description": "The alias as it stands", "headers": _ETAG}}
alias = _entry(InvalidRequest, ModelNotFound, ok=_ALIAS_ANSWER)
set_alias = _entry(
    *_OF_ALIAS,
    MalformedJson,
    AliasConflict,
    EtagMismatch,
    PreconditionRequired,
    ok=_ALIAS_ANSWER,
    openapi_extra=_takes("AliasDraft"),
    description=(
        "Every live worker loads the version and computes its golden cases; only if all come out as the manifest says "
        "is the alias moved, at once for everybody. Otherwise it stays where it was, and the problem says why."
    ),
)
set_back = _entry(*_OF_ALIAS, AliasConflict, EtagMismatch, PreconditionRequired, ok=_ALIAS_ANSWER)
load = _entry(*_OF_ALIAS, ok={200: {"description": "Loaded and checked by every live worker"}})
unload = _entry(*_OF_ALIAS, Conflict, ok={202: {"description": "Let go once nothing is left to do for it"}})
shadow = _entry(InvalidRequest, ModelNotFound, ok={200: {"description": "One entry per pair of versions compared"}})
_SCHEMA = {
    "description": "JSON Schema, 2020-12",
    "content": {"application/schema+json": {"schema": {"type": "object"}}},
}
model_schema = _entry(InvalidRequest, ModelNotFound, ModelNotReady, ok={200: _SCHEMA})
schema = _entry(InvalidRequest, ok={200: _SCHEMA})
