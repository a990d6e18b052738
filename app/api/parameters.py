"""The parameters that several routes take: their bounds, in the contract and in force.

A parameter that is repeated or that no route knows is refused: the caller meant something that would not happen.
"""

from __future__ import annotations

import re
from collections import Counter
from datetime import UTC, datetime
from typing import Annotated
from urllib.parse import parse_qsl

from fastapi import Depends, Header, Path, Query, Request

from app.sdk.errors import FieldError, InvalidRequest, PredictionNotFound
from app.sdk.types import Priority

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_MOMENT = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)", re.ASCII)


async def strict_query(request: Request) -> None:
    """Refuses query parameters that are repeated or unknown to the route. Raises InvalidRequest."""
    given = Counter(name for name, _ in parse_qsl(request.url.query, keep_blank_values=True))
    takes = request.scope["route"].dependant
    known = {parameter.alias for part in (takes, *takes.dependencies) for parameter in part.query_params}
    if repeated := sorted(name for name in given.keys() & known if given[name] > 1):
        errors = [FieldError(name, "may be given once only") for name in repeated]
        raise InvalidRequest(f"Give each parameter once: {', '.join(repeated)}.", errors=errors)
    if given.keys() - known:
        taken = f"it takes {', '.join(sorted(known))}" if known else "it takes none"
        raise InvalidRequest(f"The address has a query parameter that this call does not take; {taken}.")


async def _prediction_id(
    prediction_id: Annotated[
        str, Path(alias="id", description="The prediction's id", json_schema_extra={"format": "uuid"})
    ],
) -> str:
    if not _UUID.fullmatch(prediction_id):
        raise PredictionNotFound
    return prediction_id


async def _moment(
    created_after: Annotated[
        str | None,
        Query(
            description="Only what was created after this moment, with its offset: 2026-01-31T08:00:00Z",
            max_length=40,
            json_schema_extra={"format": "date-time"},
        ),
    ] = None,
) -> datetime | None:
    if created_after is None:
        return None
    try:
        if not _MOMENT.fullmatch(created_after):
            raise ValueError
        return datetime.fromisoformat(created_after.upper()).astimezone(UTC)
    except (ValueError, OverflowError):
        rule = "is a moment with its offset, such as 2026-01-31T08:00:00Z"
        raise InvalidRequest(f"created_after {rule}.", errors=[FieldError("created_after", rule)]) from None


PredictionId = Annotated[str, Depends(_prediction_id)]
CreatedAfter = Annotated[datetime | None, Depends(_moment)]
Wait = Annotated[
    float,
    Query(ge=0, le=86400, allow_inf_nan=False, description="Seconds to wait for the end; the service sets a bound"),
]
IfNoneMatch = Annotated[str, Header(description="Entity tags that the caller holds", max_length=1000)]
IdempotencyKey = Annotated[
    str | None,
    Header(
        description="Makes a repeated request safe: the same key and body give the same prediction",
        pattern=r"^[\x21-\x7e]{1,255}$",
    ),
]
Prefer = Annotated[
    str, Header(description="`respond-async` to be answered 202 at once, or `wait=<seconds>`", max_length=200)
]


Urgency = Annotated[
    str,
    Header(
        alias="Priority",
        description="RFC 9218: an urgency above 3 (`u=5`) is a batch, served when no acute study waits",
        max_length=200,
    ),
]


def priority_of(header: str) -> Priority:
    """Acute or batch by a ``Priority`` header (RFC 9218: urgency 0 to 7, default 3); what it does not say is acute."""
    for part in header.split(","):
        if match := re.fullmatch(r"\s*u\s*=\s*([0-7])\s*", part, re.ASCII):
            return Priority.BATCH if int(match[1]) > 3 else Priority.ACUTE
    return Priority.ACUTE


def preferred_wait(prefer: str, *, default: float, most: float) -> tuple[float, str]:
    """Seconds to wait by a ``Prefer`` header (RFC 7240), and the preferences that were honoured.

    What is not understood is ignored, as the RFC asks; ``wait`` wins over ``respond-async``.
    """
    wishes = [wish.split(";")[0].strip().lower() for wish in prefer.split(",")]
    waits = [match[1] for wish in wishes if (match := re.fullmatch(r'wait\s*=\s*"?(\d{1,6})"?', wish, re.ASCII))]
    if waits:
        seconds = min(float(waits[0]), most)
        return seconds, f"wait={seconds:g}"
    if "respond-async" in wishes:
        return 0.0, "respond-async"
    return min(default, most), ""
