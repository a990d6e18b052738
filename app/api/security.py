"""Who may call what, settled on method, path and headers alone.

Notable choices:
- Closed unless opened: an address that nobody listed needs a key, also one that does not exist.
- Open are the probes, and what holds no record: the pages' own files, the API's description, the problem types.
- A key comes as ``Authorization: Bearer <key>`` or ``X-API-Key: <key>``. Where no keys are required (loopback, or an
  explicit setting) everybody is the caller ``local``, and every answer carries a warning.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from starlette.datastructures import Headers
from starlette.types import Scope as Asgi

from app.config import Settings
from app.database import keys
from app.database.keys import Caller, Scope
from app.sdk.errors import InsufficientScope, Unauthenticated

if TYPE_CHECKING:
    from app.api.dependencies import Services

LOCAL = Caller("local", "local", frozenset(Scope))

_OPEN = re.compile(
    r"/(livez|readyz|metrics|docs|openapi\.json|favicon\.ico)?|/(static|predictions|problems)/.*", re.DOTALL
)
_KEY = re.compile(r"[\x21-\x7e]{1,256}")
_READING = ("GET", "HEAD", "OPTIONS")


def check_door(settings: Settings) -> None:
    """Refuses to serve without keys where others can reach the service. Raises ValueError."""
    if not settings.keys_required and not settings.on_loopback and not settings.insecure:
        message = "RLVO_AUTH=off on an address that others can reach needs RLVO_INSECURE=1"
        raise ValueError(message)


async def authorise(services: Services, scope: Asgi, headers: Headers) -> Caller | None:
    """Who calls; None for an open address. Raises Unauthenticated, InsufficientScope, DatabaseUnavailable."""
    if _OPEN.fullmatch(scope["path"]):
        return None
    if not services.settings.keys_required:
        return LOCAL
    caller = await services.read(keys.authenticate, _secret(headers))
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
    if not _KEY.fullmatch(secret):
        raise Unauthenticated("Send an API key as `Authorization: Bearer <key>`")
    return secret
