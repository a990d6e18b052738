"""Makes the responses that carry a prediction or another record, with their entity tags and cache headers."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel

from app.api import problems
from app.api.fhir import FhirVersion, bundle
from app.sdk.errors import Conflict, InternalError, RlvoError
from app.sdk.types import Prediction, PredictionPage, Status

JSON = "application/json"
FHIR = "application/fhir+json"
REVALIDATE = {"Cache-Control": "private, no-cache"}
_PRIVATE = REVALIDATE | {"Vary": "Authorization, X-API-Key, Accept"}


def prediction(record: Prediction, *, if_none_match: str = "") -> Response:
    """Returns 200 with the prediction, or 304 if the caller has its present state."""
    content = _content(record)
    tag = _tag(content)
    headers = {"ETag": tag, **_PRIVATE}
    if not record.status.finished:
        headers["Retry-After"] = "1"
    if matches(tag, if_none_match):
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=JSON, headers=headers)


def private(value: dict[str, Any], media_type: str = JSON) -> Response:
    """Returns 200 with a JSON value that only this caller may cache."""
    return Response(_json(value), media_type=media_type, headers=_PRIVATE)


def fhir(record: Prediction, version: FhirVersion | None, subject_system: str) -> Response:
    """Returns 200 with the FHIR bundle of a prediction, and names its release if the caller asked for one."""
    media_type = f"{FHIR}; fhirVersion={version}" if version else FHIR
    return private(bundle(record, version or FhirVersion.R4, subject_system), media_type)


def submission(record: Prediction, *, applied: str, replayed: bool, trace_id: str) -> Response:
    """Returns the response to a submission, by the status of its prediction.

    Returns:
        200 with a prediction that succeeded, 202 with one that is unfinished, or the problem that ended it: 422 for a
        study that the service cannot use, 409 if it was cancelled, else 500. All have its location.
    """
    headers = {"Location": f"/v1/predictions/{record.id}"}
    if applied:
        headers["Preference-Applied"] = applied
    if replayed:
        headers["Idempotency-Replayed"] = "true"
    if (error := _ended_by(record)) is not None:
        return problems.answer(error, trace_id, headers)
    content = _content(record)
    headers |= {"ETag": _tag(content), **_PRIVATE}
    if not record.status.finished:
        headers["Retry-After"] = "1"
    return Response(content, 200 if record.status.finished else 202, headers, JSON)


def _ended_by(record: Prediction) -> RlvoError | None:
    """The error of a prediction that failed or was cancelled; None for any other prediction."""
    if record.status is Status.CANCELLED:
        return Conflict("The prediction was cancelled. Send the study again as a new one.", prediction_id=record.id)
    if record.error is None:
        return None
    kind = RlvoError.for_code(record.error.code)
    if kind.status >= 500 and not issubclass(kind, InternalError):  # another 5xx would invite a retry, which is useless
        kind = InternalError
    return kind(record.error.detail, prediction_id=record.id)


def page(record: PredictionPage) -> Response:
    """Returns 200 with one page of predictions."""
    return private({"items": [item.members() for item in record.items], "next": record.next})


def tagged(record: BaseModel) -> Response:
    """Returns 200 with a record and its entity tag."""
    return JSONResponse(record.model_dump(mode="json"), headers={"ETag": entity_tag(record), **REVALIDATE})


def entity_tag(record: BaseModel) -> str:
    """Returns the entity tag of a record, which changes with its content."""
    return _tag(record.model_dump_json().encode())


def matches(tag: str, header: str) -> bool:
    """Returns whether an If-None-Match or If-Match header names the tag; ``W/`` is ignored (RFC 9110, 13.1.2)."""
    return header.strip() == "*" or tag in (each.strip().removeprefix("W/") for each in header.split(","))


def _content(record: Prediction) -> bytes:
    return _json(record.members())


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode("ascii")


def _tag(content: bytes) -> str:
    return f'"{hashlib.sha256(content).hexdigest()[:32]}"'
