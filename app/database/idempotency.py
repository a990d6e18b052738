"""Idempotency keys: one caller's key stands for one prediction, however often and from wherever it is sent.

Notable choices:
- The unique row decides, not a look before it: of any number of concurrent sends, one reserves the key.
- A reservation ends with its lease, so a service that dies while a body arrives blocks its key for no longer. One that
  starts again forgets its own reservations at once.
- The key is completed in the transaction that inserts the prediction. Should a lease run out under a slow upload and
  another send take over, the first of the two to commit wins and the other is told to ask again.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import ColumnElement, Select, delete, select
from sqlalchemy.orm import Session

from app.database.session import now
from app.database.tables import IdempotencyRow
from app.database.upsert import insert_for
from app.sdk.errors import IdempotencyKeyReused, RequestInProgress


@dataclass(frozen=True)
class Reservation:
    """A key as one request holds it. ``prediction_id`` is set where an earlier request completed it."""

    caller: str
    key: str
    token: str
    prediction_id: str | None = None
    body_digest: str | None = None

    def replay(self, body_digest: str) -> str | None:
        """The prediction that this very body made before, or None for a fresh key. Raises IdempotencyKeyReused."""
        if self.prediction_id and self.body_digest != body_digest:
            raise IdempotencyKeyReused("This Idempotency-Key came with another body before; use a new key")
        return self.prediction_id


def reserve(session: Session, caller: str, key: str, *, lease: float, owner: str = "") -> Reservation:
    """Takes a key for one request, before its body is read.

    :param lease: seconds after which the reservation lapses if it was neither completed nor released
    :param owner: the service's own name, for `forget`
    :raises RequestInProgress: while another request holds the key
    """
    token = secrets.token_hex(16)
    fresh = {"token": token, "owner": owner, "expires": now() + timedelta(seconds=lease)}
    fresh |= {"prediction_id": None, "body_digest": None}
    insert = insert_for(session, IdempotencyRow).values(caller=caller, key=key, **fresh)
    lapsed = IdempotencyRow.expires <= now()
    taken = insert.on_conflict_do_update(index_elements=["caller", "key"], set_=fresh, where=lapsed)
    session.execute(taken)
    row = session.scalars(_row(caller, key).with_for_update()).one()
    if row.token == token:
        return Reservation(caller, key, token)
    if row.prediction_id is None:
        raise RequestInProgress(
            "A request with this Idempotency-Key is still under way; ask again shortly", retry_after=2
        )
    return Reservation(caller, key, "", row.prediction_id, row.body_digest)


def complete(session: Session, caller: str, key: str, prediction_id: str, body_digest: str, *, keep: float) -> None:
    """Binds the key to the prediction that this transaction inserts, for ``keep`` seconds.

    :raises RequestInProgress: where another request completed the key meanwhile; nothing of this one may be committed
    """
    bound = {
        "token": "",
        "owner": "",
        "prediction_id": prediction_id,
        "body_digest": body_digest,
        "expires": now() + timedelta(seconds=keep),
    }
    insert = insert_for(session, IdempotencyRow).values(caller=caller, key=key, **bound)
    open_still = IdempotencyRow.prediction_id.is_(None) | (IdempotencyRow.expires <= now())
    session.execute(insert.on_conflict_do_update(index_elements=["caller", "key"], set_=bound, where=open_still))
    row = session.scalars(_row(caller, key).execution_options(populate_existing=True)).one()
    if row.prediction_id != prediction_id:
        raise RequestInProgress("Another request with this Idempotency-Key was faster; send it again", retry_after=0)


def release(session: Session, reservation: Reservation) -> None:
    """Gives a key back whose request was refused, so that a corrected one may use it."""
    held = (IdempotencyRow.token == reservation.token) & IdempotencyRow.prediction_id.is_(None)
    session.execute(delete(IdempotencyRow).where(_is(reservation.caller, reservation.key), held))


def find(session: Session, caller: str, key: str) -> tuple[str, str] | None:
    """The prediction and the body digest that a completed key stands for."""
    row = session.scalars(_row(caller, key).where(IdempotencyRow.expires > now())).one_or_none()
    return (row.prediction_id, row.body_digest or "") if row and row.prediction_id else None


def forget(session: Session, owner: str) -> None:
    """Drops the reservations that this service made in an earlier life; to be called when it starts."""
    session.execute(delete(IdempotencyRow).where(IdempotencyRow.owner == owner, IdempotencyRow.prediction_id.is_(None)))


def expire(session: Session) -> int:
    """Drops the keys whose time is over; returns how many."""
    gone = delete(IdempotencyRow).where(IdempotencyRow.expires <= now()).returning(IdempotencyRow.key)
    return len(session.execute(gone).all())


def _is(caller: str, key: str) -> ColumnElement[bool]:
    return (IdempotencyRow.caller == caller) & (IdempotencyRow.key == key)


def _row(caller: str, key: str) -> Select[IdempotencyRow]:
    return select(IdempotencyRow).where(_is(caller, key))
