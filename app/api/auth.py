"""Authentication and authorisation, from method, path and headers alone.

Design notes:
- Every address needs a key unless `_OPEN` lists it; this includes addresses that do not exist.
- Open are the probes and what holds no record: the files of the page, the OpenAPI document, the problem types.
- A key is sent as ``Authorization: Bearer <key>`` or ``X-API-Key: <key>``, an OIDC token as a Bearer token, and the
  token of a CDS client as a Bearer token too.
- If no key is required (loopback, or an explicit setting), the caller is ``local`` and every response has a warning.
- Such a request must come from this machine and from no page of another web site (`app.api.request_origin`).
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

from starlette.datastructures import Headers
from starlette.types import Scope as Asgi

from app.api import cors, request_origin
from app.api.oidc import looks_like_jwt
from app.api.rate_limit import burst
from app.core.config import Settings
from app.database import api_keys
from app.database.api_keys import Caller, Scope
from app.sdk.errors import InsufficientScope, RateLimited, Unauthenticated

if TYPE_CHECKING:
    from app.api.dependencies import Services

LOCAL = Caller("local", "local", frozenset(Scope), identified=False)

_OPEN = re.compile(
    r"/(livez|readyz|v2/health/(live|ready)|metrics|docs|openapi\.json|login\.json|favicon\.ico|cds-services)?"
    r"|/(static|predictions|problems)/.*",
    re.DOTALL,
)
_CREDENTIAL = re.compile(r"[\x21-\x7e]{1,8192}")
_SEND_KEY = "Send an API key as `Authorization: Bearer <key>`."
_NOT_LOCAL = (
    "Without a key, only requests from this machine are answered: to localhost, 127.0.0.1 or [::1], over HTTP/1.1, and "
    "not through a proxy. For others create a key (`rlvo keys create`) and send it as `Authorization: Bearer <key>`."
)
_CDS = re.compile(r"/cds-services/")
_READ_METHODS = ("GET", "HEAD", "OPTIONS")


def validate_exposure(settings: Settings) -> None:
    """Raises ValueError if other machines could reach a service that requires no keys, or a login has no provider."""
    if not settings.keys_required and not settings.on_loopback and not settings.insecure:
        raise ValueError("RLVO_AUTH=off allows other machines to connect without keys; this also needs RLVO_INSECURE=1")
    if settings.oidc_client_id and not settings.oidc_issuer:
        raise ValueError("RLVO_OIDC_CLIENT_ID also needs RLVO_OIDC_ISSUER, where people log in")


def key_needed(settings: Settings, scope: Asgi, headers: Headers) -> bool:
    """Returns whether this request needs a key; without keys, one that does not come from this machine needs one."""
    if settings.keys_required:
        return True
    return not (settings.open_to_all or request_origin.is_local(scope, headers))


async def authorise(services: Services, scope: Asgi, headers: Headers) -> Caller | None:
    """Returns the caller, or None for an open address.

    Raises:
        Unauthenticated: The key or token is missing or not valid.
        CrossOrigin: No key is needed, and a page of another web site makes a browser send the request.
        InsufficientScope: The key lacks the scope for this call.
        RateLimited: The caller sends too many requests.
        DatabaseUnavailable: The key cannot be looked up.
        IdentityUnavailable: The keys of the identity provider cannot be read.
    """
    if _OPEN.fullmatch(scope["path"]):
        return None
    settings = services.settings
    if not key_needed(settings, scope, headers):
        if cors.allowed_origin(settings, scope, headers) is None:
            request_origin.check_origin(scope, headers, public_url=settings.public_url)
        return LOCAL
    credential = _credential(headers, _SEND_KEY if settings.keys_required else _NOT_LOCAL)
    caller = await _caller(services, credential, scope["path"])
    per_minute = caller.per_minute or settings.rate_per_minute
    wait = services.rate_limiter.take(caller.identity, per_minute)
    if wait:
        rule = f"This caller may send {per_minute} requests per minute, and {burst(per_minute)} at once."
        raise RateLimited(f"{rule} Wait {math.ceil(wait)} s, then send the request again.", retry_after=wait)
    needed = needed_scope(scope["method"], scope["path"])
    if needed and needed not in caller.scopes:
        raise InsufficientScope(f"This call needs a key with the scope `{needed}`.")
    return caller


async def _caller(services: Services, credential: str, path: str) -> Caller:
    """The caller of a key or a token; tokens of CDS clients are valid at the addresses of the CDS service only."""
    if not looks_like_jwt(credential):
        return await services.read(api_keys.authenticate, credential)
    clients = services.cds_clients
    if clients and _CDS.match(path) and clients.knows(credential):
        return await services.run_in_thread(clients.authenticate, credential, path)
    if services.token_verifier:
        return await services.run_in_thread(services.token_verifier.authenticate, credential)
    return await services.read(api_keys.authenticate, credential)


def needed_scope(method: str, path: str) -> Scope | None:
    """Returns the scope that a call needs in addition to a valid key."""
    if path.startswith("/v1/audit"):
        return Scope.AUDIT
    if method in _READ_METHODS or _CDS.match(path):
        return Scope.READ
    if path.startswith("/v1/models"):
        return Scope.MODELS_ADMIN
    return Scope.ERASE if method == "DELETE" else Scope.PREDICT


def _credential(headers: Headers, rule: str) -> str:
    scheme, _, bearer = headers.get("authorization", "").partition(" ")
    credential = bearer.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
    if not _CREDENTIAL.fullmatch(credential):
        raise Unauthenticated(rule)
    return credential
