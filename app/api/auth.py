"""Who may call what, settled on method, path and headers alone.

Notable choices:
- Closed unless opened: an address that nobody listed needs a key, also one that does not exist.
- Open are the probes, and what holds no record: the pages' own files, the API's description, the problem types.
- A key comes as ``Authorization: Bearer <key>`` or ``X-API-Key: <key>``; a token of the site's identity provider, where
  one is set, as ``Authorization: Bearer <token>``. Where no keys are required (loopback, or an
  explicit setting) everybody is the caller ``local``, and every answer carries a warning.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

from starlette.datastructures import Headers
from starlette.types import Scope as Asgi

from app.api.oidc import looks_like_a_token
from app.core.config import Settings
from app.database import api_keys
from app.database.api_keys import Caller, Scope
from app.sdk.errors import InsufficientScope, RateLimited, Unauthenticated

if TYPE_CHECKING:
    from app.api.dependencies import Services

LOCAL = Caller("local", "local", frozenset(Scope))

_OPEN = re.compile(
    r"/(livez|readyz|v2/health/(live|ready)|metrics|docs|openapi\.json|favicon\.ico)?|/(static|predictions|problems)/.*",
    re.DOTALL,
)
_SECRET = re.compile(r"[\x21-\x7e]{1,8192}")
_READING = ("GET", "HEAD", "OPTIONS")


def validate_exposure(settings: Settings) -> None:
    """Refuses to serve without keys where others can reach the service. Raises ValueError."""
    if not settings.keys_required and not settings.on_loopback and not settings.insecure:
        message = "RLVO_AUTH=off on an address that others can reach needs RLVO_INSECURE=1"
        raise ValueError(message)


async def authorise(services: Services, scope: Asgi, headers: Headers) -> Caller | None:
    """Who calls; None for an open address.

    Raises Unauthenticated, InsufficientScope, RateLimited, DatabaseUnavailable, IdentityUnavailable.
    """
    if _OPEN.fullmatch(scope["path"]):
        return None
    if not services.settings.keys_required:
        return LOCAL
    secret = _secret(headers)
    if services.tokens and looks_like_a_token(secret):
        caller = await services.work(services.tokens.authenticate, secret)
    else:
        caller = await services.read(api_keys.authenticate, secret)
    settings = services.settings
    wait = services.rates.take(f"{caller.tenant} {caller.name}", caller.per_minute or settings.rate_per_minute)
    if wait:
        raise RateLimited(f"Send no more than so many requests a minute; wait {math.ceil(wait)} s.", retry_after=wait)
    needed = needed_scope(scope["method"], scope["path"])
    if needed and needed not in caller.scopes:
        raise InsufficientScope(f"This call needs a key with the scope `{needed}`.")
    return caller


def needed_scope(method: str, path: str) -> Scope | None:
    """The scope that a call needs beyond a valid key."""
    if path.startswith("/v1/audit"):
        return Scope.AUDIT
    if method in _READING:
        return Scope.READ
    if path.startswith("/v1/models"):
        return Scope.MODELS_ADMIN
    return Scope.PREDICT


def _secret(headers: Headers) -> str:
    scheme, _, bearer = headers.get("authorization", "").partition(" ")
    secret = bearer.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
    if not _SECRET.fullmatch(secret):
        raise Unauthenticated("Send an API key as `Authorization: Bearer <key>`")
    return secret
