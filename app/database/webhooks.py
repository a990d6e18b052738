"""Webhooks: addresses of a tenant that receive a message when a prediction has finished.

The secret is stored in plain text, because every message is signed with it (HMAC). It gives no access to this service.
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from app.database.session import now
from app.database.tables import PredictionRow, WebhookRow
from app.sdk.errors import InvalidRequest
from app.sdk.types import Status


@dataclass(frozen=True)
class Webhook:
    """One address of a tenant; nothing is sent to it after ``ended``."""

    id: str
    tenant: str
    url: str
    created: datetime
    ended: datetime | None
    secret: str = field(repr=False)


def create(session: Session, tenant: str, url: str) -> Webhook:
    """Creates a webhook with a new secret (``whsec_`` and 256 random bits). Raises InvalidRequest."""
    if not 1 <= len(tenant) <= 64:
        raise InvalidRequest("The tenant must have 1 to 64 characters")
    row = WebhookRow(
        id=secrets.token_hex(4),
        tenant=tenant,
        url=url,
        secret="whsec_" + base64.b64encode(secrets.token_bytes(32)).decode(),
        created=now(),
    )
    session.add(row)
    session.flush()
    return _webhook(row)


def listed(session: Session) -> list[Webhook]:
    """All webhooks, also ended ones, oldest first."""
    return [_webhook(row) for row in session.scalars(select(WebhookRow).order_by(WebhookRow.created, WebhookRow.id))]


def end(session: Session, webhook_id: str) -> bool:
    """Ends a webhook; returns False if there is no active webhook with this id."""
    ended = update(WebhookRow).where(WebhookRow.id == webhook_id, WebhookRow.ended.is_(None)).values(ended=now())
    return session.execute(ended.returning(WebhookRow.id)).first() is not None


def active(session: Session, webhook_ids: Iterable[str]) -> set[str]:
    """The given webhooks that are not removed."""
    return set(session.scalars(select(WebhookRow.id).where(WebhookRow.ended.is_(None)))) & set(webhook_ids)


def removals(session: Session) -> dict[str, datetime]:
    """Time of the removal of each removed webhook."""
    rows = session.execute(select(WebhookRow.id, WebhookRow.ended).where(WebhookRow.ended.is_not(None)))
    return {webhook_id: ended for webhook_id, ended in rows if ended is not None}


def find(session: Session, webhook_id: str) -> Webhook | None:
    """The webhook; None if it is unknown or ended."""
    row = session.get(WebhookRow, webhook_id)
    return None if row is None or row.ended else _webhook(row)


def subscribed(session: Session, prediction_id: str) -> list[str]:
    """Ids of the active webhooks of a prediction's tenant."""
    tenant = select(PredictionRow.caller).where(PredictionRow.id == prediction_id).scalar_subquery()
    active = select(WebhookRow.id).where(WebhookRow.tenant == tenant, WebhookRow.ended.is_(None))
    return list(session.scalars(active.order_by(WebhookRow.id)))


def finished(session: Session, prediction_id: str) -> tuple[Status, datetime] | None:
    """Status and end of a finished prediction; None if it has not finished or is erased."""
    row = session.get(PredictionRow, prediction_id)
    if row is None or row.erased or row.finished is None:
        return None
    return Status(row.status), row.finished


def _webhook(row: WebhookRow) -> Webhook:
    return Webhook(row.id, row.tenant, row.url, row.created, row.ended, row.secret)
