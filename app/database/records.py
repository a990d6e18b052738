"""Clinical records that were sent by accession number: which study they belong to, or that they wait for one.

Design notes:
- The accession number is a keyed digest, as in the rows of the studies.
- A waiting record is joined to the first study that arrives with its number and has no record, and is deleted then.
- Arrival and record can be committed at the same time, so a record is looked for again when the study is assembled.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from app.database.predictions import new_id
from app.database.session import now
from app.database.study_tables import StudyRow, WaitingRecordRow
from app.database.upsert import insert_for
from app.sdk.errors import Conflict

__all__ = ["forget", "join", "keep", "study_of", "withdraw"]


def study_of(session: Session, caller: str, accession: str) -> str | None:
    """UID of the study with an accession number; None if none has arrived yet.

    Raises:
        Conflict: several studies have this number.
    """
    found = list(
        session.scalars(select(StudyRow.uid).where(StudyRow.caller == caller, StudyRow.accession == accession).limit(2))
    )
    if len(found) > 1:
        raise Conflict(
            "Several studies have this accession number. Send the record to one of them by its Study Instance UID: "
            "GET /v1/studies?accession_number= lists them, PUT /v1/studies/{uid}/clinical takes it."
        )
    return found[0] if found else None


def keep(session: Session, caller: str, accession: str, record: Mapping[str, Any]) -> str:
    """Store a record until its study arrives, in place of an earlier one; returns the id of its row."""
    new = {"clinical": dict(record), "created": now()}
    row = insert_for(session, WaitingRecordRow).values(id=new_id(), caller=caller, accession=accession, **new)
    session.execute(row.on_conflict_do_update(index_elements=["caller", "accession"], set_=new))
    return session.scalars(select(WaitingRecordRow.id).where(*_of(caller, accession))).one()


def join(session: Session, study: StudyRow) -> bool:
    """Give a study without a clinical record the one that waits for it; returns whether there was one."""
    if study.clinical is not None or study.accession is None:
        return False
    waiting = select(WaitingRecordRow).where(*_of(study.caller, study.accession))
    row = session.scalars(waiting.with_for_update()).one_or_none()
    if row is None:
        return False
    study.clinical = row.clinical
    session.delete(row)
    session.flush()
    return True


def withdraw(session: Session, caller: str, accession: str) -> bool:
    """Delete a waiting record; returns False if there is none."""
    found = session.scalars(select(WaitingRecordRow).where(*_of(caller, accession))).one_or_none()
    if found is not None:
        session.delete(found)
    return found is not None


def forget(session: Session, before: datetime) -> None:
    """Delete the records whose study has not arrived."""
    session.execute(delete(WaitingRecordRow).where(WaitingRecordRow.created < before))


def _of(caller: str, accession: str) -> tuple[Any, ...]:
    return WaitingRecordRow.caller == caller, WaitingRecordRow.accession == accession
