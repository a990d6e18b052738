"""Cross-origin requests to the CDS service, for the listed origins only (Fetch standard, CORS protocol).

Design notes:
- No other address of this service answers pages of another origin.
- Cookies are never used, so `Access-Control-Allow-Credentials` is not sent. A page sends its key or token as a header.
- A browser sends a preflight request without a key, so it is answered before the authentication.
"""

from __future__ import annotations

import re

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Scope

from app.core.config import Settings

_PATHS = re.compile(r"/cds-services(/.*)?", re.DOTALL)
_PREFLIGHT = {
    "Access-Control-Allow-Methods": "GET, POST",
    "Access-Control-Allow-Headers": "Authorization, Content-Type, X-API-Key",
    "Access-Control-Max-Age": "600",
}


def allowed_origin(settings: Settings, scope: Scope, headers: Headers) -> str | None:
    """Returns the origin of the page that sends this request, if it may call this address, else None."""
    origins = headers.getlist("origin")
    if len(origins) != 1 or not _PATHS.fullmatch(scope["path"]):
        return None
    return origins[0] if origins[0].lower() in settings.cds_allowed_origins else None


def response_headers(origin: str | None) -> dict[str, str]:
    """Returns the headers by which a browser lets a page of this origin read the response; empty without an origin."""
    if origin is None:
        return {}
    return {"Access-Control-Allow-Origin": origin, "Access-Control-Expose-Headers": "X-Trace-Id, Retry-After"}


def preflight(scope: Scope, headers: Headers, origin: str | None) -> Response | None:
    """Returns the answer to the preflight request of an allowed origin, None for any other request."""
    if origin is None or scope["method"] != "OPTIONS" or "access-control-request-method" not in headers:
        return None
    return Response(status_code=204, headers=_PREFLIGHT)
