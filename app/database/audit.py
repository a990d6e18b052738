"""The audit log: actor, action and target of each change, in a hash chain that reveals manipulation.

Design notes:
- The hash of an entry covers the hash before it, so a changed, removed or moved entry breaks all later ones.
- `audit_head` keeps the length and the last hash, so a shortened chain shows too. A copy of that hash elsewhere
  protects against a rewrite of the whole database.
- An append locks the row of the head until the transaction of the caller ends, so append last.
- Entries hold ids, digests and codes, but no patient data, so the chain stays valid after an erasure.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import insert, select
from sqlalchemy.orm import Session

from app.database.session import now
from app.database.tables import AuditHeadRow, AuditRow

GENESIS = "0" * 64
_HASHED = ("seq", "at", "actor", "action", "target", "detail", "previous")


@dataclass(frozen=True)
class ChainCheck:
    """Result of `verify`: number of valid entries, hash of the last one, and number of the first invalid entry."""

    entries: int
    head: str
    broken_at: int | None

    @property
    def intact(self) -> bool:
        return self.broken_at is None


class Entry(NamedTuple):
    """An entry to append. The actor is the name of an API key, ``worker`` or ``operator``; the target is an id.

    ``detail`` has codes, digests and counts, but no patient data.
    """

    actor: str
    action: str
    target: str
    detail: dict[str, Any]


def append(session: Session, actor: str, action: str, target: str, detail: dict[str, Any] | None = None) -> None:
    """Appends one entry (`Entry`) in the transaction of the caller."""
    append_all(session, [Entry(actor, action, target, detail or {})])


def append_all(session: Session, entries: Iterable[Entry]) -> None:
    """Appends entries in the transaction of the caller, in their order."""
    head = session.scalars(select(AuditHeadRow).with_for_update().execution_options(populate_existing=True)).one()
    seq, previous, rows = head.seq, head.hash, list[dict[str, Any]]()
    for seq, entry in enumerate(entries, start=head.seq + 1):
        row = {"seq": seq, "at": now(), **entry._asdict(), "previous": previous}
        row["hash"] = previous = _hash(row)
        rows.append(row)
    head.seq, head.hash = seq, previous
    if rows:
        session.execute(insert(AuditRow), rows)
    session.flush()


def verify(session: Session) -> ChainCheck:
    """Recomputes the chain from its first entry."""
    head = session.scalars(select(AuditHeadRow)).one()
    seq, previous = 0, GENESIS
    in_order = select(AuditRow).order_by(AuditRow.seq).execution_options(yield_per=1000)
    with closing(session.scalars(in_order)) as rows:
        for row in rows:
            hashed = {name: getattr(row, name) for name in _HASHED}
            if row.seq != seq + 1 or row.previous != previous or row.hash != _hash(hashed):
                return ChainCheck(seq, previous, seq + 1)
            seq, previous = row.seq, row.hash
    broken = (head.seq, head.hash) != (seq, previous)
    return ChainCheck(seq, previous, seq + 1 if broken else None)


def _hash(entry: Mapping[str, Any]) -> str:
    content = [entry[name] for name in _HASHED]
    canonical = json.dumps(
        content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=datetime.isoformat
    )
    return hashlib.sha256(canonical.encode()).hexdigest()
