"""Tables of the DICOM destinations of results and of the deliveries to them.

A row of a delivery has states and counts only, no patient data. The credentials of a destination are sealed.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import ForeignKey, Integer, LargeBinary, String
from sqlalchemy.orm import Mapped, mapped_column

from app.database.study_tables import StudyRow
from app.database.tables import Base

__all__ = ["Base", "DeliveryRow", "DestinationRow", "StudyRow"]


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
