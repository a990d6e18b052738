"""Tables of the DICOM destinations of results, of the deliveries to them, and of storage commitment.

Design notes:
- A row of a delivery has states and counts only, no patient data. The credentials of a destination are sealed.
- A request for storage commitment names instances by their UIDs until it is answered, at most for a day.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, Integer, LargeBinary, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from app.database.study_tables import StudyRow
from app.database.tables import Base

__all__ = ["Base", "CommitmentRequestRow", "DeliveryRow", "DestinationRow", "StudyRow"]


class DestinationRow(Base):
    """A PACS that receives the results of a tenant's predictions; nothing is sent to it after ``ended``."""

    __tablename__ = "dicom_destinations"

    id: Mapped[str] = mapped_column(String(16), primary_key=True)
    tenant: Mapped[str] = mapped_column(String(64), index=True)
    name: Mapped[str] = mapped_column(String(64))
    kind: Mapped[str] = mapped_column(String(16))
    address: Mapped[str] = mapped_column(String(2000))  # URL of the studies service, or host:port
    called: Mapped[str] = mapped_column(String(16))
    calling: Mapped[str] = mapped_column(String(16))
    tls: Mapped[bool]
    results: Mapped[bool]  # False: studies are fetched from it, and no results are sent
    secret: Mapped[bytes | None] = mapped_column(LargeBinary)  # sealed value of the Authorization header
    created: Mapped[datetime]
    ended: Mapped[datetime | None]


class DeliveryRow(Base):
    """The delivery of one prediction to one destination; ``run`` counts requests to send, ``tries`` those of a run."""

    __tablename__ = "dicom_deliveries"

    prediction_id: Mapped[str] = mapped_column(ForeignKey("predictions.id"), primary_key=True)
    destination_id: Mapped[str] = mapped_column(ForeignKey("dicom_destinations.id"), primary_key=True)
    state: Mapped[str] = mapped_column(String(16), index=True)
    tries: Mapped[int] = mapped_column(Integer)
    run: Mapped[int] = mapped_column(Integer)
    reason: Mapped[str | None] = mapped_column(String(64))
    since: Mapped[datetime]
    changed: Mapped[datetime]
    commitment: Mapped[str | None] = mapped_column(String(16))  # what the archive says; None: it was not asked
    commitment_reason: Mapped[str | None] = mapped_column(String(64))
    transaction_uid: Mapped[str | None] = mapped_column(String(64), index=True)  # of the last request to the archive
    asked_items: Mapped[dict[str, Any] | None]  # of this request: whether each SOP Instance UID is committed


class CommitmentRequestRow(Base):
    """A request for storage commitment that a sender made, until it is answered."""

    __tablename__ = "commitment_requests"
    __table_args__ = (UniqueConstraint("tenant", "title", "transaction_uid", name="commitment_requests_transaction"),)

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    tenant: Mapped[str] = mapped_column(String(64))
    title: Mapped[str] = mapped_column(String(16))  # AE title of the sender
    transaction_uid: Mapped[str] = mapped_column(String(64))
    instances: Mapped[list[Any]]  # SOP Class UID and SOP Instance UID of each
    created: Mapped[datetime]
    due: Mapped[datetime] = mapped_column(index=True)  # of the next try to answer; later while one is made
    tries: Mapped[int] = mapped_column(Integer)
