"""API keys: who may call, as which tenant, for what.

A secret is shown once, when it is made; what is kept is its sha-256. A slow password hash would add nothing: the
secret has 256 random bits, so nobody can search for it, and every request is spared the cost.
"""

from __future__ import annotations

import hashlib
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


class Scope(StrEnum):
    PREDICT = "predict"
    READ = "read"
    MODELS_ADMIN = "models:admin"
    AUDIT = "audit"


@dataclass(frozen=True)
class Caller:
    """Who sends a request. Callers of one tenant see the same predictions, and nobody else's."""

    name: str
    tenant: str
    scopes: frozenset[Scope]
    per_minute: int | None = None
    """Requests a minute; None: as the settings say."""
    max_body: int | None = None
    """Bytes of one request's body; None: as the settings say."""


@dataclass(frozen=True)
class ApiKey:
    """An API key as an operator may see it."""

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
    """Makes a key and returns its secret, which is kept nowhere.

    :param tenant: whose predictions it sees and makes; its own name unless given
    :param per_minute: how many requests a minute it may send; as the settings say unless given
    :param max_body: how many bytes one request may have; as the settings say unless given
    :raises InvalidRequest: for a scope that does not exist, or a name longer than 64 characters
    """
    try:
        granted = sorted({Scope(scope) for scope in scopes})
    except ValueError:
        raise InvalidRequest(f"A scope is one of {', '.join(Scope)}") from None
    if not 1 <= len(name) <= 64 or len(tenant or name) > 64:
        raise InvalidRequest("A key's name and tenant have 1 to 64 characters")
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
    """Whose key it is. Raises Unauthenticated for one that is unknown, expired or revoked, without saying which."""
    row = session.scalar(select(ApiKeyRow).where(ApiKeyRow.hash == _hash(secret)))
    if row is None or row.revoked or (row.expires and row.expires <= now()):
        raise Unauthenticated("Send a valid API key as `Authorization: Bearer <key>`")
    return Caller(row.name, row.tenant, frozenset(map(Scope, row.scopes)), row.per_minute, row.max_body)


def listed(session: Session) -> list[ApiKey]:
    """Every key ever made, oldest first."""
    rows = session.scalars(select(ApiKeyRow).order_by(ApiKeyRow.created, ApiKeyRow.id))
    return [
        ApiKey(row.id, row.name, row.tenant, tuple(map(Scope, row.scopes)), row.created, row.expires, row.revoked)
        for row in rows
    ]


def revoke(session: Session, key_id: str) -> bool:
    """Ends a key for good; returns whether there was one to end."""
    ended = update(ApiKeyRow).where(ApiKeyRow.id == key_id, ApiKeyRow.revoked.is_(None)).values(revoked=now())
    return session.execute(ended.returning(ApiKeyRow.id)).first() is not None


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode(errors="surrogatepass")).hexdigest()
