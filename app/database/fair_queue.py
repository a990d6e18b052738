"""Whose turn it is: acute studies before batches, and within each the callers by turns, whoever sends how many.

Start-time fair queueing (Goyal, Vin, Cheng, SIGCOMM 1996) with equal weights: a caller's next prediction takes the turn
after that caller's last waiting one, and at least the turn that is being served. So a caller with a thousand waiting
predictions has turns 1 to 1000, and the first one of another caller comes beside the earliest of them, not after all.

Notable choices:
- A turn is the job engine's priority: it serves the smallest first, and equal ones in the order of arrival.
- Only predictions that wait count, so once nobody waits the turns start again from the first.
- Two that arrive at once may take the same turn; that is no harm.
"""

from __future__ import annotations

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.database.tables import PredictionRow
from app.sdk.types import Priority, Status

_CLASS = 1_000_000_000
_FIRST = {Priority.ACUTE: 1, Priority.BATCH: 1 + _CLASS}


def next_position(session: Session, caller: str, priority: Priority) -> int:
    """The turn of the caller's next prediction; smaller is served earlier."""
    first, last = span(priority)
    waiting = (PredictionRow.status == Status.QUEUED, PredictionRow.queue_position.between(first, last))
    served = session.scalar(select(func.min(PredictionRow.queue_position)).where(*waiting))
    mine = session.scalar(
        select(func.max(PredictionRow.queue_position)).where(*waiting, PredictionRow.caller == caller)
    )
    return min(max(served or first, first if mine is None else mine + 1), last)


def span(priority: Priority) -> tuple[int, int]:
    """The first and the last turn of a priority's predictions."""
    first = _FIRST[priority]
    return first, first + _CLASS - 1
