"""The parts of the OpenAPI document that FastAPI cannot derive from the routes: forms, responses, problems, links.

Each route uses its entry by name, for example ``**openapi_responses.submit``.
"""

from __future__ import annotations

from typing import Any

from app.api.problems import responses
from app.api.uploads import ACCESSION, INTERVAL, MAX_UID_LENGTH, MODEL, SUBJECT, UID
from app.sdk import errors
from app.sdk.types import Input

Entry = dict[str, Any]

FORM = "multipart/form-data"

_VOLUMES = {
    Input.NCCT: "Non-contrast CT, HU",
    Input.CTA: "CT angiography, HU",
    Input.VESSELS: "Vessel mask on the grid of `cta`; computed from `cta` if not sent",
    Input.TMAX: "Tmax map, s",
    Input.CBF: "Cerebral blood flow map",
    Input.CBV: "Cerebral blood volume map",
    Input.MTT: "Mean transit time map, s",
    Input.CTP: "CT perfusion series, 4-D, HU",
}

_FORMATS = "NIfTI, .nii or .nii.gz; or a ZIP archive of its DICOM series"

ETAG = {"ETag": {"description": "Changes when the record changes", "schema": {"type": "string"}}}
_RETRY_AFTER = {
    "Retry-After": {
        "description": "Seconds to wait before the next request",
        "schema": {"type": "integer", "minimum": 1},
    }
}
_LOCATION = {"Location": {"description": "Address of the prediction", "schema": {"type": "string"}}}
_COMMON_ERRORS = (
    errors.BadRequest,
    errors.Unauthenticated,
    errors.InsufficientScope,
    errors.CrossOrigin,
    errors.TooLarge,
    errors.UploadTimeout,
    errors.UnsupportedMedia,
    errors.ExpectationFailed,
    errors.HeadersTooLarge,
    errors.Busy,
    errors.RateLimited,
    errors.DatabaseUnavailable,
    errors.IdentityUnavailable,
)


def _form() -> Entry:
    volumes = {
        name.value: {"type": "string", "format": "binary", "description": f"{text}. {_FORMATS}"}
        for name, text in _VOLUMES.items()
    }
    fields: Entry = {
        "study": {
            "type": "string",
            "format": "binary",
            "description": "A DICOM study as a ZIP archive; the service finds the series. A volume of its own takes "
            "precedence. `series` of the answer says what each was taken for",
        },
        "series_roles": {
            "type": "string",
            "examples": [""],
            "description": 'Roles that the caller states, by series number or UID, such as `{"3": "ncct"}`',
        },
        "clinical": {"$ref": "#/components/schemas/ClinicalRecord"},
        "model": {
            "type": "string",
            "pattern": f"^({MODEL})?$",
            "examples": [""],
            "description": "`name`, `name@1.2.0` or `name@alias`; if not sent, the default model of the service",
        },
        "subject": {
            "type": "string",
            "pattern": f"^({SUBJECT})?$",
            "examples": ["S-001"],
            "description": "Pseudonym of the patient at the site; never a name or a hospital number",
        },
        "study_instance_uid": {
            "type": "string",
            "pattern": f"^({UID})?$",
            "maxLength": MAX_UID_LENGTH,
            "examples": [""],
            "description": "DICOM Study Instance UID (0020,000D) of the study",
        },
        "accession_number": {
            "type": "string",
            "pattern": f"^({ACCESSION})?$",
            "maxLength": 16,
            "examples": [""],
            "description": "Accession number (0008,0050) of the study, at most 16 characters",
        },
        "explain": {
            "type": "string",
            "enum": ["true", "false", "exact"],
            "default": "true",
            "description": "Contributions and maps: `true`, `false`, or `exact` for exact methods, which take minutes",
        },
        "accept_warnings": {
            "type": "string",
            "enum": ["true", "false"],
            "default": "false",
            "description": "`true`: give the decision in spite of flags of severity `warning`, which else withhold it",
        },
        "ctp_interval_s": {
            "type": "string",
            "pattern": f"^({INTERVAL})?$",
            "examples": [""],
            "description": "Seconds between the frames of `ctp`, 0.2 to 6; they replace the time step of its header",
        },
    }
    return {
        "schema": {"type": "object", "properties": volumes | fields, "additionalProperties": False},
        "encoding": {"clinical": {"contentType": "application/json"}},
    }


_LINKED_OPERATIONS = (
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
    """The operations that take the id of the submitted prediction."""
    same_id = {"parameters": {"id": "$response.body#/id"}}
    return {name: {"operationId": name, **same_id} for name in _LINKED_OPERATIONS}


def entry(*raised: type[errors.RlvoError], ok: dict[int | str, Entry] | None = None, **more: Any) -> Entry:
    """The OpenAPI arguments of a route: its successes ``ok``, the errors that it raises, and the common ones."""
    return {"responses": {**(ok or {}), **responses(*raised, *_COMMON_ERRORS)}, **more}


def _json(schema: str) -> Entry:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}


def _prediction(**headers: Any) -> Entry:
    return {"description": "The prediction", "headers": headers}


def _file(description: str, *media_types: str) -> dict[int | str, Entry]:
    content = {each: {"schema": {"type": "string", "format": "binary"}} for each in media_types}
    not_modified = {"description": "The caller has the present file"}
    return {200: {"description": description, "content": content, "headers": ETAG}, 304: not_modified}


PREDICTION_ERRORS = (errors.PredictionNotFound, errors.Erased, errors.InvalidRequest)
_RESULT_ERRORS = (errors.NotFound, errors.NotFinished, errors.Sealed)

submit = entry(
    errors.MalformedMultipart,
    errors.MalformedJson,
    errors.DigestMismatch,
    errors.IdempotencyKeyMissing,
    errors.ModelNotFound,
    errors.RequestInProgress,
    errors.Conflict,
    errors.Sealed,
    errors.DecompressedTooLarge,
    errors.InvalidVolume,
    errors.InvalidDicom,
    errors.PatientMismatch,
    errors.GeometryMismatch,
    errors.ImplausibleModality,
    errors.InvalidClinical,
    errors.MissingInput,
    errors.IdempotencyKeyReused,
    errors.InvalidRequest,
    errors.QueueFull,
    errors.InternalError,
    errors.Quarantined,
    errors.ModelNotReady,
    errors.Draining,
    errors.BucketMissing,
    errors.Unavailable,
    errors.StorageFull,
    ok={
        200: {
            "description": "The prediction succeeded within the wait",
            "headers": _LOCATION | ETAG,
            "links": _links(),
        },
        202: {
            "description": "The study is accepted and stored, and its prediction is unfinished. Read it at Location "
            "until `status` is `succeeded`, `failed` or `cancelled`",
            "content": _json("Prediction"),
            "headers": _LOCATION | ETAG | _RETRY_AFTER,
            "links": _links(),
        },
    },
    openapi_extra={"requestBody": {"required": True, "content": {FORM: _form()}}},
    description=(
        "Send at least one volume or a DICOM study, and the clinical document as JSON. A part is optional unless "
        "the model requires it.\n\n**To try it here**: choose a head CT in NIfTI as `ncct` or `cta` (`make demo` "
        "writes them to `data/demo/study`), keep the example as `clinical`, and execute. The response is the finished "
        "prediction, or 202 with a `Location` if the wait is too short.\n\n**Check the status**: 200 has a result. "
        "After 202, read `Location` until `status` is `succeeded`, `failed` or `cancelled`; it is answered with 200 "
        "in each of these states, and a failed one has one of the codes below as `error.code`. If the prediction "
        "fails or is cancelled within the wait, the answer is a problem: 422 if the service cannot use the study, "
        "409 `conflict` if it was cancelled, else 500. The record then exists: its id is `prediction`, its address "
        "`prediction_url` and `Location`. A repeated request with the same Idempotency-Key has the same answer.\n\n"
        "Nothing of a study that is refused before it is accepted is stored, except an audit entry."
    ),
)
read = entry(
    *PREDICTION_ERRORS,
    errors.NotFinished,
    errors.Sealed,
    ok={
        200: {**_prediction(**ETAG), "content": {"application/fhir+json": {"schema": {"type": "object"}}}},
        304: {"description": "The caller has the present state"},
    },
    description="With `Accept: application/fhir+json` the response is the FHIR bundle, as at `/fhir`; the parameter "
    "`fhirVersion` of this media type (`4.0`, `4.3`, `5.0`) selects the release.",
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
                    "waiting": {
                        "type": "string",
                        "description": "`waiting-for-storage` while a fault of the storage lasts, else absent",
                    },
                    "figures": {"$ref": "#/components/schemas/FiguresState"},
                },
            },
        },
    },
}
events = entry(
    *PREDICTION_ERRORS,
    ok={
        200: {
            "description": "`state` events with status, stage, progress, `waiting` and `figures`. The event with a "
            "final status has the answer and is the last one, unless the figures are being drawn: then they end it",
            "content": {"text/event-stream": {"schema": _STATE_EVENT}},
        }
    },
)
listing = entry(errors.InvalidRequest)
caller = entry(errors.InvalidRequest)
cancel = entry(*PREDICTION_ERRORS, errors.Conflict, ok={200: _prediction(**ETAG)})
erase = entry(
    *PREDICTION_ERRORS,
    errors.Unavailable,
    errors.BucketMissing,
    errors.StorageFull,
    ok={204: {"description": "The prediction is erased; its id gives 410 from now on"}},
    description="Deletes the prediction, its clinical record, and the files that no other prediction uses. A key needs "
    "the scope `erase`.",
)
erasure = entry(
    errors.PredictionNotFound,
    errors.InvalidRequest,
    errors.NotFound,
    ok={200: {"description": "What was erased, with the audit entry of the erasure"}},
)
series = entry(
    *PREDICTION_ERRORS,
    errors.NotFound,
    errors.NotFinished,
    ok=_file("A NIfTI volume, not compressed", "application/octet-stream"),
    description="The volume has the sha-256 of its entry in `inputs`. It is kept as long as the prediction: an erased "
    "one answers 410.",
)
_MATRIX = {"type": "array", "items": {"type": "array", "items": {"type": "number"}}}
_ALIGNED = {"type": "object", "properties": {"affine": _MATRIX, "mni_from_world": _MATRIX}}
alignment = entry(
    *PREDICTION_ERRORS,
    *_RESULT_ERRORS,
    ok={
        200: {
            "description": "For each image that the model reads: `affine`, voxel -> RAS+ mm of the scanner, and "
            "`mni_from_world`, RAS+ mm of the scanner -> MNI152 mm, both (4, 4)",
            "content": {"application/json": {"schema": {"type": "object", "additionalProperties": _ALIGNED}}},
            "headers": ETAG,
        },
        304: {"description": "The caller has the present file"},
    },
    description="Relates a place in one image to another image. A prediction without an explanation has no such file.",
)
volume_map = entry(*PREDICTION_ERRORS, *_RESULT_ERRORS, ok=_file("A NIfTI volume, gzip-compressed", "application/gzip"))
_DRAWN_LATER = (
    "Figures and report are drawn after the answer, at the first request or while the service has nothing else to do; "
    "`figures` of the prediction says when they are there. Before that, the response comes after at most `wait` "
    "seconds: the file, or 409 `figures-not-ready` with `Retry-After`."
)
figure = entry(
    *PREDICTION_ERRORS,
    *_RESULT_ERRORS,
    errors.FiguresNotReady,
    ok=_file("The figure", "image/png", "image/svg+xml"),
    description=_DRAWN_LATER,
)
report = entry(
    *PREDICTION_ERRORS,
    *_RESULT_ERRORS,
    errors.FiguresNotReady,
    ok=_file("One self-contained HTML page", "text/html"),
    description=_DRAWN_LATER,
)
dicom_objects = entry(
    *PREDICTION_ERRORS,
    *_RESULT_ERRORS,
    errors.FiguresNotReady,
    errors.InternalError,
    ok={
        200: {
            "description": "ZIP archive of DICOM files",
            "content": {"application/zip": {"schema": {"type": "string", "format": "binary"}}},
        }
    },
    description="A structured report (Comprehensive 3D SR), segmentations, parametric maps of the attribution, key "
    "images and the report as PDF, for the patient and the study that were sent. They can be made for a study that was "
    "sent as DICOM while the service had a key for return addresses. A repeated request gives the same bytes.",
)
fhir = entry(
    *PREDICTION_ERRORS,
    errors.NotFinished,
    errors.Sealed,
    ok={
        200: {
            "description": "FHIR Bundle of RiskAssessment, DiagnosticReport, Observation, Device and Provenance",
            "content": {"application/fhir+json": {"schema": {"type": "object"}}},
        }
    },
)

_BODY_ERRORS = (errors.MalformedJson, errors.NotFinished)


def json_body(schema: str) -> Entry:
    """The OpenAPI description of a JSON body with this schema."""
    return {"requestBody": {"required": True, "content": _json(schema)}}


review = entry(
    *PREDICTION_ERRORS,
    *_BODY_ERRORS,
    errors.Conflict,
    errors.Sealed,
    ok={
        200: {
            "description": "The last review of this reviewer is the same; nothing was added",
            "content": _json("Review"),
        },
        201: {"description": "The review that was recorded"},
    },
    openapi_extra=json_body("ReviewDraft"),
)
reviews = entry(*PREDICTION_ERRORS)
set_outcome = entry(
    *PREDICTION_ERRORS,
    *_BODY_ERRORS,
    errors.EtagMismatch,
    errors.PreconditionRequired,
    ok={200: {"description": "The outcome that was recorded", "headers": ETAG}},
    openapi_extra=json_body("OutcomeDraft"),
)
outcome = entry(*PREDICTION_ERRORS, errors.NotFound, ok={200: {"description": "The recorded outcome", "headers": ETAG}})
