"""API keys: name, tenant and scopes of each caller.

A secret is shown once, when it is created, and stored as its sha-256. A slow password hash would not help, because a
secret with 256 random bits cannot be found by search.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from app.database.session import now
from app.database.tables import ApiKeyRow
from app.sdk.errors import InvalidRequest, Unauthenticated

_PREFIX = "rlvo_"
_NAME = re.compile(r"[\x21-\x7e]{1,64}")


class Scope(StrEnum):
    """What a key may do: submit and change predictions, read them, erase them, move versions, read the audit trail."""

    PREDICT = "predict"
    READ = "read"
    ERASE = "erase"
    MODELS_ADMIN = "models:admin"
    AUDIT = "audit"


@dataclass(frozen=True)
class Caller:
    """Sender of a request. Callers of one tenant see the same predictions, and only these.

    A limit that is None (requests a minute, bytes of a body) has the value of the settings. The caller is
    ``identified`` unless the service requires no key.
    """

    name: str
    tenant: str
    scopes: frozenset[Scope]
    per_minute: int | None = None
    max_body: int | None = None
    identified: bool = True

    @property
    def identity(self) -> tuple[str, str]:
        """Tenant and name, by which the requests of a caller are counted."""
        return self.tenant, self.name


@dataclass(frozen=True)
class ApiKey:
    """An API key, without its secret."""

    id: str
    name: str
    tenant: str
    scopes: tuple[Scope, ...]
    created: datetime
    expires: datetime | None
    revoked: datetime | None


def create(
    session: Session,
    name: str,
    scopes: Iterable[Scope | str] = (Scope.PREDICT, Scope.READ),
    *,
    tenant: str | None = None,
    expires: datetime | None = None,
    per_minute: int | None = None,
    max_body: int | None = None,
) -> str:
    """Creates a key and returns its secret, which is not stored.

    The key can create and see the predictions of ``tenant``, by default the name of the key. Without ``per_minute``
    (requests) and ``max_body`` (bytes of a request), the values of the settings apply.

    Raises:
        InvalidRequest: A scope does not exist, or a name has not 1 to 64 characters.
    """
    try:
        granted = sorted({Scope(scope) for scope in scopes})
    except ValueError:
        raise InvalidRequest(f"Unknown scope; use one of {', '.join(Scope)}") from None
    if not 1 <= len(name) <= 64 or len(tenant or name) > 64:
        raise InvalidRequest("The name and the tenant of a key must have 1 to 64 characters")
    secret = _PREFIX + secrets.token_urlsafe(32)
    session.add(
        ApiKeyRow(
            id=secrets.token_hex(4),
            name=name,
            tenant=tenant or name,
            hash=_hash(secret),
            scopes=list(granted),
            created=now(),
            expires=expires,
            per_minute=per_minute,
            max_body=max_body,
        )
    )
    return secret


def authenticate(session: Session, secret: str) -> Caller:
    """The caller of a key. Raises Unauthenticated for an unknown, expired or revoked key, without the reason."""
    row = session.scalar(select(ApiKeyRow).where(ApiKeyRow.hash == _hash(secret)))
    if row is None or row.revoked or (row.expires and row.expires <= now()):
        raise Unauthenticated("Send a valid API key as `Authorization: Bearer <key>`")
    return Caller(row.name, row.tenant, frozenset(map(Scope, row.scopes)), row.per_minute, row.max_body)


def listed(session: Session) -> list[ApiKey]:
    """All keys, also revoked ones, oldest first."""
    rows = session.scalars(select(ApiKeyRow).order_by(ApiKeyRow.created, ApiKeyRow.id))
    return [
        ApiKey(row.id, row.name, row.tenant, tuple(map(Scope, row.scopes)), row.created, row.expires, row.revoked)
        for row in rows
    ]


def revoke(session: Session, key_id: str) -> bool:
    """Revokes a key; returns False if there is no valid key with this id."""
    revoked = update(ApiKeyRow).where(ApiKeyRow.id == key_id, ApiKeyRow.revoked.is_(None)).values(revoked=now())
    return session.execute(revoked.returning(ApiKeyRow.id)).first() is not None


def valid(session: Session, key_ids: Iterable[str]) -> set[str]:
    """The given keys that are not revoked."""
    return set(session.scalars(select(ApiKeyRow.id).where(ApiKeyRow.revoked.is_(None)))) & set(key_ids)


def revocations(session: Session) -> dict[str, datetime]:
    """Time of the revocation of each revoked key."""
    rows = session.execute(select(ApiKeyRow.id, ApiKeyRow.revoked).where(ApiKeyRow.revoked.is_not(None)))
    return {key_id: revoked for key_id, revoked in rows if revoked is not None}


def caller_name(name: str) -> str:
    """The name of a token's caller, or its sha-256 if it is too long or has characters that no column takes."""
    return name if _NAME.fullmatch(name) else _hash(name)


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode(errors="surrogatepass")).hexdigest()
