"""What the service answered, as the types of this SDK or as the error that it raised."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from .errors import Conflict, FieldError, RequestInProgress, RlvoError, TransportError
from .types import Prediction, Problem, Status

Reply = httpx.Response | TransportError | None
"""What a step is answered with: the response, the reason why there is none, or nothing (after a pause)."""

Answer = TypeVar("Answer", bound=BaseModel)


def understood(reply: Reply) -> httpx.Response:
    """A successful response. Raises what the service raised, or TransportError."""
    if isinstance(reply, httpx.Response):
        if reply.is_success:
            return reply
        raise _problem(reply)
    raise reply or TransportError()


def passing(reply: Reply, error: RlvoError) -> bool:
    """Whether the same request may succeed a little later."""
    if isinstance(reply, httpx.Response):
        return reply.status_code in (429, 502, 503, 504) or isinstance(error, RequestInProgress)
    return True


def _problem(response: httpx.Response) -> RlvoError:
    """The error that the service raised, as the same class."""
    try:
        problem = Problem.model_validate_json(response.content)
    except ValidationError:
        return TransportError(
            f"What answered with status {response.status_code} is not rlvo; check the address",
            retry_after=_retry_after(response),
        )
    error = RlvoError.for_code(problem.code)(
        problem.detail,
        errors=[FieldError(each.field, each.detail) for each in problem.errors],
        retry_after=_retry_after(response),
    )
    if problem.trace_id:
        error.add_note(f"trace {problem.trace_id}")
    return error


def _retry_after(response: httpx.Response) -> float | None:
    """The Retry-After header in seconds, whether sent as seconds or as a date."""
    value = response.headers.get("Retry-After", "")
    if value.isdecimal():
        return float(value)
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except ValueError:
        return None


def json_of(response: httpx.Response) -> Any:
    """The body. Raises TransportError where it is no JSON."""
    try:
        return response.json()
    except ValueError:
        raise TransportError("What answered is not rlvo: its body is not JSON; check the address") from None


def read(kind: type[Answer], answer: httpx.Response | object) -> Answer:
    """A response's body, or a part of one, as a ``kind``. Raises TransportError where it is none."""
    try:
        return kind.model_validate(json_of(answer) if isinstance(answer, httpx.Response) else answer)
    except ValidationError:
        raise TransportError(f"What answered is not a {kind.__name__} of this version; check the address") from None


def read_all(kind: type[Answer], answer: httpx.Response) -> list[Answer]:
    """Each part of a JSON array as a ``kind``. Raises TransportError where it is none."""
    return [read(kind, item) for item in json_of(answer)]


def succeeded(prediction: Prediction) -> Prediction:
    """The prediction, or the error that ended it."""
    if prediction.error is not None:
        raise RlvoError.for_code(prediction.error.code)(prediction.error.detail)
    if prediction.status is not Status.SUCCEEDED:
        raise Conflict(f"The prediction was {prediction.status}")
    return prediction
