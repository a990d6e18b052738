"""State of the figures and the report of a prediction: pending, ready or failed.

Design notes:
- The transaction that records an answer also makes its figures pending and queues their job, so a crash loses neither.
- Only a prediction whose figures are not ready takes figures, so a job that runs twice stores them once.
- An erasure takes the state away, so figures that are drawn meanwhile are not stored.
"""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.database.predictions import Artifact, add_artifacts
from app.database.tables import ArtifactRow, PredictionRow
from app.sdk.types import FiguresState

_OPEN = (FiguresState.PENDING, FiguresState.FAILED)


def sources(session: Session, prediction_id: str) -> dict[str, str] | None:
    """Digests of the files of a prediction, by name; None if its figures are drawn, or if it has none to draw."""
    row = session.get(PredictionRow, prediction_id)
    if row is None or row.figures not in _OPEN:
        return None
    of_prediction = ArtifactRow.prediction_id == prediction_id
    rows = session.execute(select(ArtifactRow.name, ArtifactRow.digest).where(of_prediction))
    return {row.name: row.digest for row in rows}


def drawn(session: Session, prediction_id: str, artifacts: Iterable[Artifact]) -> bool:
    """Adds the figures once; False if the prediction is erased or has its figures already."""
    row = _open_row(session, prediction_id)
    if row is None:
        return False
    row.figures = FiguresState.READY
    add_artifacts(session, prediction_id, artifacts)
    return True


def failed(session: Session, prediction_id: str) -> bool:
    """Notes that a try failed; False if the prediction is erased or has its figures already."""
    row = _open_row(session, prediction_id)
    if row is None:
        return False
    row.figures = FiguresState.FAILED
    return True


def _open_row(session: Session, prediction_id: str) -> PredictionRow | None:
    query = select(PredictionRow).where(PredictionRow.id == prediction_id, PredictionRow.figures.in_(_OPEN))
    return session.scalars(query.with_for_update()).one_or_none()
