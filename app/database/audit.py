"""The audit: who did what to which id, in a chain that shows any change.

Notable choices:
- Each entry's hash covers the hash before it, so altering, removing or reordering one breaks all that follow.
- `audit_head` keeps the length and the last hash: cutting the end off shows too. Noting that hash elsewhere from time
  to time guards against somebody who can rewrite the whole database.
- Appends queue for the head's row, which is locked until the caller's transaction ends: append last.
- Entries hold ids, digests and codes, never a patient's value, so erasing a patient leaves the chain whole.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.database.session import now
from app.database.tables import AuditHeadRow, AuditRow

GENESIS = "0" * 64


@dataclass(frozen=True)
class ChainCheck:
    """What `verify` found: how many entries hold, the last good hash, and the first entry that does not hold."""

    entries: int
    head: str
    broken_at: int | None

    @property
    def intact(self) -> bool:
        return self.broken_at is None


def append(session: Session, actor: str, action: str, target: str, detail: dict[str, Any] | None = None) -> None:
    """Adds an entry in the caller's transaction.

    :param actor: the API key's name, ``worker`` or ``operator``
    :param action: a verb of ours, such as ``prediction.submit``
    :param target: the id that it was done to
    :param detail: codes, digests and counts; nothing of a patient
    """
    head = session.scalars(select(AuditHeadRow).with_for_update().execution_options(populate_existing=True)).one()
    row = AuditRow(
        seq=head.seq + 1, at=now(), actor=actor, action=action, target=target, detail=detail or {}, previous=head.hash
    )
    row.hash = _hash(row)
    head.seq, head.hash = row.seq, row.hash
    session.add(row)
    session.flush()


def verify(session: Session) -> ChainCheck:
    """Recomputes the chain from its beginning."""
    head = session.scalars(select(AuditHeadRow)).one()
    seq, previous = 0, GENESIS
    in_order = select(AuditRow).order_by(AuditRow.seq).execution_options(yield_per=1000)
    with closing(session.scalars(in_order)) as rows:
        for row in rows:
            if row.seq != seq + 1 or row.previous != previous or row.hash != _hash(row):
                return ChainCheck(seq, previous, seq + 1)
            seq, previous = row.seq, row.hash
    broken = (head.seq, head.hash) != (seq, previous)
    return ChainCheck(seq, previous, seq + 1 if broken else None)


def _hash(row: AuditRow) -> str:
    content = [row.seq, row.at.isoformat(), row.actor, row.action, row.target, row.detail, row.previous]
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()
