"""What a shadow version would have said, beside what was answered. Never part of any answer to a caller's prediction.

A score is a difference of probabilities and whether the two decisions agree; the patient's own number stays in the
prediction's row. Erasing a prediction erases its score.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.database.session import now
from app.database.tables import PredictionRow, ShadowRow
from app.database.upsert import insert_for


@dataclass(frozen=True)
class ShadowScore:
    """``difference``: the shadow's probability minus the answered one; None, with ``error``, where it had none."""

    prediction_id: str
    name: str
    version: str
    answered: str
    difference: float | None
    agrees: bool | None
    error: str | None = None


@dataclass(frozen=True)
class ShadowSummary:
    """How a shadow compares with what was answered; differences of probability."""

    version: str
    answered: str
    scored: int
    failed: int
    agreed: int
    mean_difference: float | None
    mean_absolute_difference: float | None
    largest_difference: float | None


def store(session: Session, score: ShadowScore) -> bool:
    """Keeps a score, once; False where its prediction is erased, or has no answer."""
    row = session.scalars(
        select(PredictionRow).where(PredictionRow.id == score.prediction_id).with_for_update()
    ).one_or_none()
    if row is None or row.erased or row.probability is None:
        return False
    values = {
        "model_name": score.name,
        "version": score.version,
        "answered": score.answered,
        "difference": score.difference,
        "agrees": score.agrees,
        "error": score.error,
        "created": now(),
    }
    insert = insert_for(session, ShadowRow).values(prediction_id=score.prediction_id, **values)
    session.execute(insert.on_conflict_do_update(index_elements=["prediction_id"], set_=values))
    return True


def report(session: Session, name: str) -> list[ShadowSummary]:
    """One report per pair of a shadow and the version that it was compared with, the newest shadow first."""
    pair = (ShadowRow.version, ShadowRow.answered)
    query = (
        select(
            *pair,
            func.count(ShadowRow.difference),
            func.count(ShadowRow.error),
            func.count(ShadowRow.prediction_id).filter(ShadowRow.agrees.is_(True)),
            func.avg(ShadowRow.difference),
            func.avg(func.abs(ShadowRow.difference)),
            func.max(func.abs(ShadowRow.difference)),
        )
        .where(ShadowRow.model_name == name)
        .group_by(*pair)
        .order_by(func.max(ShadowRow.created).desc())
    )
    return [ShadowSummary(*row) for row in session.execute(query)]
