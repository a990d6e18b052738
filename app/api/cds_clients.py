"""Verifies the signed tokens of CDS clients (CDS Hooks 2.0, "Trusting CDS Clients").

Design notes:
- A client signs a token for each call: `iss` is the client, `aud` the address that it calls, `jti` a new value.
- The public keys come from a file, because a `jku` of the token would make the service call an address of the sender.
- The file names the algorithm of each key. The header of a token cannot change it; symmetric keys are refused.
- The values of `jti` are kept in memory until the tokens expire. Several API processes keep separate lists.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any, Literal

import jwt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from app.database.api_keys import Caller, Scope, caller_name
from app.sdk.errors import Unauthenticated

LEEWAY = 30  # allowed difference to the clock of a client, in seconds
LONGEST_LIFE = 3600.0  # seconds from now to the expiry of a token
_REQUIRED = ["iss", "aud", "exp", "iat", "jti"]
_REFUSAL = (
    "Send a token of a known CDS client, signed with one of its keys, for this address (`aud`), with `iat`, a `jti` "
    "that was not used before, and an `exp` within the next hour; or send an API key."
)


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _PublicKey(BaseModel):
    """Public key as a JSON Web Key (RFC 7517)."""

    model_config = ConfigDict(extra="allow", frozen=True)

    kid: str = Field(min_length=1)
    kty: Literal["EC", "RSA"]
    alg: Literal["ES256", "ES384", "RS256", "RS384"]


class _Client(_Document):
    """CDS client: its issuer, the tenant whose predictions it sees, and its public keys."""

    iss: str = Field(min_length=1)
    tenant: str = Field(min_length=1, max_length=64)
    keys: list[_PublicKey] = Field(min_length=1)


class _ClientFile(_Document):
    clients: list[_Client] = Field(min_length=1)


class CdsClientVerifier:
    """Verifies the tokens of the CDS clients in a file. It is thread-safe."""

    def __init__(self, file: Path, public_url: str) -> None:
        """Reads the file.

        Raises:
            ValueError: The file cannot be read or used, or the service does not know its own address.
        """
        if not public_url:
            raise ValueError("RLVO_CDS_CLIENTS also needs RLVO_PUBLIC_URL, because a token names the address it is for")
        self._public_url = public_url.rstrip("/")
        self._tenants: dict[str, str] = {}
        self._keys: dict[tuple[str, str], jwt.PyJWK] = {}
        for client in _read(file).clients:
            if client.iss in self._tenants:  # the tenant of the second one would be that of the keys of both
                raise ValueError(f"The file of RLVO_CDS_CLIENTS lists `{client.iss}` twice. List its keys together.")
            self._tenants[client.iss] = client.tenant
            for key in client.keys:
                if (client.iss, key.kid) in self._keys:
                    raise ValueError(f"The file of RLVO_CDS_CLIENTS has two keys `{key.kid}` of one client.")
                self._keys[client.iss, key.kid] = _loaded(key)
        self._lock = threading.Lock()
        self._used: dict[tuple[str, str], float] = {}

    def knows(self, token: str) -> bool:
        """Returns whether a token names a CDS client of the file as its issuer; its signature is not verified here."""
        try:
            return jwt.decode(token, options={"verify_signature": False}).get("iss") in self._tenants
        except (jwt.PyJWTError, ValueError, TypeError):
            return False

    def authenticate(self, token: str, path: str) -> Caller:
        """Returns the caller of a token that was signed for the address ``path`` of this service.

        Raises:
            Unauthenticated: The token is not valid, or was used before; the error does not say which.
        """
        try:
            issuer = str(jwt.decode(token, options={"verify_signature": False}).get("iss"))
            key = self._keys[issuer, str(jwt.get_unverified_header(token).get("kid"))]
            claims: dict[str, Any] = jwt.decode(
                token,
                key=key,
                algorithms=[key.algorithm_name],
                audience=self._public_url + path,
                issuer=issuer,
                leeway=LEEWAY,
                options={"require": _REQUIRED},
            )
        except (jwt.PyJWTError, KeyError, ValueError, TypeError):
            raise Unauthenticated(_REFUSAL) from None
        self._use(issuer, str(claims["jti"]), float(claims["exp"]))
        return Caller(caller_name(issuer), self._tenants[issuer], frozenset({Scope.READ}))

    def _use(self, issuer: str, token_id: str, expiry: float) -> None:
        """Marks a token as used. Raises Unauthenticated if it was, or if it is valid for too long."""
        now = time.time()
        with self._lock:
            self._used = {used: until for used, until in self._used.items() if until + LEEWAY > now}
            if (issuer, token_id) in self._used or expiry > now + LONGEST_LIFE + LEEWAY:
                raise Unauthenticated(_REFUSAL)
            self._used[issuer, token_id] = expiry


def _read(file: Path) -> _ClientFile:
    example = (
        '{"clients": [{"iss": "https://records.clinic.example", "tenant": "pacs", "keys": [{"kid": ..., "kty": ..}]}]}'
    )
    try:
        return _ClientFile.model_validate_json(file.read_bytes())
    except OSError:
        raise ValueError("The file of RLVO_CDS_CLIENTS cannot be read. Check its path and its permissions.") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise ValueError(
            f"The file of RLVO_CDS_CLIENTS is not valid at `{place}`: {first['msg']}. Use {example}"
        ) from None


def _loaded(key: _PublicKey) -> jwt.PyJWK:
    members = key.model_dump()
    if "d" in members:
        raise ValueError(f"The key `{key.kid}` in the file of RLVO_CDS_CLIENTS is a private key. Give the public key.")
    try:
        return jwt.PyJWK(members, algorithm=key.alg)
    except (jwt.PyJWTError, ValueError, TypeError):
        raise ValueError(f"The key `{key.kid}` in the file of RLVO_CDS_CLIENTS is not a JSON Web Key.") from None
