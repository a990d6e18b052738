"""Queries and changes of received studies: their state, their assembly, their predictions and their erasure.

Design notes:
- A caller (a tenant) sees only the studies of the tenant; other UIDs are answered as unknown.
- An assembly holds a claim: a number (``run``) and an end. What happens to the study meanwhile raises the number, and
  then the result of the assembly is not written. A process at work renews its claim; one that has ended is taken over.
- Prediction, its link to the study and its return address are one transaction, so a study has each revision once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import delete, func, or_, select, tuple_
from sqlalchemy.orm import Session

from app.database import records
from app.database.received import has_arrived, study_row
from app.database.session import now
from app.database.study_documents import documents
from app.database.study_stop import UNFINISHED, stop
from app.database.study_tables import InstanceRow, StudyPredictionRow, StudyRow
from app.database.tables import PredictionRow
from app.sdk.errors import Conflict, NotFound
from app.sdk.series import SeriesRole
from app.sdk.studies import ReceivedStudy, ReceivedStudyPage, StudyState
from app.sdk.types import Failure, Status

_RESTING = (StudyState.PREDICTED, StudyState.REFUSED)


@dataclass(frozen=True)
class Assembly:
    """A claimed study.

    Attributes:
        id: id of its row.
        run: number of the claim.
        why: what completed the study.
        digests: blobs of its instances, in the order of their UIDs.
        assembled: digest of what the last revision was made of; None if there is none, or a call repeats it.
        revision: number of the next revision.
    """

    id: str
    caller: str
    uid: str
    run: int
    why: str
    digests: tuple[str, ...]
    roles: Mapping[str, SeriesRole]
    clinical: Mapping[str, Any] | None
    assembled: str | None
    revision: int


def find(session: Session, caller: str | None, uid: str) -> ReceivedStudy:
    """A study in its present state. Raises NotFound."""
    return _study(session, _row(session, caller, uid))


def page(
    session: Session, caller: str | None, *, limit: int = 50, cursor: str | None = None, accession: str | None = None
) -> ReceivedStudyPage:
    """Studies of a caller, newest first.

    Args:
        session: a session.
        caller: the tenant; None for all.
        limit: most studies of a page.
        cursor: ``next`` of the page before.
        accession: only studies with this digest of their accession number.
    """
    query = select(StudyRow).order_by(StudyRow.created.desc(), StudyRow.id.desc())
    if caller is not None:
        query = query.where(StudyRow.caller == caller)
    if accession is not None:
        query = query.where(StudyRow.accession == accession)
    if cursor is not None:
        before = select(StudyRow.created).where(StudyRow.id == cursor).scalar_subquery()
        query = query.where(tuple_(StudyRow.created, StudyRow.id) < tuple_(before, cursor))
    rows = list(session.scalars(query.limit(limit + 1)))
    more, rows = len(rows) > limit, rows[:limit]
    return ReceivedStudyPage(items=documents(session, rows), next=rows[-1].id if more else None)


def complete(
    session: Session, caller: str, uid: str, *, instances: int | None = None, quiet: float = 30.0
) -> ReceivedStudy:
    """Assemble a study now, or as soon as it has a stated number of instances.

    Args:
        session: a writing session.
        caller: the tenant.
        uid: Study Instance UID.
        instances: the number; None: now.
        quiet: seconds after which a study is complete that was cancelled or had fewer, if the number is not reached.

    Raises:
        NotFound: there is no such study.
        Conflict: nothing of it was received, and no number is stated.
    """
    row = _row(session, caller, uid, lock=True)
    if instances is not None:
        expect(row, instances)
        if not has_arrived(row) and (row.state == StudyState.CANCELLED or row.completed == "count"):
            _receive_again(row, quiet)
    elif row.instances:
        _begin(row, "call")
    else:
        raise Conflict("No instance of this study has arrived yet. Send them first.")
    return _study(session, row)


def expect(row: StudyRow, instances: int) -> None:
    """State how many instances the study has; it is assembled when they are here, if it was not assembled before."""
    row.expected = instances
    if not has_arrived(row):
        return
    if row.state == StudyState.CANCELLED or (row.state == StudyState.RECEIVING and row.clinical is not None):
        _begin(row, "count")
    elif row.state == StudyState.RECEIVING:
        row.completed = "count"  # it still waits for its clinical record


def _receive_again(row: StudyRow, quiet: float) -> None:
    """Let a study wait for the rest of its instances, unless it is assembled already."""
    if row.state == StudyState.CANCELLED:
        row.state = StudyState.RECEIVING if row.instances else StudyState.WAITING
    if row.state == StudyState.RECEIVING and row.instances:
        row.completed, row.due = None, now() + timedelta(seconds=quiet)


def set_roles(session: Session, caller: str, uid: str, roles: Mapping[str, SeriesRole]) -> ReceivedStudy:
    """State roles by series UID, in place of those stated before; an assembled study is assembled again."""
    row = _row(session, caller, uid, lock=True)
    row.roles = {name: role.value for name, role in roles.items()} or None
    _restart(row, "roles")
    return _study(session, row)


def set_clinical(session: Session, caller: str, uid: str, record: Mapping[str, Any], *, quiet: float) -> ReceivedStudy:
    """Store the clinical record of a study, also before its images; an assembled study is assembled again."""
    row = study_row(session, caller, uid)
    row.clinical = dict(record)
    if row.state == StudyState.RECEIVING and row.received is not None and row.due is not None:
        wait = 0.0 if row.completed == "count" else quiet
        row.due = min(row.due, row.received + timedelta(seconds=wait))  # it no longer waits for the record
    _restart(row, "clinical")
    return _study(session, row)


def cancel(session: Session, caller: str, uid: str) -> tuple[ReceivedStudy, list[str]]:
    """Make no prediction of what arrives until the study is completed by a call.

    Returns:
        The study, and its predictions that have not finished.
    """
    row = _row(session, caller, uid, lock=True)
    stop(row)
    session.flush()
    unfinished = select(PredictionRow.id).join(StudyPredictionRow, StudyPredictionRow.prediction_id == PredictionRow.id)
    unfinished = unfinished.where(
        StudyPredictionRow.study_id == row.id,
        PredictionRow.status.in_([Status.QUEUED, Status.RUNNING]),
        PredictionRow.erased.is_(None),
    )
    return _study(session, row), list(session.scalars(unfinished.order_by(PredictionRow.id)))


def is_due(session: Session) -> bool:
    """Whether any study waits for its assembly."""
    return session.scalars(select(StudyRow.id).where(*_due()).limit(1)).first() is not None


def arriving(session: Session, *, most: int) -> list[tuple[str, int]]:
    """Ids and numbers of instances of the newest studies of which instances have arrived and that are not claimed."""
    waiting = select(StudyRow.id, StudyRow.instances).where(
        StudyRow.state == StudyState.RECEIVING, StudyRow.instances > 0
    )
    newest = waiting.order_by(StudyRow.created.desc(), StudyRow.id).limit(most)
    return [(study, count) for study, count in session.execute(newest)]


def any_received(session: Session) -> bool:
    """Whether the service has ever received instances, except of erased studies."""
    return session.scalars(select(StudyRow.id).where(StudyRow.instances > 0).limit(1)).first() is not None


def blobs(session: Session, study_id: str) -> list[str]:
    """Digests of the blobs of a study, in the order of the UIDs of its instances."""
    named = select(InstanceRow.digest).where(InstanceRow.study_id == study_id, InstanceRow.digest.is_not(None))
    return [str(digest) for digest in session.scalars(named.order_by(InstanceRow.uid))]


def claim(session: Session, *, lease: float) -> Assembly | None:
    """Claim the study that has waited longest for its assembly, for ``lease`` seconds; None if there is none."""
    query = select(StudyRow).where(*_due()).order_by(StudyRow.due).limit(1)
    row = session.scalars(query.with_for_update(skip_locked=True)).one_or_none()
    if row is None:
        return None
    records.join(session, row)
    row.completed = row.completed or "quiet"
    row.state, row.run, row.due = StudyState.ASSEMBLING, row.run + 1, now() + timedelta(seconds=lease)
    session.flush()
    revision, status = _last_revision(session, row)
    ended_without = status in (Status.CANCELLED, Status.FAILED) and row.completed == "call"
    return Assembly(
        id=row.id,
        caller=row.caller,
        uid=row.uid,
        run=row.run,
        why=row.completed,
        digests=tuple(blobs(session, row.id)),
        roles={name: SeriesRole(role) for name, role in (row.roles or {}).items()},
        clinical=row.clinical,
        assembled=None if ended_without else row.assembled,  # a call makes the prediction that there is none of
        revision=revision + 1,
    )


def _last_revision(session: Session, row: StudyRow) -> tuple[int, str | None]:
    """Number of the last revision of a study, and the status of its prediction; 0 and None if there is none."""
    query = select(StudyPredictionRow.revision, PredictionRow.status)
    query = query.join(PredictionRow, PredictionRow.id == StudyPredictionRow.prediction_id)
    query = query.where(StudyPredictionRow.study_id == row.id).order_by(StudyPredictionRow.revision.desc()).limit(1)
    last = session.execute(query).first()
    return (0, None) if last is None else (last.revision, last.status)


def renew(session: Session, claimed: Assembly, *, lease: float) -> bool:
    """Keep a claim for ``lease`` seconds from now; returns False if it is void."""
    row = _claimed(session, claimed)
    if row is not None:
        row.due = now() + timedelta(seconds=lease)
    return row is not None


def holds(session: Session, claimed: Assembly) -> bool:
    """Whether a claim is not void; it stays so until the end of the transaction."""
    return _claimed(session, claimed) is not None


def predicted(
    session: Session,
    claimed: Assembly,
    *,
    series: Sequence[Mapping[str, Any]],
    assembled: str,
    prediction_id: str | None,
) -> bool:
    """Write the result of an assembly; without ``prediction_id`` its inputs are those of the last revision.

    Returns:
        False if the claim is void: then the caller writes nothing either.
    """
    row = _claimed(session, claimed)
    if row is None:
        return False
    row.state, row.due, row.error = StudyState.PREDICTED, None, None
    row.series, row.assembled = [dict(each) for each in series], assembled
    if prediction_id is not None:
        link = {"study_id": row.id, "revision": claimed.revision, "prediction_id": prediction_id}
        session.add(StudyPredictionRow(**link, why=claimed.why, created=now()))
    session.flush()
    return True


def refused(session: Session, claimed: Assembly, failure: Failure) -> bool:
    """Write that the study cannot be used; returns False if the claim is void."""
    row = _claimed(session, claimed)
    if row is not None:
        row.state, row.due, row.error = StudyState.REFUSED, None, failure.model_dump(mode="json")
        session.flush()
    return row is not None


def postpone(session: Session, claimed: Assembly, *, seconds: float) -> None:
    """Give the claim back: the study is assembled again after some seconds."""
    row = _claimed(session, claimed)
    if row is not None:
        row.state, row.due = StudyState.RECEIVING, now() + timedelta(seconds=seconds)
        session.flush()


def forget_bytes(session: Session, before: datetime) -> int:
    """Unname the blobs of instances of assembled studies that arrived before a time; returns their number."""
    resting = select(StudyRow.id).where(
        StudyRow.state.not_in(UNFINISHED), or_(StudyRow.received.is_(None), StudyRow.received < before)
    )
    old = select(InstanceRow).where(InstanceRow.study_id.in_(resting), InstanceRow.digest.is_not(None))
    rows = list(session.scalars(old.limit(5000)))
    for row in rows:
        row.digest = None
    session.flush()
    return len(rows)


def _due() -> tuple[Any, ...]:
    return StudyRow.state.in_(UNFINISHED), StudyRow.due <= now()


def _begin(row: StudyRow, why: str) -> None:
    row.state, row.due, row.completed, row.error, row.run = StudyState.RECEIVING, now(), why, None, row.run + 1


def _restart(row: StudyRow, why: str) -> None:
    """Assemble again what was assembled, or is being assembled, without the change."""
    if row.state in (*_RESTING, StudyState.ASSEMBLING):
        _begin(row, why)


def _claimed(session: Session, claimed: Assembly) -> StudyRow | None:
    row = session.get(StudyRow, claimed.id, with_for_update=True)
    return row if row is not None and (row.run, row.state) == (claimed.run, StudyState.ASSEMBLING) else None


def _row(session: Session, caller: str | None, uid: str, *, lock: bool = False) -> StudyRow:
    query = select(StudyRow).where(StudyRow.uid == uid)
    if caller is not None:
        query = query.where(StudyRow.caller == caller)
    row = session.scalars(query.with_for_update() if lock else query).first()
    if row is None:
        raise NotFound("There is no such study.")
    return row


def _study(session: Session, row: StudyRow) -> ReceivedStudy:
    return documents(session, [row])[0]


def identify(session: Session, caller: str | None, uid: str) -> tuple[str, list[str]]:
    """Id of a study, and of its predictions that are not erased. Raises NotFound."""
    row = _row(session, caller, uid)
    links = select(StudyPredictionRow.prediction_id).where(StudyPredictionRow.study_id == row.id)
    kept = select(PredictionRow.id).where(PredictionRow.id.in_(links), PredictionRow.erased.is_(None))
    return row.id, list(session.scalars(kept.order_by(PredictionRow.id)))


def existing(session: Session, ids: Iterable[str]) -> set[str]:
    """The given ids of studies that the database has."""
    listed, found = list(ids), set[str]()
    for start in range(0, len(listed), 500):  # databases limit the parameters of one statement
        found |= set(session.scalars(select(StudyRow.id).where(StudyRow.id.in_(listed[start : start + 500]))))
    return found


def old(session: Session, before: datetime, *, most: int) -> list[tuple[str, str]]:
    """Tenant and UID of studies that have changed last before a time, and have no prediction that is kept."""
    links = select(StudyPredictionRow.study_id).join(
        PredictionRow, PredictionRow.id == StudyPredictionRow.prediction_id
    )
    last = func.coalesce(StudyRow.received, StudyRow.created)
    query = select(StudyRow.caller, StudyRow.uid).where(
        last < before,
        StudyRow.state.not_in(UNFINISHED),
        StudyRow.id.not_in(links.where(PredictionRow.erased.is_(None))),
    )
    return [(caller, uid) for caller, uid in session.execute(query.order_by(last).limit(most))]


def erase(session: Session, study_id: str) -> list[str] | None:
    """Delete a study with its instances and links; its predictions are erased by themselves.

    Returns:
        Digests of the instances, for `Storage.delete` after the commit; None if there is no such study.
    """
    row = session.get(StudyRow, study_id, with_for_update=True)
    if row is None:
        return None
    digests = set(blobs(session, study_id))
    for table in (StudyPredictionRow, InstanceRow):
        session.execute(delete(table).where(table.study_id == study_id))
    session.execute(delete(StudyRow).where(StudyRow.id == study_id))
    if row.accession is not None:
        records.withdraw(session, row.caller, row.accession)
    session.flush()
    return sorted(digests)
