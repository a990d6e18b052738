"""Every error leaves as RFC 9457 problem+json, rendered here and nowhere else.

Notable choices:
- ``type`` is a page of this service (``/problems/<code>``), ``instance`` the trace of the one occurrence.
- A problem stays under 4 KiB whatever was sent, is ASCII, and repeats nothing that was submitted.
- Starlette's and FastAPI's own errors are turned into members of our tree first, so there is one shape.
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
)
from app.sdk.types import Problem, ProblemField

MEDIA_TYPE = "application/problem+json"

_MOST_FIELDS = 8
_LONGEST_DETAIL = 600
_LONGEST_FIELD_DETAIL = 240


def document(error: RlvoError, trace_id: str) -> Problem:
    """The problem document of an error, cut to size."""
    fields = [
        ProblemField(field=_cut(each.field, 64), detail=_cut(each.detail, _LONGEST_FIELD_DETAIL))
        for each in error.errors[:_MOST_FIELDS]
    ]
    return Problem(
        type=f"/problems/{error.code}",
        title=error.title,
        status=error.status,
        detail=_cut(error.detail, _LONGEST_DETAIL),
        instance=f"urn:uuid:{UUID(hex=trace_id)}",
        code=error.code,
        trace_id=trace_id,
        errors=fields,
    )


def answer(error: RlvoError, trace_id: str, headers: dict[str, str] | None = None, *, path: str = "") -> Response:
    """The error as an HTTP response. Under ``/v2`` with the Open Inference Protocol's own member, ``error``, too."""
    extra = {"Cache-Control": "no-store", **(headers or {})}
    if error.retry_after is not None:
        extra["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
    if isinstance(error, Unauthenticated):
        extra["WWW-Authenticate"] = "Bearer"
    body = document(error, trace_id).model_dump(mode="json", exclude_none=True)
    if path.startswith("/v2/"):
        body["error"] = body["detail"]
    return _Problem(body, status_code=error.status, headers=extra)


def of(request: Request, error: RlvoError, headers: dict[str, str] | None = None) -> Response:
    """The error as the response to one request."""
    return answer(error, request.state.trace_id, headers, path=request.url.path)


def install(app: FastAPI) -> None:
    """Registers the handlers that bring every kind of exception into this shape."""

    @app.exception_handler(RlvoError)
    async def ours(request: Request, error: RlvoError) -> Response:
        return of(request, error)

    @app.exception_handler(RequestValidationError)
    async def parameters(request: Request, error: RequestValidationError) -> Response:
        return of(request, _invalid_parameters(error))

    @app.exception_handler(HTTPException)
    async def theirs(request: Request, error: HTTPException) -> Response:
        if error.status_code != 405:
            return of(request, _from_http(error.status_code))
        allow = {"Allow": _methods(request)}
        if request.method == "OPTIONS":
            return Response(status_code=204, headers=allow)
        return of(request, _from_http(405), allow)


def responses(*errors: type[RlvoError]) -> dict[int | str, dict[str, Any]]:
    """The ``responses`` of a route: one entry per status, an example per code.

    Examples are made by the same renderer that answers, so the contract cannot show another shape.
    """
    table: dict[int | str, dict[str, Any]] = {}
    for status in sorted({error.status for error in errors}):
        kinds = [error for error in errors if error.status == status]
        entry: dict[str, Any] = {
            "description": "; ".join(f"`{kind.code}`: {kind.title}" for kind in kinds),
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}, "examples": _examples(kinds)}},
        }
        if status in (429, 503):
            entry["headers"] = {"Retry-After": {"description": "Seconds", "schema": {"type": "integer", "minimum": 1}}}
        table[status] = entry
    return table


class _Problem(JSONResponse):
    media_type = MEDIA_TYPE

    def render(self, content: Any) -> bytes:
        return json.dumps(content).encode("ascii")


def _examples(kinds: Iterable[type[RlvoError]]) -> dict[str, Any]:
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    return {
        kind.code: {"value": document(kind(), trace).model_dump(mode="json", exclude_none=True), "summary": kind.title}
        for kind in kinds
    }


def _from_http(status: int) -> RlvoError:
    match status:
        case 404:
            return NotFound()
        case 405:
            return MethodNotAllowed("See the Allow header for the methods that this address takes.")
        case 413:
            return TooLarge()
        case _ if 400 <= status < 500:
            return BadRequest()
        case _:
            return InternalError()


def _methods(request: Request) -> str:
    """Every method that the address takes; Starlette alone would name those of one of its routes."""
    path = request.url.path
    routes = [route for route in iter_route_contexts(request.app.routes) if route.path_regex.match(path)]
    return ", ".join(sorted({"HEAD", "OPTIONS"}.union(*(route.methods or {"GET"} for route in routes))))


def _invalid_parameters(error: RequestValidationError) -> RlvoError:
    """Names the parameters at fault and what would be right; pydantic's messages speak of bounds, never of input."""
    fields = [FieldError(str(fault["loc"][-1]), fault["msg"]) for fault in error.errors()]
    names = ", ".join(sorted({each.field for each in fields}))
    return InvalidRequest(f"Check these parameters against the API's description: {names}.", errors=fields)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
