"""State of the figures and the report of a prediction: pending, ready or failed.

Design notes:
- The transaction that records an answer also makes its figures pending, so a crash loses neither.
- Pending figures have no job until they are wanted, or until a worker has nothing else to do. The transaction that
  queues the job also notes it, so there is one job.
- Only a prediction whose figures are not ready takes figures, so a job that runs twice stores them once.
- An erasure takes the state away, so figures that are drawn meanwhile are not stored.
"""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import select, text, update
from sqlalchemy.orm import Session

from app.database.predictions import Artifact, add_artifacts
from app.database.session import now
from app.database.tables import UNDRAWN, ArtifactRow, PredictionRow
from app.sdk.types import FiguresState

_OPEN = (FiguresState.PENDING, FiguresState.FAILED)


def want(session: Session, prediction_id: str) -> bool:
    """Notes that a job draws the figures; False if there is such a job already, or nothing to draw."""
    row = PredictionRow
    noted = update(row).where(row.id == prediction_id, text(UNDRAWN)).values(figures_queued=now()).returning(row.id)
    return session.scalars(noted).one_or_none() is not None


def undrawn(session: Session, prediction_id: str) -> bool:
    """Whether the figures are pending without a job; a read that spares most callers the write of `want`."""
    row = PredictionRow
    return session.scalars(select(row.id).where(row.id == prediction_id, text(UNDRAWN))).one_or_none() is not None


def newest_undrawn(session: Session) -> str | None:
    """The newest prediction whose figures are pending without a job."""
    row = PredictionRow
    newest_first = select(row.id).where(text(UNDRAWN)).order_by(row.created.desc())
    return session.scalars(newest_first.limit(1)).one_or_none()


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
