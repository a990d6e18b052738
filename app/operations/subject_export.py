"""Export of all stored data of one subject as one ZIP file.

Design notes:
- Volumes are excluded by default: a face can be reconstructed from a head CT or from a map on the patient's grid.
- The archive lists the excluded files.
- The archive is written to a temporary file that only its owner can read, and renamed when it is complete.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.database import erasures, followup, predictions
from app.database.session import Database, now
from app.database.tables import ArtifactRow, AuditRow, PredictionRow
from app.sdk.errors import NotFound
from app.storage.local import Storage

_VOLUMES = (".nii", ".nii.gz")


@dataclass
class SubjectArchive:
    """Content of an export: number of predictions and files, and the excluded volumes."""

    predictions: int = 0
    files: int = 0
    left_out: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)  # files of the record that are missing or damaged in the storage


def export(
    database: Database, storage: Storage, tenant: str, subject: str, to: Path, *, volumes: bool = False
) -> SubjectArchive:
    """Write all stored data of a subject to the new ZIP file ``to``; ``volumes`` includes image and map volumes.

    Raises:
        NotFound: There is no stored data of this subject.
        FileExistsError: The file exists already.
    """
    if to.exists():
        raise FileExistsError(to)
    part = to.with_name(f"{to.name}.part")
    report = SubjectArchive()
    with database.reading() as session:
        ids = erasures.of_subject(session, tenant, subject)
        if not ids:
            raise NotFound("This tenant has no stored data of this subject")
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
                for prediction_id in ids:
                    _write(session, storage, prediction_id, archive, report, volumes=volumes)
                report.predictions = len(ids)
                about = {
                    "tenant": tenant,
                    "subject": subject,
                    "exported": now().isoformat(),
                    "predictions": ids,
                    "left_out": report.left_out,
                    "missing": report.missing,
                }
                archive.writestr("subject.json", json.dumps(about, indent=2))
            part.replace(to)
        finally:
            part.unlink(missing_ok=True)
    return report


def _write(
    session: Session,
    storage: Storage,
    prediction_id: str,
    archive: zipfile.ZipFile,
    report: SubjectArchive,
    *,
    volumes: bool,
) -> None:
    for name, document in _documents(session, prediction_id):
        archive.writestr(f"{prediction_id}/{name}.json", json.dumps(document, indent=2))
    named = select(ArtifactRow).where(ArtifactRow.prediction_id == prediction_id).order_by(ArtifactRow.name)
    for artifact in session.scalars(named):
        path = f"{prediction_id}/{artifact.name}"
        if artifact.name.endswith(_VOLUMES) and not volumes:
            report.left_out.append(path)
        elif not storage.verify(artifact.digest):
            report.missing.append(path)
        else:
            archive.write(storage.path(artifact.digest), path)
            report.files += 1


def _documents(session: Session, prediction_id: str) -> Iterator[tuple[str, Any]]:
    """Yield name and content of each document of a prediction, as the API returns them."""
    row = session.get_one(PredictionRow, prediction_id)
    yield "prediction", predictions.find(session, prediction_id, None).model_dump(mode="json")
    yield "clinical", row.clinical
    yield "reviews", [review.model_dump(mode="json") for review in followup.reviews(session, prediction_id, None)]
    outcome = followup.outcome(session, prediction_id, None)
    yield "outcome", outcome and outcome.model_dump(mode="json")
    entries = session.scalars(select(AuditRow).where(AuditRow.target == prediction_id).order_by(AuditRow.seq))
    yield "audit", [{"at": each.at.isoformat(), "actor": each.actor, "action": each.action} for each in entries]
