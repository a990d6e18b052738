"""Parameters that several routes share: their types, limits and OpenAPI descriptions.

A repeated or unknown query parameter is refused, because the service would ignore what the caller wants.
"""

from __future__ import annotations

import re
from collections import Counter
from datetime import UTC, datetime
from typing import Annotated
from urllib.parse import parse_qsl

from fastapi import Depends, Header, Path, Query, Request

from app.registry.manifest import NAME_PATTERN, VERSION_PATTERN
from app.sdk.errors import FieldError, InvalidRequest, PredictionNotFound
from app.sdk.types import Priority

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_MODEL_OR_VERSION = re.compile(f"{NAME_PATTERN.strip('^$')}(@{VERSION_PATTERN.strip('^$')})?")
_TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)", re.ASCII)


async def strict_query(request: Request) -> None:
    """Raises InvalidRequest for query parameters that are repeated or unknown to the route."""
    given = Counter(name for name, _ in parse_qsl(request.url.query, keep_blank_values=True))
    dependant = request.scope["route"].dependant
    known = {parameter.alias for part in (dependant, *dependant.dependencies) for parameter in part.query_params}
    if repeated := sorted(name for name in given.keys() & known if given[name] > 1):
        errors = [FieldError(name, "may be given only once") for name in repeated]
        raise InvalidRequest(f"Give these parameters only once: {', '.join(repeated)}.", errors=errors)
    if given.keys() - known:
        allowed = f"Allowed are: {', '.join(sorted(known))}." if known else "This call has no query parameters."
        raise InvalidRequest(f"The address has an unknown query parameter. {allowed}")


async def _prediction_id(
    prediction_id: Annotated[
        str, Path(alias="id", description="Id of the prediction", json_schema_extra={"format": "uuid"})
    ],
) -> str:
    if not _UUID.fullmatch(prediction_id):
        raise PredictionNotFound
    return prediction_id


async def _created_after(
    created_after: Annotated[
        str | None,
        Query(
            description="Only predictions created after this time, with its UTC offset: 2026-01-31T08:00:00Z",
            max_length=40,
            json_schema_extra={"format": "date-time"},
        ),
    ] = None,
) -> datetime | None:
    if created_after is None:
        return None
    try:
        if not _TIMESTAMP.fullmatch(created_after):
            raise ValueError
        return datetime.fromisoformat(created_after.upper()).astimezone(UTC)
    except (ValueError, OverflowError):
        rule = "must be a time with its UTC offset, such as 2026-01-31T08:00:00Z"
        raise InvalidRequest(f"created_after {rule}.", errors=[FieldError("created_after", rule)]) from None


async def _model_filter(
    model: Annotated[
        str | None,
        Query(
            description="`name` or `name@1.2.0`; no alias, because an alias moves",
            max_length=160,
            json_schema_extra={"pattern": f"^{_MODEL_OR_VERSION.pattern}$"},
        ),
    ] = None,
) -> str | None:
    if model is not None and not _MODEL_OR_VERSION.fullmatch(model):
        rule = "must be `name` or `name@1.2.0`; an alias moves, so GET /v1/models tells its version"
        raise InvalidRequest(f"model {rule}.", errors=[FieldError("model", rule)])
    return model


PredictionId = Annotated[str, Depends(_prediction_id)]
ModelFilter = Annotated[str | None, Depends(_model_filter)]
CreatedAfter = Annotated[datetime | None, Depends(_created_after)]
Wait = Annotated[
    float,
    Query(ge=0, le=86400, allow_inf_nan=False, description="Seconds to wait for the result; the service limits them"),
]
IfNoneMatch = Annotated[str, Header(description="Entity tags of the versions that the caller has", max_length=1000)]
IdempotencyKey = Annotated[
    str | None,
    Header(
        description="Makes a retry safe: the same key with the same body gives the same prediction",
        pattern=r"^[\x21-\x7e]{1,255}$",
    ),
]
Prefer = Annotated[
    str, Header(description="`respond-async` for an immediate 202, or `wait=<seconds>` for the result", max_length=200)
]
Urgency = Annotated[
    str,
    Header(
        alias="Priority",
        description="RFC 9218: an urgency above 3 (`u=5`) means batch; batch studies run when no acute study waits",
        max_length=200,
    ),
]


def priority_of(header: str) -> Priority:
    """Returns the priority of a ``Priority`` header (RFC 9218: urgency 0 to 7, default 3); above 3 is batch."""
    for part in header.split(","):
        if match := re.fullmatch(r"\s*u\s*=\s*([0-7])\s*", part, re.ASCII):
            return Priority.BATCH if int(match[1]) > 3 else Priority.ACUTE
    return Priority.ACUTE


def preferred_wait(prefer: str, *, default: float, most: float) -> tuple[float, str]:
    """Reads a ``Prefer`` header (RFC 7240).

    Unknown preferences are ignored, as the RFC requires; ``wait`` overrides ``respond-async``.

    Returns:
        The seconds to wait for the result, and the preference that was applied, for ``Preference-Applied``.
    """
    preferences = [each.split(";")[0].strip().lower() for each in prefer.split(",")]
    matches = [re.fullmatch(r'wait\s*=\s*"?(\d{1,6})"?', each, re.ASCII) for each in preferences]
    if waits := [match[1] for match in matches if match]:
        seconds = min(float(waits[0]), most)
        return seconds, f"wait={seconds:g}"
    if "respond-async" in preferences:
        return 0.0, "respond-async"
    return min(default, most), ""
