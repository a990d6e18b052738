"""OpenID Connect bearer tokens: who calls, by the word of the site's own identity provider.

Notable choices:
- PyJWT verifies; one algorithm is pinned by the settings, whatever a token's header says, and it is asymmetric.
- Issuer, audience, expiry and subject are required of every token. Scopes are ours, plain (``predict``) or prefixed
  (``rlvo:predict``); others are ignored.
- The provider's keys are cached. A key id that is not known asks for them anew, at most once in ten seconds, so nobody
  makes us flood the provider. While it is away, the keys that are known go on being good for a day.
- Asking for those keys is the one outbound connection of the API, and is made only where an issuer is set.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from typing import Any

import httpx
import jwt

from app.core.config import Settings
from app.database.api_keys import Caller, Scope
from app.sdk.errors import IdentityUnavailable, Unauthenticated

LEEWAY = 30
"""Seconds that the provider's clock may be off."""

_FRESH = 600.0
_STALE = 86400.0
_PAUSE = 10.0
_LARGEST = 256 * 1024
_NAME = re.compile(r"[\x21-\x7e]{1,64}")


class TokenVerifier:
    """Verifies the tokens of one issuer. Safe to use from many threads."""

    def __init__(self, settings: Settings) -> None:
        self._issuer = settings.oidc_issuer
        self._audience = settings.oidc_audience
        self._algorithm = settings.oidc_algorithm
        self._tenant_claim = settings.oidc_tenant_claim
        self._keys_url = settings.oidc_keys_url
        self._lock = threading.Lock()
        self._keys: dict[str, jwt.PyJWK] = {}
        self._fetched = self._asked = -_STALE

    def authenticate(self, token: str) -> Caller:
        """The caller that a token names.

        :raises Unauthenticated: a token that is not good, without saying why
        :raises IdentityUnavailable: the provider's keys are needed and cannot be had
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
        words = granted.split() if isinstance(granted, str) else map(str, granted if isinstance(granted, list) else ())
        known = {word.removeprefix("rlvo:") for word in words} & set(Scope)
        return Caller(_short(subject), _short(tenant), frozenset(map(Scope, known)))

    def _key(self, key_id: str) -> jwt.PyJWK:
        with self._lock:
            moment = time.monotonic()
            due = key_id not in self._keys or moment - self._fetched > _FRESH
            if due and moment - self._asked > _PAUSE:
                self._asked = moment
                self._fetch(moment)
            if moment - self._fetched > _STALE:
                raise IdentityUnavailable("The identity provider cannot be reached; try again shortly.", retry_after=10)
            if key_id not in self._keys:
                raise ValueError
            return self._keys[key_id]

    def _fetch(self, moment: float) -> None:
        """Asks the provider for its keys; what is known stays where it does not answer."""
        try:
            with httpx.Client(timeout=5, follow_redirects=False, trust_env=False) as http:
                url = self._keys_url or str(
                    _document(http, self._issuer.rstrip("/") + "/.well-known/openid-configuration")["jwks_uri"]
                )
                found = jwt.PyJWKSet.from_dict(_document(http, url)).keys
        except (httpx.HTTPError, httpx.InvalidURL, jwt.PyJWTError, ValueError, KeyError, TypeError):
            return
        self._keys = {str(key.key_id): key for key in found if key.key_id and key.public_key_use in (None, "sig")}
        self._fetched = moment


def looks_like_a_token(secret: str) -> bool:
    """Whether it is three base64url parts, as no API key is."""
    return bool(re.fullmatch(r"[\w-]+\.[\w-]+\.[\w-]+", secret, re.ASCII))


def _document(http: httpx.Client, url: str) -> dict[str, Any]:
    with http.stream("GET", url) as answer:
        answer.raise_for_status()
        content = b""
        for piece in answer.iter_bytes():
            content += piece
            if len(content) > _LARGEST:
                raise ValueError
    found: dict[str, Any] = json.loads(content)
    return found


def _short(name: str) -> str:
    """A name as our columns take it: itself, or where it is long or odd, its sha-256."""
    return name if _NAME.fullmatch(name) else hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()
