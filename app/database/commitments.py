"""Storage commitment in the database: what archives say of delivered results, and what senders ask of the listener.

Design notes:
- The transaction of a request to an archive is noted before the request is sent, because the answer can come first.
- An answer counts for the instances that it names. While some are not named the request is open, and is made again.
- A request of a sender is noted before the sender is told success. Its answer is due until the sender has taken it; a
  process that answers moves the due time, so two processes do not answer at the same time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, delete, func, select
from sqlalchemy.orm import Session

from app.database.destination_tables import CommitmentRequestRow, DeliveryRow, DestinationRow
from app.database.destinations import Destination, DestinationKind, find
from app.database.predictions import new_id
from app.database.session import now
from app.database.study_tables import InstanceRow
from app.database.upsert import insert_for
from app.sdk.deliveries import CommitmentState, DeliveryState

__all__ = [
    "INCOMPLETE",
    "CommitmentRequest",
    "NotedReport",
    "answered",
    "ask",
    "claim",
    "counts",
    "expects_report",
    "is_due",
    "note",
    "postpone",
    "receiver",
    "report",
    "request",
    "stored",
]

INCOMPLETE = "incomplete"
"""Reason of a request that is open because the answer leaves instances out."""
Reference = tuple[str, str]
"""SOP Class UID and SOP Instance UID."""


@dataclass(frozen=True)
class CommitmentRequest:
    """A request of a sender that is to be answered."""

    id: str
    tenant: str
    title: str
    transaction_uid: str
    instances: tuple[Reference, ...]
    created: datetime
    tries: int


@dataclass(frozen=True)
class NotedReport:
    """State of the commitment of a delivered result after a report, and whether the report has changed it."""

    prediction_id: str
    state: CommitmentState
    reason: str | None
    changed: bool


def ask(
    session: Session, prediction_id: str, destination_id: str, run: int, transaction_uid: str, uids: Iterable[str]
) -> bool:
    """Note that an archive is asked now for these instances; returns False if another run has replaced this one."""
    delivery = session.get(DeliveryRow, (prediction_id, destination_id), with_for_update=True)
    if delivery is None or delivery.run != run:
        return False
    delivery.commitment, delivery.commitment_reason = CommitmentState.ASKED, None
    delivery.transaction_uid, delivery.asked_items = transaction_uid, dict.fromkeys(uids, False)
    return True


def note(
    session: Session, prediction_id: str, destination_id: str, run: int, state: CommitmentState, reason: str = ""
) -> None:
    """Note what became of a request, unless the archive has answered it meanwhile."""
    delivery = session.get(DeliveryRow, (prediction_id, destination_id), with_for_update=True)
    if delivery is not None and delivery.run == run and delivery.commitment == CommitmentState.ASKED:
        delivery.commitment, delivery.commitment_reason = state, reason[:64] or delivery.commitment_reason


def report(
    session: Session,
    tenant: str,
    title: str,
    transaction_uid: str,
    committed: Collection[str],
    failed: Mapping[str, str],
) -> NotedReport | None:
    """Note the answer of an archive, or a part of it.

    It counts for the instances that it names. All of the request must be committed; a failed one refuses the whole.

    Args:
        session: a writing session.
        tenant: tenant of the archive, by the callers of the listener.
        title: its AE title.
        transaction_uid: transaction that it answers.
        committed: SOP Instance UIDs that the archive keeps.
        failed: why it does not keep others, by SOP Instance UID.

    Returns:
        What is known now; None if nothing was asked in this transaction.
    """
    asked = select(DeliveryRow).join(DestinationRow).where(DeliveryRow.transaction_uid == transaction_uid)
    asked = asked.where(DestinationRow.tenant == tenant, DestinationRow.called == title)
    row = session.scalars(asked.with_for_update()).one_or_none()
    if row is None:
        return None
    before = row.commitment, row.commitment_reason
    items: dict[str, bool] = row.asked_items or {}  # an earlier release did not note them
    items = {uid: uid not in failed and (kept or uid in committed) for uid, kept in items.items()}
    row.asked_items = items
    reasons = Counter(reason for uid, reason in failed.items() if uid in items)
    if reasons:
        row.commitment, row.commitment_reason = CommitmentState.REFUSED, reasons.most_common(1)[0][0][:64]
    elif items and all(items.values()):
        row.commitment, row.commitment_reason = CommitmentState.COMMITTED, None
    elif row.commitment == CommitmentState.ASKED:
        row.commitment_reason = INCOMPLETE
    changed = (row.commitment, row.commitment_reason) != before
    return NotedReport(row.prediction_id, CommitmentState(str(row.commitment)), row.commitment_reason, changed)


def expects_report(session: Session, tenant: str, title: str) -> bool:
    """Whether an archive with this AE title was asked and has not answered yet."""
    asked = select(DeliveryRow.run).join(DestinationRow).where(DeliveryRow.commitment == CommitmentState.ASKED)
    asked = asked.where(DestinationRow.tenant == tenant, DestinationRow.called == title)
    return session.scalars(asked.limit(1)).first() is not None


def counts(session: Session) -> dict[CommitmentState, int]:
    """Number of delivered results in each state."""
    rows = session.execute(
        select(DeliveryRow.commitment, func.count())
        .where(DeliveryRow.commitment.is_not(None), DeliveryRow.state == DeliveryState.DELIVERED)
        .group_by(DeliveryRow.commitment)
    )
    found = {str(state): int(count) for state, count in rows}
    return {state: found.get(state.value, 0) for state in CommitmentState}


def request(
    session: Session, tenant: str, title: str, transaction_uid: str, instances: Sequence[Reference], *, delay: float
) -> None:
    """Note a request of a sender, which is answered after ``delay`` seconds; a known transaction changes nothing."""
    new = insert_for(session, CommitmentRequestRow).values(
        id=new_id(),
        tenant=tenant,
        title=title,
        transaction_uid=transaction_uid,
        instances=[list(each) for each in instances],
        created=now(),
        due=now() + timedelta(seconds=delay),
        tries=0,
    )
    session.execute(new.on_conflict_do_nothing(index_elements=["tenant", "title", "transaction_uid"]))


def is_due(session: Session) -> bool:
    """Whether any request waits for its answer."""
    return session.scalars(select(CommitmentRequestRow.id).where(_due()).limit(1)).first() is not None


def claim(session: Session, *, lease: float) -> CommitmentRequest | None:
    """Claim the request that has been due longest, for ``lease`` seconds; None if there is none."""
    due = select(CommitmentRequestRow).where(_due()).order_by(CommitmentRequestRow.due)
    row = session.scalars(due.limit(1).with_for_update(skip_locked=True)).one_or_none()
    if row is None:
        return None
    row.due, row.tries = now() + timedelta(seconds=lease), row.tries + 1
    session.flush()
    uids = tuple((str(sop_class), str(uid)) for sop_class, uid in row.instances)
    return CommitmentRequest(row.id, row.tenant, row.title, row.transaction_uid, uids, row.created, row.tries)


def postpone(session: Session, request_id: str, *, seconds: float) -> None:
    """Answer a request again after some seconds."""
    row = session.get(CommitmentRequestRow, request_id, with_for_update=True)
    if row is not None:
        row.due = now() + timedelta(seconds=seconds)


def answered(session: Session, request_id: str) -> None:
    """Delete a request that was answered or given up."""
    session.execute(delete(CommitmentRequestRow).where(CommitmentRequestRow.id == request_id))


def stored(session: Session, tenant: str, uids: Sequence[str]) -> dict[str, tuple[str, str]]:
    """SOP class and blob of the instances whose bytes are stored, by SOP Instance UID."""
    found: dict[str, tuple[str, str]] = {}
    for start in range(0, len(uids), 500):  # databases limit the parameters of one statement
        rows = select(InstanceRow.uid, InstanceRow.sop_class, InstanceRow.digest).where(
            InstanceRow.caller == tenant,
            InstanceRow.uid.in_(uids[start : start + 500]),
            InstanceRow.digest.is_not(None),
        )
        found |= {uid: (sop_class, str(digest)) for uid, sop_class, digest in session.execute(rows)}
    return found


def receiver(session: Session, tenant: str, title: str) -> Destination | None:
    """The destination that a sender with this AE title is; None if its address is not known."""
    ids = select(DestinationRow.id).where(
        DestinationRow.tenant == tenant,
        DestinationRow.called == title,
        DestinationRow.kind == DestinationKind.C_STORE,
        DestinationRow.ended.is_(None),
    )
    first = session.scalars(ids.order_by(DestinationRow.created).limit(1)).first()
    return None if first is None else find(session, first)


def _due() -> ColumnElement[bool]:
    return CommitmentRequestRow.due <= now()
