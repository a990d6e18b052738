"""Verifies OpenID Connect bearer tokens of the site's identity provider.

Design notes:
- PyJWT verifies the tokens. The settings fix one asymmetric algorithm; the token's header cannot change it.
- Issuer, audience, expiry and subject are required. Unknown scopes are ignored; ours may have the prefix ``rlvo:``.
- The provider's keys are cached. An unknown key id causes a new request to the provider, at most one per
  `_RETRY_SECONDS`, so that callers cannot flood it. If the provider fails, known keys stay valid for a day.
- The request for these keys is the only outbound connection of the API; it is made only if an issuer is set.
"""

from __future__ import annotations

import json
import re
import threading
import time
from typing import Any

import httpx
import jwt

from app.core.config import Settings
from app.database.api_keys import Caller, Scope, caller_name
from app.sdk.errors import IdentityUnavailable, Unauthenticated

LEEWAY = 30  # allowed difference to the clock of the provider, in seconds
_REFRESH_SECONDS = 600.0
_EXPIRY_SECONDS = 86400.0
_RETRY_SECONDS = 10.0
_MAX_DOCUMENT_BYTES = 256 * 1024


class TokenVerifier:
    """Verifies the tokens of one issuer. It is thread-safe."""

    def __init__(self, settings: Settings) -> None:
        self._issuer = settings.oidc_issuer
        self._audience = settings.oidc_audience
        self._algorithm = settings.oidc_algorithm
        self._tenant_claim = settings.oidc_tenant_claim
        self._name_claim = settings.oidc_name_claim
        self._keys_url = settings.oidc_keys_url
        self._lock = threading.Lock()
        self._keys: dict[str, jwt.PyJWK] = {}
        self._fetched = self._attempted = -_EXPIRY_SECONDS

    def authenticate(self, token: str) -> Caller:
        """Returns the caller that a token identifies.

        Raises:
            Unauthenticated: The token is not valid; the error does not say why.
            IdentityUnavailable: The provider's keys are needed and cannot be read.
        """
        try:
            key = self._key(str(jwt.get_unverified_header(token).get("kid", "")))
            claims = jwt.decode(
                token,
                key=key,
                algorithms=[self._algorithm],
                audience=self._audience,
                issuer=self._issuer,
                leeway=LEEWAY,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except (jwt.PyJWTError, ValueError, TypeError):
            raise Unauthenticated("Send a valid token of the site's identity provider, or an API key.") from None
        return self._caller(claims)

    def _caller(self, claims: dict[str, Any]) -> Caller:
        subject = str(claims["sub"])
        tenant = str(claims.get(self._tenant_claim) or f"oidc:{subject}")
        granted = claims.get("scope", claims.get("scp", ""))
        scopes = granted.split() if isinstance(granted, str) else map(str, granted if isinstance(granted, list) else ())
        known = {scope.removeprefix("rlvo:") for scope in scopes} & set(Scope)
        name = str(claims.get(self._name_claim) or subject)
        return Caller(caller_name(name), caller_name(tenant), frozenset(map(Scope, known)))

    def _key(self, key_id: str) -> jwt.PyJWK:
        with self._lock:
            now = time.monotonic()
            due = key_id not in self._keys or now - self._fetched > _REFRESH_SECONDS
            if due and now - self._attempted > _RETRY_SECONDS:
                self._attempted = now
                self._fetch(now)
            if now - self._fetched > _EXPIRY_SECONDS:
                message = "The identity provider cannot be reached. Try again in 10 seconds, or use an API key."
                raise IdentityUnavailable(message, retry_after=10)
            if key_id not in self._keys:
                raise ValueError
            return self._keys[key_id]

    def _fetch(self, now: float) -> None:
        """Reads the keys of the provider; keeps the known keys if that fails."""
        try:
            with httpx.Client(timeout=5, follow_redirects=False, trust_env=False) as http:
                url = self._keys_url or str(
                    _document(http, self._issuer.rstrip("/") + "/.well-known/openid-configuration")["jwks_uri"]
                )
                keys = jwt.PyJWKSet.from_dict(_document(http, url)).keys
        except (httpx.HTTPError, httpx.InvalidURL, jwt.PyJWTError, ValueError, KeyError, TypeError):
            return
        self._keys = {str(key.key_id): key for key in keys if key.key_id and key.public_key_use in (None, "sig")}
        self._fetched = now


def looks_like_jwt(credential: str) -> bool:
    """Returns whether a credential has three base64url parts; no API key has them."""
    return bool(re.fullmatch(r"[\w-]+\.[\w-]+\.[\w-]+", credential, re.ASCII))


def _document(http: httpx.Client, url: str) -> dict[str, Any]:
    with http.stream("GET", url) as response:
        response.raise_for_status()
        content = b""
        for chunk in response.iter_bytes():
            content += chunk
            if len(content) > _MAX_DOCUMENT_BYTES:
                raise ValueError
    document: dict[str, Any] = json.loads(content)
    return document
