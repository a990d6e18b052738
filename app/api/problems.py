"""Renders all errors as RFC 9457 problem+json.

Design notes:
- ``type`` is a page of this service (``/problems/<code>``); ``instance`` is the trace id of the request.
- A problem document is ASCII, has at most 4 KiB and repeats no submitted value.
- Errors of Starlette and FastAPI are converted to an `RlvoError` first, so all problems have one form.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any
from uuid import UUID

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.routing import iter_route_contexts
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from app.sdk.errors import (
    BadRequest,
    FieldError,
    InternalError,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    RlvoError,
    TooLarge,
    Unauthenticated,
    UnsupportedMedia,
)
from app.sdk.problem import Problem, ProblemField

MEDIA_TYPE = "application/problem+json"

_MAX_FIELDS = 8
_MAX_DETAIL = 600
_MAX_FIELD_DETAIL = 240


def document(error: RlvoError, trace_id: str) -> Problem:
    """Returns the problem document of an error; long texts are shortened."""
    fields = [
        ProblemField(field=_shorten(each.field, 64), detail=_shorten(each.detail, _MAX_FIELD_DETAIL))
        for each in error.errors[:_MAX_FIELDS]
    ]
    return Problem(
        type=f"/problems/{error.code}",
        title=error.title,
        status=error.status,
        detail=_shorten(error.detail, _MAX_DETAIL),
        instance=f"urn:uuid:{UUID(hex=trace_id)}",
        code=error.code,
        trace_id=trace_id,
        errors=fields,
        prediction=error.prediction_id,
        prediction_url=error.prediction_id and f"/v1/predictions/{error.prediction_id}",
    )


def answer(error: RlvoError, trace_id: str, headers: dict[str, str] | None = None, *, path: str = "") -> Response:
    """Returns the error as an HTTP response; under ``/v2`` with the member ``error`` of the Open Inference Protocol."""
    extra = {"Cache-Control": "no-store", **(headers or {})}
    if error.retry_after is not None:
        extra["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
    if isinstance(error, Unauthenticated):
        extra["WWW-Authenticate"] = "Bearer"
    if isinstance(error, UnsupportedMedia):  # RFC 9110, 15.5.16: the cause may be a content coding
        extra["Accept-Encoding"] = "identity"
    body = document(error, trace_id).model_dump(mode="json", exclude_none=True)
    if path.startswith("/v2/"):
        body["error"] = body["detail"]
    return _ProblemResponse(body, status_code=error.status, headers=extra)


def _answer_request(request: Request, error: RlvoError, headers: dict[str, str] | None = None) -> Response:
    return answer(error, request.state.trace_id, headers, path=request.url.path)


def install(app: FastAPI) -> None:
    """Registers the exception handlers of the application."""

    @app.exception_handler(RlvoError)
    async def rlvo_error(request: Request, error: RlvoError) -> Response:
        return _answer_request(request, error)

    @app.exception_handler(RequestValidationError)
    async def validation_error(request: Request, error: RequestValidationError) -> Response:
        return _answer_request(request, _invalid_parameters(error))

    @app.exception_handler(HTTPException)
    async def http_exception(request: Request, error: HTTPException) -> Response:
        if error.status_code != 405:
            return _answer_request(request, _from_status(error.status_code))
        allow = {"Allow": _methods(request)}
        if request.method == "OPTIONS":
            return Response(status_code=204, headers=allow)
        return _answer_request(request, _from_status(405), allow)


def responses(*errors: type[RlvoError]) -> dict[int | str, dict[str, Any]]:
    """Returns the ``responses`` of a route: one entry per status, with one example per code.

    `document` makes the examples, so they have the same form as real problems.
    """
    table: dict[int | str, dict[str, Any]] = {}
    for status in sorted({error.status for error in errors}):
        group = [error for error in errors if error.status == status]
        entry: dict[str, Any] = {
            "description": "; ".join(f"`{each.code}`: {each.title}" for each in group),
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}, "examples": _examples(group)}},
        }
        if status in (429, 503):
            entry["headers"] = {
                "Retry-After": {"description": "Seconds to wait", "schema": {"type": "integer", "minimum": 1}}
            }
        table[status] = entry
    return table


class _ProblemResponse(JSONResponse):
    media_type = MEDIA_TYPE

    def render(self, content: Any) -> bytes:
        return json.dumps(content).encode("ascii")


def _examples(errors: Iterable[type[RlvoError]]) -> dict[str, Any]:
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    return {
        each.code: {"value": document(each(), trace).model_dump(mode="json", exclude_none=True), "summary": each.title}
        for each in errors
    }


def _from_status(status: int) -> RlvoError:
    match status:
        case 404:
            return NotFound()
        case 405:
            return MethodNotAllowed("The Allow header lists the methods of this address.")
        case 413:
            return TooLarge()
        case _ if 400 <= status < 500:
            return BadRequest()
        case _:
            return InternalError()


def _methods(request: Request) -> str:
    """All methods of the address; Starlette would list those of its first route only."""
    path = request.url.path
    routes = [route for route in iter_route_contexts(request.app.routes) if route.path_regex.match(path)]
    return ", ".join(sorted({"HEAD", "OPTIONS"}.union(*(route.methods or {"GET"} for route in routes))))


def _invalid_parameters(error: RequestValidationError) -> RlvoError:
    """Names the invalid parameters and their limits; the messages of pydantic do not repeat the input."""
    fields = [FieldError(str(each["loc"][-1]), each["msg"]) for each in error.errors()]
    names = ", ".join(sorted({each.field for each in fields}))
    return InvalidRequest(
        f"These parameters are not valid: {names}. GET /openapi.json states their limits.", errors=fields
    )


def _shorten(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
