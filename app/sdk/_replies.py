"""Conversion of HTTP responses into the types and errors of this SDK."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from .errors import Conflict, FieldError, RequestInProgress, RlvoError, TransportError
from .problem import Problem
from .types import Prediction, Status

Reply = httpx.Response | TransportError | None
"""Result of a step: a response, the transport error, or None after a pause."""

Model = TypeVar("Model", bound=BaseModel)


def require_response(reply: Reply) -> httpx.Response:
    """Return a successful response, or raise the error of the service or ``TransportError``."""
    if isinstance(reply, httpx.Response):
        if reply.is_success:
            return reply
        raise _problem(reply)
    raise reply or TransportError()


def is_transient(reply: Reply, error: RlvoError) -> bool:
    """Whether the same request may succeed later."""
    if isinstance(reply, httpx.Response):
        return reply.status_code in (429, 502, 503, 504) or isinstance(error, RequestInProgress)
    return True


def _problem(response: httpx.Response) -> RlvoError:
    """Error of the service, as the class that it raised."""
    try:
        problem = Problem.model_validate_json(response.content)
    except ValidationError:
        return TransportError(
            f"The response with status {response.status_code} is not from an rlvo service; check the address",
            retry_after=_retry_after(response),
        )
    error = RlvoError.for_code(problem.code)(
        problem.detail,
        errors=[FieldError(error.field, error.detail) for error in problem.errors],
        retry_after=_retry_after(response),
        prediction_id=problem.prediction,
    )
    if problem.trace_id:
        error.add_note(f"trace {problem.trace_id}")
    if problem.prediction:
        error.add_note(f"prediction {problem.prediction}")
    return error


def _retry_after(response: httpx.Response) -> float | None:
    """``Retry-After`` header in seconds, from seconds or from a date."""
    value = response.headers.get("Retry-After", "")
    if value.isdecimal():
        return float(value)
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except ValueError:
        return None


def json_of(response: httpx.Response) -> Any:
    """Parse the body as JSON, or raise ``TransportError``."""
    try:
        return response.json()
    except ValueError:
        raise TransportError(
            "The response is not from an rlvo service: its body is not JSON; check the address"
        ) from None


def parse(kind: type[Model], answer: httpx.Response | object) -> Model:
    """Parse a response, or a part of its body, as ``kind``, or raise ``TransportError``."""
    try:
        return kind.model_validate(json_of(answer) if isinstance(answer, httpx.Response) else answer)
    except ValidationError:
        raise TransportError(f"The response is not a {kind.__name__} of this version; check the address") from None


def parse_all(kind: type[Model], response: httpx.Response) -> list[Model]:
    """Parse each item of a JSON array as ``kind``, or raise ``TransportError``."""
    return [parse(kind, item) for item in json_of(response)]


def require_success(prediction: Prediction) -> Prediction:
    """Return a prediction that succeeded, or raise the error that ended it."""
    if prediction.error is not None:
        raise RlvoError.for_code(prediction.error.code)(prediction.error.detail, prediction_id=prediction.id)
    if prediction.status is not Status.SUCCEEDED:
        raise Conflict(f"The prediction was {prediction.status}; submit the study again", prediction_id=prediction.id)
    return prediction
