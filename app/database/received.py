"""Rows of received DICOM instances, and the study that each of them belongs to.

Design notes:
- The same instance again changes nothing. The same SOP Instance UID with other bytes is refused and counted.
- An instance whose bytes were deleted counts as new when it arrives again.
- A study is complete when as many instances have arrived as the sender has stated, else after a quiet time.
- New instances begin the quiet time of their study anew, and make the result of an assembly in progress void.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.database import records
from app.database.predictions import new_id
from app.database.session import now
from app.database.study_tables import InstanceRow, StudyRow
from app.database.upsert import insert_for
from app.sdk.studies import StudyState

__all__ = ["Known", "ReceivedInstance", "add", "counts", "has_arrived", "known", "study_row"]


@dataclass(frozen=True)
class ReceivedInstance:
    """An instance whose bytes are a blob.

    Attributes:
        content: sha-256 of the data set.
        digest: sha-256 of the file, which names the blob.
        bytes: size of the file.
        accession: keyed digest of the accession number.
    """

    caller: str
    study_uid: str
    series_uid: str
    sop_class: str
    uid: str
    content: str
    digest: str
    bytes: int
    accession: str | None = None


@dataclass(frozen=True)
class Known:
    """A known instance: sha-256 of its data set, and whether its bytes are stored."""

    content: str
    stored: bool


def known(session: Session, caller: str, uids: Iterable[str]) -> dict[str, Known]:
    """The known instances of these SOP Instance UIDs, at most some hundreds."""
    query = select(InstanceRow.uid, InstanceRow.content, InstanceRow.digest)
    rows = session.execute(query.where(InstanceRow.caller == caller, InstanceRow.uid.in_(list(uids))))
    return {uid: Known(content, digest is not None) for uid, content, digest in rows}


def counts(session: Session, caller: str, study_uids: Iterable[str]) -> dict[str, int]:
    """Number of instances of each of these studies."""
    query = select(StudyRow.uid, StudyRow.instances)
    rows = session.execute(query.where(StudyRow.caller == caller, StudyRow.uid.in_(list(study_uids))))
    return {str(uid): int(number) for uid, number in rows}


def add(session: Session, instances: Iterable[ReceivedInstance], *, quiet: float, clinical_wait: float = 0.0) -> int:
    """Add received instances to their studies.

    Args:
        session: a writing session.
        instances: the instances, whose blobs are stored.
        quiet: seconds without a new instance after which a study counts as complete.
        clinical_wait: the same for a study without a clinical record, if it is longer.

    Returns:
        The number of refused instances: another instance with the same UID was there first.
    """
    studies = defaultdict(list)
    for each in instances:
        studies[each.caller, each.study_uid].append(each)
    refused = 0
    for (caller, study_uid), received in sorted(studies.items()):  # the same order of locks prevents a deadlock
        row = study_row(session, caller, study_uid)
        new = 0
        for each in received:
            change = _add(session, row, each)
            refused += change is None
            row.conflicts += change is None
            new += bool(change)
            row.accession = row.accession or each.accession
        if new:
            records.join(session, row)
            row.received = now()
            if row.state != StudyState.CANCELLED:
                row.state, row.error, row.run = StudyState.RECEIVING, None, row.run + 1
                whole = has_arrived(row)
                wait = 0.0 if whole else quiet
                row.completed = "count" if whole else None
                row.due = row.received + timedelta(
                    seconds=wait if row.clinical is not None else max(wait, clinical_wait)
                )
        session.flush()
    return refused


def has_arrived(row: StudyRow) -> bool:
    """Whether as many instances have arrived as the sender has stated; False if it has stated none."""
    return row.expected is not None and row.instances >= row.expected


def study_row(session: Session, caller: str, study_uid: str) -> StudyRow:
    """The locked row of a study, which is created if there is none."""
    new = insert_for(session, StudyRow).values(
        id=new_id(),
        caller=caller,
        uid=study_uid,
        state=StudyState.WAITING,
        created=now(),
        instances=0,
        conflicts=0,
        run=0,
    )
    session.execute(new.on_conflict_do_nothing(index_elements=["caller", "uid"]))
    query = select(StudyRow).where(StudyRow.caller == caller, StudyRow.uid == study_uid)
    return session.scalars(query.with_for_update().execution_options(populate_existing=True)).one()


def _add(session: Session, study: StudyRow, new: ReceivedInstance) -> bool | None:
    """Whether the instance is new; None if another instance has its UID."""
    row = session.get(InstanceRow, (new.caller, new.uid), with_for_update=True)
    if row is None:
        study.instances += 1
        session.add(
            InstanceRow(
                caller=new.caller,
                uid=new.uid,
                study_id=study.id,
                series_uid=new.series_uid,
                sop_class=new.sop_class,
                content=new.content,
                digest=new.digest,
                bytes=new.bytes,
                received=now(),
            )
        )
        session.flush()
        return True
    if row.content != new.content:
        return None
    if row.digest is not None:
        return False
    row.digest, row.bytes, row.received = new.digest, new.bytes, now()
    return True
