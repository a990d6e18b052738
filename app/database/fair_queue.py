"""Fair queue positions: acute studies before batches, and within each class a fair share for each caller.

Start-time fair queueing (Goyal, Vin, Cheng, SIGCOMM 1996) with equal weights. The next prediction of a caller gets the
position after the last waiting one of this caller, and at least the position that is served now. So a caller with 1,000
waiting predictions has positions 1 to 1,000, and the first one of another caller shares the smallest of them.

Design notes:
- A position is the priority in the job engine, which serves the smallest first and equal ones in order of arrival.
- Only waiting predictions count, so an empty queue starts from the first position again.
- Two predictions that arrive at the same time may get the same position; this does no harm.
"""

from __future__ import annotations

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.database.tables import PredictionRow
from app.sdk.types import Priority, Status

_CLASS = 1_000_000_000
_FIRST = {Priority.ACUTE: 1, Priority.BATCH: 1 + _CLASS}


def next_position(session: Session, caller: str, priority: Priority) -> int:
    """Position of the caller's next prediction; a smaller one is served earlier."""
    first, last = span(priority)
    waiting = (PredictionRow.status == Status.QUEUED, PredictionRow.queue_position.between(first, last))
    served = session.scalar(select(func.min(PredictionRow.queue_position)).where(*waiting))
    latest = session.scalar(
        select(func.max(PredictionRow.queue_position)).where(*waiting, PredictionRow.caller == caller)
    )
    return min(max(served or first, first if latest is None else latest + 1), last)


def span(priority: Priority) -> tuple[int, int]:
    """First and last position of a priority."""
    first = _FIRST[priority]
    return first, first + _CLASS - 1
