"""All that is kept of one subject, as one ZIP file: for the subject, or for whoever moves to another system.

Notable choices:
- No volume is in it by default. A head CT shows a face, and maps on the patient's own grid show its outline; who needs
  them asks for them, and is told. Numbers, figures (slices), the report and the FHIR bundle are.
- What was left out is listed, so that nobody takes the file for more than it is.
- Written beside its place, readable by its owner alone, and renamed when it is whole.
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
    """What an export holds: how many predictions and files, and the volumes that were left out."""

    predictions: int = 0
    files: int = 0
    left_out: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    """Files that the record names and the storage no longer has, or has damaged."""


def export(
    database: Database, storage: Storage, tenant: str, subject: str, to: Path, *, volumes: bool = False
) -> SubjectArchive:
    """Writes all that is kept of a subject to the file ``to``.

    :param volumes: also what was uploaded and the map volumes
    :raises NotFound: nothing is kept of this subject
    :raises FileExistsError: there is such a file already
    """
    if to.exists():
        raise FileExistsError(to)
    part = to.with_name(f"{to.name}.part")
    report = SubjectArchive()
    with database.reading() as session:
        ids = erasures.of_subject(session, tenant, subject)
        if not ids:
            raise NotFound("Nothing is kept of this subject of this tenant")
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
        place = f"{prediction_id}/{artifact.name}"
        if artifact.name.endswith(_VOLUMES) and not volumes:
            report.left_out.append(place)
        elif not storage.verify(artifact.digest):
            report.missing.append(place)
        else:
            archive.write(storage.path(artifact.digest), place)
            report.files += 1


def _documents(session: Session, prediction_id: str) -> Iterator[tuple[str, Any]]:
    """The rows of a prediction, as the documents that the API gives."""
    row = session.get_one(PredictionRow, prediction_id)
    yield "prediction", predictions.find(session, prediction_id, None).model_dump(mode="json")
    yield "clinical", row.clinical
    yield "reviews", [review.model_dump(mode="json") for review in followup.reviews(session, prediction_id, None)]
    outcome = followup.outcome(session, prediction_id, None)
    yield "outcome", outcome and outcome.model_dump(mode="json")
    entries = session.scalars(select(AuditRow).where(AuditRow.target == prediction_id).order_by(AuditRow.seq))
    yield "audit", [{"at": each.at.isoformat(), "actor": each.actor, "action": each.action} for each in entries]
