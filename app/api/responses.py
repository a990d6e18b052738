"""How a prediction leaves: its JSON, its entity tag, and the two ways to answer a submission."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from fastapi.responses import Response

from app.sdk.types import ErasureCertificate, Prediction, PredictionPage

JSON = "application/json"
FHIR = "application/fhir+json"
_PRIVATE = {"Cache-Control": "private, no-cache", "Vary": "Authorization, X-API-Key, Accept"}


def prediction(answer: Prediction, *, if_none_match: str = "") -> Response:
    """200 with the prediction, or 304 where the caller has this very state."""
    content = _content(answer)
    tag = _tag(content)
    headers = {"ETag": tag, **_PRIVATE}
    if not answer.status.finished:
        headers["Retry-After"] = "1"
    if matches(tag, if_none_match):
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=JSON, headers=headers)


def fhir(bundle: dict[str, Any]) -> Response:
    return Response(_json(bundle), media_type=FHIR, headers=_PRIVATE)


def cds(found: dict[str, Any]) -> Response:
    return Response(_json(found), media_type=JSON, headers=_PRIVATE)


def certificate(found: ErasureCertificate) -> Response:
    return Response(_json(found.model_dump(mode="json")), media_type=JSON, headers=_PRIVATE)


def submission(answer: Prediction, *, applied: str, replayed: bool) -> Response:
    """200 with the finished prediction, or 202 and where to look for it."""
    content = _content(answer)
    headers = {"Location": f"/v1/predictions/{answer.id}", "ETag": _tag(content), **_PRIVATE}
    if applied:
        headers["Preference-Applied"] = applied
    if replayed:
        headers["Idempotency-Replayed"] = "true"
    if not answer.status.finished:
        headers["Retry-After"] = "1"
    return Response(content, 200 if answer.status.finished else 202, headers, JSON)


def page(answer: PredictionPage) -> Response:
    items = [_members(item) for item in answer.items]
    return Response(_json({"items": items, "next": answer.next}), media_type=JSON, headers=_PRIVATE)


def matches(tag: str, if_none_match: str) -> bool:
    """Whether an If-None-Match header names the tag; weak and strong count alike (RFC 9110, 13.1.2)."""
    return if_none_match.strip() == "*" or tag in (each.strip().removeprefix("W/") for each in if_none_match.split(","))


def _members(answer: Prediction) -> dict[str, object]:
    """The prediction with what is not known yet left out."""
    return {name: value for name, value in answer.model_dump(mode="json").items() if value is not None}


def _content(answer: Prediction) -> bytes:
    return _json(_members(answer))


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode("ascii")


def _tag(content: bytes) -> str:
    return f'"{hashlib.sha256(content).hexdigest()[:32]}"'
