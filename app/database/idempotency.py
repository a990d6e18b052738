"""Idempotency keys: one key of a caller stands for one prediction, however often it is sent.

Design notes:
- A unique row decides, so of several concurrent requests exactly one reserves the key.
- A reservation ends with its lease, which the service renews while it works (`app/api/held_keys.py`). So a service that
  stops during an upload blocks the key for a short time only; one that starts again drops its reservations at once.
- The transaction that inserts the prediction completes the key. If a lease ends during a slow upload and another
  request takes the key, the first commit wins and the other request gets `RequestInProgress`.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import ColumnElement, Select, delete, select, update
from sqlalchemy.orm import Session

from app.database.session import now
from app.database.tables import IdempotencyRow
from app.database.upsert import insert_for
from app.sdk.errors import IdempotencyKeyReused, RequestInProgress


@dataclass(frozen=True)
class Reservation:
    """A key in one request; ``prediction_id`` and ``body_digest`` are those of an earlier request that completed it."""

    caller: str
    key: str
    token: str
    prediction_id: str | None = None
    body_digest: str | None = None

    def replay(self, body_digest: str) -> str | None:
        """The prediction of an earlier request with this body; None for a new key. Raises IdempotencyKeyReused."""
        if self.prediction_id and self.body_digest != body_digest:
            raise IdempotencyKeyReused("This Idempotency-Key was used with another body. Use a new key")
        return self.prediction_id


def reserve(
    session: Session, caller: str, key: str, *, lease: float, owner: str = "", token: str | None = None
) -> Reservation:
    """Reserves a key for one request, before its body is read.

    The reservation ends after ``lease`` seconds, unless it is completed or released before. ``owner`` names the service
    for `forget`. ``token`` names the request; by default it is a new one.

    Raises:
        RequestInProgress: Another request holds the key.
    """
    token = token or secrets.token_hex(16)
    fresh = {"token": token, "owner": owner, "expires": now() + timedelta(seconds=lease)}
    fresh |= {"prediction_id": None, "body_digest": None}
    insert = insert_for(session, IdempotencyRow).values(caller=caller, key=key, **fresh)
    expired = IdempotencyRow.expires <= now()
    session.execute(insert.on_conflict_do_update(index_elements=["caller", "key"], set_=fresh, where=expired))
    row = session.scalars(_row(caller, key).with_for_update()).one()
    if row.token == token:
        return Reservation(caller, key, token)
    if row.prediction_id is None:
        raise RequestInProgress(
            "Another request with this Idempotency-Key is in progress. Send the request again later", retry_after=2
        )
    return Reservation(caller, key, "", row.prediction_id, row.body_digest)


def complete(session: Session, caller: str, key: str, prediction_id: str, body_digest: str, *, keep: float) -> None:
    """Binds the key to the prediction that this transaction inserts, for ``keep`` seconds.

    Raises:
        RequestInProgress: Another request has completed the key. This transaction must not be committed.
    """
    bound = {
        "token": "",
        "owner": "",
        "prediction_id": prediction_id,
        "body_digest": body_digest,
        "expires": now() + timedelta(seconds=keep),
    }
    insert = insert_for(session, IdempotencyRow).values(caller=caller, key=key, **bound)
    incomplete = IdempotencyRow.prediction_id.is_(None) | (IdempotencyRow.expires <= now())
    session.execute(insert.on_conflict_do_update(index_elements=["caller", "key"], set_=bound, where=incomplete))
    row = session.scalars(_row(caller, key).execution_options(populate_existing=True)).one()
    if row.prediction_id != prediction_id:
        raise RequestInProgress(
            "Another request with this Idempotency-Key was faster. Send the request again", retry_after=0
        )


def release(session: Session, reservation: Reservation) -> None:
    """Releases the key of a refused request, so that a corrected request can use it."""
    held = (IdempotencyRow.token == reservation.token) & IdempotencyRow.prediction_id.is_(None)
    session.execute(delete(IdempotencyRow).where(_is(reservation.caller, reservation.key), held))


def renew(session: Session, tokens: Iterable[str], *, lease: float) -> set[str]:
    """Extends the reservations of these requests to ``lease`` seconds from now; returns those that still hold a key."""
    held = IdempotencyRow.token.in_(list(tokens)) & IdempotencyRow.prediction_id.is_(None)
    extended = update(IdempotencyRow).where(held).values(expires=now() + timedelta(seconds=lease))
    returned = extended.returning(IdempotencyRow.token).execution_options(synchronize_session=False)
    return set(session.scalars(returned))


def forget(session: Session, owner: str) -> None:
    """Drops the reservations of an earlier process of this service; called when the service starts."""
    session.execute(delete(IdempotencyRow).where(IdempotencyRow.owner == owner, IdempotencyRow.prediction_id.is_(None)))


def expire(session: Session) -> int:
    """Drops expired keys and returns their number."""
    expired = delete(IdempotencyRow).where(IdempotencyRow.expires <= now()).returning(IdempotencyRow.key)
    return len(session.execute(expired).all())


def _is(caller: str, key: str) -> ColumnElement[bool]:
    return (IdempotencyRow.caller == caller) & (IdempotencyRow.key == key)


def _row(caller: str, key: str) -> Select[IdempotencyRow]:
    return select(IdempotencyRow).where(_is(caller, key))
