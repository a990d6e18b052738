"""Tables of DICOM studies: what was received, what became of it, and where results go back to.

Design notes:
- The bytes of an instance are a blob. Its row names the blob until the bytes are deleted.
- UIDs are identifiers of a patient, so an erasure of the study deletes its rows.
- `return_addresses` holds ciphertext only (`app.dicom.return_address`).
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Index, Integer, LargeBinary, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from app.database.tables import Base


class StudyRow(Base):
    """A study that was received, or whose clinical record was received."""

    __tablename__ = "studies"
    __table_args__ = (
        UniqueConstraint("caller", "uid", name="studies_uid"),
        Index("studies_page", "caller", "created"),
        Index("studies_due", "state", "due"),
    )

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    caller: Mapped[str] = mapped_column(String(64))
    uid: Mapped[str] = mapped_column(String(64))
    state: Mapped[str] = mapped_column(String(16))
    created: Mapped[datetime]
    received: Mapped[datetime | None]  # when the last new instance arrived
    due: Mapped[datetime | None]  # when the study is assembled, unless more arrives; None: not at all
    completed: Mapped[str | None] = mapped_column(String(16))  # what completed it: quiet, count, call, roles, clinical
    expected: Mapped[int | None] = mapped_column(Integer)  # number of instances that the sender has stated
    accession: Mapped[str | None] = mapped_column(String(64), index=True)  # keyed digest of the accession number
    pull: Mapped[dict[str, Any] | None]  # the last request to fetch it: number, archive, state, reason
    instances: Mapped[int] = mapped_column(Integer, default=0)
    conflicts: Mapped[int] = mapped_column(Integer, default=0)  # refused: a known SOP Instance UID with other bytes
    run: Mapped[int] = mapped_column(Integer, default=0)  # fencing token: number of the assembly; only the last writes
    series: Mapped[list[Any] | None]  # what each series was taken for at the last assembly
    roles: Mapped[dict[str, Any] | None]  # roles that a caller states, by series UID
    clinical: Mapped[dict[str, Any] | None]
    assembled: Mapped[str | None] = mapped_column(String(64))  # digest of what the last revision was made of
    error: Mapped[dict[str, Any] | None]


class WaitingRecordRow(Base):
    """A clinical record whose study has not arrived yet."""

    __tablename__ = "waiting_records"
    __table_args__ = (UniqueConstraint("caller", "accession", name="waiting_records_accession"),)

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    caller: Mapped[str] = mapped_column(String(64))
    accession: Mapped[str] = mapped_column(String(64))  # keyed digest of the accession number
    clinical: Mapped[dict[str, Any]]
    created: Mapped[datetime] = mapped_column(index=True)


class InstanceRow(Base):
    """One received instance. ``digest`` names its blob, and is None after the bytes were deleted."""

    __tablename__ = "instances"
    __table_args__ = (Index("instances_series", "study_id", "series_uid"),)

    caller: Mapped[str] = mapped_column(String(64), primary_key=True)
    uid: Mapped[str] = mapped_column(String(64), primary_key=True)
    study_id: Mapped[str] = mapped_column(ForeignKey("studies.id"))
    series_uid: Mapped[str] = mapped_column(String(64))
    sop_class: Mapped[str] = mapped_column(String(64))
    content: Mapped[str] = mapped_column(String(64))  # sha-256 of the data set, without file meta information
    digest: Mapped[str | None] = mapped_column(String(64), index=True)
    bytes: Mapped[int] = mapped_column(BigInteger)
    received: Mapped[datetime]


class StudyPredictionRow(Base):
    """A prediction of a study: revision 1, and a further one each time that its inputs have changed."""

    __tablename__ = "study_predictions"

    study_id: Mapped[str] = mapped_column(ForeignKey("studies.id"), primary_key=True)
    revision: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    prediction_id: Mapped[str] = mapped_column(ForeignKey("predictions.id"), unique=True)
    why: Mapped[str] = mapped_column(String(16))
    created: Mapped[datetime]


class ReturnAddressRow(Base):
    """The sealed return address of a prediction."""

    __tablename__ = "return_addresses"

    prediction_id: Mapped[str] = mapped_column(ForeignKey("predictions.id"), primary_key=True)
    sealed: Mapped[bytes] = mapped_column(LargeBinary)
