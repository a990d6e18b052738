"""Limits of the waiting predictions, so that no tenant and no batch takes the place of another tenant's acute study.

Design notes:
- A share of the places is for acute studies only. Half of it is for tenants that have no waiting acute study.
- One tenant may take a share of the places of each priority. With the default shares, some always remain for others.
- `admit` counts in the transaction that inserts the prediction. These transactions run one after the other, so
  concurrent requests exceed no limit.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import floor

from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from app.core.config import Settings
from app.database import fair_queue
from app.database.tables import PredictionRow
from app.sdk.errors import QueueFull
from app.sdk.types import Priority, Status

RETRY_AFTER = 10.0  # seconds; a worker completes a study in about this time
_LOCK = 0x726C7671  # "rlvq" in hexadecimal; any number without another use


@dataclass(frozen=True)
class QueueLimits:
    """Number of waiting predictions that the service accepts.

    Attributes:
        places: All predictions.
        acute_share: Fraction of the places that only acute studies may take.
        tenant_share: Fraction of the places of each priority that one tenant may take.
    """

    places: int
    acute_share: float
    tenant_share: float

    @classmethod
    def of(cls, settings: Settings) -> QueueLimits:
        """The limits that the settings describe."""
        return cls(settings.queue_limit, settings.queue_acute_share, settings.queue_tenant_share)

    @property
    def shared(self) -> int:
        """Places that all may take; the others are for tenants that have no waiting acute study."""
        return max(1, self.places - floor(self.places * self.acute_share / 2))

    def of_priority(self, priority: Priority) -> int:
        """Places of all studies of a priority."""
        if priority is Priority.ACUTE:
            return self.places
        return max(1, floor(self.places * (1 - self.acute_share)))

    def of_tenant(self, priority: Priority) -> int:
        """Places of one tenant's studies of a priority."""
        return max(1, floor(self.of_priority(priority) * self.tenant_share))


def admit(session: Session, limits: QueueLimits, tenant: str, priority: Priority) -> None:
    """Checks that there is a place for one more study, which this transaction then inserts.

    Other calls wait until the transaction has ended. Raises QueueFull.
    """
    if session.get_bind().dialect.name == "postgresql":  # a writing transaction of SQLite has the only write lock
        session.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
    check(session, limits, tenant, priority)


def check(session: Session, limits: QueueLimits, tenant: str, priority: Priority) -> None:
    """Raises QueueFull if there is no place for one more study of the tenant now."""
    row, count = PredictionRow, func.count(PredictionRow.id)
    same_priority = row.queue_position.between(*fair_queue.span(priority))
    of_all, of_priority, of_tenant = session.execute(
        select(count, count.filter(same_priority), count.filter(same_priority, row.caller == tenant)).where(
            row.status == Status.QUEUED
        )
    ).one()
    first_acute = priority is Priority.ACUTE and of_tenant == 0
    if of_tenant >= limits.of_tenant(priority):
        raise _full(f"At most {limits.of_tenant(priority)} {priority} studies of one tenant may wait.")
    if of_priority >= limits.of_priority(priority):
        raise _full(f"At most {limits.of_priority(priority)} {priority} studies may wait.")
    if of_all >= (limits.places if first_acute else limits.shared):
        raise _full("The queue is full.")


def _full(rule: str) -> QueueFull:
    return QueueFull(f"{rule} Send the study again in {RETRY_AFTER:.0f} seconds.", retry_after=RETRY_AFTER)
