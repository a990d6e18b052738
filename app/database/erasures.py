"""Erasure of predictions, with an entry of the audit log as the certificate.

Design notes:
- The entry has digests and counts only, so it can stay. The holder of a certificate can recompute its hash, and
  `rlvo audit verify` shows whether the chain still contains it.
- The bytes are deleted after the transaction, recent ones a little later (`app.storage`). The certificate says for each
  digest whether it is gone.
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
    """Erases a prediction and records the erasure. Raises PredictionNotFound, Erased.

    ``tenant`` is the tenant of the caller, None for the operator; ``why`` is ``request``, ``subject`` or ``retention``.

    Returns:
        The digests to delete from the storage after the transaction is committed.
    """
    referenced = set(session.scalars(select(ArtifactRow.digest).where(ArtifactRow.prediction_id == prediction_id)))
    orphans = predictions.erase(session, prediction_id, tenant)
    detail = {"why": why, "blobs": orphans, "shared": len(referenced) - len(orphans)}
    audit.append(session, actor, ACTION, prediction_id, detail)
    return orphans


def due(session: Session, before: datetime, *, most: int) -> list[str]:
    """Predictions that were created before a time and are not erased, oldest first."""
    old = select(PredictionRow.id).where(PredictionRow.created < before, PredictionRow.erased.is_(None))
    return list(session.scalars(old.order_by(PredictionRow.created).limit(most)))


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
    referenced = predictions.referenced(session, digests)
    blobs = [ErasedBlob(sha256=digest, gone=digest in referenced or not exists(digest)) for digest in digests]
    return ErasureCertificate(
        id=prediction_id,
        erased=row.erased,
        blobs=blobs,
        shared=entry.detail.get("shared", 0),
        complete=all(blob.gone for blob in blobs),
        entry=AuditEntry.model_validate({name: getattr(entry, name) for name in AuditEntry.model_fields}),
    )
