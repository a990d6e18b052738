"""Webhooks: where a tenant wants to be told that a prediction has finished.

The secret is kept as it is, because every message is signed with it (HMAC); so it opens nothing here, and whoever can
read this table can already read the predictions.
"""

from __future__ import annotations

import base64
import secrets
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
    """One address of a tenant; ``ended``: nothing is sent there any more."""

    id: str
    tenant: str
    url: str
    created: datetime
    ended: datetime | None
    secret: str = field(repr=False)


def create(session: Session, tenant: str, url: str) -> Webhook:
    """Makes a webhook with a fresh secret (``whsec_`` and 256 random bits). Raises InvalidRequest."""
    if not 1 <= len(tenant) <= 64:
        raise InvalidRequest("A tenant has 1 to 64 characters")
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
    """Every webhook ever made, oldest first."""
    return [_webhook(row) for row in session.scalars(select(WebhookRow).order_by(WebhookRow.created, WebhookRow.id))]


def end(session: Session, webhook_id: str) -> bool:
    """Sends nothing more there; returns whether there was one to end."""
    ended = update(WebhookRow).where(WebhookRow.id == webhook_id, WebhookRow.ended.is_(None)).values(ended=now())
    return session.execute(ended.returning(WebhookRow.id)).first() is not None


def find(session: Session, webhook_id: str) -> Webhook | None:
    """The webhook, unless it was ended or never was."""
    row = session.get(WebhookRow, webhook_id)
    return None if row is None or row.ended else _webhook(row)


def wanting(session: Session, prediction_id: str) -> list[str]:
    """The ids of the webhooks that want to know of this prediction: its tenant's."""
    tenant = select(PredictionRow.caller).where(PredictionRow.id == prediction_id).scalar_subquery()
    mine = select(WebhookRow.id).where(WebhookRow.tenant == tenant, WebhookRow.ended.is_(None))
    return list(session.scalars(mine.order_by(WebhookRow.id)))


def news(session: Session, prediction_id: str) -> tuple[Status, datetime] | None:
    """How and when a prediction finished; None where it has not, or was erased since."""
    row = session.get(PredictionRow, prediction_id)
    if row is None or row.erased or row.finished is None:
        return None
    return Status(row.status), row.finished


def _webhook(row: WebhookRow) -> Webhook:
    return Webhook(row.id, row.tenant, row.url, row.created, row.ended, row.secret)
