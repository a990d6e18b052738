"""Erasing a prediction, on record: what was erased, when and by whom, as an entry of the audit that is its certificate.

Notable choices:
- The entry names digests and counts, so that it can stay for ever; every later entry's hash rests on it. Whoever holds
  the certificate can recompute the entry's hash, and `rlvo audit verify` says whether the chain still holds it.
- Bytes go after the transaction, and young ones a little later (`storage.py`): the certificate says of each digest
  whether it is gone by now.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.database import audit, predictions
from app.database.tables import ArtifactRow, AuditRow, PredictionRow
from app.sdk.errors import NotFound, PredictionNotFound
from app.sdk.types import AuditEntry, ErasedBlob, ErasureCertificate

ACTION = "prediction.erase"


def erase(session: Session, prediction_id: str, tenant: str | None, *, actor: str, why: str) -> list[str]:
    """Erases a prediction and puts that on record; the digests to be deleted once this transaction is committed.

    :param tenant: who may erase it; None for the operator
    :param why: ``request``, ``subject`` or ``retention``
    :raises PredictionNotFound, Erased:
    """
    named = set(session.scalars(select(ArtifactRow.digest).where(ArtifactRow.prediction_id == prediction_id)))
    orphans = predictions.erase(session, prediction_id, tenant)
    detail = {"why": why, "blobs": orphans, "shared": len(named) - len(orphans)}
    audit.append(session, actor, ACTION, prediction_id, detail)
    return orphans


def due(session: Session, before: datetime, *, most: int) -> list[str]:
    """The predictions that were made before a moment and are still there, oldest first."""
    old = select(PredictionRow.id).where(PredictionRow.created < before, PredictionRow.erased.is_(None))
    return list(session.scalars(old.order_by(PredictionRow.created).limit(most)))


def of_subject(session: Session, tenant: str, subject: str) -> list[str]:
    """The predictions of one subject, oldest first. A pseudonym means something within its tenant only."""
    mine = (PredictionRow.caller == tenant, PredictionRow.subject == subject, PredictionRow.erased.is_(None))
    return list(session.scalars(select(PredictionRow.id).where(*mine).order_by(PredictionRow.created)))


def certificate(
    session: Session, prediction_id: str, tenant: str | None, exists: Callable[[str], bool]
) -> ErasureCertificate:
    """What was erased of a prediction.

    :param exists: whether the storage still holds a digest
    :raises PredictionNotFound: there never was one, or it is another tenant's
    :raises NotFound: it was not erased
    """
    row = session.get(PredictionRow, prediction_id)
    if row is None or tenant not in (None, row.caller):
        raise PredictionNotFound
    mine = (AuditRow.target == prediction_id, AuditRow.action == ACTION)
    entry = session.scalars(select(AuditRow).where(*mine).order_by(AuditRow.seq.desc())).first()
    if row.erased is None or entry is None:
        raise NotFound("This prediction was not erased, so there is no certificate of it")
    # Entries of earlier releases name only how many blobs there were; a digest that is stored again is another's.
    digests = entry.detail["blobs"] if isinstance(entry.detail["blobs"], list) else []
    named = predictions.referenced(session, digests)
    blobs = [ErasedBlob(sha256=digest, gone=digest in named or not exists(digest)) for digest in digests]
    return ErasureCertificate(
        id=prediction_id,
        erased=row.erased,
        blobs=blobs,
        shared=entry.detail.get("shared", 0),
        complete=all(blob.gone for blob in blobs),
        entry=AuditEntry.model_validate({name: getattr(entry, name) for name in AuditEntry.model_fields}),
    )
