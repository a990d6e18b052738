"""Erasure of predictions, with an entry of the audit log as the certificate.

Design notes:
- The entry has digests and counts only, so it can stay. The holder of a certificate can recompute its hash, and
  `rlvo audit verify` shows whether the chain still contains it.
- The bytes are deleted after the transaction, recent ones a little later (`app.storage`). The certificate says for each
  digest whether it is gone.
- The entries of the audit are also compared with the ledger of erasures, which no backup of the database replaces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.database import audit, predictions
from app.database.row_erasure import erase_rows, referenced
from app.database.tables import AuditRow, PredictionRow
from app.sdk.errors import Erased, NotFound, PredictionNotFound
from app.sdk.types import AuditEntry, ErasedBlob, ErasureCertificate

ACTION = "prediction.erase"
RETENTION = "retention"  # the reason of an erasure by age
BATCH_SIZE = 500  # ids in one statement; databases limit the parameters


@dataclass(frozen=True)
class RecordedErasure:
    """An erasure of the audit: id of the prediction, time, actor and reason."""

    target: str
    at: datetime
    actor: str
    why: str


def check(session: Session, prediction_id: str, tenant: str | None) -> None:
    """Raises PredictionNotFound or Erased if `erase` would."""
    predictions.find(session, prediction_id, tenant)


def erase(
    session: Session, prediction_id: str, tenant: str | None, *, actor: str, why: str, first: str = ""
) -> list[str]:
    """Erases a prediction and records the erasure. Raises PredictionNotFound, Erased.

    ``tenant`` is the tenant of the caller, None for the operator. ``why`` is ``request``, ``subject``, ``retention``,
    or ``replay`` for the repetition of an erasure that a restore of the database has undone; ``first`` is its time.

    Returns:
        The digests to delete from the storage after the transaction is committed.
    """
    check(session, prediction_id, tenant)
    erased = erase_all(session, [prediction_id], actor=actor, why=why, first=first)
    if prediction_id not in erased:  # another transaction was faster
        raise Erased
    return erased[prediction_id]


def erase_all(session: Session, ids: Iterable[str], *, actor: str, why: str, first: str = "") -> dict[str, list[str]]:
    """Erases predictions and records each erasure, as `erase`; those that are erased already are left out.

    A study whose last prediction is erased makes no further one until a call. Only retention lets a study go on that
    has received more meanwhile: the age of a prediction says nothing against new images.

    Returns:
        The digests to delete after the transaction is committed, by prediction.
    """
    orphans: dict[str, list[str]] = {}
    entries: list[audit.Entry] = []
    erased = erase_rows(session, ids, stops_unfinished=why != RETENTION)
    for prediction_id, (digests, shared) in erased.items():
        detail: dict[str, object] = {"why": why, "blobs": digests, "shared": shared}
        entries.append(audit.Entry(actor, ACTION, prediction_id, detail | ({"first": first} if first else {})))
        orphans[prediction_id] = digests
    audit.append_all(session, entries)
    return orphans


def states(session: Session, prediction_ids: Iterable[str]) -> dict[str, bool]:
    """Whether each of these predictions is erased; ids that the database does not have are left out."""
    listed, found = list(prediction_ids), dict[str, bool]()
    for start in range(0, len(listed), BATCH_SIZE):
        part = listed[start : start + BATCH_SIZE]
        rows = session.execute(select(PredictionRow.id, PredictionRow.erased).where(PredictionRow.id.in_(part)))
        found |= {prediction_id: erased is not None for prediction_id, erased in rows}
    return found


def recorded(session: Session) -> Iterator[RecordedErasure]:
    """All erasures of the audit, oldest first; a prediction that was erased again comes twice."""
    columns = (AuditRow.target, AuditRow.at, AuditRow.actor, AuditRow.detail["why"].as_string())
    rows = select(*columns).where(AuditRow.action == ACTION).order_by(AuditRow.seq)
    for target, at, actor, why in session.execute(rows.execution_options(yield_per=BATCH_SIZE)):
        yield RecordedErasure(target, at, actor, why or "")


def due(session: Session, before: datetime, *, most: int) -> list[str]:
    """Predictions that ended before a time and are not erased, oldest first."""
    old = select(PredictionRow.id).where(PredictionRow.finished < before, PredictionRow.erased.is_(None))
    return list(session.scalars(old.order_by(PredictionRow.finished).limit(most)))


def overdue(session: Session, before: datetime) -> int:
    """Number of predictions that were accepted before a time and have not ended."""
    open_ones = (PredictionRow.finished.is_(None), PredictionRow.erased.is_(None))
    counted = select(func.count()).select_from(PredictionRow).where(PredictionRow.created < before, *open_ones)
    return session.scalars(counted).one()


def of_subject(session: Session, tenant: str, subject: str) -> list[str]:
    """Predictions of one subject, oldest first. A pseudonym is valid within its tenant only."""
    conditions = (PredictionRow.caller == tenant, PredictionRow.subject == subject, PredictionRow.erased.is_(None))
    return list(session.scalars(select(PredictionRow.id).where(*conditions).order_by(PredictionRow.created)))


def certificate(
    session: Session, prediction_id: str, tenant: str | None, exists: Callable[[str], bool]
) -> ErasureCertificate:
    """Certificate of an erasure; ``exists`` returns whether the storage still has a digest.

    Raises:
        PredictionNotFound: The tenant never had such a prediction.
        NotFound: The prediction is not erased.
    """
    row = session.get(PredictionRow, prediction_id)
    if row is None or tenant not in (None, row.caller):
        raise PredictionNotFound
    conditions = (AuditRow.target == prediction_id, AuditRow.action == ACTION)
    entry = session.scalars(select(AuditRow).where(*conditions).order_by(AuditRow.seq.desc())).first()
    if row.erased is None or entry is None:
        raise NotFound("The prediction is not erased, so it has no certificate")
    # Entries of early releases have the number of blobs only. A referenced digest belongs to another prediction now.
    digests = entry.detail["blobs"] if isinstance(entry.detail["blobs"], list) else []
    named = referenced(session, digests)
    blobs = [ErasedBlob(sha256=digest, gone=digest in named or not exists(digest)) for digest in digests]
    return ErasureCertificate(
        id=prediction_id,
        erased=row.erased,
        blobs=blobs,
        shared=entry.detail.get("shared", 0),
        complete=all(blob.gone for blob in blobs),
        entry=AuditEntry.model_validate({name: getattr(entry, name) for name in AuditEntry.model_fields}),
    )
