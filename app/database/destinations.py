"""DICOM destinations of a tenant, and the state of each delivery.

Design notes:
- A delivery is created in the transaction that finishes the prediction, for predictions with a return address.
- A request to send again is a new run; the jobs of an earlier run then end.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from app.database.destination_tables import DeliveryRow, DestinationRow
from app.database.session import now
from app.database.study_tables import ReturnAddressRow
from app.database.tables import PredictionRow
from app.sdk.deliveries import CommitmentState, Delivery, DeliveryState
from app.sdk.errors import FieldError, InvalidRequest
from app.sdk.types import Status


class DestinationKind(StrEnum):
    """Protocol of a destination."""

    STOW = "stow"
    C_STORE = "c-store"


@dataclass(frozen=True)
class Destination:
    """A PACS.

    Attributes:
        address: URL of its studies service (STOW-RS), or ``host:port`` (C-STORE).
        called, calling: AE titles (C-STORE).
        tls: whether an association uses TLS.
        results: False if studies are only fetched from it.
        secret: sealed value of the Authorization header.
    """

    id: str
    tenant: str
    name: str
    kind: DestinationKind
    address: str
    called: str
    calling: str
    tls: bool
    created: datetime
    ended: datetime | None = None
    results: bool = True
    secret: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Pending:
    """A delivery that is due: its destination, its first time, and the tries before.

    Attributes:
        changed: when its last try ended.
        delivered: it has arrived, and the archive has not answered yet whether it is committed.
    """

    destination: Destination
    since: datetime
    changed: datetime
    tries: int
    delivered: bool = False


def create(
    session: Session,
    tenant: str,
    name: str,
    kind: DestinationKind,
    address: str,
    *,
    called: str = "",
    calling: str = "",
    tls: bool = False,
    results: bool = True,
    secret: bytes | None = None,
) -> Destination:
    """Creates a destination. Raises InvalidRequest."""
    for text, what in ((tenant, "tenant"), (name, "name")):
        if not 1 <= len(text) <= 64:
            raise InvalidRequest(f"The {what} must have 1 to 64 characters")
    row = DestinationRow(
        id=secrets.token_hex(4),
        tenant=tenant,
        name=name,
        kind=kind,
        address=address,
        called=called,
        calling=calling,
        tls=tls,
        results=results,
        secret=secret,
        created=now(),
    )
    session.add(row)
    session.flush()
    return _destination(row)


def listed(session: Session) -> list[Destination]:
    """All destinations, also ended ones, oldest first."""
    rows = session.scalars(select(DestinationRow).order_by(DestinationRow.created, DestinationRow.id))
    return [_destination(row) for row in rows]


def find(session: Session, destination_id: str) -> Destination | None:
    """The destination; None if it is unknown or ended."""
    row = session.get(DestinationRow, destination_id)
    return None if row is None or row.ended else _destination(row)


def source(session: Session, tenant: str | None, name: str | None) -> Destination:
    """The archive to fetch a study from: by its name or id, or the only one of the tenant. Raises InvalidRequest."""
    query = select(DestinationRow).where(DestinationRow.ended.is_(None)).order_by(DestinationRow.created)
    if tenant is not None:
        query = query.where(DestinationRow.tenant == tenant)
    found = [row for row in session.scalars(query) if name in (None, row.name, row.id)]
    if len(found) != 1:
        what = "No archive" if not found else "More than one archive"
        how = "Name one as `source`; `rlvo dicom destinations add` adds one."
        raise InvalidRequest(f"{what} of this tenant fits. {how}", errors=[FieldError("source", what.lower())])
    return _destination(found[0])


def end(session: Session, destination_id: str) -> bool:
    """Ends a destination with its open deliveries; returns False if there is no active one with this id."""
    row = session.get(DestinationRow, destination_id)
    if row is None or row.ended:
        return False
    row.ended = now()
    of_it = (DeliveryRow.destination_id == destination_id, DeliveryRow.state == DeliveryState.WAITING)
    values = {"state": DeliveryState.GIVEN_UP, "reason": "removed", "changed": now()}
    session.execute(update(DeliveryRow).where(*of_it).values(values))
    return True


def active(session: Session, destination_ids: Iterable[str]) -> set[str]:
    """The given destinations that are not removed."""
    known = set(session.scalars(select(DestinationRow.id).where(DestinationRow.ended.is_(None))))
    return known & set(destination_ids)


def removals(session: Session) -> dict[str, datetime]:
    """Time of the removal of each removed destination."""
    rows = session.execute(select(DestinationRow.id, DestinationRow.ended).where(DestinationRow.ended.is_not(None)))
    return {destination_id: ended for destination_id, ended in rows if ended is not None}


def begin(session: Session, prediction_id: str, *, again: bool = False) -> list[tuple[str, int]]:
    """Notes that a prediction is to be sent, and returns its destinations with the number of the run.

    Args:
        session: The session.
        prediction_id: A prediction that succeeded; without a return address it has no destination.
        again: Also send what was delivered or given up.
    """
    row = session.get(PredictionRow, prediction_id)
    if row is None or row.erased or row.status != Status.SUCCEEDED:
        return []
    if session.get(ReturnAddressRow, prediction_id) is None:
        return []
    receivers = select(DestinationRow.id).where(
        DestinationRow.tenant == row.caller, DestinationRow.ended.is_(None), DestinationRow.results
    )
    runs = []
    for destination_id in session.scalars(receivers.order_by(DestinationRow.id)):
        delivery = session.get(DeliveryRow, (prediction_id, destination_id))
        if delivery is not None and not again:
            continue
        run = 1 if delivery is None else delivery.run + 1
        if delivery is None:
            delivery = DeliveryRow(prediction_id=prediction_id, destination_id=destination_id)
            session.add(delivery)
        delivery.state, delivery.tries, delivery.run, delivery.reason = DeliveryState.WAITING, 0, run, None
        delivery.commitment = delivery.commitment_reason = delivery.transaction_uid = delivery.asked_items = None
        delivery.since = delivery.changed = now()
        runs.append((destination_id, run))
    session.flush()
    return runs


def pending(session: Session, prediction_id: str, destination_id: str, run: int) -> Pending | None:
    """The delivery if this run is still to be made; None if it is done, replaced, erased or ended."""
    delivery, destination = session.get(DeliveryRow, (prediction_id, destination_id)), find(session, destination_id)
    if delivery is None or destination is None or delivery.run != run:
        return None
    asked = delivery.state == DeliveryState.DELIVERED and delivery.commitment == CommitmentState.ASKED
    if delivery.state != DeliveryState.WAITING and not asked:
        return None
    return Pending(destination, delivery.since, delivery.changed, delivery.tries, asked)


def note(
    session: Session,
    prediction_id: str,
    destination_id: str,
    run: int,
    state: DeliveryState,
    reason: str = "",
    *,
    tries: int,
) -> bool:
    """Notes the state after ``tries`` tries of a run; returns False if another run has replaced this one."""
    delivery = session.get(DeliveryRow, (prediction_id, destination_id), with_for_update=True)
    if delivery is None or delivery.run != run or delivery.state != DeliveryState.WAITING:
        return False
    delivery.state, delivery.reason, delivery.changed = state, reason[:64] or None, now()
    delivery.tries = tries
    return True


def of_prediction(session: Session, prediction_id: str) -> list[Delivery]:
    """Deliveries of a prediction, by the name of their destination."""
    joined = select(DeliveryRow, DestinationRow.name).join(DestinationRow)
    rows = session.execute(joined.where(DeliveryRow.prediction_id == prediction_id).order_by(DestinationRow.name))
    return [
        Delivery(
            destination=name,
            state=DeliveryState(row.state),
            tries=row.tries,
            reason=row.reason,
            commitment=None if row.commitment is None else CommitmentState(row.commitment),
            commitment_reason=row.commitment_reason,
            since=row.since,
            changed=row.changed,
        )
        for row, name in rows
    ]


def counts(session: Session) -> Mapping[DeliveryState, int]:
    """Number of deliveries in each state."""
    rows = session.execute(select(DeliveryRow.state, func.count()).group_by(DeliveryRow.state))
    found = {DeliveryState(state): count for state, count in rows}
    return {state: found.get(state, 0) for state in DeliveryState}


def _destination(row: DestinationRow) -> Destination:
    return Destination(
        id=row.id,
        tenant=row.tenant,
        name=row.name,
        kind=DestinationKind(row.kind),
        address=row.address,
        called=row.called,
        calling=row.calling,
        tls=row.tls,
        created=row.created,
        ended=row.ended,
        results=row.results,
        secret=row.secret,
    )
